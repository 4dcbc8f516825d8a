"""Writes checkpoint.pt: staged beside the old one first, so that the runs of a fleet change over together."""

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
        """None where only torch can save them."""


def stage_checkpoint(path: Path, state: Mapping[str, Any], common: CommonEntries | None = None) -> None:
    """Put `state` beside checkpoint.pt of the run folder `path`, complete; see RunFolder.checkpoint for what it holds.

    common: entries that it holds besides. It may become the checkpoint once it is on the disk (`make_lasting`).
    Raises RunFolderError, and TypeError for what a checkpoint must not hold.
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
    """Return the digest of a dict of plain values, as files.digest does, in less time."""
    encoded = _encoded(entries)
    return digest(entries) if encoded is None else encoded.digest()


def _encoded(entries: Mapping[str, Any], shared: Encoded | None = None) -> Encoded | None:
    """Return the entries encoded; None where they hold what only torch can save, or what is not allowed."""
    try:
        return Encoded(entries, shared)
    except (UnusualError, UnicodeEncodeError):
        return None


def _save_by_torch(stream: BinaryIO, file: Path, state: dict[str, Any]) -> None:
    import torch

    plain = plain_state(state, "checkpoint")
    try:
        torch.save({"format": FORMAT, "digest": digest(plain), **plain}, stream)
    except RuntimeError as error:  # torch's archive writer hides a full disk behind one of its own
        raise RunFolderError(f"cannot write {file}: {one_line(error.__context__ or error)}") from error


def commit_checkpoint(path: Path) -> None:
    """Make the staged checkpoint of the run folder `path` its checkpoint. Raises RunFolderError."""
    try:
        os.replace(path / STAGED, path / CHECKPOINT)
    except OSError as error:
        raise RunFolderError(f"cannot write {path / CHECKPOINT}: {one_line(error)}") from error


def complete_checkpoints(paths: Sequence[Path]) -> None:
    """Let the runs of a fleet stand at the same evaluation where the process died while they changed over.

    A fleet stages the checkpoints of all its runs before it commits the first one. So if one of them is committed, the
    others are staged and are committed here; if none is, the staged ones are ignored. A staged checkpoint is ignored,
    too, if its run has been resumed alone since: then metrics.csv lacks the rows that the checkpoint counts.
    """

    def moment(path: Path, name: str) -> tuple[str, int] | None:
        with contextlib.suppress(RunFolderError, KeyError):  # half a file: the run goes on from where it is, by itself
            state = read_checkpoint(path, name=name)
            return state["fleet"]["id"], state["evaluations"]
        return None

    def has_its_rows(path: Path) -> bool:
        state = read_checkpoint(path, name=STAGED)
        length, known = state["metrics_bytes"], state.get("metrics_digest")
        with contextlib.suppress(OSError):
            rows = (path / METRICS).read_bytes()[:length]
            return len(rows) == length and known in (None, metrics_digest(rows))
        return False

    staged = [path for path in paths if (path / STAGED).exists()]
    committed = {moment(path, CHECKPOINT) for path in paths if staged and (path / CHECKPOINT).exists()}
    for path in staged:
        if moment(path, STAGED) in committed - {None} and has_its_rows(path):
            os.replace(path / STAGED, path / CHECKPOINT)
