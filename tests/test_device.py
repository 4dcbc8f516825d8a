"""The choice of the device of a run."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burgersgd import streams
from burgersgd.build.parts import GPU_FROM, device_of
from burgersgd.build.prepared import prepare
from burgersgd.cli import main
from burgersgd.config import DeviceConfig, TrainConfig
from burgersgd.sweeps import planning
from burgersgd.sweeps.planning import Group, gpu_hint
from tests.conftest import small_config


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


def test_a_sweep_shows_the_hint_without_being_asked_to_say_more(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[int] = []

    def hint(groups: Sequence[Group]) -> str:
        seen.extend(len(group.jobs) for group in groups)
        return "device=cuda would be faster"

    monkeypatch.setattr(planning, "gpu_hint", hint)
    words = ["optimizer=sgd", "seed=1,2,3", "trainer.budget=20", "trainer.compile=off", f"output_root={tmp_path}"]
    assert main(["train", "--multirun", *words]) == 0
    shown = capsys.readouterr().err + "\n".join(caplog.messages)
    assert seen == [3]
    assert shown.count("device=cuda would be faster") == 1


def test_float32_is_exact_while_a_run_trains_and_the_settings_of_the_process_come_back() -> None:
    prepared = prepare([small_config()])
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with prepared.torch_settings():
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def test_a_backend_that_fails_says_why_in_one_line() -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    assert (
        streams._problem_with(broken, "cpu") == "Failed to find C compiler. Please specify via CC environment variable."
    )
    assert streams._problem_with(streams._torch_fill, "cpu") is None


def test_without_a_working_triton_torch_draws_and_this_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "_problem_with", lambda fill, device: "no C compiler")
    monkeypatch.setattr(streams.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "burgersgd.streams_triton", SimpleNamespace(fill=None))  # pyright: ignore[reportArgumentType]
    choose = streams._backend.__wrapped__
    assert choose(None, "cuda") is streams._torch_fill
    assert "Triton cannot be used (no C compiler)" in caplog.text
    with pytest.raises(ValueError, match="'triton' does not work here"):
        choose("triton", "cuda")
