"""The number that a comparison takes from a run: a metric at a certain point of the run.

The number is nan if the run is not finished or nothing was recorded, and +inf if the run diverged or missed its target:
lower is better, so that such a run is worse than all others, and no run is dropped.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from burgersgd.analysis.runs import Run, Runs, number
from burgersgd.recording.files import RunFolderError

AT_BEST = {"test_error": "best_test_error", "validation_error": "best_validation_error"}
"""Metric -> its name in status.json at the x with the lowest validation error."""
TEST_METRICS = ("test_error", "test_loss")


@dataclass(frozen=True)
class At:
    """When a metric is taken: end, best (lowest validation error), budget=N, or the cost of reaching target=E."""

    kind: str
    value: float = math.nan

    def __str__(self) -> str:
        return self.kind if math.isnan(self.value) else f"{self.kind}={self.value:g}"

    @classmethod
    def parse(cls, text: str) -> At:
        """Parse end, best, budget=N or target=E (E: a number or a percentage). Raises ValueError."""
        kind, equals, value = text.partition("=")
        if kind in ("end", "best") and not equals:
            return cls(kind)
        match = re.fullmatch(r"([0-9][0-9_,]*\.?[0-9]*(?:e[+-]?[0-9]+)?) *(%?)", value, re.IGNORECASE)
        if kind not in ("budget", "target") or match is None or (kind == "budget" and match[2]):
            raise ValueError(f"at={text}: must be end, best, budget=N or target=E, such as target=0.03 or target=3%")
        amount = float(re.sub("[_,]", "", match[1])) / (100 if match[2] else 1)
        if kind == "budget" and (amount < 1 or amount != int(amount)):
            raise ValueError(f"at={text}: N must be a whole number of gradient evaluations, >= 1")
        return cls(kind, amount)


def check(runs: Runs, metric: str, at: At) -> None:
    """Raise ValueError if none of the runs can have that number."""
    if metric in TEST_METRICS and at.kind in ("budget", "target"):
        other = metric.replace("test", "validation")
        raise ValueError(
            f"metric={metric}: is measured only at the end of a run; with at={at} use metric={other} or train_loss"
        )
    if metric == "test_loss" and at.kind == "best":
        raise ValueError("metric=test_loss: is measured only at the end of a run; with at=best use metric=test_error")
    values = [measure(run, metric, at) for run in runs]
    if any(map(math.isfinite, values)):
        return
    if not any(run.state in ("completed", "diverged") for run in runs) and at.kind in ("end", "best"):
        raise ValueError(f"none of the {len(runs)} runs is finished, so there is nothing to compare yet")
    metrics: set[str] = set()
    for run in runs:
        metrics |= {key for key in run.status if not math.isnan(number(run.status[key]))} | set(_curves(run) or {})
    if metric not in metrics:
        raise ValueError(f"metric={metric}: must be one of {', '.join(sorted(metrics))}")
    if all(map(math.isnan, values)):  # +inf: a run diverged
        raise ValueError(f"metric={metric}: no run has a value at {at}")


def measure(run: Run, metric: str, at: At) -> float:
    """Return the number of a run, in the unit of the metric, or in gradient evaluations if at is target=E."""
    if at.kind in ("end", "best") and run.state != "completed":
        return math.inf if run.state == "diverged" else math.nan
    if at.kind == "end" and metric in run.status:
        return _finite(number(run.status[metric]))
    if at.kind == "best" and metric in AT_BEST:
        return _finite(number(run.status.get(AT_BEST[metric])))
    curves = _curves(run)
    if curves is None or metric not in curves or "evaluations" not in curves:
        return math.nan
    evaluations, values = curves["evaluations"], curves[metric]
    if at.kind == "target":
        reached = np.flatnonzero(values <= at.value)
        if len(reached):
            return float(evaluations[reached[0]])
        return math.inf if run.state in ("completed", "diverged") else math.nan
    limit = {"end": math.inf, "best": number(run.status.get("best_at")), "budget": at.value}[at.kind]
    if at.kind == "budget" and not (len(evaluations) and evaluations[-1] > limit - run.cycle):
        return math.inf if run.state == "diverged" else math.nan
    measured = np.flatnonzero((evaluations <= limit) & ~np.isnan(values))
    return _finite(float(values[measured[-1]])) if len(measured) else math.nan


def curve_problem(run: Run) -> str:
    """Return in one line why the curves of a run cannot be read; empty if they can."""
    try:
        run.curves  # noqa: B018  (reads the file)
    except RunFolderError as error:
        return str(error)
    return ""


def smallest_denominator(errors: NDArray[np.float64], largest: int = 100_000) -> int:
    """Return the smallest n such that all error rates are fractions k / n up to float32 rounding; 0 if there is none.

    It is the size of the part on which they were measured, or a divisor of it; it replaces a size that is not recorded.
    """
    rates = np.unique(errors[np.isfinite(errors) & (errors > 0) & (errors < 1)])
    if not len(rates):
        return 0
    for start in range(1, largest + 1, 4096):
        n = np.arange(start, min(start + 4096, largest + 1), dtype=np.float64)
        counts = rates[:, None] * n
        fits = np.all(np.abs(counts - np.round(counts)) <= 2e-7 * counts + 1e-12, axis=0) & (np.round(counts) >= 1).all(
            axis=0
        )
        if fits.any():
            return int(n[np.argmax(fits)])
    return 0


def _curves(run: Run) -> dict[str, NDArray[np.float64]] | None:
    try:
        return run.curves
    except RunFolderError:
        return None


def _finite(value: float) -> float:
    """Return the value, with an infinite one (a loss that overflowed) as +inf."""
    return value if math.isfinite(value) or math.isnan(value) else math.inf
