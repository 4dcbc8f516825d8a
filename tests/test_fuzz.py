"""Random command lines of `burgersgd train`: a mistake is one line, all else a run, and never a traceback."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings

from burgersgd.api import train
from tests import fuzz

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=SLOW)
@given(fuzz.nonsense())
def test_nonsense_is_answered_with_one_line_and_nothing_on_the_disk(arguments: list[str]) -> None:
    outcome = fuzz.run(arguments)
    assert fuzz.complaints(outcome) == [], outcome


@settings(max_examples=4, suppress_health_check=SLOW)
@given(fuzz.overrides())
def test_every_command_of_allowed_values_trains(arguments: list[str]) -> None:
    outcome = fuzz.run(arguments)
    assert fuzz.complaints(outcome, accepted_only=True) == [], outcome


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=SLOW)
@given(fuzz.overrides())
def test_every_configuration_of_allowed_values_trains(arguments: list[str]) -> None:
    config = fuzz.configuration(arguments)
    result = train(config, record=False, progress=False)
    assert result.state in ("completed", "diverged")
    if result.state == "completed":
        assert result.evaluations == config.trainer.budget
        assert math.isfinite(result.last_loss)
