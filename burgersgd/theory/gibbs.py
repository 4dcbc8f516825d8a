"""Gibbs laws exp(-U / T) / Z in one and two dimensions, by the log-sum-exp trapezoidal rule on a box."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import logsumexp

from burgersgd.theory.checks import check_finite, check_positive, float_array

Function = Callable[[ndarray], ndarray]
"""A function of points: in 1-D element by element (any shape), else ``[..., d]`` to ``[...]`` or to ``[..., d]``."""

REACH = 1e3
"""The law is looked for within this distance of the given point."""

_DEPTH = 40.0  # exp(-40) = 4e-18: what is neglected
_NODES = {1: 2001, 2: 241}  # per axis, odd
_SCAN = {1: 257, 2: 65}  # per axis and scale, odd
_SCALES = REACH * 2.0 ** -np.arange(30)
_RESOLVED = 1e-3  # of log Z, every second node against all of them: the error left is its 4th power where U is smooth


@dataclass(frozen=True)
class GibbsLaw:
    """A law exp(-U / T) / Z as a quadrature rule."""

    y: ndarray  # [n] nodes in 1-D, [n, d] else, in increasing order in 1-D
    probability: ndarray  # [n] of the nodes, sum 1
    density: ndarray  # [n] exp(-U / T) / Z
    log_z: float  # log of Z = + the integral of exp(-U / T)

    def expectation(self, of: Function) -> ndarray:
        """Return E of(y), of the shape that `of` has at one point."""
        return np.tensordot(self.probability, of(self.y), axes=(0, 0))

    def mean(self) -> ndarray:
        """Return E y, ``[]`` in 1-D and ``[d]`` else."""
        return self.expectation(lambda y: y)

    def covariance(self) -> ndarray:
        """Return Cov(y), ``[]`` in 1-D and ``[d, d]`` else."""
        off = self.y - self.mean()
        if off.ndim == 1:
            return self.probability @ off**2
        return np.einsum("n,ni,nj->ij", self.probability, off, off)

    def cdf(self, at: ArrayLike) -> ndarray:
        """Return P(y <= at), same shape as at. 1-D only: raises ValueError else."""
        if self.y.ndim != 1:
            raise ValueError(f"a distribution function needs a law in one dimension, not in {self.y.shape[1]}")
        below = np.cumsum(self.probability) - self.probability / 2
        return np.interp(float_array(at), self.y, below, left=0.0, right=1.0)


def gibbs_law(
    potential: Function, temperature: float, *, around: ArrayLike = 0.0, nodes: int | None = None
) -> GibbsLaw:
    """Return the law exp(-U / T) / Z of a potential U at temperature T. Implements Eq. (2.16), with T = nu.

    around is a float (1-D) or ``[d]``, d = 1, 2: the law is looked for up to REACH from there; nodes is odd, per axis.
    Raises ValueError unless T is finite and > 0, U(around) is finite, exp(-U / T) has its mass within reach, and the
    nodes resolve it (wells that are far apart and narrow need more).
    """
    check_positive(temperature=temperature)
    check_finite(around=around)
    origin = np.asarray(around, dtype=np.float64)
    flat = origin.ndim == 0
    d = 1 if flat else len(origin)
    if d not in _NODES:
        raise ValueError(f"quadrature works in 1 or 2 dimensions, not in {d}")
    nodes = _NODES[d] if nodes is None else nodes
    if nodes < 5 or nodes % 2 == 0:
        raise ValueError(f"nodes={nodes}: must be odd and at least 5")

    def exponent(y: ndarray) -> ndarray:  # U / T at [..., d]; where U overflows there is no mass
        with np.errstate(over="ignore", invalid="ignore"):
            values = potential(y[..., 0] if flat else y) / temperature
        return np.where(np.isnan(values), np.inf, values)

    low, high = _box(exponent, np.atleast_1d(origin), _DEPTH)
    while True:
        y, cell = _grid(low, high, nodes)
        level = exponent(y)
        inside = y[level <= level.min() + _DEPTH]
        step = (high - low) / (nodes - 1)
        new_low, new_high = np.maximum(low, inside.min(0) - step), np.minimum(high, inside.max(0) + step)
        if np.all(new_high - new_low > 0.8 * (high - low)):
            break
        low, high = new_low, new_high
    lowest = level.min()  # taken off first: where it is large, rounding would spoil the sum of the probabilities
    log_mass = float(log_sum_exp(lowest - level)) + math.log(cell)
    every_second = level[(slice(None, None, 2),) * d]
    coarse = float(log_sum_exp(lowest - every_second)) + math.log(cell * 2**d)
    if not abs(log_mass - coarse) < _RESOLVED:
        raise ValueError(
            f"nodes={nodes}: too few for temperature={temperature:g} on a law {np.max(high - low):.3g} wide, "
            "must resolve its narrowest well"
        )
    density = np.exp(lowest - level - log_mass).ravel()
    points = y.reshape(-1, d)
    return GibbsLaw(points[:, 0] if flat else points, density * cell, density, log_mass - float(lowest))


def log_sum_exp(values: ndarray, axis: int | None = None) -> ndarray:
    """Return log sum exp(values) along an axis, or of all."""
    return np.asarray(logsumexp(values, axis=axis))


def global_minimum(potential: Function, around: ArrayLike) -> tuple[float, ndarray]:
    """Return min U and the y where it is taken, as around: a float (1-D) or ``[d]``, d = 1, 2.

    The best point of grids on all scales up to REACH from around, polished by a simplex to 1e-8. Raises ValueError
    unless around and U(around) are finite and U is greater than that at REACH.
    """
    check_finite(around=around)
    origin = float_array(around)
    d = max(origin.size, 1)

    def values(y: ndarray) -> ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # far away; there is no minimum
            return potential(y[..., 0] if origin.ndim == 0 else y)

    y, _ = _grid(*_box(values, np.atleast_1d(origin), 0.0), _NODES[d])
    found = minimize(
        lambda point: float(values(point)),
        y.reshape(-1, d)[np.argmin(values(y))],
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-16, "maxiter": 1000},
    )
    return float(found.fun), found.x.reshape(origin.shape)


def _box(exponent: Function, origin: ndarray, depth: float) -> tuple[ndarray, ndarray]:
    """Return the corners of a cube around the origin outside of which U / T > U(origin) / T + depth, on all scales."""
    d = len(origin)
    level = float(exponent(origin))
    if not math.isfinite(level):
        raise ValueError(f"the loss at {origin} is {level}: must be finite")
    unit, _ = _grid(-np.ones(d), np.ones(d), _SCAN[d])
    offsets = _SCALES[:, None] * np.abs(unit).max(-1).ravel()
    y = origin + _SCALES[:, None, None] * unit.reshape(-1, d)
    inside = offsets[exponent(y) <= level + depth]
    half = 1.1 * inside.max(initial=_SCALES[-1])
    if half >= REACH:
        raise ValueError(
            f"exp(-U / T) has mass {REACH:g} away from {origin}: its integral must be finite, for the local entropy "
            "gamma * (most negative curvature of the loss) > -1"
        )
    return origin - half, origin + half


def _grid(low: ndarray, high: ndarray, nodes: int) -> tuple[ndarray, float]:
    """Return the points ``[nodes, ..., d]`` and the cell volume of a regular grid."""
    axes = [np.linspace(a, b, nodes) for a, b in zip(low, high, strict=True)]
    cell = float(np.prod((high - low) / (nodes - 1)))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), cell
