"""Runs two or three processes on one run by a schedule, and checks the folders that they leave."""

from __future__ import annotations

import dataclasses
import errno
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from burgersgd.api import resume, train, train_jobs
from burgersgd.recorder import _FleetRun
from burgersgd.recording import run_folder
from burgersgd.recording.run_folder import read_metrics, read_status
from burgersgd.training.fleet import Fleet
from tests.conftest import small_config
from tests.scheduling import Choose, paused, scheduled

BUDGET = 40


class StoppedError(Exception):
    """Ends a run that is to be resumed."""


def _counted(action: Callable[[], Any]) -> Callable[[], tuple[Any, int]]:
    """Return an action that returns how it ended and how many gradient evaluations it has made."""

    def counting() -> tuple[Any, int]:
        steps, step = [0], Fleet._steps

        def patched(self: Fleet, k: int, stop: int) -> int:
            steps[0] += 1
            return step(self, k, stop)

        with mock.patch.object(Fleet, "_steps", patched):
            try:
                end = action()
            except Exception as error:
                end = type(error).__name__
        return end, steps[0]

    return counting


def _config(root: Path) -> Any:
    config = small_config(output_root=str(root / "outputs"), run_name="run")
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, checkpoint_every=11, log_every=5))


@functools.cache
def _undisturbed(root: Path) -> dict[str, str]:
    """Return the columns of metrics.csv of a run that nobody disturbs, as text."""
    config = dataclasses.replace(_config(root / "undisturbed"), run_name="run")
    train(config, progress=False)
    return {name: repr(column) for name, column in read_metrics(root / "undisturbed/outputs/run").items()}


def _job(root: Path) -> str:
    (result,) = train_jobs([_config(root)], [()], progress=False)
    return "elsewhere" if result is None else result.state


def _single(root: Path) -> str:
    return train(_config(root), progress=False).state


def _resumed(root: Path) -> str:
    return resume(root / "outputs" / "run", progress=False).state


def _failing(root: Path) -> str:
    """Start another run on a disk that is full just then."""

    def full(*arguments: Any, **words: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with mock.patch.object(run_folder, "write_new", full):
        return train(dataclasses.replace(_config(root), run_name="other"), progress=False).state


ELSEWHERE = ("elsewhere", "RunInUseError", "FolderTakenError")
KINDS: dict[str, list[Callable[[Path], str]]] = {
    "two jobs": [_job, _job],
    "two starts": [_single, _single],
    "a start and a job": [_single, _job],
    "two resumes": [_resumed, _resumed],
    "a failing start and two jobs": [_failing, _job, _job],
}


def double_start(kind: str, root: Path, choose: Choose) -> tuple[list[Any], list[int]]:
    """Run one schedule in an empty folder; return how the processes ended and their operations.

    Raises AssertionError where the run is not there once, whole, and made of as many gradient evaluations as its
    budget, or where a process ended as it should not.
    """
    before = 0
    if kind == "two resumes":
        record = _FleetRun._record

        def stopping(self: _FleetRun, point: Any) -> None:
            if point.evaluations == 25:
                raise StoppedError
            record(self, point)

        with mock.patch.object(_FleetRun, "_record", stopping):
            try:
                _single(root)
            except StoppedError:
                before = 22  # the checkpoint
    actions = [_counted(lambda action=action: action(root)) for action in KINDS[kind]]
    ends, counts = scheduled(actions, root, choose)
    states = [end[0] for end in ends]
    steps = sum(end[1] for end in ends)
    said = f"{kind}: {ends}"
    wanted = states[1:] if kind.startswith("a failing") else states
    if "completed" not in wanted and "elsewhere" in wanted:  # turned away while a failing start cleaned up: once more
        ends, _ = scheduled(actions[-1:], root, paused(0, 10**9))
        steps, wanted = steps + ends[0][1], [*wanted, ends[0][0]]
        states = [*states, "completed at the second try"]
    assert "completed" in wanted, said
    assert all(state in ("completed", *ELSEWHERE) for state in wanted), said
    assert steps == BUDGET - before, said  # trained once
    folder = root / "outputs" / "run"
    assert read_status(folder)["state"] == "completed", said
    for name, column in _undisturbed(root).items():
        assert name == "seconds" or repr(read_metrics(folder)[name]) == column, (name, said)
    assert (folder / "checkpoint.pt").exists(), said
    shutil.rmtree(root / "outputs")
    return states, counts
