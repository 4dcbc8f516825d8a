"""The user's own arrays, from Python and from a file."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burgersgd.build.prepared import prepare
from burgersgd.config import LossConfig, NpzConfig, TrainConfig, TrainerConfig
from burgersgd.datasets import DataError, arrays, from_arrays, load
from burgersgd.identity import config_hash
from tests.datasets.damage import Damage, damages, refused_or_harmless

rng = np.random.default_rng(0)
X = rng.standard_normal((40, 3))
LABELS = np.arange(40) % 4
OUTPUTS = rng.standard_normal((40, 2))


def write(path: Path, **arrays: Any) -> NpzConfig:
    np.savez(path, **arrays)
    return NpzConfig(path=str(path), standardize=False)


def test_integers_are_classes_and_real_numbers_regression() -> None:
    classes, regression = from_arrays(X, LABELS), from_arrays(X, OUTPUTS)
    assert (classes.task, classes.n_outputs, classes.train.targets.dtype) == ("classification", 4, torch.int64)
    assert (regression.task, regression.n_outputs, regression.train.targets.dtype) == ("regression", 2, torch.float32)
    assert from_arrays(X, OUTPUTS[:, 0]).train.targets.shape == (24, 1)


def test_a_file_and_its_arrays_are_the_same_data(tmp_path: Path) -> None:
    from_file = load(write(tmp_path / "data.npz", x=X, y=LABELS, something_else=np.zeros(3)))
    from_memory = from_arrays(X, LABELS, standardize=False)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(from_file, part).inputs, getattr(from_memory, part).inputs)
        assert torch.equal(getattr(from_file, part).targets, getattr(from_memory, part).targets)
    assert from_file.name == "npz"


@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
def test_parts_of_the_file_are_used(names: tuple[str, str], tmp_path: Path) -> None:
    given_parts = {names[0]: X, names[1]: LABELS, "x_test": X[:5] + 9, "y_test": LABELS[:5]}
    data = load(write(tmp_path / "data.npz", **given_parts))
    torch.testing.assert_close(data.test.inputs, torch.tensor(X[:5] + 9, dtype=torch.float32))
    assert (data.n_train, data.validation.n) == (32, 8)
    data = load(write(tmp_path / "data.npz", **given_parts, x_val=X[5:8], y_val=LABELS[5:8]))
    assert (data.n_train, data.validation.n, data.test.n) == (40, 3, 5)


@pytest.mark.parametrize(
    ("shape", "input_shape"),
    [((40,), (1,)), ((40, 3), (3,)), ((40, 4, 5), (1, 4, 5)), ((40, 3, 4, 5), (3, 4, 5))],
)
def test_inputs_are_vectors_or_images_with_channels(shape: tuple[int, ...], input_shape: tuple[int, ...]) -> None:
    assert from_arrays(rng.standard_normal(shape), LABELS).input_shape == input_shape


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", ">f8"])
def test_inputs_of_any_real_type_are_taken_as_they_are(dtype: str) -> None:
    x = (np.arange(40) % 2).astype(dtype)[:, None]
    data = from_arrays(x, LABELS, standardize=False)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.inputs.unique().tolist() == [0, 1]


def test_the_arrays_given_are_neither_changed_nor_shared() -> None:
    x, x_test = X.astype(np.float32), X[:4].astype(np.float32)
    before = x.copy()
    data = from_arrays(x, LABELS, x_test=x_test, y_test=LABELS[:4], standardize=False)
    x_test[:] = 7
    assert np.array_equal(x, before)
    assert not (data.test.inputs == 7).any()


def test_tensors_and_lists_are_arrays_too() -> None:
    data = from_arrays(torch.tensor(X), LABELS.tolist(), name="mine", train_size=3, seed=5)
    assert (data.name, data.n_train) == ("mine", 3)


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[3] = value
    return changed


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no targets": ({"x": X}, "the array y is missing; found x; required are x, y .*"),
    "no inputs": ({"y": LABELS}, "the array x is missing; .*"),
    "nothing of ours": ({"inputs": X}, "the array x_train is missing; found inputs; .*"),
    "half a test part": ({"x": X, "y": LABELS, "x_test": X}, "the array y_test is missing; .*"),
    "half a validation part": ({"x": X, "y": LABELS, "y_val": LABELS}, "the array x_val is missing; .*"),
    "two training parts": ({"x": X, "y": LABELS, "x_train": X}, "x, y and x_train, y_train have the same meaning; .*"),
    "rows": ({"x": X, "y": LABELS[:-1]}, "x has 40 rows, y has 39; .*"),
    "features of test": (
        {"x": X, "y": LABELS, "x_test": X[:, :2], "y_test": LABELS},
        r"x_test must match x: is real \[n, 2\], must be real \[n, 3\]",
    ),
    "task of test": (
        {"x_train": X, "y_train": LABELS, "x_test": X, "y_test": OUTPUTS},
        r"y_test must match y_train: is real \[n, 2\], must be integer \[n\]",
    ),
    "nan": ({"x": with_value(X, np.nan), "y": LABELS}, "x has 1 values that are not finite .*"),
    "inf": ({"x": X, "y": with_value(OUTPUTS, np.inf)}, "y has 1 values that are not finite .*"),
    "too large for float32": ({"x": X * 1e300, "y": LABELS}, "x has 120 values that are not finite in float32; .*"),
    "negative label": ({"x": X, "y": LABELS - 1}, r"y has the label -1; labels must be 0\.\.k-1"),
    "labels from 1": ({"x": X, "y": LABELS + 1}, "y has 4 different labels from 1 to 4; .*"),
    "labels beyond int64": (
        {"x": X, "y": np.where(LABELS == 1, np.uint64(2**64 - 1), LABELS.astype(np.uint64))},
        "y has 4 different labels from -1 to 3; .*",
    ),
    "one class": ({"x": X, "y": LABELS * 0}, "y has 1 different labels from 0 to 0; .*"),
    "one-hot integers": ({"x": X, "y": np.eye(4, dtype=int)[LABELS]}, r"y has shape \(40, 4\); must be \[n\] .*"),
    "targets in space": ({"x": X, "y": np.zeros((40, 2, 2))}, r"y has shape .*"),
    "empty": ({"x": X[:0], "y": LABELS[:0]}, r"x has shape \(0, 3\); .*, not empty"),
    "no features": ({"x": X[:, :0], "y": LABELS}, r"x has shape \(40, 0\); .*"),
    "a number": ({"x": np.float64(3), "y": LABELS}, r"x has shape \(\); .*"),
    "five dimensions": ({"x": np.zeros((40, 1, 1, 1, 1)), "y": LABELS}, "x has shape .*"),
    "text": ({"x": X, "y": LABELS.astype(str)}, "y is of type <U21; must be integers .* or real numbers .*"),
    "complex": ({"x": X * 1j, "y": LABELS}, "x is of type complex128; must be real numbers"),
    "objects": ({"x": X, "y": LABELS.astype(object)}, r"y cannot be read \(.*\); write it by numpy.savez, .*"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_file_is_reported_in_one_line(case: str, tmp_path: Path) -> None:
    arrays, message = BAD[case]
    config = write(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=f"^dataset.path={config.path}: {message}$") as error:
        load(config)
    assert "\n" not in str(error.value)


IN_FILES_ONLY = {"no targets", "no inputs", "nothing of ours", "two training parts", "task of test", "objects"}


@pytest.mark.parametrize("case", [case for case in BAD if case not in IN_FILES_ONLY])
def test_the_same_is_wrong_with_arrays(case: str) -> None:
    arrays, message = BAD[case]
    with pytest.raises(DataError, match=f"^{message}$"):
        from_arrays(**arrays)


def test_lists_of_different_lengths_are_no_array() -> None:
    with pytest.raises(DataError, match=r"^x is not an array \(.*\)$"):
        from_arrays([[1.0], [1.0, 2.0]], [0, 1])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.npz", tmp_path):
        with pytest.raises(DataError, match=f"^dataset.path={path}: no such file; .*$"):
            load(NpzConfig(path=str(path)))


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"PK\x03\x04 not really", b"\x80\x04K\x01."])
def test_a_file_that_is_no_npz_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^dataset.path={path}: the list of its arrays cannot be read .*$"):
        load(NpzConfig(path=str(path)))


def test_a_single_saved_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", X)
    with pytest.raises(DataError, match=r"^dataset.path=.*data.npy: .*$"):
        load(NpzConfig(path=str(tmp_path / "data.npy")))


@settings(max_examples=200)
@given(damage=damages(), packed=st.booleans())
def test_a_damaged_file_is_refused_or_harmless(damage: Damage, packed: bool, tmp_path: Path) -> None:
    config = write(tmp_path / "data.npz", x=X, y=LABELS)
    if packed:
        np.savez_compressed(config.path, x=X, y=LABELS)
    intact = load(config)
    Path(config.path).write_bytes(damage.to(Path(config.path).read_bytes()))
    with refused_or_harmless():
        damaged = load(config)
        assert torch.equal(damaged.train.inputs, intact.train.inputs)
        assert torch.equal(damaged.train.targets, intact.train.targets)


@settings(max_examples=200)
@given(damage=damages() | damages(early=True), name=st.sampled_from(["x", "y"]))
def test_a_damaged_array_in_an_archive_whose_checksums_are_right_is_one_line(
    damage: Damage, name: str, tmp_path: Path
) -> None:
    config = write(tmp_path / "data.npz", x=X, y=LABELS)
    with zipfile.ZipFile(config.path) as archive:
        content = {member: archive.read(member) for member in archive.namelist()}
    content[f"{name}.npy"] = damage.to(content[f"{name}.npy"])
    with zipfile.ZipFile(config.path, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    with refused_or_harmless():
        load(config)


@pytest.mark.parametrize("signed", [False, True])
def test_a_header_that_promises_fewer_rows_is_noticed(signed: bool, tmp_path: Path) -> None:
    config = write(tmp_path / "data.npz", x=X, y=LABELS)
    content = Path(config.path).read_bytes()
    assert content.count(b"(40, 3)") == 1
    Path(config.path).write_bytes(content.replace(b"(40, 3)", b"(30, 3)"))
    if signed:
        buffer = io.BytesIO()
        np.save(buffer, X)
        with zipfile.ZipFile(config.path, "w") as archive:
            archive.writestr("x.npy", buffer.getvalue().replace(b"(40, 3)", b"(30, 3)"))
    reason = r"it has more data than its shape \(30, 3\)" if signed else "Bad CRC-32"
    with pytest.raises(DataError, match=rf"x cannot be read \({reason}"):
        load(config)


def test_more_than_the_memory_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)), y=np.arange(1000) % 2)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(arrays, "memory", lambda: 2.0**20)
    message = r"x cannot be read \(it unpacks to 0.00745 GiB, more than the memory of this machine\)"
    with pytest.raises(DataError, match=message):
        load(NpzConfig(path=str(path)))


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)), y=np.arange(1000) % 2)
    monkeypatch.setattr(arrays, "LARGE", 2**20)
    with pytest.raises(
        DataError, match=r"x cannot be read \(it unpacks to 0.00745 GiB, \d{3,4} times its size in the file"
    ):
        load(NpzConfig(path=str(path)))


@pytest.mark.parametrize("member", ["../x.npy", "/tmp/x.npy", "x.npy/../../x.npy"])
def test_members_are_found_by_their_exact_name_and_nothing_is_unpacked(member: str, tmp_path: Path) -> None:
    config = write(tmp_path / "data.npz", y=LABELS)
    with zipfile.ZipFile(config.path, "a") as archive:
        archive.writestr(member, b"evil")
    with pytest.raises(DataError, match="the array x is missing; found y"):
        load(config)
    assert [path.name for path in tmp_path.iterdir()] == ["data.npz"]


def test_an_array_that_does_not_match_its_checksum_is_named(tmp_path: Path) -> None:
    config = write(tmp_path / "data.npz", x=X, y=LABELS)
    with zipfile.ZipFile(config.path) as archive:
        start = archive.getinfo("y.npy").header_offset
    content = bytearray(Path(config.path).read_bytes())
    content[start + 300] ^= 1
    Path(config.path).write_bytes(content)
    with pytest.raises(DataError, match=r": y cannot be read \(Bad CRC-32"):
        load(config)


def test_the_keys_that_are_there_are_named_where_ours_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    np.savez(path, images=X, labels=LABELS)
    with pytest.raises(DataError, match=r"the array x_train is missing; found images, labels; required are x, y"):
        load(NpzConfig(path=str(path)))
    np.savez(path, x=X, labels=LABELS)
    with pytest.raises(DataError, match=r"the array y is missing; found x, labels; required"):
        load(NpzConfig(path=str(path)))


def test_of_many_foreign_keys_twenty_are_named(tmp_path: Path) -> None:
    for n, more in ((20, ""), (21, " and 1 more"), (27, " and 7 more")):
        path = tmp_path / f"{n}.npz"
        np.savez(path, **{f"a{i:02}": X for i in range(n)})  # pyright: ignore[reportArgumentType]
        names = ", ".join(f"a{i:02}" for i in range(20))
        with pytest.raises(DataError, match=rf"the array x_train is missing; found {names}{more}; required are"):
            load(NpzConfig(path=str(path)))


@pytest.mark.parametrize(("shape", "named"), [((40, 9, 9, 3), True), ((40, 28, 28, 1), True), ((40, 3, 9, 9), False)])
def test_images_with_channels_last_are_named(shape: tuple[int, ...], named: bool) -> None:
    x = np.zeros(shape)
    if not named:
        assert from_arrays(x, LABELS).input_shape == shape[1:]
        return
    with pytest.raises(DataError, match=r"looks like \[n, h, w, channels\].*: x.transpose\(0, 3, 1, 2\)$"):
        from_arrays(x, LABELS)


def test_a_record_names_the_data_by_their_digest_and_finds_them_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "data.npz", x=X, y=LABELS)
    (tmp_path / "copy").mkdir()
    np.savez(tmp_path / "copy" / "other.npz", x=X, y=LABELS)
    hashes = set()
    for path in ("data.npz", "~/data.npz", "copy/../data.npz", str(tmp_path / "copy" / "other.npz")):
        prepared = prepare([TrainConfig(dataset=NpzConfig(path=path), trainer=TrainerConfig(batch_size=4))])
        recorded = prepared.configs[0].dataset
        assert isinstance(recorded, NpzConfig)
        assert Path(recorded.path).is_absolute()
        assert recorded.digest == hashlib.sha256((tmp_path / "data.npz").read_bytes()).hexdigest()[:16]
        hashes.add(config_hash(prepared.configs[0], prepared.budget))
    assert len(hashes) == 1
    old = TrainConfig(dataset=NpzConfig(path="data.npz"))
    assert config_hash(old, 40) != config_hash(TrainConfig(dataset=NpzConfig(path="other.npz")), 40)
    known = prepare([TrainConfig(dataset=NpzConfig(path="data.npz"), trainer=TrainerConfig(batch_size=4))]).configs[0]
    np.savez(tmp_path / "data.npz", x=X + 1, y=LABELS)
    with pytest.raises(
        DataError, match=r"the file was changed: its digest is \w{16}, that of the first run was \w{16}"
    ):
        load(known.dataset)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_classes_given_as_real_numbers_are_named(dtype: str) -> None:
    config = TrainConfig(trainer=TrainerConfig(batch_size=4))
    message = r"^dataset=arrays: the targets are the whole numbers 0 to 3 as real numbers; convert them to int"
    with pytest.raises(DataError, match=message):
        prepare([config], dataset=(X, LABELS.astype(dtype)))
    meant = dataclasses.replace(config, loss=LossConfig(name="squared_error"))
    assert prepare([meant], dataset=(X, LABELS.astype(dtype))).data.task == "regression"
    for y in (LABELS + 0.5, LABELS * 3.0, OUTPUTS):
        assert prepare([config], dataset=(X, y)).data.task == "regression"
