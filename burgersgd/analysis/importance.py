"""The importance of settings: how much of the validation error a random forest explains by each key that differs.

It needs scikit-learn, on which burgersgd depends for its digits.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from burgersgd.analysis.rows import Measure
from burgersgd.analysis.runs import Run, shown
from burgersgd.analysis.statistics import Values

FEWEST = 8
"""Smallest number of settings from which importance is estimated."""


@dataclass(frozen=True)
class Importance:
    """Shares of the keys, which add up to 1, and how well the forest predicts settings that it was not trained on."""

    shares: dict[str, float]
    explained: float
    """Out-of-bag R^2; near or below 0 the shares are meaningless."""
    n_settings: int


def settings_table(runs: Sequence[Run], keys: Sequence[str], measure: Measure) -> tuple[list[list[Any]], Values]:
    """Return the values of the keys of each setting, and its mean measure over seeds, +inf if a run diverged."""
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for run in runs:
        value = measure(run)
        if not math.isnan(value):
            groups[tuple(run.settings.get(key) for key in keys)].append(value)
    return [list(values) for values in groups], np.array(
        [np.mean(values) for values in groups.values()], dtype=np.float64
    )


def is_logarithmic(values: Sequence[float]) -> bool:
    """Return whether to take logarithms: the values are positive, finite, and differ by more than a factor of 30."""
    return all(0 < v < math.inf for v in values) and max(values) > 30 * min(values)


def as_numbers(column: Sequence[Any]) -> Values:
    """Return a column of settings as numbers: logarithms if is_logarithmic, ranks unless all are finite numbers."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in column):
        if is_logarithmic(column):
            return np.log(np.array(column, dtype=np.float64))
        if np.isfinite(np.array(column, dtype=np.float64)).all():
            return np.array(column, dtype=np.float64)
        ranks = {v: i for i, v in enumerate(sorted(set(column)))}
        return np.array([ranks[v] for v in column], dtype=np.float64)
    ranks = {v: i for i, v in enumerate(sorted({shown(v) for v in column}))}
    return np.array([ranks[shown(v)] for v in column], dtype=np.float64)


def importance_of(runs: Sequence[Run], keys: Sequence[str], measure: Measure) -> Importance | None:
    """Return the importance of keys among runs of one kind; None with fewer settings than FEWEST, or one key.

    A diverged setting counts as the worst finite error. The shares are the decrease of R^2 if a key is permuted
    (Breiman 2001), on the training settings.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    table, values = settings_table(runs, keys, measure)
    finite = values[np.isfinite(values)]
    if len(values) < FEWEST or len(keys) < 2 or not len(finite) or len(np.unique(values)) < 2:
        return None
    y = np.where(np.isfinite(values), values, finite.max())
    y = np.minimum(y, np.quantile(y, 0.9))  # so that a few very bad settings do not dominate
    x = np.stack([as_numbers([row[i] for row in table]) for i in range(len(keys))], axis=1)
    forest = RandomForestRegressor(100, oob_score=True, min_samples_leaf=2, random_state=0, n_jobs=1).fit(x, y)
    permuted: Any = permutation_importance(forest, x, y, n_repeats=10, random_state=0)
    drops = np.maximum(permuted.importances_mean, 0)
    total = float(drops.sum()) or 1.0
    shares = sorted(zip(keys, drops, strict=True), key=lambda item: -item[1])
    return Importance({key: float(drop) / total for key, drop in shares}, float(forest.oob_score_), len(values))
