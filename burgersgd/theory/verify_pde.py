"""The checks of `burgersgd verify` for traffic flow and the solver of Burgers' equation: (3.1)-(3.13)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from burgersgd.theory import burgers, cole_hopf, traffic
from burgersgd.theory.quadrature import Array
from burgersgd.theory.verify_rows import (
    ROUNDING,
    STENCIL,
    Row,
    agrees,
    central,
    check,
    derivatives,
    experiment,
    fitted_slope,
    largest,
    misprint,
    within,
)

ROAD = traffic.Greenshields(rho_max=120.0, u_max=30.0)  # in any units; the numbers are away from 0 and 1
ROAD_NU = 2.5

SOLVE = "burgers.solve"
FLUX, SPEED, DENSITY, DERIVATIVE, SHOCK_SPEED, RIEMANN = (
    f"traffic.Greenshields.{name}"
    for name in ("flux", "characteristic_speed", "density", "density_derivative", "shock_speed", "riemann_solution")
)


# ------------------------------------------------------------------------------------------------------------- traffic


@check("traffic")
def model() -> Iterator[Row]:
    """Greenshields' road: speed, flux, its slope, the look-ahead term."""
    rho, h = np.linspace(0, ROAD.rho_max, 41), 1e-3
    speed, flux, w = ROAD.car_speed(rho), ROAD.flux(rho), ROAD.characteristic_speed(rho)
    slope = (ROAD.flux(rho + h) - ROAD.flux(rho - h)) / (2 * h)
    ahead = float(np.mean(ROAD.viscous_flux(rho, 0 * rho + 3.0, ROAD_NU) - flux))
    of_u, of_q = "traffic.Greenshields.car_speed", "traffic.Greenshields.viscous_flux"
    why = "exact for a parabola; rounding of Q / h"
    yield agrees("3.8", of_u, "speed on a half-full road", speed[20], 15.0, 1e-12, ROUNDING)
    yield agrees("3.5", FLUX, "Q - rho u", flux - rho * speed, 0, 1e-9, ROUNDING)
    yield agrees("3.4", FLUX, "capacity, Q at rho_m / 2, is rho_m u_m / 4", flux[20], 900, 1e-9, ROUNDING)
    yield agrees("3.9", f"{SPEED}, {FLUX}", "Q'(rho) - difference quotient", w - slope, 0, 1e-8, why)
    yield agrees("3.11", SPEED, "w on a half-full road", w[20], 0, 1e-12, ROUNDING)
    yield agrees("3.7", of_q, "q - Q at slope 3 is -3 nu", ahead, -3 * ROAD_NU, 1e-9, ROUNDING)


@check("traffic")
def density_and_speed() -> Iterator[Row]:
    """(3.11) and (3.12): density and characteristic speed are one variable; two misprints of (3.12)."""
    half, u_max = ROAD.rho_max / 2, ROAD.u_max

    def w(x: Array, t: float) -> Array:
        return cole_hopf.travelling_shock(x, t, ROAD_NU, 18.0, -24.0)

    x = np.linspace(-0.5, 0.5, 41)
    d, rho = (derivatives(f, x, 0.01, 2e-3) for f in (w, lambda x, t: half * (1 - w(x, t) / u_max)))
    printed = ROAD.rho_max / (2 * u_max) * (1 - d.value)
    back = [ROAD.characteristic_speed(r) - d.value for r in (ROAD.density(d.value), printed)]
    firsts = [largest(ROAD.density_derivative(a) - b) / largest(b) for a, b in ((d.x, rho.x), (d.t, rho.t))]
    second = [(sign * ROAD.density_derivative(d.xx) - rho.xx) / largest(rho.xx) for sign in (1, -1)]
    what = "rho -> w -> rho; printed rho = rho_m (1 - w) / (2 u_m)"
    first = "rho_x, rho_t + rho_m (w_x, w_t) / (2 u_m), relative"
    yield misprint("3.12", f"{DENSITY}, {SPEED}", what, back, 0, 1e-10, ROUNDING)
    yield agrees("3.12", DERIVATIVE, first, max(firsts), 0, 1e-9, ROUNDING)
    yield misprint("3.12", DERIVATIVE, "Lap rho from Lap w, relative; printed sign +", second, 0, 1e-9, ROUNDING)


@check("traffic")
def substitution() -> Iterator[Row]:
    """(3.12) in (3.10) gives (3.13): an exact solution of Burgers' equation solves the traffic model."""
    x = np.linspace(-0.8, 0.8, 81)
    d = derivatives(lambda x, t: cole_hopf.riemann(x, t, ROAD_NU, 18.0, -24.0), x, 0.1, 1e-3)
    in_w = largest(traffic.burgers_residual(*d, ROAD_NU)) / largest(d.t)
    rho = ROAD.density(d.value)
    rho_t, rho_x, rho_xx = (ROAD.density_derivative(v) for v in (d.t, d.x, d.xx))
    in_rho = [
        largest(ROAD.density_residual(rho, rho_t, rho_x, sign * rho_xx, ROAD_NU)) / largest(rho_t) for sign in (1, -1)
    ]
    t = 2.0  # a fan, w = x / t, solves the equation without nu
    fan_t, fan_x, fan_xx = (ROAD.density_derivative(v) for v in (-x / t**2, 1 / t + 0 * x, 0 * x))
    inviscid = ROAD.density_residual(ROAD.density(x / t), fan_t, fan_x, fan_xx, 0.0)
    of_w, of = "traffic.burgers_residual, cole_hopf.riemann", f"traffic.Greenshields.density_residual, {DERIVATIVE}"
    what = "residual in rho over max |rho_t|; printed sign of Lap rho"
    yield agrees("3.13", of_w, "residual w_t + w w_x - nu w_xx over max |w_t|", in_w, 0, 1e-6, STENCIL)
    yield misprint("3.10, 3.12", f"{of}, {DENSITY}", what, in_rho, 0, 1e-6, STENCIL)
    yield agrees("3.6", of, "residual of a fan, nu = 0", inviscid, 0, 1e-12, ROUNDING)


@check("traffic")
def red_light() -> Iterator[Row]:
    """Cars are conserved: the queue at a red light grows at the speed of Rankine and Hugoniot."""
    left, right = 0.4 * ROAD.rho_max, ROAD.rho_max
    cells, t = 2000, 0.05
    x, dx = burgers.cell_centers(cells, -2.0, 1.0), 3.0 / cells
    start = np.where(x < 0, left, right)
    found = burgers.solve(start, dx=dx, times=[t], nu=0.0, law=ROAD, boundary="inflow", inflow=(left, right))
    rho = found.values[-1]
    cars = float((rho - start).sum() * dx)
    lost = (cars - float(found.net_inflow[-1])) / cars
    behind = ROAD.cumulative_count(np.stack([start, rho]), dx, np.array([0, t]), 0.0, periodic=False)[1, -1]
    tail = -cars / (right - left) / t  # the jump has moved by that much per time
    over = max(float(rho.max()) - right, left - float(rho.min()), 0.0)
    spread = float(np.abs(rho - ROAD.riemann_solution(x, t, left, right, 0.0)).sum()) / (right - left)
    speed = ROAD.shock_speed(left, right)
    of_count = "traffic.Greenshields.cumulative_count"
    counted = "cars on the road less those that came in: the first ones"
    what, why = "L1 error against the entropy solution, over the jump times dx", "a captured shock is two cells wide"
    yield agrees("3.3", SOLVE, "cars gained - cars that came in, relative", lost, 0, 1e-11, ROUNDING)
    yield agrees("3.2, 3.3", f"{of_count}, {SOLVE}", counted, behind, start.sum() * dx, 1e-9, ROUNDING)
    yield agrees("3.6", f"{SOLVE}, {SHOCK_SPEED}", "speed of the tail of the queue", tail, speed, 1e-9, ROUNDING)
    yield agrees("3.2", SOLVE, "density leaves [rho_l, rho_r] by", over, 0, 1e-10, "maximum principle, rounding")
    yield agrees("3.4", f"{SOLVE}, {RIEMANN}", what, spread, 0, 2.0, why)


@check("traffic")
def green_light() -> Iterator[Row]:
    """The light turns green: half the maximal density stays at the light."""
    cells, t, nu, rho_max = 600, 0.02, ROAD_NU / 10, ROAD.rho_max
    x = burgers.cell_centers(cells, -1.5, 1.5)
    start = np.where(x < 0, rho_max, 0.0)
    rho = burgers.solve(start, dx=3.0 / cells, times=[t], nu=nu, law=ROAD, boundary="no_flux").values[-1]
    middle = float(rho[cells // 2 - 1] + rho[cells // 2]) / 2
    error = largest(rho - ROAD.riemann_solution(x, t, rho_max, 0.0, nu)) / rho_max
    of, what = f"{SOLVE}, {RIEMANN}", "largest error of the fan, over rho_m"
    tolerance = (3.0 / cells) ** 2 / (4 * nu * t)
    why = "second order: the square of a cell over the width of the jump, sqrt(4 nu t)"
    yield agrees("3.10", SOLVE, "density at the light, rho_m / 2", middle, rho_max / 2, 1e-9, "symmetry")
    yield agrees("3.10", of, what, error, 0, tolerance, why)


@check("traffic")
def density_solver_is_speed_solver() -> Iterator[Row]:
    """The solver in rho with Greenshields' flux and the solver in w with Burgers' flux give the same density."""
    cells, length, times = 512, 2.0, [0.05, 0.1]
    rho = ROAD.ring_density(burgers.cell_centers(cells, -1.0, 1.0), length)
    dx, w = length / cells, ROAD.characteristic_speed(rho)
    in_rho = burgers.solve(rho, dx=dx, times=times, nu=ROAD_NU / 10, law=ROAD).values
    in_w = burgers.solve(w, dx=dx, times=times, nu=ROAD_NU / 10).values
    difference = largest(in_rho - ROAD.density(in_w)) / largest(in_rho - rho)
    of = f"traffic.Greenshields.godunov, burgers.Burgers.godunov, {SOLVE}, {DENSITY}"
    what, why = "difference of the two densities, over the change in time", "the same scheme, up to rounding"
    yield agrees("3.10, 3.13", of, what, difference, 0, 1e-9, why)


# ------------------------------------------------------------------------------------------------------------- burgers

SINE_NU, SINE_TIME = 0.05, 0.5
SINE_CELLS = (64, 128, 256, 512)


@experiment
def sine_averages(cells: int) -> Array:
    """Return the cell averages of the exact solution that starts as -sin(pi x), at SINE_TIME."""
    return burgers.cell_averages(lambda x: cole_hopf.sine(x, SINE_TIME, SINE_NU), cells, -1.0, 1.0)


@experiment
def sine_errors(first_order: bool) -> list[float]:
    """Return the L1 errors of the solver on the grids SINE_CELLS, without reconstruction if first_order."""
    errors = []
    for cells in SINE_CELLS:
        start = burgers.cell_averages(lambda x: -np.sin(np.pi * x), cells, -1.0, 1.0)
        found = burgers.solve(start, dx=2 / cells, times=[SINE_TIME], nu=SINE_NU, first_order=first_order).values[-1]
        errors.append(float(np.abs(found - sine_averages(cells)).mean() * 2))
    return errors


@check("burgers")
def order_of_the_solver() -> Iterator[Row]:
    """Second order in L1 against the exact solution by Cole and Hopf, first order without reconstruction."""
    sizes, of = [2 / cells for cells in SINE_CELLS], f"{SOLVE}, cole_hopf.sine"
    second, first = sine_errors(False), sine_errors(True)
    slopes = [fitted_slope(sizes, errors) for errors in (second, first)]
    why = "a third of the error on 256 cells; second order: a quarter"
    yield within("3.13", of, "L1 order, van Leer, -sin(pi x)", slopes[0], 2, (1.8, 2.2), "next order is 1")
    yield within("3.13", of, "L1 order, no reconstruction", slopes[1], 1, (0.75, 1.25), "next order is 2")
    yield agrees("3.13", of, "L1 error on 512 cells", second[-1], 0, second[-2] / 3, why)


@check("burgers")
def invariants() -> Iterator[Row]:
    """Mass, maximum principle, total variation, energy."""
    cells = 1000
    x = burgers.cell_centers(cells, 0.0, 1.0)
    start = 0.3 + np.sin(2 * np.pi * x) + 0.4 * np.sin(6 * np.pi * x + 1)
    found = burgers.solve(start, dx=1 / cells, times=np.linspace(0.02, 0.4, 20), nu=5e-3).values
    path = np.vstack([start, found])
    variation = np.abs(np.diff(path, axis=1, append=path[:, :1])).sum(axis=1)
    energy = (path**2).sum(axis=1)
    outside = max(float(found.max() - start.max()), float(start.min() - found.min()), 0.0)
    lost = found.mean(axis=1) - start.mean()
    growth = [max(float(np.diff(v).max()), 0.0) for v in (variation, energy)]
    yield agrees("3.3", SOLVE, "mass lost in 20 output times", lost, 0, 1e-13, ROUNDING)
    yield agrees("3.1", SOLVE, "overshoot beyond the initial range", outside, 0, 1e-12, "maximum principle, rounding")
    yield agrees("3.1", SOLVE, "largest growth of total variation", growth[0], 0, 1e-11, ROUNDING)
    yield agrees("3.1", SOLVE, "largest growth of the energy", growth[1], 0, 1e-11, ROUNDING)


@check("burgers")
def travelling_shock() -> Iterator[Row]:
    """A viscous shock keeps its tanh profile and its speed."""
    nu, left, right, t = 0.05, 1.2, -0.3, 1.0
    errors, sizes = [], []
    for cells in (200, 400):
        start, exact = (
            burgers.cell_averages(lambda x, t=t: cole_hopf.travelling_shock(x, t, nu, left, right), cells, -2.0, 3.0)
            for t in (0.0, t)
        )
        dx = 5.0 / cells
        found = burgers.solve(start, dx=dx, times=[t], nu=nu, boundary="inflow", inflow=(left, right)).values[-1]
        errors.append(float(np.abs(found - exact).sum() * dx))
        sizes.append(dx)
    of, slope = f"{SOLVE}, cole_hopf.travelling_shock", fitted_slope(sizes, errors)
    yield within("3.13", of, "L1 order on the tanh profile, time 1", slope, 2, (1.8, 2.3), "next order is 1")


@check("burgers")
def no_viscosity() -> Iterator[Row]:
    """The solver gives the entropy solution at nu = 0: a shock, and a fan instead of an upward jump."""
    cells = 800
    x = burgers.cell_centers(cells, -1.0, 1.0)
    dx, of, why = 2 / cells, f"{SOLVE}, cole_hopf.riemann", "2 cells times the jump"
    for left, right, what in ((1.2, -0.3, "shock"), (-0.6, 0.9, "fan")):
        start = np.where(x < 0, left, right)
        found = burgers.solve(start, dx=dx, times=[0.5], nu=0.0, boundary="no_flux").values[-1]
        error = float(np.abs(found - cole_hopf.riemann(x, 0.5, 0.0, left, right)).sum() * dx)
        yield agrees("3.1", of, f"L1 error of the {what}, nu = 0", error, 0, 2 * dx * abs(left - right), why)


@check("burgers")
def reaches_small_viscosity() -> Iterator[Row]:
    """The steepest slope of the sine wave at nu = 0.01 / pi agrees with a published number."""
    nu, t, known = 0.01 / math.pi, 1.6037 / math.pi, 152.00516
    slope = -central(lambda x: cole_hopf.sine(x, t, nu), 1e-4)
    cells = 4096
    start = burgers.cell_averages(lambda x: -np.sin(np.pi * x), cells, -1.0, 1.0)
    solver = -float(np.diff(burgers.solve(start, dx=2 / cells, times=[t], nu=nu).values[-1]).min()) * cells / 2
    what, why = "the same by the solver, 4096 cells", "second order: 152 (dx / width)^2 = 0.2, the width is 26 dx"
    yield agrees("4.16", "cole_hopf.sine", "steepest slope (published)", slope, known, 1e-3, "h^4 w_5x / 30 = 5e-4")
    yield agrees("3.13", SOLVE, what, solver, known, 0.25, why)
