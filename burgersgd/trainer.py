"""Trains runs in as few fleets as possible, each from its checkpoint to the end of its budget."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import html
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burgersgd.build import UserData, UserModel
from burgersgd.config import ConfigError, TrainConfig
from burgersgd.identity import config_hash
from burgersgd.interruption import Interrupted, Interruption, interruptible
from burgersgd.lane import Lane
from burgersgd.predictor import Predictor, network_at
from burgersgd.prepare import Prepared, prepare
from burgersgd.recording.environment import code_version
from burgersgd.recording.files import digest, make_lasting
from burgersgd.recording.progress import Progress
from burgersgd.recording.rows import rows_of
from burgersgd.recording.run_folder import RunFolderError, add_rows
from burgersgd.training.evaluation import is_guessing
from burgersgd.training.fleet import Fleet
from burgersgd.training.loop import Point, Position, fit
from burgersgd.training.metrics import NAMES
from burgersgd.training.regime import Regime, regimes
from burgersgd.training.stability import divergence_hint, learning_hint, lr_gamma_warnings

_log = logging.getLogger("burgersgd")

ROWS_SECONDS = 1.0
"""How long a row of metrics may wait: rows are written together, and those behind a checkpoint are of no use later."""

Prune = Callable[[int], Callable[[Point], Tensor]]
"""Budget of a fleet -> what tells at each of its points which runs ``[runs]`` to stop."""


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run. Errors, at x, are fractions of wrong classes; in a regression RMSE per output."""

    config: TrainConfig
    task: Literal["classification", "regression"]
    state: Literal["completed", "diverged", "pruned", "failed"]
    """failed: the run is over, but its folder could not be written (reason)."""
    evaluations: int
    """Gradient evaluations spent; of a diverged run, the one in which it became non-finite or exploded."""
    seconds: float
    metrics: dict[str, list[float | None]]
    """Columns of equal length, as in metrics.csv: `pandas.DataFrame(result.metrics)` is a table."""
    network: Callable[[], nn.Module]
    """Makes the network, see model: most runs of a sweep are never asked for theirs."""
    around: Mapping[str, Any]
    """What the predictor takes besides the network: units and shape of the raw inputs, and how outputs are read."""
    n_parameters: int
    test_error: float
    test_loss: float
    validation_error: float
    validation_loss: float
    best_validation_error: float
    best_test_error: float
    """At the best x by validation (lowest error; of equal ones the lowest loss, then the latest), found at best_at.

    NaN, like all that is said of validation, with dataset.validation_fraction=0.
    """
    best_at: int
    last_loss: float
    """Mini-batch loss of the last finite gradient evaluation."""
    folder: Path | None
    engine: str
    """What computed a step: native, native_update, compiled or eager (docs/architecture.md)."""
    reason: str | None = None
    """Why a run diverged or failed, None where it did not."""
    guess_error: float = math.nan
    """Error of the best answer that looks at no input, the most frequent class or the mean of the targets.

    Measured on the validation part; on the test part where there is no validation part.
    """
    no_better_than_guessing: bool = False
    """Whether a completed run's error on that part is not clearly below guess_error (training/evaluation.py)."""
    regime: Regime | None = None
    """Of local_entropy: L lr / gamma, epsilon, and nu over the noise of the mini-batches (training/regime.py)."""
    advice: str | None = None
    """What to try, of a run that diverged or is no better than guessing."""

    @functools.cached_property
    def model(self) -> nn.Module:
        """The network: an ordinary module at the last x, on the CPU, in evaluation mode.

        It takes inputs as it was trained on, standardised by default.
        """
        return self.network()

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The network behind what was done to the data: from raw inputs to class scores, or targets in their unit."""
        return Predictor(self.model, **self.around)

    def __repr__(self) -> str:
        """Return five lines: how the run ended, its numbers, and where they are."""
        first, *others = (f"{label}: {text}" for label, text in self._shown().items())
        return "\n  ".join([f"Result({first}", *others]) + ")"

    def _repr_html_(self) -> str:
        """Return a small table for a notebook."""
        rows = (f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self._shown().items())
        return f"<table>{''.join(rows)}</table>"

    def _shown(self) -> dict[str, str]:
        """Return what a reader wants to know first, label -> text."""
        name = "error" if self.task == "classification" else "RMSE"

        def shown(error: float) -> str:
            return f"{100 * error:.2f} %" if self.task == "classification" else f"{error:.4g}"

        optimizer = f"{self.config.optimizer.name}, lr {self.config.optimizer.lr:g}, seed {self.config.seed}"
        head = {self.state if self.state != "diverged" else "DIVERGED": f"{optimizer}, {self.config.dataset.name}"}
        spent = f"{self.evaluations:,} in {self.seconds:.1f} s ({self.engine})"
        tail = {"gradient evaluations": spent, "folder": str(self.folder)}
        if self.state in ("diverged", "failed"):
            return head | {"reason": self.reason or "", "last finite loss": f"{self.last_loss:.4g}"} | tail
        warned = {"no better than guessing": self.advice or ""} if self.no_better_than_guessing else {}
        if math.isnan(self.validation_error):
            last = f"{shown(self.test_error)} (no validation part), loss {self.test_loss:.4g}"
            return head | {f"test {name}": last} | warned | tail
        last = f"{shown(self.test_error)} (validation {shown(self.validation_error)}), loss {self.test_loss:.4g}"
        best = f"test {name} {shown(self.best_test_error)} after {self.best_at:,} gradient evaluations"
        return head | {f"test {name}": last, "best by validation": best} | warned | tail

    @property
    def objective(self) -> float:
        """The number to minimise in a search: the validation error, +inf for a diverged run."""
        return self.validation_error if self.state in ("completed", "pruned") else math.inf


@dataclass
class Trainer:
    """Trains lanes: as few fleets as possible, saved in time, stopped when told to, halved when memory is short."""

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
        """Train, record, and return the results. Raises Interrupted, everything saved, where told to stop."""
        prepared, lanes = self.prepared, self.lanes
        self.fleet = prepared.fleet()
        parts = {part: getattr(prepared.data, part) for part in ("validation", "test")}
        self.evaluators = {part: prepared.evaluator(data) for part, data in parts.items() if data.n}
        self.best, self.position = _Best(self.fleet), Position()
        checkpoints = [lane.checkpoint for lane in lanes if lane.checkpoint is not None]
        if checkpoints:  # before anything is changed: it may not fit
            self.fleet.restore(checkpoints)
            self.position = Position(checkpoints[0]["logged"], max(c["seconds"] for c in checkpoints))
        more = [name for name in self.fleet.diagnostics() if name not in NAMES]
        for lane in lanes:
            if lane.folder is not None:
                lane.folder.more = more
                lane.folder.regression = prepared.data.task == "regression"
            with self._recording(lane):
                lane.rewind()
                lane.start_sinks()
        if checkpoints:
            self.best.restore([lane.best for lane in lanes])
            self._replay_into_pruner()
        else:
            self._make_lasting()
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
        return self._record_ends([self._result(i) for i in range(len(lanes))])

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
                told = self.interruption.requested is not None
                due = time.monotonic() >= save_at or (every is not None and fleet.evaluations % every < fleet.points)
                if (told or due) and not over and fleet.evaluations:
                    self._save()
                    save_at = time.monotonic() + interval
                if told and not over:
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
        there = [(i, lane, lane.folder) for i, lane in enumerate(self.lanes) if lane.failure is None]
        recorded = [(i, lane, folder) for i, lane, folder in there if folder is not None]
        for i, lane, folder in recorded:
            with self._recording(lane):
                belonging = folder.metrics_position() | {"config_digest": digest(folder.config)}
                folder.stage_checkpoint(self._checkpoint(i, belonging, ended))
        self._make_lasting()
        for _, lane, folder in recorded:
            if lane.failure is None:
                with self._recording(lane):
                    folder.commit_checkpoint()
        if not ended:  # else it is done with what is recorded of the end
            self._make_lasting()

    def _make_lasting(self) -> None:
        """Let all that was recorded so far survive a power failure."""
        there = [lane for lane in self.lanes if lane.folder is not None and lane.failure is None]
        try:
            make_lasting([lane.folder.path for lane in there if lane.folder is not None])
        except RunFolderError:  # of some of them
            for lane in there:
                with self._recording(lane):
                    make_lasting([lane.folder.path] if lane.folder is not None else [])

    def _checkpoint(self, i: int, belonging: dict[str, Any], ended: bool) -> dict[str, Any]:
        """Return all that the run needs to go on, and what tells whether it may."""
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
            "measured": {name: values[i] for name, values in self._measured.items()} if ended else None,
            **self.prepared.network,
            "data": self.prepared.data_digest,
            **self._buffers_at(i),
        }

    def _buffers_at(self, i: int) -> dict[str, Any]:
        """Return what a checkpoint keeps of the statistics at both x, for models that have any."""
        buffers_at = self.prepared.buffers_at
        if buffers_at is None:
            return {}
        points = {"last": self.fleet.x[i], "best": self.best.x[i]}
        return {"buffers_at": {name: {n: b.cpu() for n, b in buffers_at(x).items()} for name, x in points.items()}}

    @functools.cached_property
    def _measured(self) -> dict[str, list[float]]:
        """Loss and error of all runs at the last x, and test errors at the best one; as recorded where they are."""
        checkpoints = [lane.checkpoint or {} for lane in self.lanes]
        known = [c.get("measured") for c in checkpoints if c.get("evaluations") == self.fleet.evaluations]
        if len(known) == len(self.lanes) and all(known):
            return {name: [values[name] for values in known if values is not None] for name in known[0] or {}}
        x, test = self.fleet.x, self.evaluators["test"]
        names = ("validation_loss", "validation_error", "best_test_error")  # not known where nothing is validated
        measured = {name: [math.nan] * len(self.lanes) for name in names}
        for part, evaluator in self.evaluators.items():
            loss, error = evaluator(x)
            measured |= {f"{part}_loss": loss.tolist(), f"{part}_error": error.tolist()}
        return measured if len(self.evaluators) < 2 else measured | {"best_test_error": test(self.best.x)[1].tolist()}

    @functools.cached_property
    def _guess(self) -> float:
        return self.prepared.data.guess_error(getattr(self.prepared.data, self._judge))

    @property
    def _judge(self) -> str:
        """The part that says whether a run has blown up or is guessing: validation, where there is one."""
        return next(iter(self.evaluators))

    @functools.cached_property
    def _regimes(self) -> list[Regime | None]:
        return regimes(self.fleet, self.prepared.initial(self.fleet.seeds))

    def _result(self, i: int) -> Result:
        fleet, lane, rows = self.fleet, self.lanes[i], self.lanes[i].rows
        alive, diverged_at = bool(fleet.alive[i]), int(fleet.diverged_at[i])
        state, reason, advice = "completed" if alive else "pruned", None, None
        evaluations = int(rows[-1]["evaluations"] or 0) if state == "pruned" else fleet.evaluations
        if alive and not self._measured[f"{self._judge}_loss"][i] <= float(fleet.loss_limit[i]):
            diverged_at = fleet.evaluations - 1  # the very last update blew up: no gradient was taken after it
        if diverged_at >= 0:
            state, evaluations = "diverged", diverged_at + 1
            reason = f"diverged at gradient evaluation {evaluations}, last loss {float(fleet.last_loss[i]):g}; "
            advice = divergence_hint(fleet, i, diverged_at, self.best.x[i])
            reason += advice
        guessing = state == "completed" and is_guessing(
            self._measured[f"{self._judge}_error"][i],
            self._guess,
            getattr(self.prepared.data, self._judge).n,
            self.prepared.data.task == "classification",
        )
        if guessing:
            advice = learning_hint(fleet, i, self.prepared.initial(fleet.seeds)[i])
        data, log_odds = self.prepared.data, self.prepared.problem.loss.name == "logistic"
        return Result(
            config=lane.config,
            task=self.prepared.data.task,
            state="failed" if lane.failure else state,
            evaluations=evaluations,
            seconds=self.position.seconds,
            metrics={name: [row[name] for row in rows] for name in rows[0]},
            network=network_at(self.prepared.problem.model, fleet.x[i], self.prepared.buffers_at),
            around={"units": data.units, "input_shape": data.input_shape, "log_odds": log_odds},
            n_parameters=self.prepared.problem.d,
            **{name: values[i] for name, values in self._measured.items()},
            best_validation_error=float(self.best.error[i]) if "validation" in self.evaluators else math.nan,
            best_at=int(self.best.at[i]),
            last_loss=float(fleet.last_loss[i]),
            folder=None if lane.folder is None else lane.folder.path,
            engine=self.choices["engine"],
            reason=lane.failure or reason,
            guess_error=self._guess,
            no_better_than_guessing=guessing,
            regime=self._regimes[i],
            advice=advice,
        )

    def _place(self, i: int) -> dict[str, Any]:
        """Return the fleet that a run was in, when it ended the one that it ended in."""
        lane = self.lanes[i]
        return lane.fleet if lane.measured else {"id": self.fleet_id, "size": len(self.lanes), "index": i}

    def _record_ends(self, results: list[Result]) -> list[Result]:
        """Record how the runs ended, and return the results with what then failed.

        log.txt and the TensorBoard view of all of them are on the disk before the first status.json says that a run is
        over, because a run that is over is not looked at again.
        """
        ends = []
        for i, (lane, result) in enumerate(zip(self.lanes, results, strict=True)):
            if lane.folder is None or lane.final or lane.failure:
                continue
            fields = {name: getattr(result, name) for name in _RECORDED} | self.choices
            fields |= {"data": self.prepared.data_digest, "n_test": self.prepared.data.test.n, "code": code_version()}
            fields |= {"fleet_size": self._place(i)["size"], "parent": lane.parent}
            fields["errors_are"] = "RMSE" if result.task == "regression" else "shares of wrong classes"
            lines = [(logging.INFO, f"{result.state} after {result.evaluations} gradient evaluations")]
            if result.regime is not None:
                fields["regime"] = result.regime.recorded()
            if result.reason is not None:
                fields["reason"] = result.reason
                lines.insert(0, (logging.ERROR, result.reason))
            if result.no_better_than_guessing:
                lines.insert(0, (logging.WARNING, f"no better than guessing; {result.advice}"))
            with self._recording(lane):
                lane.folder.log_once(lines)
                lane.folder.finish(result.state, fields)
                ends.append((lane, lane.folder, result.state, fields))
        self._make_lasting()
        for lane, folder, state, fields in ends:
            if lane.failure is None:
                with self._recording(lane):
                    folder.end(state, fields)
                    lane.end_sinks(state, fields)
        return [
            dataclasses.replace(result, state="failed", reason=lane.failure) if lane.failure else result
            for lane, result in zip(self.lanes, results, strict=True)
        ]


_RECORDED = (
    "task",
    "evaluations",
    "seconds",
    "test_error",
    "test_loss",
    "validation_error",
    "validation_loss",
    "best_validation_error",
    "best_test_error",
    "best_at",
    "last_loss",
    "n_parameters",
    "guess_error",
    "no_better_than_guessing",
    "advice",
)
"""What status.json says of a result."""


class _Best:
    """The best x of every run so far: lowest validation error; of equal ones the lowest loss, then the latest point.

    On a small validation part many points share the lowest error; the earliest of them is the worst choice.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.x = fleet.x.clone()
        self.error = torch.full((fleet.n_runs,), math.inf, dtype=torch.float64)
        self.loss = self.error.clone()
        self.at = torch.zeros(fleet.n_runs, dtype=torch.int64)

    def update(self, point: Point, fleet: Fleet) -> None:
        """Look at a point that was validated."""
        if point.validation_error is None:
            return
        assert point.validation_loss is not None
        error, loss = point.validation_error.double(), point.validation_loss.double()
        better = (error < self.error) | ((error == self.error) & (loss <= self.loss))
        better &= point.alive & torch.isfinite(loss)
        self.error = torch.where(better, error, self.error)
        self.loss = torch.where(better, loss, self.loss)
        self.at = torch.where(better, point.evaluations, self.at)
        self.x = torch.where(better.to(self.x.device)[:, None], fleet.x, self.x)

    def snapshot(self, run: int) -> dict[str, Tensor]:
        """Return what is kept of one run."""
        return {"x": self.x[run].cpu(), "error": self.error[run], "loss": self.loss[run], "at": self.at[run]}

    def restore(self, snapshots: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from the snapshots of all runs."""
        for name in ("x", "error", "loss", "at"):
            getattr(self, name).copy_(torch.stack([snapshot[name] for snapshot in snapshots]))


def _shown(point: Point) -> tuple[float | None, float | None]:
    """Return what the progress bar shows: mean loss, and lowest validation error of the living runs."""
    alive = point.alive
    loss = None if point.train_loss is None or not alive.any() else float(point.train_loss[alive].mean())
    error = point.validation_error
    return loss, None if error is None or not alive.any() else float(error[alive].min())
