"""Performance profiles over several data sets (Dolan & More 2002), with the rules of AlgoPerf (Dahl et al. 2023).

The time of a row on a data set is the median over studies (seeds) of the shortest time of each study's trials
(settings). A missed target has infinite time, and so has a time of more than 4 times that of the fastest row.
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
"""Multiple of the fastest time beyond which a row counts as having missed the target."""
RELAXATIONS = (1.0, 1.1, 1.25, 1.5, 2.0)
Key = tuple[Any, ...]


def ratios(times: Values, longest: float = LONGEST) -> Values:
    """Return the times relative to the fastest row of each problem, inf beyond `longest`.

    times: positive, ``[problems, rows]``. A problem that no row solves has only infinite ratios.
    """
    fastest = times.min(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isfinite(times), times / fastest, math.inf)
    return np.where(relative > longest, math.inf, relative)


def profile(relative: Values, tau: Values) -> Values:
    """Return the fraction of problems that each row solves within tau times the fastest time, ``[taus, rows]``."""
    return (relative[None] <= tau[:, None, None]).mean(axis=1)


def area(relative: Values, longest: float = LONGEST) -> Values:
    """Return the area under each profile between 1 and `longest`, 1 for a row that is always the fastest, ``[rows]``.

    The profile is a step function, so each problem contributes the part of [1, longest] beyond its ratio.
    """
    return np.clip((longest - relative) / (longest - 1), 0, 1).mean(axis=0)


def ranks(areas: Values) -> list[int]:
    """Return the rank of each row, 1 for the largest area; equal areas have the same rank."""
    return [1 + int(np.sum(areas > value + 1e-12)) for value in areas]


def study_time(runs: Sequence[Run], time: Callable[[Run], float]) -> float:
    """Return the median over studies (seeds) of the shortest time of their trials; nan if there is no run."""
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
    """Times relative to the fastest row, ``[problems, rows]``, see ratios."""

    @property
    def areas(self) -> Values:
        """The area under each profile."""
        return area(self.relative)

    @property
    def ranks(self) -> list[int]:
        """The rank of each row by area."""
        return ranks(self.areas)


def profiles_of(c: Comparison, cost: Mapping[Key, Mapping[Key, float]] | None = None) -> list[Profiles]:
    """Return the profiles of a comparison for every relaxation on every available clock.

    The target of a data set is the final mean validation error of the picked setting of the baseline (or, without a
    baseline, of the first row), times the relaxation; in a comparison at target=E it is E on every data set.
    cost: block -> row -> seconds of a gradient evaluation, timed separately; without it there is no clock of seconds.
    Only rows with runs on every data set are included.
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
    """Return the cost of a target, at least one gradient evaluation even if the start reaches the target."""
    spent = measure(run, metric, At("target", target))
    return max(1.0, spent) if not math.isnan(spent) else math.nan
