"""Reads the files of a run folder. What is damaged or was changed raises RunFolderError: one line, file and reason.

Nothing that is read runs code, and nothing asks for more memory than a small multiple of its file.
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
"""States with a result; a run in another one can go on from its checkpoint."""

YAML_END = "...\n"
"""The last line of config.yaml: a file without it was cut. (Version 0.1.0 did not write it.)"""

LAST_BYTES = 4096
"""Number of bytes at the end of metrics.csv in which its last row is sought."""

FORMAT = 2
"""Format of checkpoint.pt, raised when its content changes its meaning. Format 1 (version 0.1.0) had no digest."""


def read_status(path: Path) -> dict[str, Any]:
    """Return status.json of the run folder `path`, with "inf", "-inf" and "nan" turned back into floats."""
    file = Path(path) / STATUS
    return checked(restored(decoded(read_bytes(file), file)), Status, file)


def read_end(path: Path, unchanged: bool = False) -> dict[str, Any] | None:
    """Return status.json of a run that is over, with all its results, and None where the run is not over.

    unchanged: the results must be as they were written, by their digest. Raises RunFolderError.
    """
    status, file = read_status(path), Path(path) / STATUS
    if status["state"] not in ENDED:
        return None
    checked(status, End, file)
    if not status["best_at"] <= status["evaluations"] <= status["budget"]:
        raise RunFolderError(f"{file}: best_at, evaluations and budget do not go together")
    errors = [status[name] for name in ("test_error", "validation_error", "best_validation_error", "best_test_error")]
    unvalidated = status["best_at"] == 0 and all(math.isnan(error) for error in errors[1:])
    if status["state"] == "completed" and not all(0 <= error < math.inf for error in errors[: 1 if unvalidated else 2]):
        raise RunFolderError(f"{file}: a completed run has finite errors, these are {errors[0]} and {errors[1]}")
    if any(error < 0 for error in errors):
        raise RunFolderError(f"{file}: an error is negative")
    if unchanged and status.get("result_digest") not in (None, result_digest(status)):  # version 0.1.0 wrote none
        raise RunFolderError(f"{file}: its results were changed since the run ended")
    return status


def result_digest(status: Mapping[str, Any]) -> str:
    """Return what status.json keeps of its own results, to tell whether they were changed."""
    results = ["state", "config_hash", *(name for name in End.__struct_fields__ if name != "seconds")]
    text = json.dumps(plain_json([status.get(name) for name in results]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_over(path: Path) -> bool:
    """Whether status.json says that a run has ended; one that cannot be read says nothing."""
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
    text = read_text(file)
    try:
        if "&" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=YAML_LOADER)):
            raise RunFolderError(f"cannot read {file}: it refers to itself")  # a few of those can fill the memory
        config = yaml.load(text, Loader=YAML_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise RunFolderError(f"{file}: must hold keys and their values, not {type(config).__name__}")
    return config


def is_whole(path: Path) -> bool:
    """Whether config.yaml of the run folder `path` has its last line."""
    return read_bytes(Path(path) / CONFIG).endswith(YAML_END.encode())


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Return the columns of metrics.csv in the run folder `path`; empty entries are nan.

    A last line without its end (the writer was killed, or is writing) is left out.
    """
    file = Path(path) / METRICS
    return metrics_of(read_text(file), file)


def metrics_of(text: str, file: Path) -> dict[str, list[float]]:
    """Return the columns of the text of a metrics.csv, see read_metrics; lines may end as other programs end them."""
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
            raise ValueError("evaluations must be whole numbers that do not fall")
    except (ValueError, OverflowError, csv.Error) as error:
        words = one_line(error).removeprefix("ValueError: ")
        raise RunFolderError(f"cannot read {file}: {words}") from error
    return columns


def spent_so_far(path: Path) -> int:
    """Return the gradient evaluations of the last row of metrics.csv, of which only the end is read; 0 without rows."""
    try:
        with open(Path(path) / METRICS, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - LAST_BYTES))
            lines = stream.read().split(b"\n")[1:-1]  # half a line at either end
        return int(lines[-1].partition(b",")[0]) if lines else 0
    except (OSError, ValueError):  # ValueError: evaluations are not the first column, or no number
        return 0


def _number(entry: str) -> float:
    if "_" in entry or not entry.isascii():  # Python reads 1_0 as 10
        raise ValueError(f"{entry[:40]!r} is no number")
    return float(entry) if entry else math.nan


def metrics_digest(text: bytes) -> str:
    """Return what a checkpoint keeps of the metrics before it."""
    return hashlib.sha256(text).hexdigest()[:16]


def read_checkpoint(path: Path, map_location: str = "cpu", name: str = CHECKPOINT) -> dict[str, Any]:
    """Return checkpoint.pt of the run folder `path`; a file that holds more than data is refused, never executed.

    Raises RunFolderError for that, for a checkpoint of another format, and for one that something else has changed.
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
        except Exception as error:  # what is no data, or a tensor without memory of its own
            raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error
        if not same:
            raise RunFolderError(f"{file} was changed since it was written")
    return state


def _check_archive(file: Path) -> None:
    """Raise where an archive of torch is damaged (torch itself does not look) or is larger unpacked than packed."""
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise ValueError("it is compressed, which this program never does")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")
