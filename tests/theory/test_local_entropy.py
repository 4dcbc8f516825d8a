"""The local entropy: reference values, finite differences, closed forms, limits, and the estimator of training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy import ndarray
from scipy.integrate import quad
from scipy.stats import norm

from burgersgd.theory.local_entropy import (
    DOUBLE_WELL,
    RIPPLE,
    Loss,
    fast_law,
    gaussian_mixture,
    gaussian_mixture_loss,
    local_entropy,
    monte_carlo,
    moreau,
    quadratic,
    rastrigin,
    rastrigin_loss,
)
from burgersgd.theory.paths import standard_error
from tests import reference
from tests.optimizers.driver import assert_fails

RNG = np.random.default_rng(11)
WEIGHTS, MEANS = [0.3, 0.7, 0.2], RNG.normal(size=(3, 2))
ROOTS = RNG.normal(size=(3, 2, 2))
COVARIANCES = ROOTS @ ROOTS.transpose(0, 2, 1) + 0.2 * np.eye(2)
POINTS = RNG.normal(size=(3, 2))
CURVATURE, CENTER = np.array([[1.5, 0.6], [0.6, 0.4]]), np.array([0.7, -0.3])


def bowl(y: ndarray) -> ndarray:
    return np.einsum("...i,ij,...j->...", y - CENTER, CURVATURE, y - CENTER) / 2


# Quadrature ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nu", [1.0, 0.05, 0.003])
def test_quadrature_agrees_with_scipy(nu: float) -> None:
    x, gamma = 0.35, 0.6
    at = local_entropy(RIPPLE, x, gamma, nu)
    low, high = float(at.mean) - 12 * math.sqrt(at.covariance), float(at.mean) + 12 * math.sqrt(at.covariance)

    def weight(y: float) -> float:
        return math.exp(-(float(RIPPLE.value(np.array(y))) - 0.2) / (2 * nu) - (y - x) ** 2 / (4 * nu * gamma))

    total = quad(weight, low, high, epsabs=0, epsrel=1e-12, limit=400)[0]
    mean = quad(lambda y: y * weight(y), low, high, epsabs=0, epsrel=1e-12, limit=400)[0] / total
    assert abs(at.value - (0.2 - 2 * nu * math.log(total / math.sqrt(4 * math.pi * nu * gamma)))) < 1e-11
    assert abs(at.mean - mean) < 1e-11


@pytest.mark.parametrize("nu", [1e-1, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("offset", [0.0, -3.0, 40.0])
def test_quadrature_finds_the_law_wherever_it_is(nu: float, offset: float) -> None:
    a, gamma, x = 40.0, 3.0, 0.4
    at = local_entropy(lambda y: a * (y - offset) ** 2 / 2, x, gamma, nu)
    exact = quadratic([[x]], [[a]], [offset], gamma, nu)
    lost = 1e-15 * float(exact.value[0]) / nu  # digits of exp(-G / 2 nu) that rounding of G costs
    np.testing.assert_allclose(at.value, exact.value[0], rtol=1e-12)
    np.testing.assert_allclose(at.mean, exact.mean[0, 0], rtol=1e-14, atol=lost * math.sqrt(at.covariance))
    np.testing.assert_allclose(at.covariance, exact.covariance[0, 0, 0], rtol=1e-10 + lost)


def test_quadrature_in_two_dimensions_is_the_closed_form() -> None:
    mixture = gaussian_mixture_loss(WEIGHTS, MEANS, COVARIANCES, nu=0.1)
    for loss, exact in (
        (mixture, gaussian_mixture(POINTS, WEIGHTS, MEANS, COVARIANCES, gamma=0.5, nu=0.1)),
        (Loss(bowl, lambda y: (y - CENTER) @ CURVATURE), quadratic(POINTS, CURVATURE, CENTER, gamma=0.5, nu=0.1)),
    ):
        at = local_entropy(loss, POINTS, gamma=0.5, nu=0.1)
        for name in ("value", "mean", "gradient", "covariance", "hessian"):
            np.testing.assert_allclose(getattr(at, name), getattr(exact, name), rtol=0, atol=1e-12, err_msg=name)
    assert at.mean_gradient is not None  # of the last loss: the other form of (4.20)
    np.testing.assert_allclose(at.mean_gradient, at.gradient, rtol=0, atol=1e-12)


def test_derivatives_in_two_dimensions_are_those_of_finite_differences() -> None:
    gamma, nu, h = 0.5, 0.1, 1e-4
    loss = gaussian_mixture_loss(WEIGHTS, MEANS, COVARIANCES, nu)
    at = local_entropy(loss, POINTS, gamma, nu)
    for i, shift in enumerate(h * np.eye(2)):
        ahead, behind = (local_entropy(loss, POINTS + side * shift, gamma, nu) for side in (1, -1))
        np.testing.assert_allclose(at.gradient[:, i], (ahead.value - behind.value) / (2 * h), rtol=0, atol=3e-7)
        np.testing.assert_allclose(at.hessian[:, i], (ahead.gradient - behind.gradient) / (2 * h), rtol=0, atol=3e-7)
    assert np.abs(at.gradient).min() > 1e-3  # so that the printed sign of (4.20) would have failed


def test_hessian_lies_within_its_bounds() -> None:
    x = np.linspace(-3, 3, 61)
    low, high = -0.8, 2.8  # F'' of the ripple, 1 - 1.8 cos 2y
    for gamma in (0.1, 0.5, 1.0, 5.0):
        hessian = local_entropy(RIPPLE.value, x, gamma, nu=0.05).hessian
        assert hessian.max() <= high / (1 + gamma * high) + 1e-12 < 1 / gamma
        if gamma * -low < 1:
            assert hessian.min() >= low / (1 + gamma * low) - 1e-12
    assert hessian.max() > 0.9 / (5.0 + 1 / high)  # not vacuous


# Limit nu -> 0 ------------------------------------------------------------------------------------------------------


def test_moreau_envelopes_known_in_closed_form() -> None:
    x = np.array([-2.0, -0.2, 0.1, 3.0])
    huber = moreau(np.abs, x, gamma=0.5)
    np.testing.assert_allclose(huber.prox, np.sign(x) * np.maximum(np.abs(x) - 0.5, 0), atol=1e-8)
    np.testing.assert_allclose(huber.value, np.where(np.abs(x) > 0.5, np.abs(x) - 0.25, x**2), atol=1e-8)
    bowl = moreau(lambda y: 0.75 * (y - 0.7) ** 2, x, gamma=0.5)
    np.testing.assert_allclose(bowl.prox, (x + 0.525) / 1.75, atol=1e-8)
    np.testing.assert_allclose(bowl.value, 0.75 / 1.75 * (x - 0.7) ** 2, atol=1e-13)


def test_losses_may_overflow_far_away() -> None:
    def steep(y: ndarray) -> ndarray:
        return np.exp(y**2)

    limit = moreau(steep, 0.8, gamma=0.5)
    y = float(limit.prox)
    assert abs(2 * y * math.exp(y**2) - (0.8 - y) / 0.5) < 1e-6  # stationary
    assert abs(local_entropy(steep, 0.8, gamma=0.5, nu=1e-6).mean - y) < 1e-5


@pytest.mark.parametrize("gamma", [0.05, 0.3, 5.0])
@pytest.mark.parametrize("tilt", [0.0, 0.5])
def test_moreau_envelope_of_two_wells_is_the_limit_of_the_local_entropy(gamma: float, tilt: float) -> None:
    """Against the least value on a fine grid; for small nu, F_gamma is nu log(1 + gamma F'') above it."""

    def loss(y: ndarray) -> ndarray:
        return DOUBLE_WELL.value(y) + tilt * y

    x, (y, spacing) = np.array([-1.7, -0.4, 0.2, 0.9]), np.linspace(-3, 3, 600_001, retstep=True)
    G = loss(y) + (x[:, None] - y) ** 2 / (2 * gamma)
    least, at = G.min(1), y[G.argmin(1)]
    found, curvature = moreau(loss, x, gamma), 12 * at**2 - 4
    np.testing.assert_allclose(found.prox, at, rtol=0, atol=spacing)
    np.testing.assert_allclose(found.value, least, rtol=0, atol=(curvature.max() + 1 / gamma) * spacing**2)
    for nu in (1e-3, 1e-4):
        gap = local_entropy(loss, x, gamma, nu).value - found.value
        np.testing.assert_allclose(
            gap, nu * np.log(1 + gamma * curvature), rtol=0, atol=10 * nu**2
        )  # 7.4 nu^2 is measured


# Closed forms -------------------------------------------------------------------------------------------------------


def test_quadratic_is_the_formula_of_one_direction() -> None:
    """F_gamma = a p (x - c)^2 / 2 + nu log(1 + a gamma), p = 1 / (1 + a gamma), in each of 30 directions."""
    a, c, x, gamma, nu = np.linspace(-0.9, 40, 30), RNG.normal(size=30), RNG.normal(size=(4, 30)), 0.8, 0.3
    rotation = np.linalg.qr(RNG.normal(size=(30, 30)))[0]
    at = quadratic(x @ rotation.T, (rotation * a) @ rotation.T, rotation @ c, gamma, nu)
    p = 1 / (1 + a * gamma)
    np.testing.assert_allclose(at.value, (a * p * (x - c) ** 2 / 2 - nu * np.log(p)).sum(1), rtol=1e-12)
    np.testing.assert_allclose(at.gradient @ rotation, a * p * (x - c), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(rotation.T @ at.hessian[0] @ rotation, np.diag(a * p), rtol=1e-9, atol=1e-10)


def test_mixture_of_one_gaussian_is_a_quadratic_in_any_dimension() -> None:
    d, nu, gamma = 6, 0.2, 0.7
    root = RNG.normal(size=(d, d))
    S, m, x = root @ root.T + np.eye(d), RNG.normal(size=d), RNG.normal(size=(5, d))
    mixture = gaussian_mixture(x, [1.0], [m], [S], gamma, nu)
    one = quadratic(x, 2 * nu * np.linalg.inv(S), m, gamma, nu)
    for name in ("value", "gradient", "hessian"):
        np.testing.assert_allclose(getattr(mixture, name), getattr(one, name), rtol=1e-9, atol=1e-11)


def test_rastrigin_series_is_the_quadrature() -> None:
    x = np.array([0.7, -0.2, 1.3, 0.0, -2.0])
    series = rastrigin(x, 1.0, 0.5, 3.0, gamma=0.4, nu=0.1)
    by_sum = local_entropy(rastrigin_loss(1.0, 0.5, 3.0), x, gamma=0.4, nu=0.1)
    for name in ("value", "mean", "gradient", "covariance", "hessian"):
        np.testing.assert_allclose(getattr(series, name), getattr(by_sum, name), rtol=0, atol=1e-11, err_msg=name)


def test_ripple_is_erased_once_diffusion_is_longer_than_its_wave() -> None:
    x, omega = np.linspace(-1, 1, 9), 4 * np.pi
    for gamma, erased in ((0.5, True), (1e-3, False)):  # omega^2 nu gamma = 16 and 0.03
        smooth = quadratic(x[:, None], [[1.0]], [0.0], gamma, nu=0.2).hessian[:, 0, 0]
        rippled = rastrigin(x, 1.0, 0.05, omega, gamma, nu=0.2).hessian
        assert (np.abs(rippled - smooth).max() < 1e-3) == erased


# The law ------------------------------------------------------------------------------------------------------------


def test_law_is_a_probability_with_the_distribution_function_of_scipy() -> None:
    a, gamma, nu, x = 1.5, 0.5, 0.2, 0.9
    law = fast_law(lambda y: a * y**2 / 2, x, gamma, nu)
    m, sd = x / (1 + a * gamma), math.sqrt(2 * nu * gamma / (1 + a * gamma))
    at = np.linspace(m - 4 * sd, m + 4 * sd, 50)
    np.testing.assert_allclose(law.cdf(at), norm.cdf(at, m, sd), atol=1e-13)
    np.testing.assert_allclose(law.density(at), norm.pdf(at, m, sd), atol=1e-12)
    np.testing.assert_allclose(law.cdf([-1e9, 1e9]), [0, 1], atol=1e-14)
    assert abs(law.expectation(lambda y: y**4) - norm(m, sd).moment(4)) < 1e-12


def test_euler_bias_of_the_fast_mean_is_minus_eta_over_four_times_a_covariance() -> None:
    """MATH 3A: E_eta y - E y = -(eta / 4) Cov(y, F''(y)) + O(eta^2)."""
    law = fast_law(DOUBLE_WELL.value, 0.4, 0.3, 0.1)

    def curvature(y: ndarray) -> ndarray:
        return 12 * y**2 - 4

    covariance = law.expectation(lambda y: y * curvature(y)) - law.mean() * law.expectation(curvature)
    assert abs(-0.02 / 4 * covariance + 0.003125) < 5e-7
    for eta in (0.02, 0.005):
        bias = reference.euler_mean(DOUBLE_WELL.gradient, 0.4, 0.3, 0.1, eta) - float(law.mean())
        assert abs(bias + eta / 4 * covariance) < 2 * eta**2


# The estimator of training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", ["em", "leimkuhler_matthews"])
def test_errors_of_the_estimate_are_those_of_the_path_mean(integrator: Any) -> None:
    """Quadratic in three dimensions: mean and standard error, by the exact moments of the chain (MATH 4)."""
    a, gamma, nu, lr, L, chains = np.array([0.5, 1.5, 4.0]), 0.5, 0.2, 0.1, 30, 8000
    x = np.array([[1.0, -2.0, 0.3], [0.0, 0.5, 4.0]])
    loss = Loss(lambda y: (a * y**2).sum(-1) / 2, lambda y: a * y)
    settings = {"lr": lr, "inner_steps": L, "burn_in": 90, "chains": chains, "integrator": integrator}
    estimate = monte_carlo(loss, x, gamma, nu, **settings, seed=2)
    kappa = a + 1 / gamma
    rho = 1 - lr * kappa

    def variance(T: float) -> ndarray:  # of gamma * (one chain's estimate); MATH 4
        V = 2 * T / (kappa * (2 - lr * kappa))
        return V / L * ((1 + rho) / (1 - rho) - 2 * rho * (1 - rho**L) / (L * (1 - rho) ** 2))

    exact = quadratic(x, np.diag(a), np.zeros(3), gamma, nu).gradient
    for form in estimate:
        assert (np.abs(form.mean(1) - exact) < 6 * standard_error(form, axis=1)).all()
    ratio = standard_error(estimate.gradients, axis=1) ** 2 * chains * gamma**2 / variance(2 * nu)
    if integrator == "em":
        assert (np.abs(ratio - 1) < 6 * math.sqrt(2 / chains)).all()
        assert_fails({"T = nu": float((ratio * variance(2 * nu) / variance(nu) - 1).min() / math.sqrt(2 / chains))})


def test_without_noise_the_estimate_is_the_deterministic_path() -> None:
    a, gamma, lr, L, b, x = 1.5, 0.5, 0.1, 7, 3, 1.9
    loss = Loss(lambda y: a * y**2 / 2, lambda y: a * y)
    estimate = monte_carlo(loss, [x], gamma, 0.0, lr=lr, inner_steps=L, burn_in=b, chains=1)
    rho, m = 1 - lr * (a + 1 / gamma), x / (1 + a * gamma)
    theta = rho ** (b + 1) * (1 - rho**L) / (L * (1 - rho))
    assert abs(estimate.gradients[0, 0, 0] - (x - m - theta * (x - m)) / gamma) < 1e-12
    assert abs(estimate.mean_gradients[0, 0, 0] - a * (m + theta / rho * (x - m))) < 1e-12
