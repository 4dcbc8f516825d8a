"""The rows that a check of `burgersgd verify` returns: numbers with a tolerance and a verdict."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

SIGMAS = 6.0
"""A statistical row passes when |z| < 6: a sound one fails once in 5e8 looks, and the seeds are fixed."""

SAMPLING = "6 standard errors, known from the exact law"

MISS = 2.0
"""A misprint is confirmed when the printed form misses the truth by more than this many tolerances."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    equation: str  # "3.12", or "" where no numbered equation says it
    of: str  # the functions that are measured, from `burgersgd.theory.` or `burgersgd.` on, joined by ", "
    statement: str
    measured: float
    expected: float
    tolerance: str
    reason: str  # why that tolerance
    passed: bool
    printed: float | None = None  # what the printed form gives, where it is a misprint
    check: str = ""  # "group.name", filled in by the runner

    @property
    def functions(self) -> list[str]:
        """Return the functions that are measured, each of which makes the row fail when it is wrong."""
        return self.of.split(", ")

    @property
    def verdict(self) -> str:
        """Return "holds", "misprint confirmed" (corrected form holds, printed form fails) or "FAILS"."""
        if not self.passed:
            return "FAILS"
        return "holds" if self.printed is None else "misprint confirmed"


def agrees(
    equation: str, of: str, statement: str, measured: float, expected: float, tolerance: float, reason: str
) -> Row:
    """Return a row that passes when measured is within tolerance of expected."""
    passed = bool(abs(measured - expected) <= tolerance)  # False for nan
    return Row(equation, of, statement, float(measured), float(expected), f"{tolerance:.1g}", reason, passed)


def within(
    equation: str, of: str, statement: str, measured: float, expected: float, band: tuple[float, float], reason: str
) -> Row:
    """Return a row that passes when measured lies in the band."""
    low, high = band
    passed = bool(low <= measured <= high)
    return Row(equation, of, statement, float(measured), float(expected), f"in [{low:g}, {high:g}]", reason, passed)


def scored(
    equation: str, of: str, statement: str, measured: float, expected: float, error: float, reason: str = SAMPLING
) -> Row:
    """Return a row that passes when measured is within 6 standard errors of expected."""
    z = (measured - expected) / error
    passed = bool(math.isfinite(z) and abs(z) < SIGMAS)
    return Row(equation, of, statement, float(measured), float(expected), f"|z| < 6, z = {z:+.1f}", reason, passed)


def misprint(
    equation: str,
    of: str,
    statement: str,
    forms: Sequence[float],
    expected: float,
    tolerance: float,
    reason: str,
) -> Row:
    """Return a row that passes when of two forms the corrected one is within tolerance and the printed one is not.

    forms: what the corrected and the printed form give; see MISS.
    """
    corrected, printed = forms
    row = agrees(equation, of, statement, corrected, expected, tolerance, reason)
    passed = row.passed and bool(abs(printed - expected) > MISS * tolerance)
    return replace(row, passed=passed, printed=float(printed))


Check = Callable[[], list[Row]]

GROUPS = ("traffic", "burgers", "cole_hopf", "local_entropy", "langevin", "homogenisation", "optimizer")
CHECKS: dict[str, Check] = {}
"""Full name, "group.name" -> check, in the order of the table."""


def check(group: str) -> Callable[[Check], Check]:
    """Register a function without arguments as a check of the group, under its own name."""
    if group not in GROUPS:
        raise ValueError(f"group={group}: must be one of {', '.join(GROUPS)}")

    def register(function: Check) -> Check:
        CHECKS[f"{group}.{function.__name__}"] = function
        return function

    return register


Experiment = TypeVar("Experiment", bound=Callable[..., Any])
_EXPERIMENTS: list[Any] = []


def experiment(function: Experiment) -> Experiment:
    """Keep what a function returns until forget_experiments: several checks and the figures share it."""
    kept = functools.cache(function)
    _EXPERIMENTS.append(kept)
    return kept  # pyright: ignore[reportReturnType]


def forget_experiments() -> None:
    """Forget all results, so that the next run measures anew."""
    for kept in _EXPERIMENTS:
        kept.cache_clear()
