"""A configuration survives its record, and its hash changes with what decides the numbers, and with nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burgersgd.config import GROUPS, ConfigError, DeviceConfig, LocalEntropyConfig, NpzConfig, TrainConfig
from burgersgd.identity import UNDECIDING, config_from, config_hash
from tests.conftest import small_config


@settings(max_examples=40)
@given(st.fixed_dictionaries({group: st.sampled_from(sorted(choices)) for group, choices in GROUPS.items()}))
def test_a_configuration_survives_its_record(names: dict[str, str]) -> None:
    parts: dict[str, Any] = {}
    for group, name in names.items():
        cls = GROUPS[group][name]
        fields = {f.name for f in dataclasses.fields(cls)}
        given_name = {} if "name" not in fields or group == "schedule" else {"name": name}
        parts[group] = cls(**given_name, **({"path": "a.npz"} if cls is NpzConfig else {}))
    config = TrainConfig(**parts, seed=7)
    assert config_from(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_record_of_another_version_is_refused() -> None:
    record = dataclasses.asdict(small_config())
    record["optimizer"]["viscosity"] = 1.0
    with pytest.raises(ConfigError, match=r"optimizer\.viscosity: no such key in this version"):
        config_from(record)
    with pytest.raises(ConfigError, match=r"optimizer=adagrad: must be one of local_entropy"):
        config_from(dataclasses.asdict(small_config()) | {"optimizer": {"name": "adagrad"}})
    with pytest.raises(ConfigError, match=r"optimizer\.nu=-1.0: must be >= 0"):
        config_from(dataclasses.asdict(small_config()) | {"optimizer": {"name": "local_entropy", "nu": -1.0}})


def changed(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case _:
            return "something"


def test_the_hash_changes_with_what_decides_the_numbers_alone() -> None:
    config = small_config()
    before = config_hash(config, 40)
    assert config_hash(small_config(), 40) == before
    assert config_hash(config, 48) != before
    plain = dataclasses.asdict(config)
    for group, part in plain.items():
        for key, value in part.items() if isinstance(part, dict) else [(None, part)]:
            other = small_config()
            owner, name = (getattr(other, group), key) if key else (other, group)
            object.__setattr__(owner, name, changed(value))
            undeciding = (
                group in UNDECIDING[""] or key in UNDECIDING.get(group, ()) or (group, key) == ("trainer", "budget")
            )
            assert (config_hash(other, 40) == before) == undeciding, (group, key)


def test_epochs_and_device_do_not_name_a_run() -> None:
    a = TrainConfig(optimizer=LocalEntropyConfig(nu=1e-6), device=DeviceConfig(name="cpu", threads=2))
    b = TrainConfig(optimizer=LocalEntropyConfig(nu=1e-6), output_root="elsewhere")
    assert config_hash(a, 3400) == config_hash(b, 3400)
