"""Runs without a validation part (dataset.validation_fraction=0), by which nothing can be selected."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import burgersgd
from burgersgd import datasets
from burgersgd.api import Result
from burgersgd.cli import main
from burgersgd.config import (
    ConfigError,
    DigitsConfig,
    LossConfig,
    MlpConfig,
    SgdConfig,
    SweepConfig,
    TeacherStudentConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.recording.files import RunFolderError
from burgersgd.revisit import evaluate

WORDS = ["dataset=digits", "dataset.train_size=100", "model.width=8", "trainer.budget=40", "trainer.log_every=10"]


def trained(folder: Path, budget: int = 40, **settings: Any) -> Result:
    settings = {
        "dataset": DigitsConfig(train_size=100, validation_fraction=0.0),
        "model": MlpConfig(width=8),
    } | settings
    trainer = TrainerConfig(budget=budget, log_every=10)
    return burgersgd.train(TrainConfig(trainer=trainer, output_root=str(folder), **settings), progress=False)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return trained(tmp_path_factory.mktemp("runs"))


def test_all_examples_but_those_of_the_test_are_trained_on() -> None:
    whole, part = datasets.load(DigitsConfig(validation_fraction=0.0)), datasets.load(DigitsConfig())
    assert whole.validation.n == 0
    assert whole.n_train == part.n_train + part.validation.n
    assert whole.test.n == part.test.n
    assert bool((whole.test.targets == part.test.targets).all())
    assert whole.input_shape == part.input_shape == tuple(whole.validation.inputs.shape[1:])


def test_without_validation_part_only_the_test_error_is_reported(result: Result) -> None:
    assert result.state == "completed"
    assert 0 < result.test_error < 1
    unknown = (result.validation_error, result.validation_loss, result.best_validation_error, result.best_test_error)
    assert all(map(math.isnan, unknown))
    assert set(result.metrics["validation_error"]) == {None}
    assert "no validation part" in repr(result)
    assert "best by validation" not in repr(result)
    assert result.folder is not None
    measured = evaluate(result.folder)
    assert measured == {"test_loss": result.test_loss, "test_error": result.test_error}


def test_what_is_best_by_validation_is_refused(result: Result) -> None:
    assert result.folder is not None
    with pytest.raises(RunFolderError, match="has no best x"):
        evaluate(result.folder, "best")
    with pytest.raises(RunFolderError, match="has no best x"):
        burgersgd.load_predictor(result.folder, "best")


def test_a_run_is_resumed_with_the_bits_of_an_uninterrupted_one(tmp_path: Path, result: Result) -> None:
    assert result.folder is not None
    on = burgersgd.resume(result.folder, budget=60, output_root=str(tmp_path), progress=False)
    assert on.test_loss == trained(tmp_path, budget=60).test_loss
    assert math.isnan(on.validation_error)


def test_a_run_that_learns_nothing_is_compared_with_guessing_on_the_test_part(tmp_path: Path) -> None:
    found = trained(tmp_path, optimizer=SgdConfig(lr=1e-6), seed=3)
    data = datasets.load(found.config.dataset)
    assert found.guess_error == data.guess_error(data.test)
    assert found.no_better_than_guessing


def test_a_run_that_blows_up_has_diverged(tmp_path: Path) -> None:
    dataset = TeacherStudentConfig(n_samples=200, validation_fraction=0.0)
    found = trained(tmp_path, dataset=dataset, loss=LossConfig("squared_error"), optimizer=SgdConfig(lr=40))
    assert found.state == "diverged"


@pytest.mark.parametrize("settings", [{"sampler": "optuna"}, {"prune": "median"}, {"prune": "halving"}])
def test_a_search_that_selects_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a validation part to select by"):
        TrainConfig(dataset=DigitsConfig(validation_fraction=0.0), sweep=SweepConfig(**settings))


def test_a_sweep_has_no_best_setting_and_compare_picks_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS, "dataset.validation_fraction=0", "sweep.name=s", f"output_root={tmp_path}"]
    assert main(["train", "--multirun", *words, "optimizer=sgd", "optimizer.lr=0.1,0.3", "seed=3,4"]) == 0
    said = capsys.readouterr().out
    assert "no setting can be selected, because there is no validation part" in said
    assert "best setting" not in said
    folder = str(tmp_path / "multirun" / "s")
    assert main(["compare", folder, "--by", "optimizer.name"]) == 2
    assert "the runs have no validation part" in capsys.readouterr().err
    assert main(["compare", folder, "--by", "optimizer.lr", "--baseline", "0.3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["n"] for row in rows] == [2, 2]
