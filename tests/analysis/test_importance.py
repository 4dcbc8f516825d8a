from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from burgersgd.analysis.importance import as_numbers, importance_of
from burgersgd.analysis.runs import load
from burgersgd.analysis.values import At, measure
from tests.analysis.folders import write_run

KEYS = ("optimizer.lr", "optimizer.momentum", "optimizer.weight_decay")


def test_a_key_that_decides_most_has_the_largest_share_and_one_that_decides_nothing_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for i in range(60):
        lr, momentum, decay = 10 ** rng.uniform(-3, 0), rng.uniform(0, 1), 10 ** rng.uniform(-6, -2)
        error = 0.1 + 0.03 * math.log10(lr) / 3 + 0.01 * momentum  # variances 9 : 1 : 0
        settings = {"optimizer": {"name": "sgd", "lr": lr, "momentum": momentum, "weight_decay": decay}}
        write_run(tmp_path / str(i), settings, validation_error=error)
    found = importance_of(load(tmp_path), KEYS, lambda run: measure(run, "validation_error", At("end")))
    assert found is not None
    assert list(found.shares) == list(KEYS)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert 0.8 < found.shares["optimizer.lr"] < 0.98
    assert found.shares["optimizer.weight_decay"] < 0.05
    assert found.explained > 0.7
    few = load(tmp_path)[:5]
    assert importance_of(few, KEYS, lambda run: measure(run, "validation_error", At("end"))) is None


def test_settings_become_numbers() -> None:
    assert as_numbers([1e-3, 1e-1]).tolist() == pytest.approx([math.log(1e-3), math.log(1e-1)])
    assert as_numbers([0.5, 0.9]).tolist() == [0.5, 0.9]
    assert as_numbers([10.0, math.inf, 0.0]).tolist() == [1, 2, 0]
    assert as_numbers(["b", "a", None]).tolist() == [1, 0, 2]
    assert as_numbers([True, False]).tolist() == [1, 0]
