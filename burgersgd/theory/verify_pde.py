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

ROAD = {"rho_max": 120.0, "u_max": 30.0}  # cars per km, m/s or what you like: away from 0 and 1
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
    speed, flux = traffic.car_speed(rho, **ROAD), traffic.flux(rho, **ROAD)
    h = 1e-3
    slope = (traffic.flux(rho + h, **ROAD) - traffic.flux(rho - h, **ROAD)) / (2 * h)
    ahead = traffic.viscous_flux(rho, 0 * rho + 3.0, ROAD_NU, **ROAD) - flux
    return [
        agrees("3.8", "speed on a half-full road is half the speed limit", float(speed[20]), 15.0, 1e-12, ROUNDING),
        agrees("3.5", "largest |Q - rho u|", largest(flux - rho * speed), 0, 1e-9, ROUNDING),
        agrees("3.4", "capacity, Q at rho_m / 2, is rho_m u_m / 4", float(flux[20]), 900, 1e-9, ROUNDING),
        agrees(
            "3.9",
            "largest |Q'(rho) - difference quotient of Q|",
            largest(traffic.characteristic_speed(rho, **ROAD) - slope),
            0,
            1e-8,
            "exact for a parabola; rounding of Q / h",
        ),
        agrees(
            "3.11", "w on a half-full road", float(traffic.characteristic_speed(rho, **ROAD)[20]), 0, 1e-12, ROUNDING
        ),
        agrees("3.7", "look-ahead: q - Q at slope 3 is -3 nu", float(np.mean(ahead)), -3 * ROAD_NU, 1e-9, ROUNDING),
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
    back = traffic.density(d.value, **ROAD)
    printed = rho_max / (2 * u_max) * (1 - d.value)
    xx = traffic.density_derivative(d.xx, **ROAD)
    scale = largest(rho.xx)
    rounds = [
        largest(traffic.characteristic_speed(back, **ROAD) - d.value),
        largest(traffic.characteristic_speed(printed, **ROAD) - d.value),
    ]
    signs = [largest(xx - rho.xx) / scale, largest(-xx - rho.xx) / scale]
    return [
        misprint(
            "3.12", "rho -> w -> rho; printed rho = rho_m (1 - w) / (2 u_m)", rounds[0], rounds[1], 0, 1e-10, ROUNDING
        ),
        agrees(
            "3.12",
            "largest |rho_x + rho_m w_x / (2 u_m)|, relative",
            largest(traffic.density_derivative(d.x, **ROAD) - rho.x) / largest(rho.x),
            0,
            1e-9,
            ROUNDING,
        ),
        agrees(
            "3.12",
            "largest |rho_t + rho_m w_t / (2 u_m)|, relative",
            largest(traffic.density_derivative(d.t, **ROAD) - rho.t) / largest(rho.t),
            0,
            1e-9,
            ROUNDING,
        ),
        misprint(
            "3.12", "error of Lap rho from Lap w, relative; printed sign +", signs[0], signs[1], 0, 1e-9, ROUNDING
        ),
    ]


@check("traffic")
def substitution() -> list[Row]:
    """(3.12) in (3.10) gives (3.13): an exact solution of Burgers' equation solves the traffic model."""

    def w(x: Array, t: float) -> Array:
        return cole_hopf.riemann(x, t, ROAD_NU, 18.0, -24.0)

    x = np.linspace(-0.8, 0.8, 81)
    d = derivatives(w, x, 0.1, 1e-3)
    scale = largest(d.t)
    in_w = traffic.burgers_residual(*d, ROAD_NU)
    rho = traffic.density(d.value, **ROAD)
    rho_t, rho_x, rho_xx = (traffic.density_derivative(v, **ROAD) for v in (d.t, d.x, d.xx))
    in_rho = traffic.density_residual(rho, rho_t, rho_x, rho_xx, ROAD_NU, **ROAD)
    printed = traffic.density_residual(rho, rho_t, rho_x, -rho_xx, ROAD_NU, **ROAD)
    inviscid = traffic.density_residual(rho, rho_t, rho_x, 0 * rho_xx, 0.0, **ROAD)
    unit = largest(rho_t)
    residuals = [largest(in_rho) / unit, largest(printed) / unit]
    return [
        agrees("3.13", "residual w_t + w w_x - nu w_xx over max |w_t|", largest(in_w) / scale, 0, 1e-6, STENCIL),
        agrees("3.10", "residual in rho over max |rho_t|", residuals[0], 0, 1e-6, STENCIL),
        misprint("3.12", "the same with its Lap rho; printed sign +", residuals[0], residuals[1], 0, 1e-6, STENCIL),
        agrees(
            "3.6",
            "without nu (3.6) is left with nu rho_xx, relative",
            largest(inviscid - ROAD_NU * rho_xx) / unit,
            0,
            1e-6,
            STENCIL,
        ),
    ]


@check("traffic")
def red_light() -> list[Row]:
    """Cars are conserved: the queue at a red light grows at the speed of Rankine and Hugoniot."""
    left, right = 0.4 * ROAD["rho_max"], ROAD["rho_max"]
    cells, t = 2000, 0.05
    x = burgers.cell_centers(cells, -2.0, 1.0)
    dx = 3.0 / cells
    law = burgers.Greenshields(**ROAD)
    start = traffic.riemann_solution(x, 0.0, left, right, 0.0, **ROAD)
    found = burgers.solve(start, dx=dx, times=[t], nu=0.0, law=law, boundary="inflow", inflow=(left, right))
    rho = found.values[-1]
    cars = float((rho - start).sum() * dx)
    speed = traffic.shock_speed(left, right, **ROAD)
    queue = -cars / (right - left) / t  # the jump has moved by that much per time
    exact = traffic.riemann_solution(x, t, left, right, 0.0, **ROAD)
    over = max(float(rho.max()) - right, left - float(rho.min()), 0.0)
    inflow = float(found.net_inflow[-1])
    return [
        agrees("3.3", "cars gained - cars that came in, relative", (cars - inflow) / inflow, 0, 1e-11, ROUNDING),
        agrees("3.6", "speed of the tail of the queue, -u_m rho_l / rho_m", queue, speed, 1e-9, "exact in the mean"),
        agrees("3.2", "density leaves [rho_l, rho_r] by", over, 0, 1e-10, "maximum principle, rounding"),
        agrees(
            "3.4",
            "L1 error against the entropy solution, over the jump times dx",
            float(np.abs(rho - exact).sum()) / (right - left),
            0,
            2.0,
            "a captured shock is one or two cells wide",
        ),
    ]


@check("traffic")
def green_light() -> list[Row]:
    """The light turns green: half the maximal density stays at the light."""
    cells, t, nu = 600, 0.02, ROAD_NU / 10
    x = burgers.cell_centers(cells, -1.5, 1.5)
    law = burgers.Greenshields(**ROAD)
    start = traffic.riemann_solution(x, 0.0, ROAD["rho_max"], 0.0, 0.0, **ROAD)
    rho = burgers.solve(start, dx=3.0 / cells, times=[t], nu=nu, law=law, boundary="no_flux").values[-1]
    exact = traffic.riemann_solution(x, t, ROAD["rho_max"], 0.0, nu, **ROAD)
    middle = float(rho[cells // 2 - 1] + rho[cells // 2]) / 2
    return [
        agrees("3.10", "density at the light, rho_m / 2", middle, ROAD["rho_max"] / 2, 1e-9, "symmetry, rounding"),
        agrees(
            "3.10",
            "largest error of the fan, over rho_m",
            largest(rho - exact) / ROAD["rho_max"],
            0,
            3e-3,
            "second order in dx where the jump was",
        ),
    ]


@check("traffic")
def density_solver_is_speed_solver() -> list[Row]:
    """The solver in rho with Greenshields' flux and the solver in w with Burgers' flux give one traffic."""
    cells, length, times = 512, 2.0, [0.05, 0.1]
    x = burgers.cell_centers(cells, -length / 2, length / 2)
    rho = traffic.ring_density(x, length, rho_max=ROAD["rho_max"])
    dx = length / cells
    in_rho = burgers.solve(rho, dx=dx, times=times, nu=ROAD_NU / 10, law=burgers.Greenshields(**ROAD)).values
    w = traffic.characteristic_speed(rho, **ROAD)
    in_w = burgers.solve(w, dx=dx, times=times, nu=ROAD_NU / 10).values
    difference = largest(in_rho - traffic.density(in_w, **ROAD)) / ROAD["rho_max"]
    moved = largest(in_rho - rho) / ROAD["rho_max"]
    return [
        agrees("3.13", "largest difference over rho_m", difference, 0, 1e-9, "the same scheme, up to rounding"),
        within("3.13", "and the density did move by, over rho_m", moved, 0.3, (0.05, 1), "or the row above is empty"),
    ]


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
    sizes = [2 / cells for cells in SINE_CELLS]
    second, first = sine_errors("van_leer"), sine_errors("first_order")
    return [
        within("3.13", "L1 order, van Leer, -sin(pi x)", fitted_slope(sizes, second), 2, (1.8, 2.2), "next order is 1"),
        within("3.13", "L1 order, no reconstruction", fitted_slope(sizes, first), 1, (0.75, 1.25), "next order is 2"),
        agrees("3.13", "L1 error on 512 cells", second[-1], 0, 1e-4, "second order: 4 times less than on 256"),
    ]


@check("burgers")
def invariants() -> list[Row]:
    """Mass, maximum principle, total variation, energy."""
    cells = 1000
    x = burgers.cell_centers(cells, 0.0, 1.0)
    start = 0.3 + np.sin(2 * np.pi * x) + 0.4 * np.sin(6 * np.pi * x + 1)
    found = burgers.solve(start, dx=1 / cells, times=np.linspace(0.02, 0.4, 20), nu=5e-3).values
    variation = np.abs(np.diff(found, axis=1, append=found[:, :1])).sum(axis=1)
    energy = (found**2).sum(axis=1)
    outside = max(float(found.max() - start.max()), float(start.min() - found.min()), 0.0)
    return [
        agrees("3.3", "mass lost in 20 output times", largest(found.mean(axis=1) - start.mean()), 0, 1e-13, ROUNDING),
        agrees("3.1", "overshoot beyond the initial range", outside, 0, 1e-12, "maximum principle, rounding"),
        agrees("3.1", "largest growth of total variation", max(float(np.diff(variation).max()), 0), 0, 1e-11, ROUNDING),
        agrees("3.1", "largest growth of the energy", max(float(np.diff(energy).max()), 0), 0, 1e-11, ROUNDING),
    ]


@check("burgers")
def travelling_shock() -> list[Row]:
    """A viscous shock keeps its tanh profile and its speed."""
    nu, left, right, t = 0.05, 1.2, -0.3, 1.0
    errors, sizes = [], []
    for cells in (200, 400):
        edges = (-2.0, 3.0)
        start = burgers.cell_averages(lambda x: cole_hopf.travelling_shock(x, 0.0, nu, left, right), cells, *edges)
        exact = burgers.cell_averages(lambda x: cole_hopf.travelling_shock(x, t, nu, left, right), cells, *edges)
        dx = 5.0 / cells
        found = burgers.solve(start, dx=dx, times=[t], nu=nu, boundary="inflow", inflow=(left, right)).values[-1]
        errors.append(float(np.abs(found - exact).sum() * dx))
        sizes.append(dx)
    why = "next order is 1"
    return [
        within("3.13", "L1 order on the tanh profile after time 1", fitted_slope(sizes, errors), 2, (1.8, 2.3), why)
    ]


@check("burgers")
def no_viscosity() -> list[Row]:
    """Nu = 0 gives the entropy solution: a shock, and a fan where a jump up could stay."""
    cells = 800
    x = burgers.cell_centers(cells, -1.0, 1.0)
    dx = 2 / cells
    rows = []
    for left, right, what in ((1.2, -0.3, "shock"), (-0.6, 0.9, "fan")):
        start = np.where(x < 0, left, right)
        found = burgers.solve(start, dx=dx, times=[0.5], nu=0.0, boundary="no_flux").values[-1]
        error = float(np.abs(found - cole_hopf.riemann(x, 0.5, 0.0, left, right)).sum() * dx)
        rows.append(agrees("3.1", f"L1 error of the {what}, nu = 0", error, 0, 2 * dx * 1.5, "2 cells times the jump"))
    return rows


@check("burgers")
def reaches_small_viscosity() -> list[Row]:
    """The steepest slope of the sine wave at nu = 0.01 / pi, a published number."""
    nu, t = 0.01 / math.pi, 1.6037 / math.pi
    h = 1e-4
    x = np.array([-2 * h, -h, h, 2 * h])
    w = cole_hopf.sine(x, t, nu)
    slope = float(w[0] - 8 * w[1] + 8 * w[2] - w[3]) / (12 * h)
    cells = 4096
    start = burgers.cell_averages(lambda x: -np.sin(np.pi * x), cells, -1.0, 1.0)
    found = burgers.solve(start, dx=2 / cells, times=[t], nu=nu).values[-1]
    solver = -float(np.diff(found).min()) * cells / 2
    return [
        agrees("4.16", "steepest slope by Cole-Hopf (published 152.00516)", -slope, 152.00516, 1e-3, "h^4 w_5x / 30"),
        agrees("3.13", "the same by the solver, 4096 cells", solver, 152.00516, 1.0, "dx is 1/26 of the shock's width"),
    ]
