"""Garbage collection in processes that burgersgd does not share with other code: its command and its workers."""

from __future__ import annotations

import contextlib
import gc
import signal
from collections.abc import Iterator
from typing import Any

COLLECT_AFTER = 50_000
"""New objects between two collections; Python's own 700 cost 0.3 s while torch is imported."""


@contextlib.contextmanager
def seldom_collecting() -> Iterator[None]:
    """Look for garbage seldom, and not at all when the process ends: 0.4 s, once torch is there."""
    gc.set_threshold(COLLECT_AFTER)
    try:
        yield
    finally:
        gc.freeze()


def worker(*arguments: Any) -> None:
    """Be a worker of a sweep, see sweeps.workers.work. Here because that module imports torch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; one decides
    with seldom_collecting():
        from burgersgd.sweeps.workers import work

        work(*arguments)
