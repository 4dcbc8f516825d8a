"""The training loop: spends the budget of a fleet and yields the points that are recorded."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from burgersgd.training.evaluation import Evaluator
from burgersgd.training.fleet import Fleet
from burgersgd.training.metrics import NAMES, TABLE, Moment


@dataclass(frozen=True)
class Point:
    """One row of metrics of every run; tensors are ``[runs]`` on the CPU, None where nothing was measured."""

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
        """The metrics by name: a number that all runs share, or one of every run."""
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
    """The state of the recording of a fleet, which a checkpoint holds besides the fleet's own snapshot."""

    logged: int = -1
    """Gradient evaluations at the last Point; -1 before the first."""
    seconds: float = 0.0
    """Training time so far, including that of earlier processes."""


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

    Validation happens at the start, at the first cycle end at or after each multiple of eval_every, and at the end;
    never where there is no validation part.
    Yields None, with the position up to date but nothing measured, at other multiples of save_every and where pause()
    is true. Stops early when no run is left alive.
    """
    before, started = position.seconds, time.perf_counter()
    cycle = fleet.evaluations_per_cycle

    def due(multiple: int, after: int) -> int:
        """Return the first step's end at or after the next multiple."""
        return -(-(after // multiple + 1) * multiple // fleet.points) * fleet.points

    def next_validation(after: int) -> int:
        """Return the first cycle end after `after` that is the first one at or after a multiple of eval_every."""
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
    said = {name: value.cpu() for name, value in fleet.diagnostics().items()}
    c = fleet.coefficients_at(fleet.evaluations - 1) if since else {}
    measured = (None, None) if validation is None else validation(fleet.x)
    moment = Moment(fleet, seconds, since, c, said, measured)
    known = {"always": True, "evaluated": since > 0, "validated": validation is not None}
    values = {metric.name: metric.of(moment) for metric in TABLE if known[metric.when]}
    on_cpu: dict[str, Any] = {
        name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()
    }
    more = {name: value if since else None for name, value in said.items() if name not in NAMES}
    return Point(**on_cpu, more=more, alive=fleet.alive.to("cpu", copy=True))  # the fleet writes into its own
