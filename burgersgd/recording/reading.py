"""Reads the files of a run folder. A damaged or changed file raises RunFolderError: one line with file and reason.

Reading a file executes none of its content, and needs no more memory than a small multiple of its size.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from burgersgd.recording.files import (
    YAML_LOADER,
    RunFolderError,
    digest,
    one_line,
    plain_json,
    read_bytes,
    read_text,
    restored,
)
from burgersgd.recording.schema import End, Environment, Status, checked, decoded

CONFIG = Path(".hydra", "config.yaml")
OVERRIDES = Path(".hydra", "overrides.yaml")
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
STATUS = "status.json"
CHECKPOINT = "checkpoint.pt"

STATES = ("running", "completed", "diverged", "pruned", "failed", "interrupted")
ENDED = ("completed", "diverged", "pruned")
"""States with a result; a run in another state can be resumed from its checkpoint."""

YAML_END = "...\n"
"""The last line of config.yaml: a file without it is truncated. (Version 0.1.0 did not write it.)"""

LAST_BYTES = 4096
"""Number of bytes at the end of metrics.csv that are searched for its last row."""

FORMAT = 2
"""Format of checkpoint.pt, increased when its content changes its meaning. Format 1 (version 0.1.0) had no digest."""


def read_status(path: Path) -> dict[str, Any]:
    """Return status.json of the run folder `path`, with "inf", "-inf" and "nan" turned back into floats."""
    file = Path(path) / STATUS
    return checked(restored(decoded(read_bytes(file), file)), Status, file)


def read_end(path: Path, unchanged: bool = False) -> dict[str, Any] | None:
    """Return status.json of a run that has ended, with all its results; None where the run has not ended.

    unchanged: require that the digest of the results is the one that was written with them. Raises RunFolderError.
    """
    status, file = read_status(path), Path(path) / STATUS
    if status["state"] not in ENDED:
        return None
    checked(status, End, file)
    if not status["best_at"] <= status["evaluations"] <= status["budget"]:
        raise RunFolderError(f"{file}: best_at <= evaluations <= budget must hold")
    errors = [status[name] for name in ("test_error", "validation_error", "best_validation_error", "best_test_error")]
    unvalidated = status["best_at"] == 0 and all(math.isnan(error) for error in errors[1:])
    if status["state"] == "completed" and not all(0 <= error < math.inf for error in errors[: 1 if unvalidated else 2]):
        raise RunFolderError(f"{file}: the errors of a completed run must be finite, are {errors[0]} and {errors[1]}")
    if any(error < 0 for error in errors):
        raise RunFolderError(f"{file}: errors must not be negative")
    if unchanged and status.get("result_digest") not in (None, result_digest(status)):  # version 0.1.0 wrote no digest
        raise RunFolderError(f"{file}: its results were changed after the run ended")
    return status


def result_digest(status: Mapping[str, Any]) -> str:
    """Return the digest of the results in status.json, stored there to detect later changes."""
    results = ["state", "config_hash", *(name for name in End.__struct_fields__ if name != "seconds")]
    text = json.dumps(plain_json([status.get(name) for name in results]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def has_ended(path: Path) -> bool:
    """Whether status.json says that a run has ended; False if it cannot be read."""
    try:
        return read_status(path)["state"] in ENDED
    except RunFolderError:
        return False


def read_environment(path: Path) -> dict[str, Any]:
    """Return environment.json of the run folder `path`."""
    file = Path(path) / ENVIRONMENT
    return checked(decoded(read_bytes(file), file), Environment, file)


def read_config(path: Path) -> dict[str, Any]:
    """Return the resolved configuration of the run folder `path`, as plain values by key."""
    file = Path(path) / CONFIG
    if not file.parent.parent.is_dir():
        raise RunFolderError(f"{path}: there is no such folder")
    text = read_text(file)
    try:
        if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=YAML_LOADER)):
            raise RunFolderError(
                f"cannot read {file}: it has YAML aliases, which burgersgd never writes"
            )  # a few aliases can fill the memory
        config = yaml.load(text, Loader=YAML_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise RunFolderError(f"{file}: must hold keys and their values, not {type(config).__name__}")
    return config


def has_last_line(path: Path) -> bool:
    """Whether config.yaml of the run folder `path` has its last line."""
    return read_bytes(Path(path) / CONFIG).endswith(YAML_END.encode())


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Return the columns of metrics.csv in the run folder `path`; empty entries are nan.

    A last line without a line end (the writer was killed, or is still writing) is left out.
    """
    file = Path(path) / METRICS
    return metrics_of(read_text(file), file)


def metrics_of(text: str, file: Path) -> dict[str, list[float]]:
    """Return the columns of the text of a metrics.csv, see read_metrics; lines may end in CR LF, too."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    rows = csv.reader(text[: text.rfind("\n") + 1].split("\n")[:-1], strict=True)
    try:
        header = next(rows, [])
        if "evaluations" not in header or len(set(header)) < len(header):
            raise ValueError("the first line must name the columns, evaluations among them, each once")
        columns: dict[str, list[float]] = {name: [] for name in header}
        for row in rows:
            for name, entry in zip(header, row, strict=True):
                columns[name].append(_number(entry))
        steps = columns["evaluations"]
        if not all(0 <= a <= b < 2**53 and b == int(b) for a, b in zip([0, *steps], steps, strict=False)):
            raise ValueError("evaluations must be whole numbers that do not decrease")
    except (ValueError, OverflowError, csv.Error) as error:
        words = one_line(error).removeprefix("ValueError: ")
        raise RunFolderError(f"cannot read {file}: {words}") from error
    return columns


def evaluations_so_far(path: Path) -> int:
    """Return the gradient evaluations in the last row of metrics.csv, 0 without rows; only the file's end is read."""
    try:
        with open(Path(path) / METRICS, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = stream.read().split(b"\n")[1:-1]  # the first and the last piece are not complete lines
        return int(lines[-1].partition(b",")[0]) if lines else 0
    except (OSError, ValueError):  # ValueError: the first column holds no number
        return 0


def _number(entry: str) -> float:
    if "_" in entry or not entry.isascii():  # float() would read 1_0 as 10
        raise ValueError(f"{entry[:40]!r} is not a number")
    return float(entry) if entry else math.nan


def metrics_digest(text: bytes) -> str:
    """Return the digest of the metrics before a checkpoint, which the checkpoint stores."""
    return hashlib.sha256(text).hexdigest()[:16]


def read_checkpoint(path: Path, map_location: str = "cpu", name: str = CHECKPOINT) -> dict[str, Any]:
    """Return checkpoint.pt of the run folder `path`; code in the file is never executed.

    Raises RunFolderError for a file that holds more than data, for one of another format, and for a changed one.
    """
    import torch

    file = Path(path) / name
    try:
        _check_archive(file)
        state = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises OSError, RuntimeError, EOFError, UnpicklingError ... for a broken file
        raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error
    found = state.pop("format", 0) if isinstance(state, dict) else None
    if type(found) is not int or found not in (1, FORMAT):
        shown = found if type(found) is int else f"of type {type(found).__name__}"
        raise RunFolderError(f"{file} has format {shown}, this version of burgersgd reads formats 1 and {FORMAT}")
    if found == FORMAT:
        kept = state.pop("digest", None)
        try:
            same = digest(state) == kept
        except Exception as error:  # a value that is no data, or a tensor larger than its memory
            raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error
        if not same:
            raise RunFolderError(f"{file} was changed after it was written")
    return state


def _check_archive(file: Path) -> None:
    """Raise if an archive of torch is damaged (torch itself does not check that) or larger unpacked than packed."""
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise ValueError("it is compressed; burgersgd writes only uncompressed checkpoints")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")
