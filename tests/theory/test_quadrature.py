"""The quadrature that every integral of the theory goes through, against closed forms and scipy's adaptive one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy import ndarray
from scipy.integrate import dblquad, quad

from burgersgd.theory.quadrature import cumulative, find_mass, integrate, panel_integrals

CENTERS = np.array([[-1.3], [0.2], [40.0]])


def wave(y: ndarray) -> ndarray:
    return 3 * y**2 + 2 * np.cos(5 * y) + 0.4 * y


def test_panels_are_exact_up_to_degree_31() -> None:
    edges = np.array([-1.1, -0.2, 0.5, 1.3])
    coefficients = np.random.default_rng(2).normal(size=32)
    exact = np.diff(np.polynomial.Polynomial(coefficients).integ()(edges))
    np.testing.assert_allclose(panel_integrals(np.polynomial.Polynomial(coefficients), edges), exact, rtol=1e-12)
    to = np.array([-1.1, -0.7, 0.5, 1.2])
    known = [quad(np.exp, -1.1, y, epsabs=1e-14)[0] for y in to]
    np.testing.assert_allclose(cumulative(np.exp, edges)(to), known, atol=1e-14)


def test_rows_are_integrals_of_their_own_however_different() -> None:
    """exp(-wave / T) about a centre each, T from wide to narrow: log Z, the mean and the variance of each."""
    temperatures = np.array([7.0, 0.3, 2e-3])

    def exponent(rows: ndarray, z: ndarray) -> ndarray:
        return -wave(CENTERS[rows] + z[..., 0]) / temperatures[rows, None]

    def moments(rows: ndarray, z: ndarray) -> ndarray:
        y = CENTERS[rows] + z[..., 0]
        return np.stack([y, y**2], axis=-1)

    low, high = find_mass(exponent, CENTERS)
    log_z, means = integrate(exponent, moments, low, high)
    for T, found, (mean, square) in zip(temperatures, log_z, means, strict=True):
        y = np.linspace(-9, 9, 1_000_001)  # the trapezoidal rule, exact for what decays before its ends
        least = wave(y).min()
        weight = np.exp(-(wave(y) - least) / T)
        Z = weight.sum()
        assert abs(found - (math.log(Z * 18e-6) - least / T)) < 1e-11 + 1e-13 * abs(least) / T
        np.testing.assert_allclose([mean, square], [weight @ y / Z, weight @ y**2 / Z], rtol=0, atol=1e-11)


def test_tensor_product_of_a_correlated_law_is_that_of_scipy() -> None:
    def potential(x: ndarray | float, y: ndarray | float) -> ndarray | float:
        return 2 * x**2 + y**4 / 2 - 1.2 * x * y + 0.3 * y + 0.8 * np.sin(3 * x + y)

    def exponent(_rows: ndarray, z: ndarray) -> ndarray:
        return -np.asarray(potential(z[..., 0], z[..., 1])) / 0.6

    low, high = find_mass(exponent, np.zeros((1, 2)))
    log_z, means = integrate(exponent, lambda _rows, z: z[..., 0] * z[..., 1] ** 2, low, high)

    def moment(k: int) -> float:
        return dblquad(
            lambda y, x: (x * y**2) ** k * math.exp(-float(potential(x, y)) / 0.6),
            -5, 5, -4, 4, epsabs=1e-11, epsrel=1e-11,
        )[0]  # fmt: skip

    Z = moment(0)
    assert abs(log_z[0] - math.log(Z)) < 1e-9
    assert abs(means[0] - moment(1) / Z) < 1e-9


def test_breakpoints_make_kinks_and_jumps_exact() -> None:
    """exp(-|y - 0.3| / 0.7) has the integral 1.4, its half on the right of 0.3 is given by a jump."""
    centers = np.array([[0.0], [1.0]])

    def exponent(rows: ndarray, z: ndarray) -> ndarray:
        return -np.abs(centers[rows] + z[..., 0] - 0.3) / 0.7

    def right(rows: ndarray, z: ndarray) -> ndarray:
        return np.where(centers[rows] + z[..., 0] > 0.3, 1.0, 0.0)

    low, high = find_mass(exponent, centers)
    log_z, share = integrate(exponent, right, low, high, 0.3 - centers)
    np.testing.assert_allclose(log_z, math.log(1.4), atol=1e-13)
    np.testing.assert_allclose(share, 0.5, atol=1e-13)


@pytest.mark.parametrize("distance", [0.0, 3.0, 900.0, 20_000.0])
def test_the_mass_is_found_far_away_and_its_box_is_narrow(distance: float) -> None:
    width = 1e-4

    def exponent(_rows: ndarray, z: ndarray) -> ndarray:
        return -(((z - [distance, -distance]) / width) ** 2).sum(-1) / 2

    low, high = find_mass(exponent, np.zeros((1, 2)))
    edge = math.sqrt(2 * 60) * width  # where the exponent is -60
    assert np.all(low[0] < np.array([distance, -distance]) - edge)
    assert np.all(high[0] > np.array([distance, -distance]) + edge)
    assert np.all(high - low < 4 * edge)
    log_z, mean = integrate(exponent, lambda _rows, z: z, low, high)
    rounding = 1e-15 * (distance / width) ** 2
    assert abs(log_z[0] - math.log(2 * math.pi * width**2)) < 1e-11 + rounding
    np.testing.assert_allclose(mean[0], [distance, -distance], rtol=1e-12, atol=1e-16)
