"""Train: from configurations, or from the folder of a run that was stopped, to results, for one run or a fleet."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burgersgd.build import UserData, UserModel, module_at
from burgersgd.config import ConfigError, TrainConfig
from burgersgd.identity import config_from, config_hash
from burgersgd.interruption import Interrupted, Interruption, interruptible
from burgersgd.lane import Lane, depends_on_budget, with_budget
from burgersgd.prepare import Prepared, prepare
from burgersgd.recording.environment import code_version
from burgersgd.recording.progress import Progress
from burgersgd.recording.run_folder import (
    RunFolder,
    RunFolderError,
    RunInUseError,
    begun,
    complete_checkpoints,
    read_config,
)
from burgersgd.training.fleet import Fleet
from burgersgd.training.loop import Point, Position, fit

_log = logging.getLogger("burgersgd")

Prune = Callable[[Point], Tensor | None]
"""Which runs ``[runs]`` of a fleet to stop at a point of metrics; None stops nothing."""


@dataclass(frozen=True)
class Result:
    """What a run leaves behind. Errors are shares of wrong classes (regression: root mean squared errors), at x."""

    config: TrainConfig
    task: Literal["classification", "regression"]
    state: Literal["completed", "diverged", "pruned", "failed"]
    """failed: the run is over, but its folder could not be written (reason)."""
    evaluations: int
    """Gradient evaluations spent; of a diverged run, the one in which it became non-finite or exploded."""
    seconds: float
    metrics: dict[str, list[float | None]]
    """Columns of equal length, as in metrics.csv: `pandas.DataFrame(result.metrics)` is a table."""
    model: nn.Module
    """An ordinary module at the last x, on the CPU, in evaluation mode."""
    n_parameters: int
    test_error: float
    test_loss: float
    validation_error: float
    validation_loss: float
    best_validation_error: float
    best_test_error: float
    """At the x of lowest validation error, found after best_at gradient evaluations."""
    best_at: int
    last_loss: float
    """Mini-batch loss of the last finite gradient evaluation."""
    folder: Path | None
    engine: str
    """What computed a step: native, native_update, compiled or eager (docs/architecture.md)."""
    reason: str | None = None
    """Why a run diverged or failed, None where it did not."""

    @property
    def objective(self) -> float:
        """The number to minimise in a search: the validation error, +inf for a diverged run."""
        return self.validation_error if self.state in ("completed", "pruned") else math.inf


def train(
    config: TrainConfig | None = None,
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    overrides: Sequence[str] = (),
    record: bool = True,
    progress: bool | Progress | None = None,
) -> Result:
    """Train one network and return the result; the same as `burgersgd train`.

    model: your own module (training starts at its parameters) or a function that makes one (called with torch's seed
    set to config.seed). dataset: a Dataset or arrays (x, y), split as config.dataset says. record: write a run folder
    below config.output_root. progress: None shows a bar on a terminal and lines elsewhere.

    Raises ConfigError, DataError or RunFolderError, each with a one-line message, before anything is written; later
    Interrupted (a KeyboardInterrupt) where the process is told to stop: `resume` goes on from there.
    """
    config = TrainConfig() if config is None else config
    return train_fleet([config], model=model, dataset=dataset, overrides=[overrides], record=record, progress=progress)[
        0
    ]


def train_fleet(
    configs: Sequence[TrainConfig],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    overrides: Sequence[Sequence[str]] | None = None,
    record: bool = True,
    progress: bool | Progress | None = None,
    prune: Prune | None = None,
) -> list[Result]:
    """Train runs that differ in seed and float hyperparameters as one batched computation; results in the same order.

    Arguments and errors as in train. prune(point) may tell at each point of metrics which runs to stop. A fleet that
    does not fit into memory goes on as two. Raises ConfigError naming the first key that differs and must not.
    """
    prepared = prepare(configs, model=model, dataset=dataset)
    overrides = overrides or [()] * len(configs)
    with ExitStack() as stack:
        lanes = [Lane(config) for config in configs]
        if record:
            with prepared.torch_settings():  # whose number of threads is recorded
                for lane, words in zip(lanes, overrides, strict=True):
                    lane.folder = stack.enter_context(_new_folder(prepared, lane.config, words))
        return _Trainer(model, dataset, prune).run(lanes, progress)


def resume(
    folder: Path | str,
    *,
    budget: int | None = None,
    output_root: str | None = None,
    run_name: str | None = None,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    progress: bool | Progress | None = None,
) -> Result:
    """Go on with the run of a folder to the end of its budget; of a run that is over, return the result.

    Bit-identical to the undisturbed run on the same device. A larger budget continues the run in a new folder (below
    output_root, called run_name), and only where nothing depends on the fraction of the budget. Raises ConfigError
    where it does, RunInUseError while another process trains the run, and what train raises.
    """
    folder = Path(folder)
    if budget is not None:
        folder = _continued(folder, budget, output_root, run_name, model, dataset)
    return resume_fleet([folder], model=model, dataset=dataset, progress=progress)[0]


def resume_fleet(
    folders: Sequence[Path],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    progress: bool | Progress | None = None,
    prune: Prune | None = None,
) -> list[Result]:
    """Go on with several runs that could share a fleet: those that stand at the same evaluation do. Raises as resume.

    The runs of one fleet, all of them in their order, go on bit-identically; in other company to rounding.
    """
    with ExitStack() as stack:
        reopened = [stack.enter_context(RunFolder.reopen(folder)) for folder in folders]
        return _go_on(reopened, _Trainer(model, dataset, prune), progress)


def _go_on(folders: Sequence[RunFolder], trainer: _Trainer, progress: bool | Progress | None) -> list[Result]:
    complete_checkpoints([folder.path for folder in folders])
    return trainer.run([Lane.reopened(folder) for folder in folders], progress)


def _continued(
    folder: Path,
    budget: int,
    output_root: str | None,
    run_name: str | None,
    model: UserModel | None,
    dataset: UserData | None,
) -> Path:
    """Return a new run folder that begins as a run ended (or stopped) and has a larger budget; or folder itself."""
    with RunFolder.reopen(folder) as opened:
        lane = Lane.reopened(opened)
        root = lane.config.output_root if output_root is None else output_root
        config = dataclasses.replace(with_budget(lane.config, budget), output_root=root, run_name=run_name)
        prepared = prepare([config], model=model, dataset=dataset)
        checkpoint, error = lane.checkpoint, functools.partial(config.trainer.error, "budget")
        if checkpoint is None:
            raise error(f"{folder} has no checkpoint to go on from; start a new run instead")
        if prepared.budget == checkpoint["choices"]["budget"]:
            return folder
        if prepared.budget < lane.evaluations:
            raise error(f"must be >= {lane.evaluations}, what {folder} has spent already")
        if not lane.alive:
            raise error(f"{folder} has diverged, it cannot go on")
        key = depends_on_budget(config)
        if key is not None:
            raise error(f"{key} makes the run depend on its budget; start a new run instead")
        spent = {name: checkpoint[name] for name in ("evaluations", "config_hash")}
        continued = {
            **checkpoint,
            "choices": checkpoint["choices"] | {"budget": prepared.budget},
            "config_hash": config_hash(config, prepared.budget),
            "parent": {"folder": str(opened.path), **spent},
        }
        metrics = opened.metrics_text(checkpoint["metrics_bytes"])
        with _new_folder(prepared, config, (), metrics) as new:
            new.checkpoint(continued)
            new.status("interrupted", reason=f"continues {folder}, not begun yet")
            return new.path


def train_jobs(
    configs: Sequence[TrainConfig],
    overrides: Sequence[Sequence[str]],
    *,
    progress: bool | Progress | None = None,
    prune: Prune | None = None,
) -> list[Result | None]:
    """Train runs that could share a fleet, each in its folder output_root/run_name, whatever is there already.

    Those begun before go on, the ones of a former fleet together; those that are over give their result; None stands
    for one that another process works on. Raises as train_fleet does.
    """
    prepared = prepare(configs)
    with ExitStack() as stack:
        folders: dict[int, RunFolder] = {}
        for i, (config, words) in enumerate(zip(configs, overrides, strict=True)):
            with contextlib.suppress(RunInUseError), prepared.torch_settings():
                path = Path(config.output_root, config.run_name or "")
                folder = RunFolder.reopen(path) if begun(path) else _new_folder(prepared, config, words)
                folders[i] = stack.enter_context(folder)
        results = _go_on(list(folders.values()), _Trainer(None, None, prune), progress)
        return [dict(zip(folders, results, strict=True)).get(i) for i in range(len(configs))]


def repeat(
    folder: Path,
    choices: dict[str, Any],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    progress: bool | Progress | None = None,
) -> Result:
    """Train the configuration of a run folder again, from its start, in a new folder, with given choices (see Lane)."""
    config = dataclasses.replace(config_from(read_config(folder)), run_name=None)
    lane, trainer = Lane(config, begins_with=choices), _Trainer(model, dataset, None)
    prepared = trainer.prepare([lane])
    with prepared.torch_settings(), ExitStack() as stack:
        lane.folder = stack.enter_context(_new_folder(prepared, config, ()))
        return trainer.run([lane], progress)[0]


def check_output(config: TrainConfig) -> None:
    """Raise ConfigError where a run folder could not be written; creates nothing that stays."""
    path = Path(config.output_root).absolute()
    if config.run_name is not None and (path / config.run_name).exists():
        raise config.error("run_name", f"the folder {path / config.run_name} exists already")
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise config.error("output_root", f"cannot write there: {error.strerror or error}") from error


def _new_folder(prepared: Prepared, config: TrainConfig, overrides: Sequence[str], metrics: str = "") -> RunFolder:
    root, plain = Path(config.output_root), dataclasses.asdict(config)
    device = str(prepared.problem.inputs.device)
    if config.run_name is not None:
        return RunFolder.create(root / config.run_name, plain, overrides, device, metrics)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = f"{stamp}_{config.optimizer.name}_{prepared.data.name}"
    suffixes = ("", *(f"_{k}" for k in range(2, 10_000)))
    path = next(root / (name + suffix) for suffix in suffixes if not (root / (name + suffix)).exists())
    return RunFolder.create(path, plain, overrides, device, metrics)


@dataclass
class _Trainer:
    """Trains lanes: as few fleets as possible, saved in time, stopped when told to, halved when memory is short."""

    model: UserModel | None
    dataset: UserData | None
    prune: Prune | None

    def run(self, lanes: Sequence[Lane], progress: bool | Progress | None) -> list[Result]:
        """Return the results of all lanes, in their order."""
        if not lanes:
            return []
        groups: dict[str, list[int]] = {}
        for i in sorted(range(len(lanes)), key=lambda i: lanes[i].fleet["index"]):
            lane = lanes[i]
            groups.setdefault(repr((lane.evaluations, lane.choices, lane.final, lane.fleet["id"])), []).append(i)
        fleets = [([lanes[i] for i in group], group) for group in groups.values()]
        prepared = [self.prepare(members) for members, _ in fleets]
        results: dict[int, Result] = {}
        with ExitStack() as stack:
            self.interruption = stack.enter_context(interruptible())
            if isinstance(progress, Progress):
                self.bar = progress
            else:
                config, n = lanes[0].config, len(lanes)
                title = config.optimizer.name if n == 1 else f"{n} runs of {config.optimizer.name}"
                total = sum(p.budget * len(p.configs) for p in prepared)
                done = sum(lane.evaluations for lane in lanes)
                percent = prepared[0].data.task == "classification"
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
                raise ConfigError(f"out of memory ({_first_line(error)}): a smaller model or batch may fit") from error
        _log.warning("out of memory with %d runs at once: going on with half as many", len(lanes))
        self.bar.add(-fleet_run.counted)
        del fleet_run
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
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class _FleetRun:
    """One fleet from where its lanes stand to the end of its budget."""

    def __init__(
        self, prepared: Prepared, lanes: list[Lane], interruption: Interruption, bar: Progress, prune: Prune | None
    ) -> None:
        self.prepared, self.lanes, self.interruption, self.bar, self.prune = prepared, lanes, interruption, bar, prune
        self.counted = 0
        """Gradient evaluations that the bar was told."""
        budget, trainer = prepared.budget, prepared.configs[0].trainer
        known = lanes[0].choices.get("budget", budget)
        if known != budget:
            raise trainer.error("budget", f"is {budget} gradient evaluations, the run began with {known}")
        self.choices = lanes[0].choices or {
            "engine": prepared.engine,
            "threads": torch.get_num_threads() if prepared.threads is None else prepared.threads,
            "budget": budget,
            "log_every": trainer.log_every or -(-budget // 200),
            "eval_every": trainer.eval_every or -(-budget // 50),
        }
        self.hashes = [config_hash(lane.config, budget) for lane in lanes]
        self.fleet_id = hashlib.sha256(",".join(self.hashes).encode()).hexdigest()[:12]

    def results(self) -> list[Result]:
        """Train, record, and return the results. Raises Interrupted, everything saved, where told to stop."""
        prepared, lanes = self.prepared, self.lanes
        self.fleet = prepared.fleet()
        self.evaluators = {part: prepared.evaluator(getattr(prepared.data, part)) for part in ("validation", "test")}
        self.best, self.position = _Best(self.fleet), Position()
        for lane in lanes:
            with self._recording(lane):
                lane.rewind()
        checkpoints = [lane.checkpoint for lane in lanes if lane.checkpoint is not None]
        if checkpoints:
            self.fleet.restore(checkpoints)
            self.best.restore([checkpoint["best"] for checkpoint in checkpoints])
            self.position = Position(checkpoints[0]["logged"], max(c["seconds"] for c in checkpoints))
        if not lanes[0].final and bool(self.fleet.alive.any()):
            try:
                self._spend()
            except Interrupted as interrupted:
                interrupted.folders = [lane.folder.path for lane in lanes if lane.folder is not None]
                raise
        return [self._result(i) for i in range(len(lanes))]

    def _spend(self) -> None:
        fleet, lanes, trainer = self.fleet, self.lanes, self.prepared.configs[0].trainer
        every, interval = trainer.checkpoint_every, 60 * trainer.checkpoint_minutes
        save_at = time.monotonic() + interval
        spent = fleet.evaluations

        def pause() -> bool:
            return self.interruption.requested is not None or time.monotonic() >= save_at

        log_every, eval_every = self.choices["log_every"], self.choices["eval_every"]
        with self.interruption.deferred():
            validation = self.evaluators["validation"]
            for point in fit(fleet, validation, log_every, eval_every, self.position, every, pause):
                self.interruption.settle()
                if point is not None:
                    self._record(point)
                    self.bar.add((point.evaluations - spent) * len(lanes), *_shown(point))
                    self.counted += (point.evaluations - spent) * len(lanes)
                    spent = point.evaluations
                over = fleet.evaluations == fleet.budget or not bool(fleet.alive.any())
                told = self.interruption.requested is not None
                due = time.monotonic() >= save_at or (every is not None and fleet.evaluations % every == 0)
                if (told or due) and not over and fleet.evaluations:
                    self._save()
                    save_at = time.monotonic() + interval
                if told and not over:
                    self.interruption.raise_if_requested()

    def _record(self, point: Point) -> None:
        self.best.update(point, self.fleet)
        for i, lane in enumerate(self.lanes):
            if point.belongs_to(i):
                with self._recording(lane):
                    lane.record(point.row(i))
        if all(lane.failure is not None for lane in self.lanes):
            raise RunFolderError(self.lanes[0].failure)
        stopped = None if self.prune is None else self.prune(point)
        if stopped is not None:
            self.fleet.stop(stopped)

    def _recording(self, lane: Lane) -> contextlib.AbstractContextManager[None]:
        return lane.recording(alone=len(self.lanes) == 1)

    def _save(self) -> None:
        """Write the checkpoints of all runs: every one is on the disk before the first one counts."""
        recorded = [(i, lane, lane.folder) for i, lane in enumerate(self.lanes) if lane.folder is not None]
        for i, lane, folder in recorded:
            with self._recording(lane):
                folder.stage_checkpoint(self._checkpoint(i, folder.metrics_bytes()))
        for _, lane, folder in recorded:
            if lane.failure is None:
                with self._recording(lane):
                    folder.commit_checkpoint()

    def _checkpoint(self, i: int, metrics_bytes: int) -> dict[str, Any]:
        """Return all that the run needs to go on, and what tells whether it may."""
        model, lane = self.prepared.problem.model, self.lanes[i]
        return self.fleet.snapshot(i) | {
            "code": code_version(),
            "config_hash": self.hashes[i],
            "choices": self.choices,
            "fleet": {"id": self.fleet_id, "size": len(self.lanes), "index": i},
            "parent": lane.parent,
            "best": self.best.snapshot(i),
            "logged": self.position.logged,
            "seconds": self.position.seconds,
            "metrics_bytes": metrics_bytes,
            "parameters": [[name, list(p.shape)] for name, p in model.module().named_parameters()],
        }

    @functools.cached_property
    def _measured(self) -> dict[str, list[float]]:
        """Loss and error of all runs at the last x, and test errors at the best one."""
        x = self.fleet.x
        measured = {}
        for part in ("validation", "test"):
            loss, error = self.evaluators[part](x)
            measured |= {f"{part}_loss": loss.tolist(), f"{part}_error": error.tolist()}
        return measured | {"best_test_error": self.evaluators["test"](self.best.x)[1].tolist()}

    def _result(self, i: int) -> Result:
        fleet, lane, rows = self.fleet, self.lanes[i], self.lanes[i].rows
        alive, diverged_at = bool(fleet.alive[i]), int(fleet.diverged_at[i])
        state, reason = ("completed", None) if alive else ("pruned", None)
        evaluations = int(rows[-1]["evaluations"] or 0) if state == "pruned" else fleet.evaluations
        if diverged_at >= 0:
            state, evaluations = "diverged", diverged_at + 1
            reason = f"diverged at gradient evaluation {evaluations}, last loss {float(fleet.last_loss[i]):g}"
        result = Result(
            config=lane.config,
            task=self.prepared.data.task,
            state="failed" if lane.failure else state,
            evaluations=evaluations,
            seconds=self.position.seconds,
            metrics={name: [row[name] for row in rows] for name in rows[0]},
            model=module_at(self.prepared.problem.model, fleet.x[i]),
            n_parameters=self.prepared.problem.d,
            **{name: values[i] for name, values in self._measured.items()},
            best_validation_error=float(self.best.error[i]),
            best_at=int(self.best.at[i]),
            last_loss=float(fleet.last_loss[i]),
            folder=None if lane.folder is None else lane.folder.path,
            engine=self.choices["engine"],
            reason=lane.failure or reason,
        )
        if lane.folder is not None and not lane.final and not lane.failure:
            with self._recording(lane):
                self._record_end(lane.folder, i, result)
            if lane.failure:
                result = dataclasses.replace(result, state="failed", reason=lane.failure)
        return result

    def _record_end(self, folder: RunFolder, i: int, result: Result) -> None:
        folder.checkpoint(self._checkpoint(i, folder.metrics_bytes()))
        fields = {name: getattr(result, name) for name in _RECORDED} | self.choices
        fields |= {"fleet_size": len(self.lanes), "parent": self.lanes[i].parent}
        if result.reason is not None:
            fields["reason"] = result.reason
            folder.log.error("%s", result.reason)
        folder.status(result.state, **fields)
        folder.log.info("%s after %d gradient evaluations", result.state, result.evaluations)


_RECORDED = (
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
)
"""What status.json says of a result."""


class _Best:
    """The x of lowest validation error of every run so far."""

    def __init__(self, fleet: Fleet) -> None:
        self.x = fleet.x.clone()
        self.error = torch.full((fleet.n_runs,), math.inf, dtype=torch.float64)
        self.at = torch.zeros(fleet.n_runs, dtype=torch.int64)

    def update(self, point: Point, fleet: Fleet) -> None:
        """Look at a point that was validated."""
        if point.validation_error is None:
            return
        better = (point.validation_error < self.error) & point.alive
        self.error = torch.where(better, point.validation_error.double(), self.error)
        self.at = torch.where(better, point.evaluations, self.at)
        self.x = torch.where(better.to(self.x.device)[:, None], fleet.x, self.x)

    def snapshot(self, run: int) -> dict[str, Tensor]:
        """Return what is kept of one run."""
        return {"x": self.x[run].cpu(), "error": self.error[run], "at": self.at[run]}

    def restore(self, snapshots: Sequence[Mapping[str, Tensor]]) -> None:
        """Go on from the snapshots of all runs."""
        for name in ("x", "error", "at"):
            getattr(self, name).copy_(torch.stack([snapshot[name] for snapshot in snapshots]))


def _shown(point: Point) -> tuple[float | None, float | None]:
    """Return what the progress bar shows: mean loss, and lowest validation error of the living runs."""
    alive = point.alive
    loss = None if point.train_loss is None or not alive.any() else float(point.train_loss[alive].mean())
    error = point.validation_error
    return loss, None if error is None or not alive.any() else float(error[alive].min())
