"""Cole-Hopf: exact solutions against reference values, against the equation they solve and against quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from burgersgd.theory import cole_hopf, traffic
from burgersgd.theory.verify_rows import derivatives

X = np.linspace(-1, 1, 41)


SOLUTIONS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "travelling_shock": lambda x, t, nu: cole_hopf.travelling_shock(x, t, nu, 1.2, -0.3, x0=0.1),
    "riemann shock": lambda x, t, nu: cole_hopf.riemann(x, t, nu, 1.2, -0.3),
    "riemann fan": lambda x, t, nu: cole_hopf.riemann(x, t, nu, -0.7, 1.0),
    "n_wave": lambda x, t, nu: cole_hopf.n_wave(x, t, nu, 3),
    "hump": lambda x, t, nu: cole_hopf.hump(x, t, nu, 1.3),
    "hump of negative mass": lambda x, t, nu: cole_hopf.hump(x, t, nu, -1.3),
    "sine": cole_hopf.sine,
    "quadrature": lambda x, t, nu: cole_hopf.w(x, t, nu, lambda y: np.cos(3 * y) + y * y / 4),
}


@pytest.mark.parametrize("name", list(SOLUTIONS))
def test_exact_solutions_solve_burgers_equation(name: str) -> None:
    nu = 0.1
    terms = derivatives(lambda x, t: SOLUTIONS[name](x, t, nu), X, 0.8, 4e-3)
    scale = np.max(np.abs(terms[1])) + np.max(np.abs(terms[0] * terms[2]))
    assert np.max(np.abs(traffic.burgers_residual(*terms, nu=nu))) < 1e-5 * scale
    assert np.max(np.abs(traffic.burgers_residual(*terms, nu=2 * nu))) > 0.02 * scale  # a wrong nu would show


def test_quadrature_agrees_with_scipy_at_one_point() -> None:
    x, t, nu = 0.4, 0.3, 0.1

    def loss(y: np.ndarray | float) -> Any:
        return (y * y - 1) ** 2

    def weight(y: float) -> float:
        return math.exp(-loss(y) / (2 * nu) - (x - y) ** 2 / (4 * nu * t))

    mass = quad(weight, -4, 4, epsabs=1e-14, limit=200)[0]
    mean = quad(lambda y: (x - y) / t * weight(y), -4, 4, epsabs=1e-14, limit=200)[0] / mass
    assert float(cole_hopf.w(x, t, nu, loss)) == pytest.approx(mean, abs=1e-12)
    assert mean == pytest.approx(-1.06368056393, abs=1e-10)  # reference value
    log_psi = math.log(mass / math.sqrt(4 * math.pi * nu * t))
    assert float(cole_hopf.log_psi(x, t, nu, loss)) == pytest.approx(log_psi, abs=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_heat_kernel_has_mass_one_in_d_dimensions(d: int) -> None:
    surface = {1: 2.0, 2: 2 * math.pi, 3: 4 * math.pi}[d]
    mass = quad(lambda r: surface * r ** (d - 1) * float(cole_hopf.heat_kernel(r, 0.7, 0.3, d=d)), 0, 20)[0]
    assert mass == pytest.approx(1, abs=1e-10)


def test_quadratic_loss_in_closed_form() -> None:
    a, c, t, nu = 1.7, 0.3, 0.6, 0.05
    p = 1 / (1 + a * t)

    def loss(y: np.ndarray) -> np.ndarray:
        return a / 2 * (y - c) ** 2

    np.testing.assert_allclose(cole_hopf.w(X, t, nu, loss), a * p * (X - c), atol=1e-13)
    expected = a * p * (X - c) ** 2 / 2 + nu * math.log(1 + a * t)
    np.testing.assert_allclose(cole_hopf.phi(X, t, nu, loss), expected, atol=1e-13)


@pytest.mark.parametrize("nu", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("t", [1e-6, 1e-2, 1.0, 10.0])
def test_quadrature_gives_the_exact_solutions_for_small_nu_and_short_and_long_times(nu: float, t: float) -> None:
    # exponents are of size 1 / nu, so that rounding leaves errors of 1e-16 / nu
    for left, right in ((1.2, -0.3), (-0.7, 1.0)):
        quadrature = cole_hopf.w_from_velocity(
            X, t, nu, lambda y, a=left, b=right: np.where(y < 0, a, b), max_speed=1.2, breakpoints=[0.0]
        )
        np.testing.assert_allclose(quadrature, cole_hopf.riemann(X, t, nu, left, right), atol=1e-15 / nu + 1e-12)
    means = cole_hopf.w(X, t, nu, lambda y: np.cos(np.pi * y) / np.pi)  # (4.20) in the form without slope
    np.testing.assert_allclose(means, cole_hopf.sine(X, t, nu), atol=1e-12)


def test_a_travelling_shock_and_a_hump_by_quadrature() -> None:
    nu, t = 0.02, 0.9
    shock = cole_hopf.w_from_velocity(
        X, t, nu, lambda y: cole_hopf.travelling_shock(y, 0, nu, 1, -0.4, x0=-0.2), max_speed=1
    )
    np.testing.assert_allclose(shock, cole_hopf.travelling_shock(X, t, nu, 1, -0.4, x0=-0.2), atol=1e-11)
    later = cole_hopf.w_from_velocity(X, t - 0.3, nu, lambda y: cole_hopf.hump(y, 0.3, nu, 0.8), max_speed=3)
    np.testing.assert_allclose(later, cole_hopf.hump(X, t, nu, 0.8), atol=1e-11)
    later = cole_hopf.w_from_velocity(X, t - 0.3, nu, lambda y: cole_hopf.n_wave(y, 0.3, nu, 2), max_speed=3)
    np.testing.assert_allclose(later, cole_hopf.n_wave(X, t, nu, 2), atol=1e-11)


@pytest.mark.parametrize("nu", [1e-4, 0.3])
def test_mass_of_hump_and_end_states_of_riemann(nu: float) -> None:
    x, dx = np.linspace(-12, 14, 20001, retstep=True)
    assert np.sum(cole_hopf.hump(x, 0.5, nu, 0.7)) * dx == pytest.approx(
        0.7, abs=1e-3 * 0.7
    )  # rectangles across a shock
    ends = cole_hopf.riemann([-50.0, 50.0], 2, nu, 1.2, -0.3)
    np.testing.assert_allclose(ends, [1.2, -0.3], atol=1e-15)


def test_a_far_well_is_found() -> None:
    # around x the loss is flat; the mass sits in a well five spreads away
    def loss(y: np.ndarray) -> np.ndarray:
        return -40 * np.exp(-(((y - 2.3) / 0.3) ** 2))

    y = np.linspace(-4, 8, 200001)
    exponent = -(loss(y) + y * y / 2) / 0.2
    weight = np.exp(exponent - exponent.max())
    assert float(cole_hopf.w(0.0, 1.0, 0.1, loss)) == pytest.approx(-np.sum(weight * y) / np.sum(weight), abs=1e-9)


@pytest.mark.parametrize("curvature", [1e4, 1e6])
def test_two_wells_much_narrower_than_the_kernel_are_both_kept(curvature: float) -> None:
    # each well is Gaussian: psi is a sum of two heat kernels of variance 2 nu (t + 1 / curvature)
    nu, t, wells = 0.01, 1.0, np.array([-0.93, 1.07])

    def loss(y: np.ndarray) -> np.ndarray:
        return curvature / 2 * np.minimum((y - wells[0]) ** 2, (y - wells[1]) ** 2)

    later, distance = t + 1 / curvature, X[:, None] - wells
    weight = np.exp(-(distance**2) / (4 * nu * later))
    expected = np.sum(weight * distance / later, axis=1) / np.sum(weight, axis=1)
    np.testing.assert_allclose(cole_hopf.w(X, t, nu, loss), expected, atol=1e-9)


def test_shapes_follow_x() -> None:
    assert np.shape(cole_hopf.sine(0.2, 0.5, 0.1)) == ()
    grid = np.linspace(-1, 1, 6).reshape(2, 3)
    assert cole_hopf.phi(grid, 0.5, 0.1, lambda y: y * y).shape == (2, 3)
    np.testing.assert_array_equal(cole_hopf.sine(grid, 0.5, 0.1).ravel(), cole_hopf.sine(grid.ravel(), 0.5, 0.1))
