"""Claims on run folders: one process at a time works on a run, and the claims of a dead process end with it.

A claim is a lock of the operating system on one byte of the file `.lock` in the folder that contains the run folders,
so hundreds of runs need one open file, and no lock outlives its process. The byte depends on the job alone, not on the
rest of its folder's name (recording/naming.py). Where there are no such locks (Windows, some network file systems) a
claim only holds within the process.

Three properties of these locks (POSIX, fcntl) determine the code below. The locks belong to the process and the file,
whatever path it was opened by, and closing any descriptor of the file drops them all: each file is opened once. A file
that was removed can still be locked: a lock counts only while the path leads to the locked file. A child made by fork
inherits none of the locks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from burgersgd.recording.naming import same_job

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"

_FLOCK = {"linux": "hhqqi4x", "darwin": "qqihh"}.get(sys.platform) if sys.maxsize > 2**32 else None
"""Layout of the system's struct flock as a format of the struct module; None where it is not known."""


@dataclass
class _LockFile:
    """An open lock file: its descriptors, none of which may be closed while a byte is held, and its held bytes."""

    key: tuple[int, int]
    descriptors: list[int]
    held: set[int] = field(default_factory=set)

    def is_at(self, path: Path) -> bool:
        """Whether the path still leads to this file."""
        return _key_at(path) == self.key


_open: dict[tuple[int, int], _LockFile] = {}  # by device and inode
_claims: dict[Path, _LockFile | None] = {}  # by real path, see _real; None where there are no locks
_names: dict[Path, Path] = {}
"""Path by which a run was claimed -> its real path (see _real), if the lock file is in the parent of that path."""
_guard = threading.RLock()


def claim(run: Path) -> bool:
    """Claim a run folder, which need not exist, in an existing folder; return False where the run is claimed already.

    Raises OSError where the lock file cannot be made.
    """
    name, run = run, _real(run)
    if LOCK in run.parts:
        raise OSError(errno.EINVAL, f"a folder must not be called {LOCK}")
    with _guard:
        if run in _claims:
            return False
        lock = None
        if fcntl is not None:
            lock = _locked(run)
            if lock is None:
                return False
            lock.held.add(_byte(run))
            if lock.is_at(name.parent / LOCK):  # false where the name is a link to a run in another folder
                _names[name] = run
        _claims[run] = lock
        return True


def is_claimed(run: Path) -> bool:
    """Whether a process works on a run; the check itself makes no claim."""
    return _real(run) in _claims or _holder(_real(run)) is not None


def whose(run: Path) -> str:
    """Return a text that names the process working on a run: its id, or "another process" if the id is unknown."""
    pid = os.getpid() if _real(run) in _claims else _holder(_real(run))
    return f"process {pid}" if pid else "another process"


def still_holds(run: Path) -> bool:
    """Whether the claim on a run still excludes others; it does not once the lock file was removed or replaced."""
    with _guard:
        known = _claims.get(_names[run]) if run in _names else None
        if known is not None:  # claimed by this path, whose links need not be resolved again
            return known.is_at(run.parent / LOCK)
        run = _real(run)
        lock = _claims.get(run)
        return run in _claims and (lock is None or lock.is_at(run.parent / LOCK))


def release(run: Path) -> None:
    """Release the claim on a run; does nothing if there is none."""
    with _guard:
        run = _names.pop(run, None) or _real(run)
        lock = _claims.pop(run, None)
        if lock is not None:
            lock.held.discard(_byte(run))
            _unlock(lock, 1, _byte(run))
            _close_unused(lock)


def remove_lock_file(root: Path) -> None:
    """Remove the lock file of a folder if no process holds a claim in it."""
    if fcntl is None:
        return
    path = Path(os.path.realpath(root)) / LOCK
    with _guard, contextlib.suppress(OSError):
        if _key_at(path) is None:
            return
        lock = _lock_file(path)
        if not lock.held:
            try:
                fcntl.lockf(lock.descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)  # the whole file
                if lock.is_at(path):
                    path.unlink()
            finally:
                _unlock(lock, 0, 0)
                _close_unused(lock)


def _locked(run: Path) -> _LockFile | None:
    """Return the lock file with the byte of a run locked; None where the byte is held already."""
    assert fcntl is not None
    while True:
        lock = _lock_file(run.parent / LOCK)
        if _byte(run) in lock.held:  # this process holds it by another path
            return None
        try:
            fcntl.lockf(lock.descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(run))
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):  # the file system has no locks
                return lock
            _close_unused(lock)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise
        if lock.is_at(run.parent / LOCK):
            return lock
        _unlock(lock, 1, _byte(run))  # the file was removed after it was opened
        _close_unused(lock)


def _lock_file(path: Path) -> _LockFile:
    key = _key_at(path)
    if key in _open:
        return _open[key]
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    status = os.fstat(descriptor)
    lock = _open.setdefault((status.st_dev, status.st_ino), _LockFile((status.st_dev, status.st_ino), []))
    lock.descriptors.append(descriptor)
    return lock


def _unlock(lock: _LockFile, length: int, start: int) -> None:
    assert fcntl is not None
    with contextlib.suppress(OSError):  # the file system has no locks
        fcntl.lockf(lock.descriptors[0], fcntl.LOCK_UN, length, start)


def _close_unused(lock: _LockFile) -> None:
    if not lock.held:
        _open.pop(lock.key, None)
        for descriptor in lock.descriptors:
            os.close(descriptor)


def _holder(run: Path) -> int | None:
    """Return the id of the other process that holds a run, 0 for an unknown id, None where no process holds it."""
    if fcntl is None:
        return None
    with _guard:
        key = _key_at(run.parent / LOCK)
        if key is None:
            return None
        if key in _open:
            return _who_locks(_open[key].descriptors[0], _byte(run))
        descriptor = os.open(run.parent / LOCK, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _who_locks(descriptor, _byte(run))
        finally:
            os.close(descriptor)


def _who_locks(descriptor: int, byte: int) -> int | None:
    assert fcntl is not None
    if _FLOCK is None:
        try:
            os.lseek(descriptor, byte, os.SEEK_SET)
            os.lockf(descriptor, os.F_TEST, 1)
        except OSError as error:
            return 0 if error.errno in (errno.EACCES, errno.EAGAIN) else None
        return None
    fields = {"linux": (fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0), "darwin": (byte, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)}
    try:
        found = struct.unpack(
            _FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, struct.pack(_FLOCK, *fields[sys.platform]))
        )
    except OSError:  # the file system has no locks
        return None
    kind, pid = (found[0], found[4]) if sys.platform == "linux" else (found[3], found[2])
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def _real(run: Path) -> Path:
    """Return the real path of a run folder, with its name reduced to the part that all names of the job share."""
    real = Path(os.path.realpath(run))
    return real.with_name(same_job(real.name)) if real.name else real


def _key_at(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _byte(run: Path) -> int:
    """Return the offset of the byte that stands for a run's name, below 2^40, which every file system allows."""
    return int.from_bytes(hashlib.sha256(os.fsencode(run.name)).digest()[:5])


def _forget() -> None:
    """Forget all claims in a child made by fork: they remain those of the parent."""
    global _guard
    _guard = threading.RLock()
    _claims.clear()
    _names.clear()
    for lock in _open.values():
        for descriptor in lock.descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
