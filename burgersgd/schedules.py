"""Learning-rate schedules: a factor on lr as a function of the fraction of the budget that is spent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from burgersgd.optimizers.protocol import Clock, Hyper


def factor(name: str, hyper: Hyper, clock: Clock) -> Tensor:
    """Return the factor on lr, float64 ``[steps, runs, 1]``.

    hyper holds the schedule's floats per run ``[runs, 1]``: warmup (all), decay and every (step), final (cosine,
    linear). During warm-up, the first ``warmup`` of the budget, the factor rises linearly to 1; the schedule covers the
    rest of the budget. Raises KeyError for an unknown name.
    """
    warmup = hyper["warmup"]
    elapsed = clock.fraction + 1 / clock.budget  # the end of the evaluation, so that the first lr is not 0
    rising = torch.where(warmup > 0, (elapsed / warmup.clamp(min=1e-300)).clamp(max=1), 1.0)
    done = ((clock.fraction - warmup) / (1 - warmup)).clamp(min=0, max=1)
    return rising * _SHAPES[name](hyper, done)


def _constant(hyper: Hyper, done: Tensor) -> Tensor:
    return torch.ones_like(done)


def _step(hyper: Hyper, done: Tensor) -> Tensor:
    return hyper["decay"] ** torch.floor(done / hyper["every"] + 1e-9)  # 1e-9: 0.3 / 0.1 counts as 3


def _cosine(hyper: Hyper, done: Tensor) -> Tensor:
    return hyper["final"] + (1 - hyper["final"]) * (1 + torch.cos(math.pi * done)) / 2


def _linear(hyper: Hyper, done: Tensor) -> Tensor:
    return 1 + (hyper["final"] - 1) * done


_SHAPES = {"constant": _constant, "step": _step, "cosine": _cosine, "linear": _linear}
