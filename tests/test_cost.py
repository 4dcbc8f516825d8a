from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from burgersgd.analysis.command import main
from burgersgd.config import ConfigError, MlpConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.cost import cost_of, cost_of_runs
from burgersgd.identity import own_record
from burgersgd.recording.run_folder import RunFolder
from tests.analysis.folders import write_run
from tests.conftest import small_config


def test_an_evaluation_of_a_hundred_times_the_work_costs_more() -> None:
    small = small_config(optimizer=SgdConfig())
    trainer = TrainerConfig(budget=10, batch_size=200, precision="float64", compile="off")
    large = dataclasses.replace(small, model=MlpConfig(depth=2, width=200), trainer=trainer)
    cheap, dear = cost_of([small, large], rounds=3, seconds=0.0)
    assert len(cheap) == len(dear) == 3
    assert 0 < min(cheap) < min(dear)


def test_costs_are_those_of_the_folders_configurations(tmp_path: Path) -> None:
    config = small_config()
    with RunFolder.create(tmp_path / "a", dataclasses.asdict(config)):
        pass
    ((*rounds,),) = cost_of_runs([tmp_path / "a"])
    assert len(rounds) == 7
    assert all(0 < seconds < 10 for seconds in rounds)
    with RunFolder.create(tmp_path / "own", own_record(TrainConfig(), "Net", False)):
        pass
    with pytest.raises(ConfigError, match="model=Net: is your own"):
        cost_of_runs([tmp_path / "own"])


def test_compare_shows_costs_and_what_they_make_of_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, reached in (("sgd", 300), ("adamw", 100)):
        rows = [{"evaluations": e, "validation_error": 0.3 if e < reached else 0.05} for e in (0, 100, 300)]
        write_run(tmp_path / name, {"optimizer.name": name}, rows=rows)
    question = [str(tmp_path), "--by", "optimizer.name", "--metric", "validation_error", "--at", "target=6%", "--cost"]

    def measured(folders: list[Path]) -> list[list[float]]:
        return [[2e-3, 1e-3, 3e-3] if folder.name == "sgd" else [4e-3, 5e-3, 6e-3] for folder in folders]

    assert main(question, measured) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sgd", "2e+03", "1e+03", "to", "3e+03", "1.00", "300", "0.6"] in lines
    assert ["adamw", "5e+03", "4e+03", "to", "6e+03", "2.00", "100", "0.5"] in lines
    with pytest.raises(ValueError, match="--cost: can be measured only by the command"):
        main(question)
