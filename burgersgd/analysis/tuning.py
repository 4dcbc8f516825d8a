"""Tuning curves: the expected best validation error of a search of n trials, and the test error of that trial.

A trial is a setting; its errors are the means over its seeds, +inf if one of them diverged. For random search the
expectation over all subsets of n of the N trials is unbiased: the i-th best trial is the best of n with probability
C(N - i, n - 1) / C(N, n) (Dodge et al. 2019, without replacement as in Tang et al. 2020).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from burgersgd.analysis.rows import Measure
from burgersgd.analysis.runs import Run, number
from burgersgd.analysis.statistics import Interval, Values
from burgersgd.recording.naming import JOBS, same_job

RANGE = 0.8
"""Fraction of searches whose best trial lies within the range that is shown."""


@dataclass(frozen=True)
class Trial:
    """One setting that was tried."""

    validation: float
    test: float
    cost: float
    """Gradient evaluations that all its seeds spent in total."""


@dataclass(frozen=True)
class TuningCurve:
    """Expected best result after 1, 2, ... trials; arrays ``[n]``."""

    trials: NDArray[np.int64]
    cost: Values
    """Gradient evaluations of this many trials."""
    validation: Values
    test: Values
    ranges: tuple[Interval, ...]
    """Ranges with the best validation error of most searches (RANGE); nan near n = N, where no trials are left."""
    kind: str
    """The kind of curve: expected, or running best."""
    caution: str
    """The reason why the curve is not an unbiased expectation; empty if it is one."""
    medians_until: int
    """Number of trials up to which the values are medians, since all of this many trials may diverge."""


def trials_of(runs: Sequence[Run], validation: Measure, test: Measure) -> list[Trial]:
    """Return the trials of a search, in the order in which they were proposed."""
    positions = {root: _jobs(root) for root in {run.folder.parent for run in runs}}

    def position(run: Run) -> tuple[str, float, str, str]:
        root, name = run.folder.parent, run.folder.name
        return str(root), positions[root].get(same_job(name), math.inf), str(run.status.get("updated")), name

    settings: dict[object, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=position):
        settings[run.setting()].append(run)
    trials = []
    for members in settings.values():
        values = [(validation(run), test(run)) for run in members]
        measured = np.array([pair for pair in values if not math.isnan(pair[0])], dtype=np.float64)
        if not len(measured):
            continue
        means = measured.mean(axis=0) if np.isfinite(measured).all() else np.array([math.inf, math.inf])
        spent = sum(_spent(run) for run in members)
        trials.append(Trial(float(means[0]), float(means[1]), spent))
    return trials


def tuning_curve(trials: Sequence[Trial], sampler: str = "random", pruned: bool = False) -> TuningCurve:
    """Return the tuning curve of trials in the order in which they were proposed.

    If trials were proposed from the results of earlier ones (Optuna), or stopped early, there is no expectation over
    subsets: the curve is the running best of that one search.
    """
    validation = np.array([trial.validation for trial in trials], dtype=np.float64)
    test = np.array([trial.test for trial in trials], dtype=np.float64)
    cost = np.array([trial.cost for trial in trials], dtype=np.float64)
    n = np.arange(1, len(trials) + 1)
    if sampler == "optuna" or pruned:
        best = np.minimum.accumulate(validation)
        held = [float(test[: k + 1][validation[: k + 1] == best[k]].mean()) for k in range(len(trials))]
        why = (
            "one search, in which each trial depends on earlier ones" if sampler == "optuna" else "trials were stopped"
        )
        ranges = (Interval(math.nan, math.nan),) * len(trials)
        return TuningCurve(n, np.cumsum(cost), best, np.array(held), ranges, "running best", why, 0)
    cautions = {"random": "", "sobol": "approximate: Sobol points are not independent draws"}
    caution = cautions.get(sampler, "approximate: a grid is not a random search")
    order = np.argsort(validation, kind="stable")
    best, held = validation[order], test[order]
    for value in np.unique(best[np.isfinite(best)]):
        held[best == value] = held[best == value].mean()
    weights = best_of_n(len(trials))
    diverged = int(np.sum(~np.isfinite(best)))
    expected, tested, ranges = np.empty(len(trials)), np.empty(len(trials)), []
    for k, w in enumerate(weights):
        if k + 1 <= diverged:
            middle = min(int(np.searchsorted(np.cumsum(w), 0.5 - 1e-12)), len(best) - 1)
            expected[k], tested[k] = best[middle], held[middle]
        else:
            used = w > 0
            expected[k], tested[k] = w[used] @ best[used], w[used] @ held[used]
        ranges.append(_range(best, w) if 2 * (k + 1) <= len(trials) else Interval(math.nan, math.nan))
    return TuningCurve(
        n, (n * float(cost.mean())).astype(np.float64), expected, tested, tuple(ranges), "expected", caution, diverged
    )


def curve_of(runs: Sequence[Run], validation: Measure, test: Measure) -> TuningCurve:
    """Return the tuning curve of all runs of a row; their configurations record how they were proposed."""
    samplers = {run.settings.get("sweep.sampler") for run in runs}
    sampler = next((name for name in ("optuna", "grid", "sobol") if name in samplers), "random")
    sampler = sampler if samplers - {None} else "grid"
    return tuning_curve(trials_of(runs, validation, test), sampler, any(run.state == "pruned" for run in runs))


def best_of_n(total: int) -> Values:
    """Return the probabilities that the i-th best of all trials is the best one of n drawn trials, ``[n, i]``."""
    i, n = np.arange(1, total + 1), np.arange(1, total + 1)[:, None]
    with np.errstate(invalid="ignore"):
        logs = _log_choose(total - i, n - 1) - _log_choose(np.array(total), n)
    return np.where(total - i >= n - 1, np.exp(logs), 0.0)


def _log_choose(n: NDArray[np.int64], k: NDArray[np.int64]) -> Values:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def _range(best: Values, weights: Values) -> Interval:
    total = np.cumsum(weights)
    ends = [int(np.searchsorted(total, q - 1e-12)) for q in ((1 - RANGE) / 2, (1 + RANGE) / 2)]
    return Interval(*(float(best[min(end, len(best) - 1)]) for end in ends))


def _spent(run: Run) -> float:
    """Return the gradient evaluations of a run, or its budget if they are not recorded."""
    spent = number(run.status.get("evaluations"))
    return spent if not math.isnan(spent) else run.budget if not math.isnan(run.budget) else 0.0


def _jobs(root: Path) -> dict[str, int]:
    """Return hash -> position of a sweep's jobs, in the order in which they were proposed."""
    positions: dict[str, int] = {}
    try:
        lines = (root / JOBS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # not a sweep
        return positions
    for i, line in enumerate(lines):
        try:
            positions.setdefault(same_job(json.loads(line)["name"]), i)
        except (ValueError, TypeError, KeyError):  # an incomplete line of a killed process
            continue
    return positions
