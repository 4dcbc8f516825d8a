"""Runs processes in turns by a schedule of file operations and locks, so that a race can be repeated."""

from __future__ import annotations

import os
import pickle
import random
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "os.rename", "os.truncate", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")

Choose = Callable[[list[int], list[int]], int]
"""Processes that wait, and how many operations each process has begun -> which of them may go on."""


def scheduled(actions: Sequence[Callable[[], Any]], root: Path, choose: Choose) -> tuple[list[Any], list[int]]:
    """Call every action in a fork of its own and return their results, and how many operations each has done.

    A fork stops before each operation on files below root and before each lock, until `choose` lets it go on. An
    exception is a result, too.
    """
    reports, grants = [os.pipe() for _ in actions], [os.pipe() for _ in actions]
    children = []
    for i, action in enumerate(actions):
        child = os.fork()
        if child == 0:
            _act(action, root, reports[i][1], grants[i][0])
        children.append(child)
    for _, writer in reports:
        os.close(writer)
    results: list[Any] = [None] * len(actions)
    counts = [0] * len(actions)
    waiting = []

    def hear(i: int) -> None:
        kind = os.read(reports[i][0], 1)
        if kind == b".":
            waiting.append(i)
            return
        (length,) = struct.unpack("q", _read(reports[i][0], 8)) if kind else (0,)
        results[i] = pickle.loads(_read(reports[i][0], length)) if kind else "died"

    for i in range(len(actions)):
        hear(i)
    while waiting:
        chosen = choose(sorted(waiting), counts)
        waiting.remove(chosen)
        counts[chosen] += 1
        os.write(grants[chosen][1], b".")
        hear(chosen)
    for child, (reader, _), pair in zip(children, reports, grants, strict=True):
        os.waitpid(child, 0)
        for descriptor in (reader, *pair):
            os.close(descriptor)
    return results, counts


def _act(action: Callable[[], Any], root: Path, report: int, grant: int) -> None:
    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "fcntl.lockf" or (event in OPERATIONS and str(arguments[0]).startswith(str(root))):
            os.write(report, b".")
            os.read(grant, 1)

    sys.addaudithook(look)
    try:
        result = action()
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
    content = pickle.dumps(result)
    os.write(report, b"=" + struct.pack("q", len(content)) + content)
    os._exit(0)


def _read(descriptor: int, length: int) -> bytes:
    content = b""
    while len(content) < length:
        content += os.read(descriptor, length - len(content))
    return content


def paused(process: int, at: int) -> Choose:
    """Let a process stop before its operation number `at` until all others have ended."""

    def choose(waiting: list[int], counts: list[int]) -> int:
        if process in waiting and counts[process] < at:
            return process
        return next((i for i in waiting if i != process), process)

    return choose


def drawn(seed: int) -> Choose:
    """Let a process go on for a drawn number of operations, then a drawn other one."""
    numbers, turn = random.Random(seed), [0, 0]

    def choose(waiting: list[int], counts: list[int]) -> int:
        if turn[1] == 0 or turn[0] not in waiting:
            turn[:] = numbers.choice(waiting), round(numbers.paretovariate(0.7))
        turn[1] -= 1
        return turn[0]

    return choose
