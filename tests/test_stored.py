"""Records of version 0.1.0 remain usable: a finished run, a stopped run and a sweep, stored in tests/data/0.1.0."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from burgersgd.cli import main
from burgersgd.config import GROUPS, TrainConfig
from burgersgd.identity import config_from, config_hash
from burgersgd.recording.run_folder import read_metrics, read_status
from burgersgd.schema import is_added

STORED = Path(__file__).parent / "data" / "0.1.0"
IDENTITY = json.loads((STORED / "identity.json").read_text())
SWEEP = [
    "--multirun",
    *("dataset.train_size=200", "model.width=6", "model.depth=1", "device=cpu", "device.threads=1"),
    *("trainer.budget=60", "trainer.log_every=20", "trainer.eval_every=20", "trainer.precision=float64"),
    *("trainer.compile=off", "optimizer.inner_steps=4", "optimizer.burn_in=1", "optimizer.outer_momentum=0.3"),
    *("output_root=.", "sweep.name=sweep", "sweep.max_runs=1", "sweep.workers=1", "optimizer.nu=1e-5,3e-5", "seed=5"),
]


@pytest.mark.parametrize("choice", IDENTITY["choices"])
def test_a_configuration_that_0_1_0_recorded_has_the_hash_that_it_had(choice: str) -> None:
    group, known = choice.partition("=")[0], IDENTITY["choices"][choice]
    record = IDENTITY["defaults"] | {group: known["settings"]}
    assert config_hash(config_from(record), 120) == known["hash"]


def test_settings_away_from_their_defaults_have_the_hash_that_0_1_0_gave_them() -> None:
    assert config_hash(config_from(IDENTITY["away"]["record"]), 63) == IDENTITY["away"]["hash"]


@pytest.mark.parametrize("choice", ["run", *IDENTITY["choices"]])
def test_keys_that_0_1_0_did_not_have_say_so_and_its_own_do_not(choice: str) -> None:
    """Otherwise every run of that class would have another name, and records without the key no meaning."""
    group, _, name = choice.partition("=")
    cls = GROUPS[group][name] if name else TrainConfig
    theirs = IDENTITY["choices"][choice]["settings"] if name else IDENTITY["defaults"]
    assert {f.name for f in dataclasses.fields(cls) if not is_added(f)} == set(theirs)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    for entry in STORED.iterdir():
        if entry.is_dir():
            shutil.copytree(entry, tmp_path / entry.name)
    return tmp_path


def numbers(metrics: dict[str, list[float]], like: dict[str, list[float]]) -> list[float]:
    return [value for name in like if name != "seconds" for value in metrics[name]]


def same(folder: Path, undisturbed: str) -> bool:
    """Whether the metrics are those of the undisturbed run, to rounding (the stored ones are of another machine)."""
    expected = STORED / undisturbed
    (folder / "expected").mkdir()
    shutil.copy(expected, folder / "expected" / "metrics.csv")
    like = read_metrics(folder / "expected")
    return numbers(read_metrics(folder), like) == pytest.approx(numbers(like, like), rel=1e-9, nan_ok=True)


def test_a_stopped_run_of_0_1_0_is_resumed_to_the_numbers_of_an_uninterrupted_one(stored: Path) -> None:
    assert len(read_metrics(stored / "stopped")["evaluations"]) == 2
    assert main(["train", f"resume={stored / 'stopped'}"]) == 0
    assert read_status(stored / "stopped")["evaluations"] == 60
    assert same(stored / "stopped", "stopped_undisturbed.csv")


def test_a_run_of_0_1_0_whose_numbers_would_change_is_refused_in_one_line(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise and momentum: 0.1.0 added the noise to y, and not to its velocity."""
    folder = stored / "stopped_momentum"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["train", f"resume={folder}"]) == 1
    error = capsys.readouterr().err
    assert "the update rule of this version, differs" in error
    assert error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_finished_run_of_0_1_0_continues_with_a_larger_budget(stored: Path) -> None:
    assert main(["train", "resume=finished", "trainer.budget=80", "run_name=further"]) == 0
    assert read_status(stored / "further")["evaluations"] == 80
    before, after = read_metrics(stored / "finished"), read_metrics(stored / "further")
    assert numbers(after, before)[:4] == numbers(before, before)[:4]


def test_a_finished_run_of_0_1_0_is_evaluated_and_exported(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "finished"]) == 0  # 1 where a number differs from the record
    assert "recorded" not in capsys.readouterr().out
    assert main(["export", "finished"]) == 0
    tensors = torch.load(stored / "finished" / "model.pt", weights_only=True)["network"]
    assert sum(t.numel() for t in tensors.values()) == read_status(stored / "finished")["n_parameters"]


def test_a_sweep_of_0_1_0_trains_only_what_it_left(stored: Path) -> None:
    sweep = stored / "multirun" / "sweep"
    done, begun = sweep / "4b3efddbcbcd", sweep / "c0f91e05bdb4"
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    assert read_status(begun)["state"] == "interrupted"
    assert main(["train", *SWEEP]) == 0
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before
    assert {path.parent.name for path in sweep.glob("*/status.json")} == {done.name, begun.name}
    assert read_status(begun)["state"] == "completed"
    assert same(begun, "job_undisturbed.csv")
