"""Sinks: other programs that receive the metrics of a run, chosen by `trainer.sinks=[tensorboard,NAME]`.

A sink is any object with three methods; ten lines connect a tracker::

    class Mine:
        def start(self, folder, config): self.tracker = tracker.init(name=folder.name, config=config)
        def rows(self, rows): [self.tracker.log(row, step=row["evaluations"]) for row in rows]
        def end(self, state, result): self.tracker.finish()

    burgersgd.recording.sinks.register("mine", Mine)

or an entry point of the group `burgersgd.sinks` in an installed package. The run folder is the complete record: a
sink that raises an error costs one warning, receives nothing more, and never makes a run fail. The run folder itself
writes TensorBoard's events.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

TENSORBOARD, MLFLOW = "tensorboard", "mlflow"
GROUP = "burgersgd.sinks"
_log = logging.getLogger("burgersgd")


class Sink(Protocol):
    """Methods that are called for one run. Each may raise any exception and should return quickly."""

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Called when the run starts or is resumed; config is the resolved configuration in plain values."""

    def rows(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Called with rows of metrics by column, about once a second; for a resumed run first with all earlier rows."""

    def end(self, state: str, result: Mapping[str, Any]) -> None:
        """Called when the run has ended, with the state of status.json, or was interrupted (without a result)."""


_registered: dict[str, Callable[[], Sink]] = {}
_reported: set[str] = set()
"""Names of the sinks whose failure this process has reported."""


def register(name: str, make: Callable[[], Sink]) -> None:
    """Register a name for `trainer.sinks`; make returns a new sink for every run."""
    _registered[name] = make


def sink_names() -> list[str]:
    """Return all names that `trainer.sinks` may have."""
    return [*dict.fromkeys([TENSORBOARD, MLFLOW, *_registered, *(point.name for point in entry_points(group=GROUP))])]


def problem_with(name: str) -> str | None:
    """Return the reason why `trainer.sinks` cannot contain a name; None where it can."""
    if name not in sink_names():
        return f"{name}: must be one of {', '.join(sink_names())}"
    if name == MLFLOW and MLFLOW not in _registered and importlib.util.find_spec("mlflow") is None:
        return f"{name}: needs the package mlflow-skinny (pip install '.[mlflow]' in the checkout)"
    return None


def _made(name: str) -> Sink:
    if name in _registered:
        return _registered[name]()
    if name == MLFLOW:
        from burgersgd.recording.mlflow_sink import MlflowSink

        return MlflowSink()
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()()
    raise ValueError("no sink of that name is registered")


class Sinks:
    """The sinks of one run, except TensorBoard; log is the logger of the run."""

    def __init__(self, names: Sequence[str], log: logging.Logger) -> None:
        self._names, self._log = [name for name in names if name != TENSORBOARD], log
        self._open: dict[str, Sink] = {}
        self._n_rows = 0

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Make the sinks and report to them that the run starts or is resumed."""
        for name in self._names:
            try:
                self._open[name] = _made(name)
            except Exception as error:
                self._warn(name, error)
        self._each(lambda sink: sink.start(folder, config))

    def rows(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Send those of all rows of the run that are new to the sinks."""
        new, self._n_rows = rows[self._n_rows :], len(rows)
        if new:
            self._each(lambda sink: sink.rows(new))

    def end(self, state: str, result: Mapping[str, Any]) -> None:
        """Report to the sinks how the run ended."""
        self._each(lambda sink: sink.end(state, result))
        self._open.clear()

    def _each(self, tell: Callable[[Sink], None]) -> None:
        for name, sink in list(self._open.items()):
            try:
                tell(sink)
            except Exception as error:
                del self._open[name]
                self._warn(name, error)

    def _warn(self, name: str, error: Exception) -> None:
        text = (
            f"trainer.sinks: {name} failed and receives no more metrics: {type(error).__name__}: {error}".splitlines()[
                0
            ]
        )
        self._log.warning("%s", text)
        if name not in _reported:
            _reported.add(name)
            _log.warning("%s", text)
