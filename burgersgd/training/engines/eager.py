"""Computes one gradient evaluation after the other in PyTorch.

The engines native and native_update use the same steps, with the gradient or the update in C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.protocol import Rule
from burgersgd.training.engines.tracing import Layout, trace
from burgersgd.training.gradients import Problem, clipped, eager_gradient
from burgersgd.training.inputs import Inputs
from burgersgd.training.replicas import end_cycle
from burgersgd.training.state import RunState, assign

PIECE = 1 << 16
"""Numbers in a piece of a large state; all operations on a piece find it in the second-level cache."""


class Task(NamedTuple):
    """The problem, the rule and the settings that are the same for all steps."""

    problem: Problem
    rule: Rule
    clip_norm: float | None = None
    """Norm to which longer gradients are scaled down; None for no clipping."""
    explosion_factor: float = math.inf
    """A run whose loss exceeds explosion_factor times max(1, its first loss) has diverged."""


class Gradient(NamedTuple):
    """Gradients of all runs at one evaluation."""

    grads: Sequence[Tensor]
    """One tensor ``[runs, d]``; for a single run possibly one tensor ``[1, length]`` per parameter tensor."""
    loss: Float[Tensor, " runs"]
    norm: Float[Tensor, " runs"]


TakesGradient = Callable[..., Gradient]
"""Function (points ``[runs, d]``, batch indices, dropout numbers, buffers of the model if it has any) -> gradients."""
Updates = Callable[[RunState, Inputs, int, Sequence[Tensor], Tensor, bool], None]
"""Function (state, inputs, step, gradients, their norms, whether all runs are healthy): applies rule.step in place."""


@dataclass
class OneByOne:
    """The engine that spends one gradient evaluation at a time."""

    task: Task
    gradient: TakesGradient
    update: Updates
    draws_noise: bool = False
    """Whether the update draws the normal numbers itself."""

    def advance(self, state: RunState, inputs: Inputs, first: int, stop: int) -> int:
        """Spend gradient evaluation number `first`; return the next number."""
        rule, step = self.task.rule, first
        c = inputs.row(step)
        at = rule.gradient_at(c, state.rule)
        given = (at, inputs.indices(step), inputs.uniform(step))
        buffers = None if state.buffers is None else {name: old.clone() for name, old in state.buffers.items()}
        grads, loss, norm = self.gradient(*given) if buffers is None else self.gradient(*given, buffers)
        healthy = state.all_alive and state.on_cpu and _all_healthy(loss, norm, state.loss_limit)
        if not healthy:
            loss, norm = state.freeze(step, loss, norm)
        if buffers is not None:
            state.assign_buffers(buffers)
        taken = norm
        if self.task.clip_norm is not None:
            grads = [clipped(grad, norm, self.task.clip_norm) for grad in grads]
            taken = norm.clamp(max=self.task.clip_norm)
        self.update(state, inputs, step, grads, taken, healthy)
        if (step + 1) % rule.gradients_per_cycle == 0:
            state.assign(end_cycle(rule, c, state.rule))
        state.record(step, loss, norm, self.task.explosion_factor)
        return step + 1


def make_eager(task: Task, state: RunState, inputs: Inputs) -> OneByOne:
    """Return the engine that computes everything in PyTorch."""
    return OneByOne(task, Autograd(task.problem), TorchUpdate.of(task.rule, state, inputs))


@dataclass(frozen=True)
class Autograd:
    """Gradients by autograd: plain for a single run, under vmap for a fleet."""

    problem: Problem

    def __call__(self, at: Tensor, indices: Tensor | None, uniform: Tensor | None, *buffers: Any) -> Gradient:
        """Return gradients, losses and norms."""
        grad, loss = eager_gradient(self.problem, at, indices, uniform, *buffers)
        return Gradient([grad], loss, torch.linalg.vector_norm(grad, dim=1))


@dataclass(frozen=True)
class TorchUpdate:
    """rule.step in PyTorch on the complete state, or in pieces if the rule is known to be elementwise."""

    rule: Rule
    in_pieces: bool

    @classmethod
    def of(cls, rule: Rule, state: RunState, inputs: Inputs) -> TorchUpdate:
        """Return the update for that state."""
        large = inputs.n_runs * inputs.d > 2 * PIECE
        return cls(rule, large and trace(rule, Layout.of(state.rule, inputs.row_of(0))) is not None)

    def __call__(
        self, state: RunState, inputs: Inputs, step: int, grads: Sequence[Tensor], norm: Tensor, healthy: bool
    ) -> None:
        """Replace the state of the living runs by the result of rule.step."""
        (grad,), c, xi = grads, inputs.row(step), inputs.xi(step)
        norm = meant_norm(self.rule, c, state.rule, grad, norm)
        if not (healthy and self.in_pieces):
            assign(state.rule, self.rule.step(c, state.rule, grad, norm, xi), None if healthy else state.alive)
            return
        for cut in _pieces(*grad.shape):
            old = _cut(state.rule, cut)
            row = type(c)(*(field[cut[0]] if field.shape[1] == 1 else field[cut] for field in c))
            assign(old, self.rule.step(row, old, grad[cut], norm[cut[0]], None if xi is None else xi[cut]))


def meant_norm(
    rule: Rule, c: Any, state: Any, grad: Float[Tensor, "rows d"], norm: Float[Tensor, " rows"]
) -> Float[Tensor, "rows 1"]:
    """Return the norm that is passed to rule.step: that of the gradient, or of rule.normed where the rule has it."""
    if rule.normed is None:
        return norm[:, None]
    return torch.linalg.vector_norm(rule.normed(c, state, grad), dim=1, keepdim=True)


def _pieces(runs: int, d: int) -> list[tuple[slice, slice]]:
    height = max(1, PIECE // d)
    rows = [slice(None)] if height >= runs else [slice(top, top + height) for top in range(0, runs, height)]
    return [(row, slice(left, left + PIECE)) for row in rows for left in range(0, d, PIECE)]


def _cut(state: Any, cut: tuple[slice, slice]) -> Any:
    return type(state)(*(None if field is None else field[cut] for field in state))


def _all_healthy(loss: Tensor, norm: Tensor, limit: Tensor) -> bool:
    if len(loss) == 1:  # the common case, in a tenth of the time
        return loss.item() <= limit.item() and math.isfinite(norm.item())
    return bool((loss <= limit).all() & torch.isfinite(norm).all())
