"""The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn (from UCI, optical recognition of digits).

The file is read without importing scikit-learn, which takes longer than the rest of the start-up together.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from burgersgd.datasets.dataset import DataError, Part
from burgersgd.datasets.preprocess import Raw
from burgersgd.schema import SplitDatasetConfig, named

SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"  # of the unpacked file
LARGEST = 1 << 20  # largest number of bytes that are read of it; it has 268 kB


@dataclass
class DigitsConfig(SplitDatasetConfig):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, inside its package."""

    name: str = named("digits")

    def read(self) -> Raw:
        """Return the digits."""
        return load_digits()


def digits_file() -> Path:
    """Return the file of the digits in scikit-learn. Raises DataError where it is not installed."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("dataset=digits: the data come with scikit-learn; run: pip install scikit-learn")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


def load_digits() -> Raw:
    """Return the digits, ``[1797, 1, 8, 8]`` in [0, 1]. Raises DataError where the file is missing or corrupt."""
    path = digits_file()
    repair = "run: pip install --force-reinstall scikit-learn"
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"dataset=digits: {path} cannot be read ({error}); {repair}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DataError(f"dataset=digits: {path} is corrupt (its checksum is wrong); {repair}")
    rows = np.fromstring(content.decode().strip().replace("\n", ","), dtype=np.float32, sep=",").reshape(-1, 65)
    inputs = torch.from_numpy(rows[:, :64].reshape(-1, 1, 8, 8) / 16)
    return Raw("classification", 10, Part(inputs, torch.from_numpy(rows[:, 64].astype(np.int64))))
