"""Failures of chunks in other processes: kills, preemptions and signals at a given gradient evaluation."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from burgersgd import interruption
from burgersgd.recording.run_folder import CHECKPOINT, read_checkpoint
from burgersgd.sweeps.chunks import Chunk, Outcome
from burgersgd.sweeps.cluster import ChunkTask
from burgersgd.training.fleet import Fleet

STEP = 25


@dataclass(frozen=True)
class TroubledTask(ChunkTask):
    """Notes from where it goes on, and has the trouble of the first job's seed in its first attempt."""

    troubles: Mapping[int, str] = field(default_factory=dict)
    driver: int = 0

    def __call__(self, chunk: Chunk) -> list[Outcome]:
        seed, folder = chunk[0].config.seed, chunk[0].folder
        reached = read_checkpoint(folder)["evaluations"] if (folder / CHECKPOINT).exists() else 0
        first = not attempts(self.folder, seed)
        with open(self.folder / f"attempts{seed}", "a") as stream:
            stream.write(f"{reached}\n")
        trouble = self.troubles.get(seed, "")
        step = Fleet._steps

        def patched(fleet: Fleet, k: int, stop: int) -> int:
            if k == STEP and first:
                self.happen(trouble)
            return step(fleet, k, stop)

        with mock.patch.object(Fleet, "_steps", patched):
            return super().__call__(chunk)

    def happen(self, trouble: str) -> None:
        if trouble == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif trouble == "preempt":  # as SLURM tells it
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)
        elif trouble == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif trouble == "stop":
            os.kill(self.driver, signal.SIGTERM)
            while interruption._current is None or interruption._current.requested is None:
                time.sleep(0.01)


def attempts(folder: Path, seed: int) -> list[int]:
    """Return how many evaluations were done at the start of each attempt at the chunk that begins with a seed."""
    path = folder / f"attempts{seed}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
