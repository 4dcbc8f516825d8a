"""The state of the runs of a fleet, in tensors that are owned by it and written in place.

A rule is a pure function and may return any tensors: an old vector in another field, one tensor in two fields, its
argument xi. This module copies them to a state whose fields never share memory with one another or with other tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RECORDS = ("alive", "diverged_at", "last_loss", "loss_sum", "grad_norm", "loss_limit")
"""Names of the records of every run in addition to the rule's state, each ``[runs]``."""


def owned(state: Any) -> Any:
    """Return a copy of the state: every field is contiguous, and no two fields share memory."""
    fields = [None if field is None else field.clone(memory_format=torch.contiguous_format) for field in state]
    return type(state)(*fields)


def assign(old: Any, new: Any, alive: Bool[Tensor, " runs"] | None = None) -> None:
    """Write a new state over an old one in place, for the runs that are `alive` (None: for all runs).

    Fields of `new` may be other fields of `old`, or views of them, and may be the same tensor: tensors that are still
    needed are copied before anything is written. Fields that a rule does not use are None in both.
    """
    pairs = [(before, after) for before, after in zip(old, new, strict=True) if after is not before]
    if not pairs:
        return
    if alive is not None:  # no further copies: torch.where returns new tensors
        kept = alive[:, None]
        values = [torch.where(kept, after, before) for before, after in pairs]
    else:
        addresses = {_address(field) for field in old if field is not None}
        values = [after.clone() if _address(after) in addresses else after for _, after in pairs]
    for (before, _), value in zip(pairs, values, strict=True):  # torch._foreach_copy_ is miscompiled by torch.compile
        before.copy_(value)


def _address(tensor: Tensor) -> int:
    """Return the address of the tensor's storage, which all views of it share."""
    return tensor.untyped_storage().data_ptr()


def limit_after(first_loss: Float[Tensor, " runs"], factor: float) -> Float[Tensor, " runs"]:
    """Return the loss above which a run has diverged: factor times max(1, first loss)."""
    return (first_loss.clamp(min=1) * factor).clamp(max=torch.finfo(first_loss.dtype).max)


@dataclass
class RunState:
    """Everything that changes while R runs train."""

    rule: Any
    """The state of the rule: a NamedTuple of tensors ``[runs, d]`` that keep their place in memory, or None."""
    alive: Bool[Tensor, " runs"]
    """False where a run has diverged or was stopped: its state is frozen."""
    diverged_at: Int[Tensor, " runs"]
    """Number of the gradient evaluation that was not finite or too large; -1 where there is none."""
    last_loss: Float[Tensor, " runs"]
    loss_sum: Float[Tensor, " runs"]
    """Sum of the mini-batch losses since it was last reset."""
    grad_norm: Float[Tensor, " runs"]
    loss_limit: Float[Tensor, " runs"]
    """Largest loss that counts as healthy, set from the first loss; infinity and NaN never do."""
    points: int = 1
    """Rows of a run: the replicas of its rule. All of them are alive, or none; losses and norms are their means."""
    buffers: dict[str, Tensor] | None = None
    """The buffers of the model that training changes (batch statistics), ``[runs, ...]`` by name."""
    all_alive: bool = True
    """Whether all runs are alive as far as the host knows: exact on the CPU, updated at log points on other devices."""

    @classmethod
    def start(cls, rule_state: Any, points: int = 1, buffers: dict[str, Tensor] | None = None) -> RunState:
        """Return the initial state of runs; all tensors are copied."""
        some = next(field for field in rule_state if field is not None)
        nothing = some.new_zeros(len(some))
        return cls(
            rule=owned(rule_state),
            alive=torch.ones(len(some), dtype=torch.bool, device=some.device),
            diverged_at=torch.full((len(some),), -1, device=some.device),
            last_loss=torch.full_like(nothing, math.nan),
            loss_sum=nothing.clone(),
            grad_norm=nothing.clone(),
            loss_limit=torch.full_like(nothing, torch.finfo(some.dtype).max),
            points=points,
            buffers=None if buffers is None else {name: buffer.clone() for name, buffer in buffers.items()},
        )

    @property
    def on_cpu(self) -> bool:
        """Whether the state is on the CPU, where reading a number does not have to wait for a device."""
        return self.alive.device.type == "cpu"

    def records(self) -> dict[str, Tensor]:
        """Return the records of every run, without the rule's state, by name."""
        return {name: getattr(self, name) for name in RECORDS}

    def assign(self, new: Any) -> None:
        """Write a new state of the rule over the old one, for the living runs."""
        assign(self.rule, new, None if self.all_alive and self.on_cpu else self.alive)

    def assign_buffers(self, new: Mapping[str, Tensor]) -> None:
        """Write new buffers over the old ones, for the living runs."""
        for name, buffer in (self.buffers or {}).items():
            alive = self.alive.view(-1, *[1] * (buffer.dim() - 1))
            buffer.copy_(torch.where(alive, new[name], buffer))

    def freeze(
        self, step: int, loss: Float[Tensor, " runs"], norm: Float[Tensor, " runs"]
    ) -> tuple[Float[Tensor, " runs"], Float[Tensor, " runs"]]:
        """Mark living runs with an unhealthy loss or gradient as diverged; return the losses and norms to record."""
        alive = self.alive & (loss <= self.loss_limit) & torch.isfinite(norm)
        self.diverged_at = torch.where(self.alive & ~alive, step, self.diverged_at)
        self.alive = alive
        if self.on_cpu:
            self.all_alive = bool(alive.all())
        return torch.where(alive, loss, self.last_loss), torch.where(alive, norm, self.grad_norm)

    def record(
        self, step: int, loss: Float[Tensor, " runs"], norm: Float[Tensor, " runs"], explosion_factor: float
    ) -> None:
        """Record the losses and gradient norms of an evaluation."""
        self.last_loss, self.grad_norm = loss, norm
        self.loss_sum += loss
        if step == 0:
            self.loss_limit.copy_(limit_after(loss, explosion_factor))

    def join(self) -> None:
        """Combine the records of the rows of a run: if one has diverged, all have; losses and norms are averaged."""
        if self.points == 1:
            return
        alive, diverged_at, last_loss, loss_sum, grad_norm, loss_limit = (
            record.view(-1, self.points) for record in self.records().values()
        )
        alive.copy_(alive.all(1, keepdim=True).expand_as(alive))
        diverged_at.copy_(diverged_at.amax(1, keepdim=True).expand_as(diverged_at))
        loss_limit.copy_(loss_limit.amax(1, keepdim=True).expand_as(loss_limit))
        for record in (last_loss, loss_sum, grad_norm):
            record.copy_(record.mean(1, keepdim=True).expand_as(record))

    def of_runs(self, record: Tensor) -> Tensor:
        """Return the record of every run, ``[runs]``, given that of every row, ``[rows]``."""
        return record if self.points == 1 else record[:: self.points]

    def stop(self, runs: Bool[Tensor, " runs"]) -> None:
        """Stop training some runs, which did not diverge; their state is kept."""
        self.alive &= ~runs.to(self.alive.device).repeat_interleave(self.points)
        self.all_alive = bool(self.alive.all())

    def snapshot(self, run: int, x: Float[Tensor, "runs d"]) -> dict[str, Any]:
        """Return all data needed to resume one run; tensors are copies on the CPU. x is the result of evaluate_at.

        Random numbers, batches and coefficients are functions of the step and need not be saved.
        """
        saved: dict[str, Any] = {"x": _saved(x, run)}
        kept = [(name, field) for name, field in _fields(self.rule) if field is None or field is not x]
        saved["state"] = {name: _saved(self._of_run(field), run) for name, field in kept}
        if self.buffers is not None:
            saved["buffers"] = {name: _saved(self._rows_apart(b), run) for name, b in self.buffers.items()}
        return saved | {name: _saved(self.of_runs(record), run) for name, record in self.records().items()}

    def restore(self, snapshots: Sequence[Mapping[str, Any]], x: Float[Tensor, "runs d"]) -> None:
        """Restore the snapshots of all runs, in their order. Raises ValueError where they do not match the state."""
        if len(snapshots) * self.points != len(self.alive):
            raise ValueError(f"{len(snapshots)} snapshots for {len(self.alive) // self.points} runs")
        for name, rows in _fields(self.rule):
            field = self._of_run(rows)
            saved = [snapshot["x"] if rows is x else snapshot["state"].get(name) for snapshot in snapshots]
            if any((value is None) != (field is None) for value in saved):
                raise ValueError(f"the state has {'no' if field is None else 'a'} {name}, the snapshot differs")
            for value in saved:
                if field is not None and (value.shape != field.shape[1:] or value.dtype != field.dtype):
                    raise ValueError(f"{name} of the snapshot is {value.dtype} {list(value.shape)}, the state differs")
            if field is not None:
                field.copy_(torch.stack(saved))
        for name, buffer in (self.buffers or {}).items():
            self._rows_apart(buffer).copy_(torch.stack([snapshot["buffers"][name] for snapshot in snapshots]))
        for name, record in self.records().items():
            record.copy_(torch.stack([snapshot[name] for snapshot in snapshots]).repeat_interleave(self.points))
        self.all_alive = bool(self.alive.all())

    def _rows_apart(self, buffer: Tensor) -> Tensor:
        return buffer if self.points == 1 else buffer.unflatten(0, (-1, self.points))

    def _of_run(self, field: Tensor | None) -> Tensor | None:
        """Return a vector of the state by run: ``[runs, d]``, or ``[runs, points, d]`` with several rows per run."""
        return field if field is None or self.points == 1 else field.view(-1, self.points, field.shape[1])


def _saved(tensor: Tensor | None, run: int) -> Any:
    return None if tensor is None else tensor[run].cpu().clone()


def _fields(state: Any) -> list[tuple[str, Tensor | None]]:
    return list(zip(state._fields, state, strict=True))
