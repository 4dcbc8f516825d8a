"""Trains runs in as few fleets as possible, each from its checkpoint to the end of its budget."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burgersgd.build import UserData, UserModel
from burgersgd.config import ConfigError
from burgersgd.ends import Ends
from burgersgd.identity import config_hash
from burgersgd.interruption import Interrupted, Interruption, interruptible
from burgersgd.lane import Lane, make_lasting_together
from burgersgd.prepare import Prepared, prepare
from burgersgd.recording.checkpoints import CommonEntries, digest_of
from burgersgd.recording.environment import code_version
from burgersgd.recording.progress import Progress
from burgersgd.recording.rows import rows_of
from burgersgd.recording.run_folder import RunFolderError, add_rows
from burgersgd.result import Result
from burgersgd.training.best import Best
from burgersgd.training.loop import Point, Position, fit
from burgersgd.training.metrics import NAMES
from burgersgd.training.stability import lr_gamma_warnings

_log = logging.getLogger("burgersgd")

ROWS_SECONDS = 1.0
"""How long a row of metrics may wait: rows are written together, and those behind a checkpoint are of no use later."""

Prune = Callable[[int], Callable[[Point], Tensor]]
"""Budget of a fleet -> what tells at each of its points which runs ``[runs]`` to stop."""


@dataclass
class Trainer:
    """Trains lanes in as few fleets as possible; saves them in time, and halves those that are too large."""

    model: UserModel | None
    dataset: UserData | None
    prune: Prune | None

    def run(
        self, lanes: Sequence[Lane], progress: bool | Progress | None, ready: Prepared | None = None
    ) -> list[Result]:
        """Return the results of all lanes, in their order; ready are new lanes that are prepared already."""
        if not lanes:
            return []
        groups: dict[str, list[int]] = {}
        for i in sorted(range(len(lanes)), key=lambda i: lanes[i].fleet["index"]):
            lane = lanes[i]
            groups.setdefault(repr((lane.evaluations, lane.choices, lane.final, lane.fleet["id"])), []).append(i)
        fleets = [([lanes[i] for i in group], group) for group in groups.values()]
        prepared = [self.prepare(members) for members, _ in fleets] if ready is None else [ready]
        results: dict[int, Result] = {}
        with ExitStack() as stack:
            self.interruption = stack.enter_context(interruptible())
            percent = prepared[0].data.task == "classification"
            if isinstance(progress, Progress):
                self.bar = progress
                self.bar.percent = percent
            else:
                config, n = lanes[0].config, len(lanes)
                title = config.optimizer.name if n == 1 else f"{n} runs of {config.optimizer.name}"
                total = sum(p.budget * len(p.configs) for p in prepared)
                done = sum(lane.evaluations for lane in lanes)
                self.bar = Progress(total, title, enabled=progress, initial=done, percent=percent)
                stack.callback(self.bar.close)
            for (members, group), ready in zip(fleets, prepared, strict=True):
                results |= zip(group, self._train(ready, members), strict=True)
        return [results[i] for i in range(len(lanes))]

    def prepare(self, lanes: Sequence[Lane]) -> Prepared:
        """Return the runs of one fleet ready to start, with the engine and threads they began with."""
        configs, choices = [lane.config for lane in lanes], lanes[0].choices
        chosen = {key: choices.get(key) for key in ("engine", "threads")}
        return prepare(configs, model=self.model, dataset=self.dataset, **chosen)

    def _train(self, prepared: Prepared, lanes: list[Lane]) -> list[Result]:
        """Train one fleet; where it does not fit into memory, its halves one after the other."""
        fleet_run = _FleetRun(prepared, lanes, self.interruption, self.bar, self.prune)
        try:
            with prepared.torch_settings():
                return fleet_run.results()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(lanes) == 1:
                reason = f"out of memory ({_first_line(error)}): a smaller model or batch may fit"
                raise ConfigError(reason) from error.with_traceback(None)  # its frames would keep the fleet
        _log.warning("out of memory with %d runs at once: going on with half as many", len(lanes))
        self.bar.add(-fleet_run.counted)
        del fleet_run, prepared
        gc.collect()  # for what a user's own module keeps in cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(lanes) // 2
        results = []
        for part in (lanes[:half], lanes[half:]):
            for lane in part:
                lane.reload()
            results += self._train(self.prepare(part), part)
        return results


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether the device (torch.OutOfMemoryError) or the host could not give memory."""
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of the host, CUDA itself, cuBLAS
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class _FleetRun:
    """One fleet from where its lanes stand to the end of its budget."""

    def __init__(
        self, prepared: Prepared, lanes: list[Lane], interruption: Interruption, bar: Progress, prune: Prune | None
    ) -> None:
        self.prepared, self.lanes, self.interruption, self.bar = prepared, lanes, interruption, bar
        self.prune = None if prune is None else prune(prepared.budget)
        self.counted = 0
        """Gradient evaluations that the progress bar has counted."""
        self.write_at = time.monotonic() + ROWS_SECONDS
        budget, trainer = prepared.budget, prepared.configs[0].trainer
        known = lanes[0].choices.get("budget", budget)
        if known != budget:
            raise trainer.error("budget", f"is {budget} gradient evaluations, the run began with {known}")
        for lane in lanes:
            if lane.checkpoint is not None and lane.folder is not None:
                prepared.check_same(lane.checkpoint, lane.folder.path)
        self.choices = lanes[0].choices or {
            "engine": prepared.engine,
            "threads": torch.get_num_threads() if prepared.threads is None else prepared.threads,
            "budget": budget,
            "log_every": trainer.log_every or -(-budget // 200),
            "eval_every": trainer.eval_every or -(-budget // 50),
        }
        self.hashes = [config_hash(lane.config, budget) for lane in lanes]
        for lane, name in zip(lanes, self.hashes, strict=True):
            if lane.folder is not None:
                lane.folder.config_hash = name
        self.fleet_id = hashlib.sha256(",".join(self.hashes).encode()).hexdigest()[:12]

    def results(self) -> list[Result]:
        """Train, record, and return the results. Raises Interrupted on a signal, with every run saved."""
        prepared, lanes = self.prepared, self.lanes
        self.fleet = prepared.fleet()
        parts = {part: getattr(prepared.data, part) for part in ("validation", "test")}
        self.evaluators = {part: prepared.evaluator(data) for part, data in parts.items() if data.n}
        self.best, self.position = Best(self.fleet), Position()
        checkpoints = [lane.checkpoint for lane in lanes if lane.checkpoint is not None]
        if checkpoints:  # before anything is changed: it may not fit
            self.fleet.restore(checkpoints)
            self.position = Position(checkpoints[0]["logged"], max(c["seconds"] for c in checkpoints))
        self.ends = Ends(prepared, self.fleet, lanes, self.evaluators, self.best, self.position, self.choices)
        more = [name for name in self.fleet.diagnostics() if name not in NAMES]
        for lane in lanes:
            if lane.folder is not None:
                lane.folder.table.more = more
                lane.folder.regression = prepared.data.task == "regression"
            with self._recording(lane):
                lane.rewind()
                lane.start_sinks()
        if checkpoints:
            self.best.restore([lane.best for lane in lanes])
            self._replay_into_pruner()
        else:
            make_lasting_together(self.lanes)
        if not lanes[0].final and bool(self.fleet.alive.any()):
            try:
                self._spend()
            except Interrupted as interrupted:
                interrupted.folders = [lane.folder.path for lane in lanes if lane.folder is not None]
                for lane in lanes:
                    lane.end_sinks("interrupted", {})
                raise
        if not lanes[0].final and not all(lane.measured for lane in lanes):
            self._save(ended=True)  # all of them, before the first one is over: the others do not begin again alone
        results = [self.ends.result(i) for i in range(len(lanes))]
        return self.ends.record(results, [self._place(i)["size"] for i in range(len(lanes))])

    def _spend(self) -> None:
        fleet, lanes, trainer = self.fleet, self.lanes, self.prepared.configs[0].trainer
        every, interval = trainer.checkpoint_every, 60 * trainer.checkpoint_minutes
        save_at = time.monotonic() + interval
        spent = fleet.evaluations
        if spent == 0:
            self._warn()

        def pause() -> bool:
            return self.interruption.requested is not None or time.monotonic() >= save_at

        log_every, eval_every = self.choices["log_every"], self.choices["eval_every"]
        with self.interruption.deferred():
            validation = self.evaluators.get("validation")
            for point in fit(fleet, validation, log_every, eval_every, self.position, every, pause):
                self.interruption.settle()
                if point is not None:
                    self._record(point)
                    self.bar.add((point.evaluations - spent) * len(lanes), *_shown(point))
                    self.counted += (point.evaluations - spent) * len(lanes)
                    spent = point.evaluations
                over = fleet.evaluations == fleet.budget or not bool(fleet.alive.any())
                stopping = self.interruption.requested is not None
                due = time.monotonic() >= save_at or (every is not None and fleet.evaluations % every < fleet.points)
                if (stopping or due) and not over and fleet.evaluations:
                    self._save()
                    save_at = time.monotonic() + interval
                if stopping and not over:
                    self.interruption.raise_if_requested()

    def _warn(self) -> None:
        """Say where lr / gamma alone makes a run unstable: once for a fleet, and in each run's own log."""
        warnings = lr_gamma_warnings(self.fleet)
        for lane, warning in zip(self.lanes, warnings, strict=True):
            if warning is not None and lane.folder is not None:
                lane.folder.log.warning("%s", warning)
        warned = [warning for warning in warnings if warning is not None]
        if warned:
            more = f" (and {len(warned) - 1} more runs)" if len(warned) > 1 else ""
            _log.warning("%s%s", warned[0], more)

    def _record(self, point: Point) -> None:
        self.best.update(point, self.fleet)
        alive = point.alive.tolist()  # a diverged run has no metrics after its end
        for lane, row, is_alive in zip(self.lanes, rows_of(point.table, len(alive)), alive, strict=True):
            if is_alive:
                lane.rows.append(row)
        recorded = (lane.folder if lane.failure is None else None for lane in self.lanes)
        add_rows([folder if is_alive else None for folder, is_alive in zip(recorded, alive, strict=True)], point.table)
        if time.monotonic() >= self.write_at:
            self._write_rows()
        if all(lane.failure is not None for lane in self.lanes):
            raise RunFolderError(self.lanes[0].failure)
        if self.prune is not None:
            self.fleet.stop(self.prune(point))

    def _write_rows(self) -> None:
        for lane in self.lanes:
            if lane.folder is not None and lane.failure is None:
                with self._recording(lane):
                    lane.folder.write_rows()
            if lane.sinks is not None:
                lane.sinks.rows(lane.rows)
        self.write_at = time.monotonic() + ROWS_SECONDS

    def _replay_into_pruner(self) -> None:
        """Pass the points recorded so far to the pruner of a resumed fleet, which compares histories."""
        if self.prune is None:
            return
        errors = [{row["evaluations"]: row["validation_error"] for row in lane.rows} for lane in self.lanes]
        for evaluations in sorted({row["evaluations"] or 0 for lane in self.lanes for row in lane.rows}):
            at = [math.nan if (e := run.get(evaluations)) is None else e for run in errors]
            known = torch.tensor(at, dtype=torch.float64)
            alive = torch.tensor([evaluations in run for run in errors])
            if not bool(known.isnan().all()):
                self.prune(Point(int(evaluations), 0.0, 0.0, alive, validation_error=known))

    def _recording(self, lane: Lane) -> contextlib.AbstractContextManager[None]:
        return lane.recording(alone=len(self.lanes) == 1)

    def _save(self, ended: bool = False) -> None:
        """Write the checkpoints of all runs: every one is on the disk before the first one counts."""
        healthy = [(i, lane, lane.folder) for i, lane in enumerate(self.lanes) if lane.failure is None]
        recorded = [(i, lane, folder) for i, lane, folder in healthy if folder is not None]
        common = CommonEntries(self.prepared.network | {"data": self.prepared.data_digest})
        for i, lane, folder in recorded:
            with self._recording(lane):
                belonging = folder.metrics_position() | {"config_digest": digest_of(folder.config)}
                folder.stage_checkpoint(self._checkpoint(i, belonging, ended), common)
        make_lasting_together(self.lanes)
        for _, lane, folder in recorded:
            if lane.failure is None:
                with self._recording(lane):
                    folder.commit_checkpoint()
        if not ended:  # else it is done with what is recorded of the end
            make_lasting_together(self.lanes)

    def _checkpoint(self, i: int, belonging: dict[str, Any], ended: bool) -> dict[str, Any]:
        """Return what the run needs to go on, but for what all runs have in common, and what tells whether it may."""
        lane = self.lanes[i]
        return self.fleet.snapshot(i) | {
            "code": code_version(),
            "config_hash": self.hashes[i],
            "choices": self.choices,
            "fleet": self._place(i),
            "parent": lane.parent,
            "best": self.best.snapshot(i),
            "logged": self.position.logged,
            "seconds": self.position.seconds,
            **belonging,
            "measured": {name: values[i] for name, values in self.ends.measured.items()} if ended else None,
            **self._buffers_at(i),
        }

    def _buffers_at(self, i: int) -> dict[str, Any]:
        """Return what a checkpoint keeps of the statistics at both x, for models that have any."""
        buffers_at = self.prepared.buffers_at
        if buffers_at is None:
            return {}
        points = {"last": self.fleet.x[i], "best": self.best.x[i]}
        return {"buffers_at": {name: {n: b.cpu() for n, b in buffers_at(x).items()} for name, x in points.items()}}

    def _place(self, i: int) -> dict[str, Any]:
        """Return the fleet that a run was in, when it ended the one that it ended in."""
        lane = self.lanes[i]
        return lane.fleet if lane.measured else {"id": self.fleet_id, "size": len(self.lanes), "index": i}


def _shown(point: Point) -> tuple[float | None, float | None]:
    """Return what the progress bar shows: mean loss, and lowest validation error of the living runs."""
    alive = point.alive
    loss = None if point.train_loss is None or not alive.any() else float(point.train_loss[alive].mean())
    error = point.validation_error
    return loss, None if error is None or not alive.any() else float(error[alive].min())
