"""The learning rates where none is set: a rate of the rule, times a share, less momentum's 1 / (1 - beta)."""

from __future__ import annotations

from typing import Any

import pytest

from burgersgd.config import (
    GROUPS,
    AdamWConfig,
    AsamConfig,
    GdConfig,
    LangevinConfig,
    LocalEntropyConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SamConfig,
    SgdConfig,
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SgdConfig(momentum=0.0), 0.3 * 0.25),
        (SgdConfig(momentum=0.9), 0.3 * 0.25 * 0.1),
        (SamConfig(momentum=0.6), 0.3 * 0.25 * 0.4),
        (AsamConfig(momentum=0.6), 0.3 * 0.25 * 0.4),
        (LocalEntropyConfig(), 0.3 * 0.25),
        (LocalEntropyConfig(momentum=0.6), 0.3 * 0.25 * 0.4),
        (PaperSDEConfig(), 0.3 * 0.25),
        (PaperLiteralConfig(), 0.3 * 0.25),
        (LangevinConfig(), 0.3 * 0.25),
        (GdConfig(), 0.1 * 0.25),
        (AdamWConfig(), 1e-3),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_the_default_rate_is_that_of_the_rule_times_the_share(config: OptimizerConfig, expected: float) -> None:
    assert config.default_lr(0.25) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", sorted(GROUPS["optimizer"].keys() - {"gd"}))  # gd is the rule of sgd with momentum
def test_a_rule_without_arguments_is_that_of_the_default_settings(name: str) -> None:
    """Rules are equal where they may share a fleet: both say what is done where nothing is said."""
    config: Any = GROUPS["optimizer"][name]()
    rule = config.rule()
    assert rule == type(rule)()
