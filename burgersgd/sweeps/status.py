"""The states of the jobs of a sweep, read from its folder, which also holds the list of the jobs."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from burgersgd.analysis.runs import load
from burgersgd.recording.claims import is_claimed
from burgersgd.recording.files import RunFolderError, append, read_text
from burgersgd.recording.naming import JOBS, job_folders, same_job
from burgersgd.recording.progress import sweep_summary
from burgersgd.recording.reading import ENDED, evaluations_so_far, read_status
from burgersgd.recording.schema import NotedJob, checked, decoded
from burgersgd.sweeps.chunks import Outcome
from burgersgd.sweeps.report import Settings, settings_of

STATES = ("completed", "diverged", "pruned", "failed", "interrupted", "running", "waiting")


class JobState(NamedTuple):
    """One job of a sweep as recorded in its folder."""

    name: str
    """Name of the run folder."""
    words: str
    """The overrides in which the job differs from the others."""
    state: str
    """One of STATES; a job whose process died counts as interrupted."""
    reason: str
    validation_error: float
    percent: bool
    """Whether errors are fractions of wrong classes."""
    evaluations: int
    """Number of gradient evaluations recorded so far."""
    budget: int | None
    """Total number of gradient evaluations; None where it is not recorded, as before the start."""

    @property
    def progress(self) -> float:
        """The fraction of the work that is done; 1 for a job that has ended."""
        return 1.0 if self.state in ENDED else self.evaluations / self.budget if self.budget else 0.0


def add_jobs(folder: Path, jobs: Mapping[str, str]) -> None:
    """Add jobs (name -> the overrides in which it differs from the others) to the list in the sweep's folder."""
    listed = listed_names(folder)
    new = {name: words for name, words in jobs.items() if same_job(name) not in listed}
    lines = [json.dumps({"name": name, "overrides": words}) for name, words in new.items()]
    with contextlib.suppress(
        RunFolderError
    ):  # jobs cannot write to the folder either, and their errors report the cause
        if lines:
            append(folder / JOBS, ("\n".join(lines) + "\n").encode())


def _noted(folder: Path) -> dict[str, str]:
    try:
        lines = read_text(folder / JOBS).splitlines()
    except RunFolderError:
        return {}
    noted = {}
    for line in lines:
        with contextlib.suppress(RunFolderError):  # an incomplete line, of a process that was killed
            job = checked(decoded(line.encode(), folder / JOBS), NotedJob, folder / JOBS)
            noted[job["name"]] = job["overrides"]
    return noted


def listed_names(folder: Path) -> dict[str, str]:
    """Return the names of the job folders of a sweep, by the hashes of the jobs."""
    names: dict[str, str] = {}
    for name in _noted(folder):
        names.setdefault(same_job(name), name)
    return names


def job_states(folder: Path) -> list[JobState]:
    """Return the jobs of a sweep in their original order. Raises RunFolderError where the folder holds no sweep."""
    noted = _noted(folder)
    if not noted:
        raise RunFolderError(f"{folder}: must be the folder of a sweep, but has no {JOBS}")
    existing = job_folders(folder)
    return [state_of(existing.get(same_job(name), folder / name), words) for name, words in noted.items()]


def state_of(path: Path, words: str) -> JobState:
    """Return the state of the run in a folder, which need not exist yet."""
    try:
        status = read_status(path)
    except RunFolderError:
        return JobState(path.name, words, "running" if is_claimed(path) else "waiting", "", math.nan, True, 0, None)
    state, reason = status["state"], status.get("reason") or ""
    if state == "running" and not is_claimed(path):
        state, reason = "interrupted", "the process that trained it died"
    percent, error = status.get("task") != "regression", status.get("validation_error")
    spent = status.get("evaluations") if state in ENDED else evaluations_so_far(path)
    validation_error = math.nan if error is None else error
    return JobState(path.name, words, state, reason, validation_error, percent, spent or 0, status.get("budget"))


def unsuccessful(jobs: Iterable[tuple[str, Path]]) -> dict[str, list[tuple[str, str]]]:
    """Return which jobs (words and run folder) diverged or predict no better than guessing, with the reasons."""
    found: dict[str, list[tuple[str, str]]] = {"diverged": [], "not learnt": []}
    for words, path in jobs:
        with contextlib.suppress(RunFolderError):
            status = read_status(path)
            if status["state"] == "diverged":
                found["diverged"].append((words, status.get("advice") or status.get("reason") or "no reason recorded"))
            elif status.get("no_better_than_guessing"):
                found["not learnt"].append((words, status.get("advice") or ""))
    return found


def unfinished_outcome(folder: Path) -> Outcome:
    """Return the state of a job that has not ended, as an outcome."""
    found = state_of(folder, "")
    state = {"running": "elsewhere", "interrupted": "interrupted", "waiting": "waiting"}.get(found.state, "failed")
    error = RunFolderError(found.reason) if state == "failed" else None
    return Outcome(state, folder, error=error)  # pyright: ignore[reportArgumentType]


def _settings(folder: Path) -> Settings:
    """Return the settings of the jobs that were started, and write the files that a killed sweep could not write."""
    try:
        runs = load(folder)
    except RunFolderError:
        return Settings("", None)
    return settings_of(folder, runs, str(runs[0].settings.get("sweep.objective", "last")))


def progress_of(jobs: Sequence[JobState]) -> float:
    """Return the fraction of a sweep's work that is done; a job that was not started counts as an average one."""
    budgets = [job.budget for job in jobs if job.budget]
    average = sum(budgets) / len(budgets) if budgets else 1
    whole = [job.budget or average for job in jobs]
    return sum(n * job.progress for n, job in zip(whole, jobs, strict=True)) / max(sum(whole), 1)


def counted(jobs: Iterable[JobState]) -> dict[str, int]:
    """Return the number of jobs in each of the STATES, in that order."""
    count = Counter(job.state for job in jobs)
    return {state: count[state] for state in STATES}


def record(job: JobState) -> dict[str, Any]:
    """Return a job as a dict of plain values."""
    return {**job._asdict(), "progress": job.progress}


def sweep_text(folder: Path, jobs: Sequence[JobState], every: bool) -> str:
    """Return the report of a sweep as text; every: with a line for every job."""
    width = max(len(job.name) for job in jobs)
    lines = [_line(job, width) for job in jobs] if every else []
    settings = _settings(folder)
    summary = sweep_summary(
        states=counted(jobs),
        failed=[(job.words, job.reason) for job in jobs if job.state == "failed"],
        unsuccessful=unsuccessful((job.words, folder / job.name) for job in jobs if job.state in ENDED),
        folder=folder,
        settings=settings.text,
        best_folder=settings.best_folder,
        progress=progress_of(jobs),
    )
    return "\n".join([*lines, summary])


def _line(job: JobState, width: int) -> str:
    kind, is_measured = "error" if job.percent else "RMSE", not math.isnan(job.validation_error)
    error = f"validation {kind} {job.validation_error:.4g}" if is_measured else ""
    reason = f"  ({job.reason})" if job.reason else ""
    return f"{job.name:<{width}}  {job.state:<12}{100 * job.progress:>4.0f} %  {error:<26}{job.words}{reason}"
