"""What computes the steps of a fleet. This is the only place that tells engines by their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from burgersgd.training.engines.compiled import Compiled, Graphed
from burgersgd.training.engines.eager import Task, make_eager
from burgersgd.training.engines.native import make_native, make_native_update
from burgersgd.training.engines.persistent import make_persistent
from burgersgd.training.inputs import Inputs
from burgersgd.training.state import RunState

__all__ = ["ENGINES", "Engine", "Task", "make_engine"]


class Engine(Protocol):
    """What advances a state by gradient evaluations."""

    @property
    def draws_noise(self) -> bool:
        """Whether the engine draws the rule's normal numbers itself."""
        ...

    def advance(self, state: RunState, inputs: Inputs, first: int, stop: int) -> int:
        """Spend gradient evaluation number `first`, and as many of those before `stop` as suit; return the next number.

        The inputs of all of them are loaded. At the last evaluation of a cycle rule.end_cycle is done, too.
        """
        ...


ENGINES: dict[str, Callable[[Task, RunState, Inputs], Engine]] = {
    "eager": make_eager,
    "graphed": Graphed,
    "compiled": Compiled,
    "persistent": make_persistent,
    "native": make_native,
    "native_update": make_native_update,
}
"""Everything in PyTorch; the same as a CUDA graph; the whole step under torch.compile; many steps in one CUDA
kernel; gradient and update in C; the update in C."""


def make_engine(name: str, task: Task, state: RunState, inputs: Inputs) -> Engine:
    """Return the engine of that name for a state that keeps its place in memory."""
    engine = ENGINES[name](task, state, inputs)
    inputs.draws_noise = task.rule.noisy and not engine.draws_noise
    return engine
