"""A lane: one run of a fleet as it is recorded, stopped and gone on with."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from burgersgd.config import TrainConfig
from burgersgd.identity import config_from, config_hash
from burgersgd.recording.environment import code_version
from burgersgd.recording.run_folder import (
    CHECKPOINT,
    ENDED,
    Row,
    RunFolder,
    RunFolderError,
    read_checkpoint,
    read_status,
)


@dataclass
class Lane:
    """One run: its configuration, its folder (None: not recorded), the checkpoint to go on from (None: the start)."""

    config: TrainConfig
    folder: RunFolder | None = None
    checkpoint: dict[str, Any] | None = None
    parent: dict[str, Any] | None = None
    """The run that this one continues with a larger budget: folder, evaluations, config_hash."""
    rows: list[Row] = field(default_factory=list)
    """Metrics so far."""
    failure: str | None = None
    """Why the run cannot be recorded any more."""

    begins_with: dict[str, Any] = field(default_factory=dict)
    """Choices of another run, to be repeated."""
    final: bool = False
    """The run is over: its folder stays as it is."""

    @classmethod
    def reopened(cls, folder: RunFolder) -> Lane:
        """Return the lane of a reopened run folder, as its last checkpoint left it.

        Raises RunFolderError where folder and checkpoint do not fit, ConfigError for the configuration of another
        version.
        """
        lane = cls(config_from(folder.config), folder)
        lane.reload()
        if lane.checkpoint is None:
            return lane
        lane.final = read_status(folder.path)["state"] in ENDED
        lane.parent = lane.checkpoint["parent"]
        if lane.checkpoint["config_hash"] != config_hash(lane.config, lane.choices["budget"]):
            changed = "its configuration, or what burgersgd computes for it, changed since the checkpoint was written"
            raise RunFolderError(f"{folder.path}: {changed}")
        if lane.checkpoint["code"] != code_version() and not lane.final:
            folder.log.warning("going on with %s, begun with %s", code_version(), lane.checkpoint["code"])
        return lane

    def reload(self) -> None:
        """Take the last checkpoint on the disk as the one to go on from."""
        path = None if self.folder is None else self.folder.path
        self.checkpoint = None if path is None or not (path / CHECKPOINT).exists() else read_checkpoint(path)

    @property
    def evaluations(self) -> int:
        """Gradient evaluations that need not be repeated."""
        return 0 if self.checkpoint is None else self.checkpoint["evaluations"]

    @property
    def choices(self) -> dict[str, Any]:
        """What the run began with and keeps: engine, threads, budget, log_every, eval_every; empty before the start."""
        return self.begins_with if self.checkpoint is None else self.checkpoint["choices"]

    @property
    def fleet(self) -> dict[str, Any]:
        """The fleet that the run was in: id, size, and the index of the run in it."""
        return {"id": None, "size": 1, "index": 0} if self.checkpoint is None else self.checkpoint["fleet"]

    @property
    def alive(self) -> bool:
        """Whether the run can go on."""
        return self.checkpoint is None or bool(self.checkpoint["alive"])

    @property
    def best(self) -> dict[str, torch.Tensor]:
        """What is kept of the best x so far. Version 0.1.0 kept no loss of it: that one is in the metrics."""
        assert self.checkpoint is not None
        best = self.checkpoint["best"]
        if "loss" in best:
            return best
        losses = [row["validation_loss"] for row in self.rows if row["evaluations"] == int(best["at"])]
        known = next((loss for loss in losses if loss is not None), math.inf)
        return best | {"loss": torch.tensor(known, dtype=torch.float64)}

    def rewind(self) -> None:
        """Go back to the checkpoint: what was recorded behind it is forgotten."""
        position = None if self.checkpoint is None else self.checkpoint["metrics_bytes"]
        if self.folder is None:
            self.rows = []
        elif self.final:
            self.rows = self.folder.rows()
        else:
            self.rows = self.folder.rewind(position)

    def record(self, row: Row) -> None:
        """Add a row of metrics."""
        self.rows.append(row)
        if self.folder is not None and self.failure is None:
            self.folder.metrics(row)

    @contextlib.contextmanager
    def recording(self, alone: bool) -> Iterator[None]:
        """Turn what makes recording impossible (a full disk, a vanished folder) into the failure of this run.

        Raises it where the run is alone; in a fleet its siblings go on.
        """
        try:
            yield
        except RunFolderError as error:
            if alone or self.folder is None:
                raise
            self.failure = str(error)
            self.folder.abandon(self.failure)


def with_budget(config: TrainConfig, budget: int) -> TrainConfig:
    """Return the configuration with another budget, in gradient evaluations."""
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, budget=budget))


def depends_on_budget(config: TrainConfig) -> str | None:
    """Return the key that makes a run depend on how far it is to go, None if nothing does."""
    if config.schedule.warmup > 0:
        return "schedule.warmup"
    if config.schedule.name != "constant":
        return f"schedule={config.schedule.name}"
    if getattr(config.optimizer, "nu_annealing", "constant") != "constant":
        return "optimizer.nu_annealing"
    if config.optimizer.name == "paper_literal" and getattr(config.optimizer, "period", 1) is None:
        return "optimizer.period=null"
    return None
