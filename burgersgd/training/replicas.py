"""The replica axis of a rule: rows of the fleet inside the engines, an axis of its own where the rule looks at it.

A run of a rule with n replicas is n rows, one after the other. All of them are alive, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burgersgd.optimizers.protocol import Rule


def end_cycle(rule: Rule, c: Any, state: Any) -> Any:
    """Return rule.end_cycle of a state ``[rows, d]``."""
    if rule.replicas is None:
        return rule.end_cycle(c, state)
    new = rule.end_cycle(apart(c, rule.replicas), apart(state, rule.replicas))
    return type(new)(*(None if field is None else field.flatten(0, 1) for field in new))


def evaluate_at(rule: Rule, state: Any) -> Tensor:
    """Return rule.evaluate_at of a state ``[rows, d]``: the points ``[runs, d]``."""
    return rule.evaluate_at(state if rule.replicas is None else apart(state, rule.replicas))


def apart(fields: Any, replicas: int) -> Any:
    """Return a state or coefficients with ``[rows, ...]`` seen as ``[runs, replicas, ...]``."""
    return type(fields)(*(None if field is None else field.unflatten(0, (-1, replicas)) for field in fields))


def purpose_of(purpose: int, replica: int) -> int:
    """Return the word of the streams' counter that stands for a purpose of one replica; replica 0 has the run's own."""
    return purpose + (replica << 16)


def rows_of(replicas: int | None, draw: Callable[[int], Tensor]) -> Tensor:
    """Return what draw(replica) gives for every run, ``[steps, runs, ...]``, for all rows: ``[steps, rows, ...]``."""
    if replicas is None:
        return draw(0)
    return torch.stack([draw(replica) for replica in range(replicas)], dim=2).flatten(1, 2)
