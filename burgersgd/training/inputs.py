"""What the steps of a fleet are given: coefficients, batches, dropout numbers and noise, all functions of the step.

Coefficients and batches are computed for BLOCK steps at once, random numbers for as many as leave room in the cache.
Both are aligned to multiples of their length, so that a run that is cut anywhere sees the same inputs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from burgersgd import schedules, streams
from burgersgd.datasets.batches import Batches
from burgersgd.optimizers.protocol import Clock, Hyper, Rule
from burgersgd.streams import Purpose

BLOCK = 64
"""Steps whose coefficients and batch indices are computed at once."""
DRAW_BYTES = 1 << 19
"""Random numbers are drawn for as many steps at once as leave room in the second-level cache."""
DRAW_BYTES_ON_GPUS = 1 << 26
"""There a draw costs a launch, and the memory of a few dozen steps is not missed."""


class Block(NamedTuple):
    """Inputs of BLOCK consecutive steps, aligned to multiples of BLOCK."""

    first: int
    coefficients: Float[Tensor, "steps fields runs 1"]
    indices: Int64[Tensor, "steps runs batch"] | None  # None is the full batch


class Draws(NamedTuple):
    """Random numbers of consecutive steps, a divisor of BLOCK many, aligned likewise."""

    first: int
    xi: Float[Tensor, "steps runs d"] | None  # standard normal
    uniform: Float[Tensor, "steps runs batch n_uniform"] | None


class Inputs:
    """The inputs of R runs of one rule; `load` makes those of a step current."""

    def __init__(
        self,
        rule: Rule,
        hyper: Hyper,
        schedule: str,
        schedule_hyper: Hyper,
        batches: Batches,
        seeds: Int[Tensor, " runs"],
        budget: int,
        like: Float[Tensor, "runs d"],
        n_uniform: int,
    ) -> None:
        """`like` gives shape, precision and place of a vector of all runs; n_uniform is what an example needs."""
        self.rule, self.hyper, self.schedule, self.schedule_hyper = rule, hyper, schedule, schedule_hyper
        self.batches, self.seeds, self.budget = batches, seeds, budget
        self.n_runs, self.d = like.shape
        self.dtype, self.device = like.dtype, like.device
        self.uniform_shape = (self.n_runs, batches.batch_size, n_uniform)
        self.in_place = False
        """Whether the inputs of every block lie where those of the first one were."""
        self.draws_noise = rule.noisy
        """False where the engine draws the normal numbers itself."""
        self._block: Block | None = None
        self._draws: Draws | None = None
        self._exact: Any = None  # coefficients of the block in float64
        self._rows: list[Any] | None = None  # and in the runs' precision, step by step

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
        """Make the inputs of a step current, and of those after it; return the first one that is not."""
        first = step // BLOCK * BLOCK
        if self._block is None or self._block.first != first:
            self._block = self.fill(first)
        first = step // self.draw_length * self.draw_length
        if self._draws is None or self._draws.first != first:
            self._draws = self.draw(first)
        return first + self.draw_length

    def row(self, step: int, often: bool = True) -> Any:
        """Return the coefficients of a loaded step in the runs' precision, each ``[runs, 1]``.

        often: most steps of the block are asked for, so that it pays to take the block apart at once.
        """
        if not often:
            return type(self._exact)(*self.block.coefficients[step - self.block.first].unbind(0))
        if self._rows is None:
            fields = [field.unbind(0) for field in self.block.coefficients.unbind(1)]
            self._rows = list(map(type(self._exact), *fields))
        return self._rows[step - self.block.first]

    def xi(self, step: int) -> Float[Tensor, "runs d"] | None:
        """Return the normal numbers of a loaded step; None where the rule has none, or the engine draws them."""
        return None if self.draws.xi is None else self.draws.xi[step - self.draws.first]

    def indices(self, step: int) -> Int64[Tensor, "runs batch"] | None:
        """Return the examples of each run's batch at a loaded step; None is the full batch."""
        block = self.block
        if block.indices is None:
            return None
        indices, size = block.indices[step - block.first], self.batches.size(step)
        return indices if size == indices.shape[1] else indices[:, :size]

    def uniform(self, step: int) -> Float[Tensor, "runs batch n_uniform"] | None:
        """Return the dropout numbers of a loaded step."""
        draws = self.draws
        return None if draws.uniform is None else draws.uniform[step - draws.first, :, : self.batches.size(step)]

    # ---------------------------------------------------------------------------------------------- many steps

    @functools.cached_property
    def full_batch(self) -> Int64[Tensor, "runs n"]:
        """The numbers of all examples, for every run."""
        return torch.arange(self.batches.n, device=self.device).expand(self.n_runs, -1)

    @functools.cached_property
    def draw_length(self) -> int:
        """Steps whose random numbers are drawn at once."""
        drawn = self.n_runs * self.d * self.draws_noise + math.prod(self.uniform_shape)
        room = DRAW_BYTES if self.device.type == "cpu" else DRAW_BYTES_ON_GPUS
        at_once = min(BLOCK, max(1, room // (4 * max(1, drawn))))
        return 1 << (at_once.bit_length() - 1)

    def exact_coefficients(self, first: int, n_steps: int) -> Any:
        """Return the coefficients of consecutive steps as the rule gives them: float64 on the CPU."""
        step = torch.arange(first, first + n_steps).view(-1, 1, 1)
        cycle = self.rule.gradients_per_cycle
        clock = Clock(step, step.double() / self.budget, step // cycle, step % cycle, self.budget)
        factor = schedules.factor(self.schedule, self.schedule_hyper, clock)
        return self.rule.coefficients(self.hyper, factor.expand(n_steps, self.n_runs, 1), clock)

    def row_of(self, step: int) -> Any:
        """Return the coefficients of any step in the runs' precision, each ``[runs, 1]``."""
        c = self.coefficients_at(step)
        return type(c)(*(field.to(self.device, self.dtype) for field in c))

    def coefficients_at(self, step: int) -> Any:
        """Return the coefficients of any step, float64 ``[runs, 1]`` on the CPU."""
        known = self._block is not None and 0 <= step - self._block.first < BLOCK
        c, row = (self._exact, step - self._block.first) if known and self._block else (None, 0)
        c = self.exact_coefficients(step, 1) if c is None else c
        return type(c)(*(field.expand(-1, self.n_runs, 1)[row] for field in c))

    def normals(self, first: int, n_steps: int, out: Tensor | None = None) -> Float[Tensor, "steps runs d"] | None:
        """Return the normal numbers first, first + 1, ... of every run; None for a rule without noise.

        Number 0 belongs to the initial state, number k + 1 to gradient evaluation k.
        """
        if not self.rule.noisy:
            return None
        if out is None:
            out = torch.empty(n_steps, self.n_runs, self.d, dtype=self.dtype, device=self.device)
        return streams.normal_(out, self.seeds, Purpose.NOISE, first)

    def fill(self, first: int) -> Block:
        """Compute coefficients and batches of BLOCK steps."""
        c = self._exact = self.exact_coefficients(first, BLOCK)
        coefficients = torch.stack([field.expand(BLOCK, self.n_runs, 1) for field in c], dim=1)
        coefficients = coefficients.to(self.device, self.dtype)
        self._rows = None
        full_batch = self.batches.batch_size == self.batches.n and not self.batches.with_replacement
        indices = None if full_batch else self.batches.indices(first, BLOCK)
        old = self._block
        if not self.in_place or old is None:
            return Block(first, coefficients, indices)
        old.coefficients.copy_(coefficients)
        if old.indices is not None and indices is not None:
            old.indices.copy_(indices)
        return old._replace(first=first)

    def draw(self, first: int) -> Draws:
        """Draw the random numbers of draw_length steps, in the memory of those before."""
        n, old = self.draw_length, self._draws
        xi = self.normals(first + 1, n, out=None if old is None else old.xi) if self.draws_noise else None
        uniform = None if old is None else old.uniform
        if self.uniform_shape[-1]:
            if uniform is None:
                uniform = torch.empty(n, *self.uniform_shape, dtype=torch.float32, device=self.device)
            streams.uniform_(uniform.view(n, self.n_runs, -1), self.seeds, Purpose.DROPOUT, first)
        return Draws(first, xi, uniform)
