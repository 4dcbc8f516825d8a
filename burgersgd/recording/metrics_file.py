"""metrics.csv of one run: the rows that are not written yet, and a digest of those that are."""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burgersgd.recording.files import RunFolderError, append, one_line, read_text, replacing
from burgersgd.recording.reading import METRICS, metrics_digest, metrics_of
from burgersgd.recording.rows import Row
from burgersgd.training.metrics import NAMES

COLUMNS = NAMES
HEADER = ",".join(COLUMNS) + "\n"


class MetricsFile:
    """Reads and writes metrics.csv of the run folder `path`; the file is open only during a call.

    No other program writes to the file, so its length and its digest are computed from what this object wrote.
    """

    def __init__(self, path: Path) -> None:
        self.file = path / METRICS
        self.more: Sequence[str] = ()
        """Columns that a new metrics.csv has after COLUMNS: quantities of its state that the optimizer reports."""
        self.length = 0
        """Number of bytes written."""
        self._sum = hashlib.sha256()
        self._columns: Sequence[str] = COLUMNS
        self._lines: list[bytes] = []  # rows that are not written yet

    def text(self, length: int | None = None, known: str | None = None) -> str:
        """Return the first `length` bytes of metrics.csv (None: all of it).

        Raises RunFolderError where the file is shorter, or where the digest of these bytes is not `known` (None: any).
        """
        text = read_text(self.file)
        if length is not None and len(text) < length:  # the file is plain ASCII
            raise RunFolderError(
                f"{self.file} has {len(text)} bytes, fewer than the {length} of the checkpoint: it was changed"
            )
        text = text[:length]
        if known is not None and metrics_digest(text.encode()) != known:
            raise RunFolderError(f"{self.file} was changed after the checkpoint was written")
        return text

    def rows(self, length: int | None = None, known: str | None = None) -> list[Row]:
        """Return the rows of metrics.csv by column, with None for empty entries. Arguments and errors as in text."""
        columns = metrics_of(self.text(length, known), self.file)
        rows: list[Row] = []
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            entries = {name: None if math.isnan(value) else value for name, value in row.items()}
            rows.append(entries | {"evaluations": int(row["evaluations"])})
        return rows

    def rewind(self, length: int | None, known: str | None = None) -> list[Row]:
        """Remove all rows after the first `length` bytes (None: all rows) and return the remaining ones.

        Raises RunFolderError as text does, and where the lines were changed or the file cannot be truncated.
        """
        header = self.text().partition("\n")[0] + "\n"
        kept = self.text(len(header) if length is None else length, known)
        self._columns = list(metrics_of(header, self.file))
        if ",".join(self._columns) + "\n" != header or not kept.endswith("\n"):
            raise RunFolderError(
                f"{self.file} was changed by another program: its header or last line is not as it was written"
            )
        rows = self.rows(len(kept))
        self.forget_waiting()
        try:
            os.truncate(self.file, len(kept))
        except OSError as error:
            raise RunFolderError(f"cannot rewind {self.file}: {one_line(error)}") from error
        self.kept(kept)
        return rows

    def kept(self, text: str) -> None:
        """Set length and digest to those of `text`, the complete content of metrics.csv."""
        self._sum, self.length = hashlib.sha256(text.encode()), len(text.encode())

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of metrics.csv; those of `more` are added as long as the file has no row."""
        return (*COLUMNS, *self.more) if self._header_is_short else tuple(self._columns)

    @property
    def _header_is_short(self) -> bool:
        return bool(self.more) and self.length == len(HEADER)

    def add(self, line: bytes) -> None:
        """Add a row, to be written later."""
        self._lines.append(line)

    def forget_waiting(self) -> None:
        """Drop the rows that are not written yet."""
        self._lines.clear()

    @property
    def waits(self) -> bool:
        """Whether there are rows that are not written yet."""
        return bool(self._lines)

    def write(self) -> None:
        """Write the added rows with one system call, so that a reader sees complete lines."""
        if self._header_is_short:
            self._columns = self.columns
            header = ",".join(self._columns) + "\n"
            with replacing(self.file, lasting=False) as stream:
                stream.write(header.encode())
            self.kept(header)
        lines = b"".join(self._lines)
        self._lines.clear()  # a row that cannot be written is dropped entirely
        append(self.file, lines)
        self._sum.update(lines)
        self.length += len(lines)

    def position(self) -> dict[str, Any]:
        """Return the entries of a checkpoint about the file: its length, and a digest of its content.

        Raises RunFolderError where another program has written to it.
        """
        try:
            length = self.file.stat().st_size
        except OSError as error:
            raise RunFolderError(f"cannot write {self.file}: {one_line(error)}") from error
        if length != self.length:
            raise RunFolderError(
                f"{self.file} has {length} bytes, but {self.length} were written: another program changed it"
            )
        return {"metrics_bytes": length, "metrics_digest": self._sum.hexdigest()[:16]}
