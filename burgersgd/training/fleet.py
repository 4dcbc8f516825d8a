"""The state of R runs and the step that advances them together, one gradient evaluation of every run at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from burgersgd import schedules, streams
from burgersgd.datasets.batches import Batches
from burgersgd.optimizers.protocol import Clock, Hyper, Rule
from burgersgd.streams import Purpose
from burgersgd.training.compiled_step import CompiledStep, limit_after
from burgersgd.training.engines.codegen import FusedUpdate
from burgersgd.training.engines.tracing import Layout, trace
from burgersgd.training.gradients import Problem, clipped, eager_gradient, gradient_in_pieces
from burgersgd.training.native_gradient import NativeGradient
from burgersgd.training.native_steps import NativeSteps
from burgersgd.training.rule_check import check_rule
from burgersgd.training.state import assign, owned

BLOCK = 64
"""Steps whose coefficients and batch indices are computed at once."""
DRAW_BYTES = 1 << 19
"""Random numbers are drawn for as many steps at once as leave room in the second-level cache."""
DRAW_BYTES_ON_GPUS = 1 << 26
"""There a draw costs a launch, and the memory of a few dozen steps is not missed."""
PIECE = 1 << 16
"""Large states are updated in pieces of so many numbers, which stay in the second-level cache from line to line."""


_RECORDS = ("alive", "diverged_at", "last_loss", "loss_sum", "grad_norm", "loss_limit")
"""What a fleet keeps of every run besides the rule's state."""

Gradient = tuple[Sequence[Tensor], Tensor, Tensor]
"""Gradients in one piece ``[runs, d]`` (one run: in one piece per parameter tensor), losses and norms ``[runs]``."""


class Block(NamedTuple):
    """Inputs of BLOCK consecutive steps, aligned to multiples of BLOCK, so that any restart sees the same."""

    first: int
    coefficients: Tensor  # [steps, fields, runs, 1]
    indices: Tensor | None  # [steps, runs, batch]; None is the full batch


class Draws(NamedTuple):
    """Random numbers of consecutive steps, a divisor of BLOCK many, aligned likewise."""

    first: int
    xi: Tensor | None  # [steps, runs, d], standard normal
    uniform: Tensor | None  # [steps, runs, batch, n_uniform]


@dataclass
class Fleet:
    """R runs of one rule on one problem, which differ in their seeds and float hyperparameters.

    x0 is ``[runs, d]``; hyper and schedule_hyper hold float64 ``[runs, 1]`` on the CPU; seeds is int64 ``[runs]``. All
    randomness comes from streams keyed by (seed, purpose, step): a run draws the same numbers in any company.
    engine is "eager", "compiled", "native" (gradient and update in C) or "native_update" (update in C); clip_norm the
    longest gradient, None for no clipping.
    """

    problem: Problem
    rule: Rule
    hyper: Hyper
    schedule: str
    schedule_hyper: Hyper
    batches: Batches
    seeds: Int[Tensor, " runs"]
    x0: InitVar[Tensor]
    budget: int
    engine: str = "eager"
    clip_norm: float | None = None
    explosion_factor: float = math.inf
    """A run whose loss exceeds so many times max(1, its first loss) has diverged."""

    def __post_init__(self, x0: Tensor) -> None:
        """Set up the state of all runs at x0 ``[runs, d]``."""
        self.n_runs, self.d = x0.shape
        self.device, self.dtype = x0.device, x0.dtype
        self.evaluations = 0
        xi = self._normal(first=0, n_steps=1)  # number 0 of the noise stream belongs to the initial state
        exact = self._coefficients(0, 1)
        c = type(exact)(*(field[0].to(self.device, self.dtype) for field in exact))
        state = self.rule.init(x0, None if xi is None else xi[0])
        check_rule(self.rule, c, state)
        self.state = owned(state)
        self.alive: Bool[Tensor, " runs"] = torch.ones(self.n_runs, dtype=torch.bool, device=self.device)
        self.all_alive = True
        self.diverged_at: Int[Tensor, " runs"] = torch.full((self.n_runs,), -1, device=self.device)
        self.last_loss: Float[Tensor, " runs"] = torch.full_like(x0[:, 0], math.nan)
        self.loss_sum: Float[Tensor, " runs"] = torch.zeros_like(self.last_loss)
        self.grad_norm: Float[Tensor, " runs"] = torch.zeros_like(self.last_loss)
        self.loss_limit: Float[Tensor, " runs"] = torch.full_like(self.last_loss, torch.finfo(self.dtype).max)
        """Losses above it, infinity and NaN among them, are a divergence; the first loss decides."""
        self._block: Block | None = None
        self._draws: Draws | None = None
        self._exact: Any = None  # coefficients of the block in float64
        self._rows: list[Any] | None = None  # and in the runs' precision, step by step
        self._compiled = CompiledStep(self) if self.engine == "compiled" else None
        self._fused, pieces = None, None
        if self.engine == "native_update" and self.n_runs == 1:
            pieces = [math.prod(shape) for shape in self.problem.model.shapes]
        self._moves_at_cycle_end = self.rule.end_cycle(c, self.state) is not self.state
        self._in_pieces = x0.numel() > 2 * PIECE and trace(self.rule, Layout.of(self.state, c)) is not None
        self._native_steps: NativeSteps | None = None
        if self.engine in ("native", "native_update"):
            self._fused = FusedUpdate.make(self.rule, self.state, c, self.seeds, pieces)
        if self.engine == "native":
            self._gradient, kernel = self._native_gradient()
            at = self.rule.gradient_at(c, self.state)
            # Where threads share the gradient of a run, they share its update, too: in a call of its own.
            if self._fused is not None and kernel.team == 1 and any(field is at for field in self.state):
                self._native_steps = NativeSteps(kernel, self._fused, at, self.clip_norm)
        else:
            self._gradient = self._gradient_in_pieces if self._fused and pieces else self._autograd_gradient
        self.uniform_shape = (self.n_runs, self.batches.batch_size, self.problem.model.n_uniform)
        # The fused update draws its normal numbers itself.
        self._draws_normals = self.rule.noisy and self._fused is None
        drawn = x0.numel() * self._draws_normals + math.prod(self.uniform_shape)
        room = DRAW_BYTES if self.device.type == "cpu" else DRAW_BYTES_ON_GPUS
        at_once = min(BLOCK, max(1, room // (4 * max(1, drawn))))
        self.draw_length = 1 << (at_once.bit_length() - 1)

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def x(self) -> Float[Tensor, "runs d"]:
        """The slow points: what is evaluated and saved."""
        return self.rule.evaluate_at(self.state)

    def coefficients_at(self, step: int) -> dict[str, Tensor]:
        """Return the coefficients of one evaluation by name, each float64 ``[runs]`` on the CPU."""
        known = self._block is not None and 0 <= step - self._block.first < BLOCK
        c, row = (self._exact, step - self._block.first) if known and self._block else (self._coefficients(step, 1), 0)
        return {name: field.expand(-1, self.n_runs, 1)[row, :, 0] for name, field in zip(c._fields, c, strict=True)}

    def distance(self) -> Float[Tensor, " runs"] | None:
        """Return |x - y| of every run, None for rules without a fast point."""
        y = getattr(self.state, "y", None)
        return None if y is None else torch.linalg.vector_norm(self.x - y, dim=1)

    def take_mean_loss(self, n: int) -> Float[Tensor, " runs"]:
        """Return the mean mini-batch loss of the last n evaluations and start counting anew."""
        mean = self.loss_sum / n
        self.loss_sum.zero_()
        return mean

    # ------------------------------------------------------------------------------------------- stop and go on

    def snapshot(self, run: int) -> dict[str, Any]:
        """Return all that one run needs to go on: evaluations, state, and what is known of its losses.

        Random numbers, batches and coefficients are functions of the step and need no memory. Tensors are copies; the
        state goes by its fields, x apart.
        """
        numbers = {name: getattr(self, name)[run].cpu().clone() for name in _RECORDS}
        x = self.x
        state = {
            name: None if field is None else field[run].cpu().clone()
            for name, field in _fields(self.state)
            if field is not x  # which is there already
        }
        return {"evaluations": self.evaluations, "x": x[run].cpu().clone(), "state": state} | numbers

    def restore(self, snapshots: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the snapshots of all runs, in their order. Raises ValueError where they do not fit."""
        steps = {snapshot["evaluations"] for snapshot in snapshots}
        if len(snapshots) != self.n_runs or len(steps) != 1:
            raise ValueError(f"{len(snapshots)} snapshots at {sorted(steps)} evaluations for {self.n_runs} runs")
        x = self.x
        for name, field in _fields(self.state):
            saved = [snapshot["x"] if field is x else snapshot["state"].get(name) for snapshot in snapshots]
            if any((value is None) != (field is None) for value in saved):
                raise ValueError(f"the state has {'no' if field is None else 'a'} {name}, the snapshot differs")
            for value in saved:
                if field is not None and (value.shape != field.shape[1:] or value.dtype != field.dtype):
                    raise ValueError(f"{name} of the snapshot is {value.dtype} {list(value.shape)}, the state differs")
            if field is not None:
                field.copy_(torch.stack(saved))
        for name in _RECORDS:
            getattr(self, name).copy_(torch.stack([snapshot[name] for snapshot in snapshots]))
        self.all_alive = bool(self.alive.all())
        (self.evaluations,) = steps

    def stop(self, runs: Bool[Tensor, " runs"]) -> None:
        """Freeze runs where they are: they are not alive any more, though they did not diverge."""
        self.alive &= ~runs.to(self.device)
        self.all_alive = bool(self.alive.all())

    # ---------------------------------------------------------------------------------------------- advancing

    def advance(self, n: int, pause: Callable[[], bool] | None = None) -> None:
        """Spend n gradient evaluations on every run, fewer if pause() is true after one of them.

        Raises ValueError beyond the budget.
        """
        if self.evaluations + n > self.budget:
            raise ValueError(
                f"n={n}: only {self.budget - self.evaluations} gradient evaluations of the budget are left"
            )
        end = self.evaluations + n
        while self.evaluations < end:
            first = self.evaluations // BLOCK * BLOCK
            if self._block is None or self._block.first != first:
                self._block = self._fill(first)
            first = self.evaluations // self.draw_length * self.draw_length
            if self._draws is None or self._draws.first != first:
                self._draws = self._draw(first)
            stop = min(end, first + self.draw_length)
            while self.evaluations < stop:
                self.evaluations = self._steps(self.evaluations, stop)
                if pause is not None and pause():
                    return

    def _steps(self, step: int, stop: int) -> int:
        """Spend gradient evaluation number `step`, natively more of those before `stop`; return the next number."""
        cycle = self.rule.gradients_per_cycle
        if self._compiled is not None:
            self._compiled.run(step, (step + 1) % cycle == 0)
            return step + 1
        if self._native_steps is None or step == 0:  # the first loss decides on the largest one
            self._eager_step(step, (step + 1) % cycle == 0)
            return step + 1
        block = self._block
        assert block is not None
        cycle_end = (step // cycle + 1) * cycle if self._moves_at_cycle_end else stop
        stop = min(stop, cycle_end, step + self._native_steps.most)
        rows = slice(step - block.first, stop - block.first)
        indices = self._full_batch.expand(stop - step, -1, -1) if block.indices is None else block.indices[rows]
        records = {name: getattr(self, name) for name in _RECORDS}
        sizes = [self.batches.size(k) for k in range(step, stop)]
        self._native_steps(step, sizes, indices, block.coefficients[rows], records)
        self.all_alive = bool(self.alive.all())
        if self._moves_at_cycle_end and stop == cycle_end:
            self._write(self.rule.end_cycle(self._row(stop - 1), self.state))
        return stop

    def _eager_step(self, step: int, ends_cycle: bool) -> None:
        block, draws, rule, state = self._block, self._draws, self.rule, self.state
        assert block is not None
        assert draws is not None
        j, k = step - block.first, step - draws.first
        c, xi = self._row(step), None if draws.xi is None else draws.xi[k]
        indices, uniform = None if block.indices is None else block.indices[j], None
        size = self.batches.size(step)
        if size < self.batches.batch_size and indices is not None:
            indices = indices[:, :size]
        if draws.uniform is not None:
            uniform = draws.uniform[k, :, :size]
        grads, loss, norm = self._gradient(rule.gradient_at(c, state), indices, uniform)
        # On the CPU reading a number costs nothing; elsewhere it would wait for the device at every step.
        healthy = self.all_alive and self.device.type == "cpu" and _all_healthy(loss, norm, self.loss_limit)
        if not healthy:
            alive = self.alive & (loss <= self.loss_limit) & torch.isfinite(norm)
            self.diverged_at = torch.where(self.alive & ~alive, step, self.diverged_at)
            self.alive = alive
            loss, norm = torch.where(alive, loss, self.last_loss), torch.where(alive, norm, self.grad_norm)
            if self.device.type == "cpu":
                self.all_alive = bool(alive.all())
        if self.clip_norm is not None:
            grads = [clipped(grad, norm, self.clip_norm) for grad in grads]
        if self._fused is not None:
            self._fused(block.coefficients[j], grads, self.alive, step)
            if ends_cycle:
                self._write(rule.end_cycle(c, state))
        elif healthy and self._in_pieces:
            self._step_in_pieces(c, state, grads[0], xi)
            if ends_cycle:
                self._write(rule.end_cycle(c, state))
        else:
            new = rule.step(c, state, grads[0], xi)
            if ends_cycle:
                new = rule.end_cycle(c, new)
            assign(state, new, None if healthy else self.alive)
        self.last_loss, self.grad_norm = loss, norm
        self.loss_sum += loss
        if step == 0:
            self.loss_limit.copy_(limit_after(loss, self.explosion_factor))

    def _write(self, new: Any) -> None:
        """Put a new state where the old one is."""
        # A compiled step does not tell the host who is alive.
        assign(self.state, new, self.alive if self._compiled is not None or not self.all_alive else None)

    def _step_in_pieces(self, c: Any, state: Any, grad: Tensor, xi: Tensor | None) -> None:
        """Do rule.step in place, piece by piece: the same numbers, because the rule is element by element."""
        height = max(1, PIECE // self.d)
        for top in range(0, self.n_runs, height):
            runs = slice(top, top + height)
            row = c if height >= self.n_runs else type(c)(*(field[runs] for field in c))
            for left in range(0, self.d, PIECE):
                cut = (runs, slice(left, left + PIECE))
                old = type(state)(*(None if field is None else field[cut] for field in state))
                new = self.rule.step(row, old, grad[cut], None if xi is None else xi[cut])
                assign(old, new)

    # ----------------------------------------------------------------------------------- gradients of the engines

    def _autograd_gradient(self, at: Tensor, indices: Tensor | None, uniform: Tensor | None) -> Gradient:
        grad, loss = eager_gradient(self.problem, at, indices, uniform)
        return [grad], loss, torch.linalg.vector_norm(grad, dim=1)

    def _gradient_in_pieces(self, at: Tensor, indices: Tensor | None, uniform: Tensor | None) -> Gradient:
        grads, loss = gradient_in_pieces(self.problem, at, indices, uniform)
        pieces = [grad.contiguous().view(1, -1) for grad in grads]
        return pieces, loss, torch.nn.utils.get_total_norm(pieces)[None]

    def _native_gradient(self) -> tuple[Callable[..., Gradient], NativeGradient]:
        problem = self.problem
        kernel = NativeGradient.of(
            problem.model, problem.loss.name, problem.inputs, problem.targets, self.n_runs, self.batches.batch_size
        )
        grad, loss, norm = torch.empty_like(self.x), self.last_loss.clone(), self.last_loss.clone()

        def gradient(at: Tensor, indices: Tensor | None, uniform: Tensor | None) -> Gradient:
            kernel(at, self._full_batch if indices is None else indices, grad, loss, norm)
            return [grad], loss.clone(), norm.clone()

        return gradient, kernel

    @functools.cached_property
    def _full_batch(self) -> Int64[Tensor, "runs n"]:
        return torch.arange(self.problem.inputs.shape[0]).expand(self.n_runs, -1)

    # ------------------------------------------------------------------------------------------ inputs of a block

    def _clock(self, first: int, n_steps: int) -> Clock:
        step = torch.arange(first, first + n_steps).view(-1, 1, 1)
        cycle = self.rule.gradients_per_cycle
        return Clock(step, step.double() / self.budget, step // cycle, step % cycle, self.budget)

    def _coefficients(self, first: int, n_steps: int) -> Any:
        clock = self._clock(first, n_steps)
        factor = schedules.factor(self.schedule, self.schedule_hyper, clock)
        return self.rule.coefficients(self.hyper, factor.expand(n_steps, self.n_runs, 1), clock)

    def _row(self, step: int) -> Any:
        """Return the coefficients of one step of the block in the runs' precision, each ``[runs, 1]``."""
        block, kind = self._block, type(self._exact)
        assert block is not None
        if self._native_steps is not None:  # which seldom asks
            return kind(*block.coefficients[step - block.first].unbind(0))
        if self._rows is None:
            self._rows = list(map(kind, *(field.unbind(0) for field in block.coefficients.unbind(1))))
        return self._rows[step - block.first]

    def _normal(self, first: int, n_steps: int, out: Tensor | None = None) -> Tensor | None:
        if not self.rule.noisy:
            return None
        if out is None:
            out = torch.empty(n_steps, self.n_runs, self.d, dtype=self.dtype, device=self.device)
        return streams.normal_(out, self.seeds, Purpose.NOISE, first)

    def _fill(self, first: int) -> Block:
        """Compute coefficients and batches of BLOCK steps, always in the same place for the compiled step."""
        c = self._exact = self._coefficients(first, BLOCK)
        coefficients = torch.stack([field.expand(BLOCK, self.n_runs, 1) for field in c], dim=1)
        coefficients = coefficients.to(self.device, self.dtype)
        self._rows = None
        full_batch = self.batches.batch_size == self.problem.inputs.shape[0] and not self.batches.with_replacement
        indices = None if full_batch else self.batches.indices(first, BLOCK)
        old = self._block
        if self._compiled is None or old is None:
            return Block(first, coefficients, indices)
        old.coefficients.copy_(coefficients)
        if old.indices is not None and indices is not None:
            old.indices.copy_(indices)
        return old._replace(first=first)

    def _draw(self, first: int) -> Draws:
        """Draw the random numbers of draw_length steps, in the memory of those before."""
        n, old = self.draw_length, self._draws
        xi = self._normal(first + 1, n, out=None if old is None else old.xi) if self._draws_normals else None
        uniform = None if old is None else old.uniform
        if self.problem.model.n_uniform:
            if uniform is None:
                uniform = torch.empty(n, *self.uniform_shape, dtype=torch.float32, device=self.device)
            streams.uniform_(uniform.view(n, self.n_runs, -1), self.seeds, Purpose.DROPOUT, first)
        return Draws(first, xi, uniform)


def _fields(state: Any) -> list[tuple[str, Tensor | None]]:
    return list(zip(state._fields, state, strict=True))


def _all_healthy(loss: Tensor, norm: Tensor, limit: Tensor) -> bool:
    if len(loss) == 1:  # the common case at a tenth of the cost
        return loss.item() <= limit.item() and math.isfinite(norm.item())
    return bool((loss <= limit).all() & torch.isfinite(norm).all())
