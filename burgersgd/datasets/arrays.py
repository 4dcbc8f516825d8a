"""A user's data: numpy arrays, given in Python or in an .npz file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from numpy.typing import ArrayLike
from torch import Tensor

from burgersgd.datasets.dataset import DataError, Dataset, Part, Targets, one_line
from burgersgd.datasets.preprocess import Options, Raw, memory, preprocess
from burgersgd.schema import SplitDatasetConfig, named, opt

LARGE = 256 << 20
MOST_PACKED = 200
"""Largest ratio of unpacked to packed size of a large array; real data do not exceed it, zip bombs do."""
KEYS = ("x", "y", "x_train", "y_train", "x_val", "y_val", "x_test", "y_test")


def from_arrays(
    x: ArrayLike,
    y: ArrayLike,
    *,
    x_val: ArrayLike | None = None,
    y_val: ArrayLike | None = None,
    x_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    name: str = "arrays",
    **options: Any,
) -> Dataset:
    """Return a data set of inputs x ``[n]``, ``[n, features]``, ``[n, h, w]`` or ``[n, channels, h, w]`` and targets y.

    Integer y ``[n]`` are the classes 0..k-1; real y ``[n]`` or ``[n, outputs]`` are regression targets. Validation and
    test parts that are not given are taken from x, y. `options` are those of `Options` (label_noise, train_size, ...).
    Raises DataError for data or options that cannot be used.

    >>> data = from_arrays([[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1], validation_fraction=0.25, test_fraction=0.25)
    >>> data.task, data.n_outputs, data.n_train
    ('classification', 2, 2)
    """
    given = {"x": x, "y": y, "x_val": x_val, "y_val": y_val, "x_test": x_test, "y_test": y_test}
    arrays = {key: _array(key, value) for key, value in given.items() if value is not None}
    return preprocess(name, _raw(arrays), Options(**options))


@dataclass
class NpzConfig(SplitDatasetConfig):
    """Your own arrays: x, y or x_train, y_train[, x_val, y_val], x_test, y_test in one .npz file."""

    name: str = named("npz")
    path: str = opt("", "path of the .npz file", required=True, hashed_without="digest")
    digest: str = opt(
        "",
        "first 16 digits of the file's SHA-256; a run records them and checks them when it is resumed; empty: no check",
        since="0.2",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise self.error("path", "must be the path of an .npz file")

    def read(self) -> Raw:
        """Return the arrays of the file."""
        return npz(self)

    def recorded(self) -> NpzConfig:
        """Return the settings with the absolute path, and with the digest, which identifies the data."""
        path = Path(self.path).expanduser().absolute()
        return dataclasses.replace(self, path=str(path), digest=self.digest or digest_of(path))


def digest_of(path: Path) -> str:
    """Return the first 16 digits of the SHA-256 of a file. Raises DataError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"dataset.path={path}: {error.strerror}") from error
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, _changed: int, _size: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def npz(config: NpzConfig) -> Raw:
    """Return the arrays x, y (or x_train, y_train) [, x_val, y_val] [, x_test, y_test] of the file config.path."""
    path = Path(config.path).expanduser()
    try:
        raw = _raw(*_read(path))
        if config.digest and digest_of(path) != config.digest:
            raise DataError(
                f"the file was changed: its digest is {digest_of(path)}, that of the first run was {config.digest}"
            )
        return raw
    except DataError as error:
        raise DataError(f"dataset.path={config.path}: {error}") from error


def _read(path: Path) -> tuple[dict[str, ndarray], list[str]]:
    """Return the arrays of an .npz file whose names are in KEYS, and the names of the others."""
    if not os.path.isfile(path):  # Path.is_file would raise for a name that is too long
        raise DataError("no such file; create it by numpy.savez(path, x=inputs, y=targets)")
    arrays, others = {}, []
    reading = "the list of its arrays"
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy and Python warn about damaged headers
            members = archive.namelist()
            names = [name.removesuffix(".npy") for name in members]
            others = [ascii(name)[1:-1] for name in names if name not in KEYS]
            for reading in [key for key in KEYS if f"{key}.npy" in members]:
                arrays[reading] = _member(archive, f"{reading}.npy")
    except Exception as error:  # a damaged file makes zipfile and numpy raise almost anything
        raise DataError(
            f"{reading} cannot be read ({one_line(error)}); write it by numpy.savez, with arrays of numbers only"
        ) from error
    return arrays, others


def _member(archive: zipfile.ZipFile, name: str) -> ndarray:
    """Return one array of an archive, which is read to its end, because zipfile checks the checksum there."""
    size, packed = archive.getinfo(name).file_size, archive.getinfo(name).compress_size
    if size > memory():
        raise ValueError(f"it unpacks to {size / 2**30:.3g} GiB, more than the memory of this machine")
    if size > LARGE and size > MOST_PACKED * packed:
        raise ValueError(f"it unpacks to {size / 2**30:.3g} GiB, {size // max(packed, 1)} times its size in the file")
    with archive.open(name) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise ValueError(f"it has more data than its shape {array.shape}")
    return array


def _array(key: str, value: ArrayLike | Tensor) -> ndarray:
    try:
        if isinstance(value, Tensor):  # numpy accepts no tensors that require gradients, are on a GPU or in bfloat16
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of different lengths, sparse tensors
        raise DataError(f"{key} is not an array ({one_line(error)})") from error


def _raw(arrays: dict[str, ndarray], others: Sequence[str] = ()) -> Raw:
    """Return the data in arrays, named as in KEYS. Raises DataError naming the array that is wrong.

    others: names of further arrays in the file, for the error message.
    """
    training = ("x", "y") if {"x", "y"} & arrays.keys() else ("x_train", "y_train")
    if training == ("x", "y") and {"x_train", "y_train"} & arrays.keys():
        raise DataError("x, y and x_train, y_train have the same meaning; give only one of the two pairs")
    pairs = [training, *(pair for pair in (("x_val", "y_val"), ("x_test", "y_test")) if set(pair) & arrays.keys())]
    for key in (key for pair in pairs for key in pair):
        if key not in arrays:
            shown = [*arrays, *others]
            found = ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "") or "nothing"
            raise DataError(f"the array {key} is missing; found {found}; required are x, y (or x_train, y_train)")
    parts = {key_x: _part(arrays, key_x, key_y) for key_x, key_y in pairs}
    for key_x, key_y in pairs[1:]:
        for key, own, of_training in zip((key_x, key_y), parts[key_x], parts[training[0]], strict=True):
            if own.shape[1:] != of_training.shape[1:] or own.dtype != of_training.dtype:
                raise DataError(
                    f"{key} must match {training[key is key_y]}: is {_kind(own)}, must be {_kind(of_training)}"
                )
    train, validation, test = parts[training[0]], parts.get("x_val"), parts.get("x_test")
    if train.targets.is_floating_point():
        return Raw("regression", train.targets.shape[1], train, validation, test)
    labels = torch.cat([part.targets for part in parts.values()])
    return Raw("classification", _number_of_classes(training[1], labels), train, validation, test)


def _part(arrays: dict[str, ndarray], key_x: str, key_y: str) -> Part:
    """Return inputs and targets of one part, checked without the other parts."""
    inputs, targets = _inputs(key_x, arrays[key_x]), _targets(key_y, arrays[key_y])
    if len(inputs) != len(targets):
        raise DataError(f"{key_x} has {len(inputs)} rows, {key_y} has {len(targets)}; they must have the same number")
    return Part(inputs, targets)


def _inputs(key: str, x: ndarray) -> Float32[Tensor, "n *input_shape"]:
    if x.dtype.kind not in "fiub":
        raise DataError(f"{key} is of type {x.dtype}; must be real numbers")
    if not 1 <= x.ndim <= 4 or x.size == 0:
        raise DataError(
            f"{key} has shape {x.shape}; must be [n, features], [n, h, w] or [n, channels, h, w], not empty"
        )
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) >= 8 and x.shape[1] == x.shape[2]:
        order = "[n, h, w, channels], must be [n, channels, h, w]"
        raise DataError(f"{key} has shape {x.shape}, which looks like {order}: {key}.transpose(0, 3, 1, 2)")
    inputs = _floats(key, x)
    if x.ndim == 1:
        return inputs[:, None]  # one feature
    return inputs[:, None] if x.ndim == 3 else inputs  # one channel


def _targets(key: str, y: ndarray) -> Targets:
    if y.dtype.kind not in "fiub":
        raise DataError(f"{key} is of type {y.dtype}; must be integers (classes) or real numbers (regression)")
    regression = y.dtype.kind == "f"
    if not 1 <= y.ndim <= 1 + regression or y.size == 0:
        wanted = "[n] or [n, outputs]" if regression else "[n] (class numbers; real numbers make it a regression)"
        raise DataError(f"{key} has shape {y.shape}; must be {wanted}, not empty")
    if regression:
        return _floats(key, y).reshape(len(y), -1)
    if y.min() < 0:
        raise DataError(f"{key} has the label {y.min()}; labels must be 0..k-1")
    return torch.from_numpy(y.astype(np.int64))


def _floats(key: str, x: ndarray) -> Float32[Tensor, "n *shape"]:
    """Return a float32 copy of x. Raises DataError where one of its numbers is not finite."""
    with np.errstate(over="ignore"):
        values = torch.from_numpy(np.array(x, dtype=np.float32, order="C"))
    bad = int((~values.isfinite()).sum())
    if bad:
        raise DataError(f"{key} has {bad} values that are not finite in float32; remove or replace them")
    return values


def _number_of_classes(key: str, labels: Tensor) -> int:
    """Return the number k of the classes 0..k-1 in all parts. Raises DataError where one of them does not occur."""
    present = labels.unique()
    classes = len(present)
    if classes < 2 or int(present[0]) != 0 or int(present[-1]) != classes - 1:
        raise DataError(
            f"{key} has {classes} different labels from {int(present[0])} to {int(present[-1])}; "
            "labels must be 0..k-1 with k at least 2; numpy.unique(y, return_inverse=True)[1] renumbers them"
        )
    return classes


def _kind(x: Tensor) -> str:
    kind = "real" if x.is_floating_point() else "integer"
    return f"{kind} [{', '.join(['n', *map(str, x.shape[1:])])}]"
