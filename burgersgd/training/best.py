"""Keeps the best x of every run of a fleet by validation error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from burgersgd.training.fleet import Fleet, Point


class Best:
    """The best x of every run so far, by lowest validation error, then by lowest loss, then the latest.

    On a small validation part many points share the lowest error, and the earliest of them is the worst choice.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.x = fleet.x.clone()
        self.error = torch.full((fleet.n_runs,), math.inf, dtype=torch.float64)
        self.loss = self.error.clone()
        self.at = torch.zeros(fleet.n_runs, dtype=torch.int64)

    def update(self, point: Point, fleet: Fleet) -> None:
        """Update the best x by a point; points without a validation error are ignored."""
        if point.validation_error is None:
            return
        assert point.validation_loss is not None
        error, loss = point.validation_error.double(), point.validation_loss.double()
        better = (error < self.error) | ((error == self.error) & (loss <= self.loss))
        better &= point.alive & torch.isfinite(loss)
        if not bool(better.any()):
            return
        self.error = torch.where(better, error, self.error)
        self.loss = torch.where(better, loss, self.loss)
        self.at = torch.where(better, point.evaluations, self.at)
        torch.where(better.to(self.x.device)[:, None], fleet.x, self.x, out=self.x)

    def snapshot(self, run: int) -> dict[str, Tensor]:
        """Return the data of one run, on the CPU."""
        return {"x": self.x[run].cpu().clone(), "error": self.error[run], "loss": self.loss[run], "at": self.at[run]}

    def restore(self, snapshots: Sequence[Mapping[str, Tensor]]) -> None:
        """Restore the snapshots of all runs, in their order."""
        for name in ("x", "error", "loss", "at"):
            getattr(self, name).copy_(torch.stack([snapshot[name] for snapshot in snapshots]))
