"""AdamW (Loshchilov & Hutter 2019), as in torch.optim.AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.protocol import Clock, EveryGradientMovesX, Hyper, weight_decay
from burgersgd.schema import LearningRate, OptimizerConfig, learning_rate, named, opt, weight_decay_on

Runs = Float[Tensor, "runs d"]


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019)."""

    base_lr: ClassVar[float] = 1e-3
    name: str = named("adamw")
    lr: LearningRate = learning_rate()
    beta1: float = opt(0.9, "decay rate of the running mean of the gradients", at_least=0, below=1)
    beta2: float = opt(0.999, "decay rate of the running mean of the squared gradients", at_least=0, below=1)
    eps: float = opt(1e-8, "added to the square root of the mean squared gradient, by which steps are divided", above=0)
    weight_decay: float = opt(
        1e-2, "decoupled weight decay: each step multiplies x by 1 - lr * weight_decay", at_least=0
    )
    weight_decay_on: str = weight_decay_on()

    def default_lr(self, share: float) -> float:
        """Return the learning rate where none is set: the scale of the gradients does not matter."""
        return self.base_lr

    def rule(self) -> AdamW:
        """Return the update rule with its static choices."""
        return AdamW(self.weight_decay_on)


class Coefficients(NamedTuple):
    """The numbers of one gradient evaluation, each ``[runs, 1]``."""

    lr: Tensor
    beta1: Tensor
    beta2: Tensor
    eps: Tensor
    weight_decay: Tensor
    correction1: Tensor  # 1 - beta1^t
    correction2: Tensor  # sqrt(1 - beta2^t)


class State(NamedTuple):
    """Parameters, first and second moment of the gradient."""

    x: Runs
    mean: Runs
    square: Runs


@dataclass(frozen=True)
class AdamW(EveryGradientMovesX):
    """Adam with decoupled weight decay.

    Evaluation t = 1, 2, ..., element by element with g = grad F(x)::

        m <- beta1 m + (1 - beta1) g
        s <- beta2 s + (1 - beta2) g^2
        x <- (1 - lr weight_decay) x - lr (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + eps)

    Float hyperparameters: lr, beta1, beta2, eps, weight_decay.
    """

    decay_on: str = "all"
    noisy = False

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        t = clock.step + 1
        return Coefficients(
            lr=lr,
            beta1=hyper["beta1"].expand_as(lr),
            beta2=hyper["beta2"].expand_as(lr),
            eps=hyper["eps"].expand_as(lr),
            weight_decay=weight_decay(hyper, lr, clock, self.decay_on),
            correction1=1 - hyper["beta1"] ** t,
            correction2=torch.sqrt(1 - hyper["beta2"] ** t),
        )

    def init(self, x: Runs, xi: Runs | None) -> State:
        """Return the state at x with zero moments."""
        return State(x, torch.zeros_like(x), torch.zeros_like(x))

    def step(self, c: Coefficients, state: State, grad: Runs, norm: Tensor, xi: Runs | None) -> State:
        """Take one step with bias-corrected moments and decoupled weight decay."""
        x = state.x * (1 - c.lr * c.weight_decay)
        mean = torch.lerp(grad, state.mean, c.beta1)
        square = torch.lerp(grad * grad, state.square, c.beta2)
        return State(x - c.lr / c.correction1 * mean / (square.sqrt() / c.correction2 + c.eps), mean, square)
