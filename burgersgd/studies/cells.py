"""The cells of a study, each one workload, budget and schedule: their searches, choices and tests."""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burgersgd.analysis.rows import pick
from burgersgd.analysis.runs import Run, Runs, load
from burgersgd.analysis.values import At, measure
from burgersgd.schema import ConfigError
from burgersgd.studies.config import StudyConfig
from burgersgd.studies.stein import Stein, deviation, interval_of, pairs_for
from burgersgd.sweeps.compose import Composer
from burgersgd.sweeps.sweep import Sweep

FIRST_TEST_SEED = 1000
"""First seed of the tests; the seeds of the search begin at 0."""
END = At("end")


class StudyStoppedError(ConfigError):
    """A sweep of the study is incomplete, so that the study cannot continue."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True, eq=False)
class Cell:
    """One workload, budget and schedule of a study in a folder."""

    study: StudyConfig
    root: Path
    workload: str
    budget: int
    schedule: str

    @property
    def name(self) -> str:
        """The name of the cell, which its folders have, too."""
        return f"{self.workload},{self.budget},{self.schedule}"

    @property
    def search_folder(self) -> Path:
        """The folder of the trials of its search."""
        return self.root / "search" / self.name

    @property
    def test_folder(self) -> Path:
        """The folder of the test runs of the chosen settings."""
        return self.root / "test" / self.name

    @property
    def words(self) -> list[str]:
        """The overrides that all runs of the cell share."""
        chosen = self.study.workloads[self.workload]
        return [*self.study.common, *chosen, f"trainer.budget={self.budget}", f"schedule={self.schedule}"]

    @property
    def width(self) -> float:
        """The target width of the interval of a difference in test error."""
        return self.study.widths.get(self.workload, self.study.width)

    def search_words(self) -> list[str]:
        """Return the overrides of the search: the same number of points of each optimizer's space, with equal seeds."""
        study = self.study
        sampled = [f"sweep.sampler={study.sampler}", f"sweep.n_samples={study.trials}"]
        return [*self.words, *sampled, spaces_word(study.optimizers), f"seed=range({study.tuning_seeds})"]

    def test_words(self, chosen: Mapping[str, Mapping[str, str]], n: int) -> list[str]:
        """Return the overrides of the test sweep: the chosen settings with n new seeds."""
        seeds = f"seed=range({FIRST_TEST_SEED},{FIRST_TEST_SEED + n})"
        return [*self.words, *self.study.final, spaces_word(chosen), seeds]

    def choose(self) -> dict[str, dict[str, str]]:
        """Return each optimizer's setting with the lowest mean validation error; those with diverged runs come last."""
        runs = load(self.search_folder)
        return {name: chosen_setting(runs, name, list(space)) for name, space in self.study.optimizers.items()}

    def differences(self, n: int) -> dict[str, NDArray[np.float64]]:
        """Return differences in test error to the baseline by optimizer, for those of n seeds that both completed."""
        errors: dict[str, dict[int, float]] = defaultdict(dict)
        for run in load(self.test_folder):
            if run.seed < FIRST_TEST_SEED + n:
                errors[run.settings["optimizer.name"]][run.seed] = measure(run, "test_error", END)
        base = errors[self.study.baseline]
        found = {}
        for name in self.study.optimizers:
            if name != self.study.baseline:
                both = sorted(errors[name].keys() & base.keys())
                pairs = [errors[name][seed] - base[seed] for seed in both if math.isfinite(errors[name][seed])]
                values = np.array(pairs, dtype=np.float64)
                found[name] = values[np.isfinite(values)]
        return found

    def n_seeds(self) -> int:
        """Return N for all optimizers: the number that the one with the largest deviation needs, at most max_seeds."""
        study = self.study
        first = self.differences(study.n0)
        needed = [pairs_for(deviation(values), len(values), self.width) for values in first.values()]
        return min(study.max_seeds, max(study.n0, *needed))

    def stein(self) -> dict[str, Stein]:
        """Return each optimizer's mean difference to the baseline with Stein's interval."""
        first, every = self.differences(self.study.n0), self.differences(self.study.max_seeds)
        return {name: interval_of(first[name], every[name]) for name in every}


def cells_of(study: StudyConfig, root: Path) -> list[Cell]:
    """Return the cells of a study."""
    combinations = itertools.product(study.workloads, study.budgets, study.schedules)
    return [Cell(study, root, workload, budget, schedule) for workload, budget, schedule in combinations]


def chosen_setting(runs: Runs, optimizer: str, keys: Sequence[str]) -> dict[str, str]:
    """Return the values of some keys at the setting of an optimizer with the lowest mean validation error."""
    settings: dict[Any, list[Run]] = defaultdict(list)
    for run in runs:
        if run.settings.get("optimizer.name") == optimizer:
            settings[run.setting()].append(run)
    best, _ = pick(settings, lambda run: measure(run, "validation_error", END))
    values = settings[best][0].settings
    return {key: str(values[key]).lower() if isinstance(values[key], bool) else str(values[key]) for key in keys}


def spaces_word(spaces: Mapping[str, Mapping[str, str]]) -> str:
    """Return sweep.spaces as an override."""

    def quoted(text: str) -> str:
        escaped = text.replace("'", "\\'")
        return f"'{escaped}'"

    parts = [f"{n}: {{{', '.join(f'{key}: {quoted(v)}' for key, v in space.items())}}}" for n, space in spaces.items()]
    return f"+sweep.spaces={{{', '.join(parts)}}}"


def sweep_of(words: Sequence[str]) -> Sweep:
    """Return a checked sweep. Raises ConfigError and DataError as Sweep does."""
    return Sweep(words, _composer())


@functools.cache
def _composer() -> Composer:
    """Return the composer of all sweeps of a study, which is shared because their choices of groups are the same."""
    return Composer()


def train_sweep(sweep: Sweep, folder: Path, quiet: bool = False) -> None:
    """Train the unfinished jobs of a sweep. Raises StudyStoppedError if some are still unfinished, and Interrupted.

    A diverged run is finished; a failed run is not.
    """
    sweep.quiet = quiet
    sweep.run_here(folder)
    code = sweep.exit_code
    if code not in (0, 3):
        why = "jobs failed" if code == 1 else "another process is training some of the jobs"
        raise StudyStoppedError(f"{folder}: {why}; see burgersgd status {folder}, then repeat the command", code)
