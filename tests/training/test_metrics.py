"""The table of metrics, and the columns that a user's own rule adds."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from burgersgd import resume, train
from burgersgd.config import LocalEntropyConfig, SgdConfig, TrainerConfig
from burgersgd.optimizers.sgd import Sgd
from burgersgd.recording.run_folder import read_metrics
from burgersgd.training.metrics import NAMES, TABLE, tag_of
from tests.conftest import small_config

TEN = (
    *("evaluations", "epoch", "seconds", "train_loss", "learning_rate", "gradient_norm", "x_y_distance"),
    *("temperature", "validation_loss", "validation_error"),
)


def test_the_ten_columns_stay_first_and_in_their_order() -> None:
    assert NAMES == TEN
    assert [tag_of(name) for name in ("train_loss", "x_y_distance", "epoch", "speed")] == [
        *("loss/train", "optimizer/x_y_distance", None, "optimizer/speed")
    ]
    assert len({metric.tag for metric in TABLE if metric.tag}) == 7


def test_the_table_needs_no_torch() -> None:
    import subprocess

    code = "import sys, burgersgd.training.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@dataclasses.dataclass(frozen=True)
class Watched(Sgd):
    def diagnostics(self, c: Any, state: Any) -> dict[str, torch.Tensor]:
        speed = c.lr * torch.linalg.vector_norm(state.velocity, dim=1, keepdim=True)
        return {"speed": speed, **super().diagnostics(c, state)}


def test_the_diagnostics_of_a_rule_are_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = TrainerConfig(budget=6, batch_size=64, log_every=2, precision="float64", compile="off")
    config = small_config(optimizer=SgdConfig(lr=0.2, momentum=0.6), trainer=trainer)
    train(dataclasses.replace(config, run_name="old"), progress=False)
    monkeypatch.setattr(SgdConfig, "rule", lambda self: Watched(True, False, False))
    result = train(dataclasses.replace(config, run_name="new"), progress=False)
    rows = read_metrics(tmp_path / "outputs" / "new")
    assert tuple(rows) == (*TEN, "speed")
    speeds = rows["speed"]
    assert str(speeds[0]) == "nan"  # nothing was evaluated yet
    assert all(speed > 0 for speed in speeds[1:])
    assert result.metrics["speed"][-1] == speeds[-1]
    # A run that began without the column goes on without it: its file stays readable.
    resume(tmp_path / "outputs" / "old", budget=12, run_name="longer", progress=False)
    assert tuple(read_metrics(tmp_path / "outputs" / "longer")) == TEN
    assert len(read_metrics(tmp_path / "outputs" / "longer")["epoch"]) == 13  # the start and every evaluation


def test_a_row_has_the_temperature_of_its_last_gradient_evaluation() -> None:
    """2 nu, which falls linearly to 0 over the 40 evaluations of the budget."""
    nu = 3e-4
    config = small_config(optimizer=LocalEntropyConfig(lr=0.13, nu=nu, inner_steps=5, nu_annealing="linear"))
    trainer = dataclasses.replace(config.trainer, log_every=7)
    metrics = train(dataclasses.replace(config, trainer=trainer), record=False, progress=False).metrics
    rows = list(zip(metrics["evaluations"], metrics["temperature"], strict=True))[1:]
    assert len(rows) > 5
    for n, temperature in rows:
        assert n is not None
        assert temperature == pytest.approx(2 * nu * (1 - (n - 1) / 40), rel=1e-12)
