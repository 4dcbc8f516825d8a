"""Where a run is computed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burgersgd.build import GPU_FROM, device_of
from burgersgd.config import DeviceConfig, TrainConfig
from burgersgd.sweeps.planning import Group, gpu_hint


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("a_gpu")
def test_auto_takes_the_gpu_for_large_runs_only() -> None:
    config = TrainConfig(device=DeviceConfig(name="auto", index=1))
    assert device_of(config, GPU_FROM - 1) == torch.device("cpu")
    assert device_of(config, GPU_FROM) == torch.device("cuda", 1)
    assert device_of(TrainConfig(device=DeviceConfig(name="cuda")), 1) == torch.device("cuda", 0)


def test_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(TrainConfig(), 10 * GPU_FROM) == torch.device("cpu")


def group(n: int, name: str, work: float, device: str = "cpu") -> Group:
    problem = SimpleNamespace(inputs=SimpleNamespace(device=torch.device(device)))
    config = TrainConfig(device=DeviceConfig(name=name))
    prepared: Any = SimpleNamespace(configs=[config], problem=problem, gpu_work=work)
    jobs: Any = [object()] * n
    return Group("g", jobs, jobs, prepared, 0, 0.0)


@pytest.mark.usefixtures("a_gpu")
def test_a_sweep_says_when_a_gpu_would_train_its_runs_together() -> None:
    work = 1 / 32
    assert gpu_hint([group(100, "auto", work), group(28, "auto", work)]) == (
        "device=cuda would train these 128 runs together on the GPU"
    )
    assert gpu_hint([group(127, "auto", work)]) is None
    assert gpu_hint([group(128, "cpu", work)]) is None
    assert gpu_hint([group(128, "auto", work, "cuda")]) is None
