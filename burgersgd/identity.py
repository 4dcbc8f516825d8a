"""Which runs are the same: configurations read back from a record, and the hash of all that decides a run's numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from burgersgd.config import GROUPS, ConfigError, TrainConfig

UNDECIDING = {
    "": ("output_root", "run_name", "device", "sweep"),
    "trainer": ("epochs", "log_every", "checkpoint_every", "checkpoint_minutes"),
    "dataset": ("root", "download"),
}
"""Group -> keys that decide only where, how and how visibly a run is computed (epochs become the budget)."""


def config_from(record: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration whose `dataclasses.asdict` is record, checked like any other.

    Raises ConfigError for what this version does not know.
    """
    parts: dict[str, Any] = {}
    for key, value in record.items():
        if key not in GROUPS:
            parts[key] = value
            continue
        choices = GROUPS[key]
        only = next(iter(choices.values())) if len(set(choices.values())) == 1 else None
        cls = only or choices.get(value.get("name"))
        if cls is None:
            raise ConfigError(f"{key}={value.get('name')}: must be one of {', '.join(choices)}")
        parts[key] = _built(cls, value, f"{key}.")
    return _built(TrainConfig, parts, "")


def _built(cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    unknown = values.keys() - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ConfigError(f"{prefix}{min(unknown)}: no such key in this version of burgersgd")
    return cls(**values)


def canonical(config: TrainConfig, budget: int) -> dict[str, Any]:
    """Return what decides the numbers of a run whose budget is so many gradient evaluations, as plain values."""
    plain = dataclasses.asdict(config)
    plain["trainer"]["budget"] = budget
    for group, keys in UNDECIDING.items():
        for key in keys:
            (plain[group] if group else plain).pop(key, None)
    return plain


def config_hash(config: TrainConfig, budget: int) -> str:
    """Return the name of a run: 12 hexadecimal digits of the SHA-256 of its canonical configuration."""
    text = json.dumps(canonical(config, budget), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
