"""Being told to stop: SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 end a run after its current step, ready to be resumed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
GRACE_SECONDS = 4.0
"""A step that lasts longer after the signal is abandoned: its run goes on from the checkpoint before."""
RESUMABLE = 75
"""Exit code of an interrupted command that can go on (EX_TEMPFAIL of sysexits.h)."""


class Interrupted(KeyboardInterrupt):
    """The process was told to stop. `signal` is the number of the signal, `folders` are those of the stopped runs."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.folders: list[Path] = []


class Interruption:
    """Whether the process was told to stop; what `interruptible` yields."""

    def __init__(self, exit_at_once: bool) -> None:
        self.requested: int | None = None
        """The signal, once there was one."""
        self.before: dict[int, Any] = {}
        """The handlers that were there before, by signal."""
        self._exit_at_once = exit_at_once
        self._deferring = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is only noted, to be acted on after the step; outside it raises Interrupted at once."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            self.settle()

    def settle(self) -> None:
        """Stop counting the seconds of grace: the step is over."""
        if self.requested is not None and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)

    def raise_if_requested(self) -> None:
        """Raise Interrupted where there was a signal."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle one of SIGNALS."""
        if self.requested is not None and number == signal.SIGINT:  # a second Ctrl-C
            if self._exit_at_once:
                os._exit(130)
            raise KeyboardInterrupt
        self.requested = number
        if not self._deferring:
            raise Interrupted(number)
        if hasattr(signal, "setitimer"):
            self.before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self._give_up))
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        self.raise_if_requested()


_current: Interruption | None = None


@contextlib.contextmanager
def interruptible(exit_at_once: bool = False) -> Iterator[Interruption]:
    """Handle SIGNALS meanwhile; inside another `interruptible`, that one's. exit_at_once: at a second Ctrl-C.

    Handlers belong to the main thread: elsewhere nothing is handled, and nothing requested.
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
            interruption.before[number] = signal.signal(number, interruption.handle)
        yield interruption
    finally:
        interruption.settle()
        for number, handler in interruption.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _current = None
