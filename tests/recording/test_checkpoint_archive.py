"""Checkpoints written without torch.save: torch reads what was written, and the digest is that of the values."""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burgersgd.recording import checkpoint_archive, checkpoints
from burgersgd.recording.checkpoint_archive import ALIGNMENT, Encoded, UnusualError, archive
from burgersgd.recording.checkpoints import CommonEntries, digest_of, stage_checkpoint
from burgersgd.recording.files import digest, plain_state
from burgersgd.recording.new_folders import STAGED
from burgersgd.recording.reading import FORMAT, read_checkpoint

DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
STATE: dict[str, Any] = {
    "x": torch.linspace(-1, 1, 9000),
    "kinds": [torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES],
    "alive": torch.tensor(True),
    "none": torch.zeros(0, 4),
    "cube": torch.randn(2, 3, 4, 5),
    "column": torch.arange(12.0).reshape(3, 4)[:, 1],
    "wide": torch.tensor(2.5).expand(3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "learned": torch.ones(2, requires_grad=True) * 2,
    "empty": [{}, [], ""],
    "text": ["größe", "a\nb", "'\"\\", "\x00"],
    "whole": [0, 1, -1, 255, 256, -256, 65535, 65536, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**200)],
    "real": [0.0, -0.0, 0.1 + 0.2, math.inf, -math.inf, 5e-324],
    "other": {3: None, "true": True, "false": False, "deep": [[[1]]]},
}


def written(entries: Encoded) -> bytes:
    return b"".join(archive(entries, {"format": FORMAT, "digest": entries.digest()}))


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert repr(a) == repr(b)


@pytest.mark.parametrize("way", ["weights only", "any", "mapped"])
def test_torch_reads_what_it_would_have_written(tmp_path: Path, way: str) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(written(Encoded(STATE)))
    loaded = torch.load(file, weights_only=way != "any", mmap=way == "mapped" or None)
    assert loaded.pop("format") == FORMAT
    assert loaded.pop("digest") == digest(plain_state(STATE, "state"))
    by_torch = io.BytesIO()
    torch.save(plain_state(STATE, "state"), by_torch)
    by_torch.seek(0)
    assert_equal(loaded, torch.load(by_torch, weights_only=True))
    tensors = [loaded["x"], loaded["alive"], loaded["cube"], *loaded["kinds"]]
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


def test_the_archive_is_whole_uncompressed_and_aligned_for_any_reader() -> None:
    state = {
        name: value for name, value in STATE.items() if name != "turned"
    }  # of which torch keeps the order in memory
    data = written(Encoded(state))
    by_torch = io.BytesIO()
    torch.save({"format": FORMAT, "digest": "", **plain_state(state, "state")}, by_torch)
    with zipfile.ZipFile(io.BytesIO(data)) as ours, zipfile.ZipFile(by_torch) as theirs:
        assert ours.testzip() is None
        assert ours.namelist() == theirs.namelist()
        for name in ours.namelist():
            if name not in ("archive/data.pkl", "archive/.data/serialization_id"):
                assert ours.read(name) == theirs.read(name), name
        for member in ours.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.extract_version == member.create_version == 20  # what a zip archive without more needs
            at = member.header_offset + 26
            lengths = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (0, 2))
            assert (at + 4 + sum(lengths)) % ALIGNMENT == 0
        assert len(ours.read("archive/.data/serialization_id")) == 40
        assert ours.read("archive/byteorder").decode() == sys.byteorder


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(), inner),
            max_leaves=12,
        ),
        max_size=6,
    )
)
@settings(max_examples=25, deadline=None)
def test_any_plain_data_comes_back_with_its_digest(state: dict[str, Any]) -> None:
    state = {f"k{key}": value for key, value in state.items()}  # neither format nor digest
    try:
        entries = Encoded(state)
    except UnicodeEncodeError:
        return
    loaded = torch.load(io.BytesIO(written(entries)), weights_only=True)
    assert loaded.pop("digest") == digest(state)
    del loaded["format"]
    assert_equal(loaded, state)


def test_what_the_runs_of_a_fleet_have_in_common_is_the_same_when_it_is_encoded_once(tmp_path: Path) -> None:
    shared = {"mean": torch.arange(4.0), "network": [["w", [2, 2]], {"scale": torch.full((2,), 0.5)}]}
    common = CommonEntries(shared)
    for run in range(3):
        state = {"x": torch.full((5,), float(run)), "run": run, "more": {"y": torch.tensor(run)}}
        stage_checkpoint(tmp_path, state, common)
        together = read_checkpoint(tmp_path, name=STAGED)  # which compares the digest
        assert_equal(together, state | shared)
        stage_checkpoint(tmp_path, state | shared)
        assert_equal(read_checkpoint(tmp_path, name=STAGED), together)


@pytest.mark.parametrize("odd", [{}, {"pair": (1, 2.5)}, {"none": 1 << 3000}])
def test_the_digest_of_a_configuration_is_that_of_its_values(odd: dict[str, Any]) -> None:
    config = {"lr": 0.1, "names": ["a", None, True], "group": {"gamma": math.inf, "n": 3}} | odd
    assert digest_of(config) == digest(config) != digest_of(config | {"lr": 0.2})


@pytest.mark.parametrize("place", ["own", "common"])
@pytest.mark.parametrize("value", [torch.tensor(1 + 2j), torch.eye(3).to_sparse()])
def test_what_only_torch_can_save_is_saved_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, place: str
) -> None:
    saved: list[str] = []
    by_torch = checkpoints._save_by_torch
    monkeypatch.setattr(checkpoints, "_save_by_torch", lambda *a: saved.append("by torch") or by_torch(*a))
    with pytest.raises(UnusualError):
        Encoded({"value": value})
    entries = {"n": 1}, {"value": value}
    own, common = entries if place == "common" else entries[::-1]
    try:
        stage_checkpoint(tmp_path, own, CommonEntries(common))
        assert_equal(read_checkpoint(tmp_path, name=STAGED)["value"], value)
    except (RuntimeError, TypeError, NotImplementedError):  # a sparse tensor has no digest
        assert isinstance(value, torch.Tensor)
        assert value.layout == torch.sparse_coo
    assert saved == ["by torch"]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1, {2}]}}, r"checkpoint\['a'\]\['b'\]\[1\] is a set"),
        ({"a": {1.5: 2}}, r"\['a'\] has a key of type"),
    ],
)
def test_what_is_no_data_is_refused_by_its_place(tmp_path: Path, state: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        stage_checkpoint(tmp_path, state)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_too_large_for_the_format_is_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"x": torch.arange(2000.0)}
    size = len(written(Encoded(state)))
    monkeypatch.setattr(checkpoint_archive, "LARGEST", size)
    with pytest.raises(UnusualError):
        written(Encoded(state))
    stage_checkpoint(tmp_path, state)
    assert_equal(read_checkpoint(tmp_path, name=STAGED), state)
    monkeypatch.setattr(checkpoint_archive, "LARGEST", size + 7 * 256)  # the most that seven members may take besides
    assert len(written(Encoded(state))) == size


@pytest.mark.parametrize("value", [0, 1, 255, 256, 2**31 - 1, 2**31, -1, -(2**31), -(2**31) - 1, 2**2038])
def test_whole_numbers_of_every_size_are_read_back(value: int) -> None:
    pickled, _ = checkpoint_archive._integer(value)
    assert pickle.loads(b"\x80\x02" + pickled + b".") == value
    if 0 <= value < 256:
        assert pickled == b"K" + bytes([value])  # the shortest form


def test_a_whole_number_beyond_255_bytes_is_left_to_torch() -> None:
    Encoded({"n": (1 << 2039) - 1})
    with pytest.raises(UnusualError):
        Encoded({"n": 1 << 2039})
