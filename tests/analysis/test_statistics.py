# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false
# (the stubs of scipy and statsmodels do not know what their functions return)
"""Every statistic against scipy.stats, statsmodels, plain loops or simulation."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.descriptivestats import sign_test as statsmodels_sign_test
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from burgersgd.analysis.statistics import (
    bca_interval,
    holm,
    minimum_detectable,
    paired_t,
    pairs_needed,
    power_of_t,
    probability_of_improvement,
    resample_indices,
    sign_test,
    standard_error_of_share,
    t_interval,
    welch,
)

RNG = np.random.default_rng(20261126)
X, Y = RNG.gamma(2.3, 1.7, 11), RNG.gamma(3.1, 1.4, 14)


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize("n", [2, 3, 11])
def test_t_interval_is_the_one_of_scipy_and_of_statsmodels(n: int, level: float) -> None:
    found = t_interval(X[:n], level)
    assert found == pytest.approx(stats.ttest_1samp(X[:n], 0).confidence_interval(level), rel=1e-12)
    assert found == pytest.approx(DescrStatsW(X[:n]).tconfint_mean(alpha=1 - level), rel=1e-12)


def test_one_value_gives_no_estimate_of_the_spread() -> None:
    assert all(map(math.isnan, [*t_interval(X[:1]), *bca_interval(X[:1]), paired_t(X[:1]).p, welch(X[:1], Y).p]))
    assert paired_t(X[:1]).difference == X[0]
    assert math.isnan(paired_t(X[:0]).difference)
    assert math.isnan(welch(X[:0], Y).difference)


@pytest.mark.parametrize("n", [3, 11])
def test_paired_t_is_the_one_of_scipy(n: int) -> None:
    found, expected = paired_t(X[:n] - Y[:n]), stats.ttest_rel(X[:n], Y[:n])
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.df == expected.df
    assert found.interval == pytest.approx(expected.confidence_interval(0.95), rel=1e-12)
    assert found.difference / found.standard_error == pytest.approx(expected.statistic, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (11, 14), (11, 2)])
def test_welch_is_the_one_of_scipy_and_of_statsmodels(n: int, m: int) -> None:
    found, expected = welch(X[:n], Y[:m]), stats.ttest_ind(X[:n], Y[:m], equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.df == pytest.approx(expected.df, rel=1e-12)
    assert found.interval == pytest.approx(expected.confidence_interval(0.95), rel=1e-12)
    compared = CompareMeans(DescrStatsW(X[:n]), DescrStatsW(Y[:m])).tconfint_diff(usevar="unequal")
    assert found.interval == pytest.approx(compared, rel=1e-12)


def test_differences_that_are_all_equal_have_no_p_value_of_their_own() -> None:
    assert math.isnan(paired_t(np.array([0.1 + 0.2 - 0.3, 0.0])[:1].repeat(4) + 0.3).p)
    assert math.isnan(paired_t(np.full(4, 0.3) + np.array([0, 1e-16, 0, 1e-16])).p)
    assert math.isnan(paired_t(np.zeros(4)).p)
    assert math.isnan(welch(np.full(3, 0.7), np.full(4, 0.2)).p)


def test_bca_interval_is_the_one_of_scipy_on_the_same_resamples() -> None:
    for values, level in ((X, 0.95), (Y[:5], 0.8), (np.round(X), 0.95)):
        drawn = values[resample_indices(len(values))].mean(axis=1)
        same = SimpleNamespace(bootstrap_distribution=drawn)
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=0, bootstrap_result=same, confidence_level=level, method="BCa"
        ).confidence_interval
        assert bca_interval(values, level) == pytest.approx(expected, rel=1e-12)


def test_bca_interval_is_close_to_the_one_of_scipy_on_its_own_resamples() -> None:
    expected = stats.bootstrap((X,), np.mean, n_resamples=20_000, rng=np.random.default_rng(1)).confidence_interval
    width = expected.high - expected.low
    assert np.abs(np.array(bca_interval(X)) - expected).max() < 0.03 * width  # Monte-Carlo error is about 0.01


def test_bca_interval_of_equal_values_is_that_value() -> None:
    assert bca_interval(np.full(4, 0.3)) == pytest.approx((0.3, 0.3))


@pytest.mark.parametrize("n", [2, 7, 30])
def test_resamples_are_uniform_and_independent(n: int) -> None:
    drawn = resample_indices(n, 20_000, seed=3)
    assert drawn.min() == 0
    assert drawn.max() == n - 1
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=n)).pvalue > 1e-3
    joint = np.bincount(drawn[:, 0] * n + drawn[:, 1], minlength=n * n)
    assert stats.chisquare(joint).pvalue > 1e-3
    lagged = np.bincount(drawn[:-1, 1] * n + drawn[1:, 0], minlength=n * n)
    assert stats.chisquare(lagged).pvalue > 1e-3
    assert not np.array_equal(drawn, resample_indices(n, 20_000, seed=4))


def test_resamples_begin_with_numbers_that_other_programs_can_check() -> None:
    def murmur(h: int) -> int:
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        h = h * 0xC2B2AE35 % 2**32
        return h ^ h >> 16

    expected = [murmur(murmur((i + 5 * 0x9E3779B9) % 2**32) ^ 0x5BD1E995) * 7 >> 32 for i in range(21)]
    assert resample_indices(7, 3, seed=5).ravel().tolist() == expected


@pytest.mark.parametrize("differences", [X - 3.1, np.array([1.0, 0.0, -2, 0.5, math.inf, -math.inf, 3, 4])])
def test_sign_test_is_the_binomial_one(differences: np.ndarray) -> None:
    assert sign_test(differences) == pytest.approx(statsmodels_sign_test(differences)[1], rel=1e-12)


def test_sign_test_counts_neither_ties_nor_what_diverged_on_both_sides() -> None:
    assert sign_test(np.array([0.0, math.nan])) == 1
    assert sign_test(np.array([1.0, 2, 3, 0, math.nan, math.inf])) == pytest.approx(2 / 2**4)


@pytest.mark.parametrize("p", [[0.03], [0.001, 0.02, 0.02, 0.3, 0.9], [0.6, 0.013, 0.012, 0.011, 0.01, 1.0]])
def test_holm_is_the_one_of_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_holm_counts_the_tests_of_the_family_that_are_not_given() -> None:
    p = [0.011, math.nan, 0.004, 0.2]
    expected = multipletests([0.011, 1, 0.004, 0.2, 1, 1], method="holm")[1]
    adjusted = holm(p, family=6)
    assert math.isnan(adjusted[1])
    assert [adjusted[i] for i in (0, 2, 3)] == pytest.approx([expected[i] for i in (0, 2, 3)])


def test_probability_of_improvement_is_mann_whitneys_u() -> None:
    x, y = np.round(X), np.append(np.round(Y), [math.inf, math.inf])
    expected = np.mean([(a < b) + (a == b) / 2 for a, b in itertools.product(x, y)])
    assert probability_of_improvement(x, y) == pytest.approx(expected)
    assert probability_of_improvement(x, y[:-2]) == pytest.approx(stats.mannwhitneyu(y[:-2], x).statistic / 11 / 14)
    infinite = np.full(3, math.inf)
    assert probability_of_improvement(infinite, infinite) == 0.5
    assert math.isnan(probability_of_improvement(x, x[:0]))


@pytest.mark.parametrize(
    ("shift", "df", "alpha"), [(2.1, 7, 0.05), (0.3, 19, 0.05 / 6), (3.7, 2, 0.01), (0, 5, 0.05), (5.5, 999, 1e-3)]
)
def test_power_is_the_one_of_statsmodels(shift: float, df: int, alpha: float) -> None:
    expected = TTestPower().power(shift / math.sqrt(df + 1), df + 1, alpha)
    assert power_of_t(shift, df, alpha) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("shift", "df", "alpha"), [(41.0, 5, 0.05), (300.0, 1, 0.05 / 20)])
def test_power_of_a_large_shift_is_the_one_simulated(shift: float, df: int, alpha: float) -> None:
    rng, n = np.random.default_rng(11), 200_000
    drawn = (rng.normal(shift, 1, n) / np.sqrt(rng.chisquare(df, n) / df)) > stats.t.isf(alpha / 2, df)
    assert abs(power_of_t(shift, df, alpha) - drawn.mean()) < 4 * max(drawn.std(), 1e-3) / math.sqrt(n)


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.05), (5, 0.05 / 3), (20, 0.05), (300, 0.001)])
def test_minimum_detectable_difference_is_the_one_of_statsmodels(n: int, alpha: float) -> None:
    sd = 0.37
    found = minimum_detectable(sd / math.sqrt(n), n - 1, alpha)
    assert TTestPower().power(found / sd, n, alpha) == pytest.approx(0.8, abs=1e-9)
    expected = TTestPower().solve_power(nobs=n, alpha=alpha, power=0.8)
    assert found / sd == pytest.approx(expected, rel=1e-4)  # as exact as its search is
    assert math.isnan(minimum_detectable(0.0, n - 1, alpha))
    assert math.isnan(minimum_detectable(math.nan, n - 1, alpha))


def test_minimum_detectable_difference_is_found_four_times_in_five() -> None:
    n, sd, trials = 9, 0.6, 4000
    shift = minimum_detectable(sd / math.sqrt(n), n - 1, 0.05)
    drawn = np.random.default_rng(7).normal(shift, sd, (trials, n))
    found = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert abs(found - 0.8) < 3.3 * math.sqrt(0.8 * 0.2 / trials)


@pytest.mark.parametrize(("difference", "sd", "alpha"), [(0.3, 0.4, 0.05), (-0.05, 0.4, 0.05 / 4), (1.1, 0.4, 0.05)])
def test_pairs_needed_is_the_smallest_number_with_enough_power(difference: float, sd: float, alpha: float) -> None:
    n = int(pairs_needed(difference, sd, alpha))
    exact = TTestPower()
    assert exact.power(abs(difference) / sd, n, alpha) >= 0.8
    assert n == 2 or exact.power(abs(difference) / sd, n - 1, alpha) < 0.8


def test_pairs_needed_has_an_end() -> None:
    assert pairs_needed(0.0, 0.4, 0.05) == math.inf
    assert math.isnan(pairs_needed(0.3, 0.0, 0.05))


def test_standard_error_of_a_test_part() -> None:
    assert standard_error_of_share(0.0177, 359) == pytest.approx(0.007, abs=5e-5)
    assert math.isnan(standard_error_of_share(1.7, 359))
    assert math.isnan(standard_error_of_share(0.3, 0))


def test_a_power_that_no_difference_reaches_is_infinitely_far() -> None:
    assert minimum_detectable(1.7, 5, 0.03, power=1.5) == math.inf
