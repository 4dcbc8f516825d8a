"""Runs an update rule on any gradient with any noise, in the order of calls that training.fleet.Fleet has."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from burgersgd import schedules, streams
from burgersgd.optimizers.protocol import Clock, Hyper, Rule
from tests import reference

Gradient = Callable[[int, Tensor], Tensor]
"""Of evaluation k = 0, 1, ... at ``[runs, d]``."""
Noise = Callable[[int], Tensor]
"""The normal numbers ``[runs, d]`` of number k: 0 belongs to the initial state, k + 1 to evaluation k."""

M = 20_000
"""Independent chains of a statistical test: a factor of 2 in a variance is 50 standard errors."""


Hypers = Mapping[str, Sequence[float]]
"""Name of a float -> its value in every run."""


def columns(hyper: Hypers) -> Hyper:
    """Return what a rule takes: float64 ``[runs, 1]`` for every name."""
    return {name: torch.tensor(values, dtype=torch.float64)[:, None] for name, values in hyper.items()}


def coefficients(
    rule: Rule,
    hyper: Hypers,
    x: Tensor,
    steps: int,
    schedule: str = "constant",
    schedule_hyper: Hypers | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
) -> list[Any]:
    """Return the coefficients of every gradient evaluation of a budget of `steps`, in the precision of x."""
    step = torch.arange(steps).view(-1, 1, 1)
    cycle = rule.gradients_per_cycle
    clock = Clock(step, step.double() / steps, step // cycle, step % cycle, steps, shapes)
    factor = schedules.factor(schedule, columns(schedule_hyper or {"warmup": [0.0] * len(x)}), clock)
    c = rule.coefficients(columns(hyper), factor.expand(steps, len(x), 1), clock)
    return [type(c)(*(field[k % len(field)].to(x.dtype) for field in c)) for k in range(steps)]


def drive(
    rule: Rule,
    hyper: Hypers,
    x: Tensor,
    gradient: Gradient,
    steps: int,
    xi: Noise | None = None,
    schedule: str = "constant",
    schedule_hyper: Hypers | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
) -> Iterator[Any]:
    """Yield the state after every gradient evaluation of a run whose budget is `steps`."""
    state = rule.init(x.clone(), None if xi is None else xi(0))
    for k, c in enumerate(coefficients(rule, hyper, x, steps, schedule, schedule_hyper, shapes)):
        at = rule.gradient_at(c, state)
        grad = gradient(k, at)
        meant = grad if rule.normed is None else rule.normed(c, state, grad)
        norm = torch.linalg.vector_norm(meant, dim=1, keepdim=True)
        state = rule.step(c, state, grad, norm, None if xi is None else xi(k + 1))
        if (k + 1) % rule.gradients_per_cycle == 0:
            state = rule.end_cycle(c, state)
        yield state


def last(states: Iterator[Any]) -> Any:
    """Return the last state."""
    return collections.deque(states, maxlen=1)[0]


def trajectory(states: Iterator[Any]) -> ndarray:
    """Return x and y after every evaluation, ``[runs, evaluations, 2, d]``."""
    return np.stack([torch.stack([s.x, s.y], dim=1).numpy() for s in states], axis=1)


def normals(seed: int, runs: int, d: int) -> Noise:
    """Return independent standard normal numbers of every run."""
    seeds = torch.arange(runs) + 1000 * seed
    return lambda k: streams.normal_(torch.empty(1, runs, d, dtype=torch.float64), seeds, streams.Purpose.NOISE, k)[0]


def given(xi: ndarray) -> Noise:
    """Return the noise that is written down in xi ``[runs, number, d]``."""
    numbers = torch.from_numpy(xi)
    return lambda k: numbers[:, k]


def of_runs(gradients: Sequence[reference.Gradient]) -> Gradient:
    """Return the gradient of a fleet whose run i has gradients[i]."""
    return lambda k, at: torch.from_numpy(np.stack([g(k, row.numpy()) for g, row in zip(gradients, at, strict=True)]))


def wavy(run: int, d: int = 4) -> reference.Gradient:
    """Return a nonlinear gradient that couples the coordinates, of another mini-batch at each evaluation."""
    A = np.random.default_rng(run).normal(size=(d, d)) / np.sqrt(d)
    return lambda k, y: 0.8 * y + A @ np.sin(2 * y) + 0.3 * np.cos(k + 1 + np.arange(d))


def assert_fails(scores: dict[str, float]) -> None:
    """Check that each mutant of a statistical oracle is rejected by the sample: |z| > 10."""
    survivors = {name: z for name, z in scores.items() if not abs(z) > 10}
    assert not survivors, f"the test would not notice: {survivors}"
