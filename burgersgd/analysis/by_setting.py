"""A sweep by setting: jobs that differ only in the seed are grouped, with mean, deviation and interval over the seeds.

A single job depends on its seed; only a setting can be chosen. Diverged jobs are counted but not averaged, and settings
with diverged jobs come after those without.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from burgersgd.analysis.compare import words
from burgersgd.analysis.runs import Run, Runs, flat, number
from burgersgd.analysis.statistics import UNKNOWN, Interval, t_interval
from burgersgd.analysis.tables import Form, Table, as_markdown, as_text, fixed
from burgersgd.recording.files import replacing

RESULTS = "results.csv"
SUMMARY = "summary.md"
SHOWN = 12
"""Number of settings that a terminal shows; summary.md has all of them."""
LABEL = 44
"""Largest number of characters of a setting in the terminal's table."""
OUTCOMES = (
    "evaluations",
    "seconds",
    "validation_error",
    "validation_loss",
    "test_error",
    "test_loss",
    "best_validation_error",
    "best_test_error",
    "best_at",
    "reason",
)
"""The keys of status.json that results.csv contains."""


class Spread(NamedTuple):
    """Values over the seeds of a setting: their number, mean, standard deviation, and Student's 95 % interval."""

    n: int
    mean: float
    sd: float
    interval: Interval

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of finite values; statistics that need more values than there are are nan."""
        finite = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
        if not len(finite):
            return cls(0, math.nan, math.nan, UNKNOWN)
        sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
        return cls(len(finite), float(np.mean(finite)), sd, t_interval(finite))


@dataclass(frozen=True)
class Setting:
    """The jobs of a sweep that differ only in the seed."""

    label: str
    """The keys that distinguish the setting from the others, as overrides."""
    runs: tuple[Run, ...]
    validation: Spread
    test: Spread
    objective: str
    """`last` or `best`: errors at the end of a run, or at the x of its lowest validation error."""

    def count(self, *states: str) -> int:
        """Return the number of its jobs in these states."""
        return sum(run.state in states for run in self.runs)

    @property
    def is_done(self) -> bool:
        """Whether all of its jobs are finished and at least one has a validation error."""
        return self.count("completed", "diverged", "pruned", "failed") == len(self.runs) and self.validation.n > 0

    @property
    def best_run(self) -> Run | None:
        """The completed job with the lowest validation error."""
        done = [run for run in self.runs if run.state == "completed"]
        return min(done, key=lambda run: _error(run, "validation", self.objective), default=None)

    @property
    def _order(self) -> tuple[bool, bool, float]:
        unknown = math.isnan(self.validation.mean)
        return self.count("diverged", "failed") > 0, unknown, 0.0 if unknown else self.validation.mean


def _error(run: Run, part: str, objective: str) -> float:
    return number(run.status.get(f"{'best_' if objective == 'best' else ''}{part}_error"))


def run_of(
    config: Mapping[str, Any], decides: Mapping[str, Any], folder: Path, status: Mapping[str, Any], state: str
) -> Run:
    """Return the run of a job of a sweep without reading its folder.

    config is the configuration as plain values, decides is its identity.canonical.
    """
    return Run(folder, flat(config), flat(decides), dict(status), state, digest="")


def by_setting(runs: Runs, objective: str = "last") -> list[Setting]:
    """Return the settings in order: those without diverged or failed jobs first, then by mean validation error."""
    keys = tuple(key for key in runs.differing() if key != "seed")
    groups: dict[tuple[tuple[str, Any], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting(without=("seed",)), []).append(run)
    settings = []
    for members in groups.values():
        completed = [run for run in members if run.state == "completed"]
        label = words(keys, [members[0].decides.get(key) for key in keys], short=True)
        validation, test = (Spread.of([_error(run, p, objective) for run in completed]) for p in ("validation", "test"))
        settings.append(Setting(label or "all jobs", tuple(members), validation, test, objective))
    return sorted(settings, key=lambda setting: setting._order)


def table(settings: Sequence[Setting], label_width: int | None = None) -> Table:
    """Return the settings as a table."""
    percent = all(run.percent for setting in settings for run in setting.runs)
    form, kind = (Form(100, "%", 2), "error %") if percent else (Form(1, "", _decimals(settings)), "RMSE")
    when = " at best" if settings and settings[0].objective == "best" else ""
    states: dict[str, tuple[str, ...]] = {
        "diverged": ("diverged",),
        "failed": ("failed",),
        "stopped early": ("pruned",),
    }
    states["not finished"] = ("running", "interrupted", "waiting")
    shown = {name: members for name, members in states.items() if any(setting.count(*members) for setting in settings)}
    columns = ["setting", "n"]
    for part in ("validation", "test"):
        columns += [f"{part} {kind}{when}", "sd", "95 % interval (t)"]
    rows = []
    for setting in settings:
        n, of = max(setting.validation.n, setting.test.n), len(setting.runs)
        row = [_shortened(setting.label, label_width), str(n) if n == of else f"{n} of {of}"]
        for spread in (setting.validation, setting.test):
            row += [form.number(spread.mean), form.number(spread.sd), form.interval(spread.interval)]
        rows.append((*row, *(str(setting.count(*members)) for members in shown.values())))
    return Table("", (*columns, *shown), tuple(rows))


def _decimals(settings: Sequence[Setting]) -> int:
    sizes = sorted(setting.validation.mean for setting in settings if setting.validation.mean > 0)
    return max(0, 3 - math.floor(math.log10(sizes[len(sizes) // 2]))) if sizes else 4


def _shortened(label: str, width: int | None) -> str:
    return label if width is None or len(label) <= width else label[: width - 3] + "..."


def text(settings: Sequence[Setting]) -> str:
    """Return the text for the terminal: the first settings, the best one, and the limits of what the numbers show."""
    lines = [as_text(table(settings[:SHOWN], LABEL))]
    if len(settings) > SHOWN:
        lines.append(f"and {len(settings) - SHOWN} more settings in {SUMMARY}")
    lines += ["", *conclusions(settings)]
    return "\n".join(lines)


def best_of(settings: Sequence[Setting]) -> Setting | None:
    """Return the first setting whose jobs are all finished, None if there is none."""
    return next((setting for setting in settings if setting.is_done), None)


def conclusions(settings: Sequence[Setting]) -> list[str]:
    """Return sentences on the best setting, its best run, and the limits of what the numbers show."""
    best = best_of(settings)
    if not any(setting.validation.n for setting in settings) and any(setting.test.n for setting in settings):
        return ["no setting can be selected, because there is no validation part"]
    if best is None:
        return ["no setting can be selected yet: none has finished all of its jobs and completed at least one"]
    percent = best.runs[0].percent
    error = f"{fixed(100 * best.validation.mean, 2)} %" if percent else f"RMSE {best.validation.mean:.4g}"
    lines = [f"best setting: {best.label}, mean validation {'error ' if percent else ''}{error} of {best.validation.n}"]
    if best.best_run is not None and best.validation.n > 1:
        lines.append(f"its best run: seed={best.best_run.seed} in {best.best_run.folder.name}")
    if all(setting.validation.n < 2 for setting in settings):
        lines.append("one seed per setting: the spread over seeds is unknown; add 'seed=range(8)'")
    elif len(settings) > 1:
        lines.append(
            "intervals are not adjusted for multiple comparisons; burgersgd compare tests differences between settings"
        )
    return lines


def results(runs: Runs) -> str:
    """Return a CSV table with one row per job: folder, state, every key that differs, every outcome."""
    keys, stream = runs.differing(), io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["folder", "state", *keys, *OUTCOMES])
    for run in runs:
        outcomes = [run.status.get(name) for name in OUTCOMES]
        cells = [run.folder.name, run.state, *(run.decides.get(key) for key in keys), *outcomes]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return stream.getvalue()


def summary(settings: Sequence[Setting], title: str) -> str:
    """Return the complete table and the conclusions, in Markdown."""
    conclusion_lines = "\n".join(f"- {line}" for line in conclusions(settings))
    return f"# {title}\n\n{as_markdown(table(settings))}\n\n{conclusion_lines}\n"


def write(folder: Path, runs: Runs, settings: Sequence[Setting]) -> None:
    """Write results.csv and summary.md into the folder of a sweep. Raises OSError if they cannot be written."""
    for name, content in ((RESULTS, results(runs)), (SUMMARY, summary(settings, folder.name))):
        with replacing(folder / name, lasting=False) as stream:
            stream.write(content.encode())
