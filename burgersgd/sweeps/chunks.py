"""Trains a chunk of jobs as one fleet, the unit of work of every launcher, in this process or in another one."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from burgersgd.api import train_jobs
from burgersgd.build.prepared import fleet_key
from burgersgd.config import TrainConfig
from burgersgd.copies import changed
from burgersgd.recording.naming import hash_of
from burgersgd.recording.progress import SweepProgress
from burgersgd.recording.reading import read_end
from burgersgd.recording.run_folder import RunFolderError
from burgersgd.result import Result
from burgersgd.sweeps.pruning import pruning


class Job(NamedTuple):
    """One run to be trained and recorded in its own folder, which has the name of the run."""

    config: TrainConfig
    folder: Path
    overrides: tuple[str, ...]


Chunk = list[Job]


@dataclass(frozen=True)
class Outcome:
    """How a job ended; errors are defined as in Result, nan where there are none."""

    state: Literal["completed", "diverged", "pruned", "failed", "elsewhere", "interrupted", "waiting"]
    """elsewhere: another process trains the job; waiting: the job was not started."""
    folder: Path
    validation_error: float = math.nan
    best_validation_error: float = math.nan
    test_error: float = math.nan
    evaluations: int = 0
    seconds: float = 0.0
    error: Exception | None = None
    """The error of a job that failed."""

    def objective(self, which: str) -> float:
        """Return the quantity that a search minimises: the last or best validation error; +inf for a diverged run."""
        if self.state in ("diverged", "failed"):
            return math.inf
        return self.best_validation_error if which == "best" else self.validation_error


def chunks_of(jobs: Sequence[Job], max_runs: int | None) -> list[Chunk]:
    """Return the jobs in chunks that may each be a fleet, with at most max_runs jobs in a chunk (None: no limit)."""
    groups: dict[str, Chunk] = {}
    for job in jobs:
        groups.setdefault(group_name(job.config), []).append(job)
    return [part for group in groups.values() for part in _parts(group, -(-len(group) // (max_runs or len(group))))]


def spread(chunks: Sequence[Chunk], n: int) -> list[Chunk]:
    """Return the chunks, the longest ones split, so that there are at least n chunks or each holds one job."""
    parts = [1] * len(chunks)
    for _ in range(min(n, sum(map(len, chunks))) - len(chunks)):
        parts[max(range(len(chunks)), key=lambda i: len(chunks[i]) / parts[i])] += 1
    return [part for chunk, k in zip(chunks, parts, strict=True) for part in _parts(chunk, k)]


def _parts(chunk: Chunk, n: int) -> list[Chunk]:
    """Return n parts whose sizes differ by at most one."""
    return [chunk[i * len(chunk) // n : (i + 1) * len(chunk) // n] for i in range(n)]


def group_name(config: TrainConfig) -> str:
    """Return a text that is equal for runs that may share a fleet."""
    return repr(sorted(fleet_key(config).items()))


def recorded_outcome(folder: Path) -> Outcome | None:
    """Return the recorded outcome of a job, or None where its folder does not say that it has ended."""
    try:
        status = read_end(folder, unchanged=True)
    except RunFolderError:  # training the job will report the error
        return None
    digits = hash_of(folder.name)
    if status is None or (digits is not None and status.get("config_hash", digits) != digits):
        return None  # the run has not ended, or the folder belongs to another run
    numbers = ("validation_error", "best_validation_error", "test_error", "evaluations", "seconds")
    return Outcome(status["state"], folder, **{name: status[name] for name in numbers})


def train_chunk(chunk: Chunk, progress: SweepProgress | Literal[False] = False) -> list[Outcome]:
    """Train or resume jobs that may share a fleet, each in its folder, and return their outcomes.

    Raises only Interrupted: where the fleet fails, its halves are trained one after the other, so that a job that
    cannot be trained does not prevent the results of others.
    """
    configs = [changed(j.config, output_root=str(j.folder.parent), run_name=j.folder.name) for j in chunk]
    try:
        words, prune = [job.overrides for job in chunk], pruning(configs[0].sweep)
        results = train_jobs(configs, words, progress=progress, prune=prune)
        return [_outcome(job.folder, result) for job, result in zip(chunk, results, strict=True)]
    except Exception as error:
        failure = without_frames(error)
    gc.collect()  # a user's module may hold memory in reference cycles
    if len(chunk) == 1:
        return [Outcome("failed", chunk[0].folder, error=failure)]
    half = len(chunk) // 2
    return train_chunk(chunk[:half], progress) + train_chunk(chunk[half:], progress)


def without_frames(error: Exception) -> Exception:
    """Return the error without its tracebacks, whose frames would keep the memory of a fleet alive."""
    met: BaseException | None = error
    while met is not None:
        met.with_traceback(None)
        met = met.__cause__ or met.__context__
    return error


def _outcome(folder: Path, result: Result | None) -> Outcome:
    if result is None:
        return Outcome("elsewhere", folder)
    return Outcome(
        result.state,
        result.folder or folder,
        result.validation_error,
        result.best_validation_error,
        result.test_error,
        result.evaluations,
        result.seconds,
        RunFolderError(result.reason) if result.state == "failed" else None,
    )
