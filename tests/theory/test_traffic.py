"""The traffic model against finite differences, conservation and the geometry of its fundamental diagram."""

from __future__ import annotations

import numpy as np
import pytest

from burgersgd.theory import burgers
from burgersgd.theory.traffic import Greenshields

ROAD = Greenshields(120.0, 1.7)  # away from 1, so that a forgotten factor shows


def test_conservation_law_is_the_divergence_of_the_viscous_flux() -> None:
    x, nu, h = np.linspace(-1, 1, 11), 0.3, 1e-4

    def q(y: np.ndarray) -> np.ndarray:
        return ROAD.viscous_flux(60 + 20 * np.sin(y), 20 * np.cos(y), nu)

    rho_t = -(q(x + h) - q(x - h)) / (2 * h)
    residual = ROAD.density_residual(60 + 20 * np.sin(x), rho_t, 20 * np.cos(x), -20 * np.sin(x), nu)
    np.testing.assert_allclose(residual, 0, atol=1e-6)  # h^2 times third derivatives of order 100


def test_shock_speed_is_the_slope_of_the_chord() -> None:
    left, right = 30.0, 100.0
    chord = (ROAD.flux(right) - ROAD.flux(left)) / (right - left)
    assert ROAD.shock_speed(left, right) == pytest.approx(float(chord), rel=1e-14)
    assert ROAD.shock_speed(48, 120) == pytest.approx(-1.7 * 48 / 120, rel=1e-14)  # the queue at a red light


def test_the_fan_of_a_green_light() -> None:
    x = np.linspace(-1.69, 1.69, 9)
    np.testing.assert_allclose(ROAD.riemann_solution(x, 1.0, 120, 0, 0), 60 * (1 - x / 1.7), rtol=1e-13)
    for t in (0.01, 1.0, 50.0):  # half the greatest density at the light
        assert float(ROAD.riemann_solution(0.0, t, 120, 0, 0.01)) == pytest.approx(60, abs=1e-12)


def test_small_viscosity_approaches_the_entropy_solution() -> None:
    x = np.linspace(-2, 2, 401)
    for left, right in ((48.0, 120.0), (120.0, 0.0), (100.0, 30.0)):
        limit = ROAD.riemann_solution(x, 0.9, left, right, 0)
        errors = [np.mean(np.abs(ROAD.riemann_solution(x, 0.9, left, right, nu) - limit)) for nu in (1e-2, 1e-4)]
        assert errors[1] < errors[0] / 5  # between nu (shocks, factor 100) and sqrt(nu) (fans, factor 10)


def test_initial_densities_lie_on_the_road() -> None:
    x = np.linspace(-2, 2, 1001)
    for rho in (ROAD.jam_density(x, 4), ROAD.ring_density(x, 4)):
        assert rho.min() >= 0
        assert rho.max() <= 120
    assert ROAD.ring_density(-2, 4) == pytest.approx(float(ROAD.ring_density(2, 4)))
    assert np.mean(ROAD.jam_density(x, 4)) == pytest.approx(120 * (0.2 + 0.7 * 0.25), abs=0.12)


@pytest.mark.parametrize("periodic", [True, False])
def test_cars_keep_their_order_and_move_at_flux_over_density(periodic: bool) -> None:
    cells, length, nu = 400, 4.0, 0.02
    dx, times = length / cells, np.linspace(0, 1, 201)
    rho0 = burgers.cell_averages(lambda y: ROAD.ring_density(y, length), cells, -2, 2)
    boundary = "periodic" if periodic else "no_flux"
    rho = burgers.solve(rho0, dx=dx, times=times, nu=nu, law=ROAD, boundary=boundary).values
    count = ROAD.cumulative_count(rho, dx, times, nu, periodic=periodic)
    np.testing.assert_allclose(np.diff(count, axis=1), rho * dx, atol=1e-12)
    q = ROAD.viscous_flux((rho[:, 1:] + rho[:, :-1]) / 2, np.diff(rho, axis=1) / dx, nu)
    passed = -np.gradient(count[:, 1:-1], times, axis=0)[1:-1]
    assert np.max(np.abs(passed - q[1:-1])) < 0.02 * np.max(q)  # second order in dx and in the interval between times
