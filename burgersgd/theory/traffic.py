"""Highway traffic as the viscous Burgers' equation: section 3 of the paper, with the sign of (3.12) corrected.

The density rho (cars per length) lies in [0, rho_max]; cars move at u = u_max (1 - rho / rho_max) (Greenshields). In
the characteristic speed w = Q'(rho) = u_max (1 - 2 rho / rho_max) the conservation of cars with a diffusive flux is
Burgers' equation, w_t + w w_x = nu w_xx. Units are free: those of rho_max, u_max and of x and t must agree, and nu has
the units of u_max times length. Everything is one-dimensional; functions work elementwise on arrays of any shape.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import cumulative_trapezoid

from burgersgd.theory import cole_hopf
from burgersgd.theory.checks import check_not_negative, check_positive, float_array

Array = NDArray[np.float64]


# ----------------------------------------------------------------------------------------------- the model (3.2)-(3.13)


def car_speed(rho: ArrayLike, *, rho_max: float = 1.0, u_max: float = 1.0) -> Array:
    """Return the speed u of the cars at density rho, u = u_max (1 - rho / rho_max), same shape.

    Implements Eq. (3.8). Raises ValueError unless rho_max > 0 and u_max > 0.
    """
    check_positive(rho_max=rho_max, u_max=u_max)
    return u_max * (1 - float_array(rho) / rho_max)  # (3.8)


def flux(rho: ArrayLike, *, rho_max: float = 1.0, u_max: float = 1.0) -> Array:
    """Return the flux Q(rho) = rho u(rho), cars per unit of time, same shape: a parabola with top at rho_max / 2.

    Implements Eq. (3.4). Implements Eq. (3.5). Raises ValueError unless rho_max > 0 and u_max > 0.
    """
    return float_array(rho) * car_speed(rho, rho_max=rho_max, u_max=u_max)  # (3.5)


def viscous_flux(rho: ArrayLike, rho_x: ArrayLike, nu: float, *, rho_max: float = 1.0, u_max: float = 1.0) -> Array:
    """Return q = Q(rho) - nu rho_x: drivers look ahead and slow down where the density rises. Same shape.

    Implements Eq. (3.7). Raises ValueError unless nu >= 0, rho_max > 0 and u_max > 0.
    """
    check_not_negative(nu=nu)
    return flux(rho, rho_max=rho_max, u_max=u_max) - nu * float_array(rho_x)  # (3.7)


def characteristic_speed(rho: ArrayLike, *, rho_max: float = 1.0, u_max: float = 1.0) -> Array:
    """Return w = Q'(rho) = u_max (1 - 2 rho / rho_max), the speed at which a small change of density travels.

    Same shape, between -u_max (jam) and u_max (empty road). Implements Eq. (3.9). Implements Eq. (3.11). Raises
    ValueError unless rho_max > 0 and u_max > 0.
    """
    check_positive(rho_max=rho_max, u_max=u_max)
    return u_max * (1 - 2 * float_array(rho) / rho_max)  # (3.11)


def density(w: ArrayLike, *, rho_max: float = 1.0, u_max: float = 1.0) -> Array:
    """Return rho = (rho_max / 2) (1 - w / u_max), the density whose characteristic speed is w. Same shape.

    Implements Eq. (3.12), with an error of the paper corrected: it prints (rho_max / (2 u_max)) (1 - w), which is right
    only for u_max = 1. Raises ValueError unless rho_max > 0 and u_max > 0.
    """
    check_positive(rho_max=rho_max, u_max=u_max)
    return rho_max / 2 * (1 - float_array(w) / u_max)  # (3.12)


def density_derivative(w_derivative: ArrayLike, *, rho_max: float = 1.0, u_max: float = 1.0) -> Array:
    """Return rho_t, rho_x or rho_xx given w_t, w_x or w_xx: every derivative is multiplied by -rho_max / (2 u_max).

    Implements Eq. (3.12), with the sign of the Laplacian corrected: the paper prints + for Lap rho, which would turn
    (3.13) into the ill-posed w_t + w w_x = -nu w_xx. Same shape. Raises ValueError unless rho_max > 0 and u_max > 0.
    """
    check_positive(rho_max=rho_max, u_max=u_max)
    return -rho_max / (2 * u_max) * float_array(w_derivative)


def density_residual(
    rho: ArrayLike,
    rho_t: ArrayLike,
    rho_x: ArrayLike,
    rho_xx: ArrayLike,
    nu: float,
    *,
    rho_max: float = 1.0,
    u_max: float = 1.0,
) -> Array:
    """Return rho_t + Q'(rho) rho_x - nu rho_xx, zero for a solution of the viscous model; nu = 0 gives (3.6).

    Implements Eq. (3.3). Implements Eq. (3.6). Implements Eq. (3.10). Same shape as the arguments. Raises ValueError
    unless nu >= 0, rho_max > 0 and u_max > 0.
    """
    check_not_negative(nu=nu)
    speed = characteristic_speed(rho, rho_max=rho_max, u_max=u_max)
    return float_array(rho_t) + speed * float_array(rho_x) - nu * float_array(rho_xx)  # (3.10)


def burgers_residual(w: ArrayLike, w_t: ArrayLike, w_x: ArrayLike, w_xx: ArrayLike, nu: float) -> Array:
    """Return w_t + w w_x - nu w_xx, zero for a solution of Burgers' equation. Same shape as the arguments.

    Implements Eq. (3.1). Implements Eq. (3.13). Raises ValueError unless nu >= 0.
    """
    check_not_negative(nu=nu)
    return float_array(w_t) + float_array(w) * float_array(w_x) - nu * float_array(w_xx)  # (3.13)


def shock_speed(rho_left: float, rho_right: float, *, rho_max: float = 1.0, u_max: float = 1.0) -> float:
    """Return the speed [Q] / [rho] = u_max (1 - (rho_left + rho_right) / rho_max) of a jump (Rankine-Hugoniot).

    For a red light (rho_right = rho_max) it is -u_max rho_left / rho_max: the queue grows backwards. Raises ValueError
    unless rho_max > 0 and u_max > 0.
    """
    check_positive(rho_max=rho_max, u_max=u_max)
    return u_max * (1 - (rho_left + rho_right) / rho_max)


# ------------------------------------------------------------------------------------------------------------ scenarios


class RiemannData(NamedTuple):
    """Two constant densities, left and right of x = 0, as fractions of rho_max."""

    left: float
    right: float


class JamData(NamedTuple):
    """Densities as fractions of rho_max, and the length of the jam as a fraction of the road's length."""

    around: float
    inside: float
    part: float


class RingData(NamedTuple):
    """Mean and amplitude of the density, as fractions of rho_max."""

    mean: float
    amplitude: float


RED_LIGHT = RiemannData(0.4, 1.0)
"""Cars arrive at a queue that waits at the light, x = 0: a shock moves backwards."""
GREEN_LIGHT = RiemannData(1.0, 0.0)
"""The light turns green: a rarefaction fan spreads, with rho = rho_max / 2 at the light at all times."""
JAM = JamData(0.2, 0.9, 0.25)
"""A jam in light traffic: it has a shock at its tail and a fan at its head until the two meet."""
RING = RingData(0.4, 0.25)
"""A bump that steepens into a shock and decays."""


def riemann_solution(
    x: ArrayLike,
    t: float,
    rho_left: float,
    rho_right: float,
    nu: float,
    *,
    rho_max: float = 1.0,
    u_max: float = 1.0,
) -> Array:
    """Return the exact density at time t that starts as rho_left for x < 0 and rho_right for x > 0. Same shape as x.

    It is a shock or a fan; for nu = 0 it is the entropy solution; t = 0 gives the initial data. Raises ValueError
    unless t >= 0, nu >= 0 and both densities lie in [0, rho_max].
    """
    for name, rho in (("rho_left", rho_left), ("rho_right", rho_right)):
        if not 0 <= rho <= rho_max:
            raise ValueError(f"{name}={rho:g}: must be >= 0 and <= rho_max={rho_max:g}")
    w_left, w_right = (float(characteristic_speed(rho, rho_max=rho_max, u_max=u_max)) for rho in (rho_left, rho_right))
    return density(cole_hopf.riemann(x, t, nu, w_left, w_right), rho_max=rho_max, u_max=u_max)


def jam_density(x: ArrayLike, length: float, *, rho_max: float = 1.0) -> Array:
    """Return the initial density of a jam in the middle of a road [-length / 2, length / 2] (see JAM). Same shape as x.

    Raises ValueError unless length > 0 and rho_max > 0.
    """
    check_positive(length=length, rho_max=rho_max)
    return rho_max * np.where(np.abs(float_array(x)) < JAM.part * length / 2, JAM.inside, JAM.around)


def ring_density(x: ArrayLike, length: float, *, rho_max: float = 1.0) -> Array:
    """Return a density with one smooth bump, around x = 0, on a ring road of that length (see RING). Same shape as x.

    Raises ValueError unless length > 0 and rho_max > 0.
    """
    check_positive(length=length, rho_max=rho_max)
    return rho_max * (RING.mean + RING.amplitude * np.cos(2 * math.pi * float_array(x) / length))


def cumulative_count(
    rho: Array, dx: float, times: Array, nu: float, *, periodic: bool, rho_max: float = 1.0, u_max: float = 1.0
) -> Array:
    """Return N, ``[times, cells + 1]``: the cars between the left end and each face, minus those that have entered.

    rho is ``[times, cells]``. The paths of cars are the level sets of N, because N_x = rho and N_t = -q: car k drives
    along N(X(t), t) = k at the speed q / rho. The flux through the left end is integrated by the trapezoidal rule over
    times. Implements Eq. (3.2). Implements Eq. (3.3). Raises ValueError unless nu >= 0, dx > 0, rho_max > 0 and
    u_max > 0.
    """
    check_positive(dx=dx)
    first, before = rho[:, 0], rho[:, -1] if periodic else rho[:, 0]
    q = viscous_flux((first + before) / 2, (first - before) / dx, nu, rho_max=rho_max, u_max=u_max)
    came_in = cumulative_trapezoid(q, times, initial=0)
    count = np.zeros((rho.shape[0], rho.shape[1] + 1))
    np.cumsum(rho, axis=1, out=count[:, 1:])
    return count * dx - came_in[:, None]
