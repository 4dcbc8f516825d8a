"""Finished runs can be evaluated, exported and repeated."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from burgersgd.api import resume, train, train_fleet
from burgersgd.cli import main
from burgersgd.config import ConfigError, LocalEntropyConfig, MlpConfig, TwoSpiralsConfig
from burgersgd.models.mlp import Mlp
from burgersgd.recording.run_folder import RunFolderError, read_checkpoint, read_config, read_status
from burgersgd.revisit import evaluate, rerun, state_dict
from tests.conftest import small_config
from tests.recording.editing import rewrite_checkpoint
from tests.test_resume import named


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = named(small_config(optimizer=LocalEntropyConfig(lr=0.3, nu=1e-5, inner_steps=5)), "run", eval_every=5)
    train(config, progress=False)
    return tmp_path / "outputs/run"


def test_the_final_evaluation_is_repeated_from_the_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = read_status(folder)
    for name, value in evaluate(folder).items():
        assert value == status[name]
    assert evaluate(folder, "best")["test_error"] == status["best_test_error"]
    assert evaluate(folder, "best")["validation_error"] == status["best_validation_error"]
    assert main(["evaluate", "outputs/run"]) == 0
    assert f"test_loss         {status['test_loss']:.9g}" in capsys.readouterr().out


def test_an_evaluation_that_differs_from_the_record_is_loud(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / "status.json").read_text()
    status = read_status(folder)
    (folder / "status.json").write_text(text.replace(f'"test_loss": {status["test_loss"]!r}', '"test_loss": 0.25'))
    assert main(["evaluate", "outputs/run"]) == 1
    assert "recorded 0.25" in capsys.readouterr().out


@pytest.mark.parametrize("point", ["last", "best"])
def test_what_is_exported_loads_into_an_ordinary_module(folder: Path, point: str) -> None:
    arguments = ["--point", point, "--format", "state_dict", "--output", "model.pt"]
    assert main(["export", "outputs/run", *arguments]) == 0
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10))
    net.double().load_state_dict(torch.load("model.pt", weights_only=True))
    checkpoint = read_checkpoint(folder)
    x = checkpoint["x"] if point == "last" else checkpoint["best"]["x"]
    assert torch.equal(torch.cat([p.flatten() for p in net.parameters()]), x)
    assert list(state_dict(folder)) == [name for name, _ in Mlp((64, 12, 12, 10)).module().named_parameters()]


def test_where_nothing_can_be_written_one_line_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "outputs/run", "--output", "nowhere/model.pt"]) == 2
    assert "--output=nowhere/model.pt: cannot be written" in capsys.readouterr().err
    assert main(["evaluate", "nowhere"]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("compile", ["off", "native"])
def test_a_repetition_has_the_same_bits(compile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = named(small_config(), "run", log_every=7, compile=compile)
    train(config, progress=False)
    assert main(["rerun", "outputs/run", "--check"]) == 0
    out = capsys.readouterr().out
    assert "bit-identical: outputs/run and outputs/" in out
    assert "differs" not in out


def test_a_repetition_that_differs_is_reported_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = read_checkpoint(folder)["state"]
    state["y"][3] += 1e-3
    rewrite_checkpoint(folder, state=state)
    metrics = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(metrics.replace("\n5,", "\n6,", 1))
    environment = (folder / "environment.json").read_text()
    (folder / "environment.json").write_text(environment.replace('"threads": 1', '"threads": 7'))
    assert main(["rerun", "outputs/run"]) == 0
    assert main(["rerun", "outputs/run", "--check"]) == 1
    out = capsys.readouterr().out
    assert "different result: y: largest difference 0.001" in out
    assert "different result: metrics.csv, evaluations: row" in out
    assert "changed circumstances: threads: 7, now 1" in out


def test_a_run_of_a_fleet_is_repeated_alone_and_says_so(tmp_path: Path) -> None:
    train_fleet([named(small_config(seed=s), f"run{s}") for s in (1, 2)], progress=False)
    repetition = rerun(tmp_path / "outputs/run1", progress=False)
    assert any("fleet: 2 runs, now 1" in line for line in repetition.circumstances)
    before, after = (read_checkpoint(f)["x"] for f in (tmp_path / "outputs/run1", repetition.result.folder or tmp_path))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-12)


def test_what_is_not_over_or_not_a_beginning_is_not_repeated(folder: Path) -> None:
    resume(folder, budget=80, run_name="longer", progress=False)
    with pytest.raises(ValueError, match=r"longer: continues another run and cannot be repeated; repeat .*run instead"):
        rerun(Path("outputs/longer"), progress=False)
    text = (folder / "status.json").read_text()
    (folder / "status.json").write_text(text.replace('"completed"', '"interrupted"'))
    with pytest.raises(RunFolderError, match="the run is interrupted"):
        rerun(folder, progress=False)


class _Code:
    """Pickled, it runs code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # pyright: ignore[reportReturnType]


def test_a_checkpoint_executes_nothing(folder: Path, tmp_path: Path) -> None:
    for malicious in (pickle.dumps(_Code()), b"not a checkpoint"):
        (folder / "checkpoint.pt").write_bytes(malicious)
        for read in (evaluate, state_dict, resume, rerun):
            with pytest.raises(RunFolderError, match=r"cannot read .*checkpoint\.pt"):
                read(folder)
    torch.save({"format": 1, "x": _Code()}, folder / "checkpoint.pt")
    with pytest.raises(RunFolderError, match=r"cannot read .*checkpoint\.pt"):
        resume(folder)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(_Code()))  # the trap does work
    assert (tmp_path / "executed").exists()


def test_modules_of_ones_own_export_without_the_module(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    result = train(named(small_config(model=MlpConfig()), "own"), model=net, progress=False)
    exported = state_dict(tmp_path / "outputs/own")
    assert list(exported) == ["1.weight", "1.bias"]
    net.double().load_state_dict(exported)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), result.model.parameters(), strict=True))
    assert math.isfinite(evaluate(tmp_path / "outputs/own", model=net)["test_loss"])
    assert read_config(tmp_path / "outputs/own")["model"] == {"name": "own", "class": "Sequential"}
    with pytest.raises(ConfigError, match=r"^model=Sequential: is your own and must be passed again"):
        evaluate(tmp_path / "outputs/own")
    with pytest.raises(ConfigError, match=r"^model=Sequential: is your own and must be passed again"):
        resume(tmp_path / "outputs/own", budget=80)
    longer = resume(tmp_path / "outputs/own", budget=80, model=net, progress=False)
    assert longer.evaluations == 80


def test_arrays_of_ones_own_are_needed_again_with_their_options(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(300, 5)), rng.integers(0, 2, size=300)
    config = named(small_config(dataset=TwoSpiralsConfig(label_noise=0.2, test_fraction=0.3)), "own")
    result = train(config, dataset=arrays, progress=False)
    record = read_config(tmp_path / "outputs/own")["dataset"]
    assert (record["name"], record["options_of"], record["label_noise"]) == ("own", "two_spirals", 0.2)
    with pytest.raises(ConfigError, match=r"^dataset=own: is your own and must be passed again"):
        resume(tmp_path / "outputs/own", progress=False)
    again = resume(tmp_path / "outputs/own", dataset=arrays, progress=False)
    assert (again.test_loss, again.task) == (result.test_loss, "classification")
