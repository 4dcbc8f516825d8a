"""Sinks receive the metrics of a run besides its folder, and can never make it fail."""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burgersgd.api import train, train_fleet
from burgersgd.cli import main
from burgersgd.config import ConfigError, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.identity import config_hash
from burgersgd.recording import mlflow_sink, sinks
from burgersgd.recording.reading import read_config, read_metrics, read_status
from burgersgd.training.fleet import Fleet


class Listener:
    """Remembers what it is told, and raises where it is to."""

    told: list[tuple[str, Any]]
    raising: str | None = None

    def _hear(self, what: str, content: Any) -> None:
        Listener.told.append((what, content))
        if what == Listener.raising:
            raise OSError("the tracker is\naway")

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._hear("start", (folder, config))

    def rows(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        self._hear("rows", list(rows))

    def end(self, state: str, result: Mapping[str, Any]) -> None:
        self._hear("end", (state, result))


@pytest.fixture(autouse=True)
def listener(monkeypatch: pytest.MonkeyPatch) -> type[Listener]:
    monkeypatch.setattr(sinks, "_registered", {})
    monkeypatch.setattr(sinks, "_reported", set())
    sinks.register("listener", Listener)
    Listener.told, Listener.raising = [], None
    return Listener


def config(root: Path, *names: str, **changed: Any) -> TrainConfig:
    trainer = TrainerConfig(budget=60, log_every=7, sinks=list(names))
    return TrainConfig(optimizer=SgdConfig(), trainer=trainer, output_root=str(root), **changed)


def test_a_sink_receives_the_configuration_every_row_and_the_end(tmp_path: Path) -> None:
    result = train(config(tmp_path, "listener", run_name="one"), progress=False)
    kinds = [what for what, _ in Listener.told]
    assert (kinds[0], kinds[-1], set(kinds[1:-1])) == ("start", "end", {"rows"})
    folder, settings = Listener.told[0][1]
    assert folder == result.folder
    assert settings == read_config(tmp_path / "one")
    rows = [row for what, content in Listener.told if what == "rows" for row in content]
    metrics = read_metrics(tmp_path / "one")
    assert [row["evaluations"] for row in rows] == metrics["evaluations"]
    assert [row["train_loss"] for row in rows[1:]] == metrics["train_loss"][1:]
    state, told = Listener.told[-1][1]
    assert (state, told["test_error"]) == ("completed", result.test_error)
    assert not list((tmp_path / "one").glob("events*"))  # tensorboard was not asked for


def test_tensorboard_is_the_default_and_no_setting_of_sinks_changes_what_a_run_is(tmp_path: Path) -> None:
    assert TrainerConfig().sinks == ["tensorboard"]
    train(config(tmp_path, "tensorboard", run_name="one"), progress=False)
    assert list((tmp_path / "one").glob("events*"))
    assert config_hash(config(tmp_path), 60) == config_hash(config(tmp_path, "listener", "tensorboard"), 60)


@pytest.mark.parametrize("raising", ["start", "rows", "end"])
def test_a_sink_that_fails_costs_one_warning_and_no_run(
    raising: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Listener.raising = raising
    configs = [config(tmp_path, "listener", run_name=str(seed), seed=seed) for seed in range(3)]
    with caplog.at_level(logging.WARNING, "burgersgd"):
        results = train_fleet(configs, progress=False)
    assert [result.state for result in results] == ["completed"] * 3
    warned = [record.getMessage() for record in caplog.records if "trainer.sinks" in record.getMessage()]
    assert warned == ["trainer.sinks: listener failed and receives no more metrics: OSError: the tracker is"]
    for seed in range(3):
        assert "listener failed" in (tmp_path / str(seed) / "log.txt").read_text()
        assert read_status(tmp_path / str(seed))["state"] == "completed"
    kinds = [what for what, _ in Listener.told]
    assert kinds.count(raising) == 3  # once for each run, and then nothing more
    if raising != "end":
        assert "end" not in kinds


def test_a_resumed_run_sends_its_earlier_rows_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Fleet.advance

    def stopping(self: Fleet, *arguments: Any) -> None:
        original(self, *arguments)
        if self.evaluations >= 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "advance", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path, "listener", run_name="one"), progress=False)
    Listener.told.clear()
    assert main(["train", f"resume={tmp_path / 'one'}"]) == 0
    rows = [row["evaluations"] for what, content in Listener.told if what == "rows" for row in content]
    assert rows == read_metrics(tmp_path / "one")["evaluations"]
    assert [what for what, _ in Listener.told if what != "rows"] == ["start", "end"]


def test_a_name_that_there_is_not_is_one_line_and_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["trainer.sinks=[tensorbord]"], ["--multirun", "seed=1,2", "trainer.sinks=[tensorbord]"]):
        assert main(["train", *words]) == 2
        assert "tensorbord: must be one of tensorboard, mlflow, listener" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="tensorbord: must be one of"):
        train(config(tmp_path / "outputs", "tensorbord"))
    assert not list(tmp_path.iterdir())


def test_a_run_whose_sink_is_not_installed_is_resumed_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = sinks.Sinks(["gone", "tensorboard", "listener"], logging.getLogger("burgersgd.test"))
    told.start(tmp_path, {})
    told.rows([{"evaluations": 1}])
    told.end("completed", {})
    assert [what for what, _ in Listener.told] == ["start", "rows", "end"]
    assert "gone failed and receives no more metrics: ValueError: no sink of that name is registered" in caplog.text


def test_without_its_package_mlflow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None if name == "mlflow" else find_spec(name))
    with pytest.raises(ConfigError, match=r"mlflow: needs the package mlflow-skinny \(pip install '\.\[mlflow\]'"):
        train(config(tmp_path / "outputs", "mlflow"))
    assert not list(tmp_path.iterdir())


def test_mlflow_receives_numbers_with_their_evaluations_in_requests_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, Any]] = []

    class Client:
        def __init__(self, tracking_uri: str) -> None:
            told.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name: str) -> None:
            told.append(("experiment", name))

        def create_experiment(self, name: str) -> str:
            return f"id of {name}"

        def search_runs(self, experiments: list[str], condition: str) -> list[Any]:
            told.append(("search", (experiments, condition)))
            return [SimpleNamespace(info=SimpleNamespace(run_id="old"))]

        def delete_run(self, run: str) -> None:
            told.append(("delete", run))

        def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Any:
            told.append(("create", (experiment, run_name, tags)))
            return SimpleNamespace(info=SimpleNamespace(run_id="new"))

        def log_batch(self, run: str, params: Any = (), metrics: Any = ()) -> None:
            told.append(("batch", (run, [*params], [(m.name, m.value, m.step) for m in metrics])))

        def set_terminated(self, run: str, state: str) -> None:
            told.append(("end", (run, state)))

    entities = SimpleNamespace(
        Metric=lambda name, value, now, step: SimpleNamespace(name=name, value=value, step=step),
        Param=lambda name, value: (name, value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow_sink, "MOST", 2)
    monkeypatch.setattr(mlflow_sink, "MOST_PARAMS", 3)
    sink = mlflow_sink.MlflowSink()
    sink.start(tmp_path / "run", {"seed": 1, "optimizer": {"name": "sgd", "lr": 0.1}, "note": None})
    params = [("seed", "1"), ("optimizer.name", "sgd"), ("optimizer.lr", "0.1"), ("note", "null")]
    assert told == [
        ("uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
        ("experiment", "burgersgd"),
        ("search", (["id of burgersgd"], f"tags.`burgersgd.folder` = '{tmp_path / 'run'}'")),
        ("delete", "old"),
        ("create", ("id of burgersgd", "run", {"burgersgd.folder": str(tmp_path / "run")})),
        ("batch", ("new", params[:3], [])),
        ("batch", ("new", params[3:], [])),
    ]
    told.clear()
    sink.rows([{"evaluations": 0, "train_loss": None, "validation_loss": 2.5}])
    sink.rows([{"evaluations": 7, "train_loss": 0.5, "validation_loss": math.nan, "temperature": 3, "epoch": 0.25}])
    first, *later = [content for _, (_, _, content) in told]
    assert first == [("validation_loss", 2.5, 0)]
    assert later == [[("train_loss", 0.5, 7), ("temperature", 3.0, 7)], [("epoch", 0.25, 7)]]
    told.clear()
    sink.end("diverged", {"evaluations": 9, "test_error": 0.9, "test_loss": math.nan, "best_test_error": None})
    assert told == [("batch", ("new", [], [("test_error", 0.9, 9)])), ("end", ("new", "FAILED"))]
    told.clear()
    sink.end("interrupted", {"evaluations": None, "test_error": 0.9})
    assert told == [("batch", ("new", [], [("test_error", 0.9, 0)])), ("end", ("new", "KILLED"))]
    for state in ("completed", "pruned"):
        sink.end(state, {})
        assert told[-1] == ("end", ("new", "FINISHED"))


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_keeps_runs_with_parameters_metrics_and_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    results = [train(config(tmp_path, "mlflow", run_name=str(seed), seed=seed), progress=False) for seed in (1, 2)]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("burgersgd").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert sorted(runs) == ["1", "2"]
    for seed, result in zip((1, 2), results, strict=True):
        run = runs[str(seed)]
        assert (run.data.params["seed"], run.data.params["optimizer.name"]) == (str(seed), "sgd")
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test_error"] == pytest.approx(result.test_error)
        history = client.get_metric_history(run.info.run_id, "train_loss")
        metrics = read_metrics(tmp_path / str(seed))
        known = [(int(e), v) for e, v in zip(metrics["evaluations"], metrics["train_loss"], strict=True) if v == v]
        assert sorted((m.step, m.value) for m in history) == known
    again = sinks.Sinks(["mlflow"], logging.getLogger("burgersgd.test"))  # a run that goes on is not there twice
    again.start(tmp_path / "1", {"seed": 1})
    again.end("interrupted", {})
    found = {run.info.run_name: run.info.status for run in client.search_runs([experiment])}
    assert found == {"1": "KILLED", "2": "FINISHED"}
