"""The identity of runs: configurations read from records, and the hash of all settings that decide a run's numbers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from burgersgd.config import GROUPS, ConfigError, TrainConfig
from burgersgd.copies import plain_values
from burgersgd.registry import OWN
from burgersgd.schema import Group, as_before, default_of, is_added

NOT_HASHED = frozenset(f.name for f in dataclasses.fields(TrainConfig) if not f.metadata["hashed"])
"""Keys and groups of a run that never decide its numbers."""


def own_record(config: TrainConfig, model: str | None, data: bool, frozen: Sequence[str] = ()) -> dict[str, Any]:
    """Return a configuration as plain values, as config.yaml records it.

    model: the class of the user's own module, None for a model of the configuration. frozen: the names of its
    parameters that are not trained. data: whether the data are the user's own.

    The hash of a run covers its configuration, not the user's own module: two runs whose modules differ have the same
    hash. The module that the checkpoint describes decides with which module such a run may be resumed.
    """
    plain = plain_values(config)
    for group, names in GROUPS.items():
        cls = type(getattr(config, group))
        if plain[group].get("name", "default") not in names.shipped and names.base is not None:
            plain[group]["class"] = f"{cls.__module__}:{cls.__qualname__}"  # for readers; nothing imports it from there
    if model is not None:
        plain["model"] = {"name": OWN, "class": model} | ({"frozen": list(frozen)} if frozen else {})
    if data:
        plain["dataset"] |= {"name": OWN, "options_of": plain["dataset"]["name"]}
    return plain


def check_own(record: Mapping[str, Any], model: Any, dataset: Any) -> None:
    """Raise ConfigError if a run was made with the user's own module or data and these are not given again."""
    for key, given in (("model", model), ("dataset", dataset)):
        part = record.get(key)
        if isinstance(part, Mapping) and part.get("name") == OWN and given is None:
            what = f"{key}={part.get('class', OWN)}"
            raise ConfigError(
                f"{what}: is your own and must be passed again, in Python: burgersgd.resume(..., {key}=...)"
            )


def config_of(given: TrainConfig | Mapping[str, Any]) -> TrainConfig:
    """Return the configuration that a mapping (a dict, OmegaConf's DictConfig) describes, with defaults for other keys.

    Raises ConfigError for an object of another type, for unknown keys and for values out of range.
    """
    if isinstance(given, TrainConfig):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"config: must be a TrainConfig or a mapping of its keys, not {type(given).__name__}")
    try:
        plain = _plain(given)
    except Exception as error:  # OmegaConf's interpolations and missing values
        raise ConfigError(f"config: {' '.join(str(error).split())}") from error
    for key, choices in GROUPS.items():
        value = plain.get(key)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            plain[key] = dataclasses.asdict(value)
        elif isinstance(value, str):
            plain[key] = {"name": value}
        elif key in plain and not isinstance(value, dict):
            raise ConfigError(f"{key}={value}: must be a name or a mapping")
        elif isinstance(value, dict) and "name" not in value and len(set(choices.values())) > 1:
            plain[key] = {"name": getattr(getattr(TrainConfig(), key), "name", None)} | value
    return config_from(plain, lacking=default_of)


def _plain(value: Any) -> Any:
    """Return mappings as dicts and sequences as lists, recursively."""
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def config_from(record: Mapping[str, Any], lacking: Callable[[dataclasses.Field[Any]], Any] = as_before) -> TrainConfig:
    """Return the configuration whose `dataclasses.asdict` is record, checked like any other.

    lacking: returns the value of a key that neither 0.1.0 nor the record has. Raises ConfigError for keys and names
    that this version does not have.
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
        settings = {k: v for k, v in value.items() if k != "class"}
        parts[key] = _built(_class_of(key, value), settings, f"{key}.", lacking)
    return _built(TrainConfig, parts, "", lacking)


def _class_of(group: str, value: Mapping[str, Any]) -> type[Group]:
    choices, name = GROUPS[group], str(value.get("name"))
    only = set(choices.shipped.values())
    if len(only) == 1 and choices.base is None:  # trainer, sweep and device: the name is a key like any other
        return choices[next(iter(choices.shipped))]
    try:
        return choices[name]
    except KeyError:
        message = f"{group}={name}: must be one of {', '.join(choices.names())}"
        again = (
            f"; the run used {group}={value['class']}, which must be given again on the command line"
            if "class" in value
            else ""
        )
        raise ConfigError(message + again) from None


def _built(
    cls: type[Any], values: Mapping[str, Any], prefix: str, lacking: Callable[[dataclasses.Field[Any]], Any]
) -> Any:
    fields = dataclasses.fields(cls)
    unknown = values.keys() - {f.name for f in fields}
    if unknown:
        raise ConfigError(f"{prefix}{min(unknown, key=str)}: no such key in this version of burgersgd")
    return cls(**{f.name: lacking(f) for f in fields if is_added(f)} | dict(values))


def canonical(config: TrainConfig, budget: int, resolved: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Return the settings that decide the numbers of a run, as plain values; burgersgd/schema.py states the rule.

    budget: its gradient evaluations, whether they were set or follow from epochs. resolved: dotted key -> other values
    that the run determined because the configuration leaves them open (loss.name if that is auto).
    """
    return _hashed_values(config, "", {"trainer.budget": budget, **resolved})


def _hashed_values(group: Group, prefix: str, resolved: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, needed, instead, before in _hashed_fields(type(group)):
        key = prefix + name
        value = resolved[key] if key in resolved else getattr(group, name)
        idle = needed is not None and not getattr(group, needed)
        idle |= instead is not None and bool(getattr(group, instead))
        if idle or (before is not dataclasses.MISSING and value == before):
            continue
        plain[name] = _hashed_values(value, f"{key}.", resolved) if isinstance(value, Group) else value
    if group.version != 1:
        plain["version of the class"] = group.version
    return plain


@functools.cache
def _hashed_fields(cls: type[Group]) -> list[tuple[str, str | None, str | None, Any]]:
    """Return for every hashed key its name, hashed_with, hashed_without, and the value for which it is left out.

    That value reproduces the versions before the key was added; it is MISSING for a key that 0.1.0 had.
    """
    return [
        (
            *(f.name, f.metadata.get("hashed_with"), f.metadata.get("hashed_without")),
            as_before(f) if is_added(f) else dataclasses.MISSING,
        )
        for f in dataclasses.fields(cls)
        if f.metadata.get("hashed", True)
    ]


def config_hash(config: TrainConfig, budget: int, resolved: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the name of a run: 12 hexadecimal digits of the SHA-256 of its canonical configuration."""
    text = json.dumps(canonical(config, budget, resolved), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
