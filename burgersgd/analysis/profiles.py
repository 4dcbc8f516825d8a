"""Performance profiles over several data sets (Dolan & More 2002), with the rules of AlgoPerf (Dahl et al. 2023).

The time of a row on a data set: of every study (seed) the best of its trials (settings), of these the median over
studies; a target that is missed takes infinitely long, and so does more than 4 times the fastest row's time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burgersgd.analysis.compare import Comparison
from burgersgd.analysis.rows import median
from burgersgd.analysis.runs import Run
from burgersgd.analysis.statistics import Values
from burgersgd.analysis.values import At, measure

LONGEST = 4.0
"""Multiple of the fastest time from which on a row counts as having missed."""
RELAXATIONS = (1.0, 1.1, 1.25, 1.5, 2.0)
Key = tuple[Any, ...]


def ratios(times: Values, longest: float = LONGEST) -> Values:
    """Return times relative to the fastest row of each problem, inf beyond `longest`.

    times: positive, ``[problems, rows]``. A problem that no row solves has only infinite ratios.
    """
    fastest = times.min(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isfinite(times), times / fastest, math.inf)
    return np.where(relative > longest, math.inf, relative)


def profile(relative: Values, tau: Values) -> Values:
    """Return the share of problems that each row solves within tau times the fastest, ``[taus, rows]``."""
    return (relative[None] <= tau[:, None, None]).mean(axis=1)


def area(relative: Values, longest: float = LONGEST) -> Values:
    """Return the area under each profile between 1 and `longest`, 1 for a row that is always the fastest, ``[rows]``.

    The profile is a step function, so the integral of each problem is the part of [1, longest] beyond its ratio.
    """
    return np.clip((longest - relative) / (longest - 1), 0, 1).mean(axis=0)


def ranks(areas: Values) -> list[int]:
    """Return the place of each row, 1 for the largest area; equal ones share a place."""
    return [1 + int(np.sum(areas > value + 1e-12)) for value in areas]


def study_time(runs: Sequence[Run], time: Callable[[Run], float]) -> float:
    """Return the median over studies (seeds) of the shortest time of its trials; nan where there is no run."""
    studies: dict[Any, list[float]] = defaultdict(list)
    for run in runs:
        value = time(run)
        if not math.isnan(value):
            studies[run.split, run.seed].append(value)
    return median(np.array([min(values) for values in studies.values()], dtype=np.float64))


@dataclass(frozen=True)
class Profiles:
    """Profiles of the rows on one clock, at one relaxation of the targets."""

    clock: str
    relaxation: float
    targets: tuple[float, ...]
    """The target of each data set, in the unit of the metric."""
    problems: tuple[str, ...]
    rows: tuple[Key, ...]
    labels: tuple[str, ...]
    relative: Values
    """``[problems, rows]``."""

    @property
    def areas(self) -> Values:
        """Area under each profile."""
        return area(self.relative)

    @property
    def ranks(self) -> list[int]:
        """Place of each row by area."""
        return ranks(self.areas)


def profiles_of(c: Comparison, cost: Mapping[Key, Mapping[Key, float]] | None = None) -> list[Profiles]:
    """Return the profiles of a comparison, for every relaxation, on the clocks that there are.

    The target of a data set is the mean validation error at which the baseline's picked setting ends (without a
    baseline: the first row's), times the relaxation; in a comparison at target=E it is E everywhere.
    cost: block -> row -> seconds of a gradient evaluation, timed separately; without it there is no clock of seconds.
    Only rows that are on every data set take part.
    """
    metric = c.question.metric if c.question.metric.startswith(("validation", "train")) else "validation_error"
    common = [row.key for row in c.blocks[0].rows if all(block.baseline(row.key) for block in c.blocks)]
    if not common or len(c.blocks) < 2:
        return []
    labels = {row.key: row.label for row in c.blocks[0].rows}
    runs = {block.key: {row.key: row.group for row in block.rows} for block in c.blocks}
    found = []
    clocks = ("evaluations", "seconds") if cost is not None else ("evaluations",)
    base_targets = []
    for block in c.blocks:
        if c.at.kind == "target":
            base_targets.append(c.at.value)
            continue
        reference = block.baseline(c.baseline) or block.rows[0]
        ends = np.array([measure(run, metric, At("end")) for run in reference.runs], dtype=np.float64)
        base_targets.append(float(np.mean(ends[np.isfinite(ends)])) if np.isfinite(ends).any() else math.nan)
    for clock in clocks:
        for relaxation in RELAXATIONS:
            targets = tuple(relaxation * target for target in base_targets)
            times = np.array(
                [
                    [
                        study_time(runs[block.key][key], lambda run, t=target: _evaluations(run, metric, t))
                        * (cost[block.key][key] if clock == "seconds" and cost is not None else 1)
                        for key in common
                    ]
                    for block, target in zip(c.blocks, targets, strict=True)
                ]
            )
            relative = ratios(np.where(np.isnan(times), math.inf, times))
            problems = tuple(block.label for block in c.blocks)
            names = tuple(labels[key] for key in common)
            found.append(Profiles(clock, relaxation, targets, problems, tuple(common), names, relative))
    return found


def _evaluations(run: Run, metric: str, target: float) -> float:
    """Return the cost of a target, at least one gradient evaluation: the start may already be good enough."""
    spent = measure(run, metric, At("target", target))
    return max(1.0, spent) if not math.isnan(spent) else math.nan
