"""One row of a comparison: a group of runs, its setting picked by validation, and its difference to another row.

The unit of every statistic is a seed or, if the runs are on several splits of the data, a split, whose value is the
mean over the seeds on that split.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from burgersgd.analysis.runs import Run, shown
from burgersgd.analysis.statistics import (
    UNKNOWN,
    Interval,
    bca_interval,
    paired_t,
    pairs_needed,
    probability_of_improvement,
    sign_test,
    t_interval,
    welch,
)

Measure = Callable[[Run], float]
Setting = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Difference:
    """Row minus baseline; the interval is not adjusted, p_holm is adjusted for the whole family."""

    mean: float
    interval: Interval
    p: float
    test: str
    """The test: paired t, sign or Welch; empty if nothing can be tested."""
    n_pairs: int
    n_unpaired: int
    """Number of units of both rows that have no partner."""
    standard_error: float
    df: float
    sd: float
    """Standard deviation of the differences; for Welch's test, of a difference between two single runs."""
    improvement: float
    """Probability that a run of the row is better than a run of the baseline, with ties counted half."""
    p_holm: float = math.nan
    minimum_detectable: float = math.nan
    n_planning: float = math.nan


@dataclass(frozen=True)
class Row:
    """A group of runs with one setting, or one per split, and the statistics of its values."""

    key: tuple[Any, ...]
    """Values of the keys that distinguish the rows."""
    label: str
    group: tuple[Run, ...]
    """All runs of the row, with any setting."""
    runs: tuple[Run, ...]
    """The runs of the picked setting."""
    settings: tuple[Setting, ...]
    """The picked setting, one for each split."""
    n_settings: int
    """Number of settings from which the setting was picked."""
    of: dict[Any, tuple[Run, ...]]
    """Unit -> its runs."""
    values: dict[Any, float]
    """Unit -> value; +inf if the run diverged or missed the target; unfinished runs are left out."""
    measured: dict[Any, tuple[float, ...]]
    """Unit -> the value of each of its runs."""
    counts: dict[str, int]
    """State -> number of runs of the picked setting."""
    selected: tuple[float, ...]
    """The value of each run by which settings are picked and rows are ordered."""
    bootstrap: bool = False
    difference: Difference | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def finite(self) -> NDArray[np.float64]:
        """The finite values, over which the mean is taken."""
        every = self.every
        return every[np.isfinite(every)]

    @property
    def every(self) -> NDArray[np.float64]:
        """All values, +inf included."""
        return np.array(list(self.values.values()), dtype=np.float64)

    @property
    def n_lost(self) -> int:
        """Number of units that diverged or missed the target."""
        return len(self.values) - len(self.finite)

    @property
    def mean(self) -> float:
        """Mean of the finite values."""
        return float(np.mean(self.finite)) if len(self.finite) else math.nan

    @property
    def interval(self) -> Interval:
        """95 % interval of the mean, unadjusted."""
        return bca_interval(self.finite) if self.bootstrap else t_interval(self.finite)

    @property
    def median(self) -> float:
        """Median of all values; runs that diverged or missed the target count as +inf."""
        return median(self.every)

    @property
    def sd(self) -> float:
        """Standard deviation of the finite values."""
        return float(np.std(self.finite, ddof=1)) if len(self.finite) > 1 else math.nan

    @property
    def selection(self) -> float:
        """Mean of the finite values of `selected`."""
        selected = np.array(self.selected, dtype=np.float64)
        finite = selected[np.isfinite(selected)]
        return float(np.mean(finite)) if len(finite) else math.nan

    def order(self) -> tuple[bool, bool, float]:
        """The sort key of rows: rows with divergences come after those without."""
        return self.n_lost > 0, math.isnan(self.selection), self.selection


def median(values: NDArray[np.float64]) -> float:
    """Return the median of values that may be +inf, or nan if there are none."""
    ordered = np.sort(values)
    n = len(ordered)
    if n == 0:
        return math.nan
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return float(low if low == high else (low + high) / 2)


def row_of(
    key: tuple[Any, ...],
    label: str,
    runs: Sequence[Run],
    measure: Measure,
    selection: Measure | None,
    by_split: bool,
    bootstrap: bool,
) -> Row:
    """Return the row of a group of runs.

    selection: the measure whose lowest mean picks the setting (per split, if there are several); None pools all runs.
    Raises ValueError if one of several settings is to be picked and no run has that measure.
    """
    settings: dict[Setting, list[Run]] = defaultdict(list)
    for run in runs:
        settings[run.setting()].append(run)
    notes: list[str] = []
    if selection is None:
        picked = {None: list(runs)}
        chosen: list[Setting] = list(settings)
    else:
        if len(settings) > 1 and all(r.state == "completed" and math.isnan(selection(r)) for r in runs):
            raise ValueError(
                f"{label}: one of {len(settings)} settings is to be picked, but the runs have no validation part"
                " (dataset.validation_fraction=0); add the keys that differ to --by, or pool all by --pick none"
            )
        splits = dict.fromkeys(run.split for run in runs) if by_split else {None: None}
        picked, chosen = {}, []
        for split in splits:
            candidates = {s: [r for r in rs if not by_split or r.split == split] for s, rs in settings.items()}
            best, left_out = pick({s: rs for s, rs in candidates.items() if rs}, selection)
            picked[split] = candidates[best]
            chosen.append(best)
            if left_out:
                most = len({_unit(r, by_split=False) for r in candidates[best]})
                notes.append(f"{left_out} settings with fewer than {most} runs were not considered")
    kept = [run for group in picked.values() for run in group]
    units: dict[Any, list[Run]] = defaultdict(list)
    for run in sorted(kept, key=lambda run: (str(run.seed).zfill(20), str(run.folder))):
        if not math.isnan(measure(run)):
            units[_unit(run, by_split)].append(run)
    counts: dict[str, int] = defaultdict(int)
    for run in kept:
        counts[run.state] += 1
    measured = {unit: tuple(measure(run) for run in members) for unit, members in units.items()}
    return Row(
        key=key,
        label=label,
        group=tuple(runs),
        runs=tuple(kept),
        settings=tuple(chosen),
        n_settings=len(settings),
        of={unit: tuple(members) for unit, members in units.items()},
        values={unit: float(np.mean(values)) for unit, values in measured.items()},
        measured=measured,
        counts=dict(counts),
        selected=tuple(map(selection or measure, kept)),
        bootstrap=bootstrap,
        notes=tuple(dict.fromkeys(notes)),
    )


def pick(settings: dict[Setting, list[Run]], selection: Measure) -> tuple[Setting, int]:
    """Return the setting with the lowest mean, and the number of settings that were not considered.

    Only settings with the largest number of runs are considered, so that one lucky seed does not win; settings with a
    run that diverged or was stopped early come after those without.
    """
    most = max(map(len, settings.values()))
    candidates = {setting: runs for setting, runs in settings.items() if len(runs) == most}

    def rank(setting: Setting) -> tuple[bool, float, str]:
        values = np.array([selection(run) for run in candidates[setting]], dtype=np.float64)
        finite = values[np.isfinite(values)]
        return len(finite) < most, float(np.mean(finite)) if len(finite) else math.inf, str(setting)

    return min(candidates, key=rank), len(settings) - len(candidates)


def _unit(run: Run, by_split: bool) -> Any:
    return run.split if by_split else run.seed


def difference_of(row: Row, baseline: Row, any_budget: bool = False) -> Difference:
    """Return the difference of a row to the baseline over pairs of the same unit, or without pairs by Welch's test.

    A pair has the same seed, split, data and, unless any_budget, the same budget within one cycle. With divergences the
    p-value is that of the sign test, in which a diverged run is worse than any other run; the mean and its interval are
    then those of the pairs in which no run diverged.
    """
    units = paired_units(row, baseline, any_budget)
    a = np.array([row.values[unit] for unit in units], dtype=np.float64)
    b = np.array([baseline.values[unit] for unit in units], dtype=np.float64)
    unpaired = len(row.values) + len(baseline.values) - 2 * len(units)
    improvement = probability_of_improvement(row.every, baseline.every)
    if len(units) < 2:
        x, y = row.finite, baseline.finite
        result, test = welch(x, y), "Welch"
        if row.n_lost or baseline.n_lost or math.isnan(result.p):
            result, test = result._replace(p=math.nan), ""
        sd = math.sqrt(np.var(x, ddof=1) + np.var(y, ddof=1)) if min(len(x), len(y)) > 1 else math.nan
    else:
        differences = _minus(a, b)
        finite = differences[np.isfinite(differences)]
        result, test = paired_t(finite), "paired t"
        if len(finite) < len(differences) or math.isnan(result.p):
            result, test = result._replace(p=sign_test(differences)), "sign"
        sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    interval = result.interval if result.standard_error > 0 else UNKNOWN
    return Difference(
        mean=result.difference,
        interval=interval,
        p=result.p,
        test=test,
        n_pairs=len(units),
        n_unpaired=unpaired,
        standard_error=result.standard_error,
        df=result.df,
        sd=sd,
        improvement=improvement,
    )


def paired_units(row: Row, baseline: Row, any_budget: bool = False) -> list[Any]:
    """Return the units whose runs in both rows have the same data and, unless any_budget, the same budget."""
    return [
        u for u in row.values if u in baseline.values and _same_data_and_budget(row.of[u], baseline.of[u], any_budget)
    ]


def _same_data_and_budget(a: Sequence[Run], b: Sequence[Run], any_budget: bool) -> bool:
    first, second = a[0], b[0]
    if first.data != second.data or (first.digest and second.digest and first.digest != second.digest):
        return False
    return any_budget or not abs(first.budget - second.budget) >= max(first.cycle, second.cycle)


def _minus(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a - b elementwise, nan if both are infinite."""
    with np.errstate(invalid="ignore"):
        return a - b


def planned(difference: Difference, alpha: float, detectable: float) -> Difference:
    """Return the difference with the smallest detectable difference and the number of pairs that this one needs."""
    n = pairs_needed(difference.mean, difference.sd, alpha)
    return replace(difference, minimum_detectable=detectable, n_planning=n)


def setting_words(row: Row, keys: Sequence[str]) -> str:
    """Return the picked setting, by the keys that differ; there may be one for each split."""
    words = [
        " ".join(f"{key}={shown(dict(setting)[key])}" for key in keys if key in dict(setting))
        for setting in dict.fromkeys(row.settings)
    ]
    return words[0] if len(words) == 1 else f"{len(words)} settings"
