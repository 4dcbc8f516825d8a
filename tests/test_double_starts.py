"""Processes that start one run at once: in any order of their operations, the run is trained once, completely."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.double_starts import KINDS, double_start
from tests.scheduling import drawn, paused


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if k > 1 else []) for k, kind in enumerate(KINDS)]
)
def test_a_process_that_looked_before_another_one_trained_the_run(kind: str, tmp_path: Path) -> None:
    for at in (2, 4, 6, 7, 9, 12):
        double_start(kind, tmp_path, paused(0, at))


@pytest.mark.parametrize("seed", range(5))
def test_processes_that_take_turns(seed: int, tmp_path: Path) -> None:
    kind = list(KINDS)[seed]
    double_start(kind, tmp_path, drawn(seed))
