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


OWN = "own"
"""Name that a record gives to a model or data of the user's own."""


def own_record(config: TrainConfig, model: str | None, data: bool) -> dict[str, Any]:
    """Return a configuration as plain values; model is the class of the user's own module, data whether they are."""
    plain = dataclasses.asdict(config)
    if model is not None:
        plain["model"] = {"name": OWN, "class": model}
    if data:
        plain["dataset"] |= {"name": OWN, "options_of": plain["dataset"]["name"]}
    return plain


def check_own(record: Mapping[str, Any], model: Any, dataset: Any) -> None:
    """Raise ConfigError where a run was made with a model or data of the user's own, and they are not given again."""
    for key, given in (("model", model), ("dataset", dataset)):
        if record[key].get("name") == OWN and given is None:
            what = f"{key}={record[key].get('class', OWN)}"
            raise ConfigError(f"{what}: is the user's own; give it again, in Python: burgersgd.resume(..., {key}=...)")


def config_from(record: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration whose `dataclasses.asdict` is record, checked like any other.

    Raises ConfigError for what this version does not know.
    """
    parts: dict[str, Any] = {}
    for key, value in record.items():
        if key not in GROUPS:
            parts[key] = value
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}={value}: must hold the keys of the group")
        if value.get("name") == OWN:
            if key == "model":
                continue
            value = {k: v for k, v in value.items() if k != "options_of"} | {"name": value.get("options_of")}
        choices = GROUPS[key]
        only = next(iter(choices.values())) if len(set(choices.values())) == 1 else None
        cls = only or choices.get(str(value.get("name")))
        if cls is None:
            raise ConfigError(f"{key}={value.get('name')}: must be one of {', '.join(choices)}")
        parts[key] = _built(cls, value, f"{key}.")
    return _built(TrainConfig, parts, "")


def _built(cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    unknown = values.keys() - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ConfigError(f"{prefix}{min(unknown, key=str)}: no such key in this version of burgersgd")
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
