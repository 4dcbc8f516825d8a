"""Stein's two stages against scipy's quantiles, and by how often the interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from burgersgd.studies.stein import deviation, interval_of, pairs_for


@pytest.mark.parametrize(("sd", "n0", "width"), [(0.02, 10, 0.01), (0.3, 12, 0.25), (0.001, 10, 0.5), (1.0, 20, 0.9)])
def test_the_number_of_pairs_is_steins(sd: float, n0: int, width: float) -> None:
    t = stats.t.ppf(0.975, n0 - 1)
    n = pairs_for(sd, n0, width)
    assert n == max(n0, math.ceil((2 * t * sd / width) ** 2))
    assert 2 * t * sd / math.sqrt(n) <= width
    assert n == n0 or 2 * t * sd / math.sqrt(n - 1) > width


@pytest.mark.parametrize("sd", [0.0, math.nan])
def test_a_deviation_of_which_nothing_follows_gives_the_first_stage(sd: float) -> None:
    assert pairs_for(sd, 10, 0.01) == 10


def test_the_interval_has_the_deviation_of_the_first_stage_and_the_mean_of_all() -> None:
    every = np.random.default_rng(3).normal(0.4, 2.0, 37)
    found = interval_of(every[:10], every)
    half = stats.t.ppf(0.975, 9) * np.std(every[:10], ddof=1) / math.sqrt(37)
    assert found.mean == pytest.approx(every.mean())
    assert found.interval == pytest.approx((every.mean() - half, every.mean() + half))
    assert found.width == pytest.approx(2 * half)
    assert (found.n, found.n0) == (37, 10)
    assert math.isnan(interval_of(every[:1], every[:1]).width)
    assert math.isnan(interval_of(np.full(10, 0.5), np.full(10, 0.5)).width)  # the spread of equal values is not known
    assert math.isnan(deviation(every[:1]))


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_the_interval_is_as_narrow_as_wanted_and_holds_the_truth_at_its_level(sigma: float) -> None:
    """n = 4,000 studies: the share of misses has a standard error of 0.0034 around 0.05, the bounds are 3.5 of them."""
    generator, misses, width = np.random.default_rng(11), 0, 1.0
    for _ in range(4000):
        first = generator.normal(0.3, sigma, 10)
        n = pairs_for(deviation(first), 10, width)
        found = interval_of(first, np.concatenate([first, generator.normal(0.3, sigma, n - 10)]))
        assert found.width <= width * (1 + 1e-12)
        misses += not found.interval.low <= 0.3 <= found.interval.high
    assert abs(misses / 4000 - 0.05) < 3.5 * math.sqrt(0.05 * 0.95 / 4000)
