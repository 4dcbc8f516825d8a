"""The statistics of comparisons: intervals, tests, corrections and power, as plain functions of arrays.

Values are float64 ``[n]``. Only scipy.special is used, because scipy.stats takes half a second to import. The tests
compare every function with scipy.stats and statsmodels. Undefined results (the spread of one value) are nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Values = NDArray[np.float64]

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8
RESAMPLES = 9999
LARGEST_N = 1_000_000
"""Largest number of pairs that planning considers."""


class Interval(NamedTuple):
    """Lower and upper end of an interval; nan if the spread is unknown."""

    low: float
    high: float


class MeanTest(NamedTuple):
    """A difference of means, its standard error and test; the interval is at LEVEL and not adjusted."""

    difference: float
    interval: Interval
    p: float
    standard_error: float
    df: float


UNKNOWN = Interval(math.nan, math.nan)


def t_interval(values: Values, level: float = LEVEL) -> Interval:
    """Return Student's interval of the mean."""
    n = len(values)
    if n < 2:
        return UNKNOWN
    mean, half = float(np.mean(values)), t_quantile(level, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean - half, mean + half)


def t_quantile(level: float, df: float) -> float:
    """Return the half width of a two-sided interval at `level`, in standard errors."""
    return float(special.stdtrit(df, (1 + level) / 2))


def resample_indices(n: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Return the indices of the n values of each resample, ``[resamples, n]``.

    The indices come from a hash of their position (the 32-bit finaliser of MurmurHash3, twice), so that any other
    program, such as a page in a browser, draws the same resamples.
    """
    counter = np.arange(resamples * n, dtype=np.uint64)
    h = _murmur((counter + np.uint64(seed) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF))
    h = _murmur(h ^ np.uint64(0x5BD1E995))
    return (h * np.uint64(n) >> np.uint64(32)).astype(np.int64).reshape(resamples, n)


def _murmur(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64(0xFFFFFFFF)
    h = h ^ (h >> np.uint64(16))
    h = h * np.uint64(0x85EBCA6B) & mask
    h = h ^ (h >> np.uint64(13))
    h = h * np.uint64(0xC2B2AE35) & mask
    return h ^ (h >> np.uint64(16))


def bca_interval(values: Values, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the bias-corrected and accelerated bootstrap interval of the mean (Efron 1987)."""
    n = len(values)
    if n < 2:
        return UNKNOWN
    mean = float(np.mean(values))
    if np.all(values == values[0]):
        return Interval(mean, mean)
    drawn = values[resample_indices(n, resamples, seed)].mean(axis=1)
    bias = float(special.ndtri((np.mean(drawn < mean) + np.mean(drawn <= mean)) / 2))
    left_out = (np.sum(values) - values) / (n - 1)
    d = left_out.mean() - left_out
    acceleration = float(np.sum(d**3) / (6 * np.sum(d**2) ** 1.5))
    z = bias + special.ndtri(np.array([1 - level, 1 + level]) / 2)
    low, high = np.quantile(drawn, special.ndtr(bias + z / (1 - acceleration * z)))
    return Interval(float(low), float(high))


def paired_t(differences: Values, level: float = LEVEL) -> MeanTest:
    """Return Student's test of the mean of paired differences; p is nan if they are fewer than two or all equal."""
    n = len(differences)
    mean = float(np.mean(differences)) if n else math.nan
    if n < 2:
        return MeanTest(mean, UNKNOWN, math.nan, math.nan, n - 1)
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    return MeanTest(mean, t_interval(differences, level), _p(mean, error, n - 1), error, n - 1)


def welch(x: Values, y: Values, level: float = LEVEL) -> MeanTest:
    """Return Welch's test of mean(x) - mean(y), for unequal variances and without pairs."""
    difference = float(np.mean(x) - np.mean(y)) if len(x) and len(y) else math.nan
    if len(x) < 2 or len(y) < 2:
        return MeanTest(difference, UNKNOWN, math.nan, math.nan, math.nan)
    a, b = float(np.var(x, ddof=1)) / len(x), float(np.var(y, ddof=1)) / len(y)
    error = math.sqrt(a + b)
    if error == 0:
        return MeanTest(difference, UNKNOWN, math.nan, 0.0, math.nan)
    df = (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))
    half = t_quantile(level, df) * error
    return MeanTest(difference, Interval(difference - half, difference + half), _p(difference, error, df), error, df)


def _p(difference: float, error: float, df: float) -> float:
    if error <= 1e-12 * abs(difference) or error == 0:  # equal up to rounding: the spread is unknown
        return math.nan
    return float(2 * special.stdtr(df, -abs(difference / error)))


def sign_test(differences: Values) -> float:
    """Return the two-sided p-value of the exact sign test, ignoring zero and nan (inf - inf) differences."""
    positive, negative = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    n = positive + negative
    return min(1.0, 2 * float(special.bdtr(min(positive, negative), n, 0.5))) if n else 1.0


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Return p-values adjusted for a family of tests by Holm's step-down method (1979).

    family: the size of the family, at least the number of tests; further tests count as not significant. A test without
    a p-value (nan) counts, and its adjusted value is nan.
    """
    m = max(len(p_values), family or 0)
    adjusted, largest = [math.nan] * len(p_values), 0.0
    ordered = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    for rank, (p, i) in enumerate(ordered):
        largest = max(largest, min(1.0, (m - rank) * p))
        adjusted[i] = largest
    return adjusted


def probability_of_improvement(x: Values, y: Values) -> float:
    """Return the probability that a value of x is below a value of y, ties counted half (Mann-Whitney U / (n m))."""
    if not len(x) or not len(y):
        return math.nan
    ordered = np.sort(y)
    below, not_above = np.searchsorted(ordered, x, "left"), np.searchsorted(ordered, x, "right")
    return float(np.mean(len(y) - (below + not_above) / 2) / len(y))


def power_of_t(shift: float, df: float, alpha: float) -> float:
    """Return the power of a two-sided t-test at level alpha; shift >= 0 is the true difference in standard errors.

    The noncentral t is (z + shift) / s with z normal and df s^2 chi-squared. The integral over z is computed by
    Gaussian quadrature, because scipy's nctdtr underflows for shifts beyond 37, which tests of two pairs need.
    """
    critical = float(special.stdtrit(df, 1 - alpha / 2))
    return _tail(shift, df, critical) + _tail(-shift, df, critical)


def _tail(shift: float, df: float, critical: float) -> float:
    """Return P(z + shift > critical s)."""
    centre, width = critical - shift, 6 * critical / math.sqrt(2 * df)  # the integrand changes fastest around centre
    low = max(-_REACH, -shift)
    edges = np.clip([low, centre - width, centre + width, _REACH], min(low, _REACH), _REACH)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    z = middle[:, None] + half[:, None] * _NODES
    below = special.chdtr(df, df * ((z + shift) / critical) ** 2)
    return float(np.sum(half[:, None] * _WEIGHTS * np.exp(-(z**2) / 2) * below) / math.sqrt(2 * math.pi))


_REACH = 9.0
"""Standard deviations beyond which the normal density is neglected."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def minimum_detectable(standard_error: float, df: float, alpha: float, power: float = POWER) -> float:
    """Return the smallest true difference that a t-test at level alpha detects with that power (noncentral t).

    The result is nan if the standard error is unknown.
    """
    if not standard_error > 0 or not df > 0:
        return math.nan
    low, high = 0.0, 1.0
    while power_of_t(high, df, alpha) < power:
        high *= 2
        if high > 1e8:
            return math.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of_t(middle, df, alpha) >= power else (middle, high)
        if high - low <= 1e-12 * high:
            break
    return high * standard_error


def pairs_needed(difference: float, sd: float, alpha: float, power: float = POWER) -> float:
    """Return the number of pairs that a paired t-test at level alpha needs to detect a difference with that power.

    sd is the standard deviation of the differences. The result is inf beyond LARGEST_N and nan if sd is unknown.
    """
    if not sd > 0 or math.isnan(difference):
        return math.nan

    def enough(n: int) -> bool:
        return power_of_t(abs(difference) * math.sqrt(n) / sd, n - 1, alpha) >= power

    low, high = 1, 2  # low is never enough: one pair has no spread
    while not enough(high):
        low, high = high, 2 * high
        if high > LARGEST_N:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def standard_error_of_share(share: float, n: int) -> float:
    """Return the binomial standard error of an error rate measured on n examples."""
    return math.sqrt(share * (1 - share) / n) if n > 0 and 0 <= share <= 1 else math.nan
