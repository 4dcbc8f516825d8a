"""log.txt of one run: what a user may want to read of it afterwards."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from burgersgd.recording.files import append


def run_log(file: Path) -> logging.Logger:
    """Return a logger of the run whose log.txt is `file`; it is not in logging's registry, which would keep it."""
    log = logging.Logger("burgersgd.api", logging.INFO)
    log.addHandler(_AppendingHandler(file))
    return log


def log_once(log: logging.Logger, file: Path, lines: Sequence[tuple[int, str]]) -> None:
    """Log the last lines of a run, (level, text) each, without those that an earlier process has logged in `file`."""
    known = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for level, text in lines:
        if f"{logging.getLevelName(level)} {text}\n" not in known:
            log.log(level, "%s", text)


def end_last_line(log: Path) -> None:
    """Remove what a process wrote of a line before it died."""
    if log.exists():
        os.truncate(log, log.read_bytes().rfind(b"\n") + 1)


_FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class _AppendingHandler(logging.Handler):
    """Appends each record to a file that is open only meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(_FORMATTER)

    def emit(self, record: logging.LogRecord) -> None:
        append(self._path, (self.format(record) + "\n").encode(errors="backslashreplace"))
