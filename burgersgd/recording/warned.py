"""Warnings of a command: each kind is shown once, no matter how many fleets and worker processes issue it."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?")
_log = logging.getLogger("burgersgd")


class _Once(logging.Filter):
    """Suppresses a warning that differs from an earlier one in numbers alone."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        kind = NUMBER.sub("#", record.getMessage())
        if record.levelno < logging.WARNING:
            return True
        is_new = kind not in self._shown
        self._shown.add(kind)
        return is_new


@contextlib.contextmanager
def each_warning_once() -> Iterator[None]:
    """Show every kind of warning of the package only once while the context lasts."""
    once = _Once()
    _log.addFilter(once)
    try:
        yield
    finally:
        _log.removeFilter(once)


def relay(send: Callable[[int, str], None]) -> None:
    """Call `send` with level and text of the package's log records instead of showing them, until the process ends."""

    class Relay(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            send(record.levelno, record.getMessage())

    _log.addHandler(Relay())
    _log.propagate = False
