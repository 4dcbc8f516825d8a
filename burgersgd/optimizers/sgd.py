"""Stochastic gradient descent (2.12) with heavy-ball or Nesterov momentum, as in torch.optim.SGD (dampening 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.momentum import MomentumConfig
from burgersgd.optimizers.protocol import Clock, EveryGradientMovesX, Hyper, Stability, weight_decay
from burgersgd.schema import named, opt

Runs = Float[Tensor, "runs d"]


@dataclass
class SgdConfig(MomentumConfig):
    """Mini-batch SGD (2.12)."""

    name: str = named("sgd")

    def rule(self) -> Sgd:
        """Return the update rule with its static choices."""
        return Sgd(self.momentum > 0, self.weight_decay > 0, self.nesterov, self.weight_decay_on)


@dataclass
class GdConfig(SgdConfig):
    """Gradient descent on the whole training set (2.9)."""

    full_batch: ClassVar[bool] = True
    base_lr: ClassVar[float] = 0.1
    name: str = named("gd")
    momentum: float = opt(0.9, "fraction of the last step that is added to the next one", at_least=0, below=1)

    def default_lr(self, share: float) -> float:
        """Return the learning rate where none is set, chosen with momentum 0.9."""
        return self.base_lr * share


class Coefficients(NamedTuple):
    """The numbers of one gradient evaluation, each ``[runs, 1]``."""

    lr: Tensor
    momentum: Tensor
    weight_decay: Tensor


class State(NamedTuple):
    """Parameters and momentum buffer."""

    x: Runs
    velocity: Runs | None


@dataclass(frozen=True)
class Sgd(EveryGradientMovesX):
    """Stochastic gradient descent with g = grad F(x) + weight_decay x; over the full batch gradient descent (2.9).

    Each evaluation::

        v <- momentum v + g
        x <- x - lr v                       # nesterov: x - lr (g + momentum v)

    Float hyperparameters: lr, momentum, weight_decay.
    """

    has_momentum: bool = False
    has_weight_decay: bool = False
    nesterov: bool = False
    decay_on: str = "all"
    noisy = False

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        return Coefficients(lr, hyper["momentum"].expand_as(lr), weight_decay(hyper, lr, clock, self.decay_on))

    def init(self, x: Runs, xi: Runs | None) -> State:
        """Return the state at x, at rest."""
        return State(x, torch.zeros_like(x) if self.has_momentum else None)

    def step(self, c: Coefficients, state: State, grad: Runs, norm: Tensor, xi: Runs | None) -> State:
        """Return x - lr * grad (2.12), the gradient replaced by the momentum buffer where there is one.

        Implements Eq. (2.9), (2.10), (2.12).
        """
        x, velocity = state
        if self.has_weight_decay:
            grad = grad + c.weight_decay * x
        if velocity is not None:
            velocity = c.momentum * velocity + grad
            grad = grad + c.momentum * velocity if self.nesterov else velocity
        return State(torch.addcmul(x, grad, c.lr, value=-1), velocity)

    def stability(self, c: Coefficients) -> Stability:
        """Return what decides whether a step is stable on a quadratic."""
        return Stability(c.lr, momentum=c.momentum, nesterov=self.nesterov, weight_decay=c.weight_decay)
