"""The command line as a user meets it: whole commands in this process, their output, exit code and what they leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from burgersgd.cli import main
from burgersgd.config import TrainConfig
from burgersgd.recording.run_folder import read_config, read_metrics, read_status

SHORT = ["trainer.budget=40", "model.width=8", "trainer.compile=off"]


def run(arguments: Sequence[str]) -> int:
    return main(["train", *arguments])


def only_folder(root: Path) -> Path:
    (folder,) = (path for path in (root / "outputs").iterdir() if path.is_dir())
    return folder


def test_a_run_leaves_a_self_describing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SHORT, "optimizer.nu=1e-5", "seed=3", "trainer.log_every=10", "trainer.eval_every=20"]) == 0
    folder = only_folder(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert {".hydra", "metrics.csv", "status.json", "environment.json", "checkpoint.pt", "log.txt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert (config["optimizer"]["nu"], config["seed"], config["dataset"]["name"]) == (1e-5, 3, "digits")
    assert "seed=3" in yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    status = read_status(folder)
    assert status["state"] == "completed"
    assert status["evaluations"] == 40
    assert 0 <= status["test_error"] <= 1
    assert {"test_loss", "validation_error", "validation_loss", "best_test_error"} <= set(status)
    metrics = read_metrics(folder)
    assert metrics["evaluations"] == [0, 10, 20, 30, 40]
    assert metrics["temperature"][-1] == pytest.approx(2e-5, rel=1e-12)
    out = capsys.readouterr().out
    assert f"{100 * status['test_error']:.2f} %" in out
    assert f"tensorboard --logdir outputs/{folder.name}" in out


def test_the_same_command_twice_gives_bit_identical_metrics(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run([*SHORT, f"run_name={name}", "seed=5"]) == 0
    columns = [read_metrics(tmp_path / "outputs" / name) for name in ("a", "b")]
    for metrics in columns:
        metrics.pop("seconds")
    assert repr(columns[0]) == repr(columns[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer=foo"], "optimizer=foo: must be one of adamw, "),
        (["optimiser=sgd"], "optimiser: no such key"),
        (["optimizer.nuu=1"], "optimizer.nuu: no such key"),
        (["+optimizer.nuu=1"], "optimizer.nuu=1: no such key"),
        (["+nuu=1"], "nuu=1: no such key"),
        (["run_name=../elsewhere"], "run_name=../elsewhere: must name a folder below output_root"),
        (["trainer.epochs=1e300"], "trainer.epochs=1e+300: is 3.4e+301 gradient evaluations, must be < "),
        (["optimizer.lr=abc"], "optimizer.lr=abc: must be of type float"),
        (["trainer.batch_size=1.5"], "trainer.batch_size=1.5: must be of type int"),
        (["optimizer.lr=null"], "optimizer.lr=null: must not be null"),
        (["optimizer.nesterov=maybe"], "optimizer.nesterov=maybe: must be of type bool"),
        (["hydra/launcher=none"], "hydra/launcher=none: must be one of basic"),
        (["--multirun", "seed=1,2", "hydra/sweeper=none"], "hydra/sweeper=none: must be one of basic"),
        (["hydra.none=1"], "hydra.none: no such key"),
        (["--config-name=other"], "--config-name=other: cannot be used"),
        (["seed"], "seed: must be KEY=VALUE"),
        (["optimizer.nu=-1"], "optimizer.nu=-1.0: must be >= 0"),
        (["optimizer.gamma=0"], "optimizer.gamma=0.0: must be > 0"),
        (["optimizer.lr=0"], "optimizer.lr=0: must be > 0"),
        (["optimizer.inner_steps=0"], "optimizer.inner_steps=0: must be >= 1"),
        (["trainer.batch_size=5000"], "trainer.batch_size=5000: must be <= 1079"),
        (["dataset.label_noise=1"], "dataset.label_noise=1.0: must be >= 0 and < 1"),
        (["dataset.train_size=100000"], "dataset.train_size=100000: must be"),
        (["model.depth=-1"], "model.depth=-1: must be >= 0"),
        (["model=lenet"], "model=lenet: inputs are 1x8x8"),
        (["loss=logistic"], "loss.name=logistic: needs two classes"),
        (
            ["dataset=teacher_student", "loss=cross_entropy"],
            "loss.name=cross_entropy: must be squared_error, because",
        ),
        (["optimizer.burn_in=50", "trainer.budget=60"], "or x would never move"),
        (["trainer.epochs=0.1"], "trainer.epochs=0.1: is 3 gradient evaluations, must be >= 20"),
        (["dataset=npz"], "dataset.path="),
        (["dataset=npz", "dataset.path=missing.npz"], "missing.npz"),
        (["dataset=mnist", "dataset.download=false"], "dataset=mnist"),
        (["seed=1,2"], "add --multirun"),
        (["--multirun", "optimizer.nu=1e-5,-1"], "optimizer.nu=-1.0: must be >= 0"),
        (["output_root=file/below"], "output_root=file/below: cannot be written"),
        (["=x"], "="),
        (["--foo"], "--foo: no such flag (burgersgd train --help)"),
        (["optimizer.gama=1"], "optimizer.gama: no such key; did you mean optimizer.gamma?"),
        (["lr=0.1"], "lr: no such key; did you mean optimizer.lr?"),
        (
            ["optimizer=sdg"],
            "; did you mean sgd?",
        ),
        (
            ["optimizer=sgd", "optimizer.gamma=3"],
            "optimizer.gamma: no such key with this optimizer; it exists with optimizer=",
        ),
        (["--optimizer", "sgd"], "--optimizer: no such flag; did you mean optimizer=sgd?"),
        (["--lr=0.5", "seed=3"], "--lr=0.5: no such flag; did you mean optimizer.lr=0.5?"),
        (["--mulitrun", "seed=1,2"], "--mulitrun: no such flag; did you mean --multirun?"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: has no effect on a single run"),
        (["hydra.verbose=true"], "hydra.verbose=true: has no effect on a single run"),
        (["-m", "hydra.run.dir=x", "seed=1,2"], "hydra.run.dir=x: has no effect on a sweep"),
        (["-m", "output_root=a,b"], "output_root=a,b: output_root does not change what a run computes"),
        (["-m", "device.threads=1,2"], "device.threads=1,2: device.threads does not change what a run computes"),
        (["-m", "device=cpu,auto"], "device=cpu,auto: device does not change what a run computes"),
        (
            ["-m", "sweep.params={trainer.log_every:'1,2'}"],
            "trainer.log_every does not change what a run computes",
        ),
        (["trainer.budget=1.5e0"], "trainer.budget=1.5e0: must be of type int"),
        (["--dry-run", "optimizer.lr=-1"], "optimizer.lr=-1: must be > 0"),
        (["--dry-run", "resume=x"], "--dry-run: cannot be combined with resume"),
        (["--cfg", "nowhere"], "argument --cfg/-c: invalid choice: 'nowhere'"),
        (["--cfg", "job", "optimizer.lr=abc"], "optimizer.lr=abc: must be of type float"),
        (["--cfg", "job", "--run"], "Only one of --run, --multirun, --cfg, --info"),
        (["--resolve"], "--resolve and --package: can only be used with --cfg job"),
        (["--experimental-rerun", "x"], "--experimental-rerun=x: cannot be used"),
        (["hydra.sweeper.params={seed:'1,2'}"], "hydra.sweeper.params={seed:'1,2'}: cannot be composed"),
        (["dataset=[[]]"], "dataset=[[]]: cannot be composed"),
        (["optimizer.name=adamw"], "optimizer.name=adamw: must be one of local_entropy"),
        (["run_name=" + 300 * "x"], "xxx: cannot be a folder: File name too long"),
        (["output_root=" + 300 * "x"], "xxx: cannot be a folder: File name too long"),
        (["run_name='two\nlines'"], "must be text without control characters"),
        (["optimizer.lr='\n'"], "optimizer.lr="),
        ([260 * "k" + "=1"], "no such key (keys are not that long)"),
        (["optimizer.lr=" + 400 * "[" + "1" + 400 * "]"], "a value is nested too deeply"),
        (["dataset=npz", "dataset.path=" + 2500 * "b/"], "no such file"),
        (["run_name=.lock/x"], "run_name=.lock/x: a folder must not be called .lock"),
        (["model.width=1000000000"], "parameters would take 1.49e+10 GiB, more than the memory of this machine"),
        (["dataset=mnist1d", "dataset.n_samples=1000000000000"], "dataset=mnist1d: would take 5.36e+05 GiB, more than"),
        (["dataset=two_spirals", "dataset.n_samples=1000000000000"], "dataset=two_spirals: would take"),
        (
            ["dataset=teacher_student", "loss=squared_error", "dataset.teacher_width=100000000"],
            "dataset=teacher_student: would take",
        ),
        (
            ["dataset=teacher_student", "loss=squared_error", "dataset.noise=1e300"],
            "dataset=teacher_student: all targets must be finite in float32",
        ),
        (["dataset=two_spirals", "dataset.turns=1e308"], "dataset=two_spirals: all inputs must be finite in float32"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_created(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    assert run(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("burgersgd: error: ")
    assert "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_type_is_named_where_omegaconf_shows_causes_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does under a debugger."""
    monkeypatch.setenv("OC_CAUSE", "1")
    for key, kind in (("optimizer.nesterov=maybe", "bool"), ("seed=1.5", "int")):
        assert run([key]) == 2
        assert f"{key}: must be of type {kind}" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_cuda_without_a_gpu_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["device=cuda"]) == 2
    assert "no CUDA GPU was found" in capsys.readouterr().err


def test_a_corrupt_data_file_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    assert run(["dataset=npz", "dataset.path=broken.npz"]) == 2
    assert "broken.npz" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_an_existing_run_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SHORT, "run_name=twice"]) == 0
    assert run([*SHORT, "run_name=twice"]) == 2
    assert "run_name=twice" in capsys.readouterr().err


def test_a_diverging_run_exits_3_and_says_when(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SHORT, "optimizer=sgd", "optimizer.lr=1e30", "trainer.log_every=1"]) == 3
    folder = only_folder(tmp_path)
    status = read_status(folder)
    assert status["state"] == "diverged"
    assert 1 <= status["evaluations"] <= 40
    assert f"gradient evaluation {status['evaluations']}" in status["reason"]
    metrics = read_metrics(folder)
    assert metrics["evaluations"][-1] <= status["evaluations"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "DIVERGED" in shown
    assert status["advice"].startswith("lr * L = ")
    assert f"advice {status['advice']}" in shown
    assert status["reason"].endswith(status["advice"])


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["optimizer=sgd", "optimizer.lr=1e-9"], "the steps are very small; try a larger optimizer.lr"),
        (["optimizer=sgd", "optimizer.lr=3", "model.depth=4"], "try optimizer.lr < "),
        (["optimizer=adamw", "optimizer.lr=1e-9"], "no bound on lr is known for this optimizer"),
        (["optimizer=paper_literal"], "x moves only at the last gradient evaluation"),
        (
            ["dataset=teacher_student", "loss=squared_error", "optimizer=sgd", "optimizer.lr=1e-9"],
            "steps are very small",
        ),
    ],
)
def test_a_run_that_learnt_nothing_is_reported_with_advice(
    words: list[str], advice: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*SHORT, "trainer.clip_norm=1", *words]) == 0
    status, shown = read_status(only_folder(tmp_path)), " ".join(capsys.readouterr().out.split())
    assert (status["state"], status["no_better_than_guessing"]) == ("completed", True)
    regression = "dataset=teacher_student" in words
    guess = f"validation RMSE {status['guess_error']:.4g}" if regression else f"{100 * status['guess_error']:.2f} %"
    what = "the mean of the targets" if regression else "the most frequent class"
    assert f"no better than guessing: predicting {what} has validation " in shown
    assert guess in shown
    assert advice in status["advice"]
    assert f"advice {status['advice']}" in shown
    assert "no better than guessing" in (only_folder(tmp_path) / "log.txt").read_text()


def test_a_run_that_learns_gets_no_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["trainer.epochs=5", "optimizer=sgd"]) == 0
    status = read_status(only_folder(tmp_path))
    assert (status["no_better_than_guessing"], status["advice"]) == (False, None)
    assert 0.85 < status["guess_error"] < 0.95
    assert "guessing" not in capsys.readouterr().out


def test_a_multirun_trains_every_job_and_survives_a_diverging_one(tmp_path: Path) -> None:
    assert run(["--multirun", *SHORT, "optimizer=sgd", "optimizer.lr=0.1,1e30", "seed=1,2"]) == 0
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    folders = [path for path in sweep.iterdir() if path.is_dir()]
    ended = [(read_config(folder)["optimizer"]["lr"], read_status(folder)["state"]) for folder in folders]
    assert sorted(ended) == 2 * [(0.1, "completed")] + 2 * [(1e30, "diverged")]
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


def test_errors_of_a_regression_are_not_shown_in_per_cent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SHORT, "dataset=teacher_student", "loss=squared_error"]) == 0
    shown = capsys.readouterr()
    assert f"test RMSE             {read_status(only_folder(tmp_path))['test_error']:.4g}\n" in shown.out
    assert "%" not in shown.out
    assert "val. RMSE 0." in shown.err or "val. RMSE 1." in shown.err


def test_a_tilde_is_the_home_folder_in_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run([*SHORT, "output_root=~/runs", "run_name=a"]) == 0
    assert run([*SHORT, "--multirun", "output_root=~/runs", "sweep.name=s", "seed=1,2"]) == 0
    assert run(["resume=~/runs/a"]) == 0
    assert main(["export", "~/runs/a", "--output=~/model.pt"]) == 0
    assert main(["export", "~/runs/a", "--output", "~/second.pt"]) == 0
    for words in (["list"], ["status"], ["compare", "--by", "seed", "--save", "~/table.csv"]):
        assert main([words[0], "~/runs/multirun/s", *words[1:]]) == 0
    made = {p.name for p in (tmp_path / "home").iterdir()} - {".cache"}  # the C kernels
    assert made == {"runs", "model.pt", "second.pt", "table.csv"}
    assert (tmp_path / "home/runs/multirun/s").is_dir()
    assert {p.name for p in tmp_path.iterdir()} == {"home"}
    assert TrainConfig(output_root="~/x").output_root == str(tmp_path / "home/x")


def test_yaml_infinity_is_understood(tmp_path: Path) -> None:
    assert run([*SHORT, "optimizer.gamma=.inf"]) == 0
    assert read_config(only_folder(tmp_path))["optimizer"]["gamma"] == float("inf")


def burgersgd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "burgersgd", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )


def test_help_lists_commands_groups_and_keys() -> None:
    first = burgersgd("--help")
    assert first.returncode == 0
    assert "burgersgd train" in first.stdout
    train = burgersgd("train", "optimizer=paper_sde", "--help")
    assert train.returncode == 0
    assert re.search(r"optimizer= +adamw, ", train.stdout)
    shown = " ".join(train.stdout.split())
    assert "optimizer.epsilon=0.3 ratio of the time scales of y and x in (5.14) (float > 0)" in shown
    assert "schema" not in train.stdout
    assert burgersgd("train", "optimizer=foo", "--help").returncode == 2
    assert burgersgd("fly").returncode == 2


def test_cfg_prints_the_composed_configuration() -> None:
    shown = burgersgd("train", "--cfg", "job", "optimizer=sgd")
    assert shown.returncode == 0
    assert yaml.safe_load(shown.stdout)["optimizer"]["name"] == "sgd"


def test_flags_may_stand_between_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["optimizer=sgd", "--cfg", "job", "optimizer.lr=0.25", "seed=3"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["optimizer"]["lr"], shown["seed"]) == (0.25, 3)


def test_of_what_is_set_twice_the_last_one_counts(tmp_path: Path) -> None:
    assert run([*SHORT, "--multirun", "optimizer.lr=abc", "seed=1,2", "optimizer.lr=0.1,0.2", "seed=3"]) == 0
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    configs = [read_config(path.parent) for path in sweep.glob("*/status.json")]
    assert sorted((config["optimizer"]["lr"], config["seed"]) for config in configs) == [(0.1, 3), (0.2, 3)]


@pytest.mark.slow
def test_hydras_help_is_shown_whatever_the_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--hydra-help", "optimizer.lr=abc"])
    assert ended.value.code in (None, 0)
    assert "Hydra" in capsys.readouterr().out


def test_environment_is_recorded(tmp_path: Path) -> None:
    assert run(SHORT) == 0
    environment = json.loads((only_folder(tmp_path) / "environment.json").read_text())
    assert environment["torch"] == str(torch.__version__)
    assert environment["threads"] >= 1
