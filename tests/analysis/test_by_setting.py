"""Sweeps by setting: means over seeds, order, conclusions, and the written files."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from burgersgd.analysis import by_setting as b
from burgersgd.analysis.runs import Runs, load, read_run
from burgersgd.config import SgdConfig, TrainConfig
from burgersgd.identity import canonical
from tests.analysis.folders import write_run

ERRORS = {0.1: [0.05, 0.07, 0.09], 0.3: [0.02, 0.08, 0.11], 0.5: [0.01, math.inf, 0.012]}


def sweep(root: Path) -> Runs:
    for lr, errors in ERRORS.items():
        for seed, error in enumerate(errors):
            state = "diverged" if math.isinf(error) else "completed"
            numbers: dict[str, Any] = {"validation_error": error, "test_error": 2 * error}
            numbers["best_validation_error"] = error / 2
            chosen = {"optimizer.lr": lr, "seed": seed}
            write_run(root / f"{lr}-{seed}", chosen, state, best_test_error=error / 4, **numbers)
    return load(root)


def test_settings_are_ordered_by_their_means_and_those_with_divergences_come_last(tmp_path: Path) -> None:
    settings = b.by_setting(sweep(tmp_path))
    assert [setting.label for setting in settings] == ["lr=0.1", "lr=0.3", "lr=0.5"]
    for setting, lr in zip(settings, ERRORS, strict=True):
        finite = np.array([e for e in ERRORS[lr] if math.isfinite(e)])
        for spread, values in ((setting.validation, finite), (setting.test, 2 * finite)):
            assert spread.n == len(values)
            assert spread.mean == pytest.approx(values.mean(), rel=1e-12)
            assert spread.sd == pytest.approx(values.std(ddof=1), rel=1e-12)
            interval = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
            assert spread.interval == pytest.approx(interval, rel=1e-9)
    assert settings[2].count("diverged") == 1
    best = settings[0].best_run
    assert best is not None
    assert best.folder.name == "0.1-0"


def test_the_luckiest_run_does_not_make_its_setting_the_best(tmp_path: Path) -> None:
    said = b.text(b.by_setting(sweep(tmp_path)))
    assert "best setting: lr=0.1, mean validation error 7.00 % of 3" in said
    assert "its best run: seed=0 in 0.1-0" in said
    assert "2 of 3" in said


def test_the_objective_best_takes_the_numbers_at_the_best_x(tmp_path: Path) -> None:
    setting = b.by_setting(sweep(tmp_path), "best")[0]
    assert setting.validation.mean == pytest.approx(np.mean(ERRORS[0.1]) / 2)
    assert setting.test.mean == pytest.approx(np.mean(ERRORS[0.1]) / 4)
    assert "validation error % at best" in " ".join(b.table([setting]).columns)


def test_with_one_seed_the_spread_is_reported_as_unknown(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        write_run(tmp_path / str(lr), {"optimizer.lr": lr}, validation_error=lr)
    settings = b.by_setting(load(tmp_path))
    assert math.isnan(settings[0].validation.sd)
    assert "the spread over seeds is unknown" in b.text(settings)


def test_a_setting_whose_seeds_are_not_all_over_is_not_called_the_best(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"optimizer.lr": 0.1, "seed": 0}, validation_error=0.01)
    write_run(tmp_path / "b", {"optimizer.lr": 0.1, "seed": 1}, "interrupted")
    for seed in (0, 1):
        write_run(tmp_path / f"c{seed}", {"optimizer.lr": 0.2, "seed": seed}, validation_error=0.05)
    settings = b.by_setting(load(tmp_path))
    assert settings[0].label == "lr=0.1"
    assert not settings[0].is_done
    assert any("best setting: lr=0.2" in line for line in b.conclusions(settings))
    assert b.table(settings).columns[-1] == "not finished"


def test_regression_is_called_rmse_and_not_multiplied(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), {"seed": seed}, task="regression", validation_error=77.5 + seed)
    settings = b.by_setting(load(tmp_path))
    assert "validation RMSE" in b.table(settings).columns
    assert "78.00" in b.text(settings)


def test_results_have_a_row_per_job_and_summary_every_setting(tmp_path: Path) -> None:
    runs = sweep(tmp_path)
    for lr in range(30):
        write_run(tmp_path / f"more-{lr}", {"optimizer.lr": 1.0 + lr}, validation_error=0.5)
    runs = load(tmp_path)
    settings = b.by_setting(runs)
    b.write(tmp_path, runs, settings)
    with (tmp_path / b.RESULTS).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(runs) == 39
    row = next(row for row in rows if row["folder"] == "0.3-2")
    assert (row["optimizer.lr"], row["seed"], row["state"]) == ("0.3", "2", "completed")
    assert float(row["validation_error"]) == 0.11
    assert (tmp_path / b.SUMMARY).read_text().count("| lr=") == 33
    assert "and 21 more settings in summary.md" in b.text(settings)
    assert len(load(tmp_path)) == 39  # the files are no runs


def test_a_job_known_without_its_folder_is_that_of_its_folder(tmp_path: Path) -> None:
    config = TrainConfig(optimizer=SgdConfig(lr=0.7), seed=5)
    run = b.run_of(asdict(config), canonical(config, 600), tmp_path, {"validation_error": 0.25}, "completed")
    assert run.decides["optimizer.lr"] == 0.7
    assert run.seed == 5
    assert b.by_setting(Runs((run,)))[0].validation.mean == 0.25
    written = read_run(write_run(tmp_path / "w", {"optimizer.lr": 0.7}))
    assert written.decides["optimizer.lr"] == run.decides["optimizer.lr"]
