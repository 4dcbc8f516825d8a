"""The record of a run: one run of a fleet, with everything that recording, stopping and resuming it needs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from burgersgd.config import TrainConfig
from burgersgd.identity import config_from, config_hash
from burgersgd.recording.environment import code_version, cpu_capability
from burgersgd.recording.files import RunFolderError, digest, make_lasting
from burgersgd.recording.reading import (
    CHECKPOINT,
    CONFIG,
    read_checkpoint,
    read_config,
    read_end,
    read_environment,
    read_status,
)
from burgersgd.recording.rows import Row
from burgersgd.recording.run_folder import RunFolder
from burgersgd.recording.schema import Checkpoint, ConfigRecord, checked
from burgersgd.recording.sinks import Sinks

_log = logging.getLogger("burgersgd")


@dataclass
class RunRecord:
    """One run: its configuration, its folder (None: not recorded) and its last checkpoint (None: not started)."""

    config: TrainConfig
    folder: RunFolder | None = None
    checkpoint: dict[str, Any] | None = None
    parent: dict[str, Any] | None = None
    """The run that this one continues with a larger budget: folder, evaluations, config_hash."""
    rows: list[Row] = field(default_factory=list)
    """Rows of metrics so far."""
    failure: str | None = None
    """Why the run can no longer be recorded; None if it can."""

    initial_choices: dict[str, Any] = field(default_factory=dict)
    """Choices of another run, which this run has to repeat."""
    sinks: Sinks | None = None
    """Other experiment trackers that receive the run from its start on."""
    final: bool = False
    """Whether the run is finished, so that its folder must not change."""

    @classmethod
    def reopened(cls, folder: RunFolder) -> RunRecord:
        """Return the run of a reopened run folder at its last checkpoint.

        Raises RunFolderError if folder and checkpoint do not fit, ConfigError for the configuration of another
        version.
        """
        stored = read_run(folder.path)
        run = cls(stored.config, folder, stored.checkpoint)
        if stored.checkpoint is None:
            return run
        run.final = stored.end is not None
        run.parent = stored.checkpoint["parent"]
        if stored.checkpoint["code"] != code_version() and not run.final:
            folder.log.warning(
                "resumed with code %s; the run was started with code %s", code_version(), stored.checkpoint["code"]
            )
        if not run.final:
            run._compare_processors(folder)
        return run

    def _compare_processors(self, folder: RunFolder) -> None:
        """Warn if the run began on a processor with other vector instructions, because bits may differ from now on."""
        then = None
        with contextlib.suppress(RunFolderError):  # an unreadable environment.json does no harm
            then = read_environment(folder.path).get("cpu_capability")  # version 0.1.0 did not record it
        if then not in (None, cpu_capability()):
            text = (
                f"started on a processor with {then}, resumed on {cpu_capability()}: results agree only up to rounding"
            )
            folder.log.warning("%s", text)
            _log.warning("%s: %s", folder.path, text)

    def reload(self) -> None:
        """Read the last checkpoint on the disk, to resume from it."""
        if self.folder is not None:
            self.checkpoint = read_run(self.folder.path).checkpoint

    @property
    def evaluations(self) -> int:
        """Number of gradient evaluations at the checkpoint, which are not repeated."""
        return 0 if self.checkpoint is None else self.checkpoint["evaluations"]

    @property
    def choices(self) -> dict[str, Any]:
        """Choices made at the start: engine, threads, budget, log_every, eval_every; empty before the start."""
        return self.initial_choices if self.checkpoint is None else self.checkpoint["choices"]

    @property
    def fleet(self) -> dict[str, Any]:
        """The fleet of the run at the checkpoint: id, size, and the index of the run in it."""
        return {"id": None, "size": 1, "index": 0} if self.checkpoint is None else self.checkpoint["fleet"]

    @property
    def measured(self) -> bool:
        """Whether the checkpoint is that of the end of this run, not that of the end of a run that it continues."""
        if self.checkpoint is None or self.checkpoint["measured"] is None:
            return False
        return not self.alive or self.evaluations == self.choices["budget"]

    @property
    def alive(self) -> bool:
        """Whether the run has neither diverged nor been pruned."""
        return self.checkpoint is None or bool(self.checkpoint["alive"])

    @property
    def best(self) -> dict[str, torch.Tensor]:
        """The best x in the checkpoint. Version 0.1.0 did not record its loss, which is then read from the metrics."""
        assert self.checkpoint is not None
        best = self.checkpoint["best"]
        if "loss" in best:
            return best
        losses = [row["validation_loss"] for row in self.rows if row["evaluations"] == int(best["at"])]
        known = next((loss for loss in losses if loss is not None), math.inf)
        return best | {"loss": torch.tensor(known, dtype=torch.float64)}

    def rewind(self) -> None:
        """Go back to the checkpoint and discard the rows of metrics after it. Raises RunFolderError."""
        known = self.checkpoint or {}
        position = known.get("metrics_bytes"), known.get("metrics_digest")
        if self.folder is None:
            self.rows = []
        elif self.final:
            self.rows = self.folder.table.rows(*position)
            if len(self.folder.table.text()) != position[0]:
                raise RunFolderError(
                    f"{self.folder.path}: metrics.csv has rows after the end of the run: it was changed"
                )
        else:
            self.rows = self.folder.rewind(*position)
        last = self.rows[-1]["evaluations"] if self.rows else -1
        if self.folder is not None and known and not 0 <= (last or 0) <= known["evaluations"]:
            raise RunFolderError(
                f"{self.folder.path}: metrics.csv ends at evaluation {last}, which does not fit the checkpoint"
            )

    def start_sinks(self) -> None:
        """Inform the sinks that the run starts or is resumed, and pass the rows so far."""
        if self.folder is not None and not self.final:
            self.sinks = Sinks(self.config.trainer.sinks, self.folder.log)
            self.sinks.start(self.folder.path, self.folder.config)
            self.sinks.rows(self.rows)

    def end_sinks(self, state: str, result: Mapping[str, Any]) -> None:
        """Pass the last rows to the sinks, and how the run ended."""
        if self.sinks is not None:
            self.sinks.rows(self.rows)
            self.sinks.end(state, result)

    @contextlib.contextmanager
    def recording(self, alone: bool) -> Iterator[None]:
        """Mark the run as failed if recording it is impossible (a full disk, a deleted folder).

        If the run is alone, the error is raised; otherwise the other runs of the fleet continue.
        """
        try:
            yield
        except RunFolderError as error:
            if alone or self.folder is None:
                raise
            self.failure = str(error)
            self.folder.abandon(self.failure)


def make_lasting_together(runs: Sequence[RunRecord]) -> None:
    """Force all files that the runs of a fleet have written so far to the disk, to survive a power failure.

    A run whose folder cannot be written fails, see RunRecord.recording.
    """
    recorded = [(run, run.folder.path) for run in runs if run.folder is not None and run.failure is None]
    try:
        make_lasting([path for _, path in recorded])
    except RunFolderError:  # some folders failed; find out which
        for run, path in recorded:
            with run.recording(alone=len(runs) == 1):
                make_lasting([path])


class StoredRun(NamedTuple):
    """The contents of a run folder, checked for consistency."""

    config: TrainConfig
    checkpoint: dict[str, Any] | None
    """The checkpoint; None if the run has none yet."""
    end: dict[str, Any] | None
    """The contents of status.json for a finished run; None for a run that is not finished."""


def read_run(path: Path, read_only: bool = False) -> StoredRun:
    """Return the run of a folder after checking that its files are complete and belong together.

    read_only: the run will not be trained, so that it does not matter if this version would train it differently.
    Raises RunFolderError, or ConfigError for the configuration of another version, with one line naming file and key.
    """
    record = read_config(path)
    checked(record, ConfigRecord, path / CONFIG)
    config, status, end = config_from(record), read_status(path), read_end(path, unchanged=not read_only)
    if not (path / CHECKPOINT).exists():
        if end is not None:
            raise RunFolderError(f"{path}: the run is {end['state']}, but its checkpoint.pt is missing")
        return StoredRun(config, None, None)
    file, checkpoint = path / CHECKPOINT, read_checkpoint(path)
    _check_checkpoint(checked(checkpoint, Checkpoint, file), config, file)
    untouched = checkpoint.get("config_digest") in (None, digest(record))  # version 0.1.0 did not record it
    same = checkpoint["config_hash"] == config_hash(config, checkpoint["choices"]["budget"])
    if not same and not (read_only and untouched):
        changed = "the configuration, or the update rule of this version, differs from that of the checkpoint"
        raise RunFolderError(f"{path}: {changed}")
    if status.get("config_hash", checkpoint["config_hash"]) != checkpoint["config_hash"]:
        raise RunFolderError(f"{path}: status.json belongs to another run")
    if end is not None and (checkpoint["measured"] is None or not _ended_there(end, checkpoint)):
        raise RunFolderError(f"{path}: status.json and checkpoint.pt disagree on how the run ended")
    return StoredRun(config, checkpoint, end)


def _ended_there(end: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a final status fits a checkpoint; diverged and pruned runs may have fewer evaluations in it."""
    if end["budget"] != checkpoint["choices"]["budget"] or end["evaluations"] > checkpoint["evaluations"]:
        return False
    return end["state"] != "completed" or end["evaluations"] == checkpoint["evaluations"]


def _check_checkpoint(checkpoint: Mapping[str, Any], config: TrainConfig, file: Path) -> None:
    """Raise RunFolderError if the numbers or tensors of a checkpoint cannot be those of a run."""
    import torch

    def refuse(key: str, what: str) -> RunFolderError:
        return RunFolderError(f"{file}: {key}: {what}")

    choices, best, fleet = checkpoint["choices"], checkpoint["best"], checkpoint["fleet"]
    if not checkpoint["logged"] <= checkpoint["evaluations"] <= choices["budget"]:
        raise refuse("evaluations", "must be at most the budget, and at least that of the last row of metrics")
    if fleet["index"] >= fleet["size"]:
        raise refuse("fleet.index", "must be below fleet.size")
    names = ("validation_loss", "validation_error", "test_loss", "test_error", "best_test_error")
    if checkpoint["measured"] is not None and set(checkpoint["measured"]) != set(names):
        raise refuse("measured", f"must hold {', '.join(names)}")
    real = torch.float64 if config.trainer.precision == "float64" else torch.float32
    d = sum(math.prod(shape) for _, shape in checkpoint["parameters"])
    kinds = {
        **dict.fromkeys(("x", "best.x"), ((real,), (d,))),
        **dict.fromkeys(("last_loss", "loss_sum", "grad_norm", "loss_limit"), ((real,), ())),
        "best.error": ((torch.float64,), ()),
        **dict.fromkeys(("diverged_at", "best.at"), ((torch.int64,), ())),
        "alive": ((torch.bool,), ()),
    }
    if "loss" in best:  # version 0.1.0 did not record it
        kinds["best.loss"] = ((torch.float64,), ())
    state = {f"state.{name}": value for name, value in checkpoint["state"].items() if value is not None}
    tensors = {name: checkpoint[name] for name in kinds if "." not in name}
    tensors |= {f"best.{name}": best[name] for name in ("x", "error", "at", "loss") if name in best}
    for name, tensor in (tensors | state).items():
        if type(tensor) is not torch.Tensor or tensor.layout != torch.strided or tensor.is_quantized:
            raise refuse(name, "must be an ordinary tensor")
        dtypes, shape = kinds.get(name, ((real, torch.int64), None))
        if tensor.device.type == "meta" or tensor.dtype not in dtypes or (shape is not None and tensor.shape != shape):
            expected = f"{' or '.join(map(str, dtypes))}{'' if shape is None else f' of shape {list(shape)}'}"
            raise refuse(name, f"must be {expected}, is {tensor.dtype} of shape {list(tensor.shape)}")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise refuse(name, "has more elements than its memory holds")
    if not -1 <= int(checkpoint["diverged_at"]) < max(checkpoint["evaluations"], 1):
        raise refuse("diverged_at", "must be the number of a completed gradient evaluation, or -1")
    if not 0 <= int(best["at"]) <= checkpoint["evaluations"]:
        raise refuse("best.at", "must be the number of a completed gradient evaluation")
    if not float(best["error"]) >= 0:
        raise refuse("best.error", "must not be negative")


def with_budget(config: TrainConfig, budget: int) -> TrainConfig:
    """Return the configuration with another budget, in gradient evaluations."""
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, budget=budget))


def depends_on_budget(config: TrainConfig) -> str | None:
    """Return the key that makes a run depend on its budget before it is spent, None if there is none."""
    if config.schedule.warmup > 0:
        return "schedule.warmup"
    if config.schedule.name != "constant":
        return f"schedule={config.schedule.name}"
    key = config.optimizer.rule().budget_key()
    return None if key is None else f"optimizer.{key}"
