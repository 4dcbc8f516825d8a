"""Formats the metrics of all runs of a fleet at one moment together: as lines of metrics.csv and as events.

Values that are the same in all runs are formatted once. An event is a protocol buffer of which only about eight to
forty bytes differ from run to run, so all of them are made as one array of bytes, in the layout of tensorboard's own
classes.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from burgersgd.recording.files import csv_number
from burgersgd.training.metrics import EVALUATED, tag_of

Row = dict[str, float | int | None]
"""Metrics of a run at one moment, by column."""
Table = Mapping[str, float | int | list[float] | None]
"""Metrics of several runs at one moment, by column: a list with a number for every run, or one number for all runs."""


def rows_of(table: Table, n_runs: int) -> list[Row]:
    """Return the row of every run."""
    columns = (value if isinstance(value, list) else itertools.repeat(value, n_runs) for value in table.values())
    return [dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)]


def csv_lines(names: Sequence[str], table: Table, n_runs: int) -> list[bytes]:
    """Return the line of every run in a metrics.csv with these columns; entries that the table lacks are empty.

    Floats are written so that reading returns exactly the same numbers. What the rule does not have (SGD has no
    distance of x and y) is NaN and not empty: programs that guess the type of a column from its first rows (polars)
    then read numbers. They know no other spelling of NaN.
    """
    evaluated = table.get("train_loss") is not None
    columns: list[Iterable[str]] = []
    for name in names:
        value = table.get(name)
        missing = value is None and evaluated and name in EVALUATED
        same = itertools.repeat("" if isinstance(value, list) else csv_number(math.nan if missing else value), n_runs)
        columns.append(map(repr, value) if isinstance(value, list) else same)
    return [(",".join(entries) + "\n").replace("nan", "NaN").encode() for entries in zip(*columns, strict=True)]


def tagged(table: Table, n_runs: int, regression: bool) -> dict[str, Sequence[float]]:
    """Return the numbers of all runs by their tag in TensorBoard; columns without a tag or a value are left out.

    regression: errors are RMSE and are named so.
    """
    found: dict[str, Sequence[float]] = {}
    for name, value in table.items():
        tag = tag_of(name)
        if tag is not None and value is not None:
            found[tag_name(tag, regression)] = value if isinstance(value, list) else [float(value)] * n_runs
    return found


def tag_name(tag: str, regression: bool) -> str:
    """Return the tag, with "error" replaced by "RMSE" in regression."""
    return tag.replace("error", "RMSE") if regression else tag


def scalar_records(wall_time: float, step: int, values: Mapping[str, Sequence[float]], n_runs: int) -> Sequence[bytes]:
    """Return, for every run, the record of an event file with its numbers by tag at a step; empty without numbers."""
    if not values:
        return [b""] * n_runs
    import google_crc32c
    import numpy as np

    summary, offsets = b"", []
    for tag in values:
        name = tag.encode()
        entry = b"\x0a" + _varint(len(name)) + name + b"\x15" + bytes(4)  # Summary.Value: tag = 1, simple_value = 2
        summary += b"\x0a" + _varint(len(entry)) + entry  # Summary: value = 1
        offsets.append(len(summary) - 4)
    event = b"\x09" + struct.pack("<d", wall_time)  # Event: wall_time = 1, step = 2 (0 is left out), summary = 5
    event += (b"\x10" + _varint(step) if step else b"") + b"\x2a" + _varint(len(summary))
    start = len(event)
    event += summary
    bodies = np.empty((n_runs, len(event)), np.uint8)
    bodies[:] = np.frombuffer(event, np.uint8)
    with np.errstate(over="ignore"):  # numbers too large for single precision become infinite
        for offset, column in zip(offsets, values.values(), strict=True):
            numbers = np.asarray(column, np.float64).astype("<f4")
            bodies[:, start + offset : start + offset + 4] = numbers.view(np.uint8).reshape(n_runs, 4)
    head = record_head(len(event))
    whole, size = bodies.tobytes(), len(event)
    pieces = [whole[at : at + size] for at in range(0, n_runs * size, size)]
    crc = np.array([google_crc32c.value(piece) for piece in pieces], np.uint64)
    sums = _masked(crc).astype("<u4").tobytes()
    return [head + piece + sums[4 * i : 4 * i + 4] for i, piece in enumerate(pieces)]


def record_head(size: int) -> bytes:
    """Return the header of a record of `size` bytes in an event file: the size and its checksum."""
    length = struct.pack("<Q", size)
    return length + checksum(length)


def checksum(data: bytes) -> bytes:
    """Return the checksum of data in an event file. tensorboard's own RecordWriter computes it in Python."""
    import google_crc32c  # in C

    return struct.pack("<I", _masked(google_crc32c.value(data)))


def _masked(crc: Any) -> Any:
    """Return a 32-bit CRC, or an array of them with type uint64, masked as in TensorFlow."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(number: int) -> bytes:
    """Return a non-negative integer in the encoding of protocol buffers: seven bits per byte, lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
