"""Losses (2.5)-(2.8): the mean loss of a mini-batch, which is minimised, and the error that is reported."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


@runtime_checkable
class Loss(Protocol):
    """A loss: the number of outputs it needs, the encoding of the targets, and the mean over a batch."""

    name: str

    def n_outputs(self, n_outputs: int) -> int:
        """Return the number of model outputs for a data set of n_outputs classes or regression targets."""
        ...

    def encode(self, targets: Tensor, n_outputs: int, dtype: torch.dtype) -> Tensor:
        """Return the targets ``[n, ...]`` in the form that mean expects."""
        ...

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, outputs ``[batch, outputs]`` (2.6), (2.11). Implements Eq. (2.6)."""
        ...

    def classify(self, outputs: Tensor) -> Tensor:
        """Return the predicted classes ``[batch]``."""
        ...


class CrossEntropy:
    """The loss -log softmax(outputs)[class]."""

    name = "cross_entropy"

    def n_outputs(self, n_outputs: int) -> int:
        """Return one output per class."""
        return n_outputs

    def encode(self, targets: Tensor, n_outputs: int, dtype: torch.dtype) -> Tensor:
        """Return the class numbers unchanged."""
        return targets

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy."""
        return F.cross_entropy(outputs, targets)

    def classify(self, outputs: Tensor) -> Tensor:
        """The class with the largest output."""
        return outputs.argmax(-1)


class SquaredError:
    """The loss |outputs - target|^2, summed over the outputs; classes become one-hot vectors."""

    name = "squared_error"

    def n_outputs(self, n_outputs: int) -> int:
        """Return one output per class or regression target."""
        return n_outputs

    def encode(self, targets: Tensor, n_outputs: int, dtype: torch.dtype) -> Tensor:
        """Return one-hot vectors for classes, and regression targets unchanged."""
        return targets if targets.is_floating_point() else F.one_hot(targets, n_outputs).to(dtype)

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the batch of the squared distance."""
        return (outputs - targets).square().sum(-1).mean()

    def classify(self, outputs: Tensor) -> Tensor:
        """The class with the largest output."""
        return outputs.argmax(-1)


class Logistic:
    """The loss log(1 + exp(-t output)) with t = +-1, for two classes and one output."""

    name = "logistic"

    def n_outputs(self, n_outputs: int) -> int:
        """Return 1."""
        return 1

    def encode(self, targets: Tensor, n_outputs: int, dtype: torch.dtype) -> Tensor:
        """Return -1 for class 0 and +1 for class 1."""
        return (2 * targets - 1).to(dtype)

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean logistic loss."""
        return F.softplus(-targets * outputs.squeeze(-1)).mean()

    def classify(self, outputs: Tensor) -> Tensor:
        """Return class 1 if the output is positive, otherwise class 0."""
        return (outputs.squeeze(-1) > 0).long()


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (CrossEntropy(), SquaredError(), Logistic())}
