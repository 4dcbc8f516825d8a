"""Writes checkpoint.pt: staged next to the old one first, so that all runs of a fleet replace theirs together."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from burgersgd.recording.checkpoint_archive import Encoded, UnusualError, archive
from burgersgd.recording.files import RunFolderError, digest, one_line, plain_state, replacing
from burgersgd.recording.new_folders import STAGED
from burgersgd.recording.reading import CHECKPOINT, FORMAT, METRICS, metrics_digest, read_checkpoint


class CommonEntries:
    """Entries that the checkpoints of all runs of a fleet have in common, encoded once for all of them."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self.entries = entries
        self.encoded = _encoded(entries)
        """The encoded entries; None where only torch can save them."""


def stage_checkpoint(path: Path, state: Mapping[str, Any], common: CommonEntries | None = None) -> None:
    """Write the complete checkpoint `state` of the run folder `path` to a file next to checkpoint.pt.

    RunFolder.checkpoint says what a state may hold. common: further entries of the checkpoint. The staged file may be
    committed once it is on the disk (`make_lasting`).
    Raises RunFolderError, and TypeError for values that a checkpoint must not hold.
    """
    file, pieces = path / STAGED, None
    if common is None or common.encoded is not None:
        entries = _encoded(state, None if common is None else common.encoded)
        with contextlib.suppress(UnusualError):
            pieces = entries and archive(entries, {"format": FORMAT, "digest": entries.digest()})
    with replacing(file, lasting=False) as stream:
        if pieces is not None:
            stream.writelines(pieces)
        else:
            _save_by_torch(stream, file, {**state, **(common.entries if common else {})})


def digest_of(entries: Mapping[str, Any]) -> str:
    """Return the digest of a dict of plain values, the same as files.digest returns, in less time."""
    encoded = _encoded(entries)
    return digest(entries) if encoded is None else encoded.digest()


def _encoded(entries: Mapping[str, Any], shared: Encoded | None = None) -> Encoded | None:
    """Return the encoded entries; None where they hold a value that only torch can save or that is not allowed."""
    try:
        return Encoded(entries, shared)
    except (UnusualError, UnicodeEncodeError):
        return None


def _save_by_torch(stream: BinaryIO, file: Path, state: dict[str, Any]) -> None:
    import torch

    plain = plain_state(state, "checkpoint")
    try:
        torch.save({"format": FORMAT, "digest": digest(plain), **plain}, stream)
    except RuntimeError as error:  # torch's archive writer raises its own error for a full disk
        raise RunFolderError(f"cannot write {file}: {one_line(error.__context__ or error)}") from error


def commit_checkpoint(path: Path) -> None:
    """Rename the staged checkpoint of the run folder `path` to checkpoint.pt. Raises RunFolderError."""
    try:
        os.replace(path / STAGED, path / CHECKPOINT)
    except OSError as error:
        raise RunFolderError(f"cannot write {path / CHECKPOINT}: {one_line(error)}") from error


def complete_checkpoints(paths: Sequence[Path]) -> None:
    """Bring the checkpoints of a fleet to the same evaluation if the process died while it committed them.

    A fleet stages the checkpoints of all its runs before it commits the first one. So if one of them is committed, the
    others are staged and are committed here; if none is, the staged ones are ignored. A staged checkpoint is also
    ignored if its run has been resumed alone since: then metrics.csv lacks the rows that the checkpoint counts.
    """

    def moment(path: Path, name: str) -> tuple[str, int] | None:
        with contextlib.suppress(RunFolderError, KeyError):  # a damaged file: its run is resumed alone
            state = read_checkpoint(path, name=name)
            return state["fleet"]["id"], state["evaluations"]
        return None

    def has_its_rows(path: Path) -> bool:
        state = read_checkpoint(path, name=STAGED)
        length, expected = state["metrics_bytes"], state.get("metrics_digest")
        with contextlib.suppress(OSError):
            rows = (path / METRICS).read_bytes()[:length]
            return len(rows) == length and expected in (None, metrics_digest(rows))
        return False

    staged = [path for path in paths if (path / STAGED).exists()]
    committed = {moment(path, CHECKPOINT) for path in paths if staged and (path / CHECKPOINT).exists()}
    for path in staged:
        if moment(path, STAGED) in committed - {None} and has_its_rows(path):
            os.replace(path / STAGED, path / CHECKPOINT)
