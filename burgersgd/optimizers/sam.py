"""Sharpness-aware minimization (Foret, Kleiner, Mobahi and Neyshabur 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.momentum import MomentumConfig
from burgersgd.optimizers.protocol import Clock, Hyper, RuleDefaults, weight_decay
from burgersgd.schema import LearningRate, learning_rate, named, opt

Runs = Float[Tensor, "runs d"]

NO_NORM = 1e-12
"""Added to the norm that the gradient is divided by."""


@dataclass
class SamConfig(MomentumConfig):
    """Sharpness-aware minimization: two gradients of each batch, the second one at a nearby point of higher loss."""

    name: str = named("sam")
    lr: LearningRate = learning_rate("learning rate: step size along the second gradient")
    rho: float = opt(0.05, "distance from x of the point at which the second gradient is computed", at_least=0)

    def rule(self) -> Sam:
        """Return the update rule with its static choices."""
        return Sam(self.momentum > 0, self.weight_decay > 0, self.nesterov, self.weight_decay_on)


class Coefficients(NamedTuple):
    """The numbers of one gradient evaluation, each ``[runs, 1]``."""

    lr: Tensor
    rho: Tensor
    up: Tensor  # 1 at the first gradient of a batch, 0 at the second one
    momentum: Tensor
    weight_decay: Tensor


class State(NamedTuple):
    """Parameters, the point where the gradient is taken, momentum buffer."""

    x: Runs
    y: Runs
    velocity: Runs | None


@dataclass(frozen=True)
class Sam(RuleDefaults):
    """Two gradient evaluations of one batch, with the same dropout masks.

    In formulas::

        y <- x + rho g(x) / |g(x)|              # where the loss within rho is highest, to first order
        x <- x - lr (g(y) + weight_decay x)     # the momentum buffer in its place where there is one

    Float hyperparameters: lr, rho, momentum, weight_decay. With rho = 0 it is SGD at twice the cost.
    """

    has_momentum: bool = False
    has_weight_decay: bool = False
    nesterov: bool = False
    decay_on: str = "all"
    gradients_per_cycle = 2
    gradients_per_batch = 2

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Any:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        up = (clock.position == 0).to(lr).expand_as(lr)
        rho, momentum = (hyper[name].expand_as(lr) for name in ("rho", "momentum"))
        return Coefficients(lr, rho, up, momentum, weight_decay(hyper, lr, clock, self.decay_on))

    def init(self, x: Runs, xi: Runs | None) -> State:
        """Return the state at x, at rest."""
        return State(x, x, torch.zeros_like(x) if self.has_momentum else None)

    def gradient_at(self, c: Any, state: State) -> Runs:
        """Return y: x itself, and then the worst point near it."""
        return state.y

    def ascent(self, c: Any, state: State, grad: Runs, norm: Tensor) -> Runs:
        """Return the step of length rho along the gradient."""
        return c.rho / (norm + NO_NORM) * grad

    def step(self, c: Any, state: State, grad: Runs, norm: Tensor, xi: Runs | None) -> State:
        """Move y away from x at the first gradient; at the second one move x, and y back to it."""
        x, velocity = state.x, state.velocity
        descent = grad + c.weight_decay * x if self.has_weight_decay else grad
        if velocity is not None:
            moved = c.momentum * velocity + descent
            descent = descent + c.momentum * moved if self.nesterov else moved
            velocity = torch.where(c.up > 0, velocity, moved)
        up = c.up > 0
        y = x + self.ascent(c, state, grad, norm)
        x = torch.where(up, x, x - c.lr * descent)
        return State(x, torch.where(up, y, x), velocity)
