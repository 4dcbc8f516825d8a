"""Adaptive sharpness-aware minimization (Kwon, Kim, Park and Choi 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.protocol import Clock, Hyper
from burgersgd.optimizers.sam import NO_NORM, Sam, SamConfig, State
from burgersgd.schema import named, opt

Runs = Float[Tensor, "runs d"]


@dataclass
class AsamConfig(SamConfig):
    """Adaptive SAM: the distance rho is measured relative to the size of each weight."""

    name: str = named("asam")
    rho: float = opt(
        0.5,
        "distance from x of the point at which the second gradient is computed, relative to |weight| + eta",
        at_least=0,
    )
    eta: float = opt(0.01, "added to |weight|, relative to which the distance rho is measured", at_least=0)

    def rule(self) -> Asam:
        """Return the update rule with its static choices."""
        return Asam(self.momentum > 0, self.weight_decay > 0, self.nesterov, self.weight_decay_on)


class Coefficients(NamedTuple):
    """The numbers of one gradient evaluation, each ``[runs, 1]``."""

    lr: Tensor
    rho: Tensor
    up: Tensor
    momentum: Tensor
    weight_decay: Tensor
    eta: Tensor


@dataclass(frozen=True)
class Asam(Sam):
    """SAM with the neighbourhood |e / t| <= rho, t = |x| + eta, element by element.

    In formulas::

        y <- x + rho t^2 g(x) / |t g(x)|

    and x as in SAM. Float hyperparameters: those of SAM, and eta.
    """

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        common = super().coefficients(hyper, factor, clock)
        return Coefficients(*common, eta=hyper["eta"].expand_as(common.lr))

    def normed(self, c: Coefficients, state: State, grad: Runs) -> Runs:
        """Return t g, whose norm is meant."""
        return (abs(state.x) + c.eta) * grad

    def ascent(self, c: Coefficients, state: State, grad: Runs, norm: Tensor) -> Runs:
        """Return the step of relative length rho along the gradient."""
        t = abs(state.x) + c.eta
        return c.rho / (norm + NO_NORM) * t * t * grad
