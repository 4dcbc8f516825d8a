"""A conservative finite-volume solver of Burgers' equation (3.13) and of the traffic model (3.10) in one dimension.

MUSCL reconstruction, Godunov flux and SSPRK2 for convection; for diffusion the exact semigroup of the discrete
Laplacian, applied by FFT or DCT; both joined by Strang splitting. Second order in L1, no diffusive limit on the time
step, conservative, maximum principle. nu = 0 gives the entropy solution.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy import fft

from burgersgd.theory.checks import check_finite, check_not_negative, check_positive, float_array
from burgersgd.theory.quadrature import Array, panel_integrals
from burgersgd.theory.traffic import Greenshields

Boundary = Literal["periodic", "no_flux", "inflow"]

PECLET_LIMIT = 2.0
"""Largest cell Peclet number without a warning; above it a viscous shock is narrower than a cell."""
CFL, CFL_LIMIT = 0.4, 0.5
"""The Courant number, and the largest at which MUSCL with SSPRK2 keeps maxima and total variation."""
_TINY = 1e-300  # keeps 0 / 0 out of the limiter


class BurgersWarning(UserWarning):
    """Warns that the grid is too coarse for nu: shocks become one or two cells wide, wider than nu alone makes them."""


class Burgers:
    """The flux f(w) = w^2 / 2 of the conservative form."""

    def characteristic_speed(self, u: ArrayLike) -> Array:
        """Return f'(w) = w."""
        return float_array(u)

    def godunov(self, left: Array, right: Array) -> Array:
        """Return the flux through faces between the states left and right: max(f(max(left, 0)), f(min(right, 0)))."""
        state = np.maximum(np.maximum(left, -right), 0)
        return state * state * 0.5


BURGERS = Burgers()
Law = Burgers | Greenshields
"""A scalar conservation law u_t + f(u)_x = nu u_xx: its characteristic speed f' and its Godunov flux."""


# ------------------------------------------------------------------------------------------------------------- the grid


def cell_centers(cells: int, left: float, right: float) -> Float64[np.ndarray, " cells"]:
    """Return the centres of equal cells on [left, right]; raises ValueError unless cells >= 4 and left < right."""
    edges = _edges(cells, left, right)
    return (edges[1:] + edges[:-1]) / 2


def cell_averages(
    f: Callable[[Array], Array], cells: int, left: float, right: float, *, breakpoints: Sequence[float] = ()
) -> Float64[np.ndarray, " cells"]:
    """Return the averages of f over equal cells on [left, right] by Gauss-Legendre quadrature with 16 nodes.

    List the points at which f jumps in breakpoints. Raises ValueError unless cells >= 4 and left < right.
    """
    edges = _edges(cells, left, right)
    breaks = [b for b in breakpoints if left < b < right]
    panels = np.union1d(edges, breaks)
    cell = np.clip(np.searchsorted(edges, (panels[1:] + panels[:-1]) / 2) - 1, 0, cells - 1)
    return np.bincount(cell, panel_integrals(f, panels), cells) / np.diff(edges)


def _edges(cells: int, left: float, right: float) -> Array:
    if cells < 4:
        raise ValueError(f"cells={cells}: must be >= 4")
    if not left < right:
        raise ValueError(f"left={left:g}, right={right:g}: must have left < right")
    return np.linspace(left, right, cells + 1)


def cell_peclet(u: ArrayLike, dx: float, nu: float, *, law: Law = BURGERS, periodic: bool = False) -> float:
    """Return |dw| dx / nu, dw the largest drop of the characteristic speed from left to right; inf for nu = 0.

    No shock that can form is stronger than dw. Second order needs a value of about 1; above 2 the grid cannot resolve
    the shock. On a periodic domain the drop may cross the boundary: then dw is max - min.
    """
    speed = law.characteristic_speed(u)
    drop = np.ptp(speed) if periodic else np.max(np.maximum.accumulate(speed) - speed)
    if drop == 0:
        return 0.0
    return float(drop * dx / nu) if nu > 0 else math.inf


# ----------------------------------------------------------------------------------------------------------- the solver


class Solution(NamedTuple):
    """The solution at the requested times, as the solver returns it."""

    values: Float64[np.ndarray, "times cells"]  # cell averages
    net_inflow: Float64[np.ndarray, " times"]  # net inflow of u through the ends since time 0; 0 if periodic
    steps: int  # total number of time steps


def solve(
    initial: ArrayLike,
    *,
    dx: float,
    times: ArrayLike,
    nu: float,
    law: Law = BURGERS,
    boundary: Boundary = "periodic",
    inflow: tuple[float, float] | None = None,
    first_order: bool = False,
    dt: float | None = None,
) -> Solution:
    """Return u with u_t + f(u)_x = nu u_xx at the given times (>= 0, increasing), from cell averages at time 0.

    law: BURGERS (u is w) or a road Greenshields(rho_max, u_max) (u is rho). boundary: "periodic"; "no_flux", where the
    gradient is zero at the ends and waves leave; or "inflow", where the constant states inflow = (left, right), by
    default the end values of the initial data, lie beyond the ends, and diffusion carries nothing through the ends (a
    closed road is inflow=(0, rho_max)). Between two output times all time steps are equal, of Courant number 0.4 at
    most, or dt at most. first_order: leave out the reconstruction, which makes the convection monotone.

    Implements Eq. (3.1). Implements Eq. (3.10). Implements Eq. (3.13). Warns (BurgersWarning) if the grid is too coarse
    for nu. Raises ValueError for nu < 0, data that are not finite, fewer than 4 cells, dt above
    what a Courant number of 0.5 allows, times that do not increase.
    """
    u, saved = float_array(initial), np.atleast_1d(float_array(times))
    check_not_negative(nu=nu)
    check_positive(dx=dx)
    if u.ndim != 1 or u.size < 4:
        raise ValueError(f"initial: must be one-dimensional with >= 4 cells, is of shape {u.shape}")
    check_finite(initial=u, times=saved)
    if saved.ndim != 1 or saved.size == 0 or saved[0] < 0 or np.any(np.diff(saved) <= 0):
        raise ValueError("times: must be >= 0 and increase")
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary={boundary}: must be one of {', '.join(get_args(Boundary))}")
    if inflow is not None and boundary != "inflow":
        raise ValueError(f"boundary={boundary}: must be inflow if inflow is given")
    ends = (float(u[0]), float(u[-1])) if inflow is None else inflow
    check_finite(inflow=ends)
    _warn_if_coarse(u, ends, dx, nu, law, boundary)

    convection = _Convection(dx, law, first_order, boundary, ends)
    diffusion = _Diffusion(u.size, dx, nu, boundary)
    values, net_inflow = np.empty((saved.size, u.size)), np.empty(saved.size)
    now, came_in, steps = 0.0, 0.0, 0
    for k, time in enumerate(saved):
        speed = convection.max_speed(u)
        longest = _longest_step(speed, dx, dt, float(time) - now)
        n = math.ceil((time - now) / longest * (1 - 1e-12)) if time > now else 0
        if n:
            step = (time - now) / n
            whole, half = diffusion.factors(step), diffusion.factors(step / 2)
            u = diffusion.apply(u, half)
            for i in range(n):
                u, inflow_of_step = convection.step(u, step)
                came_in += inflow_of_step
                u = diffusion.apply(u, whole if i < n - 1 else half)  # two half steps in one
        now, steps = float(time), steps + n
        values[k], net_inflow[k] = u, came_in
    return Solution(values, net_inflow, steps)


def _warn_if_coarse(u: Array, ends: tuple[float, float], dx: float, nu: float, law: Law, boundary: str) -> None:
    periodic = boundary == "periodic"
    peclet = cell_peclet(u if periodic else np.r_[ends[0], u, ends[1]], dx, nu, law=law, periodic=periodic)
    if nu > 0 and peclet > PECLET_LIMIT:
        warnings.warn(
            f"grid too coarse for nu={nu:g}: the cell Peclet number |dw| dx / nu is {peclet:.3g}, "
            f"must be <= {PECLET_LIMIT:g} to resolve shocks (use {math.ceil(peclet / PECLET_LIMIT)} times the cells)",
            BurgersWarning,
            stacklevel=3,
        )


def _longest_step(speed: float, dx: float, dt: float | None, interval: float) -> float:
    """Return the longest time step; raises ValueError if dt is too long."""
    if dt is None:
        return CFL * dx / speed if speed > 0 else interval
    check_positive(dt=dt)
    if speed * dt > CFL_LIMIT * dx * (1 + 1e-12):
        raise ValueError(
            f"dt={dt:g}: must be <= {CFL_LIMIT * dx / speed:g} (Courant number |w| dt / dx <= {CFL_LIMIT:g})"
        )
    return dt


class _Convection:
    """One SSPRK2 step of u_t + f(u)_x = 0."""

    def __init__(self, dx: float, law: Law, first_order: bool, boundary: str, ends: tuple[float, float]) -> None:
        self.dx, self.law, self.first_order, self.boundary, self.ends = dx, law, first_order, boundary, ends

    def max_speed(self, u: Array) -> float:
        """Return the largest absolute characteristic speed of the cells and of the inflow states."""
        states = np.append(u, self.ends) if self.boundary == "inflow" else u
        return float(np.max(np.abs(self.law.characteristic_speed(states))))

    def step(self, u: Array, dt: float) -> tuple[Array, float]:
        """Return u after a step dt and the net inflow through the ends."""
        change, first = self._change(u, dt)
        stage = u + change
        change, second = self._change(stage, dt)
        return (u + stage + change) * 0.5, (first + second) / 2

    def _change(self, u: Array, dt: float) -> tuple[Array, float]:
        """Return dt u_t and dt times the net flux into the domain through the ends."""
        if self.boundary == "periodic":
            ghosts = u[-2:], u[:2]
        else:
            left, right = self.ends if self.boundary == "inflow" else (u[0], u[-1])
            ghosts = [left, left], [right, right]
        padded = np.concatenate([ghosts[0], u, ghosts[1]])
        left, right = padded[1:-2], padded[2:-1]
        if not self.first_order:
            jump = padded[1:] - padded[:-1]
            size = np.abs(jump)
            a, b, abs_a, abs_b = jump[:-1], jump[1:], size[:-1], size[1:]
            # half of van Leer's slope 2ab / (a + b), or 0 where the signs differ
            half = (a * abs_b + abs_a * b) / (abs_a + abs_b + _TINY) * 0.5
            left, right = left + half[:-1], right - half[1:]
        flux = self.law.godunov(left, right)
        return (flux[:-1] - flux[1:]) * (dt / self.dx), dt * float(flux[0] - flux[-1])


class _Diffusion:
    """The exact semigroup exp(dt nu Lap) of the three-point Laplacian: a positive kernel, hence a maximum principle."""

    def __init__(self, cells: int, dx: float, nu: float, boundary: str) -> None:
        self.cells, self.periodic, self.nu = cells, boundary == "periodic", nu
        angle = (
            np.arange(cells // 2 + 1) * (2 * math.pi / cells) if self.periodic else np.arange(cells) * math.pi / cells
        )
        self.eigenvalues = -((2 * np.sin(angle / 2) / dx) ** 2)

    def factors(self, dt: float) -> Array | None:
        """Return the factors that multiply the spectrum in a step dt, or None for nu = 0."""
        return np.exp(self.nu * dt * self.eigenvalues) if self.nu > 0 else None

    def apply(self, u: Array, factors: Array | None) -> Array:
        """Return exp(dt nu Lap) u."""
        if factors is None:
            return u
        if self.periodic:
            return np.asarray(fft.irfft(np.asarray(fft.rfft(u)) * factors, self.cells))
        return np.asarray(fft.idct(np.asarray(fft.dct(u)) * factors))
