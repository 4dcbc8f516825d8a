"""Makes a Dataset of raw arrays from any source: splits, subsamples, adds noise to the labels, and scales.

All random choices depend only on `dataset.seed`, each choice has its own stream, and every smaller choice is contained
in the larger one, so that varying one option does not change the effect of another:

- the test part depends on test_fraction only, the validation part on these two fractions only;
- train_size=100 keeps the first 100 of the examples that train_size=200 keeps;
- label_noise=0.1 changes a subset of the labels that 0.2 changes, and changes them to the same classes; the changes of
  the validation part are drawn separately from those of the training part, and the test part is not changed.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from burgersgd.datasets.dataset import DataError, Dataset, Part, Task, Units

SPLIT, LABELS, POINTS, TEACHER, NOISE, VALIDATION_LABELS = range(6)  # purposes of random numbers


def generator(seed: int, purpose: int) -> np.random.Generator:
    """Return numpy's PCG64 for one purpose of one dataset.seed."""
    return np.random.default_rng([seed, purpose])


class Raw(NamedTuple):
    """Data of a source before preprocessing; parts that are None are taken from train. Inputs may be uint8 images."""

    task: Task
    n_outputs: int
    train: Part
    validation: Part | None = None
    test: Part | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """The options common to all data sets.

    label_noise: exactly round(label_noise * n) of the n training labels become another class, drawn uniformly.
    noisy_validation: change the validation labels in the same way, as if there were only noisy data to select by.
    train_size: number of training examples kept (None: all).
    seed: seed of the split and of all the above choices.
    validation_fraction, test_fraction: fractions of the source's training part that are used for validation, and for
        the test if the source has no test part. Without validation (0), more examples are left for training, but
        nothing can be selected.
    standardize: shift and scale inputs to mean 0 and variance 1 over the kept training examples, images by channel and
        vectors by feature; constant features are only shifted.
    standardize_targets: shift and scale the targets of a regression in the same way, by output; the data set stores
        their mean and scale.
    """

    label_noise: float = 0.0
    noisy_validation: bool = True
    train_size: int | None = None
    seed: int = 0
    validation_fraction: float = 0.2
    test_fraction: float = 0.2
    standardize: bool = True
    standardize_targets: bool = True

    def __post_init__(self) -> None:
        """Raise DataError for a value out of range."""
        if not 0 <= self.label_noise < 1:
            raise DataError(f"dataset.label_noise={self.label_noise}: must be in [0, 1)")
        if not 0 <= self.validation_fraction < 1:
            raise DataError(f"dataset.validation_fraction={self.validation_fraction}: must be in [0, 1)")
        if not 0 < self.test_fraction < 1:
            raise DataError(f"dataset.test_fraction={self.test_fraction}: must be between 0 and 1, both excluded")
        if self.seed < 0:
            raise DataError(f"dataset.seed={self.seed}: must be at least 0")

    @classmethod
    def of(cls, config: Any) -> Options:
        """Return the common options among the attributes of config; those it does not have keep their defaults."""
        names = [field.name for field in dataclasses.fields(cls) if hasattr(config, field.name)]
        return cls(**{name: getattr(config, name) for name in names})


def preprocess(name: str, raw: Raw, options: Options) -> Dataset:
    """Return the data set `name` made of raw. Raises DataError for invalid data or an option that does not fit them."""
    for part in (raw.train, raw.validation, raw.test):
        if part is not None:
            _check(name, part, raw)
    train, validation, test = _split(raw, options)
    kept = _check_train_size(options, train.n)
    if options.label_noise > 0:
        if raw.task == "regression" or raw.n_outputs < 2:
            raise DataError(
                f"dataset.label_noise={options.label_noise}: must be 0, because there are no classes to exchange"
            )
        share, classes = options.label_noise, raw.n_outputs
        rng = generator(options.seed, LABELS)
        train = train._replace(targets=_with_noise(train.targets, kept, classes, share, rng))
        if options.noisy_validation:
            rng = generator(options.seed, VALIDATION_LABELS)
            targets = _with_noise(validation.targets, validation.n, classes, share, rng)
            validation = validation._replace(targets=targets)
    train = _take(train, torch.arange(kept))
    units = Units(divisor=255.0 if train.inputs.dtype == torch.uint8 else 1.0)
    train, validation, test = _to_float(train), _to_float(validation), _to_float(test)
    if options.standardize:
        mean, std = _mean_and_std(train.inputs)
        units = dataclasses.replace(units, mean=mean, deviation=std)
        train, validation, test = (
            part._replace(inputs=torch.sub(part.inputs, mean).div_(std)) for part in (train, validation, test)
        )
    if raw.task == "regression" and options.standardize_targets:
        mean, std = (field[0] for field in _mean_and_std(train.targets))
        units = dataclasses.replace(units, target_mean=mean, target_deviation=std)
        train, validation, test = (
            part._replace(targets=torch.sub(part.targets, mean).div_(std)) for part in (train, validation, test)
        )
    for part in (train, validation, test):
        for kind, values in (("inputs", part.inputs), ("targets", part.targets)):
            if part.n and values.is_floating_point() and not _finite(values):
                allowed = "not finite in float32 after standardization; scale them down first"
                raise DataError(f"dataset={name}: {kind} are {allowed}")
    return Dataset(name, raw.task, train, validation, test, raw.n_outputs, units)


def _check(name: str, part: Part, raw: Raw) -> None:
    """Raise DataError unless there is one target per input, labels are valid classes, and all numbers are finite."""
    inputs, targets = part
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise DataError(
            f"dataset={name}: {len(inputs)} inputs and {len(targets)} targets, must be equally many and at least one"
        )
    if raw.task == "classification":
        lowest, highest = (int(label) for label in torch.aminmax(targets))
        if lowest < 0 or highest >= raw.n_outputs:
            raise DataError(f"dataset={name}: labels are {lowest} to {highest}, must be 0 to {raw.n_outputs - 1}")
    for kind, values in (("inputs", inputs), ("targets", targets)):
        if values.is_floating_point() and not _finite(values):
            raise DataError(f"dataset={name}: all {kind} must be finite in float32")


def _finite(x: Tensor) -> bool:
    return bool(torch.isfinite(torch.stack(torch.aminmax(x))).all())


def _split(raw: Raw, options: Options) -> tuple[Part, Part, Part]:
    """Return train, validation and test; missing parts are taken from train, which is shuffled."""
    n = raw.train.n
    order = torch.from_numpy(generator(options.seed, SPLIT).permutation(n))
    n_test = 0 if raw.test is not None else _share(n, "test_fraction", options)
    given = raw.validation is not None or options.validation_fraction == 0
    n_validation = 0 if given else _share(n, "validation_fraction", options)
    if n_test + n_validation >= n:
        raise DataError(
            f"dataset.validation_fraction={options.validation_fraction} leaves no training examples: "
            f"of {n}, {n_validation} are used for validation and {n_test} for the test"
        )
    test = raw.test if raw.test is not None else _take(raw.train, order[:n_test])
    rest = order[n_test:]
    validation = raw.validation if raw.validation is not None else _take(raw.train, rest[:n_validation])
    return _take(raw.train, rest[n_validation:]), validation, test


def memory() -> float:
    """Return the number of bytes of memory of this machine; inf where the system does not report it."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _share(n: int, key: str, options: Options) -> int:
    fraction = getattr(options, key)
    size = round(fraction * n)
    if size < 1:
        raise DataError(f"dataset.{key}={fraction}: selects none of {n} examples; must be at least {1 / n:.2g}")
    return size


def _check_train_size(options: Options, available: int) -> int:
    if options.train_size is None:
        return available
    if not 1 <= options.train_size <= available:
        raise DataError(
            f"dataset.train_size={options.train_size}: must be between 1 and {available}, "
            "the number of examples that validation and test leave for training"
        )
    return options.train_size


def _with_noise(
    targets: Int64[Tensor, " n"], kept: int, classes: int, share: float, rng: np.random.Generator
) -> Int64[Tensor, " n"]:
    """Return targets with exactly round(share * kept) of the first `kept` ones changed to another class."""
    rank = rng.random(len(targets))
    shift = torch.from_numpy(rng.integers(1, classes, len(targets)))
    changed = torch.from_numpy(np.argsort(rank[:kept])[: round(share * kept)])
    noisy = targets.clone()
    noisy[changed] = (targets[changed] + shift[changed]) % classes
    return noisy


def _take(part: Part, index: Int64[Tensor, " m"]) -> Part:
    return Part(part.inputs[index], part.targets[index])


def _to_float(part: Part) -> Part:
    """Return the part with uint8 pixels as float32 in [0, 1]."""
    if part.inputs.dtype == torch.uint8:
        return part._replace(inputs=part.inputs.float().div_(255))
    return part


def _mean_and_std(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel (4 dimensions or more) or feature, in a shape that broadcasts."""
    over = [0, *range(2, inputs.dim())] if inputs.dim() >= 4 else [0]
    chunks = inputs.split(256)  # a float64 copy of all images would need too much memory
    total = torch.stack([chunk.double().sum(over, keepdim=True) for chunk in chunks]).sum(0)
    n = inputs.numel() / total.numel()
    mean = total / n
    variance = torch.stack([(chunk - mean).square().sum(over, keepdim=True) for chunk in chunks]).sum(0) / n
    std = variance.sqrt()
    constant = std <= torch.finfo(torch.float32).eps * mean.abs()  # not std == 0: the mean of equal numbers is rounded
    return mean.float(), torch.where(constant, 1.0, std).float()
