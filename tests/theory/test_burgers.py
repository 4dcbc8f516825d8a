"""The finite-volume solver: orders, conservation, maximum principle, entropy, and both forms of the traffic model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.linalg import expm

from burgersgd.theory import burgers, cole_hopf
from burgersgd.theory.burgers import BURGERS, BurgersWarning, cell_averages, solve
from burgersgd.theory.traffic import Greenshields

Profile = Callable[[np.ndarray], np.ndarray]
ROAD = Greenshields(120.0, 1.7)


def sine(y: np.ndarray) -> np.ndarray:
    return -np.sin(np.pi * y)


def quiet(*args: Any, **options: Any) -> burgers.Solution:
    """Solve on a grid that is too coarse on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BurgersWarning)
        return solve(*args, **options)


def rough(cells: int, seed: int = 0) -> np.ndarray:
    """Return cell averages with jumps everywhere, in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, cells)


# --------------------------------------------------------------------------------------------------------------- orders


def jump(t: float, left: float, right: float) -> Profile:
    return lambda y: cole_hopf.riemann(y, t, 0.05, left, right)


def red_light(t: float) -> Profile:
    return lambda y: ROAD.riemann_solution(y, t, 48, 120, 0.1)


PROBLEMS: dict[str, tuple[float, Profile, Profile, dict[str, Any]]] = {
    "jump": (2, jump(0, 1, -0.4), jump(0.5, 1, -0.4), {"nu": 0.05}),
    "fan": (2, jump(0.1, -0.4, 1), jump(0.6, -0.4, 1), {"nu": 0.05, "inflow": (-0.4, 1.0)}),
    "red light": (3, red_light(0.1), red_light(0.6), {"nu": 0.1, "inflow": (48.0, 120.0), "law": ROAD}),
}
"""Half the width of the domain, the solution at the beginning and 0.5 later, and how it is solved."""


@pytest.mark.parametrize("problem", PROBLEMS)
def test_second_order_in_l1_on_resolved_solutions(problem: str) -> None:
    half, start, end, options = PROBLEMS[problem]
    errors = []
    for cells in (256, 512):
        initial, exact = (cell_averages(f, cells, -half, half, breakpoints=[0.0]) for f in (start, end))
        found = quiet(initial, dx=2 * half / cells, times=0.5, boundary="inflow", **options).values[0]
        errors.append(np.mean(np.abs(found - exact)))
    # dx <= nu / |dw| from 256 cells on; the next plausible order is 1; measured 1.9 to 2.1
    assert 1.8 < math.log2(errors[0] / errors[1]) < 2.2


def test_diffusion_of_slow_waves_is_exact() -> None:
    # with w tiny, convection is negligible and one step is the exact semigroup, whatever nu dt / dx^2 is
    cells, nu, t = 64, 3.0, 0.7
    dx = 2 / cells
    u = 1e-12 * rough(cells)
    for boundary in ("periodic", "no_flux"):
        laplacian = -2 * np.eye(cells) + np.eye(cells, k=1) + np.eye(cells, k=-1)
        if boundary == "periodic":
            laplacian[0, -1] = laplacian[-1, 0] = 1
        else:
            laplacian[0, 0] = laplacian[-1, -1] = -1
        exact = expm(nu * t * laplacian / dx**2) @ u
        np.testing.assert_allclose(solve(u, dx=dx, times=t, nu=nu, boundary=boundary).values[0], exact, atol=1e-22)


# ------------------------------------------------------------------------------------------- conservation and stability


@pytest.mark.parametrize("nu", [0.0, 1e-4, 0.05])
@pytest.mark.parametrize("law", [BURGERS, Greenshields(2.0, 1.7)])
@pytest.mark.parametrize("first_order", [False, True])
def test_mass_maxima_variation_and_energy(nu: float, law: burgers.Law, first_order: bool) -> None:
    u = 1 + rough(256)  # in [0, 2], also densities
    solution = quiet(u, dx=1 / 128, times=np.linspace(0, 2, 21), nu=nu, law=law, first_order=first_order)
    values, tolerance = solution.values, 1e-13 * 256  # rounding of sums
    assert np.max(np.abs(np.sum(values, axis=1) - np.sum(u))) < tolerance
    assert np.all(solution.net_inflow == 0)
    assert np.min(values) >= np.min(u) - 1e-13
    assert np.max(values) <= np.max(u) + 1e-13
    assert np.all(np.diff(np.sum(np.abs(np.diff(values, axis=1)), axis=1)) <= tolerance)
    assert np.all(np.diff(np.sum(values**2, axis=1)) <= tolerance)
    assert np.ptp(values[-1]) < 0.9 * np.ptp(u)  # something happened


@pytest.mark.parametrize("nu", [0.0, 0.02])
@pytest.mark.parametrize(("boundary", "inflow"), [("no_flux", None), ("inflow", None), ("inflow", (0.3, 1.7))])
def test_mass_changes_by_what_comes_in(
    nu: float, boundary: burgers.Boundary, inflow: tuple[float, float] | None
) -> None:
    u, dx = 1 + rough(256), 1 / 128
    solution = quiet(u, dx=dx, times=np.linspace(0, 2, 9), nu=nu, boundary=boundary, inflow=inflow)
    mass = np.sum(solution.values, axis=1) * dx
    np.testing.assert_allclose(mass, mass[0] + solution.net_inflow, atol=1e-13)
    assert np.ptp(mass) > 0.05


def test_the_state_that_comes_in_limits_the_time_step() -> None:
    solution = solve(np.zeros(64), dx=0.05, times=0.5, nu=0, boundary="inflow", inflow=(1.5, 0.0))
    assert solution.steps >= 1.5 * 0.5 / (0.5 * 0.05)  # a Courant number of 0.5 at most
    assert np.max(solution.values) <= 1.5 + 1e-13
    assert np.sum(solution.values) * 0.05 == pytest.approx(1.5**2 / 2 * 0.5, rel=1e-12)  # the flux of that state


def test_a_closed_road_keeps_its_cars_and_fills_from_the_end() -> None:
    u, dx = 0.5 + 0.3 * rough(128), 1 / 64
    law = Greenshields(1.0, 1.7)
    solution = quiet(u, dx=dx, times=[1, 20], nu=1e-3, law=law, boundary="inflow", inflow=(0, 1))
    np.testing.assert_allclose(np.sum(solution.values, axis=1), np.sum(u), rtol=1e-13)
    assert np.all(solution.net_inflow == 0)
    assert np.all(solution.values[-1, :48] < 0.1)
    assert np.all(solution.values[-1, -48:] > 0.9)
    assert np.max(solution.values) <= 1 + 1e-13


def test_two_solutions_approach_each_other() -> None:
    # L1 contraction holds for the monotone scheme (first order) with equal time steps
    u, v = rough(200), rough(200, seed=1)
    times = np.linspace(0, 1, 21)
    options: dict[str, Any] = {"dx": 0.01, "times": times, "nu": 1e-3, "first_order": True, "dt": 0.004}
    distance = np.sum(np.abs(quiet(u, **options).values - quiet(v, **options).values), axis=1)
    assert np.all(np.diff(distance) <= 1e-12)
    assert distance[-1] < 0.6 * distance[0]


def without_viscosity(x: np.ndarray, x0: float, t: float, left: float, right: float) -> np.ndarray:
    """Return the entropy solution of Burgers' equation that starts with a jump at x0: a shock or a fan."""
    if left > right:
        return np.where(x - x0 < (left + right) / 2 * t, left, right)
    return np.clip((x - x0) / t, left, right)


@pytest.mark.parametrize("boundary", ["periodic", "no_flux", "inflow"])
@pytest.mark.parametrize("law", [BURGERS, ROAD])
@pytest.mark.parametrize(("outside", "inside"), [(1.2, -0.3), (-1.0, 1.0), (0.4, 1.5), (-0.4, -1.5)])
def test_zero_viscosity_gives_the_entropy_solution(
    outside: float, inside: float, law: burgers.Law, boundary: burgers.Boundary
) -> None:
    """A block of another w on [-1, 1]: a shock and a fan that do not meet; an expansion shock would be of order 1."""
    errors, t = [], 0.6
    for cells in (100, 400):
        x, dx = burgers.cell_centers(cells, -2, 2), 4 / cells
        left, right = without_viscosity(x, -1, t, outside, inside), without_viscosity(x, 1, t, inside, outside)
        u = np.where(np.abs(x) < 1, inside, outside)
        if law is BURGERS:
            found = solve(u, dx=dx, times=t, nu=0, boundary=boundary).values[0]
        else:
            rho = ROAD.rho_max / 2 * (1 - u / ROAD.u_max)
            rho = solve(rho, dx=dx, times=t, nu=0, law=law, boundary=boundary).values[0]
            found = ROAD.u_max * (1 - 2 * rho / ROAD.rho_max)
        errors.append(float(np.sum(np.abs(found - np.where(x < 0, left, right))) * dx))
    assert errors[1] < 0.012
    assert errors[1] < 0.45 * errors[0]  # first order at jumps and kinks: 1/4, less logarithms


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_small_viscosity_is_stable_for_short_and_long_times(scale: float) -> None:
    u = cell_averages(sine, 256, -1, 1)
    values = quiet(u, dx=2 / 256, times=[1e-6, 0.3, 30], nu=1e-4).values
    assert np.all(np.abs(values) <= 1)
    np.testing.assert_allclose(values[0], u, atol=2e-5)  # hardly moved: |w_t| <= pi / 2 + nu pi^2, 1e-6 long
    np.testing.assert_allclose(values[2], -values[2][::-1], atol=1e-12)  # oddness is kept
    assert np.max(np.abs(values[2])) < 0.035  # decays like x / t
    # scales: w -> scale w, t -> t / scale, nu -> scale nu is a symmetry
    scaled = quiet(scale * u, dx=2 / 256, times=0.3 / scale, nu=scale * 1e-4).values
    np.testing.assert_allclose(scaled[0] / scale, quiet(u, dx=2 / 256, times=0.3, nu=1e-4).values[0], atol=1e-9)


def test_constant_data_stay_and_times_may_start_at_zero() -> None:
    for boundary in ("periodic", "no_flux", "inflow"):
        solution = solve(np.full(16, 0.7), dx=0.1, times=[0, 1, 2], nu=0.1, boundary=boundary)
        np.testing.assert_allclose(solution.values, 0.7, atol=1e-14)
        assert solution.values.shape == (3, 16)
    assert solve(np.zeros(16), dx=0.1, times=3, nu=0).steps == 1


def test_intermediate_times_do_not_matter_to_second_order() -> None:
    u, dx = cell_averages(sine, 256, -1, 1), 2 / 256
    straight = solve(u, dx=dx, times=0.4, nu=0.05).values[-1]
    stops = solve(u, dx=dx, times=np.linspace(0.05, 0.4, 8), nu=0.05).values[-1]
    assert np.max(np.abs(straight - stops)) < 3e-4  # as large as the error itself


def test_initial_data_are_not_touched() -> None:
    u = rough(64)
    before = u.copy()
    quiet(u, dx=0.1, times=1, nu=0.01, boundary="no_flux")
    np.testing.assert_array_equal(u, before)


# ------------------------------------------------------------------------------------------------------ grid and checks


def test_godunov_flux_against_its_definition() -> None:
    # min of f over [l, r] if l <= r, else max: by search on a fine grid
    law, rng = Greenshields(2.0, 1.7), np.random.default_rng(3)
    cases: list[tuple[burgers.Law, Profile, float, float]] = [
        (BURGERS, lambda w: w**2 / 2, -1.5, 1.5),
        (law, lambda rho: 1.7 * rho * (1 - rho / 2), 0.0, 2.0),
    ]
    for model, flux, low, high in cases:
        left, right = rng.uniform(low, high, 50), rng.uniform(low, high, 50)
        expected = []
        for a, b in zip(left, right, strict=True):
            f = flux(np.linspace(a, b, 20001))
            expected.append(np.min(f) if a <= b else np.max(f))
        np.testing.assert_allclose(model.godunov(left, right), expected, atol=1e-8)


def test_cell_averages_are_exact_for_polynomials_and_jumps() -> None:
    edges = np.linspace(-1, 3, 8)
    exact = np.diff(edges**6) / (6 * np.diff(edges))
    np.testing.assert_allclose(cell_averages(lambda y: y**5, 7, -1, 3), exact, rtol=1e-12)
    jump_inside = cell_averages(lambda y: np.where(y < 0.1, 1.0, 0.0), 4, -1, 1, breakpoints=[0.1])
    np.testing.assert_allclose(jump_inside, [1, 1, 0.2, 0], atol=1e-14)


def test_cell_peclet_number_is_that_of_the_strongest_possible_shock() -> None:
    assert burgers.cell_peclet([0, 1, 0.5, 2, -1], 0.1, 0.2) == pytest.approx(3 * 0.1 / 0.2)
    assert burgers.cell_peclet([0, 1, 2], 0.1, 0.2) == 0  # a fan
    assert burgers.cell_peclet([0, 1, 2], 0.1, 0.2, periodic=True) == pytest.approx(1)
    assert burgers.cell_peclet([2, 1], 0.1, 0) == math.inf
    assert burgers.cell_peclet([30, 120], 0.1, 0.5, law=ROAD) == pytest.approx(2 * 1.7 * 0.75 * 0.1 / 0.5)


def test_a_grid_too_coarse_for_nu_warns_and_names_the_cell_peclet_number() -> None:
    u = cell_averages(sine, 64, -1, 1)
    with pytest.warns(BurgersWarning, match=r"nu=0.001: the cell Peclet number \|dw\| dx / nu is 62") as caught:
        solve(u, dx=2 / 64, times=0.1, nu=1e-3)
    assert "\n" not in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(u, dx=2 / 64, times=0.1, nu=0.05)
        solve(u, dx=2 / 64, times=0.1, nu=0)  # sharp shocks are wanted
