"""Stein's two stages: the number of pairs that an interval of given width of a mean difference needs (Stein 1945).

The standard deviation s0 of the first n0 differences determines the number of pairs once:
N = max(n0, ceil((2 t s0 / width)^2)) with t the quantile of n0 - 1 degrees of freedom. The interval
mean of all N -+ t s0 / sqrt(N) then has its level for any true deviation; an interval from the deviation of all N would
not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from burgersgd.analysis.statistics import LEVEL, UNKNOWN, Interval, t_quantile


class Stein(NamedTuple):
    """A mean difference with Stein's interval."""

    mean: float
    interval: Interval
    n: int
    """Number of pairs."""
    n0: int
    """Number of pairs of the first stage."""
    sd: float
    """Standard deviation of the differences of the first stage."""

    @property
    def width(self) -> float:
        """The width of the interval."""
        return self.interval.high - self.interval.low


def pairs_for(sd: float, n0: int, width: float) -> int:
    """Return the number of pairs N; it is n0 if the deviation sd is nan or 0, or n0 < 2."""
    if not sd > 0 or n0 < 2:
        return n0
    return max(n0, math.ceil((2 * t_quantile(LEVEL, n0 - 1) * sd / width) ** 2))


def deviation(first: NDArray[np.float64]) -> float:
    """Return s0 of the differences of the first stage, nan for fewer than two."""
    return float(np.std(first, ddof=1)) if len(first) > 1 else math.nan


def interval_of(first: NDArray[np.float64], every: NDArray[np.float64]) -> Stein:
    """Return the mean of all differences with its interval, from the deviation of the first ones, which it includes."""
    sd, n0, n = deviation(first), len(first), len(every)
    mean = float(np.mean(every)) if n else math.nan
    if not sd > 0:
        return Stein(mean, UNKNOWN, n, n0, sd)
    half = t_quantile(LEVEL, n0 - 1) * sd / math.sqrt(n)
    return Stein(mean, Interval(mean - half, mean + half), n, n0, sd)
