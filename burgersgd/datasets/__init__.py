"""Data sets: load(config) for the named ones, from_arrays(x, y) for one's own; Batches for the order of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from burgersgd.datasets.arrays import from_arrays, npz
from burgersgd.datasets.batches import Batches
from burgersgd.datasets.dataset import DataError, Dataset, Part, Units
from burgersgd.datasets.digits import load_digits
from burgersgd.datasets.prepare import Options, Raw, prepare
from burgersgd.datasets.synthetic import mnist1d, teacher_student, two_spirals
from burgersgd.datasets.vision import cifar, mnist_like

__all__ = ["LOADERS", "Batches", "DataError", "Dataset", "Options", "Part", "Units", "from_arrays", "load"]

LOADERS: dict[str, Callable[[Any], Raw]] = {
    "digits": load_digits,
    "mnist": mnist_like,
    "fashion_mnist": mnist_like,
    "kmnist": mnist_like,
    "cifar10": cifar,
    "cifar100": cifar,
    "mnist1d": mnist1d,
    "two_spirals": two_spirals,
    "teacher_student": teacher_student,
    "npz": npz,
}
"""Name of a data set -> what reads or makes it from the attributes of its configuration."""


def load(config: Any) -> Dataset:
    """Return the data set config.name with its options, the attributes of config; raises DataError."""
    options = Options.of(config)  # checked before anything is read or downloaded
    if config.name not in LOADERS:
        raise DataError(f"dataset={config.name}: must be one of {', '.join(LOADERS)}")
    with np.errstate(over="ignore", invalid="ignore"):  # prepare refuses what is not finite
        raw = LOADERS[config.name](config)
    return prepare(config.name, raw, options)
