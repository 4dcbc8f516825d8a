"""`burgersgd status [FOLDER]`: reports the state of a sweep, of a single run, or of the latest ones."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from burgersgd.analysis.tables import Table, as_text
from burgersgd.recording.files import RunFolderError, plain_json
from burgersgd.recording.naming import JOBS
from burgersgd.recording.progress import shown_path
from burgersgd.recording.reading import CONFIG, METRICS, STATUS, read_status
from burgersgd.sweeps.status import JobState, counted, job_states, progress_of, record, state_of, sweep_text

LATEST = 10
"""Number of sweeps and runs that are shown where no folder is given."""


def main(arguments: Sequence[str]) -> int:
    """Run `burgersgd status [FOLDER] [--jobs | --json]`; return 1 if a job of the sweep, or the run, has failed.

    Raises RunFolderError of one line where there is no such sweep or run.
    """
    given = parser().parse_args(arguments)
    folder = _found(given.folder)
    if (folder / JOBS).exists():
        jobs = job_states(folder)
        print(_json([record(job) for job in jobs]) if given.json else sweep_text(folder, jobs, given.jobs))
        return int(any(job.state == "failed" for job in jobs))
    if _is_run(folder):
        run = state_of(folder, "")
        print(_json(record(run) | {"folder": str(folder)}) if given.json else _run_text(folder, run))
        return int(run.state == "failed")
    latest = [_about(path) for path in _latest(folder)]
    if not latest:
        raise RunFolderError(f"{folder}: must be the folder of a run or a sweep")
    print(_json(latest) if given.json else as_text(_table(latest)))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(prog="burgersgd status", description="Show the states of sweeps and runs.")
    what = "folder of a sweep or a run, or its name below outputs; default: the latest ones in outputs"
    made.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help=what)
    made.add_argument("--jobs", action="store_true", help="print a line for every job of the sweep")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def _json(value: Any) -> str:
    return json.dumps(plain_json(value), indent=2, ensure_ascii=False)


def _found(name: str) -> Path:
    """Return the folder of a sweep or a run, given as a path or by its name below outputs."""
    candidates = [Path(name), Path("outputs", "multirun", name), Path("outputs", name)]
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        raise RunFolderError(f"{name}: there is no such folder, and no sweep or run of that name below outputs")
    return found


def _is_run(folder: Path) -> bool:
    return (folder / STATUS).exists() or (folder / CONFIG).exists()


def _latest(root: Path) -> list[Path]:
    """Return the folders of sweeps and runs below a folder of outputs (or of sweeps), the latest ones first."""
    folders: dict[Path, float] = {}
    for parent in (root, root / "multirun"):
        for path in _folders(parent):
            if (path / JOBS).exists() or _is_run(path):
                folders[path] = _updated(path)
    return sorted(folders, key=lambda path: (folders[path], path), reverse=True)[:LATEST]


def _folders(parent: Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return []


def _updated(folder: Path) -> float:
    """Return the time of the last write to a run, or to any run of a sweep, in seconds since the epoch.

    The folder of a sweep itself does not count, since `status` writes into it.
    """
    is_sweep = (folder / JOBS).exists()
    found = [folder / JOBS, *_folders(folder)] if is_sweep else [folder, *(f for f in [folder / METRICS] if f.exists())]
    return max(path.stat().st_mtime for path in found)


def _about(folder: Path) -> dict[str, Any]:
    """Return the entries of a sweep or a run in the list of the latest ones."""
    is_sweep = (folder / JOBS).exists()
    try:
        jobs = job_states(folder) if is_sweep else [state_of(folder, "")]
    except RunFolderError:  # a sweep whose list of jobs is damaged
        jobs = []
    return {
        "folder": str(folder),
        "kind": "sweep" if is_sweep else "run",
        "updated": datetime.fromtimestamp(_updated(folder)).isoformat(timespec="seconds"),
        "states": {state: count for state, count in counted(jobs).items() if count},
        "progress": progress_of(jobs),
    }


def _table(latest: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for about in latest:
        states, one = about["states"], about["kind"] == "run"
        state_text = ", ".join(state if one else f"{count} {state}" for state, count in states.items())
        when = about["updated"][:16].replace("T", " ")
        rows.append(
            (shown_path(Path(about["folder"])), about["kind"], when, state_text, f"{100 * about['progress']:.0f} %")
        )
    return Table("", ("folder", "kind", "updated", "state", "done"), tuple(rows))


def _run_text(folder: Path, run: JobState) -> str:
    """Return the report of a single run in a few lines."""
    status: dict[str, Any] = {}
    if (folder / STATUS).exists():
        status = read_status(folder)
    spent = f"{run.evaluations:,} of {run.budget:,}" if run.budget else f"{run.evaluations:,}"
    lines = {"state": run.state, "gradient evaluations": f"{spent} ({100 * run.progress:.0f} %)"}
    for part in ("validation", "test"):
        error = status.get(f"{part}_error")
        if error is not None:
            lines[f"{part} {'error' if run.percent else 'RMSE'}"] = (
                f"{100 * error:.2f} %" if run.percent else f"{error:.4g}"
            )
    lines |= {"reason": run.reason} if run.reason else {}
    lines |= {"advice": status["advice"]} if status.get("advice") else {}
    lines |= {"updated": str(status.get("updated", "")), "folder": shown_path(folder)}
    if run.state in ("interrupted", "failed"):
        lines["resume with"] = f"burgersgd train resume={shlex.quote(shown_path(folder))}"
    return "\n".join(f"  {label:<22}{text}" for label, text in lines.items())
