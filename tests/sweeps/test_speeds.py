"""Rates of fleets are stored per machine; an invalid file is ignored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from burgersgd.build.prepared import prepare
from burgersgd.config import MlpConfig, SgdConfig, SweepConfig, TrainerConfig
from burgersgd.recording.progress import SweepProgress
from burgersgd.sweeps import planning, speeds
from burgersgd.sweeps.chunks import Job
from burgersgd.sweeps.planning import LocalTrainer
from tests.conftest import small_config

KEY = "0123456789abcdef"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "speeds"
    monkeypatch.setattr(speeds, "rates_folder", lambda: folder)
    return folder


def test_what_is_kept_is_known_and_added_to(place: Path) -> None:
    assert speeds.stored_rates(KEY) == {}
    speeds.store_rates(KEY, {"1": 250.5, "16": 1e6})
    speeds.store_rates(KEY, {"4": 7.0, "1": 300.0})
    assert speeds.stored_rates(KEY) == {"1": 300.0, "16": 1e6, "4": 7.0}
    assert speeds.stored_rates("f" * 16) == {}
    assert [path.name for path in place.iterdir()] == [f"{KEY}.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[1, 2]",
        b'{"rates": {"1": 2.0}}',
        b'{"key": "0123456789abcdef", "rates": {"1": -2.0}}',
        b'{"key": "0123456789abcdef", "rates": {"1": "fast"}}',
        b'{"key": "0123456789abcdef", "rates": {"-1": 2.0}}',
        b'{"key": "0123456789abcdef", "rates": {"1": 1e999}}',
        b'{"key": "fedcba9876543210", "rates": {"1": 2.0}}',
        b'{"key": "0123456789abcdef", "rates": {"1": 2.0}}' + b" " * (1 << 16),
    ],
)
def test_a_bad_or_foreign_file_is_ignored_and_replaced(place: Path, content: bytes) -> None:
    place.mkdir()
    (place / f"{KEY}.json").write_bytes(content)
    assert speeds.stored_rates(KEY) == {}
    speeds.store_rates(KEY, {"2": 5.0})
    assert speeds.stored_rates(KEY) == {"2": 5.0}


def test_a_folder_that_cannot_be_used_keeps_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_text("a file")
    speeds.store_rates(KEY, {"2": 5.0})
    assert speeds.stored_rates(KEY) == {}
    monkeypatch.setattr(speeds, "rates_folder", lambda: None)
    speeds.store_rates(KEY, {"2": 5.0})
    assert speeds.stored_rates(KEY) == {}


def test_the_key_distinguishes_kinds_of_work_but_not_budgets_seeds_or_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(workers: int = 1, **changes: Any) -> str:
        return speeds.key_of(prepare([small_config(**changes)]), workers)

    usual = small_config().trainer
    alike = [
        key(),
        key(seed=5),
        key(trainer=dataclasses.replace(usual, budget=45)),
    ]
    others = [
        key(workers=2),
        key(model=MlpConfig(depth=2, width=13, activation="tanh")),
        key(model=MlpConfig(depth=2, width=12, activation="relu")),
        key(optimizer=SgdConfig()),
        key(trainer=dataclasses.replace(usual, batch_size=31)),
        key(trainer=dataclasses.replace(usual, precision="float32")),
        key(trainer=dataclasses.replace(usual, compile="native")),
    ]
    assert len({*alike, *others}) == 1 + len(others)
    monkeypatch.setattr(speeds, "code_version", lambda: "burgersgd 99")
    assert key() != alike[0]
    monkeypatch.undo()
    monkeypatch.setattr(speeds, "machine_of", lambda device: ["another"])
    assert key() != alike[0]


def test_a_second_sweep_measures_nothing_and_no_run_changes(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def rate(configs: list[Any], seconds: float, **words: Any) -> float:
        assert 0 < seconds <= planning.LOOK_SECONDS
        measured.append(len(configs))
        return {1: 0.5e-3, 2: 1e-3}.get(len(configs), 0.9e-3)

    monkeypatch.setattr(planning, "rate_of", rate)
    monkeypatch.setattr(planning, "sizes_to_try", lambda limit: sorted({1, min(2, limit), limit}))
    monkeypatch.setattr(planning, "MEASURE_FROM_SECONDS", 0.0)

    def swept(name: str) -> list[str]:
        configs = [small_config(seed=seed, trainer=TrainerConfig(budget=40, compile="native")) for seed in range(5)]
        jobs = [Job(config, tmp_path / name / str(config.seed), ()) for config in configs]
        (tmp_path / name).mkdir()
        list(LocalTrainer(SweepConfig(workers=1)).train([jobs], SweepProgress(enabled=False)))
        status = [json.loads((tmp_path / name / str(seed) / "status.json").read_text()) for seed in range(5)]
        return [repr([s["test_loss"], s["validation_loss"], s["last_loss"]]) for s in status]

    first = swept("first")
    assert measured == [5, 1, 2, 5]
    measured.clear()
    assert swept("second") == first
    assert measured == []
    fleets = [json.loads((tmp_path / name / planning.PLAN).read_text())["fleets"] for name in ("first", "second")]
    assert fleets[0] == fleets[1] == [["0"], ["1", "2"], ["3", "4"]]
