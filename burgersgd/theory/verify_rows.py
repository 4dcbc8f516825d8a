"""What the checks of `burgersgd verify` share: rows (numbers with a tolerance and a verdict) and differences."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from burgersgd.theory.quadrature import Array

SIGMAS = 6.0
"""A statistical row passes if |z| < 6: a correct one fails once in 5e8 draws, and the seeds are fixed."""

SAMPLING = "6 standard errors, known from the exact law"
ROUNDING = "rounding, float64"
STENCIL = "differences of 4th order"
QUADRATURE = "quadrature to rounding"

MISS = 2.0
"""A misprint is confirmed if the printed form is off by more than this many tolerances."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    equation: str  # "3.12", or "" if the statement has no numbered equation
    of: str  # the functions that are measured, as paths below `burgersgd.theory.` or `burgersgd.`, joined by ", "
    statement: str
    measured: float
    expected: float
    tolerance: str
    reason: str  # the reason for the tolerance
    passed: bool
    printed: float | None = None  # the number that the printed form gives, for a misprint
    check: str = ""  # "group.name", filled in by the runner

    @property
    def functions(self) -> list[str]:
        """The functions that are measured; the row must fail if any of them is wrong."""
        return self.of.split(", ")

    @property
    def verdict(self) -> str:
        """One of "holds", "misprint confirmed" (corrected form holds, printed form fails) and "FAILS"."""
        if not self.passed:
            return "FAILS"
        return "holds" if self.printed is None else "misprint confirmed"


def largest(values: float | Array) -> float:
    """Return max |values| of an array, and a number as it is."""
    return float(values) if np.ndim(values) == 0 else float(np.max(np.abs(values)))


def agrees(
    equation: str, of: str, statement: str, measured: float | Array, expected: float, tolerance: float, reason: str
) -> Row:
    """Return a row that passes if measured (of an array the largest absolute value) is within tolerance of expected."""
    value = largest(measured)
    passed = bool(abs(value - expected) <= tolerance)  # False for nan
    return Row(equation, of, statement, value, float(expected), f"{tolerance:.1g}", reason, passed)


def within(
    equation: str, of: str, statement: str, measured: float, expected: float, band: tuple[float, float], reason: str
) -> Row:
    """Return a row that passes if measured lies in the band."""
    low, high = band
    passed = bool(low <= measured <= high)
    return Row(equation, of, statement, float(measured), float(expected), f"in [{low:g}, {high:g}]", reason, passed)


def scored(
    equation: str, of: str, statement: str, measured: float, expected: float, error: float, reason: str = SAMPLING
) -> Row:
    """Return a row that passes if measured is within 6 standard errors of expected."""
    z = (measured - expected) / error
    passed = bool(math.isfinite(z) and abs(z) < SIGMAS)
    return Row(equation, of, statement, float(measured), float(expected), f"|z| < 6, z = {z:+.1f}", reason, passed)


def misprint(
    equation: str,
    of: str,
    statement: str,
    forms: Sequence[float | Array],
    expected: float,
    tolerance: float,
    reason: str,
) -> Row:
    """Return a row that passes if the corrected form is within tolerance of expected and the printed form is not.

    forms: what the corrected and the printed form give; the printed one must be off by MISS tolerances.
    """
    corrected, printed = map(largest, forms)
    row = agrees(equation, of, statement, corrected, expected, tolerance, reason)
    passed = row.passed and bool(abs(printed - expected) > MISS * tolerance)
    return replace(row, passed=passed, printed=printed)


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of a straight line fitted to (log x, log y)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def central(f: Callable[[float], Array], h: float) -> Array:
    """Return f'(0) by central differences of fourth order with step h."""
    return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)


class Derivatives(NamedTuple):
    """A function of x and t and its derivatives at some points."""

    value: Array
    t: Array
    x: Array
    xx: Array


def derivatives(f: Callable[[Array, float], Array], x: Array, t: float, h: float) -> Derivatives:
    """Return f, f_t, f_x, f_xx at (x, t) by central differences of fourth order with step h."""
    at = [f(x + k * h, t) for k in range(-2, 3)]
    xx = (-at[0] + 16 * at[1] - 30 * at[2] + 16 * at[3] - at[4]) / (12 * h * h)
    return Derivatives(at[2], central(lambda k: f(x, t + k), h), central(lambda k: f(x + k, t), h), xx)


GROUPS = ("traffic", "burgers", "cole_hopf", "local_entropy", "langevin", "homogenisation", "optimizer")
CHECKS: dict[str, Callable[[], list[Row]]] = {}
"""Full name, "group.name" -> check, in the order of the table."""

Measurement = Callable[[], Iterable[Row]]


def check(group: str) -> Callable[[Measurement], Measurement]:
    """Register a function that yields rows as a check of the group, under its own name."""
    if group not in GROUPS:
        raise ValueError(f"group={group}: must be one of {', '.join(GROUPS)}")

    def register(function: Measurement) -> Measurement:
        CHECKS[f"{group}.{function.__name__}"] = functools.wraps(function)(lambda: list(function()))
        return function

    return register


Experiment = TypeVar("Experiment", bound=Callable[..., Any])
_EXPERIMENTS: list[Any] = []


def experiment(function: Experiment) -> Experiment:
    """Cache the results of a function until forget_experiments: several checks and the figures share them."""
    kept = functools.cache(function)
    _EXPERIMENTS.append(kept)
    return kept  # pyright: ignore[reportReturnType]


def forget_experiments() -> None:
    """Clear the cached results, so that the next run measures again."""
    for kept in _EXPERIMENTS:
        kept.cache_clear()
