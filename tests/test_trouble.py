"""Failures in the middle of a run: divergence, memory, disks, operations that are not deterministic."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from burgersgd import recorder
from burgersgd.api import resume, resume_fleet, train, train_fleet, train_jobs
from burgersgd.build import prepared as preparing
from burgersgd.build.prepared import prepare
from burgersgd.config import (
    ConfigError,
    LocalEntropyConfig,
    LossConfig,
    MlpConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.datasets.arrays import from_arrays
from burgersgd.recording import metrics_file, run_folder
from burgersgd.recording.run_folder import STAGED, RunFolder, RunFolderError, read_checkpoint, read_metrics, read_status
from burgersgd.sweeps.chunks import Job, train_chunk
from burgersgd.training.fleet import Fleet
from tests.conftest import small_config
from tests.test_resume import assert_same, named

EXPLODING = LocalEntropyConfig(lr=40.0, nu=1e-5, inner_steps=8)


@pytest.mark.parametrize("compile", ["off", "native"])
def test_an_exploding_loss_is_a_divergence_and_no_nan_is_needed(compile: str) -> None:
    config = small_config(optimizer=EXPLODING)
    config.trainer.compile, config.trainer.explosion_factor, config.trainer.log_every = compile, 50.0, 1
    result = train(config, record=False, progress=False)
    assert result.state == "diverged"
    when = (
        f"diverged at gradient evaluation {result.evaluations}, last loss {result.last_loss:g}; lr * (L + 1 / gamma) = "
    )
    assert (result.reason or "").startswith(when)
    assert "try optimizer.lr < " in (result.reason or "")
    fleet = prepare(
        [dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, explosion_factor=1e9))]
    ).fleet()
    losses = []
    for _ in range(result.evaluations):
        fleet.advance(1)
        losses.append(float(fleet.last_loss))
    limit = 50.0 * max(1.0, losses[0])
    assert max(losses[:-1]) <= limit < losses[-1]  # the first loss beyond the limit is where it stopped
    assert result.last_loss == losses[-2]


def test_a_first_loss_below_one_does_not_make_the_limit_small() -> None:
    config = small_config(optimizer=SgdConfig(lr=0.01), model=MlpConfig(width=8, init_scale=0.01))
    config.trainer.explosion_factor = 1.5
    assert train(config, record=False, progress=False).state == "completed"


def test_one_exploding_run_of_a_fleet_leaves_its_siblings_alone() -> None:
    configs = [
        small_config(seed=s, optimizer=dataclasses.replace(EXPLODING, lr=lr))
        for s, lr in ((1, 0.1), (2, 40.0), (3, 0.2))
    ]
    for config in configs:
        config.trainer.explosion_factor = 50.0
    results = train_fleet(configs, record=False, progress=False)
    assert [r.state for r in results] == ["completed", "diverged", "completed"]
    for config, result in zip(configs, results, strict=True):
        alone = train(config, record=False, progress=False)
        assert (alone.state, alone.evaluations) == (result.state, result.evaluations)
        assert result.test_loss == pytest.approx(alone.test_loss, rel=1e-10)


def test_lr_over_gamma_beyond_the_bound_is_reported_before_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configs = [
        named(small_config(seed=s, optimizer=LocalEntropyConfig(lr=lr, gamma=0.1)), f"run{s}")
        for s, lr in ((1, 0.19), (2, 0.21), (3, 0.3))
    ]
    train_fleet(configs, progress=False)
    (warning,) = caplog.messages
    assert warning.startswith("lr / gamma reaches 2.1 >= 2: ")
    assert warning.endswith(" (and 1 more runs)")
    assert "lr / gamma reaches 3 >= 2" in (tmp_path / "outputs/run3/log.txt").read_text()
    assert "lr / gamma" not in (tmp_path / "outputs/run1/log.txt").read_text().replace("diverged", "")


def test_a_blow_up_in_the_last_update_is_a_divergence_too() -> None:
    config = small_config(optimizer=SgdConfig(lr=1e300), trainer=TrainerConfig(budget=1, precision="float64"))
    result = train(config, record=False, progress=False)
    assert (result.state, result.evaluations, result.objective) == ("diverged", 1, math.inf)


def test_runs_that_begin_in_the_same_second_find_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)  # each looked before the other had made its folder
    folders = [train(small_config(), progress=False).folder for _ in range(3)]
    assert len(set(folders)) == 3


# --- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_fleet_out_of_memory_continues_as_two_from_its_checkpoints(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=11) for s in range(5)]
    step, steps = Fleet._steps, []
    dropped: list[weakref.ref[Any]] = []
    alive: list[Any] = []

    def short_of_memory(self: Fleet, k: int, stop: int) -> int:
        if self.n_runs > 3 and k >= 15:
            dropped.extend([weakref.ref(self), weakref.ref(self.x)])
            raise type(error)(*error.args)
        alive.extend(ref() for ref in dropped)
        steps.append((self.n_runs, k))
        return step(self, k, stop)

    monkeypatch.setattr(Fleet, "_steps", short_of_memory)
    gc.collect()
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)
    gc.disable()  # the collector seldom runs
    try:
        results = train_fleet(configs, progress=False)
    finally:
        gc.enable()
    assert len(dropped) == 2
    assert {type(found) for found in alive} == {type(None)}  # the memory of the fleet was free for its halves
    assert "out of memory with 5 runs at once: continuing with half as many" in caplog.text
    assert [r.state for r in results] == ["completed"] * 5
    assert min(k for n, k in steps if n == 2) == 11  # from the checkpoint
    for config, result in zip(configs, results, strict=True):
        alone = train(dataclasses.replace(config, run_name=None), record=False, progress=False)
        assert result.test_loss == pytest.approx(alone.test_loss, rel=1e-10)
        assert result.config.seed == config.seed
        assert read_metrics(tmp_path / f"outputs/run{config.seed}")["evaluations"] == result.metrics["evaluations"]


IN_LITTLE_MEMORY = """
import gc, resource, sys
from pathlib import Path
from burgersgd.config import AdamWConfig, DeviceConfig, DigitsConfig, MlpConfig, TrainConfig, TrainerConfig
from burgersgd.sweeps.chunks import Job, train_chunk

def job(name, seed, width):
    trainer = TrainerConfig(budget=2, batch_size=32, compile="off")
    model, optimizer, device = MlpConfig(depth=1, width=width), AdamWConfig(lr=1e-3), DeviceConfig(threads=1)
    config = TrainConfig(DigitsConfig(), model, optimizer=optimizer, trainer=trainer, device=device, seed=seed)
    return Job(config, Path(name), ())

def states(n, megabytes):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
    ended = [outcome.state for outcome in train_chunk([job(f"{n} in {megabytes}, {i}", i, 13_000) for i in range(n)])]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return ended

train_chunk([job(f"small{i}", i, 5) for i in range(2)])  # what it imports and maps counts for nothing
gc.disable()
gc.collect = lambda *generation: 0
print(states(8, 200), states(1, 120))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_eight_runs_that_each_fit_into_120_megabytes_are_trained_in_200(tmp_path: Path) -> None:
    """Without a garbage collector: what was given up is free at once."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", IN_LITTLE_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.stdout.split("] [") == ["[" + ", ".join(["'completed'"] * 8), "'completed']\n"], done.stderr
    assert "continuing with half as many" in done.stderr
    folders = [read_status(tmp_path / f"8 in 200, {i}")["state"] for i in range(8)]
    assert folders == ["completed"] * 8


def test_a_single_run_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def short_of_memory(self: Fleet, k: int, stop: int) -> int:
        raise MemoryError

    monkeypatch.setattr(Fleet, "_steps", short_of_memory)
    with pytest.raises(ConfigError, match=r"^out of memory .*; try a smaller model or trainer\.batch_size$"):
        train(named(small_config(), "run"), progress=False)
    assert read_status(tmp_path / "outputs/run")["state"] == "failed"


def test_one_hot_targets_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 300 kB with the labels 0 to 199,999 asks for hundreds of GB."""
    x, y = np.zeros((2000, 1)), np.arange(2000)
    config = small_config(loss=LossConfig(name="squared_error"))
    monkeypatch.setattr(preparing, "memory", lambda: 2.0**24)
    with pytest.raises(ConfigError, match=r"^loss.name=squared_error: \d+ vectors of 2000 classes take 0.\d+ GiB"):
        train(config, dataset=from_arrays(x, y, x_val=x, y_val=y, x_test=x, y_test=y), record=False, progress=False)


def test_a_fleet_that_failed_is_freed_before_its_halves_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the error was, and wherever it came from: only the last fleet may be there."""
    fleets: list[weakref.ref[Fleet]] = []
    counts: list[int] = []

    def broken(self: Fleet, k: int, stop: int) -> int:
        fleets.append(weakref.ref(self))
        counts.append(sum(ref() is not None for ref in fleets))
        try:
            raise OSError("a cause with frames of its own")
        except OSError as cause:
            raise RuntimeError("broken") from cause

    monkeypatch.setattr(Fleet, "_steps", broken)
    chunk = [Job(small_config(seed), tmp_path / str(seed), ()) for seed in range(4)]
    gc.collect()
    monkeypatch.setattr(gc, "collect", lambda *generation: 0)
    gc.disable()
    try:
        outcomes = train_chunk(chunk)
        left = sum(ref() is not None for ref in fleets)
    finally:
        gc.enable()
    assert [outcome.state for outcome in outcomes] == ["failed"] * 4
    assert counts == [1] * 7  # of four, two, one, one, two, one and one
    assert left == 0


# --- disks


def failing(monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """Let appending to files fail as on a full disk, where when(path) is true."""
    append = run_folder.append

    def full(path: Path, data: bytes) -> None:
        if when(path):
            raise RunFolderError(f"cannot write {path}: No space left on device")
        append(path, data)

    for module in (metrics_file, run_folder):
        monkeypatch.setattr(module, "append", full)


def test_a_run_that_cannot_be_recorded_fails_alone_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "ROWS_SECONDS", 0.0)  # every row is written at once
    configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=11, log_every=5) for s in (1, 2, 3)]
    written = []

    def full(path: Path) -> bool:
        written.append(path)
        return path.parent.name == "run2" and sum(p == path for p in written) > 5 and path.name == "metrics.csv"

    with monkeypatch.context() as patch:
        failing(patch, full)
        results = train_fleet(configs, progress=False)
    assert [r.state for r in results] == ["completed", "failed", "completed"]
    assert "No space left on device" in (results[1].reason or "")
    folder = tmp_path / "outputs/run2"
    status = read_status(folder)
    assert (status["state"], status["reason"]) == ("failed", results[1].reason)
    assert read_checkpoint(folder)["evaluations"] == 11  # earlier files are intact
    assert not (folder / STAGED).exists()  # and nothing is written any more
    train(named(configs[1], "undisturbed"), progress=False)
    resume(folder, progress=False)
    for s in (1, 3):
        assert read_status(tmp_path / f"outputs/run{s}")["state"] == "completed"
    assert_same_to_rounding(tmp_path / "outputs/undisturbed", folder)


def assert_same_to_rounding(a: Path, b: Path) -> None:
    columns, others = read_metrics(a), read_metrics(b)
    for name in columns.keys() - {"seconds"}:
        assert others[name] == pytest.approx(columns[name], rel=1e-9, nan_ok=True)


def test_a_folder_that_vanishes_fails_its_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [named(small_config(seed=s), f"run{s}", log_every=5) for s in (1, 2)]
    add_row = RunFolder.add_row

    def vanishing(self: RunFolder, line: bytes, evaluations: int, event: bytes) -> None:
        if self.path.name == "run1" and evaluations == 20:
            shutil.rmtree(self.path)
        add_row(self, line, evaluations, event)

    monkeypatch.setattr(RunFolder, "add_row", vanishing)
    results = train_fleet(configs, progress=False)
    assert [r.state for r in results] == ["failed", "completed"]
    assert "run1/metrics.csv: No such file or directory" in (results[0].reason or "")


def test_a_full_disk_ends_a_single_run_in_one_line_and_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = named(small_config(), "run", checkpoint_every=11, log_every=5)
    train(named(config, "undisturbed"), progress=False)
    with monkeypatch.context() as patch:
        failing(patch, lambda path: path.name == "metrics.csv" and len(read_metrics(path.parent)["evaluations"]) > 6)
        with pytest.raises(RunFolderError, match=r"^cannot write .*metrics\.csv: No space left on device$"):
            train(config, progress=False)
    assert read_status(tmp_path / "outputs/run")["state"] == "failed"
    resume(tmp_path / "outputs/run", progress=False)
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/run")


def test_when_no_run_of_a_fleet_can_be_recorded_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=8) for s in (1, 2)]
    with monkeypatch.context() as patch:
        failing(patch, lambda path: path.name == "metrics.csv" and len(read_metrics(path.parent)["evaluations"]) > 15)
        with pytest.raises(RunFolderError, match="No space left on device"):
            train_fleet(configs, progress=False)
    results = resume_fleet([tmp_path / f"outputs/run{s}" for s in (1, 2)], progress=False)
    assert [r.state for r in results] == ["completed"] * 2


# --- determinism


class _Index(torch.autograd.Function):
    """An operation that says of itself, like those of torch that do, that it has no deterministic implementation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("index_backward_cuda does not have a deterministic implementation, but you set ...")
        return grads[0]


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return _Index.apply(self.linear(x.flatten(1)))  # pyright: ignore[reportReturnType]


def test_an_operation_that_is_not_deterministic_is_named() -> None:
    config = TrainConfig(optimizer=SgdConfig(), trainer=TrainerConfig(budget=8, compile="off"))
    assert train(config, model=_Net(), record=False, progress=False).state == "completed"
    config.trainer.deterministic = True
    with pytest.raises(
        ConfigError, match=r"deterministic=true: index_backward_cuda has no deterministic implementation"
    ):
        train(config, model=_Net(), record=False, progress=False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_runs_repeat_themselves_and_leave_torch_as_it_was() -> None:
    config = small_config(trainer=TrainerConfig(budget=40, compile="off", deterministic=True))
    a, b = (train(config, record=False, progress=False) for _ in range(2))
    assert repr([a.metrics[k] for k in a.metrics if k != "seconds"]) == repr(
        [b.metrics[k] for k in b.metrics if k != "seconds"]
    )
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_a_lock_file_that_is_removed_while_jobs_are_trained_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process then trains the same jobs; the first one leaves them alone at its next checkpoint."""
    configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=11, log_every=5) for s in (1, 2)]
    step, codes = Fleet._steps, []

    program = """
from burgersgd.api import train_jobs
from tests.conftest import small_config
from tests.test_resume import named
configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=11, log_every=5) for s in (1, 2)]
assert [r.state for r in train_jobs(configs, [()] * 2, progress=False) if r] == ["completed"] * 2
"""  # a process of its own, and no fork: threads of the tests before may be in this one

    def removing(self: Fleet, k: int, stop: int) -> int:
        if k >= 20 and not codes:
            codes.append(None)
            (tmp_path / "outputs/.lock").unlink()
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
            command = [sys.executable, "-c", program]
            codes[0] = subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode
        return step(self, k, stop)

    monkeypatch.setattr(Fleet, "_steps", removing)
    with pytest.raises(RunFolderError, match=r"\.lock was removed or replaced, so another process may train"):
        train_jobs(configs, [()] * 2, progress=False)
    assert codes == [0]
    monkeypatch.setattr(Fleet, "_steps", step)
    for config in configs:
        train(dataclasses.replace(config, run_name=f"undisturbed{config.seed}"), progress=False)
        assert_same_to_rounding(tmp_path / f"outputs/undisturbed{config.seed}", tmp_path / f"outputs/run{config.seed}")
