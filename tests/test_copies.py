"""Copies of settings equal those of dataclasses.replace and asdict, and changed values are checked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from burgersgd.config import (
    ConfigError,
    LocalEntropyConfig,
    MlpConfig,
    SgdConfig,
    SweepConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.copies import changed, plain_values

CONFIGS = [
    TrainConfig(),
    TrainConfig(optimizer=SgdConfig(lr=0.25), seed=7, trainer=TrainerConfig(sinks=[], budget=40)),
    TrainConfig(model=MlpConfig(width=3), sweep=SweepConfig(params={"seed": "1,2"}), run_name="r"),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_plain_values_are_those_of_asdict_and_share_nothing_with_the_settings(config: TrainConfig) -> None:
    plain = plain_values(config)
    assert plain == dataclasses.asdict(config)
    assert repr(plain) == repr(dataclasses.asdict(config))
    plain["trainer"]["sinks"].append("another")
    assert plain_values(config) == dataclasses.asdict(config) != plain


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("values", [{"seed": 3}, {"run_name": "other", "output_root": "~/x"}, {}])
def test_changed_is_replace(config: TrainConfig, values: dict[str, Any]) -> None:
    before = dataclasses.asdict(config)
    assert changed(config, **values) == dataclasses.replace(config, **values)
    assert dataclasses.asdict(config) == before


def test_a_changed_copy_shares_no_list_with_the_original() -> None:
    original = TrainerConfig(sinks=["tensorboard"])
    changed(original, budget=40).sinks.append("another")
    assert original.sinks == ["tensorboard"]


def test_what_is_changed_is_checked_by_itself_and_together_with_the_rest() -> None:
    with pytest.raises(ConfigError, match="seed=-1"):
        changed(TrainConfig(), seed=-1)
    with pytest.raises(ConfigError, match="no such key"):
        changed(TrainConfig(), sead=1)
    assert changed(SgdConfig(), lr=1).lr == 1.0  # a float
    with pytest.raises(ConfigError, match=r"trainer\.budget=3"):
        changed(
            TrainConfig(trainer=TrainerConfig(budget=3), optimizer=SgdConfig()),
            optimizer=LocalEntropyConfig(inner_steps=5),
        )
