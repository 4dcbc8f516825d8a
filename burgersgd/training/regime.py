"""Measures to what extent a run of local_entropy is in the regime of its theory.

The regime requires scale separation, and nu that is large compared with the mini-batch noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.training.engines import ENGINES
from burgersgd.training.fleet import Fleet
from burgersgd.training.gradients import Problem, split
from burgersgd.training.native_gradient import NativeGradient

BATCHES = 8
"""Largest number of mini-batches of the first epoch from which the noise of the gradient is estimated."""

TOGETHER = 1 << 22
"""Most numbers in the gradients of the batches of a run that are in memory at once; one gradient may be larger."""


class Regime(NamedTuple):
    """Numbers that say whether y samples its stationary law before x moves, and how nu compares with mini-batch noise.

    The theory needs an equilibration of at least 3 and epsilon << 1. Where nu over the mini-batch noise is below 1, the
    temperature due to mini-batches is larger than 2 nu; their noise decreases while the network learns.
    """

    equilibration: float  # L lr / gamma: time of a cycle over the relaxation time of y where the loss is flat
    epsilon: float  # outer_step gamma / (L lr): the ratio of the two clocks in (5.14)
    nu_over_minibatch_at_start: float  # nu over lr tr S / (4 d), S the covariance of a mini-batch gradient
    nu_over_minibatch_at_end: float  # the same at the last x

    def recorded(self) -> dict[str, float | None]:
        """Return the numbers by name; None for those that are infinite or NaN."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}

    def __str__(self) -> str:
        """Return one line for the summary."""
        ratios = (self.nu_over_minibatch_at_start, self.nu_over_minibatch_at_end)
        start, end = ("unknown" if math.isnan(ratio) else f"{ratio:.3g}" for ratio in ratios)
        noise = f"{start} at the start, {end} at the end"
        return f"L lr / gamma {self.equilibration:.3g}, eps {self.epsilon:.3g}, nu / mini-batch noise {noise}"


def regimes(fleet: Fleet, start: Float[Tensor, "runs d"]) -> list[Regime | None]:
    """Return the regime of every run of a fleet that started at `start`; None for rules other than local_entropy.

    lr and gamma are their values before schedules and scoping; L is the number of gradients of a cycle. With momentum
    beta, both the drift and the noise of y correspond to the rate lr / (1 - beta).
    """
    rule = fleet.rule
    if not isinstance(rule, LocalEntropy):
        return [None] * fleet.n_runs
    found: list[Regime | None] = []
    traces = [minibatch_traces(fleet, x) for x in (start, fleet.x)]
    for run in range(fleet.n_runs):
        hyper = {name: float(values.flatten()[run]) for name, values in fleet.hyper.items()}
        lr = hyper["lr"] / (1 - hyper["momentum"])
        time = rule.gradients_per_cycle * lr / hyper["gamma"]
        noises = (lr * trace[run] / (4 * fleet.d) for trace in traces)
        ratios = (hyper["nu"] / noise if noise > 0 else math.nan for noise in noises)
        found.append(Regime(time, hyper["outer_step"] / time if time else math.inf, *ratios))
    return found


def minibatch_traces(fleet: Fleet, points: Float[Tensor, "runs d"]) -> list[float]:
    """Return tr S of every run, the variance of a mini-batch gradient at its point summed over the parameters.

    It is estimated without dropout from those of the first BATCHES batches of the run that have the full batch size;
    nan where there are fewer than two.
    """
    count = min(BATCHES, fleet.batches.evaluations_per_epoch)
    whole = [k for k in range(count) if fleet.batches.size(k) == fleet.batches.batch_size]
    if len(whole) < 2:
        return [math.nan] * fleet.n_runs
    batches = fleet.batches.indices(0, count)[whole].transpose(0, 1).contiguous()  # [runs, batches, examples]
    at_once = len(whole) if len(whole) * fleet.d <= TOGETHER else 1
    in_c = ENGINES[fleet.engine].gradient_in_c
    gradients = _in_c(fleet.problem, at_once, batches.shape[2]) if in_c else _by_autograd
    traces = []
    for x, rows in zip(points, batches, strict=True):
        n, mean, squares = 0, x.new_empty(0), 0.0  # of the batches so far
        for part in rows.split(at_once):
            found = gradients(fleet.problem, x, part)
            center = found.mean(dim=0)
            squares += float((found - center).square().sum(dtype=torch.float64))
            if n:  # sums of squares about two means, combined (Chan, Golub and LeVeque 1983)
                gap = center.sub_(mean)
                squares += n * len(part) / (n + len(part)) * float(gap.square().sum(dtype=torch.float64))
                mean.add_(gap, alpha=len(part) / (n + len(part)))
            else:
                mean = center
            n += len(part)
        traces.append(squares / (n - 1))
    return traces


Gradients = Callable[[Problem, Tensor, Tensor], Tensor]
"""Function (problem, x ``[d]``, batches ``[n, examples]``) -> gradients ``[n, d]``."""


def _by_autograd(problem: Problem, x: Float[Tensor, " d"], batches: Tensor) -> Float[Tensor, "n d"]:
    leaf = x.detach().clone().requires_grad_()
    gradients = []
    for rows in batches:
        inputs, targets = problem.examples(rows)
        outputs = problem.model.apply(split(leaf, problem.model.shapes), inputs, False, None)
        gradients.append(torch.autograd.grad(problem.loss.mean(outputs, targets), leaf)[0])
    return torch.stack(gradients)


def _in_c(problem: Problem, n: int, size: int) -> Gradients:
    """Return a function for the gradients of n batches of `size` examples by the C kernel, ten times as fast."""
    kernel = NativeGradient.of(problem.model, problem.loss.name, problem.inputs, problem.targets, n, size)
    gradients = torch.empty(n, problem.d, dtype=problem.inputs.dtype)
    loss, norm = (torch.empty(n, dtype=problem.inputs.dtype) for _ in range(2))

    def gradients_at(problem: Problem, x: Tensor, batches: Tensor) -> Tensor:
        kernel(x.detach().expand(n, -1), batches, gradients, loss, norm)  # one x, not n copies of it
        return gradients

    return gradients_at
