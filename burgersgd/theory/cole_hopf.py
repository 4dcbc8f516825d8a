"""Burgers' equation solved in closed form: Cole-Hopf transformation (4.9)-(4.19) and the classical exact solutions.

With F the loss and w(x, 0) = F'(x), psi = exp(-phi / 2 nu) solves the heat equation, and the solution of (4.4),
phi(x, t) = -2 nu log psi = F_t(x), is the local entropy. One dimension, float64; t > 0 is the paper's gamma. Integrals
are those of burgersgd.theory.quadrature: accurate to rounding and free of overflow for small nu, for all x at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from burgersgd.theory.checks import check_finite, check_not_negative, check_positive, float_array
from burgersgd.theory.quadrature import DEPTH, Function, cumulative, find_mass, integrate

Array = NDArray[np.float64]


# ----------------------------------------------------------------------------------------- transformation (4.9)-(4.14)


def phi_from_psi(psi: ArrayLike, nu: float) -> Array:
    """Return phi = -2 nu log psi, same shape. Implements Eq. (4.9). Raises ValueError unless nu > 0 and psi > 0."""
    check_positive(nu=nu)
    psi = float_array(psi)
    if not np.all(psi > 0):
        raise ValueError(f"psi={np.min(psi):g}: must be > 0")
    return -2 * nu * np.log(psi)  # (4.9)


def psi_from_phi(phi: ArrayLike, nu: float) -> Array:
    """Return psi = exp(-phi / (2 nu)), same shape: for phi = F the initial data of the heat equation.

    Implements Eq. (4.9). Implements Eq. (4.13), with F for its integral of the velocity. Raises ValueError unless
    nu > 0.
    """
    check_positive(nu=nu)
    return np.exp(-float_array(phi) / (2 * nu))


def phi_derivatives(
    psi: ArrayLike, psi_t: ArrayLike, psi_x: ArrayLike, psi_xx: ArrayLike, nu: float
) -> tuple[Array, Array, Array]:
    """Return phi_t, phi_x = w and phi_xx given psi and its derivatives, all of one shape.

    At t = 0 the second one is the initial velocity F'. Raises ValueError unless nu > 0.
    Implements Eq. (4.10). Implements Eq. (4.12).
    """
    check_positive(nu=nu)
    psi, psi_x = float_array(psi), float_array(psi_x)
    phi_t = -2 * nu * float_array(psi_t) / psi
    phi_x = -2 * nu * psi_x / psi
    phi_xx = -2 * nu * float_array(psi_xx) / psi + 2 * nu * (psi_x / psi) ** 2
    return phi_t, phi_x, phi_xx


def heat_residual(psi_t: ArrayLike, psi_xx: ArrayLike, nu: float) -> Array:
    """Return psi_t - nu psi_xx, zero for a solution of the heat equation; same shape.

    Implements Eq. (4.11). Raises ValueError unless nu >= 0.
    """
    check_not_negative(nu=nu)
    return float_array(psi_t) - nu * float_array(psi_xx)


def heat_kernel(x: ArrayLike, t: float, nu: float, *, d: int = 1) -> Array:
    """Return (4 pi nu t)^(-d/2) exp(-x^2 / (4 nu t)), same shape as x (the distance |x| if d > 1).

    Implements Eq. (4.14), whose exponent is printed for d = 1. Raises ValueError unless t > 0, nu > 0 and d > 0.
    """
    check_positive(t=t, nu=nu, d=d)
    return (4 * math.pi * nu * t) ** (-d / 2) * np.exp(-(float_array(x) ** 2) / (4 * nu * t))


def antiderivative(
    velocity: Function, left: float, right: float, *, breakpoints: Sequence[float] = (), panels: int = 512
) -> Function:
    """Return y -> F(y), the integral of the velocity from 0 to y, for y in [left, right], by Gauss-Legendre panels.

    List the points at which the velocity jumps in breakpoints. Implements Eq. (4.8): the antiderivative of w is phi,
    up to a function of t. Raises ValueError unless left < right.
    """
    if not left < right:
        raise ValueError(f"left={left:g}, right={right:g}: must have left < right")
    edges = np.union1d(np.linspace(left, right, panels + 1), [b for b in breakpoints if left < b < right])
    from_left = cumulative(velocity, edges)
    until_0 = from_left(np.zeros(()))
    return lambda y: from_left(y) - until_0


# -------------------------------------------------------------------------------- solution by quadrature (4.14)-(4.19)


def log_psi(x: ArrayLike, t: float, nu: float, loss: Function) -> Array:
    """Return log psi(x, t), the heat kernel applied to exp(-F / 2 nu); same shape as x.

    loss is F, elementwise on arrays of any shape; it must not fall as fast as -y^2 / 2t. A scan locates the mass and
    may miss narrow wells far from x. Implements Eq. (4.2), (4.14), (4.17). Raises ValueError unless t > 0 and nu > 0,
    or if x or F is not finite.
    """
    return _solve(x, t, nu, loss)[0]


def phi(x: ArrayLike, t: float, nu: float, loss: Function) -> Array:
    """Return the solution phi = -2 nu log psi = F_t of (4.4) at time t, same shape as x. Arguments as in log_psi.

    Implements Eq. (4.4), with phi(x, 0) = F(x). Implements Eq. (4.15), with F(y) for its integral and without
    phi(0, t) = 0, which contradicts the rest.
    """
    return -2 * nu * log_psi(x, t, nu, loss)


def w(
    x: ArrayLike,
    t: float,
    nu: float,
    loss: Function,
    *,
    slope: Function | None = None,
    max_slope: float | None = None,
    breakpoints: Sequence[float] = (),
) -> Array:
    """Return the solution of Burgers' equation that starts as F' at time t, same shape as x. Arguments as in log_psi.

    It is the mean of (x - y) / t under exp(-G / 2 nu) / Z or, if slope = F' is given, the mean of F'(y): the same
    number, with less cancellation for short times. max_slope is a bound of |F'|; it makes the range of integration
    certain. breakpoints are the points at which F has kinks (F' jumps). Implements Eq. (4.3), with w(x, 0) = F'(x).
    Implements Eq. (4.16), with F(y) for its integral.
    """
    return _solve(x, t, nu, loss, slope, max_slope, breakpoints)[1]


def grad_psi(x: ArrayLike, t: float, nu: float, loss: Function) -> Array:
    """Return psi_x(x, t), same shape as x; overflows where psi does. Arguments as in log_psi. Implements Eq. (4.19)."""
    log_psi, w = _solve(x, t, nu, loss)
    return -w / (2 * nu) * np.exp(log_psi)  # (4.19)


def w_from_velocity(
    x: ArrayLike, t: float, nu: float, velocity: Function, *, max_speed: float, breakpoints: Sequence[float] = ()
) -> Array:
    """Return the solution at time t that starts as the given velocity, |velocity| <= max_speed; same shape as x.

    List the points at which the velocity jumps in breakpoints. Implements Eq. (4.16). Raises ValueError unless t > 0,
    nu > 0 and max_speed >= 0.
    """
    check_not_negative(max_speed=max_speed)
    check_positive(t=t, nu=nu)
    x = float_array(x)
    reach = _certain_reach(t, nu, max_speed)
    loss = antiderivative(velocity, float(np.min(x)) - reach, float(np.max(x)) + reach, breakpoints=breakpoints)
    return w(x, t, nu, loss, slope=velocity, max_slope=max_speed, breakpoints=breakpoints)


def _certain_reach(t: float, nu: float, max_slope: float) -> float:
    """Return the largest distance from x of the mass of exp(-G / 2 nu): beyond t max_slope, G rises like a parabola."""
    return t * max_slope + math.sqrt(4 * nu * t * DEPTH)


def _solve(
    x: ArrayLike,
    t: float,
    nu: float,
    loss: Function,
    slope: Function | None = None,
    max_slope: float | None = None,
    breakpoints: Sequence[float] = (),
) -> tuple[Array, Array]:
    """Return log psi, from the integral of exp(-G(x, y; t) / 2 nu) over y, and w, a mean; both of the shape of x."""
    check_positive(t=t, nu=nu)
    check_finite(x=x)
    points = float_array(x)
    centers = points.reshape(-1, 1)

    def exponent(rows: NDArray[np.intp], z: Array) -> Array:
        offset = z[..., 0]
        return -(loss(centers[rows] + offset) + offset**2 / (2 * t)) / (2 * nu)

    def velocity(rows: NDArray[np.intp], z: Array) -> Array:
        return -z[..., 0] / t if slope is None else slope(centers[rows] + z[..., 0])

    reach = None if max_slope is None else _certain_reach(t, nu, max_slope)
    low, high = find_mass(exponent, centers, reach=reach)
    log_z, w = integrate(exponent, velocity, low, high, np.sort(breakpoints) - centers)
    log_psi = log_z - 0.5 * math.log(4 * math.pi * nu * t)  # (4.17)
    return log_psi.reshape(points.shape)[()], w.reshape(points.shape)[()]


# ------------------------------------------------------------------------------------------------------ exact solutions


def travelling_shock(x: ArrayLike, t: float, nu: float, w_left: float, w_right: float, *, x0: float = 0.0) -> Array:
    """Return s - A tanh(A (x - x0 - s t) / 2 nu), s the mean of the end states and A half the jump. Same shape as x.

    Raises ValueError unless nu > 0 and w_left >= w_right.
    """
    check_positive(nu=nu)
    if not w_left >= w_right:
        raise ValueError(f"w_left={w_left:g}, w_right={w_right:g}: a shock must have w_left >= w_right")
    speed, amplitude = (w_left + w_right) / 2, (w_left - w_right) / 2
    return speed - amplitude * np.tanh(amplitude * (float_array(x) - x0 - speed * t) / (2 * nu))


def riemann(x: ArrayLike, t: float, nu: float, w_left: float, w_right: float) -> Array:
    """Return the solution whose initial data jump from w_left to w_right at x = 0. Same shape as x.

    nu = 0 gives the entropy solution, shock or fan. Raises ValueError unless t >= 0, nu >= 0 and the states are finite.
    """
    check_not_negative(t=t, nu=nu)
    check_finite(w_left=w_left, w_right=w_right)
    x = float_array(x)
    speed = (w_left + w_right) / 2
    if nu > 0 and t > 0:
        q = math.sqrt(4 * nu * t)
        exponent = (w_left - w_right) * (x - speed * t) / (2 * nu)
        exponent = exponent + _log_erfc(-(x - w_right * t) / q) - _log_erfc((x - w_left * t) / q)
        return w_right + (w_left - w_right) * special.expit(-exponent)
    if w_left < w_right and t > 0:
        return np.clip(x / t, w_left, w_right)
    side = np.sign(x - speed * t)
    return speed + (w_right - w_left) / 2 * side


def n_wave(x: ArrayLike, t: float, nu: float, a: float) -> Array:
    """Return (x / t) g / (1 + g), g = sqrt(a / t) exp(-x^2 / 4 nu t): Whitham's N-wave. Same shape as x.

    Raises ValueError unless t > 0, nu > 0 and a > 0.
    """
    check_positive(t=t, nu=nu, a=a)
    x = float_array(x)
    return x / t * special.expit(0.5 * math.log(a / t) - x * x / (4 * nu * t))


def hump(x: ArrayLike, t: float, nu: float, mass: float) -> Array:
    """Return the solution that starts as mass times a delta function at x = 0. Same shape as x.

    Raises ValueError unless t > 0, nu > 0 and the mass is finite.
    """
    check_positive(t=t, nu=nu)
    check_finite(mass=mass)
    if mass == 0:
        return np.zeros_like(float_array(x))
    if mass < 0:
        return -hump(-float_array(x), t, nu, -mass)
    z = float_array(x) / math.sqrt(4 * nu * t)
    reynolds = mass / (2 * nu)
    log_factor = reynolds + math.log(-math.expm1(-reynolds))  # log(e^R - 1) without overflow
    log_w = log_factor - z * z - np.logaddexp(0, log_factor + _log_erfc(z) - math.log(2))
    return math.sqrt(nu / (math.pi * t)) * np.exp(log_w)


def sine(x: ArrayLike, t: float, nu: float) -> Array:
    """Return the solution with w(x, 0) = -sin(pi x) by quadrature, loss cos(pi y) / pi. Same shape as x.

    Raises ValueError unless t > 0 and nu > 0.
    """
    return w(x, t, nu, lambda y: np.cos(math.pi * y) / math.pi, slope=lambda y: -np.sin(math.pi * y), max_slope=1.0)


def _log_erfc(z: Array) -> Array:
    return math.log(2) + special.log_ndtr(-z * math.sqrt(2))
