"""Data sets: load(config) for named ones, from_arrays(x, y) for a user's arrays, Batches for the order of examples."""

from __future__ import annotations

import numpy as np

from burgersgd.datasets.arrays import from_arrays
from burgersgd.datasets.batches import Batches
from burgersgd.datasets.dataset import DataError, Dataset, Part, Units
from burgersgd.datasets.preprocess import Options, preprocess
from burgersgd.schema import DatasetConfig

__all__ = ["Batches", "DataError", "Dataset", "Options", "Part", "Units", "from_arrays", "load"]


def load(config: DatasetConfig) -> Dataset:
    """Return the data set of a configuration with its options. Raises DataError."""
    options = Options.of(config)  # checked before anything is read or downloaded
    with np.errstate(over="ignore", invalid="ignore"):  # preprocess raises for numbers that are not finite
        raw = config.read()
    return preprocess(config.name, raw, options)
