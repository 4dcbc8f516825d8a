"""Image data sets below dataset.root in torchvision's layout: MNIST, Fashion-MNIST, KMNIST, CIFAR.

torchvision provides the addresses, names and checksums of the files. Checksums are verified at every read (torchvision
itself does not verify unpacked files), and files are written completely or not at all. Even a file with the right
checksum is not trusted: sizes are bounded, members of an archive are read by name and never extracted, and a pickle can
only create arrays of bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import pickle
import struct
import tarfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from tqdm import tqdm

from burgersgd.datasets.dataset import DataError, Part, one_line
from burgersgd.datasets.preprocess import Raw
from burgersgd.schema import DatasetConfig, named, opt


@dataclass
class VisionConfig(DatasetConfig):
    """A torchvision data set, downloaded on demand."""

    name: str = named(
        mnist="MNIST: 60,000 + 10,000 digits, 28 x 28; through torchvision",
        fashion_mnist="Fashion-MNIST: 60,000 + 10,000 garments, 28 x 28; through torchvision",
        kmnist="Kuzushiji-MNIST: 60,000 + 10,000 characters, 28 x 28; through torchvision",
        cifar10="CIFAR-10: 50,000 + 10,000 colour photographs, 32 x 32; through torchvision",
        cifar100="CIFAR-100: 50,000 + 10,000 colour photographs of 100 classes, 32 x 32; through torchvision",
    )
    root: str = opt("data", "folder for the downloaded files", hashed=False)
    download: bool = opt(True, "download files that are missing; their checksums are verified", hashed=False)
    validation_fraction: float = opt(
        0.1,
        "fraction of the data set's training part in the validation part, by which settings are selected; 0: no "
        "validation part; the test part is that of the data set",
        at_least=0,
        below=1,
    )

    def read(self) -> Raw:
        """Return the images, read from their files, which are downloaded if missing and if `download` is true."""
        return (cifar if self.name.startswith("cifar") else mnist_like)(self)


CLASSES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
TIMEOUT = 15  # in seconds, without an answer
LARGEST = 1 << 28
"""Largest number of bytes read of a file, unpacked or not; the largest of these data sets has 170 MB."""


def mnist_like(config: Any) -> Raw:
    """Return mnist, fashion_mnist or kmnist, uint8 ``[n, 1, 28, 28]``, downloaded if necessary. Raises DataError."""
    source = _torchvision_class(config.name)
    folder = Path(config.root).expanduser() / source.__name__ / "raw"
    arrays = []
    for filename, md5 in source.resources:
        path = folder / filename
        if not path.exists():
            _write(config, path, _download(config, path, md5, [mirror + filename for mirror in source.mirrors]))
        arrays.append(_from_idx(path, _verified(path, md5)))
    images, labels, test_images, test_labels = arrays
    return _raw(config, 10, (28, 28), images, labels, test_images, test_labels)


def cifar(config: Any) -> Raw:
    """Return cifar10 or cifar100, uint8 ``[n, 3, 32, 32]``, downloaded if necessary. Raises DataError."""
    source = _torchvision_class(config.name)
    root = Path(config.root).expanduser()
    folder = root / source.base_folder
    listed = dict([*source.train_list, *source.test_list])
    if not all((folder / name).exists() for name in listed):
        archive = root / source.filename
        if not archive.exists():
            _write(config, archive, _download(config, archive, source.tgz_md5, [source.url]))
        members = _members(archive, _verified(archive, source.tgz_md5), source.base_folder, listed)
        for name, content in members.items():
            _write(config, folder / name, content)
    parts = []
    for files in (source.train_list, source.test_list):
        batches = [_from_pickle(folder / name, _verified(folder / name, md5)) for name, md5 in files]
        parts += [np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])]
    return _raw(config, 100 if config.name == "cifar100" else 10, (3, 32, 32), *parts)


def _torchvision_class(name: str) -> Any:
    import torchvision.datasets  # the import takes almost a second

    return getattr(torchvision.datasets, CLASSES[name])


def _verified(path: Path, md5: str) -> bytes:
    """Return the content of a file. Raises DataError where it cannot be read or has another MD5 checksum."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if _md5(content) != md5:
        raise DataError(
            f"{path} is corrupt (its checksum is wrong); delete it and repeat the command to download it again"
        )
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _download(config: Any, path: Path, md5: str, urls: list[str]) -> bytes:
    """Return the content for path from the first URL with the right checksum. Raises DataError if there is none."""
    reason = "dataset.download is false"
    for url in urls if config.download else []:
        try:
            content = _fetch(url, path.name)
        except (OSError, HTTPException, ValueError) as error:  # URLError, time-outs; answers that are not HTTP
            reason = f"download failed: {' '.join(str(error).split())}"
            continue
        if _md5(content) == md5:
            return content
        reason = f"the file from {url} has a wrong checksum"
    raise DataError(
        f"dataset={config.name}: {path} is missing, and {reason}; "
        f"run once with a network connection and dataset.download=true, or download {path.name} from {urls[0]} yourself"
    )


def _fetch(url: str, name: str) -> bytes:
    """Return the content at url, with a progress bar on a terminal."""
    content = io.BytesIO()
    with urlopen(Request(url, headers={"User-Agent": "burgersgd"}), timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(content, "write", total=total, desc=name, disable=None, leave=False) as sink:
            while content.tell() < LARGEST and (chunk := response.read(min(1 << 20, LARGEST - content.tell()))):
                sink.write(chunk)
    return content.getvalue()


def _write(config: Any, path: Path, content: bytes) -> None:
    """Write a file completely or not at all. Raises DataError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"dataset.root={config.root}: {path} cannot be written: {error.strerror}") from error


def _members(archive: Path, content: bytes, folder: str, listed: dict[str, str]) -> dict[str, bytes]:
    """Return the listed members of folder in a tar archive, with verified MD5 checksums. Raises DataError."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as members:
            for name, md5 in listed.items():
                member = members.getmember(f"{folder}/{name}")
                file = members.extractfile(member) if member.isreg() else None
                found[name] = b"" if file is None else file.read(LARGEST)
                if _md5(found[name]) != md5:
                    raise DataError(f"{archive}: its member {name} is corrupt (its checksum is wrong)")
    except (tarfile.TarError, OSError, EOFError, zlib.error, KeyError) as error:
        raise DataError(f"{archive} cannot be read: {one_line(error)}") from error
    return found


def _from_idx(path: Path, content: bytes) -> UInt8[ndarray, "n *image"]:
    """Return the array in a file of MNIST's format: 0, 0, type 8 (uint8), number of dimensions, their sizes, values."""
    try:
        with gzip.open(io.BytesIO(content)) as file:
            values = file.read(LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}") from error
    dimensions = values[3] if values[:3] == b"\0\0\x08" and len(values) > 3 else 0
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", values[4:start]) if len(values) >= start else ()
    if not shape or len(values) != start + math.prod(shape):
        raise DataError(f"{path} is not a complete file in the format of MNIST")
    return np.frombuffer(values, np.uint8, offset=start).reshape(shape)


class _Inert:
    """Replacement for a pickled array or its type, which only stores arguments and state from the file."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DataOnly(pickle._Unpickler):
    """Reads containers, numbers, text and arrays; a pickle that requests any other object raises UnpicklingError.

    The base class is Python's version of pickle.Unpickler, which takes no more memory than the file has bytes: the C
    version allocates memory for any index that the file contains (LONG_BINPUT). BYTEARRAY8 does so in both.
    """

    dispatch = {  # noqa: RUF012  (a dict of the class in pickle)
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return _Inert for numpy's arrays and types."""
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return _Inert
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _from_pickle(path: Path, content: bytes) -> tuple[UInt8[ndarray, "images 3 32 32"], Int64[ndarray, " labels"]]:
    """Return images and labels of a file in CIFAR's format: a dict with an array "data" and a list of labels."""
    try:
        batch = _DataOnly(io.BytesIO(content), encoding="latin1").load()
        _, shape, kind, column_order, data = batch["data"].state  # the state of a numpy array
        labels = batch.get("labels", batch.get("fine_labels"))
        if kind.arguments[0] != "u1" or not all(type(label) is int for label in labels):
            raise ValueError("no array of bytes and list of integers")
        values = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, np.uint8)
        images = values.reshape(shape, order="F" if column_order else "C").reshape(-1, 3, 32, 32)
        return images, np.array(labels, dtype=np.int64)
    except Exception as error:  # a file in another format can raise almost any error
        raise DataError(f"{path} is not a file in the format of CIFAR ({one_line(error)})") from error


def _raw(
    config: Any, classes: int, shape: tuple[int, ...], x: ndarray, y: ndarray, x_test: ndarray, y_test: ndarray
) -> Raw:
    """Return images (with a channel) and labels. Raises DataError where the images do not have the expected shape."""

    def part(images: ndarray, labels: ndarray) -> Part:
        if images.shape[1:] != shape or labels.ndim != 1:
            found = f"images {list(images.shape[1:])} and labels {list(labels.shape)}"
            raise DataError(f"dataset={config.name}: its files have {found}, must be {list(shape)} and [n]")
        images = images if len(shape) == 3 else images[:, None]
        return Part(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))

    return Raw("classification", classes, part(x, y), test=part(x_test, y_test))
