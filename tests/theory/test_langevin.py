"""Langevin dynamics: exact laws of the discrete chain, invariant laws, orders, mini-batch noise and annealing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.theory.gibbs import gibbs_law
from burgersgd.theory.langevin import (
    langevin_paths,
    minibatch_paths,
    minibatch_temperature,
)
from burgersgd.theory.local_entropy import DOUBLE_WELL, Loss
from burgersgd.theory.paths import averaged, end_of_walk, normals
from tests import reference
from tests.optimizers.driver import assert_fails

M = 20_000
A, NU, LR = 2.0, 0.3, 0.1
BOWL = Loss(lambda y: A * y**2 / 2, lambda y: A * y)


# Paths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", ["em", "leimkuhler_matthews"])
def test_a_path_is_the_sum_of_its_drift_and_its_noise(integrator: Any) -> None:
    """(5.4) with steps: a loop over one path, with the temperature of every step its own."""
    steps, paths, seed = 20, 3, 5
    temperatures = np.linspace(0.5, 0.1, steps)
    start = np.array([[0.3, -1.0], [1.0, 2.0], [-2.0, 0.1]])
    found = langevin_paths(DOUBLE_WELL, start, temperatures, 0.03, steps, integrator=integrator, seed=seed)
    xi = normals(seed, paths, 2)
    x = start
    for k in range(steps):
        z = xi(k + 1).numpy()
        if integrator == "leimkuhler_matthews":
            z = (z + xi(k).numpy()) / 2
        x = x - 0.03 * DOUBLE_WELL.gradient(x) + math.sqrt(2 * temperatures[k] * 0.03) * z
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-13)


def test_paths_are_reproducible_and_seeds_differ() -> None:
    start = np.zeros((4, 1))
    first, again, other = (langevin_paths(BOWL, start, NU, LR, 5, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert (first != other).all()
    assert (start == 0).all()  # not overwritten


@pytest.mark.parametrize("lr", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("integrator", ["em", "leimkuhler_matthews"])
def test_frozen_x_leaves_the_fast_point_in_its_law(integrator: Any, lr: float) -> None:
    """On a quadratic Euler-Maruyama has the variance T / (k (1 - lr k / 2)), the other method that of the SDE."""
    x, gamma, nu, steps = np.array([0.9, -2.0]), 0.5, 0.2, round(9 / lr)
    rule = LocalEntropy(inner_steps=steps, averaging="last", integrator=integrator)
    y = end_of_walk(rule, np.tile(x, (M, 1)), BOWL.gradient, steps, seed=3, lr=lr, gamma=gamma, nu=nu).y.numpy()
    k = A + 1 / gamma

    def variance(T: float) -> float:
        return T / k / (1 - lr * k / 2 if integrator == "em" else 1)

    for i in range(2):
        assert abs(reference.z_mean(y[:, i], x[i] / (1 + A * gamma), variance(2 * nu))) < 6
        assert abs(reference.z_variance(y[:, i], variance(2 * nu))) < 6
        assert_fails(
            {name: reference.z_variance(y[:, i], variance(T)) for name, T in {"T = nu": nu, "4 nu": 4 * nu}.items()}
        )


# Invariant laws -----------------------------------------------------------------------------------------------------


def test_standard_error_of_a_variance_is_that_of_many_samples() -> None:
    """400 samples of the double well: their variances scatter as the law predicts."""
    law, rng, n = gibbs_law(DOUBLE_WELL.value, 0.4), np.random.default_rng(4), 500
    grid = np.linspace(-2.5, 2.5, 4001)
    samples = np.interp(rng.uniform(size=(400, n)), law.cdf(grid), grid)
    scores = (samples.var(axis=1, ddof=1) - float(law.variance())) / law.variance_error(n)
    assert abs(np.std(scores) - 1) < 6 / math.sqrt(2 * 400)
    assert abs(np.mean(scores)) < 6 / math.sqrt(400)


# Mini-batch noise ---------------------------------------------------------------------------------------------------


def test_minibatches_of_sgd_are_drawn_independently_for_each_step_and_path() -> None:
    """MATH 2, (2.14)-(2.15): variance 0.00439, not 0.25 as nu = nu_mb would have it."""
    a, d, trace, lr, paths = 1.4, 4, 0.7, 0.1, 8000
    x = minibatch_paths(curvature=a, d=d, trace=trace, lr=lr, batch_size=5, samples=40, steps=120, paths=paths, seed=2)
    variance = lr * trace / d / (a * (2 - lr * a))
    assert abs(reference.z_variance(x.ravel(), variance)) < 6
    assert_fails(
        {
            "nu = nu_mb": reference.z_variance(x.ravel(), trace / 2 / a),
            "T = lr tr S / d": reference.z_variance(x.ravel(), 2 * variance),
            "T of all d": reference.z_variance(x.ravel(), d * variance),
        }
    )
    assert minibatch_temperature(trace, lr, d) == lr * trace / (2 * d)
    assert abs(minibatch_temperature(trace, lr, d) / a / variance - (1 - lr * a / 2)) < 1e-12  # as lr -> 0 the same


# Annealing ----------------------------------------------------------------------------------------------------------


def test_annealed_variance_on_a_quadratic_follows_its_recursion() -> None:
    steps = 80
    temperatures = np.geomspace(1.0, 0.01, steps)
    x = langevin_paths(BOWL, np.zeros((M, 1)), temperatures, LR, steps, seed=6)[:, 0]
    variance = 0.0
    for T in temperatures:
        variance = (1 - LR * A) ** 2 * variance + 2 * T * LR
    assert abs(reference.z_variance(x, variance)) < 6
    assert_fails(
        {
            "law at the last temperature": reference.z_variance(x, 2 * 0.01 * LR / (1 - (1 - LR * A) ** 2)),
            "law at the first": reference.z_variance(x, 2 * LR / (1 - (1 - LR * A) ** 2)),
        }
    )


# Normal numbers -----------------------------------------------------------------------------------------------------


def test_averaged_noise_is_the_mean_of_neighbours_and_antithetic_noise_its_own_negative() -> None:
    xi, z = normals(3, 5, 2), averaged(normals(3, 5, 2))
    z(0)
    for k in (1, 2, 3):
        np.testing.assert_array_equal(z(k).numpy(), (xi(k) + xi(k - 1)).numpy() / 2)
    pairs = normals(3, 6, 2, antithetic=True)(4)
    np.testing.assert_array_equal(pairs[:3].numpy(), -pairs[3:].numpy())
    assert pairs.unique().numel() == 12
