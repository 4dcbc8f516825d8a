"""Tuning curves against full enumeration of all subsets of the trials."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burgersgd.analysis.runs import load
from burgersgd.analysis.tuning import Trial, best_of_n, trials_of, tuning_curve
from burgersgd.analysis.values import At, measure
from tests.analysis.folders import write_run

RNG = np.random.default_rng(5)


def trials(n: int, ties: bool = False) -> list[Trial]:
    validation, test = RNG.uniform(0.02, 0.3, n), RNG.uniform(0.02, 0.3, n)
    if ties:
        validation = np.round(validation, 1)
    return [Trial(float(v), float(t), 100.0 + 7 * i) for i, (v, t) in enumerate(zip(validation, test, strict=True))]


def enumerated(given: list[Trial], n: int) -> tuple[float, float]:
    """Return the mean over all subsets of n trials of the best validation error and of the test error at it."""
    best, tested = [], []
    for subset in itertools.combinations(given, n):
        lowest = min(trial.validation for trial in subset)
        best.append(lowest)
        tested.append([trial.test for trial in given if trial.validation == lowest])
    return float(np.mean(best)), float(np.mean([np.mean(values) for values in tested]))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("total", [1, 2, 5, 12])
def test_curve_is_the_mean_over_all_subsets(total: int, ties: bool) -> None:
    given = trials(total, ties)
    curve = tuning_curve(given)
    assert (curve.kind, curve.caution, curve.medians_until) == ("expected", "", 0)
    for n in range(1, total + 1):
        assert (curve.validation[n - 1], curve.test[n - 1]) == pytest.approx(enumerated(given, n))
        assert curve.cost[n - 1] == pytest.approx(n * np.mean([trial.cost for trial in given]))


def test_ties_average_their_test_errors_whichever_of_them_a_subset_holds() -> None:
    given = [Trial(0.1, 0.2, 1), Trial(0.1, 0.4, 1), Trial(0.3, 0.9, 1)]
    assert tuning_curve(given).test[1:] == pytest.approx([0.3, 0.3])


def test_the_median_stands_where_all_of_so_many_trials_may_diverge() -> None:
    given = [*trials(6), *[Trial(math.inf, math.inf, 3.0)] * 3]
    curve = tuning_curve(given)
    assert curve.medians_until == 3
    for n in range(1, 4):
        best = sorted(min(t.validation for t in subset) for subset in itertools.combinations(given, n))
        assert curve.validation[n - 1] == best[(len(best) - 1) // 2]
    for n in range(4, 10):
        assert (curve.validation[n - 1], curve.test[n - 1]) == pytest.approx(enumerated(given, n))


def test_if_every_trial_diverged_so_did_the_best() -> None:
    assert tuning_curve([Trial(math.inf, math.inf, 1.0)] * 3).validation.tolist() == [math.inf] * 3


def test_ranges_hold_most_searches_and_end_where_the_trials_are_used_up() -> None:
    given = trials(12)
    curve = tuning_curve(given)
    for n, (low, high) in enumerate(curve.ranges, 1):
        if n > 6:
            assert math.isnan(low)
            continue
        best = [min(t.validation for t in subset) for subset in itertools.combinations(given, n)]
        assert np.mean([b < low for b in best]) <= 0.1 <= np.mean([b <= low for b in best]) + 1e-12
        assert np.mean([b > high for b in best]) <= 0.1 + 1e-12


def test_weights_of_hundreds_of_trials_add_up_to_one() -> None:
    assert best_of_n(700).sum(axis=1) == pytest.approx(np.ones(700))


@pytest.mark.parametrize(("sampler", "pruned"), [("optuna", False), ("random", True)])
def test_a_search_that_learns_or_stops_trials_has_its_running_best_alone(sampler: str, pruned: bool) -> None:
    given = [Trial(0.3, 0.1, 5), Trial(0.2, 0.4, 7), Trial(0.25, 0.0, 2), Trial(0.2, 0.6, 1)]
    curve = tuning_curve(given, sampler, pruned)
    assert curve.kind == "running best"
    assert curve.caution
    assert curve.validation.tolist() == [0.3, 0.2, 0.2, 0.2]
    assert curve.test.tolist() == [0.1, 0.4, 0.4, 0.5]
    assert curve.cost.tolist() == [5, 12, 14, 15]


@pytest.mark.parametrize("sampler", ["sobol", "grid"])
def test_other_samplers_are_called_approximate(sampler: str) -> None:
    assert tuning_curve(trials(4), sampler).caution.startswith("approximate")


def test_trials_are_means_over_seeds_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    for lr in (0.1, 0.3, 0.9):
        for seed in (0, 1):
            state = "diverged" if (lr, seed) == (0.9, 1) else "completed"
            chosen = {"optimizer.lr": lr, "seed": seed}
            errors: dict[str, Any] = {"validation_error": lr / 10 + seed / 100, "test_error": lr + seed}
            write_run(tmp_path / f"{lr}-{seed}", chosen, state, evaluations=100 + seed, **errors)
    names = [f"{lr}-{seed}" for lr in (0.9, 0.1, 0.3) for seed in (0, 1)]
    lines = [json.dumps({"name": name, "overrides": ""}) for name in names]
    (tmp_path / "jobs.jsonl").write_text("\n".join([*lines[:3], '{"name": "0.', *lines[3:]]))
    found = trials_of(
        load(tmp_path),
        lambda run: measure(run, "validation_error", At("end")),
        lambda run: measure(run, "test_error", At("end")),
    )
    assert [(t.validation, t.test) for t in found] == [
        (math.inf, math.inf),
        (pytest.approx(0.015), pytest.approx(0.6)),
        (pytest.approx(0.035), pytest.approx(0.8)),
    ]
    assert [t.cost for t in found] == [201] * 3
