"""Gibbs laws exp(-U / T) / Z in one dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike

from burgersgd.theory.checks import check_finite, check_positive, float_array
from burgersgd.theory.quadrature import Function, OfRows, cumulative, find_mass, integrate


@dataclass(frozen=True)
class GibbsLaw:
    """A law exp(-U / T) / Z."""

    potential: Function  # U
    temperature: float  # T
    around: float  # a point near the mass
    low: ndarray  # [1, 1]: lower end of the interval that holds the mass, as an offset from around
    high: ndarray  # [1, 1]: its upper end
    log_z: float  # log of Z = + the integral of exp(-U / T)

    def density(self, y: ArrayLike) -> ndarray:
        """Return exp(-U(y) / T) / Z, same shape as y."""
        return np.exp(-self.potential(float_array(y)) / self.temperature - self.log_z)

    def expectation(self, of: Function) -> ndarray:
        """Return the expectation of of(y), ``[]``."""
        exponent = _exponent(self.potential, self.temperature, self.around)
        return integrate(exponent, lambda _rows, z: of(self.around + z[..., 0]), self.low, self.high)[1][0]

    def mean(self) -> ndarray:
        """Return E y, ``[]``."""
        return self.expectation(lambda y: y)

    def variance(self) -> ndarray:
        """Return Var(y), ``[]``."""
        mean = self.mean()
        return self.expectation(lambda y: (y - mean) ** 2)

    def variance_error(self, n: int) -> float:
        """Return the standard error of the sample variance of n independent points."""
        mean = self.mean()
        fourth = self.expectation(lambda y: (y - mean) ** 4)
        return float(np.sqrt((fourth - self.variance() ** 2) / n))

    def cdf(self, at: ArrayLike) -> ndarray:
        """Return P(y <= at), same shape as at."""
        edges = self.around + np.linspace(self.low[0, 0], self.high[0, 0], 257)
        return cumulative(self.density, edges)(np.clip(float_array(at), edges[0], edges[-1]))


def gibbs_law(potential: Function, temperature: float, *, around: float = 0.0) -> GibbsLaw:
    """Return the law exp(-U / T) / Z of a potential U at temperature T. Implements Eq. (2.16), with T = nu.

    The search for the mass starts at `around`, see quadrature.find_mass. Raises ValueError unless T is finite and > 0,
    U(around) is finite, exp(-U / T) has its mass within quadrature.REACH, and the quadrature resolves its wells.
    """
    check_positive(temperature=temperature)
    check_finite(around=around)
    exponent = _exponent(potential, temperature, around)
    low, high = find_mass(exponent, np.full((1, 1), around))
    log_z, _ = integrate(exponent, lambda _rows, z: z, low, high)
    return GibbsLaw(potential, temperature, around, low, high, float(log_z[0]))


def _exponent(potential: Function, temperature: float, around: float) -> OfRows:
    return lambda _rows, z: -potential(around + z[..., 0]) / temperature
