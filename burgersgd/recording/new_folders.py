"""Makes the folder of a new run for exactly one process, and recognises a folder that a crash left incomplete."""

import contextlib
import errno
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from burgersgd.recording.claims import LOCK, claim, release, remove_lock_file, whose
from burgersgd.recording.files import RunFolderError, one_line
from burgersgd.recording.naming import other_folder
from burgersgd.recording.reading import (
    CHECKPOINT,
    CONFIG,
    ENDED,
    ENVIRONMENT,
    METRICS,
    STATUS,
    read_config,
    read_environment,
    read_metrics,
    read_status,
)

STAGED = "checkpoint.next.pt"
LOG = "log.txt"
EVENTS = "events.out.tfevents.*"
_log = logging.getLogger("burgersgd")


class RunInUseError(RunFolderError):
    """Another process works on the run."""


class FolderTakenError(RunFolderError):
    """The path at which a new run folder was to be made already exists."""


def has_contents(path: Path) -> bool:
    """Whether `path` is a folder with contents, which a new run must not overwrite.

    A run folder that a crash left incomplete is removed. Raises RunInUseError where another process is making it, and
    RunFolderError where it cannot be removed.
    """
    if not path.is_dir() or not any(path.iterdir()):
        return False
    if not is_incomplete(path):
        return True
    if not claim_run(path.absolute()):
        raise RunInUseError(f"{path}: {whose(path)} is training this run")
    try:
        if not is_incomplete(path):  # another process has completed it in the meantime
            return True
        shutil.rmtree(path)
        _log.warning("%s: a crash left the folder incomplete; starting the run again", path)
    except OSError as error:
        raise RunFolderError(f"cannot remove {path}: {one_line(error)}") from error
    finally:
        release(path)
    return False


def is_incomplete(path: Path) -> bool:
    """Whether a crash left the run folder `path` incomplete, before it held anything worth keeping.

    Such a folder holds no checkpoint, its status is not final, it lacks a file that every run folder has, and all of
    its files are of the kinds that this package writes.
    """
    try:
        if (path / CHECKPOINT).exists() or not all(map(_is_ours, path.iterdir())):
            return False
    except OSError:
        return False
    try:
        if read_status(path)["state"] in ENDED:
            return False
        read_config(path)
        read_environment(path)
        return "evaluations" not in read_metrics(path)
    except RunFolderError:
        return True


def _is_ours(file: Path) -> bool:
    names = {CONFIG.parts[0], ENVIRONMENT, METRICS, STATUS, STAGED, LOG}
    return file.name in names or file.match(EVENTS) or (file.name.startswith(".") and file.suffix == ".tmp")


@contextlib.contextmanager
def claimed_folder(path: Path) -> Iterator[None]:
    """Make the folder `path` and claim it for this process; undo everything if the body of the context fails."""
    missing = list(itertools.takewhile(lambda folder: not os.path.lexists(folder), (path, *path.parents)))
    ours = claimed = False
    try:
        _make(path)
        if any(path.iterdir()):
            raise FileExistsError(errno.EEXIST, "the folder exists and is not empty")
        ours = claim_run(path)
        if not ours:
            raise RunInUseError(f"{path}: {whose(path)} is training this run")
        if (other := other_folder(path)) is not None:
            raise FileExistsError(errno.EEXIST, f"the folder {other.name} holds the same job")
        hydra = path / CONFIG.parts[0]
        try:
            hydra.mkdir()  # of two processes that saw an empty folder, only one can make this
        except FileNotFoundError:  # the process that held it has removed it
            _make(path)
            hydra.mkdir()
        claimed = True
        yield
    except BaseException as error:
        for child in path.iterdir() if claimed else ():
            with contextlib.suppress(OSError):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        if ours:
            if path in missing:
                with contextlib.suppress(OSError, ValueError):  # no other process uses it while it is claimed
                    path.rmdir()
            release(path)
        if path.parent in missing and not isinstance(error, RunInUseError):
            with contextlib.suppress(OSError, ValueError):
                remove_lock_file(path.parent)
        for folder in missing if not isinstance(error, RunInUseError) else ():
            with contextlib.suppress(OSError, ValueError):  # not made yet, used by another process, or impossible
                folder.rmdir()
        if isinstance(error, OSError | ValueError) and not isinstance(error, RunFolderError):
            kind = FolderTakenError if isinstance(error, FileExistsError) else RunFolderError
            raise kind(f"cannot create run folder {path}: {one_line(error)}") from error
        raise


def _make(path: Path) -> None:
    """Make a folder and its parents, even while another process removes parents that it had made."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def claim_run(path: Path) -> bool:
    """Claim a run folder, see claims.claim. Raises RunFolderError where the lock file cannot be made."""
    try:
        return claim(path)
    except OSError as error:
        raise RunFolderError(f"cannot lock {path.parent / LOCK}: {one_line(error)}") from error
