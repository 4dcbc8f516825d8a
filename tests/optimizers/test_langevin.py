"""Langevin dynamics: the naive loop, and the stationary variance on a quadratic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from burgersgd.optimizers.langevin import Langevin
from tests import reference
from tests.optimizers.driver import M, assert_fails, drive, given, last, normals, of_runs, wavy

HYPER = {"lr": [0.05, 0.2, 0.11], "temperature": [0.3, 0.02, 1.7], "weight_decay": [0.05, 0.3, 0.6]}
SCHEDULE = {"warmup": [0.2, 0.3, 0.1], "final": [0.3, 0.6, 0.1]}


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("weight_decay", [False, True])
def test_every_run_of_a_fleet_is_the_naive_loop(weight_decay: bool, noisy: bool) -> None:
    steps = 40
    x = reference.start(3, 4)
    xi = np.random.default_rng(1).normal(size=(3, steps + 1, 4))
    gradient = of_runs([wavy(i) for i in range(3)])
    states = list(
        drive(
            Langevin(weight_decay, noisy),
            HYPER,
            torch.from_numpy(x),
            gradient,
            steps,
            given(xi) if noisy else None,
            schedule="cosine",
            schedule_hyper=SCHEDULE,
        )
    )
    for i in range(3):
        lr = reference.warm_cosine(HYPER["lr"][i], SCHEDULE["warmup"][i], SCHEDULE["final"][i], steps)
        T = HYPER["temperature"][i] if noisy else 0.0
        decay = HYPER["weight_decay"][i] if weight_decay else 0.0
        y = x[i]
        for k in range(steps):
            eta = lr(k / steps)
            y = y - eta * (wavy(i)(k, y) + decay * y) + math.sqrt(2 * T * eta) * xi[i, k + 1]
            np.testing.assert_allclose(states[k].x[i].numpy(), y, rtol=0, atol=1e-12)


def test_stationary_law_on_a_quadratic() -> None:
    a, decay, c, lr, T = 1.3, 0.4, 0.7, 0.2, 0.35
    curvature = a + decay

    def variance(T: float) -> float:  # of Euler-Maruyama: x' = (1 - lr k) x + sqrt(2 T lr) xi
        return 2 * T * lr / (1 - (1 - lr * curvature) ** 2)

    hyper = {"lr": [lr], "temperature": [T], "weight_decay": [decay]}
    x = torch.full((1, M), c, dtype=torch.float64)
    state = last(drive(Langevin(True), hyper, x, lambda k, x: a * (x - c), 60, normals(1, 1, M)))
    sample = state.x[0].numpy()  # after 60 steps: 0.66^120 = 2e-22 of the start is left
    assert abs(reference.z_mean(sample, a * c / curvature, variance(T))) < 6
    assert abs(reference.z_variance(sample, variance(T))) < 6
    assert_fails(
        {
            "T / 2": reference.z_variance(sample, variance(T / 2)),
            "2 T": reference.z_variance(sample, variance(2 * T)),
            "extra sqrt(lr)": reference.z_variance(sample, variance(T * lr)),
            "variance of the SDE": reference.z_variance(sample, T / curvature),
            "mean without weight decay": reference.z_mean(sample, c, variance(T)),
        }
    )
