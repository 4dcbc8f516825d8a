"""torchvision's data sets, from small files of the same formats; nothing here needs a network."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from burgersgd.config import VisionConfig
from burgersgd.datasets import DataError, load, vision
from burgersgd.datasets.vision import CLASSES
from tests.datasets.damage import Damage, damages, refused_or_harmless

IDX, CIFAR = ("mnist", "fashion_mnist", "kmnist"), ("cifar10", "cifar100")
rng = np.random.default_rng(0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """Return uint8 numbers as MNIST's files have them."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def python2_pickle(images: np.ndarray, key: str, labels: np.ndarray) -> bytes:
    """Return what Python 2 wrote into CIFAR's files: protocol 2, text and bytes alike as bytes of latin-1."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    shape = b"(" + number(images.shape[0]) + number(images.shape[1]) + b"t"
    kind = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    kind += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
    array += b"(" + number(1) + shape + kind + b"\x89" + text(images.tobytes()) + b"tb"
    entries = text(b"data") + array + text(key.encode()) + b"](" + b"".join(map(number, labels.tolist())) + b"e"
    return b"\x80\x02}(" + text(b"batch_label") + text(b"of " + b"\xe9") + entries + b"u."


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
            (name, python2_pickle(self.images[i].reshape(-1, 3072), key, self.labels[i]))
            for name, i in zip(names, shares, strict=True)
        ]
        name = self.torchvision.test_list[0][0]
        test = [(name, python2_pickle(self.test_images.reshape(-1, 3072), key, self.test_labels))]
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
        with pytest.raises(
            DataError, match=rf"^{path} is corrupt \(its checksum is wrong\); delete it and repeat the command"
        ):
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
        way, r"the file from file:.* has a wrong checksum"
    )
    message = rf"^dataset={name}: {root}/.*gz is missing, and {reason}; run once with a network connection and .*$"
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


# Files that carry the right checksum and are wrong all the same -------------------------------------------------------


def sign(published: Publisher, monkeypatch: pytest.MonkeyPatch, **arrays: np.ndarray) -> None:
    """Publish other arrays, with their checksums."""
    for name, array in arrays.items():
        setattr(published, name, array)
    if published.name in IDX:
        contents = [idx(getattr(published, a)) for a in ("images", "labels", "test_images", "test_labels")]
        names = [name for name, _ in published.torchvision.resources]
        files = dict(zip(names, contents, strict=True))
        monkeypatch.setattr(published.torchvision, "resources", [(name, md5(c)) for name, c in files.items()])
    else:
        files = {published.torchvision.filename: published.cifar_archive(monkeypatch)}
        monkeypatch.setattr(published.torchvision, "tgz_md5", md5(files[published.torchvision.filename]))
    for name, content in files.items():
        (published.folder / name).write_bytes(content)


IMAGES, LABELS = np.zeros((50, 28, 28)), np.arange(50) % 10


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("mnist", {"labels": LABELS + 1}, "labels are 1 to 10, must be 0 to 9"),
        ("mnist", {"test_labels": np.full(10, 255)}, "labels are 255 to 255, must be 0 to 9"),
        ("mnist", {"labels": LABELS[:49]}, "50 inputs and 49 targets, .*"),
        (
            "mnist",
            {"images": IMAGES[:, :27]},
            r"its files have images \[27, 28\] and labels \[50\], must be \[28, 28\] .*",
        ),
        ("mnist", {"labels": IMAGES}, r"its files have images \[28, 28\] and labels \[50, 28, 28\], must be .*"),
        ("mnist", {"images": IMAGES[:0], "labels": LABELS[:0]}, "0 inputs and 0 targets, .*"),
        ("cifar10", {"labels": LABELS + 90}, "labels are 90 to 99, must be 0 to 9"),
        ("cifar100", {"labels": -LABELS}, "labels are -9 to 0, must be 0 to 99"),
        ("cifar10", {"test_labels": np.arange(9)}, "10 inputs and 9 targets, .*"),
    ],
)
def test_shapes_and_labels_are_checked(
    name: str,
    arrays: dict[str, np.ndarray],
    message: str,
    publish: Publish,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = publish(name)
    sign(published, monkeypatch, **arrays)
    with pytest.raises(DataError, match=f"^dataset={name}: {message}$"):
        load(published.config(tmp_path / "data"))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"data": Evil(), "labels": [0]}), r"it asks for (posix|nt)\.mkdir"),
        (pickle.dumps({"data": Evil(), "labels": [0]}, protocol=0), r"it asks for (posix|nt)\.mkdir"),
        (b"cnumpy.testing\nrundocs\n(S'x'\ntR.", "it asks for numpy.testing.rundocs"),
        (b"cnumpy\nload\n(S'x'\ntR.", "it asks for numpy.load"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.float32), "labels": [0]}), "no array of bytes .*"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [0.5]}), "no array of bytes .*"),
        (pickle.dumps({"data": np.zeros((1, 3071), np.uint8), "labels": [0]}), "cannot reshape .*"),
        (pickle.dumps({"data": [1, 2], "labels": [0]}), ".*"),
        (pickle.dumps({"labels": [0]}), "'data'"),
        (pickle.dumps([]), ".*"),
        (b"", "EOFError"),
        (b"\x96" + struct.pack("<Q", 1 << 33) + b"x.", "150"),  # 8 GiB
        (b"Nr" + struct.pack("<I", 1 << 31) + b".", ".*"),  # room for as many memoised objects
    ],
)
def test_a_pickle_can_make_nothing_but_data(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    with pytest.raises(DataError, match=rf"^{path} is not a file in the format of CIFAR \({reason}\)$"):
        vision._from_pickle(path, content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_pickled_by_todays_numpy_is_read_too(order: Literal["C", "F"], tmp_path: Path) -> None:
    images = np.asarray(rng.integers(0, 256, (4, 3072), dtype=np.uint8), order=order)
    read, labels = vision._from_pickle(tmp_path, pickle.dumps({"data": images, "fine_labels": [3, 1, 99, 0]}))
    assert np.array_equal(read, images.reshape(4, 3, 32, 32))
    assert labels.tolist() == [3, 1, 99, 0]


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member, b""


@pytest.mark.parametrize("way", ["../evil", "/tmp/evil", "folder/../../evil", "a link", "a link to itself"])
def test_an_archive_writes_nothing_but_its_listed_members_below_the_folder(
    way: str, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, root = publish("cifar10"), tmp_path / "data" / "below"
    secret = tmp_path / "secret"
    secret.write_bytes(b"of another program")
    source = published.torchvision
    first = f"{source.base_folder}/{source.train_list[0][0]}"
    with tarfile.open(published.folder / source.filename) as archive:
        members = [(m, archive.extractfile(m).read()) for m in archive]  # pyright: ignore[reportOptionalMemberAccess]
    if way.startswith("a link"):
        target = str(secret) if way == "a link" else Path(first).name
        members = [link(first, target) if m.name == first else (m, content) for m, content in members]
    else:
        members.insert(0, (tarfile.TarInfo(way), b"evil"))
        members.insert(0, link(source.base_folder, str(tmp_path)))
    content = tar(*members)
    (published.folder / source.filename).write_bytes(content)
    monkeypatch.setattr(source, "tgz_md5", md5(content))
    before = set(files(tmp_path))
    if way.startswith("a link"):
        with pytest.raises(DataError, match=f"{source.filename}: its member {Path(first).name} is corrupt"):
            load(published.config(root))
    else:
        assert load(published.config(root)).n_train == 45
    assert all(path.is_relative_to(root) for path in set(files(tmp_path)) - before)
    assert secret.read_bytes() == b"of another program"
    assert not Path("/tmp/evil").exists()


def test_a_member_that_is_missing_or_wrong_is_named_and_not_written(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, root = publish("cifar100"), tmp_path / "data"
    for members, message in [
        ((), r"cannot be read: .*filename 'cifar-100-python/train' not found.*"),
        (((tarfile.TarInfo("cifar-100-python/train"), b"x"),), r": its member train is corrupt .*|.*"),
    ]:
        content = tar(*members)
        (published.folder / published.torchvision.filename).write_bytes(content)
        monkeypatch.setattr(published.torchvision, "tgz_md5", md5(content))
        (root / published.torchvision.filename).unlink(missing_ok=True)
        with pytest.raises(DataError, match=message):
            load(published.config(root))
        assert [path.name for path in files(root)] == [published.torchvision.filename]


# Damage of any kind ---------------------------------------------------------------------------------------------------


@given(damage=damages() | damages(early=True), zipped=st.booleans())
def test_a_damaged_idx_file_is_refused_or_harmless(damage: Damage, zipped: bool) -> None:
    intact = idx(np.arange(60 * 16).reshape(60, 4, 4) % 251)
    plain = gzip.decompress(intact)
    content = damage.to(intact) if zipped else gzip.compress(damage.to(plain), mtime=0)
    with refused_or_harmless():
        array = vision._from_idx(Path("file"), content)
        if zipped:  # gzip has a checksum of its own
            assert np.array_equal(array, vision._from_idx(Path("file"), intact))
        else:
            assert array.size == len(damage.to(plain)) - 4 - 4 * array.ndim


@settings(max_examples=200)
@given(damage=damages() | damages(early=True), old=st.booleans())
def test_a_damaged_pickle_is_refused_or_still_bytes_and_labels(damage: Damage, old: bool) -> None:
    images, labels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8), np.array([3, 5])
    today = pickle.dumps({"data": images, "labels": labels.tolist()})
    content = damage.to(python2_pickle(images, "labels", labels) if old else today)
    with refused_or_harmless():
        read, numbers = vision._from_pickle(Path("file"), content)
        assert (read.dtype, read.shape[1:], numbers.dtype) == (np.uint8, (3, 32, 32), np.int64)


@given(damage=damages())
def test_a_damaged_archive_is_refused_or_harmless(damage: Damage) -> None:
    content = rng.bytes(5000)
    archive = tar((tarfile.TarInfo("folder/file"), content))
    with refused_or_harmless():
        assert vision._members(Path("archive"), damage.to(archive), "folder", {"file": md5(content)}) == {
            "file": content
        }


def test_no_more_than_the_limit_is_read(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published, root = publish("mnist"), tmp_path / "data"
    bomb = gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 10**6) + bytes(10**6), mtime=0)
    monkeypatch.setattr(vision, "LARGEST", 10**5)
    with pytest.raises(DataError, match=r"^file is not a complete file in the format of MNIST$"):
        vision._from_idx(Path("file"), bomb)
    monkeypatch.setattr(vision, "LARGEST", 100)
    with pytest.raises(DataError, match=r"has a wrong checksum"):
        load(published.config(root))
    assert files(root) == []


class Babel(BaseHTTPRequestHandler):
    """Answers what no server should."""

    answers: Iterator[bytes] = iter(())

    def do_GET(self) -> None:
        self.wfile.write(next(self.answers))

    def log_message(self, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


def test_a_server_that_talks_nonsense_is_a_failed_download(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: ftp//:nowhere\r\n\r\n",
        b"",
    ]
    published, root = publish("mnist"), tmp_path / "data"
    with HTTPServer(("127.0.0.1", 0), Babel) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            monkeypatch.setattr(published.torchvision, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
            for answer in answers:
                Babel.answers = iter([answer])
                with pytest.raises(DataError, match=r"download failed: .*|wrong checksum") as error:
                    load(published.config(root))
                assert "\n" not in str(error.value)
        finally:
            server.shutdown()
            thread.join()
    assert files(root) == []
