"""Sweeps on several processes: the same folders, and nothing is lost if one dies or all receive a signal."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burgersgd.config import LocalEntropyConfig, MlpConfig, SweepConfig, TrainerConfig
from burgersgd.interruption import Interrupted, interruptible
from burgersgd.recording.progress import SweepProgress
from burgersgd.recording.run_folder import CHECKPOINT, read_metrics, read_status
from burgersgd.recording.warned import each_warning_once
from burgersgd.sweeps import planning, workers
from burgersgd.sweeps.chunks import Chunk, Job, Outcome, train_chunk
from burgersgd.sweeps.planning import LocalTrainer, best_size
from burgersgd.sweeps.workers import Pool, WorkerDiedError
from burgersgd.training.gradients import eager_gradient
from tests.conftest import small_config

LONG = TrainerConfig(budget=10_000_000, batch_size=30, compile="off", log_every=100, checkpoint_every=100)


def jobs(root: Path, seeds: range, **changes: Any) -> Chunk:
    """Return jobs that differ in their seeds."""
    return [Job(small_config(seed, **changes), root / str(seed), ()) for seed in seeds]


@contextlib.contextmanager
def pool_of(n: int) -> Iterator[Pool]:
    pool = Pool(n, threads=1)
    try:
        yield pool
    finally:
        pool.close()


class Telling(SweepProgress):
    """Calls a function as soon as a worker says how far it is."""

    def __init__(self, tell: Any) -> None:
        super().__init__(enabled=False)
        self.tell = tell

    def add(self, evaluations: int, train_loss: float | None = None, validation_error: float | None = None) -> None:
        super().add(evaluations, train_loss, validation_error)
        if evaluations > 0:
            self.tell()


def metrics(folder: Path) -> dict[str, list[Any]]:
    return {name: column for name, column in read_metrics(folder).items() if name != "seconds"}


def assert_equal(folder: Path, other: Path, rel: float) -> None:
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {
        path.name.partition(".")[0] for path in other.iterdir()
    }
    ours, theirs = metrics(folder), metrics(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if rel:
            assert ours[name] == pytest.approx(theirs[name], rel=rel, nan_ok=True)
        else:
            assert repr(ours[name]) == repr(theirs[name])


@pytest.mark.slow
def test_workers_leave_the_folders_of_one_process_and_a_killed_one_costs_a_retry(tmp_path: Path) -> None:
    native = TrainerConfig(budget=40, batch_size=30, compile="native")
    kinds = {"eager": ({}, 1e-10), "native": ({"trainer": native}, 0)}
    chunks: list[Chunk] = []
    for name, (changes, _) in kinds.items():
        train_chunk(jobs(tmp_path / "one" / name, range(4), **changes))
        chunks += [jobs(tmp_path / "many" / name, half, **changes) for half in (range(2), range(2, 4))]
    with pool_of(2) as pool:
        progress = SweepProgress(enabled=False)
        progress.expect(8, 8 * 40)
        ended = {id(chunk): outcomes for chunk, outcomes in pool.train(chunks, progress)}
        assert sorted(ended) == sorted(map(id, chunks))
        for outcomes, chunk in ((ended[id(chunk)], chunk) for chunk in chunks):
            assert [(o.state, o.folder) for o in outcomes] == [("completed", job.folder) for job in chunk]
        for name, (_, rel) in kinds.items():
            for seed in range(4):
                assert_equal(tmp_path / "many" / name / str(seed), tmp_path / "one" / name / str(seed), rel)

        victims = iter([pool.workers[0].process.pid])  # killed once, at the first sign of life
        trainer = TrainerConfig(budget=4000, batch_size=30, compile="off", log_every=50, checkpoint_every=200)
        (chunk,) = [jobs(tmp_path / "killed", range(1), trainer=trainer)]
        telling = Telling(lambda: [os.kill(pid, signal.SIGKILL) for pid in victims if pid])
        (outcomes,) = [outcomes for _, outcomes in pool.train([chunk], telling)]
        assert outcomes[0].state == "completed"
        assert outcomes[0].evaluations == 4000

        again = jobs(tmp_path / "twice", range(2), trainer=LONG)
        telling = Telling(lambda: os.kill(pool.workers[0].process.pid or 0, signal.SIGKILL))
        (outcomes,) = [outcomes for _, outcomes in pool.train([again], telling)]
        assert [outcome.state for outcome in outcomes] == ["failed", "failed"]
        assert "was killed by SIGKILL, twice" in str(outcomes[0].error)


@pytest.mark.slow
def test_all_workers_save_their_runs_at_a_signal(tmp_path: Path) -> None:
    chunks = [jobs(tmp_path, seeds, trainer=LONG) for seeds in (range(2), range(2, 3), range(3, 4))]
    stop: set[str] = set()

    def tell() -> None:
        begun = {path.parent.name for path in tmp_path.glob(f"*/{CHECKPOINT}")}
        if begun >= {"0", "1", "2"} and not stop:
            stop.add("told")
            signal.raise_signal(signal.SIGTERM)

    with pool_of(2) as pool, pytest.raises(Interrupted) as caught, interruptible():
        list(pool.train(chunks, Telling(tell)))
    assert caught.value.signal == signal.SIGTERM
    assert sorted(folder.name for folder in caught.value.folders) == ["0", "1", "2"]
    for folder in caught.value.folders:
        assert read_status(folder)["state"] == "interrupted"
    assert not (tmp_path / "3").exists()
    assert pool.workers == []


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every sweep seem long, and fleets of two be the fastest; return the sizes of the fleets that are measured."""
    measured: list[int] = []

    def rate(configs: Any, *arguments: Any, **words: Any) -> float:
        measured.append(len(configs))
        return {1: 0.5e-3, 2: 1e-3}.get(len(configs), 0.9e-3)

    monkeypatch.setattr(planning, "rate_of", rate)
    monkeypatch.setattr(planning, "sizes_to_try", lambda limit: sorted({1, min(2, limit), limit}))
    monkeypatch.setattr(planning, "MEASURE_FROM_SECONDS", 0.0)
    return measured


def trained(trainer: LocalTrainer, chunk: Chunk) -> list[tuple[list[int], list[Outcome]]]:
    progress = SweepProgress(enabled=False)
    ended = trainer.train([chunk], progress)
    return [([job.config.seed for job in part], outcomes) for part, outcomes in ended]


def test_the_fastest_fleets_are_formed_and_formed_again(tmp_path: Path, in_process: list[int]) -> None:
    all_jobs = jobs(tmp_path, range(5))
    trainer = LocalTrainer(SweepConfig(workers=1))
    fleets = [seeds for seeds, _ in trained(trainer, all_jobs)]
    assert fleets == [[0], [1, 2], [3, 4]]
    assert in_process == [5, 1, 2, 5]  # a look, then the sizes
    plan = json.loads((tmp_path / planning.PLAN).read_text())
    assert plan["fleets"] == [["0"], ["1", "2"], ["3", "4"]]

    in_process.clear()
    fleets = [
        seeds
        for seeds, _ in trained(LocalTrainer(SweepConfig(workers=1)), [*jobs(tmp_path, range(5, 7)), *all_jobs[2:]])
    ]
    assert in_process == []  # though the sweep has grown
    assert sorted(fleets) == [[2], [3, 4], [5, 6]]
    fleets = [seeds for seeds, _ in trained(LocalTrainer(SweepConfig(workers=1, max_runs=1)), all_jobs)]
    assert fleets == [[seed] for seed in range(5)]


def test_a_size_that_seems_slow_is_measured_again(
    tmp_path: Path, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rate, disturbed = planning.rate_of, [2]

    def with_somebody_else_running(configs: Any, *arguments: Any, **words: Any) -> float:
        calm = rate(configs, *arguments, **words)
        if len(configs) in disturbed:
            disturbed.remove(len(configs))
            return calm / 10
        return calm

    monkeypatch.setattr(planning, "rate_of", with_somebody_else_running)
    fleets = [seeds for seeds, _ in trained(LocalTrainer(SweepConfig(workers=1)), jobs(tmp_path, range(5)))]
    assert fleets == [[0], [1, 2], [3, 4]]
    assert in_process == [5, 1, 2, 2, 5]


def test_the_groups_that_are_left_are_trained_as_the_fleets_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        """A pool that trains in this process, two chunks in all: then the sweep is killed."""

        def __init__(self, n: int, *arguments: Any, **words: Any) -> None:
            self.n = n

        def train(self, chunks: list[Chunk], progress: SweepProgress) -> Iterator[tuple[Chunk, list[Outcome]]]:
            for chunk in chunks[:2]:
                yield chunk, train_chunk(chunk, progress)

        def close(self) -> None:
            pass

    monkeypatch.setattr(planning, "Pool", Here)
    (tmp_path / "s").mkdir()
    groups = [jobs(tmp_path / "s", range(10 * k, 10 * k + 2), model=MlpConfig(width=12 - k)) for k in range(4)]
    done = trained(LocalTrainer(SweepConfig(workers=2)), [job for group in groups for job in group])
    assert [seeds for seeds, _ in done] == [[0, 1], [10, 11]]
    done = trained(LocalTrainer(SweepConfig(workers=2)), [job for group in groups[2:] for job in group])
    assert [seeds for seeds, _ in done] == [[20, 21], [30, 31]]


def test_fleets_fit_the_memory_and_a_run_that_does_not_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planning.run_bytes(planning.prepare([small_config()]))
    monkeypatch.setattr(planning, "available_memory", lambda device: round(2.5 * run / planning.MEMORY_SHARE))
    large = jobs(tmp_path, range(5, 6), model=MlpConfig(widths=[300, 300]))
    progress = SweepProgress(enabled=False)
    ended = list(LocalTrainer(SweepConfig()).train([jobs(tmp_path, range(5)), large], progress))
    assert sorted(len(chunk) for chunk, _ in ended) == [1, 1, 2, 2]
    (failed,) = [outcome for _, outcomes in ended for outcome in outcomes if outcome.state == "failed"]
    assert failed.folder == large[0].folder
    assert "GB of memory" in str(failed.error)
    assert not failed.folder.exists()


def test_a_rate_is_measured_however_short_the_budget_is() -> None:
    for budget in (8, 40):
        config = small_config(trainer=TrainerConfig(budget=budget, batch_size=30, compile="off"))
        assert planning.rate_of([config, dataclasses.replace(config, seed=1)], seconds=0.02) > 0


def test_the_activations_of_a_run_are_those_of_one_step() -> None:
    trainer = dataclasses.replace(small_config().trainer, compile="off")
    prepared = planning.prepare([small_config(trainer=trainer)])
    fleet, kept = prepared.fleet(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        eager_gradient(fleet.problem, fleet.x.clone(), fleet.batches.indices(0, 1)[0], None)
    vectors = 6 + sum(field is not None for field in fleet.state)
    assert kept
    assert planning.run_bytes(prepared) == vectors * fleet.d * fleet.x.element_size() + 2 * sum(kept)


def test_the_memory_of_a_run_grows_with_its_vectors_and_its_activations() -> None:
    def size(**changes: Any) -> int:
        return planning.run_bytes(planning.prepare([small_config(**changes)]))

    d = planning.prepare([small_config()]).problem.d
    assert 8 * 8 * d < size() < 1_000_000  # x, y, mean and best x are certain
    wide = small_config().trainer
    assert size(trainer=dataclasses.replace(wide, batch_size=300)) > 2 * size()
    assert size(trainer=dataclasses.replace(wide, batch_size=300, compile="native", precision="float32")) < size()


def test_the_last_of_the_workers_is_done_first() -> None:
    assert best_size({1: 100.0, 32: 200.0}, 64, workers=2, budget=1000) == 32
    assert best_size({1: 100.0, 4: 90.0}, 64, workers=2, budget=1000) == 1  # where batching loses, there are no batches
    assert best_size({1: 100.0, 3: 110.0}, 3, workers=2, budget=1000) == 1  # one worker would have nothing to do
    rates = {1: 20e3, 4: 19e3, 32: 18e3}
    assert best_size(rates, 64, workers=2, budget=2000) == 32  # each fleet is to be prepared
    assert best_size(rates, 64, workers=2, budget=10**7) == 1


@pytest.mark.slow
def test_a_worker_ignores_sigint_from_its_start(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of a terminal, also one that is still importing."""
    with pool_of(1) as pool:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            os.kill(pool.workers[0].process.pid or 0, signal.SIGINT)
            time.sleep(0.002)
        ((_, outcomes),) = pool.train([jobs(tmp_path, range(2))], SweepProgress(enabled=False))
        assert [outcome.state for outcome in outcomes] == ["completed"] * 2
        assert pool.workers[0].process.exitcode is None


def test_what_workers_warn_of_is_logged_once_by_the_process_that_started_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    optimizer = LocalEntropyConfig(lr=0.2, gamma=0.1, inner_steps=5)
    chunks = [jobs(tmp_path, range(i, i + 1), optimizer=optimizer) for i in range(4)]
    with each_warning_once(), pool_of(2) as pool:
        assert len(list(pool.train(chunks, SweepProgress(enabled=False)))) == 4
    assert [text[:25] for text in caplog.messages] == ["lr / gamma reaches 2 >= 2"]
    assert capfd.readouterr().err == ""


class Scripted(workers._Worker):
    """A worker without a process: it answers what it is to be asked with what it is told beforehand, or is dead."""

    def __init__(self, *answers: tuple[Any, ...], code: int = 0, dies: bool = False) -> None:
        self.connection, self.theirs = multiprocessing.Pipe()
        self.process: Any = SimpleNamespace(exitcode=code, join=lambda seconds: None)
        self.chunk, self.counted = None, 0
        for answer in answers:
            self.theirs.send(answer)
        if dies:
            self.theirs.close()


def pool_with(*scripted: Scripted, again: tuple[Scripted, ...] = ()) -> Pool:
    """Return a pool of given workers; the others take the place of those that die."""
    pool, later = Pool(0, threads=1), list(again)
    pool.n = len(scripted)
    pool.workers.extend(scripted)
    pool._start = lambda i: later.pop(0)  # pyright: ignore[reportAttributeAccessIssue]
    return pool


@pytest.mark.parametrize(
    ("gpus", "visible", "seen"),
    [
        ({}, "4,7", [None, None, None]),
        ({"gpus": False}, "", [None, None, None]),
        ({"gpus": True}, "4,7", ["4", "7", "4"]),
        ({"gpus": True}, "", ["0", "1", "2"]),
    ],
)
def test_each_worker_has_its_threads_and_sees_a_gpu_of_its_own_where_there_are_any(
    gpus: dict[str, bool], visible: str, seen: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr(workers, "_Worker", lambda threads, gpu: (threads, gpu))
    assert Pool(3, 5, **gpus).workers == [(5, gpu) for gpu in seen]


def test_the_rate_of_a_pool_is_the_mean_of_its_workers_while_all_of_them_train(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = Scripted(("logged", logging.WARNING, "%s", "look out"), ("measured", 10.0))
    second = Scripted(("measured", 30.0))
    pool, config = pool_with(first, second), small_config()
    assert pool.measure([config], 0.25) == 20.0
    assert caplog.messages == ["look out"]
    assert [worker.theirs.recv() for worker in (first, second)] == [("measure", [config], 0.25)] * 2
    with pytest.raises(MemoryError, match="too large"):
        pool_with(Scripted(("measured", 1.0)), Scripted(("measured", MemoryError("too large")))).measure([config], 0.25)
    dead = pool_with(Scripted(code=-signal.SIGKILL, dies=True), again=(Scripted(("measured", 5.0)),))
    with pytest.raises(WorkerDiedError, match=r"^was killed by SIGKILL$"):
        dead.measure([config], 0.25)
    assert dead.measure([config], 0.25) == 5.0  # another one has its place


@pytest.mark.parametrize(("code", "how"), [(-signal.SIGKILL, "was killed by SIGKILL"), (3, "ended with exit code 3")])
def test_a_chunk_whose_worker_dies_twice_has_failed_and_counts_nothing(tmp_path: Path, code: int, how: str) -> None:
    chunk, progress = jobs(tmp_path, range(2)), SweepProgress(enabled=False)
    progress.expect(2, 100)
    again = Scripted(("progress", 20, 0.5, True), code=code, dies=True)
    pool = pool_with(Scripted(("progress", 30, None, True), dies=True), again=(again,))
    ((ended, outcomes),) = pool.train([chunk], progress)
    assert ended is chunk
    assert [(outcome.state, outcome.folder) for outcome in outcomes] == [("failed", job.folder) for job in chunk]
    said = f"its worker process {how}, twice; the system may be out of memory"
    assert [str(outcome.error) for outcome in outcomes] == [said] * 2
    assert progress._evaluations == 0


def test_the_bar_of_a_pool_shows_errors_as_its_workers_do(tmp_path: Path) -> None:
    chunk, progress = jobs(tmp_path, range(1)), SweepProgress(enabled=False)
    assert progress.percent
    done = [Outcome("completed", chunk[0].folder)]
    pool = pool_with(Scripted(("progress", 30, 2.5, False), ("progress", 5, 1.5, False), ("done", done)))
    ((_, outcomes),) = pool.train([chunk], progress)
    assert [(outcome.state, outcome.folder) for outcome in outcomes] == [("completed", chunk[0].folder)]
    assert not progress.percent
    assert progress._evaluations == 35


def test_how_long_a_measurement_may_take_is_a_share_of_what_the_workers_train() -> None:
    group = planning.Group("g", [None] * 4, [], None, 0, 1.0)  # pyright: ignore[reportArgumentType]
    assert group.measurement_seconds(0) == group.measurement_seconds(1) == pytest.approx(0.03 * 4.0 / 5)
    assert group.measurement_seconds(2) == pytest.approx(0.03 * 2.0 / 5)
    group.seconds_per_run = 1e3
    assert group.measurement_seconds(1) == 0.1


def test_the_memory_of_a_run_is_looked_at_where_vectors_or_batches_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "run_bytes", lambda prepared: 77)
    monkeypatch.setattr(planning, "available_memory", lambda device: 10**9)

    def looked_at(d: int, batch_size: int, runs: int) -> bool:
        problem = SimpleNamespace(d=d, inputs=SimpleNamespace(device="cpu"))
        prepared = SimpleNamespace(problem=problem, batch_size=batch_size, configs=[None] * runs)
        return planning._run_bytes_if_they_matter(prepared) == 77  # pyright: ignore[reportArgumentType]

    assert not looked_at(d=100, batch_size=10, runs=100)
    assert looked_at(d=100, batch_size=10, runs=10_000)
    assert looked_at(d=1_000_000, batch_size=1, runs=1)  # 256 MB of vectors
    assert looked_at(d=10, batch_size=20_000, runs=1)


def test_a_short_sweep_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(planning, "Pool", started)
    trainer = LocalTrainer(SweepConfig())
    groups, _ = trainer._groups(planning.PlanFile(tmp_path), jobs(tmp_path, range(3)), set())
    assert trainer._start_workers(groups) == 1
    assert LocalTrainer(SweepConfig(workers=1))._start_workers(groups) == 1


def test_a_worker_says_at_once_how_far_it_is_and_then_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    ours, theirs = multiprocessing.Pipe()
    relay = workers._Relay(theirs)  # pyright: ignore[reportArgumentType]
    relay.update(3, validation_error=0.5)
    assert ours.poll()
    assert ours.recv() == ("progress", 3, 0.5, True)
    clock[0] += 0.9 * workers.POLL_SECONDS
    relay.update(7, validation_error=0.25)
    assert not ours.poll()
    clock[0] += 0.2 * workers.POLL_SECONDS
    relay.update(12, validation_error=0.75)
    assert ours.poll()
    assert ours.recv() == ("progress", 9, 0.25, True)  # since the last time, and the lowest error


def test_a_last_job_is_trained_here_beside_the_workers_of_the_jobs_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    class Given:
        """A pool that trains in this process."""

        def __init__(self, n: int, *arguments: Any, **words: Any) -> None:
            self.n = n

        def train(self, chunks: list[Chunk], progress: SweepProgress) -> Iterator[tuple[Chunk, list[Outcome]]]:
            for chunk in chunks:
                given.extend(job.config.seed for job in chunk)
                yield chunk, train_chunk(chunk, progress)

    monkeypatch.setattr(planning, "Pool", Given)
    trainer = LocalTrainer(SweepConfig(workers=2))
    for seeds in (range(2), range(2, 3)):
        assert sorted(s for part, _ in trained(trainer, jobs(tmp_path, seeds)) for s in part) == list(seeds)
    assert given == [0, 1]


@pytest.mark.parametrize("limit", [1, 2, 4, 5, 16, 63, 64, 65, 1000])
def test_sizes_of_fleets_that_are_tried_lead_from_one_to_the_limit_by_factors_of_four(limit: int) -> None:
    sizes = planning.sizes_to_try(limit)
    assert (sizes[0], sizes[-1]) == (1, limit)
    assert all(small < large <= 4 * small for small, large in itertools.pairwise(sizes))
    assert len(sizes) == 1 + math.ceil(math.log(limit, 4) - 1e-9)  # no more than it takes
