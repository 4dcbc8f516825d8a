"""Stochastic gradient Langevin dynamics (2.15) with an explicit temperature (Welling & Teh 2011)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.protocol import Clock, EveryGradientMovesX, Hyper, Stability, weight_decay
from burgersgd.schema import LearningRate, OptimizerConfig, learning_rate, named, opt, weight_decay_on

Runs = Float[Tensor, "runs d"]


@dataclass
class LangevinConfig(OptimizerConfig):
    """Stochastic gradient Langevin dynamics (2.15); invariant law exp(-F / temperature)."""

    base_lr: ClassVar[float] = 0.3
    name: str = named("langevin")
    lr: LearningRate = learning_rate()
    temperature: float = opt(1e-7, "temperature T of the noise; 0: no noise", at_least=0)
    weight_decay: float = opt(0.0, "weight decay: adds weight_decay |x|^2 / 2 to the loss", at_least=0)
    weight_decay_on: str = weight_decay_on()

    def rule(self) -> Langevin:
        """Return the update rule with its static choices."""
        return Langevin(self.weight_decay > 0, self.temperature > 0, self.weight_decay_on)


class Coefficients(NamedTuple):
    """The numbers of one gradient evaluation, each ``[runs, 1]``."""

    lr: Tensor
    noise_scale: Tensor  # sqrt(2 T lr)
    weight_decay: Tensor


class State(NamedTuple):
    """The parameters."""

    x: Runs


@dataclass(frozen=True)
class Langevin(EveryGradientMovesX):
    """Langevin dynamics at temperature T, discretised by Euler and Maruyama.

    Each evaluation, xi standard normal::

        x <- x - lr (grad F(x) + weight_decay x) + sqrt(2 T lr) xi

    The invariant law is exp(-F / T) as lr -> 0. Float hyperparameters: lr, temperature, weight_decay.
    """

    has_weight_decay: bool = False
    noisy: bool = True
    decay_on: str = "all"

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        return Coefficients(
            lr, torch.sqrt(2 * hyper["temperature"] * lr), weight_decay(hyper, lr, clock, self.decay_on)
        )

    def init(self, x: Runs, xi: Runs | None) -> State:
        """Return the state at x."""
        return State(x)

    def step(self, c: Coefficients, state: State, grad: Runs, norm: Tensor, xi: Runs | None) -> State:
        """Return x - lr * grad + sqrt(2 T lr) xi."""
        x = state.x
        if self.has_weight_decay:
            grad = grad + c.weight_decay * x
        x = torch.addcmul(x, grad, c.lr, value=-1)
        return State(x if xi is None else torch.addcmul(x, xi, c.noise_scale))

    def stability(self, c: Coefficients) -> Stability:
        """Return what decides whether a step is stable on a quadratic."""
        return Stability(c.lr, weight_decay=c.weight_decay)
