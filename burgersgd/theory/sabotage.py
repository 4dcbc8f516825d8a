"""Tests whether the rows of `burgersgd verify` can fail: with each function that a row names made wrong, it must fail.

A wrong function returns 1.07 v + 0.013 for every number v that it should return. A row that still holds, or whose
function was never called, checks nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from burgersgd.theory.verify_rows import CHECKS, Row, forget_experiments

FACTOR, SHIFT = 1.07, 0.013


def spoiled(value: Any) -> Any:
    """Return 1.07 v + 0.013 for every number v in a value; whole numbers are indices and stay in their range."""
    if isinstance(value, float | np.floating):
        return FACTOR * value + SHIFT
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        return FACTOR * value + SHIFT
    if isinstance(value, torch.Tensor):
        wrong = FACTOR * value + SHIFT
        return wrong if value.is_floating_point() else wrong.long().clamp(max=int(value.max()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: spoiled(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(spoiled, value))
    if isinstance(value, tuple | list):
        return type(value)(map(spoiled, value))
    if callable(value):
        return lambda *arguments, **options: spoiled(value(*arguments, **options))
    return value


@contextlib.contextmanager
def sabotaged(name: str) -> Iterator[Callable[[], int]]:
    """Make a function wrong wherever the package refers to it; yield a function that returns the number of its calls.

    name is the path of a function, method or property below `burgersgd.theory.` or `burgersgd.`. Raises LookupError for
    an unknown name.
    """
    owner, attribute = _owner(name)
    right = vars(owner)[attribute]
    function: Any = right.fget if isinstance(right, property) else right
    calls = 0

    @functools.wraps(function)
    def wrong(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        found = function(*arguments, **options)
        return spoiled(found)

    replacement = property(wrong) if isinstance(right, property) else wrong
    places = [owner] if isinstance(owner, type) else [m for n, m in sys.modules.items() if n.startswith("burgersgd")]
    patched = [(place, key) for place in places for key, value in list(vars(place).items()) if value is right]
    for place, key in patched:
        setattr(place, key, replacement)
    try:
        yield lambda: calls
    finally:
        for place, key in patched:
            setattr(place, key, right)


def _owner(name: str) -> tuple[Any, str]:
    """Return the module or class that defines a function, and the function's name in it."""
    path, _, attribute = name.rpartition(".")
    for prefix in ("burgersgd.theory", "burgersgd"):
        with contextlib.suppress(ImportError, AttributeError):
            owner = pkgutil.resolve_name(f"{prefix}.{path}")
            for place in getattr(owner, "__mro__", [owner]):
                if attribute in vars(place):
                    return place, attribute
    raise LookupError(f"{name}: no such function")


@dataclasses.dataclass(frozen=True)
class Trial:
    """The outcome of a check while one function was wrong: how many of the rows that name the function failed."""

    check: str
    function: str
    calls: int
    held: list[Row]  # rows that name the function and still hold
    failed: int  # number of rows that name the function and fail
    crash: str | None = None  # an exception of the check, which does not count as a failed row

    @property
    def passed(self) -> bool:
        """Whether the function was called and every row that names it failed."""
        return self.calls > 0 and self.failed > 0 and not self.held and self.crash is None

    def __str__(self) -> str:
        """Return one line with the check, the function and the outcome."""
        tried = f"{self.check}, {self.function}"
        if self.crash is not None:
            return f"{tried}: {self.crash}"
        if self.calls == 0:
            return f"{tried}: was not called"
        return "; ".join([f"{tried}: {self.failed} rows notice", *(f"HOLDS: {row.statement}" for row in self.held)])


def trials(check: str, rows: Iterable[Row]) -> Iterator[Trial]:
    """Yield one trial for each function that these rows of the check name."""
    names = list(dict.fromkeys(name for row in rows for name in row.functions))
    for name in names:
        forget_experiments()
        with sabotaged(name) as calls, np.errstate(all="ignore"):
            try:
                found, crash = CHECKS[check](), None
            except Exception as error:  # a wrong function may raise anything
                found, crash = [], f"{type(error).__name__}: {error}"
        named = [row for row in found if name in row.functions]
        held = [row for row in named if row.passed]
        yield Trial(check, name, calls(), held, sum(not row.passed for row in named), crash)
    forget_experiments()
