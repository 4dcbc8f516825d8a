"""Functions for the choice of Hydra's launchers and sweepers, including those of other packages."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from burgersgd.config import ConfigError
from burgersgd.sweeps.compose import as_config_error
from burgersgd.sweeps.space import MOST_JOBS, Words

PLUGIN = "hydra_plugins.burgersgd"


def check_plugin() -> None:
    """Raise ConfigError where the launchers and sweepers of this package are not installed."""
    try:
        importlib.import_module(PLUGIN)
    except ImportError as error:
        raise ConfigError(
            f"--multirun: needs {PLUGIN}, a part of burgersgd that is missing; run: pip install burgersgd"
        ) from error


def check_launcher(node: DictConfig) -> None:
    """Raise ConfigError where a launcher of this package cannot be made with its settings; others are not checked."""
    settings: dict[str, Any] = OmegaConf.to_container(node)  # pyright: ignore[reportAssignmentType]
    module, _, name = settings.pop("_target_").rpartition(".")
    if module == PLUGIN:
        getattr(importlib.import_module(PLUGIN), name)(**settings)


def jobs_of_other_sweeper(target: str, overrides: Sequence[Override]) -> list[Words]:
    """Return all jobs of Hydra's basic sweeper; for another sweeper, one job with the first value of every list."""
    of_each: list[list[str]] = []
    for o in overrides:
        if not o.is_sweep_override():
            of_each.append([str(o.input_line)])
        elif o.is_discrete_sweep():
            n = MOST_JOBS + 1 if target.endswith(".BasicSweeper") else 1
            values = itertools.islice(as_config_error(o.sweep_string_iterator), n)
            of_each.append([f"{o.get_key_element()}={value}" for value in values])
    if math.prod(map(len, of_each)) > MOST_JOBS:
        raise ConfigError(f"the sweep has more than {MOST_JOBS:,} jobs: list fewer values, or split the sweep")
    return [list(words) for words in itertools.product(*of_each)]
