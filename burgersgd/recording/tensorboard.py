# pyright: reportAttributeAccessIssue=false
# (the protocol buffers' classes are made when they are imported; no type checker sees them)
"""TensorBoard events of one run, written without TensorFlow, without threads and without keeping a file open.

`torch.utils.tensorboard.SummaryWriter` starts a thread per run, and its `add_hparams` makes a second run in a
subfolder. Here events are collected in a list, tensorboard is imported when the first of them are written, and the
owner of the file appends the bytes.

There is deliberately no summary that declares the entire experiment: TensorBoard would take the columns of its
hyperparameter table from the first run that it reads, and a sweep over optimizers would lose the columns of the others.
Without such a summary it collects the columns from all runs.

Runs that differ only in the seed are sessions of one group, whose means the table shows in one row. The layout of the
charts with the curves of all runs (CUSTOM SCALARS) is in every file; TensorBoard merges equal layouts.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from burgersgd.recording.rows import Table, checksum, record_head, scalar_records, tag_name, tagged

FLUSH_SECONDS = 5.0  # largest delay of the file; TensorBoard reloads as often

FINAL_METRICS = {"test_error": "test/error", "test_loss": "test/loss"}
"""Metrics measured once, at the end -> their tags: single points, shown below the curves of loss and error.

The table of hyperparameters takes the numbers of the validation part from the ends of their curves.
"""

OF_NO_SETTING = ("seed", "run_name", "output_root", "sweep")
"""Keys and groups that the table of hyperparameters omits: runs that differ only in them share a row."""

LAYOUT = {
    "loss": {"training loss": "loss/train", "validation loss": "loss/validation"},
    "error": {"validation error (in regression RMSE)": "(error|RMSE)/validation", "test error": "test/(error|RMSE)"},
}
"""Category -> chart -> pattern of the tags that the chart shows, for all runs together."""


class SessionStart(NamedTuple):
    """The hyperparameters of a run, recorded once at its start."""

    wall_time: float
    hparams: Mapping[str, float | str | bool]


class SessionEnd(NamedTuple):
    """Time at which the run ended, and whether it succeeded."""

    wall_time: float
    succeeded: bool


class TensorBoardEvents:
    """The events of one run, passed as bytes to `append`, which adds them to the run's event file.

    Steps are gradient evaluations; `hparams` are the run's hyperparameters by dotted name.
    """

    def __init__(self, append: Callable[[bytes], None], hparams: Mapping[str, float | str | bool]) -> None:
        self._append = append
        self._pending: list[SessionStart | bytes | SessionEnd] = [SessionStart(time.time(), hparams)]
        self._begun = False
        self._flushed_at = time.monotonic()
        self._evaluations = 0
        self.regression = False
        """Whether errors are RMSE and are named so."""

    def metrics(self, evaluations: int, row: Table) -> None:
        """Record those entries of `row` that have a tag and a value, and write pending events if that is due."""
        values = tagged(row, 1, self.regression)
        self.add(evaluations, scalar_records(time.time(), evaluations, values, 1)[0])
        self.flush_if_due()

    def add(self, evaluations: int, record: bytes) -> None:
        """Record a row that is encoded already (see rows.scalar_records); nothing is written yet."""
        self._evaluations = evaluations
        if record:
            self._pending.append(record)

    def finish(self, succeeded: bool, final: Mapping[str, float | None]) -> None:
        """Record the final metrics in `final` at the last step and the end of the session, and write all events."""
        found = {tag_name(tag, self.regression): final.get(name) for name, tag in FINAL_METRICS.items()}
        values = {tag: [float(value)] for tag, value in found.items() if value is not None}
        self.add(self._evaluations, scalar_records(time.time(), self._evaluations, values, 1)[0])
        self._pending.append(SessionEnd(time.time(), succeeded))
        self.flush()

    def flush_if_due(self) -> None:
        """Write the pending events if FLUSH_SECONDS have passed since they were last written."""
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending events."""
        if self._pending:
            self._append(_encode(self._pending, first=not self._begun))
            self._begun = True
            self._pending.clear()
        self._flushed_at = time.monotonic()


def hparams_of(config: Mapping[str, Any]) -> dict[str, float | str | bool]:
    """Return the hyperparameters of a run that the table shows: those of its setting."""
    return flat_hparams({name: value for name, value in config.items() if name not in OF_NO_SETTING})


def group_of(hparams: Mapping[str, float | str | bool]) -> str:
    """Return the name of a setting, equal for all of its seeds: optimizer, data set, hash of all hyperparameters."""
    names = [str(hparams[key]) for key in ("optimizer.name", "dataset.name") if key in hparams]
    digits = hashlib.sha256(json.dumps(dict(hparams), sort_keys=True).encode()).hexdigest()[:12]
    return "-".join([*names, digits])


def flat_hparams(config: Mapping[str, Any], prefix: str = "") -> dict[str, float | str | bool]:
    """Return the leaves of a nested configuration by dotted name, as values that TensorBoard's table can hold.

    Lists, None and non-finite numbers become text: TensorBoard sends hyperparameters as JSON and fails on infinity.
    """
    flat: dict[str, float | str | bool] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_hparams(value, f"{prefix}{name}.")
        elif isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value)):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = "null" if value is None else str(value)
    return flat


def _encode(items: Sequence[SessionStart | bytes | SessionEnd], first: bool) -> bytes:
    """Return `items` as records of an event file, after the record that opens such a file if they are the `first`."""
    records = []
    for item in items:
        if isinstance(item, bytes):
            records.append(item)
            continue
        # Imported here because the import takes 40 ms, which would delay the start of training.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if first and not records:
            records.append(_framed(Event(wall_time=item.wall_time, file_version="brain.Event:2")))
        values = _start(item) if isinstance(item, SessionStart) else [_end(item)]
        records.append(_framed(Event(wall_time=item.wall_time, summary=Summary(value=values))))
    return b"".join(records)


def _start(item: SessionStart) -> list[Any]:
    """Return the values of a run's first event: its hyperparameters and the layout of the page CUSTOM SCALARS."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo()
    info.CopyFrom(_setting(json.dumps(dict(item.hparams))))
    info.start_time_secs = item.wall_time
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return [_hparams_value(metadata.SESSION_START_INFO_TAG, data), _layout()]


@functools.lru_cache(maxsize=64)
def _setting(text: str) -> Any:
    """Return the hyperparameters (given as JSON) and the group of a run, equal for all seeds of a setting."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    hparams = json.loads(text)
    info = plugin_data_pb2.SessionStartInfo(group_name=group_of(hparams))
    for name, value in hparams.items():
        if isinstance(value, str):
            info.hparams[name].string_value = value
        elif isinstance(value, bool):
            info.hparams[name].bool_value = value
        else:
            info.hparams[name].number_value = value
    return info


def _end(item: SessionEnd) -> Any:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if item.succeeded else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=item.wall_time)
    data = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    return _hparams_value(metadata.SESSION_END_INFO_TAG, data)


def _hparams_value(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)


@functools.cache
def _layout() -> Any:
    """Return the summary that lays out the page CUSTOM SCALARS."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    layout = layout_pb2.Layout()
    for title, charts in LAYOUT.items():
        category = layout.category.add(title=title)
        for name, tag in charts.items():
            category.chart.add(title=name, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$"]))
    return Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=TensorProto(dtype=DT_STRING, tensor_shape={}, string_val=[layout.SerializeToString()]),
    )


def _framed(event: Any) -> bytes:
    """Return an event as a record of an event file."""
    data = event.SerializeToString()
    return record_head(len(data)) + data + checksum(data)
