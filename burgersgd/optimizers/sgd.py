"""Stochastic gradient descent (2.12) with heavy-ball or Nesterov momentum, as in torch.optim.SGD (dampening 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.protocol import Clock, EveryGradientMovesX, Hyper

Runs = Float[Tensor, "runs d"]


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
    """Float hyperparameters: lr, momentum, weight_decay. Over the full batch it is gradient descent (2.9)."""

    has_momentum: bool = False
    has_weight_decay: bool = False
    nesterov: bool = False
    noisy = False

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        return Coefficients(lr, hyper["momentum"].expand_as(lr), hyper["weight_decay"].expand_as(lr))

    def init(self, x: Runs, xi: Runs | None) -> State:
        """Return the state at x, at rest."""
        return State(x, torch.zeros_like(x) if self.has_momentum else None)

    def step(self, c: Coefficients, state: State, grad: Runs, xi: Runs | None) -> State:
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
