"""The whole gradient step as one compiled program."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd import native
from burgersgd.training.gradients import clipped, functional_gradient
from burgersgd.training.state import assign

if TYPE_CHECKING:
    from burgersgd.training.fleet import Block, Draws, Fleet

_PROGRAM_NUMBERS = itertools.count()


@functools.cache
def why_not_compiled(device: str) -> str | None:
    """Return in one line why torch.compile does not work here, on that type of device; None where it does.

    There may be no compiler, or no folder for its cache, or one in which other users can write. Asked once in a
    process, by compiling next to nothing.
    """
    try:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        danger = native.danger_of(Path(cache_dir()).resolve())  # torch runs what it finds there
        if danger is not None:
            return f"{danger}; TORCHINDUCTOR_CACHE_DIR names another folder"
        torch.compile(_next_to_nothing, fullgraph=True)(torch.zeros(4, device=device))
    except Exception as error:  # anything: of the system, of dynamo, of the compiler
        return " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
    return None


def _next_to_nothing(x: Tensor) -> Tensor:
    return x + 1


def limit_after(first_loss: Float[Tensor, " runs"], factor: float) -> Float[Tensor, " runs"]:
    """Return the largest loss that is no divergence: factor times the first loss, or factor if that is below 1."""
    return (first_loss.clamp(min=1) * factor).clamp(max=torch.finfo(first_loss.dtype).max)


class CompiledStep:
    """The whole gradient step under torch.compile: forward, backward, update, written back in place.

    Everything it reads and writes keeps its place in memory: the block's inputs are indexed by a counter on the
    device. On CUDA one step is captured as a graph and replayed. There is one program for each batch size (a short
    last batch).
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.position = torch.zeros(1, dtype=torch.int64, device=fleet.device)
        self.step = torch.zeros(1, dtype=torch.int64, device=fleet.device)
        self.programs: dict[int, Callable[[], None]] = {}
        self._expected = -1  # the step that the counters on the device stand at

    def run(self, step: int, ends_cycle: bool) -> None:
        """Advance the fleet by one gradient evaluation."""
        fleet = self.fleet
        block, draws = fleet._block, fleet._draws
        assert block is not None
        assert draws is not None
        if step == block.first or step != self._expected:
            self.position.fill_(step - block.first)
            self.step.fill_(step)
        size = fleet.batches.size(step)
        if size not in self.programs:
            self.programs[size] = self._program(block, draws, size)
        self.programs[size]()
        self._expected = step + 1
        if ends_cycle:
            fleet._write(fleet.rule.end_cycle(fleet._row(step), fleet.state))

    def _program(self, block: Block, draws: Draws, size: int) -> Callable[[], None]:
        fleet = self.fleet
        rule, problem, clip_norm, draw_length = fleet.rule, fleet.problem, fleet.clip_norm, fleet.draw_length
        factor = fleet.explosion_factor
        row_type, state_type = type(fleet._exact), type(fleet.state)

        def one_step(
            state: tuple[Tensor | None, ...],
            counters: tuple[Tensor, Tensor],
            records: tuple[Tensor, ...],
            inputs: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
        ) -> None:
            position, step = counters
            alive, diverged_at, last_loss, loss_sum, grad_norm, loss_limit = records
            places = (position, position, position % draw_length, position % draw_length)
            row, indices, xi, uniform = (
                None if t is None else t.index_select(0, place)[0] for t, place in zip(inputs, places, strict=True)
            )
            assert row is not None
            c = row_type(*row.unbind(0))
            before = state_type(*state)
            indices = None if indices is None else indices[:, :size]
            uniform = None if uniform is None else uniform[:, :size]
            grad, loss = functional_gradient(problem, rule.gradient_at(c, before), indices, uniform)
            norm = torch.sqrt((grad * grad).sum(dim=1))
            if clip_norm is not None:
                grad = clipped(grad, norm, clip_norm)
            now = alive & (loss <= loss_limit) & torch.isfinite(norm)
            assign(before, rule.step(c, before, grad, xi), now)
            diverged_at.copy_(torch.where(alive & ~now, step, diverged_at))
            last_loss.copy_(torch.where(now, loss, last_loss))
            grad_norm.copy_(torch.where(now, norm, grad_norm))
            loss_sum.add_(last_loss)
            alive.copy_(now)
            loss_limit.copy_(torch.where(step == 0, limit_after(loss, factor), loss_limit))
            position.add_(1)
            step.add_(1)

        records = (fleet.alive, fleet.diverged_at, fleet.last_loss, fleet.loss_sum, fleet.grad_norm, fleet.loss_limit)
        counters = (self.position, self.step)
        arguments = (tuple(fleet.state), counters, records, (*block[1:], *draws[1:]))
        # A code object of its own: dynamo keeps its programs by code object, eight of them, for the whole process.
        # With one program for each, and arguments that never change, there is nothing left to guard.
        code = one_step.__code__.replace(co_name=f"one_step_{next(_PROGRAM_NUMBERS)}")
        own = types.FunctionType(code, one_step.__globals__, code.co_name, None, one_step.__closure__)
        guards: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        compiled = torch.compile(own, fullgraph=True, dynamic=False, options=guards)
        if fleet.device.type != "cuda":
            return lambda: compiled(*arguments)
        changed = [t for t in (*fleet.state, *counters, *records) if t is not None]
        saved = [t.clone() for t in changed]
        self.position.zero_()  # three steps from the end of a block would read beyond it
        with torch.cuda.device(fleet.device):  # streams and graphs belong to the current device
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    compiled(*arguments)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                compiled(*arguments)
            for tensor, value in zip(changed, saved, strict=True):
                tensor.copy_(value)
        return graph.replay
