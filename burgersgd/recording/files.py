"""Files written whole or not at all, with one line about what went wrong; values as the files can hold them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
YAML_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The ones in C, ten times as fast, where PyYAML has them: a sweep writes and reads a file for each of its runs."""


class RunFolderError(ValueError):
    """A run folder that cannot be created, written or read: one line naming the path and the reason."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream whose content becomes the file `path` in one step at the end, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append(path: Path, data: bytes) -> None:
    """Append `data`, in one write where the system takes it at once, so that a reader sees whole lines, or nothing."""
    try:
        with open(path, "ab", buffering=0) as stream:
            before = stream.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[stream.write(data) :]
            except OSError:  # the disk is full: leave no part of a line
                stream.truncate(before)
                raise
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {one_line(error)}") from error


def read_text(path: Path) -> str:
    """Return the text of a file. Raises RunFolderError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"cannot read {path}: {one_line(error)}") from error


def read_json(file: Path) -> Any:
    """Return the value in a JSON file. Raises RunFolderError."""
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return what went wrong in one line: the system's words for its own errors, else the type and the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def to_yaml(value: Any, path: Path) -> str:
    """Return plain values as YAML; path is the run folder that an error names. Raises RunFolderError."""
    try:
        return yaml.dump(value, Dumper=YAML_DUMPER, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:  # the value holds more than numbers, text, lists and dicts
        raise RunFolderError(f"cannot create run folder {path}: {one_line(error)}") from error


def to_json(value: Any) -> str:
    """Return plain values as JSON, see plain_json."""
    return json.dumps(plain_json(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def csv_number(value: float | None) -> str:
    """Return the shortest text that reads back as the same number."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else repr(float(value))


def plain_json(value: Any) -> Any:
    """Return `value` as JSON can hold it: non-finite floats as "inf", "-inf", "nan"; array scalars as numbers."""
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
    """Return what plain_json made of a value as it was."""
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
    """Return `value` with tensors that own their memory; raise TypeError naming `where` for anything but data."""
    import torch

    storages = set() if storages is None else storages
    kind = type(value)  # exactly: a subclass would be pickled by reference to its code
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
