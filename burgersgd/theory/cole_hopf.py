"""Burgers' equation solved in closed form: Cole-Hopf transformation (4.9)-(4.19) and the classical exact solutions.

With F the loss and w(x, 0) = F'(x), psi = exp(-phi / 2 nu) solves the heat equation, and the solution of (4.4),
phi(x, t) = -2 nu log psi = F_t(x), is the local entropy. One dimension, float64; t > 0 is the paper's gamma. Integrals
are log-sum-exp Gauss-Legendre sums over a window around the mass, refined until they stand still: accurate to rounding
and free of overflow for small nu. All x are done at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from burgersgd.theory.checks import check_finite, check_not_negative, check_positive, float_array

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_NEGLIGIBLE = 60.0  # exp(-60) = 1e-26: exponents that far below the largest one are left out
_NODES, _WEIGHTS = special.roots_legendre(16)
_MOST_PANELS = 4096
_MOST_SCANNED = 2**15
_ROWS_TIMES_NODES = 2**19  # 4 MiB per array


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

    List the places where the velocity jumps in breakpoints. Implements Eq. (4.8): of w it is phi,
    up to a function of t. Raises ValueError unless left < right.
    """
    if not left < right:
        raise ValueError(f"left={left:g}, right={right:g}: must have left < right")
    edges = np.union1d(np.linspace(left, right, panels + 1), [b for b in breakpoints if left < b < right])

    def integral(start: Array, end: Array) -> Array:
        middle, half = (start + end) / 2, (end - start) / 2
        return half * (velocity(middle[..., None] + half[..., None] * _NODES) @ _WEIGHTS)

    at_edges = np.concatenate([[0.0], np.cumsum(integral(edges[:-1], edges[1:]))])

    def loss(y: Array) -> Array:
        panel = np.clip(np.searchsorted(edges, y) - 1, 0, edges.size - 2)
        return at_edges[panel] + integral(edges[panel], y)

    at_edges -= loss(np.zeros(()))  # here, not in the result, so that rounding is least around 0
    return loss


# -------------------------------------------------------------------------------- solution by quadrature (4.14)-(4.19)


def penalised_loss(x: ArrayLike, y: ArrayLike, t: float, loss: Function) -> Array:
    """Return G(x, y; t) = F(y) + (x - y)^2 / (2 t), broadcast over x and y.

    Implements Eq. (4.18), with F(y) for its integral. Raises ValueError unless t > 0.
    """
    check_positive(t=t)
    x, y = float_array(x), float_array(y)
    return loss(y) + (x - y) ** 2 / (2 * t)  # (4.18)


def log_psi(x: ArrayLike, t: float, nu: float, loss: Function) -> Array:
    """Return log psi(x, t), the heat kernel applied to exp(-F / 2 nu); same shape as x.

    loss: F, elementwise on arrays of any shape; it must not fall like -y^2 / 2t. A scan looks for the mass and may miss
    narrow wells far from x. Implements Eq. (4.2), (4.14), (4.17). Raises
    ValueError unless t > 0 and nu > 0, or if x or F is not finite.
    """
    return _Problem(t, nu, loss).solve(x).log_psi


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

    The mean of (x - y) / t under exp(-G / 2 nu) / Z, or the mean of F'(y) where slope = F' is given: the same number,
    with less cancellation for short times. max_slope: a bound of |F'|, with which the range of integration is certain.
    breakpoints: where F has kinks (its derivative jumps). Implements Eq. (4.3), with w(x, 0) = F'(x). Implements Eq.
    (4.16), with F(y) for its integral.
    """
    return _Problem(t, nu, loss, slope, max_slope, breakpoints).solve(x).w


def grad_psi(x: ArrayLike, t: float, nu: float, loss: Function) -> Array:
    """Return psi_x(x, t), same shape as x; overflows where psi does. Arguments as in log_psi. Implements Eq. (4.19)."""
    integrals = _Problem(t, nu, loss).solve(x)
    return -integrals.w / (2 * nu) * np.exp(integrals.log_psi)  # (4.19)


def w_from_velocity(
    x: ArrayLike, t: float, nu: float, velocity: Function, *, max_speed: float, breakpoints: Sequence[float] = ()
) -> Array:
    """Return the solution at time t that starts as the given velocity, |velocity| <= max_speed; same shape as x.

    List the places where the velocity jumps in breakpoints. Implements Eq. (4.16). Raises ValueError unless t > 0,
    nu > 0 and max_speed >= 0.
    """
    check_not_negative(max_speed=max_speed)
    check_positive(t=t, nu=nu)
    x = float_array(x)
    reach = _certain_reach(t, nu, max_speed)
    loss = antiderivative(velocity, float(np.min(x)) - reach, float(np.max(x)) + reach, breakpoints=breakpoints)
    return w(x, t, nu, loss, slope=velocity, max_slope=max_speed, breakpoints=breakpoints)


class _Integrals(NamedTuple):
    log_psi: Array
    w: Array


def _certain_reach(t: float, nu: float, max_slope: float) -> float:
    """Return how far from x the mass of exp(-G / 2 nu) can lie: beyond t max_slope, G rises like a parabola."""
    return t * max_slope + math.sqrt(4 * nu * t * _NEGLIGIBLE)


class _Problem(NamedTuple):
    """The integrals over y of exp(-G(x, y; t) / 2 nu); z = y - x is the offset, and rows are points x."""

    t: float
    nu: float
    loss: Function
    slope: Function | None = None
    max_slope: float | None = None
    breakpoints: Sequence[float] = ()

    def solve(self, x: ArrayLike) -> _Integrals:
        """Return log psi and w, each of the shape of x."""
        check_positive(t=self.t, nu=self.nu)
        check_finite(x=x)
        points = float_array(x)
        rows = points.reshape(-1)
        log_psi, velocity = np.empty_like(rows), np.empty_like(rows)
        for start in range(0, rows.size, 512):
            part = slice(start, start + 512)
            log_psi[part], velocity[part] = self._converged(rows[part])
        return _Integrals(log_psi.reshape(points.shape)[()], velocity.reshape(points.shape)[()])

    @property
    def _spread(self) -> float:
        return math.sqrt(2 * self.nu * self.t)  # standard deviation of y where F is flat

    def _exponent(self, x: Array, z: Array) -> Array:
        """Return -G(x, x + z; t) / (2 nu), ``[rows, nodes]``."""
        exponent = -(self.loss(x[:, None] + z) + z * z / (2 * self.t)) / (2 * self.nu)
        if np.any(np.isnan(exponent)):
            raise ValueError("loss: is not a number somewhere, must be finite")
        return exponent

    def _converged(self, x: Array) -> tuple[Array, Array]:
        """Return log psi and w by panels that are doubled until both stand still up to rounding."""
        low, high = self._window(x)
        panels = 2 ** math.ceil(math.log2(np.clip(np.max(high - low) / (8 * self._spread), 8, _MOST_PANELS)))
        log_psi, velocity = self._sums(x, low, high, panels)
        rows = np.arange(x.size)  # those that still move
        while rows.size and panels < _MOST_PANELS:
            panels *= 2
            finer = self._sums(x[rows], low[rows], high[rows], panels)
            largest = np.abs(finer[0]) + np.maximum(low[rows] ** 2, high[rows] ** 2) / (4 * self.nu * self.t)
            rounding = 1e-12 + 1e-13 * largest  # of exponents; the finer sums are far more accurate than the move
            moved = np.abs(finer[0] - log_psi[rows]) > rounding
            speeds = np.abs(finer[1]) + (high[rows] - low[rows]) / self.t
            moved |= np.abs(finer[1] - velocity[rows]) > rounding * speeds
            log_psi[rows], velocity[rows] = finer
            rows = rows[moved]
        return log_psi, velocity

    def _sums(self, x: Array, low: Array, high: Array, panels: int) -> tuple[Array, Array]:
        """Return log psi and w, in blocks of rows that fit into a few MiB."""
        size = max(1, _ROWS_TIMES_NODES // (panels * _NODES.size))
        parts = [slice(start, start + size) for start in range(0, x.size, size)]
        sums = [self._panel_sums(x[p], low[p], high[p], panels) for p in parts]
        log_psi, velocity = (np.concatenate(columns) for columns in zip(*sums, strict=True))
        return log_psi, velocity

    def _panel_sums(self, x: Array, low: Array, high: Array, panels: int) -> tuple[Array, Array]:
        """Return log psi and w from Gauss-Legendre panels on [low, high], in the parts that the breakpoints leave."""
        breaks = np.clip(np.sort(self.breakpoints) - x[:, None], low[:, None], high[:, None])
        edges = np.concatenate([low[:, None], breaks, high[:, None]], axis=1)
        half = np.repeat(np.diff(edges) / (2 * panels), panels, axis=1)  # as many panels between any two breakpoints
        middle = low[:, None] + 2 * np.cumsum(half, axis=1) - half
        z = (middle[..., None] + half[..., None] * _NODES).reshape(x.size, -1)
        weight = (half[..., None] * _WEIGHTS).reshape(x.size, -1)
        exponent = self._exponent(x, z)
        log_integral = np.asarray(special.logsumexp(exponent, b=weight, axis=1))
        law = weight * np.exp(exponent - log_integral[:, None])  # exp(-G / 2 nu) dy / Z
        velocity = np.sum(law * (-z / self.t if self.slope is None else self.slope(x[:, None] + z)), axis=1)
        return log_integral - 0.5 * math.log(4 * math.pi * self.nu * self.t), velocity  # (4.17), (4.16)

    def _window(self, x: Array) -> tuple[Array, Array]:
        """Return the range of offsets that holds the mass of exp(-G / 2 nu): a wide one, narrowed three times."""
        half = self._reach(x)
        low, high = -half, half
        for _ in range(3):
            nodes = int(np.clip(2 * np.max(high - low) / self._spread, 256, _MOST_SCANNED))
            size = max(1, _ROWS_TIMES_NODES // nodes)
            parts = [slice(start, start + size) for start in range(0, x.size, size)]
            narrowed = [self._narrowed(x[p], low[p], high[p], nodes) for p in parts]
            low, high = (np.concatenate(ends) for ends in zip(*narrowed, strict=True))
        return low, high

    def _reach(self, x: Array) -> Array:
        """Return a distance beyond which G exceeds its least by 2 nu times 60: certain given max_slope, else searched.

        The search doubles until the penalty at the ends outweighs the lowest loss seen within, and G is high enough as
        far as eight times the distance.
        """
        if self.max_slope is not None:
            return np.full_like(x, _certain_reach(self.t, self.nu, self.max_slope))
        half, grid = np.full_like(x, 12 * self._spread), np.linspace(-8, 8, 4097)
        inside, margin = np.abs(grid) <= 1, 2 * self.nu * _NEGLIGIBLE
        for _ in range(60):
            z = half[:, None] * grid
            losses = self.loss(x[:, None] + z)
            G = losses + z * z / (2 * self.t)
            least = np.min(G[:, inside], axis=1) + margin
            short = half**2 / (2 * self.t) < least - np.min(losses[:, inside], axis=1)
            short |= np.min(G[:, ~inside], axis=1) < least
            if not np.any(short):
                return half
            half[short] *= 2
        raise ValueError(f"loss: must be finite and not fall like -y^2 / (2 t) with t={self.t:g}, so that psi exists")

    def _narrowed(self, x: Array, low: Array, high: Array, nodes: int) -> tuple[Array, Array]:
        rows = np.arange(x.size)
        z = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, nodes)
        exponent = self._exponent(x, z)
        peak = np.argmax(exponent, axis=1)
        top = exponent[rows, peak]
        beside = np.minimum(exponent[rows, np.maximum(peak - 1, 0)], exponent[rows, np.minimum(peak + 1, nodes - 1)])
        kept = exponent > (top - _NEGLIGIBLE - (top - beside))[:, None]  # a peak between nodes is no more than that off
        first, last = np.argmax(kept, axis=1), nodes - 1 - np.argmax(kept[:, ::-1], axis=1)
        return z[rows, np.maximum(first - 1, 0)], z[rows, np.minimum(last + 1, nodes - 1)]


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
    """Return the solution whose initial data jump from w_left to w_right in x = 0. Same shape as x.

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
    """Return the solution that starts as mass times a delta function in x = 0. Same shape as x.

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
