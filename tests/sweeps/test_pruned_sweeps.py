"""Pruned runs are stopped, recorded as pruned, and remain so; a resumed sweep stops the same runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from burgersgd.cli import main
from burgersgd.recording.run_folder import read_config, read_metrics, read_status
from tests.sweeps.test_resumable import folders, sweep
from tests.test_resume import Killed, assert_same, kill

__all__ = ["kill"]
WORDS = [
    "trainer.budget=90",
    "trainer.eval_every=10",
    "trainer.checkpoint_every=13",
    "model.width=8",
    "trainer.compile=off",
    "trainer.precision=float64",
    "optimizer=sgd",
    "optimizer.lr=0.3,1e-2,1e-3,1e-4,1e-5,1e-6",
]


@pytest.mark.parametrize("rule", ["median", pytest.param("halving", marks=pytest.mark.slow)])
def test_laggards_are_stopped_and_a_killed_sweep_stops_the_same(
    rule: str, kill: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, f"sweep.prune={rule}", "sweep.prune_from=0.2"]
    assert sweep(*words, "sweep.name=whole") == 0
    states = {read_config(f)["optimizer"]["lr"]: read_status(f) for f in folders("whole").values()}
    assert states[0.3]["state"] == "completed"
    stopped = {lr: status["evaluations"] for lr, status in states.items() if status["state"] == "pruned"}
    assert 3 <= len(stopped) < 6
    assert min(stopped.values()) >= 18
    for folder in folders("whole").values():
        assert read_metrics(folder)["evaluations"][-1] == read_status(folder)["evaluations"]
    assert f"{len(stopped)} stopped early" in capsys.readouterr().out
    kill(33)
    with pytest.raises(Killed):
        sweep(*words, "sweep.name=killed")
    assert sweep(*words, "sweep.name=killed") == 0
    for name, folder in folders("whole").items():
        assert_same(folder, folders("killed")[name])
    assert main(["status", "whole"]) == 0
    assert f"{len(stopped)} pruned" in capsys.readouterr().out
    assert Path("outputs/multirun/whole/jobs.jsonl").exists()
