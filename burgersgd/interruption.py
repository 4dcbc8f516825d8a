"""Signals to stop: SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 end a run after its current step, to be resumed."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has the first two
]
GRACE_SECONDS = 4.0
"""A step that lasts longer after the signal is abandoned; its run is resumed from the previous checkpoint."""
RESUMABLE = 75
"""Exit code of an interrupted command that can be resumed (EX_TEMPFAIL of sysexits.h)."""


class Interrupted(KeyboardInterrupt):
    """The process received a signal to stop. `signal` is its number, `folders` are the folders of the stopped runs."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.folders: list[Path] = []


class Interruption:
    """The state that `interruptible` yields: whether the process received a signal to stop."""

    def __init__(self, exit_at_once: bool) -> None:
        self.requested: int | None = None
        """The number of the received signal, None before there is one."""
        self.before: dict[int, Any] = {}
        """The previous handlers, by signal."""
        self._exit_at_once = exit_at_once
        self._deferring = False
        self._watchdog: _Watchdog | None = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a signal received in this context, to act on it after the step; elsewhere it raises at once."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            self.step_ended()

    def step_ended(self) -> None:
        """Stop the timer of GRACE_SECONDS because the step has ended."""
        if self._watchdog is not None:
            self._watchdog.cancel()

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle one of SIGNALS."""
        if self._watchdog is not None and self._watchdog.take_signal():
            if not self._watchdog.off:
                self.raise_if_requested()
            return  # the step ended at the same moment
        if self.requested is not None and number == signal.SIGINT:  # a second Ctrl-C
            if self._exit_at_once:
                os._exit(130)
            raise KeyboardInterrupt
        self.requested = number
        if not self._deferring:
            raise Interrupted(number)
        if hasattr(signal, "pthread_kill") and (self._watchdog is None or self._watchdog.off):
            self._watchdog = _Watchdog(number)


class _Watchdog:
    """Sends a signal to the main thread again after GRACE_SECONDS, to interrupt whatever it is waiting for.

    It is a thread instead of a timer because a process has one timer (SIGALRM), which its caller may use. It uses
    _thread because it is made in a signal handler, which may have interrupted `threading` while that held a lock.
    """

    def __init__(self, number: int) -> None:
        self.off = self._signalled = False
        self._call, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
        self._call.acquire()
        self._ended.acquire()
        try:
            _thread.start_new_thread(self._wait, (number, GRACE_SECONDS))
        except RuntimeError:  # too many threads: do without a watchdog
            self.off = True

    def _wait(self, number: int, seconds: float) -> None:
        if not self._call.acquire(timeout=seconds):
            self._signalled = True
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        self._ended.release()

    def cancel(self) -> None:
        """Prevent any further signal; a signal that was sent has arrived when this returns."""
        if not self.off:
            self.off = True
            self._call.release()
            self._ended.acquire()

    def take_signal(self) -> bool:
        """Return whether the signal that is being handled was sent by the watchdog, and reset this."""
        signalled, self._signalled = self._signalled, False
        return signalled


_current: Interruption | None = None


@contextlib.contextmanager
def interruptible(exit_at_once: bool = False) -> Iterator[Interruption]:
    """Handle SIGNALS in this context; inside another `interruptible`, yield its state.

    exit_at_once: end the process at a second Ctrl-C. A signal that is ignored stays ignored (nohup ignores SIGHUP, and
    shells ignore SIGINT for background processes). Handlers belong to the main thread: in other threads no signal is
    handled, and none is requested.
    """
    global _current
    if _current is not None:
        yield _current
        return
    interruption = Interruption(exit_at_once)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    _current = interruption
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                interruption.before[number] = signal.signal(number, interruption.handle)
        yield interruption
    finally:
        interruption.step_ended()
        for number, handler in interruption.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _current = None
