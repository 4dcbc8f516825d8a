"""The checks of `burgersgd verify` for traffic flow and the solver of Burgers' equation: (3.1)-(3.13)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from burgersgd.theory import burgers, cole_hopf, traffic
from burgersgd.theory.langevin import fitted_slope
from burgersgd.theory.verify_rows import Row, agrees, check, experiment, misprint, within

Array = NDArray[np.float64]

ROAD = {"rho_max": 120.0, "u_max": 30.0}  # in any units; the numbers are away from 0 and 1
ROAD_NU = 2.5
ROUNDING = "rounding, float64"
STENCIL = "differences of 4th order"


class Derivatives(NamedTuple):
    """A function of x and t and its derivatives at some points."""

    value: Array
    t: Array
    x: Array
    xx: Array


def derivatives(f: Callable[[Array, float], Array], x: Array, t: float, h: float) -> Derivatives:
    """Return f, f_t, f_x, f_xx at (x, t) by central differences of fourth order with step h."""
    at = [f(x + k * h, t) for k in range(-2, 3)]
    later = [f(x, t + k * h) for k in (-2, -1, 1, 2)]
    return Derivatives(
        value=at[2],
        t=(later[0] - 8 * later[1] + 8 * later[2] - later[3]) / (12 * h),
        x=(at[0] - 8 * at[1] + 8 * at[3] - at[4]) / (12 * h),
        xx=(-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * h * h),
    )


def largest(values: Array) -> float:
    """Return max |values|."""
    return float(np.max(np.abs(values)))


# ------------------------------------------------------------------------------------------------------------- traffic


@check("traffic")
def model() -> list[Row]:
    """Greenshields' road: speed, flux, its slope, the look-ahead term."""
    rho = np.linspace(0, ROAD["rho_max"], 41)
    speed, flux, w = (f(rho, **ROAD) for f in (traffic.car_speed, traffic.flux, traffic.characteristic_speed))
    h = 1e-3
    slope = (traffic.flux(rho + h, **ROAD) - traffic.flux(rho - h, **ROAD)) / (2 * h)
    ahead = float(np.mean(traffic.viscous_flux(rho, 0 * rho + 3.0, ROAD_NU, **ROAD) - flux))
    of_flux, of_w = "traffic.flux", "traffic.characteristic_speed"
    why = "exact for a parabola; rounding of Q / h"
    return [
        agrees("3.8", "traffic.car_speed", "speed on a half-full road", float(speed[20]), 15.0, 1e-12, ROUNDING),
        agrees("3.5", of_flux, "Q - rho u", largest(flux - rho * speed), 0, 1e-9, ROUNDING),
        agrees("3.4", of_flux, "capacity, Q at rho_m / 2, is rho_m u_m / 4", float(flux[20]), 900, 1e-9, ROUNDING),
        agrees("3.9", f"{of_w}, {of_flux}", "Q'(rho) - difference quotient", largest(w - slope), 0, 1e-8, why),
        agrees("3.11", of_w, "w on a half-full road", float(w[20]), 0, 1e-12, ROUNDING),
        agrees("3.7", "traffic.viscous_flux", "q - Q at slope 3 is -3 nu", ahead, -3 * ROAD_NU, 1e-9, ROUNDING),
    ]


@check("traffic")
def density_and_speed() -> list[Row]:
    """(3.11) and (3.12): density and characteristic speed are one variable; two misprints of (3.12)."""
    rho_max, u_max = ROAD["rho_max"], ROAD["u_max"]

    def w(x: Array, t: float) -> Array:
        return cole_hopf.travelling_shock(x, t, ROAD_NU, 18.0, -24.0)

    x = np.linspace(-0.5, 0.5, 41)
    d = derivatives(w, x, 0.01, 2e-3)
    rho = derivatives(lambda x, t: rho_max / 2 * (1 - w(x, t) / u_max), x, 0.01, 2e-3)
    printed = rho_max / (2 * u_max) * (1 - d.value)
    of_w = "traffic.characteristic_speed"
    back, wrong = (
        largest(traffic.characteristic_speed(r, **ROAD) - d.value) for r in (traffic.density(d.value, **ROAD), printed)
    )
    first = [(d.x, rho.x), (d.t, rho.t)]
    firsts = max(largest(traffic.density_derivative(a, **ROAD) - b) / largest(b) for a, b in first)
    laplacian = traffic.density_derivative(d.xx, **ROAD)
    second, of = [largest(v - rho.xx) / largest(rho.xx) for v in (laplacian, -laplacian)], "traffic.density_derivative"
    what = "rho -> w -> rho; printed rho = rho_m (1 - w) / (2 u_m)"
    return [
        misprint("3.12", f"traffic.density, {of_w}", what, (back, wrong), 0, 1e-10, ROUNDING),
        agrees("3.12", of, "rho_x, rho_t + rho_m (w_x, w_t) / (2 u_m), relative", firsts, 0, 1e-9, ROUNDING),
        misprint("3.12", of, "Lap rho from Lap w, relative; printed sign +", second, 0, 1e-9, ROUNDING),
    ]


@check("traffic")
def substitution() -> list[Row]:
    """(3.12) in (3.10) gives (3.13): an exact solution of Burgers' equation solves the traffic model."""
    x = np.linspace(-0.8, 0.8, 81)
    d = derivatives(lambda x, t: cole_hopf.riemann(x, t, ROAD_NU, 18.0, -24.0), x, 0.1, 1e-3)
    in_w = largest(traffic.burgers_residual(*d, ROAD_NU)) / largest(d.t)
    rho = traffic.density(d.value, **ROAD)
    rho_t, rho_x, rho_xx = (traffic.density_derivative(v, **ROAD) for v in (d.t, d.x, d.xx))
    unit = largest(rho_t)
    in_rho, printed = (
        largest(traffic.density_residual(rho, rho_t, rho_x, xx, ROAD_NU, **ROAD)) / unit for xx in (rho_xx, -rho_xx)
    )
    t = 2.0  # a fan, w = x / t, solves the equation without nu
    fan_t, fan_x, fan_xx = (traffic.density_derivative(v, **ROAD) for v in (-x / t**2, 1 / t + 0 * x, 0 * x))
    fan = traffic.density(x / t, **ROAD)
    inviscid = largest(traffic.density_residual(fan, fan_t, fan_x, fan_xx, 0.0, **ROAD))
    of_w, of = "traffic.burgers_residual, cole_hopf.riemann", "traffic.density_residual, traffic.density_derivative"
    what = "residual in rho over max |rho_t|; printed sign of Lap rho"
    return [
        agrees("3.13", of_w, "residual w_t + w w_x - nu w_xx over max |w_t|", in_w, 0, 1e-6, STENCIL),
        misprint("3.10, 3.12", f"{of}, traffic.density", what, (in_rho, printed), 0, 1e-6, STENCIL),
        agrees("3.6", of, "residual of a fan, nu = 0", inviscid, 0, 1e-12, ROUNDING),
    ]


@check("traffic")
def red_light() -> list[Row]:
    """Cars are conserved: the queue at a red light grows at the speed of Rankine and Hugoniot."""
    left, right = 0.4 * ROAD["rho_max"], ROAD["rho_max"]
    cells, t = 2000, 0.05
    x = burgers.cell_centers(cells, -2.0, 1.0)
    dx = 3.0 / cells
    start = np.where(x < 0, left, right)
    law = burgers.Greenshields(**ROAD)
    found = burgers.solve(start, dx=dx, times=[t], nu=0.0, law=law, boundary="inflow", inflow=(left, right))
    rho = found.values[-1]
    cars = float((rho - start).sum() * dx)
    lost = (cars - float(found.net_inflow[-1])) / cars
    behind = traffic.cumulative_count(np.stack([start, rho]), dx, np.array([0, t]), 0.0, periodic=False, **ROAD)[1, -1]
    tail = -cars / (right - left) / t  # the jump has moved by that much per time
    over = max(float(rho.max()) - right, left - float(rho.min()), 0.0)
    exact = traffic.riemann_solution(x, t, left, right, 0.0, **ROAD)
    spread = float(np.abs(rho - exact).sum()) / (right - left)
    speed, of = traffic.shock_speed(left, right, **ROAD), "burgers.solve"
    counted = "cars on the road less those that came in: the first ones"
    what, why = "L1 error against the entropy solution, over the jump times dx", "a captured shock is two cells wide"
    return [
        agrees("3.3", of, "cars gained - cars that came in, relative", lost, 0, 1e-11, ROUNDING),
        agrees("3.2, 3.3", f"traffic.cumulative_count, {of}", counted, behind, start.sum() * dx, 1e-9, ROUNDING),
        agrees("3.6", f"{of}, traffic.shock_speed", "speed of the tail of the queue", tail, speed, 1e-9, ROUNDING),
        agrees("3.2", of, "density leaves [rho_l, rho_r] by", over, 0, 1e-10, "maximum principle, rounding"),
        agrees("3.4", f"{of}, traffic.riemann_solution", what, spread, 0, 2.0, why),
    ]


@check("traffic")
def green_light() -> list[Row]:
    """The light turns green: half the maximal density stays at the light."""
    cells, t, nu, rho_max = 600, 0.02, ROAD_NU / 10, ROAD["rho_max"]
    x = burgers.cell_centers(cells, -1.5, 1.5)
    start, law = np.where(x < 0, rho_max, 0.0), burgers.Greenshields(**ROAD)
    rho = burgers.solve(start, dx=3.0 / cells, times=[t], nu=nu, law=law, boundary="no_flux").values[-1]
    middle = float(rho[cells // 2 - 1] + rho[cells // 2]) / 2
    error = largest(rho - traffic.riemann_solution(x, t, rho_max, 0.0, nu, **ROAD)) / rho_max
    of = "burgers.solve, traffic.riemann_solution"
    why = "second order: the square of a cell over the width of the jump, sqrt(4 nu t)"
    tolerance = (3.0 / cells) ** 2 / (4 * nu * t)
    return [
        agrees("3.10", "burgers.solve", "density at the light, rho_m / 2", middle, rho_max / 2, 1e-9, "symmetry"),
        agrees("3.10", of, "largest error of the fan, over rho_m", error, 0, tolerance, why),
    ]


@check("traffic")
def density_solver_is_speed_solver() -> list[Row]:
    """The solver in rho with Greenshields' flux and the solver in w with Burgers' flux give the same density."""
    cells, length, times = 512, 2.0, [0.05, 0.1]
    rho = traffic.ring_density(burgers.cell_centers(cells, -1.0, 1.0), length, rho_max=ROAD["rho_max"])
    dx, w = length / cells, traffic.characteristic_speed(rho, **ROAD)
    in_rho = burgers.solve(rho, dx=dx, times=times, nu=ROAD_NU / 10, law=burgers.Greenshields(**ROAD)).values
    in_w = burgers.solve(w, dx=dx, times=times, nu=ROAD_NU / 10).values
    difference = largest(in_rho - traffic.density(in_w, **ROAD)) / largest(in_rho - rho)
    of = "burgers.Greenshields.godunov, burgers.Burgers.godunov, burgers.solve, traffic.density"
    what, why = "difference of the two densities, over the change in time", "the same scheme, up to rounding"
    return [agrees("3.10, 3.13", of, what, difference, 0, 1e-9, why)]


# ------------------------------------------------------------------------------------------------------------- burgers

SINE_NU, SINE_TIME = 0.05, 0.5
SINE_CELLS = (64, 128, 256, 512)


@experiment
def sine_averages(cells: int) -> Array:
    """Return the cell averages of the exact solution that starts as -sin(pi x), at SINE_TIME."""
    return burgers.cell_averages(lambda x: cole_hopf.sine(x, SINE_TIME, SINE_NU), cells, -1.0, 1.0)


@experiment
def sine_errors(limiter: burgers.Limiter) -> list[float]:
    """Return the L1 errors of the solver on the grids SINE_CELLS."""
    errors = []
    for cells in SINE_CELLS:
        start = burgers.cell_averages(lambda x: -np.sin(np.pi * x), cells, -1.0, 1.0)
        found = burgers.solve(start, dx=2 / cells, times=[SINE_TIME], nu=SINE_NU, limiter=limiter).values[-1]
        errors.append(float(np.abs(found - sine_averages(cells)).mean() * 2))
    return errors


@check("burgers")
def order_of_the_solver() -> list[Row]:
    """Second order in L1 against the exact solution by Cole and Hopf, first order without reconstruction."""
    sizes, of = [2 / cells for cells in SINE_CELLS], "burgers.solve, cole_hopf.sine"
    second, first = sine_errors("van_leer"), sine_errors("first_order")
    slopes = [fitted_slope(sizes, errors) for errors in (second, first)]
    why = "a third of the error on 256 cells; second order: a quarter"
    return [
        within("3.13", of, "L1 order, van Leer, -sin(pi x)", slopes[0], 2, (1.8, 2.2), "next order is 1"),
        within("3.13", of, "L1 order, no reconstruction", slopes[1], 1, (0.75, 1.25), "next order is 2"),
        agrees("3.13", of, "L1 error on 512 cells", second[-1], 0, second[-2] / 3, why),
    ]


@check("burgers")
def invariants() -> list[Row]:
    """Mass, maximum principle, total variation, energy."""
    cells = 1000
    x = burgers.cell_centers(cells, 0.0, 1.0)
    start = 0.3 + np.sin(2 * np.pi * x) + 0.4 * np.sin(6 * np.pi * x + 1)
    found = burgers.solve(start, dx=1 / cells, times=np.linspace(0.02, 0.4, 20), nu=5e-3).values
    path = np.vstack([start, found])
    variation = np.abs(np.diff(path, axis=1, append=path[:, :1])).sum(axis=1)
    energy, of = (path**2).sum(axis=1), "burgers.solve"
    outside = max(float(found.max() - start.max()), float(start.min() - found.min()), 0.0)
    lost = largest(found.mean(axis=1) - start.mean())
    growth = [max(float(np.diff(v).max()), 0.0) for v in (variation, energy)]
    return [
        agrees("3.3", of, "mass lost in 20 output times", lost, 0, 1e-13, ROUNDING),
        agrees("3.1", of, "overshoot beyond the initial range", outside, 0, 1e-12, "maximum principle, rounding"),
        agrees("3.1", of, "largest growth of total variation", growth[0], 0, 1e-11, ROUNDING),
        agrees("3.1", of, "largest growth of the energy", growth[1], 0, 1e-11, ROUNDING),
    ]


@check("burgers")
def travelling_shock() -> list[Row]:
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
    of, slope = "burgers.solve, cole_hopf.travelling_shock", fitted_slope(sizes, errors)
    return [within("3.13", of, "L1 order on the tanh profile, time 1", slope, 2, (1.8, 2.3), "next order is 1")]


@check("burgers")
def no_viscosity() -> list[Row]:
    """The solver gives the entropy solution at nu = 0: a shock, and a fan instead of an upward jump."""
    cells = 800
    x = burgers.cell_centers(cells, -1.0, 1.0)
    dx, of, why = 2 / cells, "burgers.solve, cole_hopf.riemann", "2 cells times the jump"
    rows = []
    for left, right, what in ((1.2, -0.3, "shock"), (-0.6, 0.9, "fan")):
        start = np.where(x < 0, left, right)
        found = burgers.solve(start, dx=dx, times=[0.5], nu=0.0, boundary="no_flux").values[-1]
        error = float(np.abs(found - cole_hopf.riemann(x, 0.5, 0.0, left, right)).sum() * dx)
        rows.append(agrees("3.1", of, f"L1 error of the {what}, nu = 0", error, 0, 2 * dx * abs(left - right), why))
    return rows


@check("burgers")
def reaches_small_viscosity() -> list[Row]:
    """The steepest slope of the sine wave at nu = 0.01 / pi agrees with a published number."""
    nu, t, known = 0.01 / math.pi, 1.6037 / math.pi, 152.00516
    h = 1e-4
    w = cole_hopf.sine(np.array([-2 * h, -h, h, 2 * h]), t, nu)
    slope = -float(w[0] - 8 * w[1] + 8 * w[2] - w[3]) / (12 * h)
    cells = 4096
    start = burgers.cell_averages(lambda x: -np.sin(np.pi * x), cells, -1.0, 1.0)
    solver = -float(np.diff(burgers.solve(start, dx=2 / cells, times=[t], nu=nu).values[-1]).min()) * cells / 2
    what, why = "the same by the solver, 4096 cells", "second order: 152 (dx / width)^2 = 0.2, the width is 26 dx"
    return [
        agrees("4.16", "cole_hopf.sine", "steepest slope (published)", slope, known, 1e-3, "h^4 w_5x / 30 = 5e-4"),
        agrees("3.13", "burgers.solve", what, solver, known, 0.25, why),
    ]
