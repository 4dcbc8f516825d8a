"""Gibbs laws exp(-U / T) / Z in one and two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from burgersgd.theory.checks import check_finite, check_positive, float_array
from burgersgd.theory.quadrature import Function, OfRows, cumulative, find_mass, integrate, scan


@dataclass(frozen=True)
class GibbsLaw:
    """A law exp(-U / T) / Z."""

    potential: Function  # U
    temperature: float  # T
    around: ndarray  # a point near the mass, [] in 1-D and [d] else
    low: ndarray  # [1, d]: lower corner of the box that holds the mass, as an offset from around
    high: ndarray  # [1, d]: its upper corner
    log_z: float  # log of Z = + the integral of exp(-U / T)

    def density(self, y: ArrayLike) -> ndarray:
        """Return exp(-U(y) / T) / Z at points y, ``[...]`` in 1-D and ``[..., d]`` else."""
        return np.exp(-self.potential(float_array(y)) / self.temperature - self.log_z)

    def expectation(self, of: Function) -> ndarray:
        """Return the expectation of of(y), in the shape that `of` has at one point."""

        def values(_rows: ndarray, z: ndarray) -> ndarray:
            return of(_points(self.around, z[0]))[None]

        exponent = _exponent(self.potential, self.temperature, self.around)
        return integrate(exponent, values, self.low, self.high)[1][0]

    def mean(self) -> ndarray:
        """Return E y, ``[]`` in 1-D and ``[d]`` else."""
        return self.expectation(lambda y: y)

    def covariance(self) -> ndarray:
        """Return Cov(y), ``[]`` in 1-D and ``[d, d]`` else."""
        mean = self.mean()
        if mean.ndim == 0:
            return self.expectation(lambda y: (y - mean) ** 2)
        return self.expectation(lambda y: (y - mean)[..., None] * (y - mean)[..., None, :])

    def variance_error(self, n: int) -> float:
        """Return the standard error of the sample variance of n independent points, in one dimension."""
        mean = self.mean()
        fourth = self.expectation(lambda y: (y - mean) ** 4)
        return float(np.sqrt((fourth - self.covariance() ** 2) / n))

    def cdf(self, at: ArrayLike) -> ndarray:
        """Return P(y <= at), same shape as at. 1-D only: raises ValueError else."""
        if self.around.ndim:
            raise ValueError(f"a distribution function needs a law in one dimension, not in {self.around.size}")
        edges = self.around + np.linspace(self.low[0, 0], self.high[0, 0], 257)
        return cumulative(self.density, edges)(np.clip(float_array(at), edges[0], edges[-1]))


def gibbs_law(potential: Function, temperature: float, *, around: ArrayLike = 0.0) -> GibbsLaw:
    """Return the law exp(-U / T) / Z of a potential U at temperature T. Implements Eq. (2.16), with T = nu.

    around is a float (1-D) or ``[d]``, d = 1, 2: the search for the mass starts there, see quadrature.find_mass. Raises
    ValueError unless T is finite and > 0, U(around) is finite, exp(-U / T) has its mass within quadrature.REACH, and
    the quadrature resolves its wells.
    """
    check_positive(temperature=temperature)
    check_finite(around=around)
    origin = float_array(around)
    exponent = _exponent(potential, temperature, origin)
    low, high = find_mass(exponent, origin.reshape(1, -1))
    log_z, _ = integrate(exponent, lambda _rows, z: z, low, high)
    return GibbsLaw(potential, temperature, origin, low, high, float(log_z[0]))


def global_minimum(potential: Function, around: ArrayLike) -> tuple[float, ndarray]:
    """Return min U and the minimiser y, of the shape of around: a float (1-D) or ``[d]``, d = 1, 2.

    The best point of grids on all scales, see quadrature.find_mass, is refined to 1e-8 by a simplex search. Raises
    ValueError unless around and U(around) are finite and U is greater than U(around) at quadrature.REACH.
    """
    check_finite(around=around)
    origin = float_array(around)
    exponent = _exponent(potential, 1.0, origin)
    z = scan(*find_mass(exponent, origin.reshape(1, -1), depth=0.0))
    with np.errstate(over="ignore", invalid="ignore"):
        best = _points(origin, z[0, np.argmax(exponent(np.arange(1), z))])
    found = minimize(
        lambda y: float(potential(y.reshape(origin.shape))),
        np.atleast_1d(best),
        method="Nelder-Mead",
        options={"xatol": 1e-10, "fatol": 1e-16, "maxiter": 1000},
    )
    return float(found.fun), found.x.reshape(origin.shape)


def _exponent(potential: Function, temperature: float, origin: ndarray) -> OfRows:
    return lambda _rows, z: -potential(_points(origin, z)) / temperature


def _points(origin: ndarray, z: ndarray) -> ndarray:
    """Return the points at offsets z ``[..., d]`` in the shape that the potential takes: ``[...]`` in 1-D."""
    return origin + (z[..., 0] if origin.ndim == 0 else z)
