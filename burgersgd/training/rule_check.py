"""Checks the contract of a rule once, when a fleet is built; a violation raises an error of one line."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor

from burgersgd.optimizers.protocol import Rule
from burgersgd.training.replicas import apart

ATTRIBUTES = ("gradients_per_cycle", "gradients_per_batch", "replicas", "noisy", "elementwise", "normed")
FUNCTIONS = ("coefficients", "init", "gradient_at", "step", "end_cycle", "evaluate_at")
MORE = ("diagnostics", "stability", "budget_key")
COLUMNS = 10_000
"""Number of columns to which large states are reduced for the checks, which hold some ten copies of them."""


def check_attributes(rule: Rule) -> None:
    """Raise ValueError for a rule that lacks an attribute of the contract, or has a count below 1."""
    name = type(rule).__name__
    missing = [key for key in (*ATTRIBUTES, *FUNCTIONS, *MORE) if not hasattr(rule, key)]
    if missing:
        raise ValueError(
            f"{name}: must have {missing[0]}; burgersgd.optimizers.protocol.RuleDefaults has defaults for most"
        )
    for key in ("gradients_per_cycle", "gradients_per_batch", "replicas"):
        count = getattr(rule, key)
        if not (isinstance(count, int) and count >= 1) and not (key == "replicas" and count is None):
            raise ValueError(f"{name}.{key}={count}: must be at least 1")
    parameters = list(inspect.signature(rule.step).parameters)
    if len(parameters) != 5:
        raise ValueError(f"{name}.step: takes ({', '.join(parameters)}), must take (c, state, grad, norm, xi)")


def check_rule(rule: Rule, c: Any, state: Any) -> None:
    """Call the functions of a rule for the first run, or all its replicas, on copies.

    c and state are those of all runs at the first step. Raises ValueError where a function returns a value of the wrong
    type or shape, writes into its arguments, keeps data from an earlier call, draws its own random numbers, or lets one
    run change another.
    """
    name, kind = type(rule).__name__, cast("Any", type(state))
    if not (isinstance(state, tuple) and hasattr(state, "_fields")):
        raise ValueError(f"{name}.init: must return a NamedTuple of tensors [runs, d] or None, not {_kind(state)}")
    shapes = {field.shape for field in state if field is not None}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"{name}.init: must return tensors [runs, d], not {_kind(state)}")
    rows = rule.replicas or 1
    row: Any = type(c)(*(field[:rows] for field in c))
    one: Any = kind(*(None if field is None else field[:rows] for field in state))
    d = next(iter(shapes))[1]
    if d > COLUMNS:
        try:
            _check_functions(rule, _narrow(row, d), _narrow(one, d))
            return
        except (RuntimeError, IndexError):  # the rule needs all of its columns
            pass
    _check_functions(rule, row, one)


def _check_functions(rule: Rule, row: Any, state: Any) -> None:
    """Raise ValueError as check_rule does; row and state are those of one run, or of all its replicas."""
    name, kind, rows = type(rule).__name__, cast("Any", type(state)), rule.replicas or 1
    some = next(field for field in state if field is not None)
    runs = rule.replicas is not None  # some functions then see runs, not rows
    xi = torch.zeros_like(some) if rule.noisy else None
    for function in (*FUNCTIONS[2:], "normed", "diagnostics"):
        if getattr(rule, function) is None:
            continue
        one: Any = kind(*(None if field is None else field.clone() for field in state))
        grad, norm = torch.zeros_like(some), torch.zeros_like(some[:, :1])
        at = row
        if runs and function in ("end_cycle", "evaluate_at", "diagnostics"):
            at, one = apart(row, rows), apart(one, rows)
        exact = type(at)(*(field.cpu().double() for field in at))
        arguments = {
            "step": (row, one, grad, norm, xi),
            "normed": (row, one, grad),
            "evaluate_at": (one,),
            "diagnostics": (exact, one),
        }.get(function, (at, one))
        inputs = [t for t in (*at, *one, grad, norm, xi) if t is not None]
        versions = [t._version for t in inputs]
        with torch.no_grad():
            result = getattr(rule, function)(*arguments)
        if [t._version for t in inputs] != versions:
            raise ValueError(f"{name}.{function}: changes its arguments; must return new tensors instead")
        if function == "diagnostics":
            if not isinstance(result, dict) or not all(isinstance(v, Tensor) for v in result.values()):
                raise ValueError(f"{name}.diagnostics: must return a dict of tensors [runs, 1], not {_kind(result)}")
            for key, value in result.items():
                if value.numel() not in (1, rows):
                    raise ValueError(f"{name}.diagnostics: {key} is {_kind(value)}, must be one number for every run")
            continue
        if function in ("gradient_at", "evaluate_at", "normed"):
            shape = some[:1].shape if runs and function == "evaluate_at" else some.shape
            if not isinstance(result, Tensor) or result.shape != shape:
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
                    f"{name}.{function}: field {field} of the state becomes {_kind(after)}, must remain {_kind(before)}"
                )
    _check_runs_apart(rule, row, state)


def _check_runs_apart(rule: Rule, c: Any, state: Any) -> None:
    """Raise ValueError where a function returns other results for two runs together than alone, or in a second call.

    c and state are those of one run, or of all its replicas; the second run has the same ones and other gradients.
    """
    rows = rule.replicas or 1
    c, state = _concatenated(c, c), _concatenated(state, state)
    like = next(field for field in state if field is not None)
    scale = torch.ones_like(like[:, :1])
    scale[rows:] = 3.0
    number = torch.arange(1, like.numel() + 1, device=like.device).view(like.shape).to(like.dtype)
    grad, noise = scale * torch.cos(1.7 * number), torch.sin(0.9 * number) if rule.noisy else None
    norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)

    def called(function: str, run: slice, apart_from: bool) -> list[Tensor]:
        """Return the tensors that a function returns for a slice of the two runs."""
        own = slice(run.start * rows, run.stop * rows)
        at, one = _of(c, own), _of(state, own)
        if apart_from:
            at, one = apart(at, rows), apart(one, rows)
        more = () if noise is None else (noise[own],)
        given = {
            "normed": (at, one, grad[own]),
            "step": (at, one, grad[own], norm[own], *(more or (None,))),
            "evaluate_at": (one,),
            "diagnostics": (type(at)(*(field.cpu().double() for field in at)), one),
        }.get(function, (at, one))
        result = getattr(rule, function)(*given)
        values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else [result]
        return [value for value in values if value is not None]

    with torch.no_grad():
        for function in ("normed", *FUNCTIONS[2:], "diagnostics"):
            if getattr(rule, function) is None:
                continue
            seen = rule.replicas is not None and function in ("end_cycle", "evaluate_at", "diagnostics")
            together, again = (called(function, slice(0, 2), seen) for _ in range(2))
            if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(together, again, strict=True)):
                raise ValueError(
                    f"{type(rule).__name__}.{function}: returns different numbers when it is called again; must keep "
                    "nothing outside of the state, and take random numbers from xi"
                )
            alone = zip(*(called(function, slice(run, run + 1), seen) for run in range(2)), strict=True)
            before = [field for field in state if field is not None] if function in ("step", "end_cycle") else []
            for i, (both, parts) in enumerate(zip(together, alone, strict=True)):
                one_by_one = torch.cat([part.reshape(-1) for part in parts]).cpu().double()
                both = both.reshape(-1).cpu().double().expand_as(one_by_one)  # a diagnostic may be a single number
                moved = (both - before[i].reshape(-1).cpu()).abs() if before else torch.zeros_like(both)
                rounding = 32 * torch.finfo(like.dtype).eps * both.abs().nan_to_num(0, 0, 0).max()
                allowed = 1e-3 * moved.nan_to_num(0, 0, 0).max() + rounding
                if not bool(((both - one_by_one).abs().nan_to_num() <= allowed).all()):
                    raise ValueError(
                        f"{type(rule).__name__}.{function}: the other runs of a fleet change a run; must treat each "
                        "row separately (sums and norms with dim=-1, keepdim=True; no branches on values)"
                    )
            if function == "step":  # from now on the two runs have different states
                stepped = iter(together)
                fields = [None if field is None else next(stepped) for field in state]
                state = type(state)(*(f * scale if f is not None and f.is_floating_point() else f for f in fields))


def _narrow(fields: Any, d: int) -> Any:
    """Return coefficients or a state with the first COLUMNS columns of fields that have d of them, to save memory."""
    return type(fields)(*(f if f is None or f.shape[-1] != d else f[..., :COLUMNS] for f in fields))


def _concatenated(one: Any, other: Any) -> Any:
    """Return two states, or coefficients, concatenated to those of one fleet."""
    fields = zip(one, other, strict=True)
    return type(one)(*(None if a is None else torch.cat([a, b]) for a, b in fields))


def _of(fields: Any, rows: slice) -> Any:
    """Return some rows of a state or of coefficients as views, so that a second call sees writes of the first one."""
    return type(fields)(*(None if field is None else field[rows] for field in fields))


def _kind(value: Any) -> str:
    """Return a short description of a value."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"{type(value).__name__}({', '.join(map(_kind, value))})"
    return "None" if value is None else type(value).__name__
