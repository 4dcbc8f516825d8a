"""Trains R runs together: their state, the inputs of their steps, the engine, and the loop over the budget."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burgersgd.datasets.batches import Batches
from burgersgd.optimizers.protocol import Hyper, Rule
from burgersgd.training.engines import Engine, Task, make_engine
from burgersgd.training.evaluation import Evaluator
from burgersgd.training.gradients import Problem
from burgersgd.training.inputs import Inputs
from burgersgd.training.metrics import NAMES, TABLE, Moment
from burgersgd.training.replicas import apart, evaluate_at
from burgersgd.training.rule_check import check_attributes, check_rule
from burgersgd.training.state import RunState


@dataclass(eq=False)
class Fleet:
    """R runs of one rule on one problem, which differ in their seeds and float hyperparameters.

    x0 is ``[runs, d]``; hyper and schedule_hyper hold float64 ``[runs, 1]`` on the CPU; seeds is int64 ``[runs]``. All
    randomness comes from streams keyed by (seed, purpose, step): a run draws the same numbers in any fleet.
    engine is a name in training/engines; gradients longer than clip_norm are scaled down to it, None for no clipping; a
    run whose loss exceeds explosion_factor times max(1, its first loss) has diverged.
    """

    problem: Problem
    rule: Rule
    hyper: Hyper
    schedule: str
    schedule_hyper: Hyper
    batches: Batches
    seeds: Int[Tensor, " runs"]
    x0: InitVar[Tensor]
    budget: int
    engine: str = "eager"
    clip_norm: float | None = None
    explosion_factor: float = math.inf
    buffers: Mapping[str, Tensor] | None = None
    """Initial values of the buffers that training changes, ``[runs, ...]`` by name."""

    def __post_init__(self, x0: Tensor) -> None:
        """Set up the state of all runs at x0 ``[runs, d]``. Raises ValueError for a rule that breaks its contract."""
        self.n_runs, self.d = x0.shape
        self.points = self.rule.replicas or 1
        """Number of gradient evaluations of a run in one step: one per replica."""
        self.step = 0
        """Number of steps that every run has taken."""
        self._latest: tuple[int, Any] | None = None  # a step, and its coefficients
        check_attributes(self.rule)
        x = x0 if self.points == 1 else x0.repeat_interleave(self.points, dim=0)
        schedule, budget = (self.schedule, self.schedule_hyper), self.budget // self.points
        self.inputs = Inputs(
            self.rule, self.hyper, *schedule, self.batches, self.seeds, budget, like=x, model=self.problem.model
        )
        given = {name: value._version for name, value in self.hyper.items()}
        xi = self.inputs.normals(first=0, n_steps=1)  # number 0 of the noise stream belongs to the initial state
        rule_state = self.rule.init(x, None if xi is None else xi[0])
        _ = self.inputs.wide  # raises for coefficients that would have to change
        c = self.inputs.row_of(0)
        if any(value._version != given[name] for name, value in self.hyper.items()):
            raise ValueError(
                f"{type(self.rule).__name__}.coefficients: changes its arguments; must return new tensors instead"
            )
        check_rule(self.rule, c, rule_state)
        buffers = None  # by row: every replica has its own statistics
        if self.buffers is not None:
            buffers = {name: buffer.repeat_interleave(self.points, 0) for name, buffer in self.buffers.items()}
        self.runs = RunState.start(rule_state, self.points, buffers)
        del x, xi, rule_state  # before the engine takes memory of its own
        longest = None if self.clip_norm is None else min(self.clip_norm, torch.finfo(x0.dtype).max)
        task = Task(self.problem, self.rule, longest, self.explosion_factor)
        self.stepper: Engine = make_engine(self.engine, task, self.runs, self.inputs)

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def state(self) -> Any:
        """The state of the rule; its tensors keep their place in memory and are written in place."""
        return self.runs.rule

    @property
    def x(self) -> Float[Tensor, "runs d"]:
        """The points that are evaluated and saved: the slow points of local_entropy."""
        return evaluate_at(self.rule, self.runs.rule)

    @property
    def evaluations(self) -> int:
        """Number of gradient evaluations that every run has spent."""
        return self.step * self.points

    @evaluations.setter
    def evaluations(self, spent: int) -> None:
        """Set the position in the budget without changing the state."""
        self.step = spent // self.points

    @property
    def evaluations_per_cycle(self) -> int:
        """Number of gradient evaluations of a run from one end of a cycle to the next."""
        return self.rule.gradients_per_cycle * self.points

    @property
    def evaluations_per_epoch(self) -> int:
        """Number of gradient evaluations in which every point of a run passes through the training data once."""
        return self.batches.evaluations_per_epoch * self.rule.gradients_per_batch * self.points

    @property
    def device(self) -> torch.device:
        """The device of the state."""
        return self.inputs.device

    @property
    def alive(self) -> Bool[Tensor, " runs"]:
        """Whether each run is still being trained: it has neither diverged nor been stopped."""
        return self.runs.of_runs(self.runs.alive)

    @property
    def diverged_at(self) -> Int[Tensor, " runs"]:
        """Number of the gradient evaluation at which a run diverged; -1 where it has not."""
        return (self.runs.of_runs(self.runs.diverged_at) + 1) * self.points - 1

    @property
    def last_loss(self) -> Float[Tensor, " runs"]:
        """Mini-batch losses of the last healthy evaluation."""
        return self.runs.of_runs(self.runs.last_loss)

    @property
    def grad_norm(self) -> Float[Tensor, " runs"]:
        """Norms of the gradients of the last healthy evaluation, before clipping."""
        return self.runs.of_runs(self.runs.grad_norm)

    @property
    def loss_limit(self) -> Float[Tensor, " runs"]:
        """Losses above which a run counts as diverged."""
        return self.runs.of_runs(self.runs.loss_limit)

    def exact_at(self, evaluation: int) -> Any:
        """Return the coefficients of one gradient evaluation, each float64 ``[runs, 1]`` on the CPU."""
        c = self._coefficients(evaluation // self.points)
        return c if self.points == 1 else type(c)(*(field[:: self.points] for field in c))

    def _coefficients(self, step: int) -> Any:
        """Return the coefficients of a step, cached, because a row of metrics needs them twice."""
        if self._latest is None or self._latest[0] != step:
            self._latest = step, self.inputs.coefficients_at(step)
        return self._latest[1]

    def coefficients_at(self, evaluation: int) -> dict[str, Tensor]:
        """Return the coefficients of one evaluation by name, each ``[runs]``; those ``[runs, d]`` are left out."""
        c = self.exact_at(evaluation)
        return {name: field[:, 0] for name, field in zip(c._fields, c, strict=True) if field.shape[1] == 1}

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the rule's diagnostics of its state after the last evaluation, ``[runs]`` by name."""
        c, state = self._coefficients(max(self.step - 1, 0)), self.runs.rule
        if self.rule.replicas is not None:
            c, state = apart(c, self.points), apart(state, self.points)
        values = {name: v.reshape(self.n_runs, -1) for name, v in self.rule.diagnostics(c, state).items()}
        return {name: v[:, 0] if v.shape[1] == 1 else v.mean(dim=1) for name, v in values.items()}

    def take_mean_loss(self, n: int) -> Float[Tensor, " runs"]:
        """Return the mean mini-batch loss of the last n evaluations and reset the sum."""
        mean = self.runs.of_runs(self.runs.loss_sum) / (n // self.points)
        self.runs.loss_sum.zero_()
        return mean

    # ------------------------------------------------------------------------------------------- stop and resume

    def snapshot(self, run: int) -> dict[str, Any]:
        """Return all data needed to resume one run: evaluations, state, and records of its losses."""
        return {"evaluations": self.evaluations} | self.runs.snapshot(run, self.x)

    def restore(self, snapshots: Sequence[Mapping[str, Any]]) -> None:
        """Restore the snapshots of all runs, in their order. Raises ValueError where they do not match the fleet."""
        steps = {snapshot["evaluations"] for snapshot in snapshots}
        if len(snapshots) != self.n_runs or len(steps) != 1:
            raise ValueError(f"{len(snapshots)} snapshots at {sorted(steps)} evaluations for {self.n_runs} runs")
        self.runs.restore(snapshots, self.x)
        self.step = steps.pop() // self.points

    def stop(self, runs: Bool[Tensor, " runs"]) -> None:
        """Stop training some runs, which did not diverge; their state is kept."""
        self.runs.stop(runs)

    # ---------------------------------------------------------------------------------------------- advancing

    def advance(self, n: int, pause: Callable[[], bool] | None = None) -> None:
        """Spend n gradient evaluations on every run, fewer if pause() returns true after some of them.

        Replicas take their evaluations in parallel: n is rounded up to a multiple of their number. Raises ValueError
        where n exceeds the rest of the budget.
        """
        end = self.step + -(-n // self.points)
        if end * self.points > self.budget:
            raise ValueError(
                f"n={n}: only {self.budget - self.evaluations} gradient evaluations of the budget are left"
            )
        while self.step < end:
            stop = min(end, self.inputs.load(self.step))
            while self.step < stop:
                self.step = self._steps(self.step, stop)
                if pause is not None and pause():
                    return

    def _steps(self, step: int, stop: int) -> int:
        """Take step number `step`, and possibly more of those before `stop`; return the next number."""
        reached = self.stepper.advance(self.runs, self.inputs, step, stop)
        self.runs.join()
        return reached


@dataclass(frozen=True)
class Point:
    """One row of metrics of every run; tensors are ``[runs]`` on the CPU, None for metrics that were not measured."""

    evaluations: int
    epoch: float
    seconds: float
    alive: Tensor
    train_loss: Tensor | None = None
    learning_rate: Tensor | None = None
    gradient_norm: Tensor | None = None
    x_y_distance: Tensor | None = None
    temperature: Tensor | None = None
    validation_loss: Tensor | None = None
    validation_error: Tensor | None = None
    more: dict[str, Tensor | None] = field(default_factory=dict)
    """Further diagnostics of the rule."""

    @functools.cached_property
    def table(self) -> dict[str, float | int | list[float] | None]:
        """The metrics by name: one number for all runs, or a list with a number for every run."""
        values: dict[str, float | int | list[float] | None] = {
            "evaluations": self.evaluations,
            "epoch": self.epoch,
            "seconds": self.seconds,
        }
        for name, value in ({name: getattr(self, name) for name in NAMES if name not in values} | self.more).items():
            values[name] = None if value is None else value.double().flatten().tolist()
        return values


@dataclass
class Position:
    """The state of the recording of a fleet, which checkpoints store in addition to the fleet's snapshot."""

    logged: int = -1
    """Gradient evaluations at the last Point; -1 before the first."""
    seconds: float = 0.0
    """Training time so far in seconds, including that of earlier processes."""


def fit(
    fleet: Fleet,
    validation: Evaluator | None,
    log_every: int,
    eval_every: int,
    position: Position,
    save_every: int | None = None,
    pause: Callable[[], bool] | None = None,
) -> Iterator[Point | None]:
    """Spend the rest of the budget and yield a Point every log_every and eval_every gradient evaluations.

    The validation part, if there is one, is evaluated at the start, at the first cycle end at or after each multiple of
    eval_every, and at the end.
    Yields None, with the position updated but nothing measured, at other multiples of save_every and where pause()
    returns true. Stops early when no run is alive.
    """
    before, started = position.seconds, time.perf_counter()
    cycle = fleet.evaluations_per_cycle

    def due(multiple: int, after: int) -> int:
        """Return the end of the first step that ends at or after the next multiple of `multiple`."""
        return -(-(after // multiple + 1) * multiple // fleet.points) * fleet.points

    def next_validation(after: int) -> int:
        """Return the next validation after `after`: the first cycle end at or after a multiple of eval_every."""
        latest = after // eval_every * eval_every
        ends = (-(-multiple // cycle) * cycle for multiple in (latest, latest + eval_every))
        return min(next(end for end in ends if end > after), fleet.budget)

    def point(validate: bool) -> Point:
        position.seconds = before + time.perf_counter() - started
        since, position.logged = fleet.evaluations - position.logged, fleet.evaluations
        return _point(fleet, position.seconds, validation if validate else None, since if fleet.evaluations else 0)

    if position.logged < 0:
        yield point(validate=True)
    while fleet.evaluations < fleet.budget:
        validated = next_validation(fleet.evaluations)
        logged = min(due(log_every, fleet.evaluations), validated)
        stop = min(logged, due(save_every, fleet.evaluations)) if save_every else logged
        fleet.advance(stop - fleet.evaluations, pause)
        position.seconds = before + time.perf_counter() - started
        if fleet.evaluations < logged:
            yield None
            continue
        now = point(validate=fleet.evaluations == validated)
        yield now
        if not bool(now.alive.any()):
            return


def _point(fleet: Fleet, seconds: float, validation: Evaluator | None, since: int) -> Point:
    diagnostics = {name: value.cpu() for name, value in fleet.diagnostics().items()}
    c = fleet.coefficients_at(fleet.evaluations - 1) if since else {}
    measured = (None, None) if validation is None else validation(fleet.x)
    moment = Moment(fleet, seconds, since, c, diagnostics, measured)
    is_due = {"always": True, "evaluated": since > 0, "validated": validation is not None}
    values = {metric.name: metric.of(moment) for metric in TABLE if is_due[metric.when]}
    on_cpu: dict[str, Any] = {
        name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()
    }
    more = {name: value if since else None for name, value in diagnostics.items() if name not in NAMES}
    return Point(**on_cpu, more=more, alive=fleet.alive.to("cpu", copy=True))  # the fleet changes its own tensor
