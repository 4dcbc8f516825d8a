"""The table of a run's metrics: their names, how and when they are computed. Importing it does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple


class Moment(NamedTuple):
    """The data from which the metrics of one row are computed."""

    fleet: Any
    seconds: float
    since: int
    """Gradient evaluations since the last row."""
    coefficients: dict[str, Any]
    """The coefficients of the last gradient evaluation, by name."""
    diagnostics: dict[str, Any]
    """The rule's diagnostics of its state (Rule.diagnostics), by name."""
    measured: tuple[Any, Any]
    """Loss and error on the validation part."""


class Metric(NamedTuple):
    """A column of metrics.csv."""

    name: str
    tag: str | None
    """Its name in TensorBoard; None where it is not shown there."""
    when: Literal["always", "evaluated", "validated"]
    """Rows that have a value: all; those after a gradient evaluation; those where the validation part is measured."""
    of: Callable[[Moment], Any]
    """Function that returns its value: one number for the fleet, or ``[runs]``; None where a rule has no such value."""


TABLE = (
    Metric("evaluations", None, "always", lambda m: m.fleet.evaluations),
    Metric("epoch", None, "always", lambda m: m.fleet.evaluations / m.fleet.evaluations_per_epoch),
    Metric("seconds", None, "always", lambda m: m.seconds),
    Metric("train_loss", "loss/train", "evaluated", lambda m: m.fleet.take_mean_loss(m.since)),
    Metric("learning_rate", "optimizer/learning_rate", "evaluated", lambda m: m.coefficients.get("lr")),
    Metric("gradient_norm", "optimizer/gradient_norm", "evaluated", lambda m: m.fleet.grad_norm.clone()),
    Metric("x_y_distance", "optimizer/x_y_distance", "evaluated", lambda m: m.diagnostics.get("x_y_distance")),
    Metric("temperature", "optimizer/temperature", "evaluated", lambda m: m.diagnostics.get("temperature")),
    Metric("validation_loss", "loss/validation", "validated", lambda m: m.measured[0]),
    Metric("validation_error", "error/validation", "validated", lambda m: m.measured[1]),
)
"""The metrics in the order of the columns; further diagnostics of a rule follow them under their own names."""

NAMES = tuple(metric.name for metric in TABLE)
EVALUATED = frozenset(metric.name for metric in TABLE if metric.when == "evaluated")
"""Columns that have a value in every row but the first, if the rule has one at all."""
_TAGS = {metric.name: metric.tag for metric in TABLE}


def tag_of(name: str) -> str | None:
    """Return the name of a column in TensorBoard, None where it is not shown there."""
    return _TAGS.get(name, f"optimizer/{name}")
