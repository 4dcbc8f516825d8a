"""A data set that is ready for training: three parts of tensors."""

from __future__ import annotations

import functools
import hashlib
import weakref
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Task = Literal["classification", "regression"]
Targets = Int64[Tensor, " n"] | Float[Tensor, "n outputs"]


class DataError(ValueError):
    """The data cannot be used; the message is one line that says how to correct them."""


def one_line(error: Exception) -> str:
    """Return the message of an error in one line, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class Part(NamedTuple):
    """Examples: inputs ``[n, *input_shape]``, targets class numbers ``[n]`` or real outputs ``[n, outputs]``."""

    inputs: Float[Tensor, "n *input_shape"]
    targets: Targets

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.targets)


@dataclass(frozen=True)
class Units:
    """The scaling that turned raw data into the numbers of a data set, in float32; tensors broadcast over examples.

    inputs = (raw / divisor - mean) / deviation; regression targets = (raw - target_mean) / target_deviation.
    """

    divisor: float = 1.0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    deviation: Tensor = field(default_factory=lambda: torch.ones(()))
    target_mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    target_deviation: Tensor = field(default_factory=lambda: torch.ones(()))


@dataclass(frozen=True)
class Dataset:
    """A data set, split and scaled; train and validation do not depend on the test part."""

    name: str
    task: Task
    train: Part
    validation: Part
    """The validation part, empty if validation_fraction is 0; then nothing may be selected by it."""
    test: Part
    n_outputs: int
    """Number of classes, or of regression outputs."""
    units: Units = field(default_factory=Units)
    """The scaling of the raw data; by default they are not scaled."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def n_train(self) -> int:
        """Number of training examples."""
        return self.train.n

    def guess_error(self, part: Part) -> float:
        """Return the error of the best constant prediction on a part.

        The prediction is the most frequent class of the training part, or the mean of its targets (then the error is
        the RMSE over examples and outputs).
        """
        if self.task == "classification":
            most_frequent = self.train.targets.bincount(minlength=self.n_outputs).argmax()
            return float((part.targets != most_frequent).double().mean())
        difference = part.targets.double() - self.train.targets.double().mean(0)
        return float((difference * self.units.target_deviation.to(difference)).square().mean().sqrt())

    @functools.cached_property
    def digest(self) -> str:
        """Digest of all inputs and targets, 32 hexadecimal digits; any change of the data alters it."""
        sha = hashlib.sha256()
        for tensor in (*self.train, *self.validation, *self.test):
            plain = tensor.detach().cpu().contiguous()
            sha.update(f"{plain.dtype} {list(plain.shape)}".encode())
            numbers: Any = plain.reshape(-1).view(torch.uint8).numpy()
            sha.update(numbers)
        return sha.hexdigest()[:32]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Dataset:
        """Return the data set on a device, its real numbers as dtype (class numbers stay int64), without gradients.

        Fleets that use the data set on another device at the same time share one copy.
        """
        key = id(self), torch.device(device), dtype
        copy = _COPIES.get(key)
        if copy is None:
            parts = (_part_to(part, device, dtype) for part in (self.train, self.validation, self.test))
            copy = replace(self, **dict(zip(("train", "validation", "test"), parts, strict=True)))
            if torch.device(device) != self.train.inputs.device:
                copy.__dict__["_copied"] = self  # the reference keeps the id unique
                _COPIES[key] = copy
        return copy


_COPIES: weakref.WeakValueDictionary[tuple[int, torch.device, torch.dtype], Dataset] = weakref.WeakValueDictionary()
"""Copies of data sets on other devices, by id of the data set, device and dtype."""


def _part_to(part: Part, device: torch.device | str, dtype: torch.dtype) -> Part:
    target_dtype = dtype if part.targets.is_floating_point() else part.targets.dtype
    inputs, targets = part.inputs.detach().to(device, dtype), part.targets.detach().to(device, target_dtype)
    return Part(*(t.clone() if t.is_inference() else t for t in (inputs, targets)))
