"""Two-time-scale gradient descent on the local entropy of the loss: (5.18)-(5.19) with the consistent noise.

The fast point y samples exp(-G(y; x) / (2 nu)) with G(x, y; gamma) = F(y) + |x - y|^2 / (2 gamma) by stochastic
gradient Langevin dynamics, one gradient per step; after burn_in + inner_steps of them the slow point x moves towards
the mean of y, a step along -grad F_gamma(x) = -(x - E[y]) / gamma (4.20), where F_gamma is the local entropy, that is
the solution of the viscous Hamilton-Jacobi equation (4.4) at time gamma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.protocol import Clock, Hyper, RuleDefaults, Stability, distance, weight_decay
from burgersgd.schema import LearningRate, OptimizerConfig, learning_rate, named, opt, weight_decay_on

Runs = Float[Tensor, "runs d"]

SMALLEST_LR = 1e-30
"""Below it lr counts as this much in the noise of the velocity, which divides by lr: lr = 0 must not give 0 * inf."""


@dataclass
class LocalEntropyConfig(OptimizerConfig):
    """Gradient descent on the local entropy of the loss, (5.18)-(5.19) with the consistent noise."""

    base_lr: ClassVar[float] = 0.3
    name: str = named("local_entropy")
    lr: LearningRate = learning_rate("learning rate: step size of y at each gradient evaluation")
    nu: float = opt(1e-7, "viscosity; the temperature of y is 2 nu; 0: no noise", at_least=0)
    gamma: float = opt(
        10.0,
        "time of the PDE: y is pulled towards x by a spring, (y - x) / gamma; .inf: no spring",
        above=0,
        infinite=True,
    )
    inner_steps: int = opt(
        20, "number L of gradient evaluations in a cycle, after which x moves towards the mean of y", at_least=1
    )
    burn_in: int = opt(
        0, "additional gradient evaluations at the start of each cycle, which are left out of the mean of y", at_least=0
    )
    outer_step: float = opt(
        1.0, "fraction of the way to the mean of y that x moves at the end of a cycle", above=0, at_most=1
    )
    inner_start: str = opt(
        "warm",
        "y at the start of a cycle; warm: where the previous cycle ended; reset: at x",
        choices=("warm", "reset"),
    )
    averaging: str = opt(
        "uniform",
        "mean of y; uniform: of all y after the burn-in; ema: exponential moving average; last: only the last y",
        choices=("uniform", "ema", "last"),
    )
    ema_weight: float = opt(
        0.25, "weight of the newest y in the moving average; used only with averaging=ema", above=0, at_most=1
    )
    integrator: str = opt(
        "em",
        "integrator of y; em: Euler-Maruyama; leimkuhler_matthews: needs momentum = 0 or nu = 0",
        choices=("em", "leimkuhler_matthews"),
    )
    gamma_scoping: float = opt(
        0.0,
        "decrease of gamma: it is max(gamma / (1 + gamma_scoping)^k, gamma_min) in cycle k; 0: constant",
        at_least=0,
    )
    gamma_min: float = opt(0.0, "smallest value to which gamma_scoping decreases gamma", at_least=0)
    nu_annealing: str = opt(
        "constant",
        "change of nu over the budget; linear, cosine: it decreases to 0",
        choices=("constant", "linear", "cosine"),
    )
    momentum: float = opt(
        0.0,
        "momentum of y; the noise is added to the velocity, so that the temperature remains 2 nu",
        at_least=0,
        below=1,
    )
    outer_momentum: float = opt(0.0, "momentum of the moves of x", at_least=0, below=1)
    nesterov: bool = opt(False, "use Nesterov instead of heavy-ball momentum; needs momentum = 0 or nu = 0")
    weight_decay: float = opt(0.0, "weight decay: adds weight_decay |y|^2 / 2 to the loss at y", at_least=0)
    weight_decay_on: str = weight_decay_on()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0 and self.outer_momentum == 0:
            raise self.error("nesterov", "needs optimizer.momentum > 0 or optimizer.outer_momentum > 0")
        if self.nu > 0 and self.momentum > 0:
            law = (
                f"needs optimizer.nu=0 with optimizer.momentum={self.momentum:g}; with noise the law of y is not known"
            )
            if self.nesterov:
                raise self.error("nesterov", law)
            if self.integrator != "em":
                raise self.error("integrator", law)
        if self.gamma_min > self.gamma:
            raise self.error("gamma_min", f"must be <= optimizer.gamma={self.gamma:g}")

    @property
    def version(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return 2 for noise with momentum, which 0.1.0 added to y and not to its velocity."""
        return 2 if self.momentum > 0 and self.nu > 0 else 1

    def default_lr(self, share: float) -> float:
        """Return the learning rate where none is set: momentum makes 1 / (1 - momentum) steps of every gradient."""
        return self.base_lr * share * (1 - self.momentum)

    def rule(self) -> LocalEntropy:
        """Return the update rule with its static choices."""
        return LocalEntropy(
            inner_steps=self.inner_steps,
            burn_in=self.burn_in,
            inner_start=self.inner_start,  # pyright: ignore[reportArgumentType]
            averaging=self.averaging,  # pyright: ignore[reportArgumentType]
            integrator=self.integrator,  # pyright: ignore[reportArgumentType]
            nu_annealing=self.nu_annealing,  # pyright: ignore[reportArgumentType]
            noisy=self.nu > 0,
            has_momentum=self.momentum > 0,
            has_outer_momentum=self.outer_momentum > 0,
            has_weight_decay=self.weight_decay > 0,
            nesterov=self.nesterov,
            decay_on=self.weight_decay_on,
        )


class Coefficients(NamedTuple):
    """The numbers of one gradient evaluation, each ``[runs, 1]``."""

    lr: Tensor  # eta
    pull: Tensor  # 1 / gamma
    noise_scale: Tensor  # sqrt(2 T eta), T = 2 nu: of y, without momentum
    velocity_noise: Tensor  # sqrt(2 (1 - beta) T / eta): of the velocity, with momentum beta
    mean_weight: Tensor  # weight of the new y in the running mean
    outer_step: Tensor  # h / gamma
    momentum: Tensor
    outer_momentum: Tensor
    weight_decay: Tensor


class State(NamedTuple):
    """x and y are both here: no hidden mode decides what the parameters mean."""

    x: Runs  # slow point: what is evaluated
    y: Runs  # fast point: where gradients are taken
    mean: Runs | None  # running mean of y over the cycle
    xi: Runs | None  # last normal numbers (leimkuhler_matthews)
    velocity: Runs | None  # of y
    outer_velocity: Runs | None  # of x


@dataclass(frozen=True)
class LocalEntropy(RuleDefaults):
    """The consistent rule: one stochastic gradient Langevin step of y per evaluation, one step of x per cycle.

    Each evaluation, with T = 2 nu and xi standard normal::

        y <- y - lr (grad F(y) + (y - x) / gamma) + sqrt(2 T lr) xi

    and with momentum beta, where the noise has to go through the velocity v::

        v <- beta v + grad F(y) + (y - x) / gamma - sqrt(2 (1 - beta) T / lr) xi
        y <- y - lr v

    With u = lr v and a constant lr this is stochastic gradient Hamiltonian Monte Carlo (Chen, Fox and Guestrin 2014)
    with friction 1 - beta: u <- beta u + lr grad_y G - sqrt(2 (1 - beta) lr T) xi, y <- y - u. Its law is exp(-G / T)
    as lr -> 0; on a quadratic of curvature kappa (1 / gamma included) the variance of y is exactly
    (T / kappa) / (1 - lr kappa / (2 (1 + beta))). Where a schedule changes lr, v and not u is kept, as in SGD, so that
    nu = 0 is SGD with momentum on G; the factor 1 / sqrt(lr) makes the noise that of the present lr. Nesterov's step
    and the integrator of Leimkuhler and Matthews have no such law with momentum: LocalEntropyConfig refuses both where
    nu > 0.

    Float hyperparameters: lr, nu, gamma, outer_step, ema_weight, gamma_scoping, gamma_min, momentum, outer_momentum,
    weight_decay. Special cases: nu = 0, outer_step = 1 and many inner steps is the proximal point method; inner_steps
    = 1, gamma = inf, nu = 0, outer_step = 1 is SGD.
    """

    inner_steps: int = 20
    burn_in: int = 0
    inner_start: Literal["warm", "reset"] = "warm"
    averaging: Literal["uniform", "ema", "last"] = "uniform"
    integrator: Literal["em", "leimkuhler_matthews"] = "em"
    nu_annealing: Literal["constant", "linear", "cosine"] = "constant"
    noisy: bool = True  # False only where nu = 0 in every run
    has_momentum: bool = False
    has_outer_momentum: bool = False
    has_weight_decay: bool = False
    nesterov: bool = False
    decay_on: str = "all"

    @property
    def gradients_per_cycle(self) -> int:
        """burn_in + inner_steps gradient evaluations for one move of x."""
        return self.burn_in + self.inner_steps

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Coefficients:
        """Return the coefficients of a block of evaluations, each ``[steps, runs, 1]``."""
        lr = hyper["lr"] * factor
        anneal = {
            "constant": torch.ones_like(clock.fraction),
            "linear": 1 - clock.fraction,
            "cosine": (1 + torch.cos(math.pi * clock.fraction)) / 2,
        }[self.nu_annealing]
        nu = hyper["nu"] * anneal
        gamma = torch.maximum(hyper["gamma"] / (1 + hyper["gamma_scoping"]) ** clock.cycle, hyper["gamma_min"])
        averaged = clock.position - self.burn_in + 1  # 1, 2, ... once burn-in is over
        new = torch.ones_like(lr) if self.averaging == "last" else 1 / averaged.clamp(min=1).expand_as(lr).to(lr)
        weight = hyper["ema_weight"].expand_as(lr) if self.averaging == "ema" else new
        mean_weight = torch.where(averaged >= 1, weight, torch.zeros_like(weight))
        return Coefficients(
            lr=lr,
            pull=(1 / gamma).expand_as(lr),
            noise_scale=torch.sqrt(2 * (2 * nu) * lr),  # sqrt(2 T eta) with T = 2 nu
            velocity_noise=torch.sqrt(2 * (1 - hyper["momentum"]) * (2 * nu) / lr.clamp(min=SMALLEST_LR)),
            mean_weight=mean_weight,
            outer_step=hyper["outer_step"].expand_as(lr),
            momentum=hyper["momentum"].expand_as(lr),
            outer_momentum=hyper["outer_momentum"].expand_as(lr),
            weight_decay=weight_decay(hyper, lr, clock, self.decay_on),
        )

    def init(self, x: Runs, xi: Runs | None) -> State:
        """Return the state with y = x; xi is the predecessor of the first noise (leimkuhler_matthews)."""
        return State(
            x=x,
            y=x.clone(),
            mean=None if self.averaging == "last" else x.clone(),
            xi=xi if self.noisy and self.integrator == "leimkuhler_matthews" else None,
            velocity=torch.zeros_like(x) if self.has_momentum else None,
            outer_velocity=torch.zeros_like(x) if self.has_outer_momentum else None,
        )

    def gradient_at(self, c: Coefficients, state: State) -> Runs:
        """Return y: gradients are taken at the fast point."""
        return state.y

    def step(self, c: Coefficients, state: State, grad: Runs, norm: Tensor, xi: Runs | None) -> State:
        """Move y by one stochastic gradient Langevin step on G (5.18) and update its running mean.

        Implements Eq. (5.18).
        """
        x, y, velocity = state.x, state.y, state.velocity
        if self.has_weight_decay:
            grad = grad + c.weight_decay * y  # part of F, so that the theory holds
        drift = torch.addcmul(grad, y - x, c.pull)  # grad_y G(x, y; gamma) = grad F(y) + (y - x) / gamma
        if velocity is not None:
            velocity = c.momentum * velocity + drift
            if xi is not None:
                velocity = torch.addcmul(velocity, xi, c.velocity_noise, value=-1)
            drift = drift + c.momentum * velocity if self.nesterov else velocity
        y = torch.addcmul(y, drift, c.lr, value=-1)
        if xi is not None and velocity is None:
            z = xi if state.xi is None else (xi + state.xi) / 2
            y = torch.addcmul(y, z, c.noise_scale)  # (5.18): y - lr grad_y G + sqrt(2 T lr) z
        mean = None if state.mean is None else torch.lerp(state.mean, y, c.mean_weight)
        return state._replace(y=y, mean=mean, velocity=velocity, xi=None if state.xi is None else xi)

    def end_cycle(self, c: Coefficients, state: State) -> State:
        """Move x towards the mean of y: x - (h / gamma) (x - mean) (5.19). Implements Eq. (5.19)."""
        x, y, velocity, outer_velocity = state.x, state.y, state.velocity, state.outer_velocity
        mean = y if state.mean is None else state.mean
        if outer_velocity is None:
            x = torch.lerp(x, mean, c.outer_step)  # exact for outer_step = 1
        else:
            outer_velocity = c.outer_momentum * outer_velocity + (x - mean)
            direction = (x - mean) + c.outer_momentum * outer_velocity if self.nesterov else outer_velocity
            x = x - c.outer_step * direction
        if self.inner_start == "reset":
            y = x.clone()
            velocity = None if velocity is None else torch.zeros_like(velocity)
        if self.averaging == "ema":
            mean = x.clone()  # the exponential mean starts every cycle at x
        return state._replace(
            x=x,
            y=y,
            mean=None if state.mean is None else mean,
            velocity=velocity,
            outer_velocity=outer_velocity,
        )

    def evaluate_at(self, state: State) -> Runs:
        """Return x."""
        return state.x

    def diagnostics(self, c: Coefficients, state: State) -> dict[str, Tensor]:
        """Return |x - y| and the temperature."""
        return {"x_y_distance": distance(state.x, state.y), **super().diagnostics(c, state)}

    def stability(self, c: Coefficients) -> Stability:
        """Return what decides whether a step is stable on a quadratic.

        Where x follows y at every step, by q (y - x), an eigenvalue is -1 where lr (a + (1 - q) / ((1 - q / 2) gamma))
        is 2.
        """
        pull = c.pull
        if self.gradients_per_cycle == 1:
            q = c.outer_step * c.mean_weight
            pull = pull * (0.0 if self.inner_start == "reset" else (1 - q) / (1 - q / 2))
        return Stability(c.lr, pull, momentum=c.momentum, nesterov=self.nesterov, weight_decay=c.weight_decay)

    def budget_key(self) -> str | None:
        """Return nu_annealing, which looks at the fraction of the budget."""
        return None if self.nu_annealing == "constant" else "nu_annealing"
