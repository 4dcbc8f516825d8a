"""Computes gradient or update in C; if both are in C, one call computes several gradient evaluations of all runs.

OneByOne of eager.py defines a step: with the C gradient and the C update, it makes two calls of C with a dozen PyTorch
operations between them. In NativeSteps a run takes all steps up to the end of its cycle before the next run begins, so
that its vectors stay in the processor's cache. The results are bitwise equal.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from burgersgd.training.engines.codegen import FusedUpdate
from burgersgd.training.engines.eager import Autograd, Gradient, OneByOne, Task, TorchUpdate
from burgersgd.training.gradients import Problem, gradient_in_pieces
from burgersgd.training.inputs import Inputs
from burgersgd.training.native_gradient import NativeGradient, check_size
from burgersgd.training.replicas import end_cycle
from burgersgd.training.state import RunState

CALL_OPERATIONS = 2e9
"""Approximate number of additions and multiplications in one call: about 50 ms, during which no signal is handled."""


class _Steps(ctypes.Structure):
    _fields_ = [
        ("gradient", ctypes.c_void_p),
        ("update", ctypes.c_void_p),
        ("update_plan", ctypes.c_void_p),
        ("at", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("d", ctypes.c_int64),
        ("clip_norm", ctypes.c_double),
        ("first", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("sizes", ctypes.c_void_p),
        ("indices", ctypes.c_void_p),
        ("indices_step", ctypes.c_int64),
        ("indices_run", ctypes.c_int64),
        ("coefficients", ctypes.c_void_p),
        ("coefficients_step", ctypes.c_int64),
        ("alive", ctypes.c_void_p),
        ("diverged_at", ctypes.c_void_p),
        ("last_loss", ctypes.c_void_p),
        ("loss_sum", ctypes.c_void_p),
        ("grad_norm", ctypes.c_void_p),
        ("loss_limit", ctypes.c_void_p),
    ]


class NativeSteps:
    """Advances R runs whose gradient and update are both in C."""

    def __init__(
        self, gradient: NativeGradient, update: FusedUpdate, at: Float[Tensor, "runs d"], clip_norm: float | None
    ) -> None:
        """`at`: the vector of the updated state at which gradients are taken; it must stay at its place in memory."""
        if not update.holds(at):
            raise ValueError("the gradient must be taken at a vector of the updated state")
        runs, d = at.shape
        scratch = at.new_empty(gradient.threads, d)
        self._gradient = gradient
        check_size(gradient.function("mlp_steps_size"), _Steps)
        self._kernel = gradient.function("mlp_steps")
        self._kernel.argtypes, self._kernel.restype = [ctypes.c_void_p], ctypes.c_int64
        self._kept_alive = (update, at, scratch)
        self._steps = _Steps(
            gradient=gradient.plan_address,
            update=update.run_function,
            update_plan=update.plan_address,
            at=at.data_ptr(),
            grad=scratch.data_ptr(),
            d=d,
            clip_norm=math.inf if clip_norm is None else clip_norm,
        )
        self.most = max(1, int(CALL_OPERATIONS / (6 * runs * gradient.work * gradient.max_batch)))
        """Largest number of steps in one call."""

    def __call__(
        self,
        first: int,
        sizes: Sequence[int],
        indices: Int64[Tensor, "steps runs batch"],
        coefficients: Float[Tensor, "steps fields runs 1"],
        records: Mapping[str, Shaped[Tensor, " runs"]],
    ) -> None:
        """Spend gradient evaluations first, first + 1, ..., one for each batch size, and update the records.

        Records are those of a fleet, by name. Raises IndexError or ValueError for arguments that the gradient rejects,
        before anything is written.
        """
        steps = self._steps
        batch_sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        steps.first, steps.steps, steps.sizes = first, len(sizes), ctypes.addressof(batch_sizes)
        steps.indices = indices.data_ptr()
        steps.indices_step, steps.indices_run, _ = indices.stride()
        steps.coefficients, steps.coefficients_step = coefficients.data_ptr(), coefficients.stride(0)
        for name, record in records.items():
            setattr(steps, name, record.data_ptr())
        self._gradient.raise_for(self._kernel(ctypes.addressof(steps)), max(sizes))


@dataclass(frozen=True)
class InPieces:
    """The gradient of a single run by autograd, in one piece per parameter tensor, as the C update expects it."""

    problem: Problem

    def __call__(self, at: Tensor, indices: Tensor | None, uniform: Tensor | None, *buffers: Any) -> Gradient:
        """Return gradients, loss and norm."""
        grads, loss = gradient_in_pieces(self.problem, at, indices, uniform, *buffers)
        pieces = [grad.contiguous().view(1, -1) for grad in grads]
        return Gradient(pieces, loss, torch.nn.utils.get_total_norm(pieces)[None])


class InC:
    """Gradients by the C kernel, of networks that it supports."""

    def __init__(self, problem: Problem, state: RunState, inputs: Inputs) -> None:
        batch_size = inputs.batches.batch_size
        self.kernel = NativeGradient.of(
            problem.model, problem.loss.name, problem.inputs, problem.targets, inputs.n_runs, batch_size
        )
        self.full_batch = inputs.full_batch
        self.grad = torch.empty(inputs.n_runs, inputs.d, dtype=inputs.dtype)
        self.loss, self.norm = state.last_loss.clone(), state.last_loss.clone()

    def __call__(self, at: Tensor, indices: Tensor | None, uniform: Tensor | None) -> Gradient:
        """Return gradients, losses and norms."""
        self.kernel(at, self.full_batch if indices is None else indices, self.grad, self.loss, self.norm)
        return Gradient([self.grad], self.loss.clone(), self.norm.clone())


@dataclass(frozen=True)
class UpdateInC:
    """rule.step as one C loop."""

    update: FusedUpdate

    def __call__(
        self, state: RunState, inputs: Inputs, step: int, grads: Sequence[Tensor], norm: Tensor, healthy: bool
    ) -> None:
        """Replace the state of the living runs by the result of rule.step."""
        block = inputs.block
        self.update(block.coefficients[step - block.first], grads, norm, state.alive, step)


@dataclass
class Native:
    """The engine that takes the steps up to the end of a cycle in one call of C, after the first one alone."""

    one_by_one: OneByOne
    steps: NativeSteps
    moves_at_cycle_end: bool
    draws_noise: bool = True

    def advance(self, state: RunState, inputs: Inputs, first: int, stop: int) -> int:
        """Spend gradient evaluations from number `first`, before `stop`; return the next number."""
        if first == 0:  # the first loss determines the limit of later losses
            return self.one_by_one.advance(state, inputs, first, stop)
        rule, block = self.one_by_one.task.rule, inputs.block
        cycle_end = (first // rule.gradients_per_cycle + 1) * rule.gradients_per_cycle
        if not self.moves_at_cycle_end:
            cycle_end = stop
        stop = min(stop, cycle_end, first + self.steps.most)
        rows = slice(first - block.first, stop - block.first)
        indices = inputs.full_batch.expand(stop - first, -1, -1) if block.indices is None else block.indices[rows]
        sizes = [inputs.size(k) for k in range(first, stop)]
        self.steps(first, sizes, indices, block.coefficients[rows], state.records())
        state.all_alive = bool(state.alive.all())
        if self.moves_at_cycle_end and stop == cycle_end:
            state.assign(end_cycle(rule, inputs.row(stop - 1, split_block=False), state.rule))
        return stop


def make_native(task: Task, state: RunState, inputs: Inputs) -> OneByOne | Native:
    """Return the engine with gradient and update in C; a rule that cannot be traced is applied in PyTorch."""
    gradient = InC(task.problem, state, inputs)
    c = inputs.row_of(0)
    update = FusedUpdate.make(task.rule, state.rule, c, inputs.seeds)
    if update is None:
        return OneByOne(task, gradient, TorchUpdate.of(task.rule, state, inputs))
    one_by_one = OneByOne(task, gradient, UpdateInC(update), draws_noise=True)
    at = task.rule.gradient_at(c, state.rule)
    # If threads share the gradient of a run, they also share its update, which is then a separate call. And a point of
    # the gradient that the rule computes has no fixed place in memory.
    if gradient.kernel.team > 1 or not any(field is at for field in state.rule):
        return one_by_one
    steps = NativeSteps(gradient.kernel, update, at, task.clip_norm)
    if task.rule.replicas is not None:  # a diverged replica ends its run after every step
        steps.most = 1
    return Native(one_by_one, steps, end_cycle(task.rule, c, state.rule) is not state.rule)


def make_native_update(task: Task, state: RunState, inputs: Inputs) -> OneByOne:
    """Return the engine with the gradient by autograd and the update in C, or in PyTorch if it cannot be traced."""
    alone = inputs.n_runs == 1
    pieces = [math.prod(shape) for shape in task.problem.model.shapes] if alone else None
    update = FusedUpdate.make(task.rule, state.rule, inputs.row_of(0), inputs.seeds, pieces)
    if update is None:
        return OneByOne(task, Autograd(task.problem), TorchUpdate.of(task.rule, state, inputs))
    gradient = InPieces(task.problem) if alone else Autograd(task.problem)
    return OneByOne(task, gradient, UpdateInC(update), draws_noise=True)
