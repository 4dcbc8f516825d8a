"""Thousands of simultaneous paths of the update rules that train networks; states are ``[paths, d]``."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from burgersgd import streams
from burgersgd.optimizers.protocol import Clock, Rule
from burgersgd.theory.quadrature import Function

Noise = Callable[[int], Tensor]
"""k -> standard normal numbers ``[paths, d]``; those of 0 belong to the initial state, of k + 1 to evaluation k."""

_UNUSED = {
    "gamma_scoping": 0.0,
    "gamma_min": 0.0,
    "momentum": 0.0,
    "outer_momentum": 0.0,
    "weight_decay": 0.0,
    "outer_step": 1.0,
    "ema_weight": 1.0,
}
"""Values of the hyperparameters that are not given: those with which they change nothing."""


def walk(
    rule: Rule,
    start: ndarray,
    gradient: Function,
    steps: int,
    *,
    seed: int = 0,
    noise: Noise | None = None,
    **hyper: float | ndarray,
) -> Iterator[Any]:
    """Yield the state after each of `steps` gradient evaluations from start ``[paths, d]``; cycles are ended when due.

    The noise is by default normals(seed, paths, d). hyper: the hyperparameters of the rule, floats or arrays
    ``[steps]``. A rule that moves x only at the end of a cycle keeps x frozen if its cycle is longer than `steps`.
    """
    noise = normals(seed, *start.shape) if noise is None else noise
    step = torch.arange(steps).view(-1, 1, 1)
    cycle = rule.gradients_per_cycle
    clock = Clock(step, step.double() / max(steps, 1), step // cycle, step % cycle, steps)
    values = {name: _column(value) for name, value in (_UNUSED | hyper).items()}
    every = rule.coefficients(values, torch.ones(steps, 1, 1, dtype=torch.float64), clock)
    state = rule.init(torch.from_numpy(np.array(start, dtype=np.float64)), noise(0))
    for k in range(steps):
        c = type(every)(*(field[k] for field in every))
        grad = torch.from_numpy(gradient(rule.gradient_at(c, state).numpy()))
        norm = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        state = rule.step(c, state, grad, norm, noise(k + 1))
        if (k + 1) % cycle == 0:
            state = rule.end_cycle(c, state)
        yield state


def end_of_walk(*arguments: Any, **options: Any) -> Any:
    """Return the last state of a walk with these arguments."""
    return collections.deque(walk(*arguments, **options), maxlen=1)[0]


def standard_error(samples: ndarray, axis: int = 0) -> ndarray:
    """Return the standard error of the mean of independent samples along an axis, as estimated from them."""
    return samples.std(axis=axis, ddof=1) / math.sqrt(samples.shape[axis])


def normals(seed: int, paths: int, d: int = 1, *, antithetic: bool = False) -> Noise:
    """Return independent normal numbers from burgersgd.streams; with antithetic the second half is minus the first."""
    own = paths // 2 if antithetic else paths
    seeds = torch.tensor([seed])

    def noise(k: int) -> Tensor:
        out = torch.empty(1, 1, own * d, dtype=torch.float64)
        xi = streams.normal_(out, seeds, streams.Purpose.NOISE, k).view(own, d)
        return torch.cat([xi, -xi]) if antithetic else xi

    return noise


def averaged(noise: Noise) -> Noise:
    """Return (xi_k + xi_(k-1)) / 2, the noise of Leimkuhler and Matthews (2013), for rules with Euler's noise only."""
    before = noise(0)

    def average(k: int) -> Tensor:
        nonlocal before
        now = noise(k)
        z, before = (now + before) / 2, now
        return z

    return average


def _column(value: float | ndarray) -> Tensor:
    """Return a hyperparameter in the shape that rules take: ``[1, 1]``, or ``[steps, 1, 1]`` if it changes."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    return tensor.view(1, 1) if tensor.ndim == 0 else tensor.view(-1, 1, 1)
