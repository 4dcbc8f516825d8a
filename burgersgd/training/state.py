"""The state of the runs of a fleet: tensors of its own, written in place.

A rule is a pure function and may return what it likes: an old vector in another field, one tensor in two fields, its
own argument xi. Here that becomes a state whose fields never share memory with one another or with anything else.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor


def owned(state: Any) -> Any:
    """Return the same state in memory of its own: every field contiguous, no two of them the same tensor."""
    fields = [None if field is None else field.clone(memory_format=torch.contiguous_format) for field in state]
    return type(state)(*fields)


def assign(old: Any, new: Any, alive: Bool[Tensor, " runs"] | None = None) -> None:
    """Write a new state over an old one in place, for living runs (None: for all of them).

    Fields of `new` may be fields of `old` in another place, or views of them, and may be the same tensor: what is
    still needed is copied before anything is written. Fields that a rule does not keep are None in both.
    """
    pairs = [(before, after) for before, after in zip(old, new, strict=True) if after is not before]
    if not pairs:
        return
    if alive is not None:  # torch.where copies
        kept = alive[:, None]
        values = [torch.where(kept, after, before) for before, after in pairs]
    else:
        places = {_place(field) for field in old if field is not None}
        values = [after.clone() if _place(after) in places else after for _, after in pairs]
    for (before, _), value in zip(pairs, values, strict=True):
        before.copy_(value)


def _place(tensor: Tensor) -> int:
    """Return where the tensor's memory begins, the same for all views of it."""
    return tensor.untyped_storage().data_ptr()
