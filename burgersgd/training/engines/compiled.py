"""Engines that run the complete gradient step as one program compiled by torch.compile or as a CUDA graph."""

from __future__ import annotations

import functools
import itertools
import logging
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from burgersgd import native
from burgersgd.training.engines.eager import OneByOne, Task, make_eager, meant_norm
from burgersgd.training.engines.graphs import Capture
from burgersgd.training.gradients import clipped, functional_gradient
from burgersgd.training.inputs import BLOCK, Inputs
from burgersgd.training.replicas import end_cycle
from burgersgd.training.state import RunState, assign, limit_after

_log = logging.getLogger("burgersgd")

_PROGRAM_NUMBERS = itertools.count()


@functools.cache
def why_not_compiled(device: str) -> str | None:
    """Return in one line why torch.compile does not work on this machine and type of device; None where it does.

    There may be no compiler, or no folder for its cache, or one to which other users can write. This is tested once per
    process by compiling a trivial function.
    """
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        danger = native.danger_of(Path(cache_dir()).resolve())  # torch executes the files that it finds there
        if danger is not None:
            return f"{danger}; TORCHINDUCTOR_CACHE_DIR names another folder"
        torch.compile(_next_to_nothing, fullgraph=True)(torch.zeros(4, device=device))
    except Exception as error:  # any error of the system, of dynamo or of the compiler
        return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    return None


def _next_to_nothing(x: Tensor) -> Tensor:
    return x + 1


class Piece(NamedTuple):
    """Consecutive steps, replayed at once: all batches have the same size, and cycles may end among them."""

    size: int
    """Number of examples in a batch."""
    steps: int
    every: int
    """Number of steps after each of which a cycle ends; 0: no cycle ends."""


class Compiled:
    """The engine that compiles the complete gradient step by torch.compile: forward, backward and update in place.

    All tensors that it reads and writes keep their place in memory: a counter on the device indexes the inputs of the
    block. There is one program for each batch size (the last batch may be short). The end of a cycle is part of the
    program if every step ends a cycle, and is computed in PyTorch otherwise. On CUDA a step with the end of its cycle,
    or for single runs up to a block of steps, is captured as a graph and replayed. If the compiler fails, the steps are
    taken one by one in PyTorch, with a warning.
    """

    draws_noise = False
    compiles = True
    repaid_after = 2000
    """Number of steps whose gain in time equals the time to capture one step (docs/benchmarks.md).

    It limits the steps of a graph according to the budget.
    """

    def __init__(self, task: Task, state: RunState, inputs: Inputs) -> None:
        self.task, self.state, self.inputs = task, state, inputs
        self.captures = inputs.device.type == "cuda"
        inputs.in_place = True
        self.position = torch.zeros(1, dtype=torch.int64, device=inputs.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=inputs.device)
        self.steps: dict[int, Callable[[], None]] = {}
        """Batch size -> the program of a step."""
        self.graphs: dict[Piece, Callable[[], None]] = {}
        self.capture = Capture(inputs.device)
        self.most = max(1, min(BLOCK, inputs.budget // self.repaid_after)) if inputs.n_runs == 1 else 1
        """Largest number of steps of a graph; 1 for several rows: more are slower, and replicas diverge together."""
        self.otherwise: OneByOne | None = None
        """The engine that computes the steps after the compiler has failed."""
        self._expected = -1  # step number in the counters on the device

    def advance(self, state: RunState, inputs: Inputs, first: int, stop: int) -> int:
        """Spend gradient evaluations from number `first`: one on the CPU, as many as a graph holds on CUDA.

        Return the next number. The state must be the one that was given to the constructor.
        """
        if self.otherwise is not None:
            return self.otherwise.advance(state, inputs, first, stop)
        size = inputs.size(first)
        if size not in self.steps:
            try:
                self.steps[size] = self._warmed_up(self._program(size))
            except Exception as error:  # an error of dynamo, the compiler or the system, before any step
                if inputs.device.type != "cpu":
                    raise
                reason = " ".join(str(error).split("\n\n")[0].split())[:200] or type(error).__name__
                _log.warning(
                    "torch.compile failed (%s): continuing without it; results agree only up to rounding", reason
                )
                self.otherwise = make_eager(self.task, state, inputs)
                return self.otherwise.advance(state, inputs, first, stop)
        if first == inputs.block.first or first != self._expected:
            self.position.fill_(first - inputs.block.first)
            self.step.fill_(first)
        piece = self._piece(first, stop if self.captures else first + 1)
        if not self.captures:
            self._launch(piece)
        else:
            if piece not in self.graphs:
                self.graphs[piece] = self.capture(functools.partial(self._launch, piece))
            self.graphs[piece]()
        self._expected = first + piece.steps
        return self._expected

    def _piece(self, first: int, stop: int) -> Piece:
        """Return the next steps: complete cycles, or steps of one, in powers of two, so that few graphs suffice."""
        size, cycle = self.inputs.size(first), self.task.rule.gradients_per_cycle
        stop = next((k for k in range(first + 1, stop) if self.inputs.size(k) != size), stop)
        left, n = cycle - first % cycle, min(stop - first, self.most)
        if left == cycle <= n:
            n, every = cycle * _power_of_two(n // cycle), cycle
        else:
            n = _power_of_two(min(n, left))
            every = n if n == left else 0
        return Piece(size, n, every if cycle > 1 else 0)

    def _launch(self, piece: Piece) -> None:
        """Execute the steps of a piece."""
        for k in range(piece.steps):
            self.steps[piece.size]()
            if piece.every and (k + 1) % piece.every == 0:
                self._end_cycle()

    def _end_cycle(self) -> None:
        """Apply rule.end_cycle after a step to the living runs; the counter already points to the next step."""
        row = self.inputs.block.coefficients.index_select(0, self.position - 1)[0]
        c = self.inputs.joined(row.unbind(0))
        assign(self.state.rule, end_cycle(self.task.rule, c, self.state.rule), self.state.alive)

    def _warmed_up(self, step: Callable[[], None]) -> Callable[[], None]:
        """Execute the step and undo it, so that it is compiled and libraries are initialised; return the step.

        It is executed at position 0 of the block, because several steps at its end would read past the end.
        """
        counters, records = (self.position, self.step), self.state.records().values()
        changed = [t for t in (*self.state.rule, *counters, *records) if t is not None]
        saved = [tensor.clone() for tensor in changed]
        self.position.zero_()
        if self.captures:
            with_end = self.task.rule.gradients_per_cycle > 1
            self.capture.warm_up(lambda: (step(), self._end_cycle() if with_end else None))
        else:
            step()
        for tensor, value in zip(changed, saved, strict=True):
            tensor.copy_(value)
        return step

    def _program(self, size: int) -> Callable[[], None]:
        problem, rule, clip_norm, factor = self.task
        draw_length, every_step_ends_a_cycle = self.inputs.draw_length, rule.gradients_per_cycle == 1
        joined, state_type = self.inputs.joined, type(self.state.rule)
        _ = self.inputs.wide, self.inputs.narrow  # computed before compilation

        def one_step(
            state: tuple[Tensor | None, ...],
            counters: tuple[Tensor, Tensor],
            records: tuple[Tensor, ...],
            inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
        ) -> None:
            position, step = counters
            alive, diverged_at, last_loss, loss_sum, grad_norm, loss_limit = records
            offsets = (position, position, position % draw_length, position % draw_length)
            row, indices, xi, uniform = (
                None if t is None else t.index_select(0, offset)[0] for t, offset in zip(inputs, offsets, strict=True)
            )
            assert row is not None
            c = joined(row.unbind(0))
            before = state_type(*state)
            indices = None if indices is None else indices[:, :size]
            uniform = None if uniform is None else uniform[:, :size]
            grad, loss = functional_gradient(problem, rule.gradient_at(c, before), indices, uniform)
            norm = torch.sqrt((grad * grad).sum(dim=1))
            taken = norm
            if clip_norm is not None:
                grad, taken = clipped(grad, norm, clip_norm), norm.clamp(max=clip_norm)
            now = alive & (loss <= loss_limit) & torch.isfinite(norm)
            after = rule.step(c, before, grad, meant_norm(rule, c, before, grad, taken), xi)
            assign(before, end_cycle(rule, c, after) if every_step_ends_a_cycle else after, now)
            diverged_at.copy_(torch.where(alive & ~now, step, diverged_at))
            last_loss.copy_(torch.where(now, loss, last_loss))
            grad_norm.copy_(torch.where(now, norm, grad_norm))
            loss_sum.add_(last_loss)
            alive.copy_(now)
            loss_limit.copy_(torch.where(step == 0, limit_after(loss, factor), loss_limit))
            position.add_(1)
            step.add_(1)

        records = tuple(self.state.records().values())
        counters = (self.position, self.step)
        arguments = (tuple(self.state.rule), counters, records, (*self.inputs.block[1:], *self.inputs.draws[1:]))
        # Each program has its own code object: dynamo stores up to eight programs per code object and process.
        # With one program for each, and arguments that never change, no guards are needed.
        code = one_step.__code__.replace(co_name=f"one_step_{next(_PROGRAM_NUMBERS)}")
        own = types.FunctionType(code, one_step.__globals__, code.co_name, None, one_step.__closure__)
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        if self.captures:  # otherwise every process would choose the form of sums by timing
            options["deterministic"] = True
        program = torch.compile(own, fullgraph=True, dynamic=False, options=options) if self.compiles else one_step
        return lambda: program(*arguments)


class Graphed(Compiled):
    """The engine that replays PyTorch's own kernels of a gradient step as a CUDA graph, without a compiler.

    It can start at once, while compiling a program takes half a minute; on the CPU it runs PyTorch without a graph.
    """

    compiles = False
    repaid_after = 10_000


def _power_of_two(n: int) -> int:
    """Return the largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1)
