"""Performance profiles against tables worked by hand, ties and misses included."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from burgersgd.analysis.compare import compare
from burgersgd.analysis.profiles import area, profile, profiles_of, ranks, ratios, study_time
from burgersgd.analysis.question import Question
from burgersgd.analysis.runs import load
from tests.analysis.folders import write_run

INF = math.inf
TIMES = np.array(
    [
        [10.0, 15.0, 10.0],  # a tie of two
        [40.0, 10.0, 41.0],  # exactly 4 times, and beyond it
        [INF, 20.0, 50.0],  # a miss
        [INF, INF, INF],  # nobody
    ]
)


def test_ratios_of_a_table() -> None:
    expected = [[1, 1.5, 1], [4, 1, INF], [INF, 1, 2.5], [INF, INF, INF]]
    assert ratios(TIMES).tolist() == expected


def test_profiles_of_a_table_count_ties_for_both() -> None:
    shares = profile(ratios(TIMES), np.array([1.0, 1.5, 2.4, 4.0]))
    expected = [[1 / 4, 2 / 4, 1 / 4], [1 / 4, 3 / 4, 1 / 4], [1 / 4, 3 / 4, 1 / 4], [2 / 4, 3 / 4, 2 / 4]]
    assert shares.tolist() == expected


def test_areas_of_a_table() -> None:
    expected = [(1 + 0) / 4, (2.5 / 3 + 1 + 1) / 4, (1 + 1.5 / 3) / 4]
    assert area(ratios(TIMES)) == pytest.approx(expected)
    tau = np.linspace(1, 4, 300_001)
    assert profile(ratios(TIMES), tau).mean(axis=0) == pytest.approx(expected, abs=1e-5)


def test_equal_areas_share_a_place() -> None:
    assert ranks(np.array([0.5, 0.9, 0.5, 0.1])) == [2, 1, 2, 4]


def test_a_study_takes_the_best_of_its_trials_and_the_median_over_studies(tmp_path: Path) -> None:
    times = {(0.1, 0): 50.0, (0.3, 0): 30.0, (0.1, 1): 20.0, (0.3, 1): INF, (0.1, 2): INF, (0.3, 2): INF}
    for lr, seed in times:
        write_run(tmp_path / f"{lr}-{seed}", {"optimizer.lr": lr, "seed": seed})
    runs = load(tmp_path)
    assert study_time(runs, lambda run: times[run.settings["optimizer.lr"], run.seed]) == 30
    assert study_time(runs.where({"seed": ["0", "1"]}), lambda run: 7.0 if run.seed else 9.0) == 8
    assert math.isnan(study_time(runs, lambda run: math.nan))


def write_curve(path: Path, dataset: str, optimizer: str, curve: dict[int, float]) -> None:
    rows = [{"evaluations": e, "validation_error": v} for e, v in curve.items()]
    settings = {"dataset.name": dataset, "optimizer.name": optimizer}
    write_run(path / f"{dataset}-{optimizer}", settings, rows=rows, validation_error=list(curve.values())[-1])


def test_profiles_of_runs_on_both_clocks_and_their_ranks(tmp_path: Path) -> None:
    write_curve(tmp_path, "digits", "sgd", {100: 0.3, 200: 0.12, 600: 0.1})
    write_curve(tmp_path, "digits", "adamw", {100: 0.11, 300: 0.1, 600: 0.1})
    write_curve(tmp_path, "mnist1d", "sgd", {100: 0.3, 200: 0.22, 600: 0.2})
    write_curve(tmp_path, "mnist1d", "adamw", {100: 0.4, 300: 0.24, 600: 0.24})
    c = compare(load(tmp_path), Question(by=("dataset.name", "optimizer.name")))
    cost = {(name,): {("sgd",): 1.0, ("adamw",): 2.0} for name in ("digits", "mnist1d")}
    found = {(p.clock, p.relaxation): p for p in profiles_of(c, cost)}
    strict = found["evaluations", 1.0]
    assert strict.targets == pytest.approx((0.1, 0.2))
    place = {label: i for i, label in enumerate(strict.labels)}
    assert strict.relative[:, place["sgd"]].tolist() == [2, 1]  # 600 against 300; alone
    assert strict.relative[:, place["adamw"]].tolist() == [1, INF]
    relaxed = found["evaluations", 1.25]  # 0.125 and 0.25: 200 against 100; 200 against 300
    assert relaxed.relative[:, place["sgd"]].tolist() == [2, 1]
    assert relaxed.relative[:, place["adamw"]].tolist() == [1, 1.5]
    seconds = found["seconds", 1.25]  # 200 against 200; 200 against 600
    assert seconds.relative[:, place["sgd"]].tolist() == [1, 1]
    assert seconds.relative[:, place["adamw"]].tolist() == [1, 3]
    assert relaxed.ranks[place["sgd"]] == 2
    assert seconds.ranks[place["sgd"]] == 1
    assert {p.clock for p in profiles_of(c)} == {"evaluations"}


def test_a_comparison_at_a_target_has_profiles_of_that_target(tmp_path: Path) -> None:
    write_curve(tmp_path, "digits", "sgd", {100: 0.3, 200: 0.12, 600: 0.1})
    write_curve(tmp_path, "digits", "adamw", {100: 0.11, 300: 0.1, 600: 0.1})
    write_curve(tmp_path, "mnist1d", "sgd", {100: 0.3, 200: 0.22, 600: 0.2})
    write_curve(tmp_path, "mnist1d", "adamw", {100: 0.21, 300: 0.24, 600: 0.24})
    by = ("dataset.name", "optimizer.name")
    c = compare(load(tmp_path), Question(by=by, metric="validation_error", at="target=0.22"))
    found = {p.relaxation: p for p in profiles_of(c)}
    assert found[1.0].targets == (0.22, 0.22)
    assert found[1.5].targets == pytest.approx((0.33, 0.33))
    place = {label: i for i, label in enumerate(found[1.0].labels)}
    assert found[1.0].relative[:, place["sgd"]].tolist() == [2, 2]  # 200 against 100 on both
    assert found[1.0].relative[:, place["adamw"]].tolist() == [1, 1]
