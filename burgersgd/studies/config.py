"""The settings of a study: the files of conf/study/, checked like all other settings."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from burgersgd.config import CONF_DIR, GROUPS
from burgersgd.schema import ConfigError, Group, did_you_mean, fields_of, opt

STUDIES = CONF_DIR / "study"


@dataclass
class StudyConfig(Group):
    """A study: workloads x budgets x schedules, in each of which every optimizer is tuned and then tested."""

    group: ClassVar[str] = "study"
    question: str = opt("", "question that the study answers")
    workloads: dict[str, list[str]] = opt({}, "NAME: list of overrides of data set and model")
    budgets: list[int] = opt([], "budgets of the runs in gradient evaluations", at_least=1)
    schedules: list[str] = opt(["constant"], "schedules of the learning rate")
    optimizers: dict[str, dict[str, str]] = opt({}, "OPTIMIZER: {KEY: VALUES}, the search space of each optimizer")
    baseline: str = opt("sgd", "optimizer with which the others are compared")
    common: list[str] = opt([], "overrides of all runs")
    final: list[str] = opt([], "overrides of the test runs, such as dataset.validation_fraction=0")
    needs: dict[str, str] = opt(
        {}, "WORKLOAD: Python package that it needs; the workload is left out if the package is not installed"
    )
    sampler: str = opt("sobol", "method by which trials are drawn from the search spaces", choices=("sobol", "random"))
    trials: int = opt(16, "number of trials of each optimizer, in each workload, budget and schedule", at_least=1)
    tuning_seeds: int = opt(2, "number of seeds of each trial, whose mean validation error is compared", at_least=1)
    n0: int = opt(10, "number of test seeds of the first stage, whose spread determines the total number", at_least=10)
    max_seeds: int = opt(40, "largest number of test seeds", at_least=10)
    width: float = opt(
        0.01, "target width of the 95 % interval of a difference in test error (fraction, or RMSE)", above=0
    )
    widths: dict[str, float] = opt({}, "WORKLOAD: target width for this workload, instead of width")
    quick: dict[str, Any] = opt({}, "KEY: VALUE, settings that --quick replaces")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("workloads", "budgets", "schedules", "optimizers"):
            if not getattr(self, key):
                raise self.error(key, "must have at least one entry")
        for name in self.workloads:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ConfigError(
                    f"study.workloads.{name}: must consist of letters, digits, _ . and -, and not start with . or -"
                )
        for key in ("needs", "widths"):
            for name in getattr(self, key):
                if name not in self.workloads:
                    raise self.error(key, f"{name} must be one of {', '.join(self.workloads)}")
        for name, width in self.widths.items():
            if not 0 < width < math.inf:
                raise ConfigError(f"study.widths.{name}={width}: must be > 0")
        for name in self.schedules:
            if name not in GROUPS["schedule"]:
                known = GROUPS["schedule"].names()
                raise ConfigError(f"study.schedules: {name}: must be one of {', '.join(known)}")
        if self.baseline not in self.optimizers:
            raise self.error("baseline", f"must be one of {', '.join(self.optimizers)}")
        if len(self.optimizers) < 2:
            raise ConfigError("study.optimizers: must have at least two entries, one of them study.baseline")
        if self.max_seeds < self.n0:
            raise self.error("max_seeds", f"must be >= study.n0 = {self.n0}")


def installed(study: StudyConfig, tell: Callable[[str], None]) -> StudyConfig:
    """Return the study without the workloads whose packages are not installed, and report these by `tell`.

    Raises ConfigError if none is left.
    """
    missing = {name: package for name, package in study.needs.items() if importlib.util.find_spec(package) is None}
    for name, package in missing.items():
        tell(f"{name}: left out, because it needs the package {package} (pip install '.[data]')")
    left = {name: words for name, words in study.workloads.items() if name not in missing}
    kept = {key: {n: v for n, v in getattr(study, key).items() if n in left} for key in ("needs", "widths")}
    return dataclasses.replace(study, workloads=left, **kept)


def studies() -> list[str]:
    """Return the names of the shipped studies."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def read_study(name: str, words: Sequence[str] = (), quick: bool = False) -> StudyConfig:
    """Return the study of a name, or of a YAML file, with the keys of KEY=VALUE words replaced.

    Raises ConfigError with a one-line message.
    """
    own = Path(name)
    path = own if own.suffix == ".yaml" and own.is_file() else STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = studies()
        raise ConfigError(f"study {name}: must be a YAML file or one of {', '.join(known)}{did_you_mean(name, known)}")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must hold the keys of a study")
    if quick:
        settings |= settings.get("quick") or {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: must be KEY=VALUE")
        settings[key] = _value(value)
    known = fields_of(StudyConfig)
    for key in settings:
        if key not in known:
            raise ConfigError(f"study.{key}: no such key{did_you_mean(str(key), known)}")
    spaces = settings.get("optimizers")
    if isinstance(spaces, dict):
        settings["optimizers"] = {
            name: {key: str(values) for key, values in (space or {}).items()} for name, space in spaces.items()
        }
    return StudyConfig(**settings)


def _value(text: str) -> Any:
    """Return the value of a word of the command line in YAML, and 1e-3, which YAML reads as text, as a float."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text}: must be a value in YAML") from error
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+e[-+]?[0-9]+", value):
        return float(value)
    return value
