"""What a rule promises, looked at once when a fleet is built, so that a slip is one line and no wrong number."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from burgersgd.optimizers.protocol import Rule


def check_rule(rule: Rule, c: Any, state: Any) -> None:
    """Call the functions of a rule for the first run, on copies.

    c and state are those of all runs at the first step. Raises ValueError where a function returns what is no state or
    no point, or writes into its arguments.
    """
    name, kind = type(rule).__name__, cast("Any", type(state))
    if not (isinstance(state, tuple) and hasattr(state, "_fields")):
        raise ValueError(f"{name}.init: must return a NamedTuple of tensors [runs, d] or None, not {_kind(state)}")
    shapes = {field.shape for field in state if field is not None}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"{name}.init: must return tensors [runs, d], not {_kind(state)}")
    row: Any = type(c)(*(field[:1] for field in c))
    some = next(field for field in state if field is not None)[:1]
    xi = torch.zeros_like(some) if rule.noisy else None
    for function in ("step", "end_cycle", "gradient_at", "evaluate_at"):
        one: Any = kind(*(None if field is None else field[:1].clone() for field in state))
        grad = torch.zeros_like(some)
        arguments = {"step": (row, one, grad, xi), "evaluate_at": (one,)}.get(function, (row, one))
        inputs = [t for t in (*row, *one, grad, xi) if t is not None]
        versions = [t._version for t in inputs]
        with torch.no_grad():
            result = getattr(rule, function)(*arguments)
        if [t._version for t in inputs] != versions:
            raise ValueError(f"{name}.{function}: writes into its arguments; must return new tensors")
        if function in ("gradient_at", "evaluate_at"):
            if not isinstance(result, Tensor) or result.shape != some.shape:
                raise ValueError(f"{name}.{function}: must return a tensor [runs, d], not {_kind(result)}")
            continue
        if type(result) is not kind:
            raise ValueError(f"{name}.{function}: must return a {kind.__name__}, not {_kind(result)}")
        for field, before, after in zip(one._fields, one, result, strict=True):
            same = after is before or (
                isinstance(after, Tensor)
                and before is not None
                and (after.shape, after.dtype) == (before.shape, before.dtype)
            )
            if not same:
                raise ValueError(
                    f"{name}.{function}: field {field} of the state is {_kind(after)}, must stay {_kind(before)}"
                )


def _kind(value: Any) -> str:
    """Return a value in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"{type(value).__name__}({', '.join(map(_kind, value))})"
    return "None" if value is None else type(value).__name__
