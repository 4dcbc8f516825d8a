"""Writes checkpoint.pt: staged beside the old one first, so that the runs of a fleet change over together."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burgersgd.recording.files import RunFolderError, digest, one_line, plain_state, replacing
from burgersgd.recording.new_folders import STAGED
from burgersgd.recording.reading import CHECKPOINT, FORMAT, METRICS, metrics_digest, read_checkpoint


def stage_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Put `state` beside checkpoint.pt of the run folder `path`, complete; see RunFolder.checkpoint for what it holds.

    It may become the checkpoint once it is on the disk (`make_lasting`). Raises RunFolderError.
    """
    import torch

    file = path / STAGED
    plain = plain_state(dict(state), "checkpoint")
    plain = {"format": FORMAT, "digest": digest(plain), **plain}
    with replacing(file, lasting=False) as stream:
        try:
            torch.save(plain, stream)
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

    A fleet stages the checkpoints of all its runs before it commits the first one. So where one is committed, the
    others are there, staged; where none is, what is staged counts for nothing. Nor does it where the run has begun
    again by itself since: then metrics.csv lacks the rows that it knows.
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
