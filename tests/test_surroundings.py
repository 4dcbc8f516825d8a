"""Unusual machines: no home folder, no compiler, no network, a clock that is set back."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from burgersgd.api import resume, train
from burgersgd.build.prepared import prepare
from burgersgd.config import ConfigError, MlpConfig, TrainConfig, TrainerConfig
from burgersgd.interruption import Interrupted
from burgersgd.recording.run_folder import read_metrics, read_status
from burgersgd.training.engines import compiled
from burgersgd.training.fleet import Fleet
from tests.conftest import small_config

READ_ONLY = Path("/proc")  # not even root can make a folder there
SHORT = ["train", "trainer.budget=20", "model.width=8", "run_name=run"]


def command(folder: Path, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run burgersgd in a folder, with an empty folder for temporary files."""
    temporary = folder / "temporary"
    temporary.mkdir()
    kept = {k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "BURGERSGD_CACHE", "CC", "CXX")}
    return subprocess.run(
        [sys.executable, "-m", "burgersgd", *arguments],
        cwd=folder,
        env=kept | {"TMPDIR": str(temporary)} | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(not READ_ONLY.joinpath("self").exists(), reason="needs Linux")
def test_a_home_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    done = command(tmp_path, SHORT, {"HOME": str(READ_ONLY)})
    assert (done.returncode, done.stdout[:3]) == (0, "---"), done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("local_entropy")] == []
    assert read_status(tmp_path / "outputs" / "run")["engine"] == "native"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "temporary"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_without_compiler_and_git_it_trains_and_says_so_once(tmp_path: Path) -> None:
    done = command(tmp_path, [*SHORT, "trainer.checkpoint_every=7"], {"PATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("local_entropy")]
    assert len(said) == 1
    assert said[0].startswith("the C kernels cannot be used (no C compiler")
    assert read_status(tmp_path / "outputs" / "run")["engine"] == "eager"


def test_embedded_and_generated_data_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert train(small_config(), progress=False).state == "completed"


# ----------------------------------------------------------------------------------------------------- torch.compile

LARGE = TrainConfig(model=MlpConfig(depth=2, width=2000), trainer=TrainerConfig(budget=10**6, batch_size=128))
"""Which compile=auto compiles."""


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler\nfound\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", fail)
    compiled.why_not_compiled.cache_clear()
    yield
    compiled.why_not_compiled.cache_clear()


@pytest.mark.usefixtures("broken_compiler")
def test_where_torch_cannot_compile_auto_takes_another_engine_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "burgersgd"):
        assert prepare([LARGE]).engine == "native_update"
    (record,) = caplog.records
    reason = "torch.compile does not work here (InvalidCxxCompiler: No working C++ compiler found)"
    assert record.getMessage() == f"{reason}: continuing with engine native_update"
    assert prepare([LARGE], engine="compiled").engine == "eager"  # a run that began elsewhere


@pytest.mark.usefixtures("broken_compiler")
def test_where_torch_cannot_compile_asking_for_it_is_refused() -> None:
    config = dataclasses.replace(small_config(), trainer=TrainerConfig(budget=40, compile="on"))
    with pytest.raises(
        ConfigError, match=r"^trainer\.compile=on: torch\.compile does not work here \(Invalid.*found\)$"
    ):
        train(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("CXX", "/nowhere/g++", marks=pytest.mark.slow),
        ("TORCHINDUCTOR_CACHE_DIR", str(READ_ONLY / "cache")),
    ],
)
def test_torch_without_compiler_or_cache_is_noticed(name: str, value: str, tmp_path: Path) -> None:
    code = "from burgersgd.training.engines.compiled import why_not_compiled; print(why_not_compiled('cpu'))"
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)} | {name: value}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    assert value in done.stdout
    assert done.stdout.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------- clock


def test_a_clock_that_is_set_back_disturbs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = dataclasses.replace(small_config().trainer, checkpoint_every=8)
    config = dataclasses.replace(small_config(), trainer=trainer, run_name="run")
    undisturbed = train(dataclasses.replace(config, run_name="undisturbed"), progress=False)
    now = itertools.count(2_000_000_000, -1000)  # every look at the clock finds it set back
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    advance = Fleet.advance

    def stop_at_16(self: Fleet, n: int, pause: Any) -> Any:
        if self.evaluations >= 16:
            raise Interrupted(2)
        return advance(self, n, pause)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "advance", stop_at_16)
        with pytest.raises(Interrupted):
            train(config, progress=False)
    folder = tmp_path / "outputs" / "run"
    result = resume(folder, progress=False)
    assert result.state == "completed"
    assert torch.equal(flat(result.model), flat(undisturbed.model))
    metrics = read_metrics(folder)
    assert metrics["evaluations"] == read_metrics(tmp_path / "outputs" / "undisturbed")["evaluations"]
    assert metrics["seconds"] == sorted(metrics["seconds"])
    assert steps_of(folder) == metrics["evaluations"][1:]


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters())


def steps_of(folder: Path) -> list[int]:
    """Return the steps of the training loss in the order in which TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("loss/train")]


def test_two_runs_of_the_same_second_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Stopped:
            return cls(2030, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr("burgersgd.api.datetime", Stopped)
    folders = [train(small_config(seed=seed), progress=False).folder for seed in range(3)]
    name = "2030-01-02_03-04-05_local_entropy_digits"
    assert [folder and folder.name for folder in folders] == [name, f"{name}_2", f"{name}_3"]


IN_A_CHILD = """
import os, signal, sys, threading
import torch
from burgersgd import isolation
from burgersgd.config import DeviceConfig, DigitsConfig, MlpConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.api import train

isolation.PROBE_SECONDS = 3.0
sizes = dict(dataset=DigitsConfig(train_size=300), model=MlpConfig(depth=1, width=64), optimizer=SgdConfig(lr=0.1))
short = TrainerConfig(budget=6, batch_size=256, compile=sys.argv[1])

def did(threads):
    try:
        config = TrainConfig(**sizes, trainer=short, device=DeviceConfig(threads=threads))
        return train(config, record=False, progress=False).state
    except ValueError as error:
        return str(error)

torch.set_num_threads(2)
print(did(2), flush=True)
child = os.fork()
if child == 0:
    signal.alarm(60)
    print(did(2), flush=True)
    print(did(1), did(None), flush=True)
    started = threading.Thread(target=lambda: print(did(2), flush=True))
    started.start()
    started.join()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="is about GNU OpenMP")
def test_several_threads_in_a_forked_child_are_refused_where_they_would_hang() -> None:
    kept = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", IN_A_CHILD, "native"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=kept)
    lines = done.stdout.splitlines()
    assert lines[0] == "completed", done.stderr
    if lines[1] != "completed":  # another OpenMP may know forks
        assert lines[1].startswith(
            "device.threads=2: must be 1: this process was forked from one that had used several threads"
        )
        assert "computing with one thread: this process was forked" in done.stderr
    assert lines[2:] == ["completed completed", "completed", "0"]
