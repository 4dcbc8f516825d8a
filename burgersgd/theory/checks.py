"""Range checks of the theory package: one-line errors that name the argument, its value and what is allowed."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_positive(**values: float) -> None:
    """Raise ValueError unless every value is finite and > 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value:g}: must be finite and > 0")


def check_not_negative(**values: float) -> None:
    """Raise ValueError unless every value is finite and >= 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value:g}: must be finite and >= 0")


def check_finite(**values: ArrayLike) -> None:
    """Raise ValueError unless every array holds finite numbers only."""
    for name, value in values.items():
        bad = np.flatnonzero(~np.isfinite(np.asarray(value, dtype=float)))
        if bad.size:
            raise ValueError(f"{name}: {bad.size} values are not finite (first at index {bad[0]}): must all be finite")


def float_array(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values as an array of float64."""
    return np.asarray(values, dtype=np.float64)
