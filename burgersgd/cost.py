"""Measures the cost of a gradient evaluation: configurations are timed in turn, one run each, on this machine.

The seconds that a run records are those of its whole fleet, on any machine, together with other processes. Costs are
therefore measured separately, and interleaved, so that anything that slows the machine down affects all of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from burgersgd.build.prepared import Prepared, prepare
from burgersgd.config import TrainConfig
from burgersgd.identity import check_own, config_from
from burgersgd.recording.run_folder import read_config

ROUNDS = 7
SECONDS = 0.05
"""Shortest duration of one timing, in seconds."""


def cost_of_runs(folders: Sequence[Path]) -> list[list[float]]:
    """Return seconds per gradient evaluation for the configurations of run folders, one number per round.

    Raises ConfigError for the user's own model or data, which a folder does not contain, and as prepare does.
    """
    records = [read_config(folder) for folder in folders]
    for record in records:
        check_own(record, None, None)
    return cost_of([config_from(record) for record in records])


def cost_of(configs: Sequence[TrainConfig], rounds: int = ROUNDS, seconds: float = SECONDS) -> list[list[float]]:
    """Return seconds per gradient evaluation for every configuration, one number per round.

    On the CPU this is processor time, which other processes increase only a little; on other devices it is wall time.
    """
    prepared = [prepare([config]) for config in configs]
    sizes = [_size(p, seconds) for p in prepared]
    found: list[list[float]] = [[] for _ in configs]
    for _ in range(rounds):
        for costs, p, n in zip(found, prepared, sizes, strict=True):
            costs.append(_timed(p, n) / n)
    return found


def _size(prepared: Prepared, seconds: float) -> int:
    """Return the number of evaluations that takes at least `seconds`; a first timing, which compiles, is discarded."""
    n = min(prepared.budget, 64)
    _timed(prepared, n)
    while n < prepared.budget and _timed(prepared, n) < seconds:
        n = min(2 * n, prepared.budget)
    return n


def _timed(prepared: Prepared, n: int) -> float:
    with prepared.torch_settings():
        fleet = prepared.fleet()
        cuda = prepared.problem.inputs.device.type == "cuda"
        clock = time.perf_counter if prepared.problem.inputs.device.type != "cpu" else time.process_time
        if cuda:
            torch.cuda.synchronize()
        started = clock()
        fleet.advance(n)
        if cuda:
            torch.cuda.synchronize()
        return max(clock() - started, 1e-9)
