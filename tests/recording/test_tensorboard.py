# pyright: reportAttributeAccessIssue=false
# (the protocol buffers' classes are made when they are imported; no type checker sees them)
"""TensorBoard's own reader must find in the event file what was recorded, in one run, with its hyperparameters."""

import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar_metadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.util import tensor_util

from burgersgd.recording import tensorboard
from burgersgd.recording.run_folder import RunFolder
from burgersgd.recording.tensorboard import flat_hparams

CONFIG = {"seed": 3, "optimizer": {"name": "local_entropy", "lr": 0.1, "gamma": math.inf, "nesterov": True}}
CONFIG |= {"run_name": "one", "output_root": "there", "sweep": {"name": "s", "seed": 2}, "dataset": {"seed": 4}}
ROW = {
    "train_loss": 0.1,
    "validation_loss": 0.2,
    "validation_error": 0.3,
    "learning_rate": 0.4,
    "x_y_distance": 0.5,
    "gradient_norm": 0.6,
    "temperature": 0.7,
}
TAG_VALUES = {
    "loss/train": 0.1,
    "loss/validation": 0.2,
    "error/validation": 0.3,
    "optimizer/learning_rate": 0.4,
    "optimizer/x_y_distance": 0.5,
    "optimizer/gradient_norm": 0.6,
    "optimizer/temperature": 0.7,
}
FINAL = {"test_error": 0.01, "test_loss": 0.02, "validation_error": 0.03, "validation_loss": 0.04}


def float32(value: float) -> float:
    """Return `value` with the precision of an event file."""
    return struct.unpack("f", struct.pack("f", value))[0]


def read(path: Path) -> EventAccumulator:
    return EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()


def tags(events: EventAccumulator) -> set[str]:
    scalars = events.Tags()["scalars"]
    assert isinstance(scalars, list)
    return set(scalars)


def event_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*tfevents*"))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "one", CONFIG)


def test_every_tag_has_its_steps_and_values(folder: RunFolder) -> None:
    for evaluations in (0, 20, 1_000_000_007):
        folder.metrics({"evaluations": evaluations, **{name: value * (1 + evaluations) for name, value in ROW.items()}})
    folder.status("completed", **FINAL)
    events = read(folder.path)
    final = {"test/error": 0.01, "test/loss": 0.02}
    assert min(final) > "loss/"  # TensorBoard sorts cards by their names: points alone stand below the curves
    assert tags(events) == TAG_VALUES.keys() | final.keys()
    for tag, value in TAG_VALUES.items():
        expected = [(step, float32(value * (1 + step))) for step in (0, 20, 1_000_000_007)]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected
    for tag, value in final.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [(1_000_000_007, float32(value))]


def test_missing_entries_have_no_event_and_non_finite_ones_do(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 1, "train_loss": 0.5, "validation_loss": None})
    folder.metrics({"evaluations": 2, "train_loss": math.inf, "gradient_norm": math.nan})
    folder.metrics({"evaluations": 3, "epoch": 1.5, "seconds": 2.0})
    folder.close()
    events = read(folder.path)
    assert tags(events) == {"loss/train", "optimizer/gradient_norm"}
    assert [(event.step, event.value) for event in events.Scalars("loss/train")] == [(1, 0.5), (2, math.inf)]
    assert math.isnan(events.Scalars("optimizer/gradient_norm")[0].value)


def test_hyperparameters_are_in_the_one_event_file_of_the_one_run(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 1, **ROW})
    folder.status("completed", **FINAL)
    folder.close()
    assert [file.parent for file in event_files(folder.path)] == [folder.path]
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder.path.parent)).Reload()
    assert list(multiplexer.Runs()) == ["one"]
    contents = multiplexer.PluginRunToTagToContent("hparams")["one"]
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()} == {
        "dataset.seed": 4.0,
        "optimizer.name": "local_entropy",
        "optimizer.lr": 0.1,
        "optimizer.gamma": "inf",
        "optimizer.nesterov": True,
    }
    assert start.hparams["optimizer.nesterov"].WhichOneof("kind") == "bool_value"
    end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS
    assert start.start_time_secs <= end.end_time_secs < start.start_time_secs + 60


def test_an_event_file_begins_with_the_version_of_its_format_and_says_it_once(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 10, **ROW})
    folder.status("completed", **FINAL)
    folder.close()
    (file,) = event_files(folder.path)
    events = list(EventFileLoader(str(file)).Load())
    assert [event.file_version for event in events if event.file_version] == ["brain.Event:2"]
    assert events[0].file_version == "brain.Event:2"


@pytest.mark.parametrize("again", [False, True])
def test_errors_of_a_regression_are_called_rmse_from_the_first_row_to_the_last(folder: RunFolder, again: bool) -> None:
    folder.regression = True
    assert folder.rewind(None) == []
    folder.metrics({"evaluations": 10, **ROW})
    if again:
        folder.checkpoint({"k": 1})
        rows = folder.rewind(len(folder.table.text()))
        assert [row["evaluations"] for row in rows] == [10]
    folder.status("completed", **FINAL)
    folder.close()
    found = {tag for tag in tags(read(folder.path)) if "rror" in tag or "RMSE" in tag}
    assert found == {"RMSE/validation", "test/RMSE"}


@pytest.mark.parametrize("state", ["diverged", "failed"])
def test_unsuccessful_session_ends_as_failure(folder: RunFolder, state: str) -> None:
    folder.status(state, reason="loss is inf")
    content = read(folder.path).PluginTagToContent("hparams")[metadata.SESSION_END_INFO_TAG]
    assert metadata.parse_session_end_info_plugin_data(content).status == api_pb2.STATUS_FAILURE


def test_interrupted_session_stays_open_and_its_rows_are_written(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 1, "train_loss": 0.5})
    folder.status("interrupted")
    folder.close()
    events = read(folder.path)
    assert list(events.PluginTagToContent("hparams")) == [metadata.SESSION_START_INFO_TAG]
    assert len(events.Scalars("loss/train")) == 1


def test_columns_of_a_mixed_sweep_are_those_of_all_its_runs(tmp_path: Path) -> None:
    """TensorBoard takes the first declared experiment for all runs, so none may be declared."""
    for name, config in {"a": {"lr": 0.1}, "b": {"nu": 0.2}}.items():
        folder = RunFolder.create(tmp_path / name, config)
        folder.status("completed")
    contents = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload().PluginRunToTagToContent("hparams")
    assert {run: set(found) for run, found in contents.items()} == {
        run: {metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG} for run in ("a", "b")
    }


def test_events_are_written_during_the_run(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "FLUSH_SECONDS", math.inf)
    folder.metrics({"evaluations": 1, "train_loss": 0.5})
    assert event_files(folder.path) == []  # too early to wait for the import
    monkeypatch.setattr(tensorboard, "FLUSH_SECONDS", 0.0)
    for evaluations in (2, 3):
        folder.metrics({"evaluations": evaluations, "train_loss": 0.5})
        steps = [event.step for event in read(folder.path).Scalars("loss/train")]
        assert steps == list(range(1, evaluations + 1))
    folder.close()
    folder.close()
    assert len(read(folder.path).Scalars("loss/train")) == 3


def test_runs_that_differ_in_the_seed_alone_are_one_group_of_the_table(tmp_path: Path) -> None:
    groups: dict[str, set[str]] = {}
    for lr in (0.1, 0.2):
        for seed in (1, 2):
            config = {"seed": seed, "run_name": f"{lr}{seed}", "optimizer": {"name": "sgd", "lr": lr}}
            folder = RunFolder.create(tmp_path / f"{lr}{seed}", config)
            folder.status("completed", **FINAL)
            content = read(folder.path).PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
            start = metadata.parse_session_start_info_plugin_data(content)
            groups.setdefault(start.group_name, set()).add(folder.path.name)
    assert sorted(map(sorted, groups.values())) == [["0.11", "0.12"], ["0.21", "0.22"]]
    assert all(name.startswith("sgd-") for name in groups)


def test_the_layout_puts_loss_and_error_of_all_runs_side_by_side(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 1, **ROW})
    folder.status("completed", **FINAL)
    events = read(folder.path)
    (event,) = events.Tensors(custom_scalar_metadata.CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    shown = {}
    for category in layout.category:
        for chart in category.chart:
            (pattern,) = chart.multiline.tag
            shown[category.title, chart.title.partition(" (")[0]] = {t for t in tags(events) if re.match(pattern, t)}
            assert re.match(pattern, "RMSE/validation") or category.title != "error" or "test" in chart.title
    assert shown == {
        ("loss", "training loss"): {"loss/train"},
        ("loss", "validation loss"): {"loss/validation"},
        ("error", "validation error"): {"error/validation"},
        ("error", "test error"): {"test/error"},
    }


def test_flat_hparams_are_dotted_and_json_can_hold_them() -> None:
    config = {"a": {"b": {"c": 1}, "d": None}, "e": [1, 2.5], "f": -math.inf, "g": True, "h": "text", "i": {}}
    expected = {"a.b.c": 1, "a.d": "null", "e": "[1, 2.5]", "f": "-inf", "g": True, "h": "text"}
    assert flat_hparams(config) == expected


def test_recording_adds_neither_torch_nor_tensorboard_to_the_start() -> None:
    code = (
        "import sys, burgersgd; before = set(sys.modules); import burgersgd.recording.run_folder; "
        "print(sorted({'torch', 'tensorboard', 'tensorflow', 'google.protobuf'} & (sys.modules.keys() - before)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


def test_a_run_whose_end_is_staged_twice_has_one_end(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 10, **ROW})
    folder.stage_end("completed", FINAL)
    folder.status("completed", **FINAL)
    folder.close()
    (file,) = event_files(folder.path)
    written = [value.tag for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    ends = (metadata.SESSION_END_INFO_TAG, "test/error", "test/loss")
    assert {tag: written.count(tag) for tag in ends} == dict.fromkeys(ends, 1)
