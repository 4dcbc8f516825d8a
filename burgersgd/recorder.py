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

from burgersgd.build.parts import UserData, UserModel
from burgersgd.build.prepared import Prepared, prepare
from burgersgd.config import ConfigError
from burgersgd.ends import Ends
from burgersgd.identity import config_hash
from burgersgd.interruption import Interrupted, Interruption, interruptible
from burgersgd.recording.checkpoints import CommonEntries, digest_of
from burgersgd.recording.environment import code_version
from burgersgd.recording.progress import Progress
from burgersgd.recording.rows import rows_of
from burgersgd.recording.run_folder import RunFolderError, add_rows
from burgersgd.result import Result
from burgersgd.run_record import RunRecord, make_lasting_together
from burgersgd.training.best import Best
from burgersgd.training.fleet import Point, Position, fit
from burgersgd.training.metrics import NAMES
from burgersgd.training.stability import lr_gamma_warnings

_log = logging.getLogger("burgersgd")

ROWS_SECONDS = 1.0
"""How long a row of metrics may wait: rows are written together, and resuming discards those after a checkpoint."""

Prune = Callable[[int], Callable[[Point], Tensor]]
"""Budget of a fleet -> function that returns at each of the fleet's points which runs ``[runs]`` to stop."""


@dataclass
class Recorder:
    """Trains runs in as few fleets as possible, writes their checkpoints, and halves fleets that are too large."""

    model: UserModel | None
    dataset: UserData | None
    prune: Prune | None

    def train(
        self, runs: Sequence[RunRecord], progress: bool | Progress | None, ready: Prepared | None = None
    ) -> list[Result]:
        """Train all runs and return their results in the same order. ready: the prepared runs, if all are new."""
        if not runs:
            return []
        groups: dict[str, list[int]] = {}
        for i in sorted(range(len(runs)), key=lambda i: runs[i].fleet["index"]):
            run = runs[i]
            groups.setdefault(repr((run.evaluations, run.choices, run.final, run.fleet["id"])), []).append(i)
        fleets = [([runs[i] for i in group], group) for group in groups.values()]
        prepared = [self.prepare(members) for members, _ in fleets] if ready is None else [ready]
        results: dict[int, Result] = {}
        with ExitStack() as stack:
            self.interruption = stack.enter_context(interruptible())
            percent = prepared[0].data.task == "classification"
            if isinstance(progress, Progress):
                self.bar = progress
                self.bar.percent = percent
            else:
                config, n = runs[0].config, len(runs)
                title = config.optimizer.name if n == 1 else f"{n} runs of {config.optimizer.name}"
                total = sum(p.budget * len(p.configs) for p in prepared)
                done = sum(run.evaluations for run in runs)
                self.bar = Progress(total, title, enabled=progress, initial=done, percent=percent)
                stack.callback(self.bar.close)
            for (members, group), ready in zip(fleets, prepared, strict=True):
                results |= zip(group, self._train(ready, members), strict=True)
        return [results[i] for i in range(len(runs))]

    def prepare(self, runs: Sequence[RunRecord]) -> Prepared:
        """Return the prepared runs of one fleet, with the engine and threads of their start."""
        configs, choices = [run.config for run in runs], runs[0].choices
        chosen = {key: choices.get(key) for key in ("engine", "threads")}
        return prepare(configs, model=self.model, dataset=self.dataset, **chosen)

    def _train(self, prepared: Prepared, runs: list[RunRecord]) -> list[Result]:
        """Train one fleet; if it does not fit into memory, train its halves one after the other."""
        fleet_run = _FleetRun(prepared, runs, self.interruption, self.bar, self.prune)
        try:
            with prepared.torch_settings():
                return fleet_run.results()
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(runs) == 1:
                reason = f"out of memory ({_first_line(error)}); try a smaller model or trainer.batch_size"
                raise ConfigError(reason) from error.with_traceback(None)  # its frames would keep the fleet in memory
        _log.warning("out of memory with %d runs at once: continuing with half as many", len(runs))
        self.bar.add(-fleet_run.counted)
        del fleet_run, prepared
        gc.collect()  # frees objects that a user's own module keeps in reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(runs) // 2
        results = []
        for part in (runs[:half], runs[half:]):
            for run in part:
                run.reload()
            results += self._train(self.prepare(part), part)
        return results


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device (torch.OutOfMemoryError) or the host is out of memory."""
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of the host, CUDA itself, cuBLAS
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class _FleetRun:
    """Trains one fleet from its checkpoints to the end of its budget."""

    def __init__(
        self, prepared: Prepared, runs: list[RunRecord], interruption: Interruption, bar: Progress, prune: Prune | None
    ) -> None:
        self.prepared, self.runs, self.interruption, self.bar = prepared, runs, interruption, bar
        self.prune = None if prune is None else prune(prepared.budget)
        self.counted = 0
        """Number of gradient evaluations that the progress bar has counted."""
        self.write_at = time.monotonic() + ROWS_SECONDS
        self.waiting: list[tuple[float, Point]] = []
        """Points that are not formatted yet, each with the time of its measurement."""
        budget, trainer = prepared.budget, prepared.configs[0].trainer
        known = runs[0].choices.get("budget", budget)
        if known != budget:
            raise trainer.error("budget", f"is {budget} gradient evaluations, but the run was started with {known}")
        for run in runs:
            if run.checkpoint is not None and run.folder is not None:
                prepared.check_same(run.checkpoint, run.folder.path)
        self.choices = runs[0].choices or {
            "engine": prepared.engine,
            "threads": torch.get_num_threads() if prepared.threads is None else prepared.threads,
            "budget": budget,
            "log_every": trainer.log_every or -(-budget // 200),
            "eval_every": trainer.eval_every or -(-budget // 50),
        }
        self.hashes = [config_hash(run.config, budget) for run in runs]
        for run, name in zip(runs, self.hashes, strict=True):
            if run.folder is not None:
                run.folder.config_hash = name
        self.fleet_id = hashlib.sha256(",".join(self.hashes).encode()).hexdigest()[:12]

    def results(self) -> list[Result]:
        """Train, record, and return the results. Raises Interrupted on a signal, after saving every run."""
        prepared, runs = self.prepared, self.runs
        self.fleet = prepared.fleet()
        parts = {part: getattr(prepared.data, part) for part in ("validation", "test")}
        self.evaluators = {part: prepared.evaluator(data) for part, data in parts.items() if data.n}
        self.best, self.position = Best(self.fleet), Position()
        checkpoints = [run.checkpoint for run in runs if run.checkpoint is not None]
        if checkpoints:  # before any file is changed, because a checkpoint may not fit
            self.fleet.restore(checkpoints)
            self.position = Position(checkpoints[0]["logged"], max(c["seconds"] for c in checkpoints))
        self.ends = Ends(prepared, self.fleet, runs, self.evaluators, self.best, self.position, self.choices)
        more = [name for name in self.fleet.diagnostics() if name not in NAMES]
        for run in runs:
            if run.folder is not None:
                run.folder.table.more = more
                run.folder.regression = prepared.data.task == "regression"
            with self._recording(run):
                run.rewind()
                run.start_sinks()
        if checkpoints:
            self.best.restore([run.best for run in runs])
            self._replay_into_pruner()
        else:
            make_lasting_together(self.runs)
        if not runs[0].final and bool(self.fleet.alive.any()):
            self._log_choices()
            try:
                try:
                    self._spend()
                finally:
                    self._take_rows()
            except Interrupted as interrupted:
                interrupted.folders = [run.folder.path for run in runs if run.folder is not None]
                for run in runs:
                    run.end_sinks("interrupted", {})
                raise
        if not runs[0].final and not all(run.measured for run in runs):
            self._save(ended=True)  # before any run is recorded as finished, so that none restarts outside its fleet
        results = [self.ends.result(i) for i in range(len(runs))]
        return self.ends.record(results, [self._fleet_place(i)["size"] for i in range(len(runs))])

    def _log_choices(self) -> None:
        data, choices, problem = self.prepared.data, self.choices, self.prepared.problem
        parts = [f"{n:,} {name}" for name in ("train", "validation", "test") if (n := getattr(data, name).n)]
        _log.info("%s: %s examples; %s parameters", data.name, ", ".join(parts), f"{problem.d:,}")
        _log.info("engine %s on %s, threads: %d", choices["engine"], problem.inputs.device, choices["threads"])
        done = f"{self.fleet.evaluations:,} of {choices['budget']:,} gradient evaluations done"
        every = f"metrics every {choices['log_every']:,}, validation every {choices['eval_every']:,}"
        _log.info("runs trained together: %d; %s; %s", len(self.runs), done, every)

    def _spend(self) -> None:
        fleet, runs, trainer = self.fleet, self.runs, self.prepared.configs[0].trainer
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
                self.interruption.step_ended()
                if point is not None:
                    self._record(point)
                    self.bar.add((point.evaluations - spent) * len(runs), *_shown(point))
                    self.counted += (point.evaluations - spent) * len(runs)
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
        """Warn if lr / gamma alone makes a run unstable: once for the fleet, and in the log of each such run."""
        warnings = lr_gamma_warnings(self.fleet)
        for run, warning in zip(self.runs, warnings, strict=True):
            if warning is not None and run.folder is not None:
                run.folder.log.warning("%s", warning)
        warned = [warning for warning in warnings if warning is not None]
        if warned:
            more = f" (and {len(warned) - 1} more runs)" if len(warned) > 1 else ""
            _log.warning("%s%s", warned[0], more)

    def _record(self, point: Point) -> None:
        self.best.update(point, self.fleet)
        self.waiting.append((time.time(), point))
        if time.monotonic() >= self.write_at:
            self._write_rows()
        if all(run.failure is not None for run in self.runs):
            raise RunFolderError(self.runs[0].failure)
        if self.prune is not None:
            self.fleet.stop(self.prune(point))

    def _take_rows(self) -> None:
        """Format the waiting points, many at once: between steps this code would run with cold caches."""
        for now, point in self.waiting:
            alive = point.alive.tolist()  # a stopped or diverged run has no further metrics
            for run, row, is_alive in zip(self.runs, rows_of(point.table, len(alive)), alive, strict=True):
                if is_alive:
                    run.rows.append(row)
            recorded = (run.folder if run.failure is None else None for run in self.runs)
            folders = [folder if is_alive else None for folder, is_alive in zip(recorded, alive, strict=True)]
            add_rows(folders, point.table, now)
        self.waiting.clear()

    def _write_rows(self) -> None:
        self._take_rows()
        for run in self.runs:
            if run.folder is not None and run.failure is None:
                with self._recording(run):
                    run.folder.write_rows()
            if run.sinks is not None:
                run.sinks.rows(run.rows)
        self.write_at = time.monotonic() + ROWS_SECONDS

    def _replay_into_pruner(self) -> None:
        """Pass the points recorded so far to the pruner of a resumed fleet, because it compares histories."""
        if self.prune is None:
            return
        errors = [{row["evaluations"]: row["validation_error"] for row in run.rows} for run in self.runs]
        for evaluations in sorted({row["evaluations"] or 0 for run in self.runs for row in run.rows}):
            at = [math.nan if (e := of_run.get(evaluations)) is None else e for of_run in errors]
            known = torch.tensor(at, dtype=torch.float64)
            alive = torch.tensor([evaluations in of_run for of_run in errors])
            if not bool(known.isnan().all()):
                self.prune(Point(int(evaluations), 0.0, 0.0, alive, validation_error=known))

    def _recording(self, run: RunRecord) -> contextlib.AbstractContextManager[None]:
        return run.recording(alone=len(self.runs) == 1)

    def _save(self, ended: bool = False) -> None:
        """Write the checkpoints of all runs; all are on the disk before the first one replaces an earlier one."""
        self._take_rows()
        healthy = [(i, run, run.folder) for i, run in enumerate(self.runs) if run.failure is None]
        recorded = [(i, run, folder) for i, run, folder in healthy if folder is not None]
        common = CommonEntries(self.prepared.network | {"data": self.prepared.data_digest})
        for i, run, folder in recorded:
            with self._recording(run):
                belonging = folder.metrics_position() | {"config_digest": digest_of(folder.config)}
                folder.stage_checkpoint(self._checkpoint(i, belonging, ended), common)
        make_lasting_together(self.runs)
        for _, run, folder in recorded:
            if run.failure is None:
                with self._recording(run):
                    folder.commit_checkpoint()
        if not ended:  # otherwise Ends.record does this
            make_lasting_together(self.runs)
        _log.info("checkpoint at %d gradient evaluations", self.fleet.evaluations)

    def _checkpoint(self, i: int, belonging: dict[str, Any], ended: bool) -> dict[str, Any]:
        """Return the entries of run i's own checkpoint: its state, and what is checked before it is resumed."""
        run = self.runs[i]
        return self.fleet.snapshot(i) | {
            "code": code_version(),
            "config_hash": self.hashes[i],
            "choices": self.choices,
            "fleet": self._fleet_place(i),
            "parent": run.parent,
            "best": self.best.snapshot(i),
            "logged": self.position.logged,
            "seconds": self.position.seconds,
            **belonging,
            "measured": {name: values[i] for name, values in self.ends.measured.items()} if ended else None,
            **self._buffers_at(i),
        }

    def _buffers_at(self, i: int) -> dict[str, Any]:
        """Return the checkpoint entry of the buffers at the last and the best x, if training changes any buffers."""
        buffers_at = self.prepared.buffers_at
        if buffers_at is None:
            return {}
        points = {"last": self.fleet.x[i], "best": self.best.x[i]}
        return {"buffers_at": {name: {n: b.cpu() for n, b in buffers_at(x).items()} for name, x in points.items()}}

    def _fleet_place(self, i: int) -> dict[str, Any]:
        """Return the fleet of run i; for a run that has ended, the fleet in which it ended."""
        run = self.runs[i]
        return run.fleet if run.measured else {"id": self.fleet_id, "size": len(self.runs), "index": i}


def _shown(point: Point) -> tuple[float | None, float | None]:
    """Return the numbers on the progress bar: mean loss and lowest validation error of the runs still training."""
    alive, table = point.alive.tolist(), point.table

    def living(name: str) -> list[float]:
        values = table[name]
        return [v for v, is_alive in zip(values, alive, strict=True) if is_alive] if isinstance(values, list) else []

    losses, errors = living("train_loss"), living("validation_error")
    return sum(losses) / len(losses) if losses else None, min(errors) if errors else None
