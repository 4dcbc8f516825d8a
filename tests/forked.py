"""Runs commands in forks of this process, with real descriptors, terminals, signals and exit codes, but no imports."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra.main

from burgersgd import cli
from burgersgd.sweeps import launcher, sweep

IMPORTED = (hydra.main, launcher, sweep)

CRASHED = 99


def forked(action: Callable[[], int]) -> int:
    """Return the exit code of a fork that calls `action`; that of a fork that died of a signal is negative."""
    child = start(action)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(action: Callable[[], int]) -> int:
    """Start a fork that calls `action` and return its process id."""
    child = os.fork()
    if child:
        return child
    code = CRASHED
    try:
        code = action()
    except BaseException:
        Path("crash.txt").write_text(traceback.format_exc())
    os._exit(code)


def command(*arguments: str) -> int:
    """Run the command `burgersgd` on the descriptors 1 and 2, as a new process would, and return its exit code."""
    streams = []
    for descriptor in (1, 2):
        try:
            os.fstat(descriptor)
            buffering = 1 if descriptor == 2 else -1
            streams.append(open(descriptor, "w", encoding="utf-8", buffering=buffering, closefd=False))  # noqa: SIM115
        except OSError:  # closed
            streams.append(None)
    sys.stdout, sys.stderr = streams
    sys.argv = ["burgersgd", *arguments]
    try:
        cli.run()
    except SystemExit as ended:
        for stream in streams:  # as the interpreter does at its end
            if isinstance(stream, io.TextIOBase):
                stream.flush()
        return int(ended.code or 0)
    raise AssertionError("the command did not exit")
