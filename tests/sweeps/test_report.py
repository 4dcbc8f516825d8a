"""The report of a sweep by setting, during training and at its end."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from burgersgd.analysis.by_setting import RESULTS, SUMMARY
from burgersgd.cli import main
from burgersgd.config import SgdConfig, TrainConfig
from burgersgd.sweeps.report import BestMean, setting_of

SWEEP = ["train", "--multirun", "optimizer=sgd", "optimizer.lr=0.05,0.2", "seed=range(3)", "trainer.budget=90"]
SWEEP += ["model.width=8", "sweep.name=s"]


def test_the_best_mean_is_that_of_settings_whose_jobs_are_all_over() -> None:
    best = BestMean()
    for setting in "aabbcc":
        best.expect(setting)
    best.end("a", 0.1)
    assert best.value is None
    best.end("a", 0.5)
    assert best.value == pytest.approx(0.3)
    best.end("b", 0.01)
    best.end("b", math.inf)
    assert best.value == pytest.approx(0.3)  # a setting with a diverged job comes behind those without
    best.end("c", 0.2)
    best.end("c", math.nan)
    assert best.value == pytest.approx(0.2)


def test_settings_with_a_diverged_job_count_where_there_are_no_others() -> None:
    best = BestMean()
    for error in (0.25, math.inf):
        best.expect("a")
        best.end("a", error)
    assert best.value == 0.25


def test_a_setting_is_all_but_the_seed() -> None:
    config = TrainConfig(optimizer=SgdConfig(lr=0.2), seed=3)
    assert setting_of(config, 90) == setting_of(TrainConfig(optimizer=SgdConfig(lr=0.2), seed=4), 90)
    assert setting_of(config, 90) != setting_of(TrainConfig(optimizer=SgdConfig(lr=0.3), seed=3), 90)
    assert setting_of(config, 90) != setting_of(config, 91)


def test_a_sweep_ends_with_its_settings_and_status_writes_what_a_killed_one_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(SWEEP) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^lr=0\.\d+ +3 ", shown, re.MULTILINE)
    best = re.search(r"best setting: lr=(\S+), mean validation error (\S+) % of 3", shown)
    assert best is not None
    folder = tmp_path / "outputs" / "multirun" / "s"
    with (folder / RESULTS).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    means = {}
    for lr in ("0.05", "0.2"):
        errors = [float(row["validation_error"]) for row in rows if row["optimizer.lr"] == lr]
        assert len(errors) == 3
        means[lr] = sum(errors) / 3
    assert best[1] == min(means, key=lambda lr: means[lr])
    assert float(best[2]) == pytest.approx(100 * min(means.values()), abs=0.006)
    written = (folder / SUMMARY).read_text(), (folder / RESULTS).read_text()
    for name in (SUMMARY, RESULTS):
        (folder / name).unlink()
    assert main(["status", "s"]) == 0
    assert best[0] in capsys.readouterr().out
    assert (folder / SUMMARY).read_text() == written[0]
    assert sorted((folder / RESULTS).read_text().splitlines()) == sorted(written[1].splitlines())
    assert main(["status", "s", "--json"]) == 0
    jobs = json.loads(capsys.readouterr().out)
    assert [job["state"] for job in jobs] == ["completed"] * 6
    assert {round(job["validation_error"], 6) for job in jobs} == {round(float(r["validation_error"]), 6) for r in rows}
    assert main(["list", str(folder), "--where", "optimizer.lr=0.2"]) == 0
    assert sum(line.startswith(str(folder)) for line in capsys.readouterr().out.splitlines()) == 3
