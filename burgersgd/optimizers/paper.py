"""The paper's optimizer as printed: the SDE (5.14) at finite epsilon and (5.18)-(5.19) to the letter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.protocol import Clock, Hyper, RuleDefaults, Stability, distance
from burgersgd.schema import LearningRate, OptimizerConfig, learning_rate, named, opt

Runs = Float[Tensor, "runs d"]


@dataclass
class PaperSDEConfig(OptimizerConfig):
    """Euler-Maruyama of the paper's SDE (5.14) at finite epsilon; dt = epsilon * lr."""

    base_lr: ClassVar[float] = 0.3
    name: str = named("paper_sde")
    lr: LearningRate = learning_rate("learning rate: dt / epsilon")
    nu: float = opt(1e-6, "viscosity; 0: no noise", at_least=0)
    gamma: float = opt(1.0, "time of the PDE: y is pulled towards x by a spring, (y - x) / gamma", above=0)
    epsilon: float = opt(0.3, "ratio of the time scales of y and x in (5.14)", above=0)
    temperature: str = opt(
        "printed", "temperature T of y; printed: T = nu; consistent: T = 2 nu", choices=("printed", "consistent")
    )

    def rule(self) -> PaperSDE:
        """Return the update rule with its static choices."""
        return PaperSDE(temperature=self.temperature, noisy=self.nu > 0)  # pyright: ignore[reportArgumentType]


@dataclass
class PaperLiteralConfig(OptimizerConfig):
    """The paper's algorithm (5.18)-(5.19) exactly as printed."""

    base_lr: ClassVar[float] = 0.3
    name: str = named("paper_literal")
    lr: LearningRate = learning_rate("learning rate: delta^t in the paper")
    nu: float = opt(1e-6, "viscosity; 0: no noise", at_least=0)
    gamma: float = opt(1.0, "time of the PDE: y is pulled towards x by a spring, (y - x) / gamma", above=0)
    period: int | None = opt(
        None,
        "x moves at every step whose number is a multiple of period; null: only at the last step, the paper's N",
        at_least=1,
    )
    noise: str = opt(
        "double",
        "noise of y; double: sqrt(2 dt nu) dW with dW of scale sqrt(dt), as printed; std: sqrt(2 dt nu) times a "
        "standard normal number",
        choices=("double", "std"),
    )

    def rule(self) -> PaperLiteral:
        """Return the update rule with its static choices."""
        return PaperLiteral(period=self.period, noise=self.noise, noisy=self.nu > 0)  # pyright: ignore[reportArgumentType]


class Coefficients(NamedTuple):
    """The numbers of one gradient evaluation, each ``[runs, 1]``."""

    lr: Tensor  # eta (paper_literal: delta^t)
    pull: Tensor  # 1 / gamma
    noise_scale: Tensor
    slow_rate: Tensor  # x moves by slow_rate * (y - x)


class State(NamedTuple):
    """Slow point x, fast point y."""

    x: Runs
    y: Runs


class _Simultaneous(RuleDefaults):
    """Base of both rules: x and y make their steps together, from the same (x_k, y_k)."""

    def init(self, x: Runs, xi: Runs | None) -> State:
        """Return the state with y0 = x0 (the paper is silent)."""
        return State(x=x, y=x.clone())

    def gradient_at(self, c: Coefficients, state: State) -> Runs:
        """Return y."""
        return state.y

    def step(self, c: Coefficients, state: State, grad: Runs, norm: Tensor, xi: Runs | None) -> State:
        """Euler-Maruyama step of y and of x."""
        x, y = state
        ahead = y - x
        y = torch.addcmul(y, torch.addcmul(grad, ahead, c.pull), c.lr, value=-1)  # (5.18)
        if xi is not None:
            y = torch.addcmul(y, xi, c.noise_scale)
        return State(x=torch.addcmul(x, ahead, c.slow_rate), y=y)

    def diagnostics(self, c: Coefficients, state: State) -> dict[str, Tensor]:
        """Return |x - y| and the temperature."""
        return {"x_y_distance": distance(state.x, state.y), **super().diagnostics(c, state)}

    def stability(self, c: Coefficients) -> Stability:
        """Return what decides whether a step is stable on a quadratic."""
        return Stability(c.lr, c.pull, c.slow_rate)


@dataclass(frozen=True)
class PaperSDE(_Simultaneous):
    """Euler-Maruyama of the paper's two-time-scale SDE (5.14) at finite epsilon, with dt = epsilon * lr.

    Each evaluation, both lines from the old x and y, xi standard normal::

        y <- y - lr (grad F(y) + (y - x) / gamma) + sqrt(2 T lr) xi
        x <- x + epsilon lr (y - x) / gamma

    Float hyperparameters: lr, nu, gamma, epsilon. temperature: T = nu ("printed") or the consistent 2 nu
    ("consistent").

    Implements Eq. (5.14).
    """

    temperature: Literal["printed", "consistent"] = "printed"
    noisy: bool = True

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        temperature = hyper["nu"] * (1 if self.temperature == "printed" else 2)
        return Coefficients(
            lr=lr,
            pull=(1 / hyper["gamma"]).expand_as(lr),
            noise_scale=torch.sqrt(2 * temperature * lr),
            slow_rate=hyper["epsilon"] * lr / hyper["gamma"],
        )


@dataclass(frozen=True)
class PaperLiteral(_Simultaneous):
    """The paper's algorithm (5.18)-(5.19) as printed: x moves only at the steps k with k mod period = 0.

    Each evaluation k = 0, 1, ..., both lines from the old x and y, xi standard normal::

        y <- y - lr (grad F(y) + (y - x) / gamma) + sqrt(2 lr nu) (sqrt(lr) xi)     # noise="std": xi alone
        x <- x + lr (y - x) / gamma, if k mod period = 0

    Float hyperparameters: lr (delta^t), nu, gamma. period None is the paper's N, the number of the last step: x_1 ...
    x_N all equal x_0, and only the very last step moves x. noise "double" multiplies sqrt(2 dt nu) by an increment of
    scale sqrt(dt), as printed (T = nu dt); "std" by a standard normal (T = nu).

    Implements Eq. (5.18), (5.19).
    """

    period: int | None = None
    noise: Literal["double", "std"] = "double"
    noisy: bool = True

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        increment = torch.sqrt(lr) if self.noise == "double" else torch.ones_like(lr)
        period = self.period if self.period is not None else max(clock.budget - 1, 1)
        moves = (clock.step % period == 0).to(lr)
        return Coefficients(
            lr=lr,
            pull=(1 / hyper["gamma"]).expand_as(lr),
            noise_scale=torch.sqrt(2 * lr * hyper["nu"]) * increment,
            slow_rate=moves * lr / hyper["gamma"],
        )

    def stability(self, c: Coefficients) -> Stability:
        """Return what decides whether a step is stable on a quadratic: x rests between its moves."""
        return Stability(c.lr, c.pull, c.slow_rate if self.period == 1 else 0.0)

    def budget_key(self) -> str | None:
        """Return period=null, the last step of the run."""
        return "period=null" if self.period is None else None
