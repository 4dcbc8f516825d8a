"""The engines, which compute the steps of a fleet.

Only this module and build/parts.py, which chooses an engine, know their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from burgersgd.training.engines.compiled import Compiled, Graphed
from burgersgd.training.engines.eager import Task, make_eager
from burgersgd.training.engines.native import make_native, make_native_update
from burgersgd.training.engines.persistent import make_persistent
from burgersgd.training.inputs import Inputs
from burgersgd.training.state import RunState

__all__ = ["ENGINES", "Engine", "Kind", "Task", "make_engine"]


@runtime_checkable
class Engine(Protocol):
    """Advances a state by gradient evaluations."""

    @property
    def draws_noise(self) -> bool:
        """Whether the engine draws the rule's normal numbers itself."""
        ...

    def advance(self, state: RunState, inputs: Inputs, first: int, stop: int) -> int:
        """Spend gradient evaluation number `first`, and possibly more of those before `stop`; return the next number.

        The inputs of all of them are loaded. The last evaluation of a cycle includes rule.end_cycle.
        """
        ...


@dataclass(frozen=True)
class Kind:
    """The constructor of an engine, and the properties by which it is chosen and a run is resumed with it."""

    make: Callable[[Task, RunState, Inputs], Engine]
    device: str | None = None
    """The only type of device on which it works; None: all types."""
    needs_c: bool = False
    """Whether it needs a C compiler."""
    compiles: bool = False
    """Whether it compiles a program for every size of a fleet, so that a sweep does not search for the best size."""
    gradient_in_c: bool = False
    """Whether the C kernel computes its gradients. Then it also evaluates the other parts of the data, no activations
    are stored for backward passes, examples are not copied, and a run is bitwise equal alone and in a fleet."""


ENGINES: dict[str, Kind] = {
    "eager": Kind(make_eager),
    "graphed": Kind(Graphed, device="cuda"),
    "compiled": Kind(Compiled, compiles=True),
    "persistent": Kind(make_persistent, device="cuda"),
    "native": Kind(make_native, device="cpu", needs_c=True, gradient_in_c=True),
    "native_update": Kind(make_native_update, device="cpu", needs_c=True),
}
"""The engines by name: all in PyTorch; the same as a CUDA graph; the complete step by torch.compile; many steps in one
CUDA kernel; gradient and update in C; the update in C."""


def make_engine(name: str, task: Task, state: RunState, inputs: Inputs) -> Engine:
    """Return the engine of that name for a state that keeps its place in memory.

    Raises ValueError for an engine that cannot read augmented examples if there are any.
    """
    kind = ENGINES[name]
    if kind.gradient_in_c and task.problem.augmentation is not None:
        raise ValueError(f"engine {name} does not support dataset.augment")
    engine = kind.make(task, state, inputs)
    inputs.draws_noise = task.rule.noisy and not engine.draws_noise
    return engine
