"""Image data sets under dataset.root in torchvision's layout: MNIST and its relatives, CIFAR.

torchvision knows where the files come from, what they are called and their checksums. They are checked every time they
are read (torchvision itself trusts what is unpacked), and written whole or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from tqdm import tqdm

from burgersgd.datasets.dataset import DataError, Part
from burgersgd.datasets.prepare import Raw

CLASSES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
TIMEOUT = 15  # seconds without an answer


def mnist_like(config: Any) -> Raw:
    """Return mnist, fashion_mnist or kmnist, uint8 ``[n, 1, 28, 28]``, downloaded if need be; raises DataError."""
    source = _torchvision_class(config.name)
    folder = Path(config.root).expanduser() / source.__name__ / "raw"
    arrays = []
    for filename, md5 in source.resources:
        path = folder / filename
        if not path.exists():
            _write(config, path, _download(config, path, md5, [mirror + filename for mirror in source.mirrors]))
        arrays.append(_from_idx(gzip.decompress(_verified(path, md5))))
    images, labels, test_images, test_labels = arrays
    return _raw(10, images[:, None], labels, test_images[:, None], test_labels)


def cifar(config: Any) -> Raw:
    """Return cifar10 or cifar100, uint8 ``[n, 3, 32, 32]``, downloaded if need be; raises DataError."""
    source = _torchvision_class(config.name)
    root = Path(config.root).expanduser()
    folder = root / source.base_folder
    names = [name for name, _ in [*source.train_list, *source.test_list]]
    if not all((folder / name).exists() for name in names):
        archive = root / source.filename
        if not archive.exists():
            _write(config, archive, _download(config, archive, source.tgz_md5, [source.url]))
        with tarfile.open(fileobj=io.BytesIO(_verified(archive, source.tgz_md5))) as members:
            for name in names:
                content = members.extractfile(f"{source.base_folder}/{name}")
                assert content is not None  # by the archive's checksum
                _write(config, folder / name, content.read())
    (images, labels), (test_images, test_labels) = (
        _from_pickles([_verified(folder / name, md5) for name, md5 in listed])
        for listed in (source.train_list, source.test_list)
    )
    return _raw(100 if config.name == "cifar100" else 10, images, labels, test_images, test_labels)


def _torchvision_class(name: str) -> Any:
    import torchvision.datasets  # takes most of a second

    return getattr(torchvision.datasets, CLASSES[name])


def _verified(path: Path, md5: str) -> bytes:
    """Return the content of a file; raises DataError when it is not what its publisher signed with md5."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if _md5(content) != md5:
        raise DataError(f"{path} is corrupt (its checksum is wrong); delete it and run again to download it anew")
    return content


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _download(config: Any, path: Path, md5: str, urls: list[str]) -> bytes:
    """Return the file that belongs at path from the first URL that has it right; raises DataError if there is none."""
    reason = "dataset.download is false"
    for url in urls if config.download else []:
        try:
            content = _fetch(url, path.name)
        except OSError as error:  # URLError and time-outs among them
            reason = f"download failed: {' '.join(str(error).split())}"
            continue
        if _md5(content) == md5:
            return content
        reason = f"{url} sent something else (wrong checksum)"
    raise DataError(
        f"dataset={config.name}: {path} is not there and {reason}; "
        f"run once with a network connection and dataset.download=true, or get {path.name} from {urls[0]} yourself"
    )


def _fetch(url: str, name: str) -> bytes:
    """Return what is at url, with a progress bar on a terminal."""
    content = io.BytesIO()
    with urlopen(Request(url, headers={"User-Agent": "burgersgd"}), timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(content, "write", total=total, desc=name, disable=None, leave=False) as sink:
            while chunk := response.read(1 << 20):
                sink.write(chunk)
    return content.getvalue()


def _write(config: Any, path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all."""
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


def _from_idx(content: bytes) -> UInt8[ndarray, "n *image"]:
    """Return the array in a file of MNIST's format: 0, 0, type 8 (uint8), number of dimensions, their sizes, values."""
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _from_pickles(contents: list[bytes]) -> tuple[UInt8[ndarray, "n 3 32 32"], list[int]]:
    """Return images and labels of files in CIFAR's format; pickles, hence only to be called with verified content."""
    batches = [pickle.loads(content, encoding="latin1") for content in contents]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    return images, [label for batch in batches for label in batch.get("labels", batch.get("fine_labels"))]


def _raw(classes: int, images: ndarray, labels: ndarray | list[int], test_images: ndarray, test_labels: Any) -> Raw:
    def part(x: ndarray, y: ndarray | list[int]) -> Part:
        return Part(torch.from_numpy(x.copy()), torch.from_numpy(np.array(y, dtype=np.int64)))

    return Raw("classification", classes, part(images, labels), test=part(test_images, test_labels))
