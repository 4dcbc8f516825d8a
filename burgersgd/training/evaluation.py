"""Evaluates loss and error of R runs on a part of the data, always at x."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

from burgersgd.losses import Loss
from burgersgd.models import Model
from burgersgd.training.gradients import split
from burgersgd.training.native_gradient import NativeGradient

CHUNK = 4096
"""Largest number of examples evaluated at once."""
EXAMPLES_OF_ALL_RUNS = 1 << 18
"""Largest number of examples, summed over the runs, that a GPU evaluates at once; this bounds the memory needed."""


def is_guessing(error: float, guess: float, n: int, classification: bool) -> bool:
    """Whether an error measured on n examples is not clearly below `guess`, that of the best constant prediction.

    Classification: it is less than two binomial standard errors below it. Regression: it is less than 1 % below it, a
    difference that a constant close to the mean may have by chance. An error of NaN counts as guessing.
    """
    margin = 2 * math.sqrt(guess * (1 - guess) / n) if classification else 0.01 * guess
    return not error < guess - margin


@dataclass(frozen=True)
class Evaluator:
    """One part of a data set, ready to be evaluated; labels are the targets before Loss.encode."""

    model: Model
    loss: Loss
    classification: bool
    inputs: Float[Tensor, "n *shape"]
    labels: Tensor
    targets: Tensor
    scale: Float[Tensor, " outputs"] | None = None
    """Size of one unit of the standardized targets in the original units, in which errors are reported."""
    native: bool = False
    """Whether to evaluate by the C kernel of the native engine."""

    buffers_at: Callable[[Tensor], dict[str, Tensor]] | None = None
    """Function from x ``[d]`` of one run to the model's buffers at x, for models that have buffers."""

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "runs d"]) -> tuple[Float[Tensor, " runs"], Float[Tensor, " runs"]]:
        """Return the mean loss and the error of every run: the fraction of wrong classes, or in regression the RMSE.

        The RMSE of k outputs is sqrt(mean of the squared differences over examples and outputs): it does not grow
        with k, and predicting the mean of standardized targets gives 1.
        """
        if self.native and (self.scale is None or len(self.scale) == 1):
            loss, error = self._native_sums(x)
        elif (
            x.device.type == "cpu" or x.shape[0] == 1 or not self.model.batched
        ):  # one run at a time, so that its numbers do not depend on the other runs
            results = [self._sums(run) for run in x]
            loss, error = (torch.stack(sums) for sums in zip(*results, strict=True))
        else:
            loss, error = vmap(self._sums, chunk_size=max(1, EXAMPLES_OF_ALL_RUNS // min(CHUNK, len(self.labels))))(x)
        n = len(self.labels)
        return loss / n, error / n if self.classification else torch.sqrt(error / self.labels.numel())

    @functools.cached_property
    def _kernels(self) -> dict[tuple[int, int], NativeGradient]:
        """The C kernels for evaluation by (number of runs, number of threads), each allocated once."""
        return {}

    def _native_sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        key = len(x), torch.get_num_threads()
        if key not in self._kernels:
            network: Any = self.model
            at_once = min(128, max(1, len(self.labels)))
            self._kernels[key] = NativeGradient.of(
                network, self.loss.name, self.inputs, self.targets, len(x), at_once, evaluates=True
            )
        loss, wrong = self._kernels[key].evaluate(x, self.labels if self.classification else None)
        error = wrong if self.classification else loss * (1 if self.scale is None else self.scale.double() ** 2)
        return loss.to(x.dtype), error.to(x.dtype)

    def _sums(self, x: Float[Tensor, " d"]) -> tuple[Tensor, Tensor]:
        views = split(x, self.model.shapes)
        loss, error = x.new_zeros(()), x.new_zeros(())
        given = {} if self.buffers_at is None else {"buffers": self.buffers_at(x)}
        for start in range(0, len(self.labels), CHUNK):
            chunk = slice(start, start + CHUNK)
            outputs = self.model.apply(views, self.inputs[chunk], False, None, **given)
            targets, labels = self.targets[chunk], self.labels[chunk]
            loss = loss + self.loss.mean(outputs, targets) * len(labels)
            if self.classification:
                error = error + (self.loss.classify(outputs) != labels).sum()
            else:
                difference = outputs - labels if self.scale is None else (outputs - labels) * self.scale
                error = error + difference.square().sum(-1).sum()
        return loss, error
