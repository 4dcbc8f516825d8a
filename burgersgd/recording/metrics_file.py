"""metrics.csv of one run: the rows that wait to be written, and a digest of those that are."""

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
    """Reads and writes metrics.csv of the run folder `path`; the file is open only while that is done.

    No other program writes to the file: its length and its digest are known from what was written.
    """

    def __init__(self, path: Path) -> None:
        self.file = path / METRICS
        self.more: Sequence[str] = ()
        """Columns of a new metrics.csv behind COLUMNS: what else the rule says of its state."""
        self.length = 0
        """Bytes that are written."""
        self._sum = hashlib.sha256()
        self._columns: Sequence[str] = COLUMNS
        self._lines: list[bytes] = []  # that wait to be written

    def text(self, length: int | None = None, known: str | None = None) -> str:
        """Return the first so many bytes of metrics.csv, None for all; `known` is their digest, None for any.

        Raises RunFolderError where the file is shorter, or holds other bytes.
        """
        text = read_text(self.file)
        if length is not None and len(text) < length:  # the file is plain ASCII
            raise RunFolderError(
                f"{self.file} has {len(text)} bytes, the checkpoint knows {length}: it was changed since"
            )
        text = text[:length]
        if known is not None and metrics_digest(text.encode()) != known:
            raise RunFolderError(f"{self.file} was changed since the checkpoint was written")
        return text

    def rows(self, length: int | None = None, known: str | None = None) -> list[Row]:
        """Return the rows of metrics.csv by column, None for what is empty. Arguments and errors as in text."""
        columns = metrics_of(self.text(length, known), self.file)
        rows: list[Row] = []
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            entries = {name: None if math.isnan(value) else value for name, value in row.items()}
            rows.append(entries | {"evaluations": int(row["evaluations"])})
        return rows

    def rewind(self, length: int | None, known: str | None = None) -> list[Row]:
        """Forget all rows behind the first so many bytes (None: all rows) and return those before. Raises as text."""
        header = self.text().partition("\n")[0] + "\n"
        kept = self.text(len(header) if length is None else length, known)
        self._columns = list(metrics_of(header, self.file))
        if ",".join(self._columns) + "\n" != header or not kept.endswith("\n"):
            raise RunFolderError(f"{self.file} was changed by another program: its lines are not as they were written")
        rows = self.rows(len(kept))
        self.forget_waiting()
        try:
            os.truncate(self.file, len(kept))
        except OSError as error:
            raise RunFolderError(f"cannot rewind {self.file}: {one_line(error)}") from error
        self.kept(kept)
        return rows

    def kept(self, text: str) -> None:
        """Take text as all that metrics.csv holds."""
        self._sum, self.length = hashlib.sha256(text.encode()), len(text.encode())

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of metrics.csv. What else the rule says of its state joins those of a file that has no row yet."""
        return (*COLUMNS, *self.more) if self._header_is_short else tuple(self._columns)

    @property
    def _header_is_short(self) -> bool:
        return bool(self.more) and self.length == len(HEADER)

    def add(self, line: bytes) -> None:
        """Take a row, to be written later."""
        self._lines.append(line)

    def forget_waiting(self) -> None:
        """Drop the rows that wait to be written."""
        self._lines.clear()

    @property
    def waits(self) -> bool:
        """Whether rows wait to be written."""
        return bool(self._lines)

    def write(self) -> None:
        """Write the rows that wait: with one call of the system, so that a reader sees whole lines."""
        if self._header_is_short:
            self._columns = self.columns
            header = ",".join(self._columns) + "\n"
            with replacing(self.file, lasting=False) as stream:
                stream.write(header.encode())
            self.kept(header)
        lines = b"".join(self._lines)
        self._lines.clear()  # a row that cannot be written is lost, whole
        append(self.file, lines)
        self._sum.update(lines)
        self.length += len(lines)

    def position(self) -> dict[str, Any]:
        """Return what a checkpoint must know of the file: its length, and a digest of what it holds.

        Raises RunFolderError where another program has written to it.
        """
        try:
            length = self.file.stat().st_size
        except OSError as error:
            raise RunFolderError(f"cannot write {self.file}: {one_line(error)}") from error
        if length != self.length:
            raise RunFolderError(f"{self.file} has {length} bytes, {self.length} were written: it was changed")
        return {"metrics_bytes": length, "metrics_digest": self._sum.hexdigest()[:16]}
