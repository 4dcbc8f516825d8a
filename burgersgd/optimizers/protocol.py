"""The contract of an update rule: pure functions of tensors with a leading run axis.

A *state* is a NamedTuple of tensors ``[runs, d]`` (or None where a rule keeps no such vector), *coefficients* a
NamedTuple of tensors ``[runs, 1]``: what the rule's hyperparameters amount to at one gradient evaluation, schedules
applied. Every rule is written element by element, as the paper writes it for one run; broadcasting over the run axis
does the rest, so a single run is a fleet with ``runs = 1`` and computes the very same numbers.

One gradient evaluation of the trainer is::

    at = rule.gradient_at(c, state)                    # where the gradient is taken
    state = rule.step(c, state, grad(at), norm, xi)    # after every gradient; xi ~ N(0, I) or None
    if last of the cycle: state = rule.end_cycle(c, state)

and what is tested and saved is ``rule.evaluate_at(state)``. The functions are pure: they return new tensors or old
ones, in any field, and write into nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
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
    shapes: Sequence[tuple[int, ...]] = ()
    """Shapes of the parameters in the vector of d numbers, in order."""

    def matrices(self) -> Float[Tensor, "1 1 d"]:
        """Return 1 for the numbers of weights (tensors of two dimensions or more), 0 for biases and normalisation."""
        parts = [torch.full((math.prod(shape),), float(len(shape) > 1)) for shape in self.shapes]
        return torch.cat(parts).double()[None, None]


class Stability(NamedTuple):
    """The numbers that decide whether one step is stable on a quadratic, each ``[runs, 1]`` or a number.

    y is multiplied by 1 - lr (a + pull + weight_decay) on curvature a, momentum apart.
    """

    lr: Any
    pull: Any = 0.0  # 1 / gamma, 0 for rules without a fast point
    slow_rate: Any = 0.0  # x moves by slow_rate (y - x) in the same step
    momentum: Any = 0.0
    nesterov: Any = False
    weight_decay: Any = 0.0


State = Any
Coefficients = Any


def weight_decay(hyper: Hyper, lr: Tensor, clock: Clock, on: str) -> Tensor:
    """Return the coefficient weight_decay, like lr; for `on` "matrices" that of every parameter, 0 for biases."""
    if on == "all":
        return hyper["weight_decay"].expand_as(lr)
    return hyper["weight_decay"] * clock.matrices()


class RuleDefaults:
    """Defaults of the contract: gradients are taken at x, every gradient ends a cycle, there is no noise."""

    gradients_per_cycle: Any = 1
    gradients_per_batch: Any = 1
    replicas: Any = None
    noisy: Any = False
    elementwise: Any = True
    normed: Any = None

    def gradient_at(self, c: Coefficients, state: State) -> Tensor:
        """Return x."""
        return state.x

    def end_cycle(self, c: Coefficients, state: State) -> State:
        """Nothing to do."""
        return state

    def evaluate_at(self, state: State) -> Tensor:
        """Return x."""
        return state.x

    def diagnostics(self, c: Coefficients, state: State) -> dict[str, Tensor]:
        """Return the temperature noise_scale^2 / (2 lr), 0 for a rule without such coefficients."""
        if "noise_scale" in c._fields:
            return {"temperature": c.noise_scale**2 / (2 * c.lr)}
        return {"temperature": torch.zeros_like(c[0][..., :1])}

    def stability(self, c: Coefficients) -> Stability | None:
        """Return None: no bound on lr is known."""
        return None

    def budget_key(self) -> str | None:
        """Return None: nothing depends on how far the run is to go."""
        return None


class EveryGradientMovesX(RuleDefaults):
    """Base of rules whose only point is x and whose cycle is one gradient."""


def distance(x: Float[Tensor, "*runs d"], y: Float[Tensor, "*runs d"]) -> Float[Tensor, "*runs 1"]:
    """Return |x - y|."""
    return torch.linalg.vector_norm(x - y, dim=-1, keepdim=True)


@runtime_checkable
class Rule(Protocol):
    """An update rule. Instances are frozen dataclasses of static choices, so that equal rules share a fleet.

    RuleDefaults has all but `coefficients`, `init` and `step`.
    """

    @property
    def gradients_per_cycle(self) -> int:
        """Gradient evaluations after which end_cycle is called."""
        ...

    @property
    def gradients_per_batch(self) -> int:
        """Consecutive gradient evaluations that see the same batch and the same dropout masks."""
        ...

    @property
    def replicas(self) -> int | None:
        """Points of one run that take their gradients side by side, each counted; None for a rule without that axis.

        Each has a batch order, dropout masks and noise of its own. `init`, `gradient_at` and `step` see them as if
        they were runs; `end_cycle`, `evaluate_at` and `diagnostics` see ``[runs, replicas, d]``.
        """
        ...

    @property
    def noisy(self) -> bool:
        """Whether step needs standard normal numbers xi ``[runs, d]``."""
        ...

    @property
    def elementwise(self) -> bool:
        """Whether step acts on each number by itself, given the norm. Verified by tracing; False spares that."""
        ...

    @property
    def normed(self) -> Any:
        """A function (c, state, grad) -> ``[runs, d]``, element by element, whose norm is meant; None: the gradient."""
        ...

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the numbers of each evaluation of a block, float64 ``[steps, runs, 1]``; factor scales lr.

        A number of every parameter, the same at all times, is ``[1, runs, d]`` or ``[1, 1, d]``.
        """
        ...

    def init(self, x: Tensor, xi: Tensor | None) -> State:
        """Return the state of runs that start at x ``[runs, d]``; xi as in step."""
        ...

    def gradient_at(self, c: Coefficients, state: State) -> Tensor:
        """Return the point ``[runs, d]`` where the next gradient is taken."""
        ...

    def step(self, c: Coefficients, state: State, grad: Tensor, norm: Tensor, xi: Tensor | None) -> State:
        """Return the state after one gradient evaluation; norm ``[runs, 1]`` is that of grad, both after clipping."""
        ...

    def end_cycle(self, c: Coefficients, state: State) -> State:
        """Return the state after the last evaluation of a cycle."""
        ...

    def evaluate_at(self, state: State) -> Tensor:
        """Return x ``[runs, d]``, the point that is tested and saved as the model."""
        ...

    def diagnostics(self, c: Coefficients, state: State) -> dict[str, Tensor]:
        """Return numbers to log by name, ``[runs, 1]``, or of every replica; c is exact (float64, on the CPU)."""
        ...

    def stability(self, c: Coefficients) -> Stability | None:
        """Return what decides whether a step is stable on a quadratic; None where no bound is known. c is exact."""
        ...

    def budget_key(self) -> str | None:
        """Return the key of the configuration that makes a run depend on its budget, None where none does."""
        ...
