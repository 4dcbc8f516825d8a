"""The replica axis of a rule: engines see replicas as rows of the fleet, some functions of rules as a separate axis.

A run of a rule with n replicas consists of n consecutive rows. All of them are alive, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burgersgd.optimizers.protocol import Rule


def end_cycle(rule: Rule, c: Any, state: Any) -> Any:
    """Return the result of rule.end_cycle for a state ``[rows, d]``."""
    if rule.replicas is None:
        return rule.end_cycle(c, state)
    new = rule.end_cycle(apart(c, rule.replicas), apart(state, rule.replicas))
    return type(new)(*(None if field is None else field.flatten(0, 1) for field in new))


def evaluate_at(rule: Rule, state: Any) -> Tensor:
    """Return the result of rule.evaluate_at for a state ``[rows, d]``: the points ``[runs, d]``."""
    return rule.evaluate_at(state if rule.replicas is None else apart(state, rule.replicas))


def apart(fields: Any, replicas: int) -> Any:
    """Return a state or coefficients ``[rows, ...]``, reshaped to ``[runs, replicas, ...]``."""
    return type(fields)(*(None if field is None else field.unflatten(0, (-1, replicas)) for field in fields))


def purpose_of(purpose: int, replica: int) -> int:
    """Return the word of the streams' counter for a purpose of one replica; that of replica 0 is the purpose itself."""
    return purpose + (replica << 16)


def rows_of(replicas: int | None, draw: Callable[[int], Tensor]) -> Tensor:
    """Return the results ``[steps, runs, ...]`` of draw(replica) for all replicas as rows: ``[steps, rows, ...]``."""
    if replicas is None:
        return draw(0)
    return torch.stack([draw(replica) for replica in range(replicas)], dim=2).flatten(1, 2)
