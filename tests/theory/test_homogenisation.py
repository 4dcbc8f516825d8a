"""Homogenisation: the limit, orders at finite epsilon, ergodic averages, invariant measures, and mutants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from burgersgd.theory.homogenisation import (
    averaged_path,
    convergence_errors,
    fast_slow_paths,
    invariant_sample,
    quadratic_moments,
)
from burgersgd.theory.local_entropy import RIPPLE, Loss, fast_law
from burgersgd.theory.paths import averaged, normals
from burgersgd.theory.verify_rows import fitted_slope
from tests import reference
from tests.optimizers.driver import assert_fails

START, GAMMA, NU = 1.2, 0.5, 0.1
A, T = 1.5, 0.4
BOWL = Loss(lambda y: A * y**2 / 2, lambda y: A * y)
HALVES = (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)


# The limit ----------------------------------------------------------------------------------------------------------


def test_limit_on_a_quadratic_is_an_exponential() -> None:
    times = np.array([0.0, 0.3, 1.0, 4.0])
    expected = START * np.exp(-A * times / (1 + A * GAMMA))
    np.testing.assert_allclose(averaged_path(BOWL, START, GAMMA, 0.1, list(times)), expected, atol=1e-9)


# Finite epsilon -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", ["consistent", "printed"])
@pytest.mark.parametrize("integrator", ["em", "leimkuhler_matthews"])
def test_every_path_is_the_naive_sde(temperature: Any, integrator: Any) -> None:
    epsilon, lr, steps, paths, seed = 0.3, 0.04, 25, 4, 9
    duration = epsilon * lr * steps
    x, y = fast_slow_paths(
        RIPPLE,
        START,
        GAMMA,
        NU,
        epsilon,
        duration=duration,
        lr=lr,
        paths=paths,
        temperature=temperature,
        integrator=integrator,
        seed=seed,
    )
    noise = normals(seed, paths, antithetic=True)
    noise = averaged(noise) if integrator == "leimkuhler_matthews" else noise
    xi = np.stack([noise(k).numpy() for k in range(steps + 1)])
    for i in range(paths):
        naive = reference.paper_sde(
            x=np.array([START]),
            gradient=lambda k, at: reference.ripple_slope(at),
            xi=xi[:, i],
            lr=lambda fraction: lr,
            steps=steps,
            nu=NU,
            gamma=GAMMA,
            epsilon=epsilon,
            temperature=temperature,
        )
        np.testing.assert_allclose([x[i], y[i]], naive[-1, :, 0], rtol=0, atol=1e-12)


def test_euler_maruyama_loses_the_order() -> None:
    epsilons = (1 / 16, 1 / 32, 1 / 64)
    em = convergence_errors(RIPPLE, START, GAMMA, NU, epsilons, integrator="em")
    assert fitted_slope(epsilons, em.weak) < 0.5  # its bias in y, of order lr = 0.05, is a floor


def test_moments_of_paths_on_a_quadratic() -> None:
    """Against the exact moments of the SDE: at lr = 0.005 the steps' own error is below the sample's."""
    epsilon, paths = 0.2, 8000
    x, y = fast_slow_paths(BOWL, START, GAMMA, T / 2, epsilon, lr=0.005, paths=paths, seed=3)
    mean, covariance = quadratic_moments(A, GAMMA, T, epsilon, 1.0, (START, START))
    _, printed = quadratic_moments(A, GAMMA, T / 2, epsilon, 1.0, (START, START))
    own = np.sqrt(2 / (paths / 2 - 1))  # half of the paths are independent
    for sample, i in ((x, 0), (y, 1)):
        assert abs(sample.mean() - mean[i]) < 0.005  # antithetic: exact but for the step
        assert abs(sample.var() / covariance[i, i] - 1) < 6 * own
        assert_fails({"T = nu": float(sample.var() / printed[i, i] - 1) / own})
    correlation = np.mean((x - x.mean()) * (y - y.mean()))
    assert abs(correlation / covariance[0, 1] - 1) < 6 * own * 3


def test_quadratic_has_both_orders_exactly() -> None:
    """MATH 6: weak .986 -> 1.000, strong .467 -> .499, Var x / epsilon -> T (1 - exp(-2 a p S)) / (a (1 + a gamma))."""

    def slopes(epsilons: list[float]) -> tuple[float, float]:
        moments = [quadratic_moments(A, GAMMA, T, epsilon, 1.0) for epsilon in epsilons]
        weak = [abs(mean[0] - math.exp(-A / (1 + A * GAMMA))) for mean, _ in moments]
        strong = [math.hypot(w, math.sqrt(covariance[0, 0])) for w, (_, covariance) in zip(weak, moments, strict=True)]
        return fitted_slope(epsilons, weak), fitted_slope(epsilons, strong)

    coarse, fine = slopes(list(HALVES)), slopes([2.0**-k for k in range(10, 15)])
    assert abs(coarse[0] - 1) < 0.05
    assert abs(coarse[1] - 0.5) < 0.05
    assert abs(fine[0] - 1) < 1e-3
    assert abs(fine[1] - 0.5) < 1e-3
    p = 1 / (1 + A * GAMMA)
    limit = T * (1 - math.exp(-2 * A * p)) / (A * (1 + A * GAMMA))
    assert abs(quadratic_moments(A, GAMMA, T, 1e-5, 1.0)[1][0, 0] / 1e-5 / limit - 1) < 1e-4


def test_stationary_covariance_of_the_joint_sde() -> None:
    """MATH 4: Var x = Cov = epsilon T / (a (1 + a gamma + epsilon)), Var y = Var x (1 + a gamma / epsilon)."""
    epsilon = 0.1
    covariance = quadratic_moments(A, GAMMA, T, epsilon, 100.0)[1]
    variance = epsilon * T / (A * (1 + A * GAMMA + epsilon))
    assert round(variance, 7) == 0.0144144
    expected = variance * np.array([[1, 1], [1, 1 + A * GAMMA / epsilon]])
    np.testing.assert_allclose(covariance, expected, rtol=1e-12)


# The frozen fast point ----------------------------------------------------------------------------------------------


def test_printed_noise_samples_the_law_of_half_the_viscosity() -> None:
    sample = invariant_sample(RIPPLE, 0.4, GAMMA, NU, "printed", 20_000)
    laws = {nu: fast_law(RIPPLE.value, 0.4, GAMMA, nu) for nu in (NU / 2, NU / 4, NU)}
    fits = {nu: kstest(sample, law.cdf).pvalue for nu, law in laws.items()}
    scores = {
        nu: (sample.var(ddof=1) - float(law.variance())) / law.variance_error(len(sample)) for nu, law in laws.items()
    }
    assert fits.pop(NU / 2) > 1e-8
    assert abs(scores.pop(NU / 2)) < 6
    assert max(fits.values()) < 1e-30
    assert_fails({f"nu = {nu}": score for nu, score in scores.items()})
