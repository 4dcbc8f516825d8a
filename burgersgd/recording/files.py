"""Writes files completely or not at all, with errors of one line; converts values to those that the files can hold."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any, BinaryIO

import yaml

YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
YAML_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The C versions, ten times as fast, where PyYAML has them: a sweep writes and reads a file for each of its runs."""


class RunFolderError(ValueError):
    """A run folder cannot be created, written or read; the message is one line naming the path and the reason."""


@contextlib.contextmanager
def replacing(path: Path, lasting: bool = True) -> Iterator[BinaryIO]:
    """Yield a stream whose content becomes the file `path` in one step at the end, or not at all.

    lasting: the file survives a power failure afterwards; otherwise only after a call of `make_lasting`.
    Raises RunFolderError.
    """
    temporary, replaced = _staged(path), False
    try:
        with open(temporary, "wb") as stream:
            yield stream
            if lasting:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        replaced = True
        if lasting:
            sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        if not replaced:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def stage(path: Path, data: bytes) -> None:
    """Write what `commit` makes the file `path`. Raises RunFolderError.

    With a call of `make_lasting` in between, a power failure leaves the old or the new content on every file system;
    some keep the new name before the content otherwise.
    """
    temporary = _staged(path)
    try:
        write_new(str(temporary), data)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {one_line(error)}") from error


def commit(path: Path) -> None:
    """Replace the file `path` by its staged content. Raises RunFolderError."""
    try:
        os.replace(_staged(path), path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {one_line(error)}") from error


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def make_lasting(folders: Sequence[Path]) -> None:
    """Make everything written below the folders survive a power failure, including their entries in their parents.

    On Linux one call per file system does so, which takes as long as syncing a few single files. Raises
    RunFolderError.
    """
    devices: set[int] = set()
    for folder in folders:
        try:
            device = os.stat(folder).st_dev
            if device in devices:
                continue
            if _sync_file_system(folder):
                devices.add(device)
            else:
                _sync_tree(folder)
        except OSError as error:
            raise RunFolderError(f"cannot write {folder}: {one_line(error)}") from error


@functools.cache
def _syncfs() -> Callable[[int], int] | None:
    """Return the system call syncfs, which Python's os module lacks; None on a system without it."""
    try:
        return ctypes.CDLL(None, use_errno=True).syncfs if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None


def _sync_file_system(folder: Path) -> bool:
    """Write the file system of a folder to the disk; return False where the system cannot. Raises OSError."""
    syncfs = _syncfs()
    if syncfs is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(descriptor) == 0:
            return True
        failure = ctypes.get_errno()
        if failure in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise OSError(failure, os.strerror(failure))
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Write every file and folder below a folder, and the folder's entries in all its parents, to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place, name), os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))
    for parent in folder.parents:
        with contextlib.suppress(OSError):  # a parent that this user may not open
            sync_folder(parent)


def sync_folder(path: Path) -> None:
    """Write the entries of a folder (the names of its files) to the disk. Raises OSError."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_BINARY = getattr(os, "O_BINARY", 0)  # without it, Windows would change the line ends


def append(path: Path, data: bytes) -> None:
    """Append `data`, if possible in one write, so that a reader sees complete lines only. Raises RunFolderError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
            except OSError:  # the disk is full: do not leave a part of a line
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {one_line(error)}") from error


def write_new(path: str, data: bytes) -> None:
    """Write a file into a folder that no other process reads yet. Raises OSError.

    Like append, it avoids Python's file objects, which take most of the time for many small files.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(descriptor, data[written:] if written else data)


def read_text(path: Path) -> str:
    """Return the text of a file. Raises RunFolderError."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise RunFolderError(f"cannot read {path}: {one_line(error)}") from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a file. Raises RunFolderError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error as one line: the system's message for errors of the system, else the type and the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def to_yaml(value: Any, path: Path) -> str:
    """Return plain values as YAML; path is the run folder to name in errors. Raises RunFolderError."""
    try:
        if not isinstance(value, dict) or not value:
            return _yaml(value)
        return "".join(_entry(key, entry) for key, entry in value.items())
    except yaml.YAMLError as error:  # the value holds something else than numbers, text, lists and dicts
        raise RunFolderError(f"cannot create run folder {path}: {one_line(error)}") from error


def _entry(key: Any, value: Any) -> str:
    """Return the lines of one entry of a mapping; cached, since most entries of a sweep's runs are the same."""
    name = repr((key, value))
    if name not in _entries:
        if len(_entries) >= 256:
            _entries.clear()
        _entries[name] = _yaml({key: value})
    return _entries[name]


_entries: dict[str, str] = {}


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=YAML_DUMPER, sort_keys=False, allow_unicode=True)


def to_json(value: Any) -> str:
    """Return plain values as JSON, see plain_json."""
    return _indented(plain_json(value), "\n") + "\n"


def _indented(value: Any, line: str) -> str:
    """Return the text that json.dumps(value, indent=2), implemented in Python, returns in four times the time.

    line: a line break followed by the indentation of the value.
    """
    if isinstance(value, dict) and value:
        inner = line + "  "
        entries = [f"{encode_basestring(key)}: {_indented(entry, inner)}" for key, entry in value.items()]
        return "{" + inner + f",{inner}".join(entries) + line + "}"
    if isinstance(value, list) and value:
        inner = line + "  "
        return "[" + inner + f",{inner}".join([_indented(entry, inner) for entry in value]) + line + "]"
    return encode_basestring(value) if isinstance(value, str) else json.dumps(value)


def csv_number(value: float | None) -> str:
    """Return the shortest text that reads back as the same number."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else repr(float(value))


def plain_json(value: Any) -> Any:
    """Return `value` in types of JSON: non-finite floats as "inf", "-inf", "nan"; array scalars as numbers."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else str(float(value))
        case Mapping():
            return {str(key): plain_json(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain_json(entry) for entry in value]
        case _ if getattr(value, "ndim", None) == 0:
            return plain_json(value.item())
        case _:
            raise TypeError(f"a run folder holds numbers, text, lists and dicts, not {type(value).__name__}")


def restored(value: Any) -> Any:
    """Return a value that plain_json converted, with "inf", "-inf" and "nan" turned back into floats."""
    match value:
        case "inf" | "-inf" | "nan":
            return float(value)
        case dict():
            return {key: restored(entry) for key, entry in value.items()}
        case list():
            return [restored(entry) for entry in value]
        case _:
            return value


def plain_state(value: Any, where: str, storages: set[int] | None = None) -> Any:
    """Return `value` with tensors that own their memory. Raises TypeError, naming `where`, for anything but data."""
    import torch

    storages = set() if storages is None else storages
    kind = type(value)  # the exact type: a subclass would be pickled by reference to its code
    if kind is dict:
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{where} has a key of type {type(key).__name__}; allowed are str and int")
        return {key: plain_state(entry, f"{where}[{key!r}]", storages) for key, entry in value.items()}
    if kind is list:
        return [plain_state(entry, f"{where}[{index}]", storages) for index, entry in enumerate(value)]
    if kind is torch.Tensor:
        storage = value.untyped_storage()
        whole = storage.nbytes() == value.numel() * value.element_size()
        own = whole and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        return value.detach() if own else value.detach().clone()
    if value is None or kind in (bool, int, float, str):
        return value
    raise TypeError(
        f"{where} is a {kind.__name__}; a checkpoint holds tensors, numbers, text and None in lists and dicts"
    )


def digest(value: Any) -> str:
    """Return a digest of 32 hexadecimal digits of plain data and tensors (see plain_state); any change alters it.

    Raises TypeError, ValueError or RuntimeError for tensors that are not plain.
    """
    pieces: list[Any] = []
    _add_pieces(value, pieces)
    sha = hashlib.sha256()
    for piece in pieces:  # not joined, because that would copy large tensors
        sha.update(piece)
    return sha.hexdigest()[:32]


def _add_pieces(value: Any, pieces: list[Any]) -> None:
    """Append the pieces of a value, as bytes, to `pieces`.

    It is not nested in digest, because a recursive closure is a reference cycle, which would keep the tensors' memory.
    """
    import torch

    if isinstance(value, dict):
        pieces.append(b"{%d" % len(value))
        for key, entry in value.items():
            _add_pieces(key, pieces)
            _add_pieces(entry, pieces)
    elif isinstance(value, list | tuple):
        pieces.append(b"[%d" % len(value))
        for entry in value:
            _add_pieces(entry, pieces)
    elif isinstance(value, torch.Tensor):
        pieces.append(f"t{value.dtype}{list(value.shape)}".encode())
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError("a tensor has more elements than its memory holds")
        pieces.append(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        text = repr(value).encode()
        pieces.append(b"%s%d:%s" % (type(value).__name__.encode(), len(text), text))
