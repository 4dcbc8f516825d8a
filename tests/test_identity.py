"""A recorded configuration is read back unchanged; its hash depends on exactly the settings that decide the numbers."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burgersgd.config import GROUPS, ConfigError, DeviceConfig, LocalEntropyConfig, NpzConfig, TrainConfig
from burgersgd.identity import NOT_HASHED, canonical, config_from, config_hash
from burgersgd.schema import opt
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
            not_hashed = group in NOT_HASHED or (group, key) in {
                *(("trainer", k) for k in ("budget", "epochs", "log_every", "checkpoint_every", "checkpoint_minutes")),
                ("trainer", "sinks"),
                *(("dataset", k) for k in ("root", "download", "noisy_validation")),  # label_noise is 0
            }
            assert (config_hash(other, 40) == before) == not_hashed, (group, key)


def test_epochs_and_device_do_not_name_a_run() -> None:
    a = TrainConfig(optimizer=LocalEntropyConfig(nu=1e-6), device=DeviceConfig(name="cpu", threads=2))
    b = TrainConfig(optimizer=LocalEntropyConfig(nu=1e-6), output_root="elsewhere")
    assert config_hash(a, 3400) == config_hash(b, 3400)


@dataclass
class Extended(LocalEntropyConfig):
    """A class of 0.1.0 with keys that it did not have."""

    replicas: int = opt(1, "points y per x", at_least=1, since="0.2")
    noisy_start: bool = opt(True, since="0.2", as_before=False)
    cache: str = opt("here", since="0.2", hashed=False)
    weighting: str = opt("even", since="0.2", as_before="none", hashed_with="weight_decay")


@dataclass
class Corrected(LocalEntropyConfig):
    """A class whose rule computes other numbers than before."""

    version: ClassVar[int] = 2  # pyright: ignore[reportIncompatibleMethodOverride]


def hash_of(optimizer: LocalEntropyConfig, **resolved: object) -> str:
    return config_hash(TrainConfig(optimizer=optimizer), 40, {k.replace("_", ".", 1): v for k, v in resolved.items()})


def test_an_added_key_is_hashed_unless_it_reproduces_what_was_before_it() -> None:
    before = hash_of(LocalEntropyConfig())
    assert hash_of(Extended(noisy_start=False)) == before
    assert hash_of(Extended(noisy_start=False, cache="there")) == before
    assert hash_of(Extended(noisy_start=False, weighting="odd")) == before
    decayed = {hash_of(Extended(noisy_start=False, weight_decay=0.1, weighting=w)) for w in ("none", "even", "odd")}
    assert hash_of(LocalEntropyConfig(weight_decay=0.1)) in decayed
    assert len(decayed) == 3
    others = [hash_of(Extended()), hash_of(Extended(replicas=3)), hash_of(Extended(replicas=3, noisy_start=False))]
    assert len({before, *others}) == 4


def test_a_record_without_an_added_key_is_read_as_what_was_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    record = dataclasses.asdict(TrainConfig())
    monkeypatch.setitem(GROUPS["optimizer"].shipped, "local_entropy", Extended)
    config = config_from(record)
    assert config.optimizer == Extended(replicas=1, noisy_start=False, weighting="none")
    assert config_from(dataclasses.asdict(TrainConfig(optimizer=Extended(replicas=2)))).optimizer == Extended(
        replicas=2
    )


def test_a_class_whose_numbers_change_gives_its_runs_new_names() -> None:
    assert hash_of(Corrected()) != hash_of(LocalEntropyConfig())


def test_what_a_run_resolves_is_hashed_as_resolved() -> None:
    assert hash_of(LocalEntropyConfig(lr=0.25), optimizer_lr=0.5) == hash_of(LocalEntropyConfig(lr=0.5))
    assert hash_of(Extended(noisy_start=True), optimizer_noisy_start=False) == hash_of(LocalEntropyConfig())
    assert canonical(TrainConfig(), 77)["trainer"]["budget"] == 77
