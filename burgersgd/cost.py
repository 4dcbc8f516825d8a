"""Measures the cost of a gradient evaluation: several configurations timed in turn, one run each, on this machine.

The seconds that a run records are those of its whole fleet, on whatever machine, beside whatever else ran there. Costs
are therefore measured by themselves, interleaved, so that whatever slows the machine down slows all of them down.
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
    """Return seconds per gradient evaluation of the configurations of run folders, a number for every round.

    Raises ConfigError for a model or data of the user's own, which a folder does not hold, and what prepare raises.
    """
    records = [read_config(folder) for folder in folders]
    for record in records:
        check_own(record, None, None)
    return cost_of([config_from(record) for record in records])


def cost_of(configs: Sequence[TrainConfig], rounds: int = ROUNDS, seconds: float = SECONDS) -> list[list[float]]:
    """Return seconds per gradient evaluation of every configuration, a number for each of the rounds.

    On the CPU processor time counts, which other processes do not lengthen much; elsewhere the time that passes.
    """
    prepared = [prepare([config]) for config in configs]
    sizes = [_size(p, seconds) for p in prepared]
    found: list[list[float]] = [[] for _ in configs]
    for _ in range(rounds):
        for costs, p, n in zip(found, prepared, sizes, strict=True):
            costs.append(_timed(p, n) / n)
    return found


def _size(prepared: Prepared, seconds: float) -> int:
    """Return how many evaluations take long enough to be timed; the first ones, which compile, do not count."""
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
