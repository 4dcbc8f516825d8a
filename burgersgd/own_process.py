"""The start and end of processes that burgersgd does not share with other code: its command and its workers."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from burgersgd.interruption import SIGNALS

COLLECT_AFTER = 50_000
"""New objects between two garbage collections; Python's default of 700 costs 0.3 s while torch is imported."""


@contextlib.contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Collect garbage rarely, and not at the end of the process, which would take 0.4 s with torch imported."""
    gc.set_threshold(COLLECT_AFTER)
    try:
        yield
    finally:
        gc.freeze()


NEEDED_BY_WORKERS = ["burgersgd.own_process", "burgersgd.sweeps.workers", "burgersgd.api"]
NO_WORKERS = ("--dry-run", "--help", "-h", "--cfg", "-c", "--info", "--hydra-help", "sweep.workers=1")
_prepared = False


def prepare_workers(arguments: Sequence[str]) -> None:
    """Import PyTorch for the workers of a sweep in a second process, while this process imports it, too.

    Workers are then forked in milliseconds from that process, which has no threads and computes nothing; otherwise each
    worker spends two seconds of a core on its imports before it trains. Only the command itself does this: workers of
    a user's own process must see changes of its environment. If no worker is needed, the second process ends with this
    one.
    """
    global _prepared
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sweeps = arguments[:1] in (["study"], ["bench"]) or {"-m", "--multirun"} & set(arguments)
    if not sweeps or cores < 2 or not hasattr(os, "fork"):
        return
    if set(NO_WORKERS) & set(arguments) or any(word.startswith(("device=cuda", "hydra/")) for word in arguments):
        return
    import multiprocessing
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(NEEDED_BY_WORKERS)
    with signals_held():
        forkserver.ensure_running()
    _prepared = True


def start_method() -> str:
    """Return how to start workers: forked from the process that prepare_workers has started, or spawned."""
    return "forkserver" if _prepared else "spawn"


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Block SIGNALS in processes that are started in this context, until they are ready to handle them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it unblocks SIGINT once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker(*arguments: Any) -> None:
    """Run a worker of a sweep, see sweeps.workers.work; defined here because that module imports torch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the command reacts
    with rare_garbage_collection():
        from burgersgd.sweeps.workers import work

        work(*arguments)
