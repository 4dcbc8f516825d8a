"""How a sweep stands, read from its folder: `burgersgd status SWEEP`. The list of its jobs is kept there too."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from burgersgd.analysis.runs import load
from burgersgd.recording.claims import is_claimed
from burgersgd.recording.files import RunFolderError, append, plain_json, read_text
from burgersgd.recording.naming import job_folders, same_job
from burgersgd.recording.progress import sweep_summary
from burgersgd.recording.run_folder import ENDED, read_status
from burgersgd.recording.schema import NotedJob, checked, decoded
from burgersgd.sweeps.chunks import Outcome
from burgersgd.sweeps.report import Settings, settings_of

JOBS = "jobs.jsonl"
STATES = ("completed", "diverged", "pruned", "failed", "interrupted", "running", "waiting")


class JobState(NamedTuple):
    """One job of a sweep as its folder shows it."""

    name: str
    """Of its folder."""
    words: str
    """The overrides that tell it from the others."""
    state: str
    """One of STATES; interrupted, too, where its process died."""
    reason: str
    validation_error: float
    percent: bool
    """Whether errors are shares of wrong classes."""


def note_jobs(folder: Path, jobs: Mapping[str, str]) -> None:
    """Add jobs, name -> the overrides that tell it from the others, to the list in the sweep's folder."""
    known = noted_names(folder)
    new = {name: words for name, words in jobs.items() if same_job(name) not in known}
    lines = [json.dumps({"name": name, "overrides": words}) for name, words in new.items()]
    with contextlib.suppress(RunFolderError):  # then no job can write there either, and its failure says so
        if lines:
            append(folder / JOBS, ("\n".join(lines) + "\n").encode())


def _noted(folder: Path) -> dict[str, str]:
    try:
        lines = read_text(folder / JOBS).splitlines()
    except RunFolderError:
        return {}
    noted = {}
    for line in lines:
        with contextlib.suppress(RunFolderError):  # half a line of a process that was killed
            job = checked(decoded(line.encode(), folder / JOBS), NotedJob, folder / JOBS)
            noted[job["name"]] = job["overrides"]
    return noted


def noted_names(folder: Path) -> dict[str, str]:
    """Return the names that a sweep gave the folders of its jobs, by the hashes of these."""
    names: dict[str, str] = {}
    for name in _noted(folder):
        names.setdefault(same_job(name), name)
    return names


def job_states(folder: Path) -> list[JobState]:
    """Return the jobs of a sweep, in the order in which they were asked for. Raises RunFolderError for no sweep."""
    noted = _noted(folder)
    if not noted:
        raise RunFolderError(f"{folder}: no sweep is there (no {JOBS})")
    there = job_folders(folder)
    return [_state(there.get(same_job(name), folder / name), words) for name, words in noted.items()]


def _state(path: Path, words: str) -> JobState:
    try:
        status = read_status(path)
    except RunFolderError:
        return JobState(path.name, words, "running" if is_claimed(path) else "waiting", "", math.nan, True)
    state, reason = status["state"], status.get("reason") or ""
    if state == "running" and not is_claimed(path):
        state, reason = "interrupted", "its process died"
    percent, error = status.get("task") != "regression", status.get("validation_error")
    return JobState(path.name, words, state, reason, math.nan if error is None else error, percent)


def unwell(jobs: Iterable[tuple[str, Path]]) -> dict[str, list[tuple[str, str]]]:
    """Return which of the jobs, words and run folder, diverged or are no better than guessing, with the reasons."""
    found: dict[str, list[tuple[str, str]]] = {"diverged": [], "not learnt": []}
    for words, path in jobs:
        with contextlib.suppress(RunFolderError):
            status = read_status(path)
            if status["state"] == "diverged":
                found["diverged"].append((words, status.get("advice") or status.get("reason") or "no reason recorded"))
            elif status.get("no_better_than_guessing"):
                found["not learnt"].append((words, status.get("advice") or ""))
    return found


def as_it_stands(folder: Path) -> Outcome:
    """Return how a job stands that is not over."""
    found = _state(folder, "")
    known = {"running": "elsewhere", "interrupted": "interrupted", "waiting": "waiting"}.get(found.state, "failed")
    error = RunFolderError(found.reason) if known == "failed" else None
    return Outcome(known, folder, error=error)  # pyright: ignore[reportArgumentType]


def find_sweep(name: str) -> Path:
    """Return the folder of a sweep, given itself or by its name below outputs/multirun."""
    given = Path(name)
    return given if given.is_dir() else Path("outputs", "multirun", name)


def _settings(folder: Path) -> Settings:
    """Return the settings of the jobs that were begun, and write the files that a killed sweep could not write."""
    try:
        runs = load(folder)
    except RunFolderError:
        return Settings("", None)
    return settings_of(folder, runs, str(runs[0].settings.get("sweep.objective", "last")))


def main(arguments: Sequence[str]) -> int:
    """Run `burgersgd status SWEEP [--jobs | --json]`; 1 where a job has failed."""
    parser = argparse.ArgumentParser(prog="burgersgd status", description="Show how the jobs of a sweep stand.")
    parser.add_argument("sweep", metavar="SWEEP", help="its name, or its folder")
    parser.add_argument("--jobs", action="store_true", help="a line for every job")
    parser.add_argument("--json", action="store_true", help="every job as JSON")
    given = parser.parse_args(arguments)
    folder = find_sweep(given.sweep)
    jobs = job_states(folder)
    failed = int(any(job.state == "failed" for job in jobs))
    if given.json:
        print(json.dumps(plain_json([job._asdict() for job in jobs]), indent=2, ensure_ascii=False))
        return failed
    if given.jobs:
        for job in jobs:
            kind, known = "error" if job.percent else "RMSE", not math.isnan(job.validation_error)
            error = f"validation {kind} {job.validation_error:.4g}" if known else ""
            print(f"{job.name}  {job.state:<12}{error:<26}{job.words}{f'  ({job.reason})' if job.reason else ''}")
    settings = _settings(folder)
    shown = sweep_summary(
        states={state: sum(job.state == state for job in jobs) for state in STATES},
        failed=[(job.words, job.reason) for job in jobs if job.state == "failed"],
        unwell=unwell((job.words, folder / job.name) for job in jobs if job.state in ENDED),
        folder=folder,
        settings=settings.text,
        best_folder=settings.best_folder,
    )
    print(shown)
    return failed
