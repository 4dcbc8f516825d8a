"""Changes checkpoints as an honest user would: with a digest that fits the changed content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from burgersgd.recording.files import digest
from burgersgd.recording.reading import CHECKPOINT, FORMAT, read_checkpoint


def rewrite_checkpoint(folder: Path, **changes: Any) -> None:
    """Replace some keys of a checkpoint."""
    state = read_checkpoint(folder) | changes
    torch.save({"format": FORMAT, "digest": digest(state), **state}, folder / CHECKPOINT)
