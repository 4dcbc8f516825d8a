"""The contract of an update rule: pure functions of tensors with a leading run axis.

A *state* is a NamedTuple of tensors ``[runs, d]`` (or None where a rule keeps no such vector), *coefficients* a
NamedTuple of tensors ``[runs, 1]``: what the rule's hyperparameters amount to at one gradient evaluation, schedules
applied. Every rule is written element by element, as the paper writes it for one run; broadcasting over the run axis
does the rest, so a single run is a fleet with ``runs = 1`` and computes the very same numbers.

One gradient evaluation of the trainer is::

    at = rule.gradient_at(c, state)              # where the gradient is taken
    state = rule.step(c, state, grad(at), xi)    # after every gradient; xi ~ N(0, I) or None
    if last of the cycle: state = rule.end_cycle(c, state)

and what is tested and saved is ``rule.evaluate_at(state)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

Hyper = dict[str, Tensor]
"""Name of a float hyperparameter -> its value in every run, float64 ``[runs, 1]``."""


class Clock(NamedTuple):
    """Where in the budget a block of consecutive gradient evaluations lies; every tensor is ``[steps, 1, 1]``."""

    step: Int[Tensor, "steps 1 1"]
    """Gradient evaluations already spent, k = 0, 1, 2, ..."""
    fraction: Float[Tensor, "steps 1 1"]
    """step / budget in [0, 1), float64: the argument of every schedule."""
    cycle: Int[Tensor, "steps 1 1"]
    """Cycles completed."""
    position: Int[Tensor, "steps 1 1"]
    """Position within the cycle, 0 ... gradients_per_cycle - 1."""
    budget: int
    """Gradient evaluations of the whole run."""


State = Any
Coefficients = Any


class EveryGradientMovesX:
    """What rules have in common whose only point is x and whose cycle is one gradient."""

    gradients_per_cycle = 1

    def gradient_at(self, c: Coefficients, state: State) -> Tensor:
        """Return x."""
        return state.x

    def end_cycle(self, c: Coefficients, state: State) -> State:
        """Nothing to do."""
        return state

    def evaluate_at(self, state: State) -> Tensor:
        """Return x."""
        return state.x


class Rule(Protocol):
    """An update rule. Instances are frozen dataclasses of static choices, so that equal rules share a fleet."""

    @property
    def gradients_per_cycle(self) -> int:
        """Gradient evaluations after which end_cycle is called."""
        ...

    @property
    def noisy(self) -> bool:
        """Whether step needs standard normal numbers xi ``[runs, d]``."""
        ...

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the numbers of each evaluation of a block, float64 ``[steps, runs, 1]``; factor scales lr."""
        ...

    def init(self, x: Tensor, xi: Tensor | None) -> State:
        """Return the state of runs that start at x ``[runs, d]``; xi as in step."""
        ...

    def gradient_at(self, c: Coefficients, state: State) -> Tensor:
        """Return the point ``[runs, d]`` where the next gradient is taken."""
        ...

    def step(self, c: Coefficients, state: State, grad: Tensor, xi: Tensor | None) -> State:
        """Return the state after one gradient evaluation."""
        ...

    def end_cycle(self, c: Coefficients, state: State) -> State:
        """Return the state after the last evaluation of a cycle."""
        ...

    def evaluate_at(self, state: State) -> Tensor:
        """Return x ``[runs, d]``, the point that is tested and saved as the model."""
        ...
