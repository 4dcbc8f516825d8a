"""Claims on run folders: one process at a time works on a run, and a dead process holds nothing.

A claim is a lock of the operating system on one byte of the file `.lock` beside the run folders, so hundreds of runs
need one open file, and there is no such thing as a stale lock. Where there are no such locks (Windows, some network
file systems) a claim only holds within the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"

_held: dict[Path, set[str]] = {}  # folder of run folders -> names of those claimed
_files: dict[Path, int] = {}  # its open lock file: there must never be a second one, closing it would drop the locks


def claim(run: Path) -> bool:
    """Claim a run folder, existing or not, below an existing folder; return False where somebody else holds it.

    Raises OSError where the lock file cannot be made.
    """
    root, name = run.absolute().parent, run.name
    names = _held.setdefault(root, set())
    if name in names:
        return False
    if fcntl is not None:
        if root not in _files:
            _files[root] = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(_files[root], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(name))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                _close_unused(root)
                return False
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
    names.add(name)
    return True


def is_claimed(run: Path) -> bool:
    """Whether a process works on a run; looking takes no claim."""
    root, name = run.absolute().parent, run.name
    if name in _held.get(root, ()):
        return True
    if fcntl is None or not (root / LOCK).exists() or root in _files:
        return False
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.lseek(descriptor, _byte(name), os.SEEK_SET)
        os.lockf(descriptor, os.F_TEST, 1)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(descriptor)
    return False


def release(run: Path) -> None:
    """Give a claim back; nothing happens where there is none."""
    root, name = run.absolute().parent, run.name
    if name not in _held.get(root, ()):
        return
    _held[root].discard(name)
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(_files[root], fcntl.LOCK_UN, 1, _byte(name))
    _close_unused(root)


def _close_unused(root: Path) -> None:
    if not _held[root]:
        del _held[root]
        if root in _files:
            os.close(_files.pop(root))


def _byte(name: str) -> int:
    """Return the byte that stands for a name, one of 2^40: no file system has smaller files."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:5])
