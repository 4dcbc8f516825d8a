"""Which runs of a fleet to stop before their end, decided at its validation points by comparing the runs in it.

A rule is called with every point of the fleet and returns the runs to stop, bool ``[runs]``. All runs of a fleet are at
the same gradient evaluation, so that nothing has to be waited for, and nothing is read from or written to a study.
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
    """What a rule looks at: see training/fleet.py."""

    @property
    def evaluations(self) -> int:
        """Gradient evaluations of every run."""
        ...

    @property
    def alive(self) -> Tensor:
        """Runs that neither diverged nor were stopped, bool ``[runs]``."""
        ...

    @property
    def validation_error(self) -> Tensor | None:
        """Errors ``[runs]``, None where nothing was validated."""
        ...


class MedianPruning:
    """Stops a run whose lowest error so far is above the median of the mean errors so far of all runs of its fleet.

    A run that was stopped keeps its mean, a diverged one counts as infinite. warm_up: gradient evaluations before which
    nothing is stopped. (Golovin et al. 2017, Google Vizier, 3.2.2, with runs that started together.) Optuna's
    MedianPruner takes the errors at this point for the means; of runs that started together it would stop half at once,
    and then hardly another one.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._lowest = self._sum = self._count = self._stopped = torch.zeros(())

    def __call__(self, point: Point) -> Tensor:
        """Return the runs to stop now."""
        error, alive = point.validation_error, point.alive
        if error is None:
            return torch.zeros_like(alive)
        error = error.double()  # as they are read back from metrics.csv
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
    """Keeps the runs of lowest error so far, 1/eta of them at each rung: after budget / eta^k gradient evaluations.

    smallest: no rung is earlier. Of equal runs the first is kept, and one in any case. (Jamieson and Talwalkar 2016,
    successive halving; with runs that started together asynchronous halving, ASHA, is the same.)
    """

    def __init__(self, budget: int, smallest: int, eta: int = 3) -> None:
        self._eta = eta
        n_rungs = int(math.log(budget / smallest, eta) + 1e-9) if smallest < budget else 0
        self._rungs = [budget / eta**k for k in range(1, n_rungs + 1)]  # the next one last
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
    """Return what makes the rule for a fleet from its budget, as sweep.prune says."""
    if settings.prune == "none":
        return None
    return functools.partial(_rule, settings)


def _rule(settings: SweepConfig, budget: int) -> Callable[[Point], Tensor]:
    first = max(1, round(settings.prune_from * budget))
    return MedianPruning(first) if settings.prune == "median" else HalvingPruning(budget, first)
