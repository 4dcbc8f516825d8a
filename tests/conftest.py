"""Shared fixtures: small configurations, one CPU thread so that tests do not fight for cores, patient examples."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from burgersgd.config import LocalEntropyConfig, MlpConfig, TrainConfig, TrainerConfig

# A busy machine is no reason to fail, and the same commit always tries the same examples.
PATIENT = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("patient", deadline=None, derandomize=True, suppress_health_check=PATIENT)
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _hears_ctrl_c() -> None:
    """Hear SIGINT, which shells tell what they start in the background to ignore: some tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _no_known_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps know no speed of this machine from another test, nor keep one."""
    monkeypatch.setattr("burgersgd.sweeps.speeds.rates_folder", lambda: None)


def small_config(seed: int = 0, **changes: Any) -> TrainConfig:
    """Return a run of 40 float64 gradient evaluations on digits, every hyperparameter away from 0 and 1."""
    settings: dict[str, Any] = {
        "model": MlpConfig(depth=2, width=12, activation="tanh"),
        "optimizer": LocalEntropyConfig(
            lr=0.13, nu=1e-5, gamma=0.7, inner_steps=5, burn_in=3, outer_step=0.8, weight_decay=1e-3
        ),
        "trainer": TrainerConfig(budget=40, batch_size=30, precision="float64", compile="off"),
    }
    return TrainConfig(**(settings | changes), seed=seed)
