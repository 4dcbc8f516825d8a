"""Decides which runs of a fleet to stop early, by comparing its runs at their validation points.

A rule is called with every point of the fleet and returns the runs to stop, bool ``[runs]``. All runs of a fleet are at
the same gradient evaluation, so rules neither wait for other runs nor use a study.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from burgersgd.config import SweepConfig


class Point(Protocol):
    """The data that a rule uses: see Point in training/fleet.py."""

    @property
    def evaluations(self) -> int:
        """Number of gradient evaluations of every run."""
        ...

    @property
    def alive(self) -> Tensor:
        """Runs that neither diverged nor were stopped, bool ``[runs]``."""
        ...

    @property
    def validation_error(self) -> Tensor | None:
        """Validation errors ``[runs]``; None where they were not measured."""
        ...


class MedianPruning:
    """Stops a run whose lowest error so far is above the median, over the runs of its fleet, of the mean error so far.

    A run that was stopped keeps its mean; that of a diverged one is infinite. warm_up: gradient evaluations before
    which no run is stopped. (Golovin et al. 2017, Google Vizier, 3.2.2, for runs that start together.) Optuna's
    MedianPruner uses the current errors instead of the means; among runs that start together it would stop half at
    once, and hardly any afterwards.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._lowest = self._sum = self._count = self._stopped = torch.zeros(())

    def __call__(self, point: Point) -> Tensor:
        """Return the runs to stop now."""
        error, alive = point.validation_error, point.alive
        if error is None:
            return torch.zeros_like(alive)
        error = error.double()  # the precision of numbers read from metrics.csv
        if self._lowest.dim() == 0:
            self._lowest, self._sum, self._count = torch.full_like(error, torch.inf), 0 * error, 0 * error
            self._stopped = torch.zeros_like(alive)
        self._lowest = torch.where(alive, error.fmin(self._lowest), self._lowest)
        self._sum = torch.where(alive, self._sum + error, self._sum)
        self._count += alive
        means = torch.where(alive | self._stopped, self._lowest.maximum(self._sum / self._count), torch.inf)
        rising = means.nan_to_num(torch.inf, torch.inf).sort().values
        median = (rising[(len(rising) - 1) // 2] + rising[len(rising) // 2]) / 2
        stop = alive & (self._lowest > median) & (point.evaluations >= self._warm_up)
        self._stopped |= stop
        return stop


class HalvingPruning:
    """Keeps the fraction 1/eta of runs with the lowest error so far at each rung, budget / eta^k gradient evaluations.

    smallest: gradient evaluations before which there is no rung. Of runs with equal errors the first is kept, and at
    least one run is always kept. (Jamieson and Talwalkar 2016, successive halving; for runs that start together,
    asynchronous halving, ASHA, is the same.)
    """

    def __init__(self, budget: int, smallest: int, eta: int = 3) -> None:
        self._eta = eta
        n_rungs = int(math.log(budget / smallest, eta) + 1e-9) if smallest < budget else 0
        self._rungs = [budget / eta**k for k in range(1, n_rungs + 1)]  # in decreasing order: the next rung is the last
        self._lowest = torch.zeros(())
        self._keep = 0

    def __call__(self, point: Point) -> Tensor:
        """Return the runs to stop now."""
        error, alive = point.validation_error, point.alive
        if error is None:
            return torch.zeros_like(alive)
        if self._lowest.dim() == 0:
            self._lowest, self._keep = torch.full_like(error, torch.inf), len(error)
        self._lowest = torch.where(alive, error.fmin(self._lowest), self._lowest)
        while self._rungs and point.evaluations >= self._rungs[-1]:
            self._rungs.pop()
            self._keep = max(1, self._keep // self._eta)
        rank = torch.where(alive, self._lowest, torch.inf).argsort(stable=True).argsort()
        return alive & (rank >= self._keep)


def pruning(settings: SweepConfig) -> Callable[[int], Callable[[Point], Tensor]] | None:
    """Return a function from the budget of a fleet to its rule, chosen by sweep.prune; None without pruning."""
    if settings.prune == "none":
        return None
    return functools.partial(_rule, settings)


def _rule(settings: SweepConfig, budget: int) -> Callable[[Point], Tensor]:
    first = max(1, round(settings.prune_from * budget))
    return MedianPruning(first) if settings.prune == "median" else HalvingPruning(budget, first)
