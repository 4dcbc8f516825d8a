"""log.txt of one run: messages for users to read after the run."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from burgersgd.recording.files import append


def run_log(file: Path) -> logging.Logger:
    """Return a logger that writes to `file`, the log.txt of a run; not in logging's registry, which would keep it."""
    log = logging.Logger("burgersgd.api", logging.INFO)
    log.addHandler(_AppendingHandler(file))
    return log


def log_once(log: logging.Logger, file: Path, lines: Sequence[tuple[int, str]]) -> None:
    """Log the last lines of a run, each a pair (level, text), except those that are already in `file`."""
    logged = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for level, text in lines:
        if f"{logging.getLevelName(level)} {text}\n" not in logged:
            log.log(level, "%s", text)


def end_last_line(log: Path) -> None:
    """Remove an incomplete last line, which a process left when it died."""
    if log.exists():
        os.truncate(log, log.read_bytes().rfind(b"\n") + 1)


_FORMATTER = logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class _AppendingHandler(logging.Handler):
    """Appends each record to a file that is open only while it writes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(_FORMATTER)

    def emit(self, record: logging.LogRecord) -> None:
        append(self._path, (self.format(record) + "\n").encode(errors="backslashreplace"))
