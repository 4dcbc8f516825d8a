"""The inputs of a fleet's steps: coefficients, batches, dropout numbers and noise, all functions of the step.

Coefficients and batches are computed for BLOCK steps at once, random numbers for as many steps as fit in the cache.
Both are aligned to multiples of their length, so that a run gets the same inputs wherever it is interrupted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from burgersgd import schedules, streams
from burgersgd.datasets.batches import Batches
from burgersgd.models import Model
from burgersgd.optimizers.protocol import Clock, Hyper, Rule
from burgersgd.streams import Purpose
from burgersgd.training.replicas import purpose_of, rows_of

BLOCK = 64
"""Number of steps whose coefficients and batch indices are computed at once."""
DRAW_BYTES = 1 << 19
"""Bytes of random numbers drawn at once on a CPU, which leave room in the second-level cache."""
DRAW_BYTES_ON_GPUS = 1 << 26
"""Bytes of random numbers drawn at once on a GPU, where every draw is a kernel launch and memory is ample."""


class Block(NamedTuple):
    """Inputs of BLOCK consecutive steps, aligned to multiples of BLOCK."""

    first: int
    coefficients: Float[Tensor, "steps fields runs 1"]
    indices: Int64[Tensor, "steps runs batch"] | None  # None is the full batch


class Draws(NamedTuple):
    """Random numbers of consecutive steps; their number divides BLOCK, and they are aligned to multiples of it."""

    first: int
    xi: Float[Tensor, "steps runs d"] | None  # standard normal
    uniform: Float[Tensor, "steps runs batch n_uniform"] | None


class Inputs:
    """The inputs of the rows (runs, or their replicas) of one rule; `load` makes those of a step current."""

    def __init__(
        self,
        rule: Rule,
        hyper: Hyper,
        schedule: str,
        schedule_hyper: Hyper,
        batches: Batches,
        seeds: Int[Tensor, " runs"],
        budget: int,
        like: Float[Tensor, "rows d"],
        model: Model,
    ) -> None:
        """`like` gives shape, dtype and device of a vector of all rows; budget counts the steps of every row."""
        self.rule, self.hyper, self.schedule, self.schedule_hyper = rule, hyper, schedule, schedule_hyper
        self.batches, self.budget, self.shapes = batches, budget, model.shapes
        self.points = rule.replicas or 1
        """Number of rows of a run."""
        self.run_seeds, self.seeds = seeds, seeds.repeat_interleave(self.points)
        self.n_runs, self.d = like.shape
        self.dtype, self.device = like.dtype, like.device
        self.uniform_shape = (self.n_runs, batches.batch_size, model.n_uniform)
        self.in_place = False
        """Whether the inputs of every block are written to the memory of those of the first one."""
        self.draws_noise = rule.noisy
        """Whether normal numbers are drawn here; False where the engine draws them or the rule has no noise."""
        self._batches = [batches.of_purpose(purpose_of(batches.purpose, r)) for r in range(1, self.points)]
        self._block: Block | None = None
        self._draws: Draws | None = None
        self._exact: Any = None  # coefficients of the block in float64
        self._rows: list[Any] | None = None  # and by step, in the runs' precision

    # ---------------------------------------------------------------------------------------------- one step

    @property
    def block(self) -> Block:
        """Coefficients and batches of the loaded steps."""
        assert self._block is not None, "nothing is loaded"
        return self._block

    @property
    def draws(self) -> Draws:
        """Random numbers of the loaded steps."""
        assert self._draws is not None, "nothing is loaded"
        return self._draws

    def load(self, step: int) -> int:
        """Load the inputs of a step and of steps after it; return the first later step that is not loaded."""
        first = step // BLOCK * BLOCK
        if self._block is None or self._block.first != first:
            self._block = self.fill(first)
        first = step // self.draw_length * self.draw_length
        if self._draws is None or self._draws.first != first:
            self._draws = self.draw(first)
        return first + self.draw_length

    def row(self, step: int, split_block: bool = True) -> Any:
        """Return the coefficients of a loaded step in the runs' precision, each ``[runs, 1]``.

        split_block: most steps of the block will be requested, so that splitting the block at once is faster.
        """
        if not split_block:
            return self.joined(self.block.coefficients[step - self.block.first].unbind(0))
        if self._rows is None:
            fields = [field.unbind(0) for field in self.block.coefficients.unbind(1)]
            self._rows = [self.joined(row) for row in zip(*fields, strict=True)]
        return self._rows[step - self.block.first]

    def xi(self, step: int) -> Float[Tensor, "runs d"] | None:
        """Return the normal numbers of a loaded step; None where the rule has no noise or the engine draws them."""
        return None if self.draws.xi is None else self.draws.xi[step - self.draws.first]

    def size(self, step: int) -> int:
        """Return the number of examples in the batch of a step."""
        return self.batches.size(step // self.rule.gradients_per_batch)

    def indices(self, step: int) -> Int64[Tensor, "runs batch"] | None:
        """Return the indices of the examples in each run's batch at a loaded step; None is the full batch."""
        block = self.block
        if block.indices is None:
            return None
        indices, size = block.indices[step - block.first], self.size(step)
        return indices if size == indices.shape[1] else indices[:, :size]

    def uniform(self, step: int) -> Float[Tensor, "runs batch n_uniform"] | None:
        """Return the dropout numbers of a loaded step."""
        draws = self.draws
        return None if draws.uniform is None else draws.uniform[step - draws.first, :, : self.size(step)]

    # ---------------------------------------------------------------------------------------------- many steps

    @functools.cached_property
    def full_batch(self) -> Int64[Tensor, "runs n"]:
        """The indices of all examples, for every run."""
        return torch.arange(self.batches.n, device=self.device).expand(self.n_runs, -1)

    @functools.cached_property
    def draw_length(self) -> int:
        """Number of steps whose random numbers are drawn at once, a power of two."""
        drawn = self.n_runs * self.d * self.draws_noise + math.prod(self.uniform_shape)
        room = DRAW_BYTES if self.device.type == "cpu" else DRAW_BYTES_ON_GPUS
        at_once = min(BLOCK, max(1, room // (4 * max(1, drawn))))
        return 1 << (at_once.bit_length() - 1)

    def exact_coefficients(self, first: int, n_steps: int) -> Any:
        """Return the coefficients of consecutive steps as the rule returns them: float64 on the CPU."""
        return self.exact_coefficients_of(torch.arange(first, first + n_steps))

    def exact_coefficients_of(self, steps: Int64[Tensor, " steps"]) -> Any:
        """Return the coefficients of any steps as the rule returns them: float64 on the CPU."""
        step = steps.view(-1, 1, 1)
        cycle = self.rule.gradients_per_cycle
        clock = Clock(step, step.double() / self.budget, step // cycle, step % cycle, self.budget, self.shapes)
        factor = schedules.factor(self.schedule, self.schedule_hyper, clock)
        c = self.rule.coefficients(self.hyper, factor.expand(len(steps), self.n_runs // self.points, 1), clock)
        if self.rule.replicas is None:
            return c
        return type(c)(*(f if f.shape[1] == 1 else f.repeat_interleave(self.points, dim=1) for f in c))

    def row_of(self, step: int) -> Any:
        """Return the coefficients of any step in the runs' precision, each ``[runs, 1]``."""
        c = self.coefficients_at(step)
        return type(c)(*(field.to(self.device, self.dtype) for field in c))

    def coefficients_at(self, step: int) -> Any:
        """Return the coefficients of any step, float64 ``[rows, 1]`` (or ``[rows, d]``) on the CPU."""
        is_loaded = self._block is not None and 0 <= step - self._block.first < BLOCK
        c, row = (self._exact, step - self._block.first) if is_loaded and self._block else (None, 0)
        c = self.exact_coefficients(step, 1) if c is None else c
        return type(c)(*(field.expand(-1, self.n_runs, -1)[row if len(field) > 1 else 0] for field in c))

    def normals(self, first: int, n_steps: int, out: Tensor | None = None) -> Float[Tensor, "steps runs d"] | None:
        """Return the normal numbers first, first + 1, ... of every run; None for a rule without noise.

        Number 0 belongs to the initial state, number k + 1 to gradient evaluation k.
        """
        if not self.rule.noisy:
            return None
        if out is None:
            out = torch.empty(n_steps, self.n_runs, self.d, dtype=self.dtype, device=self.device)
        return self._rows_into(out, functools.partial(streams.normal_, purpose=Purpose.NOISE, first_step=first))

    def _rows_into(self, out: Tensor, draw: Any) -> Tensor:
        """Fill out ``[steps, rows, n]`` with draw(out, seeds); every replica has its own stream. Return out."""
        if self.rule.replicas is None:
            return draw(out, self.seeds)
        purpose = draw.keywords["purpose"]

        def of_replica(replica: int) -> Tensor:
            own = out.new_empty(len(out), len(self.run_seeds), out.shape[2])
            return draw(own, self.run_seeds, purpose=purpose_of(purpose, replica))

        return out.copy_(rows_of(self.rule.replicas, of_replica))

    @functools.cached_property
    def narrow(self) -> list[int]:
        """Indices of the coefficients that have one number per row."""
        return [i for i in range(len(self._first)) if i not in self.wide]

    @functools.cached_property
    def wide(self) -> dict[int, Float[Tensor, "rows d"]]:
        """The coefficients that have a number for every parameter, by index; they must not depend on the step.

        Raises ValueError where a rule returns such coefficients separately for each step.
        """
        wide = {i: field for i, field in enumerate(self._first) if field.shape[-1] != 1}
        for i, field in wide.items():
            if len(field) != 1:
                name, key = type(self.rule).__name__, self._first._fields[i]
                shape = list(field.shape)
                raise ValueError(f"{name}.coefficients: {key} is {shape} for two steps, must be [1, runs, d]: constant")
        return {i: f[0].expand(self.n_runs, -1).to(self.device, self.dtype).contiguous() for i, f in wide.items()}

    @functools.cached_property
    def _first(self) -> Any:
        return self.exact_coefficients(0, 2)

    def joined(self, narrow: Sequence[Tensor]) -> Any:
        """Return all coefficients, given those with one number per row."""
        kind = type(self._first)
        if not self.wide:
            return kind(*narrow)
        by_place = dict(zip(self.narrow, narrow, strict=True)) | self.wide
        return kind(*(by_place[i] for i in range(len(by_place))))

    def _indices(self, first: int) -> Int64[Tensor, "steps rows batch"]:
        """Return the batches of BLOCK steps; each batch is used in gradients_per_batch consecutive steps."""
        held = self.rule.gradients_per_batch
        start, stop = first // held, (first + BLOCK - 1) // held + 1
        order = [self.batches, *self._batches]
        indices = rows_of(self.rule.replicas, lambda r: order[r].indices(start, stop - start))
        return indices if held == 1 else indices[torch.arange(first, first + BLOCK, device=self.device) // held - start]

    def fill(self, first: int) -> Block:
        """Compute coefficients and batches of BLOCK steps."""
        c = self._exact = self.exact_coefficients(first, BLOCK)
        coefficients = torch.stack([c[i].expand(BLOCK, self.n_runs, 1) for i in self.narrow], dim=1)
        coefficients = self._on_device(coefficients.to(self.dtype))
        self._rows = None
        indices = None if self.batches.ordered else self._indices(first)
        old = self._block
        if not self.in_place or old is None:
            return Block(first, coefficients, indices)
        old.coefficients.copy_(coefficients)
        if old.indices is not None and indices is not None:
            old.indices.copy_(indices)
        return old._replace(first=first)

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from the CPU to the device of the state, through pinned memory to avoid synchronising."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def draw(self, first: int) -> Draws:
        """Draw the random numbers of draw_length steps, overwriting the previous ones."""
        n, old = self.draw_length, self._draws
        xi = self.normals(first + 1, n, out=None if old is None else old.xi) if self.draws_noise else None
        uniform = None if old is None else old.uniform
        if self.uniform_shape[-1]:
            if uniform is None:
                uniform = torch.empty(n, *self.uniform_shape, dtype=torch.float32, device=self.device)
            held = self.rule.gradients_per_batch
            start, stop = first // held, (first + n - 1) // held + 1
            flat = uniform.view(n, self.n_runs, -1)
            drawn = flat if held == 1 else flat.new_empty(stop - start, *flat.shape[1:])
            self._rows_into(drawn, functools.partial(streams.uniform_, purpose=Purpose.DROPOUT, first_step=start))
            if held > 1:
                flat.copy_(drawn[torch.arange(first, first + n, device=self.device) // held - start])
        return Draws(first, xi, uniform)
