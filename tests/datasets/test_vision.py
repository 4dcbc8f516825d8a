"""torchvision's data sets, from small files of the same formats; nothing here needs a network."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from burgersgd.config import VisionConfig
from burgersgd.datasets import DataError, load
from burgersgd.datasets.vision import CLASSES

IDX, CIFAR = ("mnist", "fashion_mnist", "kmnist"), ("cifar10", "cifar100")
rng = np.random.default_rng(0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """Return uint8 numbers as MNIST's files have them."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


class Publisher:
    """A small edition of a data set: what its publisher offers, and its arrays."""

    def __init__(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.folder = name, folder
        self.classes = 100 if name == "cifar100" else 10
        self.torchvision = getattr(torchvision.datasets, CLASSES[name])
        shape = (28, 28) if name in IDX else (3, 32, 32)
        self.images = rng.integers(0, 256, (50, *shape), dtype=np.uint8)
        self.labels = np.arange(50) % self.classes
        self.test_images = rng.integers(0, 256, (10, *shape), dtype=np.uint8)
        self.test_labels = np.arange(10)
        folder.mkdir()
        if name in IDX:
            names = [name for name, _ in self.torchvision.resources]
            contents = [idx(a) for a in (self.images, self.labels, self.test_images, self.test_labels)]
            files = dict(zip(names, contents, strict=True))
            monkeypatch.setattr(self.torchvision, "resources", [(name, md5(c)) for name, c in files.items()])
            monkeypatch.setattr(self.torchvision, "mirrors", [f"{folder.as_uri()}/"])
        else:
            files = {self.torchvision.filename: self.cifar_archive(monkeypatch)}
            monkeypatch.setattr(self.torchvision, "tgz_md5", md5(files[self.torchvision.filename]))
            monkeypatch.setattr(self.torchvision, "url", (folder / self.torchvision.filename).as_uri())
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def cifar_archive(self, monkeypatch: pytest.MonkeyPatch) -> bytes:
        names = [name for name, _ in self.torchvision.train_list]
        shares = np.array_split(np.arange(50), len(names))
        key = "fine_labels" if self.name == "cifar100" else "labels"
        train = [
            (name, pickle.dumps({"data": self.images[i].reshape(-1, 3072), key: self.labels[i].tolist()}))
            for name, i in zip(names, shares, strict=True)
        ]
        name = self.torchvision.test_list[0][0]
        data = {"data": self.test_images.reshape(-1, 3072), key: self.test_labels.tolist()}
        test = [(name, pickle.dumps(data))]
        monkeypatch.setattr(self.torchvision, "train_list", [[name, md5(content)] for name, content in train])
        monkeypatch.setattr(self.torchvision, "test_list", [[name, md5(content)] for name, content in test])
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in train + test:
                member = tarfile.TarInfo(f"{self.torchvision.base_folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    def config(self, root: Path, download: bool = True) -> VisionConfig:
        return VisionConfig(name=self.name, root=str(root), download=download, standardize=False)


Publish = Callable[[str], Publisher]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    return lambda name: Publisher(name, tmp_path / "published", monkeypatch)


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", IDX + CIFAR)
def test_download_once_then_read_from_disk(name: str, publish: Publish, tmp_path: Path) -> None:
    published, root = publish(name), tmp_path / "data"
    first = load(published.config(root))
    again = load(published.config(root, download=False))
    assert first.input_shape == ((1, 28, 28) if name in IDX else (3, 32, 32))
    assert (first.n_outputs, first.n_train, first.validation.n, first.test.n) == (published.classes, 45, 5, 10)
    assert torch.equal(first.train.inputs, again.train.inputs)
    test_images = published.test_images.reshape(first.test.inputs.shape) / np.float32(255)
    torch.testing.assert_close(first.test.inputs, torch.from_numpy(test_images))
    assert first.test.targets.tolist() == published.test_labels.tolist()
    known = {image.tobytes(): label for image, label in zip(published.images, published.labels, strict=True)}
    for part in (first.train, first.validation):
        pixels = (part.inputs * 255).round().to(torch.uint8).numpy()
        assert [known[image.tobytes()] for image in pixels] == part.targets.tolist()


@pytest.mark.parametrize("name", IDX + CIFAR)
def test_torchvision_finds_the_files_where_we_put_them(name: str, publish: Publish, tmp_path: Path) -> None:
    published, root = publish(name), tmp_path / "data"
    load(published.config(root))
    if name in IDX:
        for path in files(root):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))  # as torchvision unpacks it
        theirs = published.torchvision(root, train=False).data.numpy()
        assert np.array_equal(theirs, published.test_images)
    else:
        assert all((root / published.torchvision.base_folder / f).exists() for f, _ in published.torchvision.train_list)


@pytest.mark.parametrize("name", IDX + CIFAR)
def test_a_file_that_has_changed_on_disk_is_refused(name: str, publish: Publish, tmp_path: Path) -> None:
    published, root = publish(name), tmp_path / "data"
    load(published.config(root))
    read = [path for path in files(root) if path.name != getattr(published.torchvision, "filename", "")]
    assert len(read) in (2, 4, 6)
    for path in read:
        intact = path.read_bytes()
        path.write_bytes(intact[:-9] + bytes([intact[-9] ^ 1]) + intact[-8:])
        with pytest.raises(DataError, match=rf"^{path} is corrupt \(its checksum is wrong\); delete it and run again"):
            load(published.config(root))
        path.unlink()
        assert load(published.config(root)).n_train == 45  # as the message says
        path.write_bytes(intact)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("way", ["no network", "download=false", "truncated"])
def test_data_that_cannot_be_had_leaves_nothing_behind(
    name: str, way: str, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, root = publish(name), tmp_path / "data"
    if way == "no network":
        monkeypatch.setattr(
            published.torchvision, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/"], raising=False
        )
        monkeypatch.setattr(published.torchvision, "url", "http://127.0.0.1:9/", raising=False)
    elif way == "truncated":
        for path in files(published.folder):
            path.write_bytes(path.read_bytes()[:-20])
    reason = {"no network": "download failed: .*", "download=false": "dataset.download is false"}.get(
        way, r"file:.* sent something else \(wrong checksum\)"
    )
    message = rf"^dataset={name}: {root}/.*gz is not there and {reason}; run once with a network connection and .*$"
    with pytest.raises(DataError, match=message) as error:
        load(published.config(root, download=way != "download=false"))
    assert "\n" not in str(error.value)
    assert files(root) == []


def test_the_next_mirror_is_tried(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = publish("mnist")
    mirrors = ["http://127.0.0.1:9/", *published.torchvision.mirrors]
    monkeypatch.setattr(published.torchvision, "mirrors", mirrors)
    assert load(published.config(tmp_path / "data")).n_train == 45


def test_an_archive_put_there_by_hand_is_unpacked_if_it_is_the_right_one(publish: Publish, tmp_path: Path) -> None:
    published, root = publish("cifar10"), tmp_path / "data"
    root.mkdir()
    archive = root / published.torchvision.filename
    archive.write_bytes(b"half a download")
    with pytest.raises(DataError, match=rf"^{archive} is corrupt"):
        load(published.config(root, download=False))
    assert files(root) == [archive]
    archive.write_bytes((published.folder / archive.name).read_bytes())
    assert load(published.config(root, download=False)).n_train == 45


def test_a_folder_that_cannot_be_written_is_named(publish: Publish, tmp_path: Path) -> None:
    root = tmp_path / "a file"
    root.write_text("")
    with pytest.raises(DataError, match=rf"^dataset.root={root}: .* cannot be written: Not a directory$"):
        load(publish("mnist").config(root))


def test_a_name_unknown_to_us_is_answered_with_those_known() -> None:
    with pytest.raises(DataError, match=r"^dataset=imagenet: must be one of digits, mnist, .*, npz$"):
        load(VisionConfig(name="imagenet"))
