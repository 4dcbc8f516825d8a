"""Traces an update rule: `rule.step` is called once with symbols, and every operation writes a line of C.

A trace also proves that a rule acts element by element, since only elementwise operations on numbers of the same index
can be traced. A rule with a reduction, an index, a branch on values, or an operation that is not in the tables below
has no trace. PyTorch then applies it to the complete state.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from burgersgd.optimizers.protocol import Rule


class UntraceableError(TypeError):
    """The rule uses an operation that cannot be written in C; the message names it."""


class Layout(NamedTuple):
    """The types of state and coefficients, and which fields of the state are tensors."""

    state_type: type[Any]
    present: tuple[bool, ...]
    coefficients_type: type[Any]
    wide: tuple[int, ...] = ()
    """Indices of the coefficients that have a number for every parameter."""

    @classmethod
    def of(cls, state: Any, coefficients: Any) -> Layout:
        """Return the layout of a state and of coefficients ``[..., 1]`` or ``[..., d]``."""
        present = tuple(field is not None for field in state)
        wide = tuple(i for i, field in enumerate(coefficients) if field.shape[-1] != 1)
        return cls(type(state), present, type(coefficients), wide)


class Trace(NamedTuple):
    """C lines of rule.step or end_cycle for one number: state s0, ..., coefficients c0, ..., gradient g."""

    lines: tuple[str, ...]
    """Definitions of variables, in order."""
    stores: tuple[tuple[int, str], ...]
    """Pairs (index of a field, name of its new value), without the fields that do not change."""
    normed_lines: tuple[str, ...] = ()
    """Definitions of rule.normed, in order."""
    normed: str | None = None
    """Name of the value that rule.normed returns; None where the rule has no such function."""


@functools.cache
def trace(rule: Rule, layout: Layout) -> Trace | None:
    """Return the trace of rule.step; None where the rule is not elementwise, or cannot be shown to be."""
    try:
        return traced(rule, layout) if rule.elementwise else None
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError, NotImplementedError):
        return None  # errors of a rule that uses shapes or values


def traced(rule: Rule, layout: Layout) -> Trace:
    """Return the trace of rule.step. Raises UntraceableError, or any error of the rule when called with symbols."""
    lines: list[str] = []
    c, state, grad = _arguments(layout, lines)
    norm: Any = Symbol("norm", lines)
    xi: Any = Symbol("xi", lines) if rule.noisy else None
    stores = _stores("step", layout, state, rule.step(c, state, grad, norm, xi))
    if rule.normed is None:
        return Trace(tuple(lines), stores)
    normed_lines: list[str] = []
    normed = rule.normed(*_arguments(layout, normed_lines))
    if not isinstance(normed, Symbol):
        raise UntraceableError(f"normed gives a {type(normed).__name__}")
    return Trace(tuple(lines), stores, tuple(normed_lines), normed.name)


def traced_end_cycle(rule: Rule, layout: Layout) -> Trace:
    """Return the trace of rule.end_cycle. Raises as `traced` does."""
    lines: list[str] = []
    c, state, _ = _arguments(layout, lines)
    return Trace(stores=_stores("end_cycle", layout, state, rule.end_cycle(c, state)), lines=tuple(lines))


def _stores(function: str, layout: Layout, state: Any, new: Any) -> tuple[tuple[int, str], ...]:
    """Return the fields of the state that change and the names of their new values."""
    if type(new) is not layout.state_type:
        raise UntraceableError(f"{function} returns a {type(new).__name__}, not a {layout.state_type.__name__}")
    stores = []
    for i, (before, after) in enumerate(zip(state, new, strict=True)):
        if after is before:
            continue
        if not isinstance(after, Symbol):
            raise UntraceableError(f"{function} gives {layout.state_type._fields[i]} a {type(after).__name__}")
        stores.append((i, after.name))
    return tuple(stores)


def _arguments(layout: Layout, lines: list[str]) -> tuple[Any, Any, Any]:
    """Return coefficients, state and gradient as symbols that append to lines."""
    state = layout.state_type(
        *(Symbol(f"s{i}", lines) if present else None for i, present in enumerate(layout.present))
    )
    c = layout.coefficients_type(*(Symbol(f"c{i}", lines) for i in range(len(layout.coefficients_type._fields))))
    return c, state, Symbol("g", lines)


def number(value: Any) -> str:
    """Return the C text of a symbol or a Python number. Raises UntraceableError for anything else."""
    if isinstance(value, Symbol):
        return value.name
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UntraceableError(f"no C for {value!r}")
    if math.isinf(value):
        return "(real)__builtin_inf()" if value > 0 else "(real)-__builtin_inf()"
    return '(real)__builtin_nan("")' if math.isnan(value) else f"(real){value!r}"


class Symbol:
    """A number of the rule; every operation on it appends a line of C that computes the result."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]  (symbols are compared by value, in C)

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name, self.lines = name, lines

    def new(self, expression: str) -> Symbol:
        """Return a new symbol with the value of a C expression."""
        result = Symbol(f"t{len(self.lines)}", self.lines)
        self.lines.append(f"const real {result.name} = {expression};")
        return result

    def __bool__(self) -> bool:
        raise UntraceableError("no C for a branch on values")

    def __getattr__(self, name: str) -> Callable[..., Symbol]:
        if name not in _METHODS:
            raise UntraceableError(f"no C for .{name}")
        return functools.partial(_METHODS[name], self)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in _FUNCTIONS:
            raise UntraceableError(f"no C for {function}")
        return _FUNCTIONS[function](*args, **(kwargs or {}))

    def __add__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} + {number(other)}")

    def __sub__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} - {number(other)}")

    def __mul__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} * {number(other)}")

    def __truediv__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} / {number(other)}")

    def __radd__(self, other: Any) -> Symbol:
        return self.new(f"{number(other)} + {self.name}")

    def __rsub__(self, other: Any) -> Symbol:
        return self.new(f"{number(other)} - {self.name}")

    def __rmul__(self, other: Any) -> Symbol:
        return self.new(f"{number(other)} * {self.name}")

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.new(f"{number(other)} / {self.name}")

    def __neg__(self) -> Symbol:
        return self.new(f"-{self.name}")

    def __abs__(self) -> Symbol:
        return _abs(self)

    def __pow__(self, exponent: Any) -> Symbol:
        return _pow(self, exponent)

    def __rpow__(self, base: Any) -> Symbol:
        return _pow(base, self)

    def __lt__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} < {number(other)}")

    def __le__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} <= {number(other)}")

    def __gt__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} > {number(other)}")

    def __ge__(self, other: Any) -> Symbol:
        return self.new(f"{self.name} >= {number(other)}")

    def __eq__(self, other: Any) -> Any:
        return self.new(f"{self.name} == {number(other)}")

    def __ne__(self, other: Any) -> Any:
        return self.new(f"{self.name} != {number(other)}")


def _symbol(*values: Any) -> Symbol:
    """Return the first symbol among the arguments of a function."""
    return next(value for value in values if isinstance(value, Symbol))


def _abs(a: Symbol) -> Symbol:
    return a.new(f"(real)__builtin_fabs({a.name})")


def _pow(base: Any, exponent: Any) -> Symbol:
    if isinstance(exponent, int | float) and exponent == 2:
        return base * base
    return _symbol(base, exponent).new(f"(real)__builtin_pow({number(base)}, {number(exponent)})")


def _addcmul(a: Any, b: Any, c: Any, *, value: float = 1) -> Symbol:
    first = _symbol(a, b, c)
    if value in (1, -1):
        return first.new(f"{number(a)} {'+' if value == 1 else '-'} {number(b)} * {number(c)}")
    return first.new(f"{number(a)} + {number(value)} * {number(b)} * {number(c)}")


def _addcdiv(a: Any, b: Any, c: Any, *, value: float = 1) -> Symbol:
    return _symbol(a, b, c).new(f"{number(a)} + {number(value)} * {number(b)} / {number(c)}")


def _lerp(a: Any, b: Any, weight: Any) -> Symbol:
    return _symbol(a, b, weight).new(f"lerp({number(a)}, {number(b)}, {number(weight)})")


def _where(condition: Any, a: Any, b: Any) -> Symbol:
    return _symbol(condition, a, b).new(f"{number(condition)} != 0 ? {number(a)} : {number(b)}")


def _larger(a: Any, b: Any, than: str = ">") -> Symbol:
    """Return the maximum (or the minimum); NaN if one of them is NaN, as in PyTorch."""
    x, y = number(a), number(b)
    return _symbol(a, b).new(f"{x} != {x} || {x} {than} {y} ? {x} : {y}")


def _clamp(a: Symbol, min: Any = None, max: Any = None) -> Symbol:
    result = a
    if min is not None:
        result = result.new(f"{result.name} < {number(min)} ? {number(min)} : {result.name}")
    if max is not None:
        result = result.new(f"{result.name} > {number(max)} ? {number(max)} : {result.name}")
    return result


def _libm(name: str, a: Symbol) -> Symbol:
    return a.new(f"(real)__builtin_{name}({a.name})")


_OPERATIONS: dict[str, Callable[..., Symbol]] = {
    **{name: functools.partial(_libm, name) for name in ("sqrt", "exp", "log", "log1p", "expm1", "tanh", "erf")},
    "abs": _abs,
    "sign": lambda a: a.new(f"(real)(({a.name} > 0) - ({a.name} < 0))"),
    "square": lambda a: a * a,
    "rsqrt": lambda a: 1 / a.sqrt(),
    "reciprocal": lambda a: 1 / a,
    "neg": lambda a: -a,
    "sigmoid": lambda a: 1 / (1 + (-a).exp()),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": _pow,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    "where": _where,
    "maximum": _larger,
    "minimum": functools.partial(_larger, than="<"),
    "clamp": _clamp,
    "zeros_like": lambda a: a.new("(real)0"),
    "ones_like": lambda a: a.new("(real)1"),
    "clone": lambda a: a,
}
"""The operations that act on each number by itself, as functions of torch."""

_FUNCTIONS: dict[Any, Callable[..., Symbol]] = {getattr(torch, name): c for name, c in _OPERATIONS.items()}
_METHODS = {name: c for name, c in _OPERATIONS.items() if hasattr(Tensor, name)}
_METHODS["where"] = lambda a, condition, b: _where(condition, a, b)
