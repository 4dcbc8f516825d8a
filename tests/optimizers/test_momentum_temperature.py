"""Momentum and temperature: with noise through the velocity, y samples exp(-G / 2 nu) at T = 2 nu.

On a quadratic the pair (y, v) is an affine recursion with Gaussian noise, so that its covariance after any number of
steps is known exactly, under schedules too. M independent chains fixed beforehand, one look, |z| < 4 (p = 6e-5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy import ndarray

from burgersgd.build.prepared import prepare
from burgersgd.config import LocalEntropyConfig, TrainerConfig
from burgersgd.optimizers.local_entropy import LocalEntropy
from tests import reference
from tests.conftest import small_config
from tests.optimizers.driver import M, assert_fails, drive, last, normals

# Runs on F = a (y - c)^2 / 2 with x frozen at START, every value different in every run.
HYPER = {
    "momentum": [0.5, 0.9, 0.8, 0.3, 0.95],
    "gamma": [0.7, 0.2, 2.5, math.inf, 1.1],
    "lr": [0.05, 0.15, 0.3, 0.4, 0.02],
    "nu": [0.1, 0.03, 0.6, 0.2, 0.05],
    "outer_step": [0.4] * 5,
    "ema_weight": [0.3] * 5,
}
HYPER |= {name: [0.0] * 5 for name in ("gamma_scoping", "gamma_min", "outer_momentum", "weight_decay")}
CURVATURE, CENTER, START = [1.3, 0.8, 4.0, 2.2, 6.0], 0.4, 1.5
RUNS = range(5)
KAPPA = [a + 1 / gamma for a, gamma in zip(CURVATURE, HYPER["gamma"], strict=True)]

Rate = Callable[[float], float]


def fast_points(steps: int, schedule: str = "constant", floats: dict[str, list[float]] | None = None) -> ndarray:
    """Return y ``[runs, M]`` after a number of steps of the rule with x frozen at START."""
    rule = LocalEntropy(inner_steps=steps + 1, averaging="last", has_momentum=True)
    a = torch.tensor(CURVATURE, dtype=torch.float64)[:, None]
    x = torch.full((len(RUNS), M), START, dtype=torch.float64)
    states = drive(rule, HYPER, x, lambda k, y: a * (y - CENTER), steps, normals(31, len(RUNS), M), schedule, floats)
    return last(states).y.numpy()


def covariance(run: int, rates: Sequence[float], mutant: str = "") -> ndarray:
    """Return the covariance of (y, u) after one step at each rate, u = lr v the step of y, from a fixed start.

    u' = beta (lr' / lr) u + lr' kappa y - s xi and y' = y - u', y as a deviation from its mean.
    """
    beta, T, P, before = HYPER["momentum"][run], 2 * HYPER["nu"][run], np.zeros((2, 2)), rates[0]
    for lr in rates:
        u = [lr * KAPPA[run], beta * lr / before]
        A = np.array([[1 - u[0], -u[1]], u])
        kick = math.sqrt(2 * (1 - beta) * lr * T)
        direction = np.array([kick, -kick])
        if mutant == "noise on y":
            direction = np.array([math.sqrt(2 * T * lr), 0.0])
        elif mutant == "no 1 - beta":
            direction = direction / math.sqrt(1 - beta)
        elif mutant == "T = nu":
            direction = direction / math.sqrt(2)
        elif mutant == "no sqrt":
            direction = direction * kick
        P, before = A @ P @ A.T + np.outer(direction, direction), lr
    return P


MUTANTS = ("noise on y", "no 1 - beta", "T = nu", "no sqrt")


def stationary_variance(run: int, lr: float) -> float:
    """Return the variance of y where lr is constant."""
    return 2 * HYPER["nu"][run] / KAPPA[run] / (1 - lr * KAPPA[run] / (2 * (1 + HYPER["momentum"][run])))


def test_the_fast_point_has_the_temperature_that_is_reported() -> None:
    steps = 400
    y = fast_points(steps)
    for run in RUNS:
        lr, V = HYPER["lr"][run], stationary_variance(run, HYPER["lr"][run])
        assert abs(covariance(run, [lr] * steps)[0, 0] / V - 1) < 1e-6  # the closed form, and it is stationary by now
        mean = (START / HYPER["gamma"][run] + CURVATURE[run] * CENTER) / KAPPA[run]
        assert abs(reference.z_mean(y[run], mean, V)) < 4
        assert abs(reference.z_variance(y[run], V)) < 4
        mutants = {name: covariance(run, [lr] * steps, name)[0, 0] for name in MUTANTS}
        assert_fails({name: reference.z_variance(y[run], wrong) for name, wrong in mutants.items()})


@pytest.mark.parametrize("steps", [7, 90])
def test_under_a_schedule_it_has_the_variance_of_its_recursion(steps: int) -> None:
    floats = {"warmup": [0.2, 0.3, 0.1, 0.5, 0.25], "final": [0.3, 0.05, 0.0, 0.2, 0.1]}
    y = fast_points(steps, "cosine", floats)
    for run in RUNS:
        rate = reference.warm_cosine(HYPER["lr"][run], floats["warmup"][run], floats["final"][run], steps)
        rates = [rate(k / steps) for k in range(steps)]
        assert abs(reference.z_variance(y[run], covariance(run, rates)[0, 0])) < 4


def test_a_slow_schedule_keeps_the_temperature() -> None:
    """The recursion forgets an lr within 1 / (1 - beta) steps: its law follows the schedule."""
    steps = 20_000
    for run in RUNS:
        rate = reference.warm_cosine(HYPER["lr"][run], 0.1, 0.2, steps)
        rates = [rate(k / steps) for k in range(steps)]
        for end in (steps // 2, steps):
            exact = stationary_variance(run, rates[end - 1])
            assert abs(covariance(run, rates[:end])[0, 0] / exact - 1) < 0.01


def test_a_rate_of_zero_moves_nothing_and_gives_no_nan() -> None:
    rule = LocalEntropy(inner_steps=9, has_momentum=True)
    x = torch.full((len(RUNS), 3), START, dtype=torch.float64)
    floats = {"warmup": [0.0] * 5, "decay": [0.0] * 5, "every": [0.5] * 5}
    path = list(drive(rule, HYPER, x, lambda k, y: y, 8, normals(1, len(RUNS), 3), "step", floats))
    assert torch.equal(path[3].y, path[7].y)  # lr is 0 from the fifth evaluation on
    assert not torch.equal(path[2].y, path[3].y)
    assert torch.isfinite(path[7].y).all()


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_networks_are_stepped_so_by_every_engine(beta: float) -> None:
    """Eager and native: the same numbers to rounding, and the temperature of the metrics is 2 nu."""
    points = []
    for engine in ("off", "native"):
        trainer = TrainerConfig(budget=60, batch_size=40, precision="float64", compile=engine)
        optimizer = LocalEntropyConfig(lr=0.05, nu=3e-5, gamma=0.7, inner_steps=5, burn_in=1, momentum=beta)
        fleet = prepare([small_config(seed=s, optimizer=optimizer, trainer=trainer) for s in range(2)]).fleet()
        fleet.advance(60)
        points.append(fleet.state)
        c = fleet.coefficients_at(59)
        assert torch.allclose(c["noise_scale"] ** 2 / (2 * c["lr"]), torch.tensor(6e-5, dtype=torch.float64))
    eager, native = points
    assert not torch.equal(eager.x[0], eager.x[1])
    for ours, theirs in ((eager.x, native.x), (eager.y, native.y), (eager.velocity, native.velocity)):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)
