# pyright: reportAttributeAccessIssue=false
# (the protocol buffers' classes are made when they are imported; no type checker sees them)
"""Rows that are formatted together are those of a naive recorder, byte by byte."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from burgersgd import recorder
from burgersgd.api import train, train_fleet
from burgersgd.config import LocalEntropyConfig, SgdConfig, TrainerConfig
from burgersgd.recording import files
from burgersgd.recording.rows import Table, csv_lines, rows_of, scalar_records, tagged
from burgersgd.recording.run_folder import RunFolder, add_rows, read_metrics
from tests.conftest import small_config

NUMBERS = [0.1 + 0.2, -0.0, math.nan, math.inf, -math.inf, 1e300, 5e-324, 1 / 3]
TABLE: Table = {
    "evaluations": 300,
    "epoch": 2.5,
    "seconds": 1e-7,
    "train_loss": NUMBERS,
    "validation_loss": None,
    "validation_error": list(reversed(NUMBERS)),
    "of_the_rule": [float(i) for i in range(8)],
}


def test_lines_are_those_of_a_naive_loop() -> None:
    names = ("evaluations", "of_the_rule", "train_loss", "x_y_distance", "lacking", "validation_loss", "epoch")
    expected = []
    for run in range(8):
        entries = []
        for name in names:
            value = TABLE.get(name)
            value = value[run] if isinstance(value, list) else value
            nothing = "NaN" if name == "x_y_distance" else ""  # a rule without it, in a row with a training loss
            entries.append(nothing if value is None else repr(value).replace("nan", "NaN"))
        expected.append((",".join(entries) + "\n").encode())
    assert csv_lines(names, TABLE, 8) == expected
    assert expected[0] == b"300,0.0,0.30000000000000004,NaN,,,2.5\n"
    assert expected[2] == b"300,2.0,NaN,NaN,,,2.5\n"
    first = csv_lines(names, {"evaluations": 0, "epoch": 0.0, "validation_loss": 2.5}, 2)
    assert first == [b"0,,,,,2.5,0.0\n"] * 2


def test_every_column_has_an_entry_from_which_its_type_is_guessed(tmp_path: Path) -> None:
    config = small_config(
        optimizer=SgdConfig(), trainer=TrainerConfig(budget=20, log_every=5), output_root=str(tmp_path)
    )
    folder = train(config).folder
    assert folder is not None
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    entries = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert [name for name, column in entries.items() if not any(column)] == []
    assert entries["x_y_distance"] == ("", *["NaN"] * (len(rows) - 1))


def test_rows_have_the_entries_of_their_run() -> None:
    rows = rows_of(TABLE, 8)
    assert [list(row) for row in rows] == [list(TABLE)] * 8
    assert rows[5]["train_loss"] == 1e300
    assert (rows[5]["evaluations"], rows[5]["validation_loss"]) == (300, None)
    assert [row["of_the_rule"] for row in rows] == list(range(8))


@pytest.mark.parametrize("step", [0, 1, 127, 128, 300, 2**40 + 1])
def test_events_are_those_of_protocol_buffers_and_tensorboards_checksums(step: int) -> None:
    values: dict[str, Sequence[float]] = {"loss/train": NUMBERS, "é" * 90: NUMBERS[::-1], "a": [0.0] * 8}
    for run, record in enumerate(scalar_records(1.75e9 + 0.25, step, values, 8)):
        event = Event(wall_time=1.75e9 + 0.25, step=step)
        for tag, column in values.items():
            event.summary.value.append(Summary.Value(tag=tag, simple_value=column[run]))
        body, length = event.SerializeToString(), struct.pack("<Q", len(event.SerializeToString()))
        expected = length + struct.pack("<I", masked_crc32c(length)) + body + struct.pack("<I", masked_crc32c(body))
        assert record == expected
    assert scalar_records(1.0, step, {}, 3) == [b""] * 3


def test_only_what_has_a_tag_and_a_value_is_an_event() -> None:
    shown = tagged(TABLE, 8, regression=False)
    assert list(shown) == ["loss/train", "error/validation", "optimizer/of_the_rule"]
    assert list(tagged(TABLE, 8, regression=True))[1] == "RMSE/validation"
    assert tagged({"evaluations": 1, "learning_rate": 0.5}, 1, regression=False) == {"optimizer/learning_rate": [0.5]}


def test_rows_wait_until_they_are_written_and_a_lost_folder_drops_them(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path / str(i), {}) for i in range(4)]
    folders[0].table.more = folders[2].table.more = ["of_the_rule"]
    for evaluations in (1, 2):
        add_rows([*folders[:3], None], {"evaluations": evaluations, "of_the_rule": [0.1, 0.2, 0.3, 0.4]})
    assert all(read_metrics(folder.path)["evaluations"] == [] for folder in folders)
    position = folders[0].metrics_position()  # what a checkpoint knows is in the file
    assert position["metrics_bytes"] == len((tmp_path / "0" / "metrics.csv").read_bytes())
    folders[1].close()
    folders[2].abandon("the disk is gone")
    add_rows([folders[0], None], {"evaluations": 3, "of_the_rule": [0.5, 0.6]})
    for folder in (folders[0], folders[3]):
        folder.close()
    columns = [read_metrics(folder.path) for folder in folders]
    assert [c["evaluations"] for c in columns] == [[1, 2, 3], [1, 2], [], []]
    assert columns[0]["of_the_rule"] == [0.1, 0.1, 0.5]
    assert "of_the_rule" not in columns[1]


@pytest.mark.parametrize("seconds", [0.0, math.inf])
def test_a_fleet_writes_the_files_of_a_naive_recorder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """One of the runs diverges, checkpoints are between; rows are written at once or when a checkpoint asks."""

    def naive(folders: Sequence[RunFolder | None], table: Table, _: float) -> None:
        for folder, row in zip(folders, rows_of(table, len(folders)), strict=True):
            if folder is not None:
                folder.metrics(row)

    def recorded(root: str) -> list[list[str]]:
        settings = TrainerConfig(budget=40, log_every=3, eval_every=10, checkpoint_every=12, batch_size=16)
        optimizers = (LocalEntropyConfig(lr=0.05), LocalEntropyConfig(lr=1e8), LocalEntropyConfig(lr=0.1))
        configs = [
            small_config(seed=i, optimizer=o, trainer=settings, output_root=str(tmp_path / root), run_name=f"run{i}")
            for i, o in enumerate(optimizers)
        ]
        assert [result.state for result in train_fleet(configs)] == ["completed", "diverged", "completed"]
        texts = [(tmp_path / root / f"run{i}" / "metrics.csv").read_text().splitlines() for i in range(3)]
        at = texts[0][0].split(",").index("seconds")
        return [[",".join(e for k, e in enumerate(line.split(",")) if k != at) for line in text] for text in texts]

    monkeypatch.setattr(recorder, "ROWS_SECONDS", seconds)
    together = recorded("together")
    monkeypatch.setattr(recorder, "add_rows", naive)
    assert together == recorded("naive")
    assert len(together[0]) > len(together[1]) > 1


def test_an_exception_in_mid_run_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "ROWS_SECONDS", math.inf)
    told: list[int] = []

    def prune(budget: int):
        def stop(point: recorder.Point):
            told.append(point.evaluations)
            if point.evaluations >= 20:
                raise RuntimeError("in mid-run")
            return point.alive & False

        return stop

    config = small_config(
        optimizer=SgdConfig(lr=0.05),
        trainer=TrainerConfig(budget=40, log_every=5),
        output_root=str(tmp_path),
        run_name="r",
    )
    with pytest.raises(RuntimeError, match="in mid-run"):
        train_fleet([config], prune=prune)
    assert read_metrics(tmp_path / "r")["evaluations"] == told
    assert told[-1] >= 20


def test_json_is_laid_out_as_the_json_module_does() -> None:
    values = {
        "none": None, "yes": True, "zero": 0, "big": -(10**20), "small": 1e-7, "tiny": 5e-324, "large": 1e16,
        "minus": -0.0, "inf": math.inf, "nan": math.nan, "text": 'é "quoted" \\ \n \x01 \u2028 \U0001f600', 3: {},
        "list": [[], [1, {"a": [None, False]}], {}], "nested": {"é\n": {"x": 0.1}},
    }  # fmt: skip
    expected = json.dumps(files.plain_json(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    assert files.to_json(values) == expected


def test_a_disk_that_is_full_in_mid_line_leaves_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system takes three bytes, and no more."""
    file, write = tmp_path / "metrics.csv", os.write
    files.append(file, b"1,2\n")
    calls: list[bytes] = []

    def full(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:3])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(files.RunFolderError, match=r"cannot write .*metrics\.csv: No space left on device"):
            files.append(file, b"3,45\n")
    assert calls == [b"3,45\n", b"5\n"]
    assert file.read_bytes() == b"1,2\n"
    files.append(file, b"6,7\n")
    assert file.read_bytes() == b"1,2\n6,7\n"
