"""From a configuration to results: data, model, optimizer, training loop and run folder, for one run or a fleet."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from burgersgd import streams
from burgersgd.build import (
    DTYPES,
    UserData,
    UserModel,
    budget_of,
    dataset_of,
    device_of,
    engine_of,
    loss_of,
    model_of,
    module_at,
    own_start,
    probe,
)
from burgersgd.config import ConfigError, TrainConfig
from burgersgd.datasets import Batches, Dataset, Part
from burgersgd.models.conv import LeNet
from burgersgd.models.mlp import Mlp
from burgersgd.models.wrapped import Wrapped
from burgersgd.recording.progress import Progress, SweepProgress
from burgersgd.recording.run_folder import RunFolder
from burgersgd.streams import Purpose
from burgersgd.training.evaluation import Evaluator
from burgersgd.training.fleet import Fleet
from burgersgd.training.gradients import Problem
from burgersgd.training.loop import Point, fit

Shown = bool | SweepProgress | None
"""Where progress goes: see train."""

SMALL = 4_000_000
"""Parameters times examples of a step below which several threads gain nothing, and lose on a busy machine."""


@dataclass(frozen=True)
class Result:
    """What a run leaves behind. Errors are shares of wrong classes (regression: root mean squared errors), at x."""

    config: TrainConfig
    task: Literal["classification", "regression"]
    state: Literal["completed", "diverged"]
    evaluations: int
    """Gradient evaluations spent; of a diverged run, the one in which it became non-finite."""
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

    @property
    def objective(self) -> float:
        """The number to minimise in a search: the validation error, +inf for a diverged run."""
        return self.validation_error if self.state == "completed" else math.inf


def train(
    config: TrainConfig | None = None,
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    overrides: Sequence[str] = (),
    record: bool = True,
    progress: Shown = None,
) -> Result:
    """Train one network and return the result; the same as `burgersgd train`.

    model: your own module (training starts at its parameters) or a function that makes one (called with torch's seed
    set to config.seed). dataset: a Dataset or arrays (x, y), split as config.dataset says. record: write a run folder
    below config.output_root. progress: None shows a bar on a terminal and lines elsewhere; a SweepProgress is told
    instead of it.

    Raises ConfigError, DataError or RunFolderError, each with a one-line message, before anything is written.
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
    progress: Shown = None,
) -> list[Result]:
    """Train runs that differ in seed and float hyperparameters as one batched computation; results in the same order.

    Arguments and errors as in train. Raises ConfigError naming the first key that differs and must not.
    """
    prepared = prepare(configs, model=model, dataset=dataset)
    return prepared.run(overrides or [()] * len(configs), record=record, progress=progress)


def fleet_key(config: TrainConfig) -> dict[str, Any]:
    """Return everything that runs of one fleet must have in common, by dotted key."""
    free = {"seed", "run_name", *(f"sweep.{name}" for name in vars(config.sweep))}
    for part in ("optimizer", "schedule"):
        free |= {f"{part}.{name}" for name in getattr(config, part).hyper()}
    flat = {}
    for name, value in dataclasses.asdict(config).items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return {k: v for k, v in flat.items() if k not in free} | {"update rule": config.optimizer.rule()}


def prepare(
    configs: Sequence[TrainConfig], *, model: UserModel | None = None, dataset: UserData | None = None
) -> Prepared:
    """Load the data, build the model and check that everything fits together. Writes nothing. Raises as train does."""
    if not configs:
        raise ConfigError("configs: must hold at least one run")
    config = configs[0]
    key = fleet_key(config)
    for other in configs[1:]:
        theirs = fleet_key(other)
        for name in key | theirs:
            if key.get(name) != theirs.get(name):
                raise ConfigError(f"{name}={theirs.get(name)}: must be {key.get(name)} in every run of a fleet")
    device = device_of(config)
    dtype = DTYPES[config.trainer.precision]
    data = dataset_of(config, dataset)
    loss = loss_of(config, data)
    network = model_of(config, data, loss, model)
    batch_size = data.n_train if config.optimizer.full_batch else config.trainer.batch_size
    if batch_size > data.n_train:
        raise config.trainer.error("batch_size", f"must be <= {data.n_train}, the number of training examples")
    on_device = data.to(device, dtype)
    train_targets = loss.encode(on_device.train.targets, data.n_outputs, dtype)
    problem = Problem(network, loss, on_device.train.inputs, train_targets, config.trainer.precision == "bfloat16")
    probe(problem)
    threads = config.device.threads
    if threads is None and len(configs) * problem.d * batch_size < SMALL:
        threads = 1
    with _threads(threads):
        engine = engine_of(config, problem, device, len(configs), batch_size)
    return Prepared(
        configs=list(configs),
        data=on_device,
        problem=problem,
        batch_size=batch_size,
        budget=budget_of(config, data.n_train, batch_size),
        engine=engine,
        threads=threads,
        user_model=model,
    )


@contextlib.contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Let torch use n threads of the CPU; None leaves it its own choice."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if n is None else n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


@dataclass
class Prepared:
    """Runs that are checked and ready to start."""

    configs: list[TrainConfig]
    data: Dataset
    problem: Problem
    batch_size: int
    budget: int
    engine: str
    threads: int | None
    user_model: UserModel | None

    def run(self, overrides: Sequence[Sequence[str]], *, record: bool, progress: Shown) -> list[Result]:
        """Train, record and return the results, as train_fleet does."""
        with _threads(self.threads):
            return self._run(overrides, record, progress)

    def _run(self, overrides: Sequence[Sequence[str]], record: bool, progress: Shown) -> list[Result]:
        config = self.configs[0]
        if (
            torch.are_deterministic_algorithms_enabled() != config.trainer.deterministic
        ):  # the call imports the compiler
            torch.use_deterministic_algorithms(config.trainer.deterministic)
        fleet = self._fleet()
        evaluators = {part: self._evaluator(getattr(self.data, part)) for part in ("validation", "test")}
        n = len(self.configs)
        with ExitStack() as stack:
            folders: list[RunFolder | None] = [None] * n
            if record:
                for i, run_config in enumerate(self.configs):
                    folders[i] = stack.enter_context(self._folder(run_config, overrides[i]))
            title = config.optimizer.name if n == 1 else f"{n} runs of {config.optimizer.name}"
            percent = self.data.task == "classification"
            if isinstance(progress, SweepProgress):
                bar = progress.part(percent)
            else:
                bar = Progress(self.budget * n, title, enabled=progress, percent=percent)  # summed over the runs
            stack.callback(bar.close)
            points: list[Point] = []
            best = _Best(fleet)
            log_every = config.trainer.log_every or -(-self.budget // 200)
            eval_every = config.trainer.eval_every or -(-self.budget // 50)
            for point in fit(fleet, evaluators["validation"], log_every, eval_every):
                points.append(point)
                best.update(point, fleet)
                for i, folder in enumerate(folders):
                    if folder is not None and point.belongs_to(i):
                        folder.metrics(point.row(i))
                bar.update(point.evaluations * n, *_shown(point))
            return self._results(fleet, evaluators, points, best, folders)

    def _fleet(self) -> Fleet:
        config, device = self.configs[0], self.problem.inputs.device
        seeds = torch.tensor([c.seed for c in self.configs], dtype=torch.int64, device=device)
        return Fleet(
            problem=self.problem,
            rule=config.optimizer.rule(),
            hyper=_columns([c.optimizer.hyper() for c in self.configs]),
            schedule=config.schedule.name,
            schedule_hyper=_columns([c.schedule.hyper() for c in self.configs]),
            batches=Batches(
                self.data.n_train,
                self.batch_size,
                seeds,
                with_replacement=config.trainer.with_replacement and not config.optimizer.full_batch,
                drop_last=config.trainer.drop_last,
            ),
            seeds=seeds,
            x0=self._initial(seeds),
            budget=self.budget,
            engine=self.engine,
            clip_norm=config.trainer.clip_norm,
        )

    def _initial(self, seeds: Tensor) -> Tensor:
        """Return the initial parameters of all runs, each from its own stream (seed, INIT, 0)."""
        model, inputs = self.problem.model, self.problem.inputs
        if isinstance(model, Wrapped):
            return torch.stack([own_start(self.user_model, c.seed) for c in self.configs]).to(inputs)
        assert isinstance(model, Mlp | LeNet)
        z = torch.empty(1, len(self.configs), self.problem.d, device=inputs.device)
        if model.init_distribution == "normal":
            streams.normal_(z, seeds, Purpose.INIT, 0)
        else:  # uniform with variance 1
            z = (2 * streams.uniform_(z, seeds, Purpose.INIT, 0) - 1) * math.sqrt(3)
        return (z[0] * model.init_std().to(z)).to(inputs.dtype)

    def _evaluator(self, part: Part) -> Evaluator:
        problem = self.problem
        targets = problem.loss.encode(part.targets, self.data.n_outputs, problem.inputs.dtype)
        classification = self.data.task == "classification"
        return Evaluator(problem.model, problem.loss, classification, part.inputs, part.targets, targets)

    def _folder(self, config: TrainConfig, overrides: Sequence[str]) -> RunFolder:
        root, plain = Path(config.output_root), dataclasses.asdict(config)
        device = str(self.problem.inputs.device)
        if config.run_name is not None:
            return RunFolder.create(root / config.run_name, plain, overrides, device)
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        name = f"{stamp}_{config.optimizer.name}_{self.data.name}"
        suffixes = ("", *(f"_{k}" for k in range(2, 10_000)))
        path = next(root / (name + suffix) for suffix in suffixes if not (root / (name + suffix)).exists())
        return RunFolder.create(path, plain, overrides, device)

    def _results(
        self,
        fleet: Fleet,
        evaluators: dict[str, Evaluator],
        points: list[Point],
        best: _Best,
        folders: Sequence[RunFolder | None],
    ) -> list[Result]:
        x = fleet.x
        (validation_loss, validation_error), (test_loss, test_error) = (
            [values.tolist() for values in evaluators[part](x)] for part in ("validation", "test")
        )
        best_test_error = evaluators["test"](best.x)[1].tolist()
        alive, diverged_at, last_loss = fleet.alive.tolist(), fleet.diverged_at.tolist(), fleet.last_loss.tolist()
        results = []
        for i, (config, folder) in enumerate(zip(self.configs, folders, strict=True)):
            rows = [point.row(i) for point in points if point.belongs_to(i)]
            result = Result(
                config=config,
                task=self.data.task,
                state="completed" if alive[i] else "diverged",
                evaluations=fleet.evaluations if alive[i] else diverged_at[i] + 1,
                seconds=points[-1].seconds,
                metrics={name: [row[name] for row in rows] for name in rows[0]},
                model=module_at(self.problem.model, x[i]),
                n_parameters=self.problem.d,
                test_error=test_error[i],
                test_loss=test_loss[i],
                validation_error=validation_error[i],
                validation_loss=validation_loss[i],
                best_validation_error=best.error.tolist()[i],
                best_test_error=best_test_error[i],
                best_at=best.at.tolist()[i],
                last_loss=last_loss[i],
                folder=None if folder is None else folder.path,
                engine=self.engine,
            )
            if folder is not None:
                _record_end(folder, fleet, i, result, self.budget)
            results.append(result)
        return results


def _record_end(folder: RunFolder, fleet: Fleet, i: int, result: Result, budget: int) -> None:
    state = {name: None if t is None else t[i] for name, t in fleet.state._asdict().items()}
    folder.checkpoint({"evaluations": result.evaluations, "x": fleet.x[i], "state": state})
    numbers = [
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
        "engine",
        "n_parameters",
    ]
    fields = {name: getattr(result, name) for name in numbers} | {"budget": budget, "fleet_size": fleet.n_runs}
    if result.state == "diverged":
        fields["reason"] = (
            f"non-finite at gradient evaluation {result.evaluations}, last finite loss {result.last_loss:g}"
        )
        folder.log.error("%s", fields["reason"])
    folder.status(result.state, **fields)
    folder.log.info("%s after %d gradient evaluations", result.state, result.evaluations)


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


def _shown(point: Point) -> tuple[float | None, float | None]:
    """Return what the progress bar shows: mean loss, and lowest validation error of the living runs."""
    alive = point.alive
    loss = None if point.train_loss is None or not alive.any() else float(point.train_loss[alive].mean())
    error = point.validation_error
    return loss, None if error is None or not alive.any() else float(error[alive].min())


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, Tensor]:
    """Return the float hyperparameters of all runs, float64 ``[runs, 1]`` each."""
    return {name: torch.tensor([[row[name]] for row in rows], dtype=torch.float64) for name in rows[0]}
