"""Reports a sweep by setting, during training and at its end, by means of analysis/by_setting.py."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from burgersgd.analysis import by_setting
from burgersgd.analysis.runs import Run, Runs
from burgersgd.config import TrainConfig
from burgersgd.copies import changed, plain_values
from burgersgd.identity import canonical, config_hash
from burgersgd.recording.files import RunFolderError
from burgersgd.recording.run_folder import read_status


def setting_of(config: TrainConfig, budget: int) -> str:
    """Return the hash of a setting, equal for jobs that differ only in the seed."""
    return config_hash(changed(config, seed=0), budget)


class BestMean:
    """The lowest mean error of the settings whose jobs have all ended, as in the progress bar and in the report."""

    def __init__(self) -> None:
        self._left: Counter[str] = Counter()
        self._errors: defaultdict[str, list[float]] = defaultdict(list)

    def expect(self, setting: str) -> None:
        """Count a job of the setting, whether it is still to be trained or has ended."""
        self._left[setting] += 1

    def end(self, setting: str, error: float) -> None:
        """Add the error of a job that has ended; inf: it diverged, nan: its error is not known."""
        self._left[setting] -= 1
        self._errors[setting].append(error)

    @property
    def value(self) -> float | None:
        """The lowest mean, None before any; settings with diverged jobs count only if there are no others."""
        means = []
        for setting, errors in self._errors.items():
            finite = [error for error in errors if math.isfinite(error)]
            if finite and self._left[setting] <= 0:
                means.append((math.inf in errors, sum(finite) / len(finite)))
        return min(means)[1] if means else None


class Settings(NamedTuple):
    """The table of a sweep's settings as text, and the folder of the best run of the best setting."""

    text: str
    best_folder: Path | None


def known_run(config: TrainConfig, budget: int, folder: Path, state: str) -> Run:
    """Return the run of a job whose configuration is known, reading only status.json of its folder."""
    status = {}
    with contextlib.suppress(RunFolderError):
        status = read_status(folder)
    return by_setting.run_of(plain_values(config), canonical(config, budget), folder, status, state)


def settings_of(folder: Path, runs: Iterable[Run], objective: str) -> Settings:
    """Return a sweep's settings, and write results.csv and summary.md into its folder if possible."""
    table = Runs(tuple(runs))
    settings = by_setting.by_setting(table, objective)
    with contextlib.suppress(RunFolderError):
        if settings and folder.is_dir():
            by_setting.write(folder, table, settings)
    best = by_setting.best_of(settings)
    run = None if best is None else best.best_run
    return Settings(by_setting.text(settings) if settings else "", None if run is None else run.folder)
