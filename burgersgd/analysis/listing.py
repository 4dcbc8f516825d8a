"""`burgersgd list [FOLDER]`: lists runs with the time of their last change and their state."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from burgersgd.analysis.compare import words
from burgersgd.analysis.runs import Run, Runs, load, number
from burgersgd.analysis.tables import Form, Table, as_text, fixed
from burgersgd.recording.files import plain_json

STATES = ("running", "completed", "diverged", "pruned", "failed", "interrupted")
SHOWN = 40
"""Default number of listed runs (-n)."""


def main(arguments: Sequence[str]) -> int:
    """Run `burgersgd list`. Raises ValueError with a one-line message if there is no run or a key is unknown."""
    given = parser().parse_args(arguments)
    runs = load(*given.folder)
    if given.where:
        runs = runs.where(dict(_pair(text) for text in given.where))
    if given.state:
        runs = runs.where(lambda run: run.state in given.state)
    newest = sorted(runs, key=_updated, reverse=True)
    shown = newest if given.n == 0 else newest[: given.n]
    keys = tuple(Runs(tuple(shown)).differing()) if shown else ()
    if given.json:
        print(json.dumps(plain_json([record(run) for run in shown]), indent=2, ensure_ascii=False))
        return 0
    print(as_text(table(shown, keys)) if shown else "no run matches")
    for note in runs.notes:
        print(f"- {note}")
    if len(shown) < len(newest):
        print(f"and {len(newest) - len(shown)} older runs; -n 0 lists all")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(prog="burgersgd list", description="List runs, the newest first.")
    made.add_argument(
        "folder", nargs="*", default=["outputs"], help="folders, names of sweeps, or globs; default: outputs"
    )
    made.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="list only runs with this setting; may be repeated",
    )
    made.add_argument("--state", action="append", choices=STATES, help="list only runs in this state; may be repeated")
    made.add_argument("-n", type=int, default=SHOWN, help=f"largest number of listed runs, 0: all; default: {SHOWN}")
    made.add_argument("--json", action="store_true", help="print JSON with every setting")
    return made


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--where {text}: must be KEY=VALUE")
    return key, value


def _updated(run: Run) -> str:
    return str(run.status.get("updated") or "")


def table(runs: Sequence[Run], keys: tuple[str, ...]) -> Table:
    """Return the runs as a table: folder, time, state, the settings that differ, errors, progress."""
    rows = []
    for run in runs:
        form = Form(100, " %", 2) if run.percent else Form(1, "", 4)
        errors = [number(run.status.get(f"{part}_error")) for part in ("validation", "test")]
        shown = [f"{form.number(error)}{form.unit}" if error == error else "" for error in errors]
        label = words(keys, [run.settings.get(key) for key in keys], short=True)
        when = _updated(run)[:16].replace("T", " ")
        rows.append((str(run.folder), when, run.state, label, *shown, _progress(run)))
    return Table("", ("run", "updated", "state", "settings", "validation error", "test error", "done"), tuple(rows))


def _progress(run: Run) -> str:
    """Return the fraction of the budget that is spent, or an empty text if it is unknown."""
    spent, budget = number(run.status.get("evaluations")), run.budget
    return f"{fixed(100 * spent / budget, 0)} %" if budget > 0 and spent == spent else ""


def record(run: Run) -> Mapping[str, Any]:
    """Return a run as plain values: folder, state, settings, status."""
    return {"folder": str(run.folder), "state": run.state, "settings": run.settings, "status": run.status}
