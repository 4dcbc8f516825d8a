"""Rules as users may write them: each obeys optimizers/protocol.py, and each is difficult for an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from burgersgd.config import (
    AdamWConfig,
    AsamConfig,
    LangevinConfig,
    LocalEntropyConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SamConfig,
    SgdConfig,
)
from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.optimizers.protocol import Clock, Hyper, RuleDefaults


class Rates(NamedTuple):
    """Two numbers of a step."""

    lr: Tensor
    m: Tensor


class Two(NamedTuple):
    """The point, and another vector."""

    x: Tensor
    other: Tensor


class _TwoRates(RuleDefaults):
    noisy = False

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Rates:
        lr = hyper["lr"] * factor
        return Rates(lr, hyper["m"].expand_as(lr))


@dataclass(frozen=True)
class HeavyBall(_TwoRates):
    """Polyak 1964 as he wrote it: x' = x - lr g + m (x - previous x). The old x moves into another field."""

    def init(self, x: Tensor, xi: Tensor | None) -> Two:
        return Two(x, x.clone())

    def step(self, c: Rates, state: Two, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Two:
        return Two(state.x - c.lr * grad + c.m * (state.x - state.other), state.x)


@dataclass(frozen=True)
class Aliasing(HeavyBall):
    """The same, from one tensor in both fields."""

    def init(self, x: Tensor, xi: Tensor | None) -> Two:
        return Two(x, x)


@dataclass(frozen=True)
class MovesAtTheEnd(_TwoRates):
    """Two gradients a cycle; then the fields trade places, and a view of one of them is in use as well."""

    gradients_per_cycle = 2

    def init(self, x: Tensor, xi: Tensor | None) -> Two:
        return Two(x, x)

    def gradient_at(self, c: Rates, state: Two) -> Tensor:
        return state.x

    def step(self, c: Rates, state: Two, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Two:
        return Two(state.x - c.lr * grad, torch.lerp(state.other, state.x, c.m))

    def end_cycle(self, c: Rates, state: Two) -> Two:
        return Two(state.other[:, :], state.x)

    def evaluate_at(self, state: Two) -> Tensor:
        return (state.x + state.other) / 2


class Three(NamedTuple):
    """A vector that is not kept comes first, and the point has another name."""

    memory: None
    w: Tensor


@dataclass(frozen=True)
class Normalised(_TwoRates):
    """x' = x - lr g / (m + |g|): the norm is a reduction of the rule's own; it keeps no vector but the point."""

    gradients_per_cycle = 1

    def init(self, x: Tensor, xi: Tensor | None) -> Three:
        return Three(None, x)

    def gradient_at(self, c: Rates, state: Three) -> Tensor:
        return state.w

    def step(self, c: Rates, state: Three, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Three:
        return Three(None, state.w - c.lr * grad / (c.m + torch.linalg.vector_norm(grad, dim=-1, keepdim=True)))

    def end_cycle(self, c: Rates, state: Three) -> Three:
        return state

    def evaluate_at(self, state: Three) -> Tensor:
        return state.w


class SamState(NamedTuple):
    """The point, and where its neighbourhood is worst."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class OwnSam(_TwoRates):
    """Sharpness-aware minimization with the norm computed in the rule; m is rho.

    Its two gradients see two batches, unlike those of the rule that ships.
    """

    gradients_per_cycle = 2

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Rates:
        lr, up = hyper["lr"] * factor, clock.position == 0
        return Rates(lr * ~up, hyper["m"] * up.expand_as(lr))

    def init(self, x: Tensor, xi: Tensor | None) -> SamState:
        return SamState(x, x)

    def gradient_at(self, c: Rates, state: SamState) -> Tensor:
        return state.y

    def step(self, c: Rates, state: SamState, grad: Tensor, norm: Tensor, xi: Tensor | None) -> SamState:
        x = state.x - c.lr * grad
        return SamState(x, x + c.m * grad / (torch.linalg.vector_norm(grad, dim=-1, keepdim=True) + 1e-12))

    def end_cycle(self, c: Rates, state: SamState) -> SamState:
        return SamState(state.x, state.x)

    def evaluate_at(self, state: SamState) -> Tensor:
        return state.x


@dataclass(frozen=True)
class Unknown(HeavyBall):
    """An operation, the cardinal sine, that the code generator has no C for."""

    def step(self, c: Rates, state: Two, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Two:
        return Two(state.x - c.lr * grad * torch.sinc(c.m * grad), state.x)


@dataclass(frozen=True)
class KeepsNoise(_TwoRates):
    """Noise of two steps at once: the state holds on to the very tensor of normal numbers that it was given."""

    noisy = True

    def init(self, x: Tensor, xi: Tensor | None) -> Two:
        assert xi is not None
        return Two(x, xi)

    def step(self, c: Rates, state: Two, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Two:
        assert xi is not None
        return Two(state.x - c.lr * (grad + 1e-3 * c.m * (xi + state.other)), xi)


@dataclass(frozen=True)
class Constant(HeavyBall):
    """Returns a tensor of its own, the same one in every step: nobody else may write into it."""

    def step(self, c: Rates, state: Two, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Two:
        return Two(state.x - c.lr * grad + c.m * state.other, _constant(tuple(state.x.shape), state.x.dtype))


_CONSTANTS: dict[Any, Tensor] = {}


def _constant(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return _CONSTANTS.setdefault((shape, dtype), torch.full(shape, 1e-3, dtype=dtype))


class Decay(NamedTuple):
    """A number of the step, and one of every parameter."""

    decay: Tensor
    lr: Tensor


@dataclass(frozen=True)
class Decays(RuleDefaults):
    """SGD with weight decay on matrices alone, each parameter with a factor of its own: m (1 + j / d) for number j."""

    def coefficients(self, hyper: Hyper, factor: Tensor, clock: Clock) -> Decay:
        of_each = clock.matrices()
        return Decay(hyper["m"] * of_each * (1 + torch.linspace(0, 1, of_each.shape[-1])), hyper["lr"] * factor)

    def init(self, x: Tensor, xi: Tensor | None) -> Two:
        return Two(x, x)

    def step(self, c: Decay, state: Two, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Two:
        return Two(state.x - c.lr * (grad + c.decay * state.x), state.x)


@dataclass(frozen=True)
class Normed(_TwoRates):
    """Both norms: of the gradient times |x| + m, which the engine takes, in a step of length lr."""

    gradients_per_batch = 3  # no divisor of a block of steps

    def init(self, x: Tensor, xi: Tensor | None) -> Two:
        return Two(x, x)

    def normed(self, c: Rates, state: Two, grad: Tensor) -> Tensor:
        return grad * (abs(state.x) + c.m)

    def step(self, c: Rates, state: Two, grad: Tensor, norm: Tensor, xi: Tensor | None) -> Two:
        return Two(state.x - c.lr * grad / norm, state.x)


@dataclass(frozen=True)
class Parle(LocalEntropy):
    """Local entropy with replicas that are drawn to their mean at the end of a cycle (Chaudhari et al. 2017)."""

    replicas: int = 3
    coupling: float = 0.3

    def end_cycle(self, c: Any, state: Any) -> Any:
        state = super().end_cycle(c, state)  # [runs, replicas, d]
        if self.coupling == 0:
            return state
        return state._replace(x=state.x + self.coupling * (state.x.mean(1, keepdim=True) - state.x))

    def evaluate_at(self, state: Any) -> Tensor:
        return state.x.mean(1)


PARLE = {"inner_steps": 2, "burn_in": 1, "integrator": "leimkuhler_matthews", "has_weight_decay": True}
ENTROPY = LocalEntropyConfig(lr=0.08, nu=1e-4, gamma=0.7, outer_step=0.8, weight_decay=0.02).hyper()

HYPER = {"lr": 0.08, "m": 0.7}
FOREIGN: list[tuple[Any, dict[str, float]]] = [
    (HeavyBall(), HYPER),
    (Aliasing(), HYPER),
    (MovesAtTheEnd(), HYPER),
    (Normalised(), HYPER),
    (OwnSam(), {"lr": 0.08, "m": 0.3}),
    (Unknown(), HYPER),
    (KeepsNoise(), HYPER),
    (Constant(), HYPER),
    (Decays(), {"lr": 0.08, "m": 0.3}),
    (Normed(), {"lr": 0.02, "m": 0.3}),
    (Parle(**PARLE), ENTROPY),
]
SHIPPED: list[tuple[Any, dict[str, float]]] = [
    (config.rule(), config.hyper())
    for config in (
        LocalEntropyConfig(
            lr=0.08, nu=1e-4, gamma=0.7, inner_steps=3, burn_in=1, outer_step=0.8, averaging="ema", outer_momentum=0.4
        ),
        PaperSDEConfig(lr=0.08, nu=1e-4, gamma=0.7, epsilon=0.3),
        PaperLiteralConfig(lr=0.08, nu=1e-4, gamma=0.7, period=2),
        SgdConfig(lr=0.08, momentum=0.7, nesterov=True, weight_decay=0.02, weight_decay_on="matrices"),
        # eps above the rounding of a gradient: with the default, a gradient near 0 may move x by lr in either direction
        AdamWConfig(lr=0.01, eps=1e-3, weight_decay=0.2, weight_decay_on="matrices"),
        LangevinConfig(lr=0.08, temperature=1e-4, weight_decay=0.02),
        SamConfig(lr=0.08, rho=0.3, momentum=0.7, weight_decay=0.02, weight_decay_on="matrices"),
        AsamConfig(lr=0.08, rho=0.3, eta=0.2, momentum=0.7),
    )
]
