"""Run folders as a table `Runs` with one row per run: its settings, how it ended and its curves, read when needed.

Folders that cannot be read are left out, with a one-line note each.
"""

from __future__ import annotations

import functools
import glob
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from burgersgd.recording.claims import is_claimed
from burgersgd.recording.files import RunFolderError
from burgersgd.recording.run_folder import (
    CONFIG,
    METRICS,
    STATUS,
    read_config,
    read_environment,
    read_metrics,
    read_status,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from burgersgd.analysis.compare import Comparison

Columns = dict[str, NDArray[np.float64]]

UNHASHED = (
    *("output_root", "run_name", "device", "sweep", "dataset.root", "dataset.download"),
    *("trainer.log_every", "trainer.checkpoint_every", "trainer.checkpoint_minutes", "trainer.sinks"),
)
"""Keys and groups that do not change a run's numbers, and are left out of the hash of its settings."""
ONLY_WITH = {"dataset.noisy_validation": "dataset.label_noise"}
"""Key -> another key; if that key is 0 or false, the first one has no effect."""
AS_BEFORE = {
    "dataset.augment": "none",
    "dataset.noisy_validation": False,
    "dataset.standardize_targets": False,
    "dataset.digest": "",
    "optimizer.weight_decay_on": "all",
    "trainer.bn_batches": 32,
}
"""Keys that run folders of older versions lack, with the values of those runs."""
SEEDS = ("seed", "dataset.seed")
NAMED_GROUPS = ("dataset", "model", "loss", "optimizer", "schedule")
"""Groups whose name determines which other keys they have."""


@dataclass(frozen=True)
class Run:
    """One run as recorded in its folder."""

    folder: Path
    settings: dict[str, Any]
    """The resolved configuration by dotted key."""
    decides: dict[str, Any]
    """The settings that decide the numbers of the run (as in identity.canonical), by dotted key."""
    status: dict[str, Any]
    """The contents of status.json."""
    state: str
    """The state in status.json, or interrupted if the process of a running run died."""
    digest: str
    """The digest of the prepared data; empty if none was recorded."""

    @property
    def seed(self) -> Any:
        """The seed of initial weights, batches and noise."""
        return self.settings.get("seed")

    @property
    def split(self) -> Any:
        """The seed of the split of the data."""
        return self.settings.get("dataset.seed")

    @property
    def budget(self) -> float:
        """The run's budget in gradient evaluations; nan if it is not recorded."""
        return number(self.status.get("budget"))

    @property
    def cycle(self) -> int:
        """Gradient evaluations after which x moves; budgets are rounded down to multiples of it."""
        inner, burn_in = (self.settings.get(f"optimizer.{key}") for key in ("inner_steps", "burn_in"))
        return max(1, int(inner or 1) + int(burn_in or 0)) if inner is not None else 1

    @property
    def percent(self) -> bool:
        """Whether errors are fractions of wrong classes."""
        return self.status.get("task") != "regression"

    @functools.cached_property
    def data(self) -> tuple[tuple[str, Any], ...]:
        """The settings of the data set except the seed of the split."""
        return tuple((k, v) for k, v in self.setting() if k.startswith("dataset."))

    @functools.cached_property
    def curves(self) -> Columns:
        """The columns of metrics.csv, float64 ``[rows]``, nan if nothing was measured. Raises RunFolderError."""
        return {name: np.array(values, dtype=np.float64) for name, values in read_metrics(self.folder).items()}

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """The contents of environment.json; empty if it cannot be read."""
        try:
            return dict(read_environment(self.folder))
        except (RunFolderError, TypeError, ValueError):
            return {}

    def setting(self, without: Iterable[str] = SEEDS) -> tuple[tuple[str, Any], ...]:
        """Return the keys and values that runs of one setting share: all that decide the numbers except the seeds."""
        dropped = set(without)
        return tuple((k, v) for k, v in sorted(self.decides.items()) if k not in dropped)


@dataclass(frozen=True)
class Runs(Sequence[Run]):
    """Runs of one or more folders, in the order of their names, with notes on folders that could not be read."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    paths: tuple[str, ...] = field(default=(), compare=False)
    """The paths that were loaded."""

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, index: int) -> Run: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> Run | Runs:
        return Runs(self.runs[index], self.notes, self.paths) if isinstance(index, slice) else self.runs[index]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def where(self, wanted: Mapping[str, Any] | Callable[[Run], bool]) -> Runs:
        """Return the runs whose settings are equal to the wanted ones (or that a function accepts).

        A value may be a list of values; text is converted to compare it with numbers. Raises ValueError for a key that
        none of the runs has.
        """
        if callable(wanted):
            return Runs(tuple(run for run in self.runs if wanted(run)), self.notes, self.paths)
        for key in wanted:
            self.check_key(key)
        kept = (run for run in self.runs if all(matches(value_of(run, k), v) for k, v in wanted.items()))
        return Runs(tuple(kept), self.notes, self.paths)

    def check_key(self, key: str) -> None:
        """Raise ValueError if no run has a setting of that name."""
        if key != "state" and not any(key in run.settings for run in self.runs):
            differing = ", ".join(self.differing()) or "no key"
            raise ValueError(f"{key}: none of the {len(self)} runs has this key; they differ in {differing}")

    def differing(self) -> list[str]:
        """Return the keys that distinguish the runs' settings, including seeds.

        A key that only some optimizers (models, data sets, ...) have counts if it varies among the runs of one of them;
        otherwise it follows from the name.
        """
        names = {group: sorted({str(run.settings.get(f"{group}.name")) for run in self.runs}) for group in NAMED_GROUPS}
        alike: dict[tuple[str, str], list[Run]] = defaultdict(list)
        for run in self.runs:
            for group in NAMED_GROUPS:
                alike[group, str(run.settings.get(f"{group}.name"))].append(run)
        varied = []
        for key in dict.fromkeys(key for run in self.runs for key in run.decides):
            group = key.partition(".")[0]
            named = group in names and not key.endswith(".name")
            for runs in [alike[group, name] for name in names[group]] if named else [self.runs]:
                if len({run.decides.get(key) for run in runs}) > 1:
                    varied.append(key)
                    break
        return varied

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the table: folder, state, every setting, every number of status.json."""
        settings = list(dict.fromkeys(key for run in self.runs for key in run.settings))
        outcomes = dict.fromkeys(key for run in self.runs for key, v in run.status.items() if not isinstance(v, dict))
        outcomes.pop("state", None)
        table: dict[str, list[Any]] = {
            "folder": [str(run.folder) for run in self.runs],
            "state": [run.state for run in self.runs],
        }
        table |= {key: [run.settings.get(key) for run in self.runs] for key in settings}
        return table | {key: [run.status.get(key) for run in self.runs] for key in outcomes if key not in table}

    def frame(self) -> pd.DataFrame:
        """Return the table as a pandas DataFrame. Raises ImportError with a one-line message without pandas."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("Runs.frame needs pandas (pip install pandas); Runs.columns() does not") from error
        return pd.DataFrame(self.columns())

    def compare(self, *by: str, **question: Any) -> Comparison:
        """Return the comparison of `burgersgd compare`: see analysis.question.Question for the arguments."""
        from burgersgd.analysis.compare import compare
        from burgersgd.analysis.question import Question

        return compare(self, Question(by=by, **question))

    def plot(
        self, *by: str, kind: str = "curves_evaluations", path: str | Path | None = None, **question: Any
    ) -> Figure:
        """Return a figure of the comparison, and write it to path (.png, .svg, .pdf).

        kind: curves_evaluations, curves_seconds, values, tuning, slices, parallel_..., profiles, or heat=KEY,KEY.
        Raises ValueError for a kind for which the runs have no data, or if matplotlib is not installed.
        """
        from burgersgd.analysis import figures

        comparison = self.compare(*by, **question)
        if kind.startswith("heat="):
            x, _, y = kind.removeprefix("heat=").partition(",")
            figure = figures.heat_map(comparison, x, y)
        else:
            found = figures.figures_of(comparison)
            if kind not in found:
                raise ValueError(f"kind={kind}: must be heat=KEY,KEY or one of {', '.join(found)}")
            figure = found[kind]
        if path is not None:
            figures.save(figure, Path(path))
        return figure


def load(*paths: str | Path) -> Runs:
    """Read the runs of run folders, of folders that contain some at any depth (sweeps), of sweep names, and of globs.

    Raises RunFolderError if a path leads to no run at all; folders that cannot be read are noted and left out.
    """
    notes: list[str] = []
    runs: dict[Path, Run] = {}
    for path in paths:
        folders = find(path)
        for folder in folders:
            if folder.absolute() in runs:
                continue
            try:
                runs[folder.absolute()] = read_run(folder)
            except RunFolderError as error:
                notes.append(f"{error}; this run is left out")
    if not runs:
        reason = f": {notes[0]}" if notes else ""
        raise RunFolderError(
            f"{' '.join(map(str, paths)) or 'no path given'}: contains no run that can be read{reason}"
        )
    return Runs(tuple(runs.values()), tuple(notes), tuple(map(str, paths)))


def find(path: str | Path) -> list[Path]:
    """Return the run folders of a path, a glob, or the name of a sweep below outputs/multirun.

    Raises RunFolderError if there are none.
    """
    given = Path(path)
    sweep = Path("outputs", "multirun", path)
    if given.exists():
        starts = [given]
    elif glob.has_magic(str(path)):
        starts = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    else:
        starts = [sweep] if sweep.is_dir() else []
    found = [folder for start in starts for folder in _run_folders(start)]
    if not found:
        where = "contains no run folder" if starts else "there is no such folder, and no sweep of that name"
        raise RunFolderError(f"{path}: {where}")
    return found


def _run_folders(start: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(start):
        if ".hydra" in folders or STATUS in files or METRICS in files:
            folders.clear()
            yield Path(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_run(folder: Path) -> Run:
    """Return the run of a folder. Raises RunFolderError for a folder that is not complete."""
    config = read_config(folder)
    if not isinstance(config, dict) or not isinstance(config.get("optimizer"), dict):
        raise RunFolderError(f"{folder / CONFIG}: must hold the configuration of a run")
    status = read_status(folder)
    if not isinstance(status, dict) or not isinstance(status.get("state"), str):
        raise RunFolderError(f"{folder / STATUS}: must hold the state of a run")
    state = status["state"]
    if state == "running" and not is_claimed(folder):
        state = "interrupted"
    settings = flat(config)
    return Run(folder, settings, _hashed_settings(settings), status, state, str(status.get("data") or ""))


def _hashed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, as identity.canonical does, without importing their classes."""
    dropped = {"trainer.epochs"} if settings.get("trainer.budget") is not None else set()
    dropped |= {key for key, other in ONLY_WITH.items() if not settings.get(other)}
    dropped |= {key for key, value in AS_BEFORE.items() if settings.get(key) == value}
    return {
        key: value
        for key, value in settings.items()
        if key not in dropped and not any(key == name or key.startswith(f"{name}.") for name in UNHASHED)
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested configuration by dotted key, lists as tuples so that they can be compared."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = tuple(map(str, value)) if isinstance(value, list) else value
    return leaves


def value_of(run: Run, key: str) -> Any:
    """Return a setting of a run, or its state; None if it has no setting of that name."""
    return run.state if key == "state" else run.settings.get(key)


def grouped(runs: Sequence[Run], keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[Run]]:
    """Return the runs grouped by their values of some keys, in the given order."""
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(value_of(run, key) for key in keys)].append(run)
    return dict(groups)


def number(value: Any) -> float:
    """Return a value as a float, nan if it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def shown(value: Any) -> str:
    """Return a setting as text in the form of the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else ",".join(value) if isinstance(value, tuple) else str(value)


def matches(value: Any, wanted: Any) -> bool:
    """Return whether a setting equals the wanted value or one of several; text is converted to compare with numbers."""
    if isinstance(wanted, list | tuple | set):
        return any(matches(value, one) for one in wanted)
    if isinstance(wanted, str) and not isinstance(value, str):
        try:
            return math.isclose(float(wanted), number(value), rel_tol=1e-12)
        except ValueError:
            return wanted in (shown(value), str(value))
    return bool(value == wanted)
