"""Stopping and resuming: an interruption changes no number, and runs that must not be resumed are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burgersgd import recorder
from burgersgd.api import resume, resume_fleet, train, train_fleet, train_jobs
from burgersgd.config import (
    AdamWConfig,
    ConfigError,
    CosineScheduleConfig,
    DeviceConfig,
    LangevinConfig,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SgdConfig,
    TrainConfig,
)
from burgersgd.recording.claims import release
from burgersgd.recording.run_folder import (
    STAGED,
    RunFolder,
    RunFolderError,
    RunInUseError,
    read_checkpoint,
    read_metrics,
    read_status,
)
from burgersgd.run_record import RunRecord, read_run
from burgersgd.training.engines.compiled import Compiled
from burgersgd.training.fleet import Fleet
from burgersgd.training.inputs import Inputs
from burgersgd.training.state import RunState
from tests.conftest import small_config
from tests.recording.editing import rewrite_checkpoint


class Killed(BaseException):
    """Stands for the end of the process: nothing in the package may catch it and write something."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the process end after so many steps of the fleet in hand, without any clean-up in the run folder."""
    left = [10**9]
    steps = Fleet._steps

    def counting(self: Fleet, k: int, stop: int) -> int:
        if left[0] == 0:
            left[0] = 10**9
            raise Killed
        reached = steps(self, k, min(stop, k + left[0]))
        left[0] -= reached - k
        return reached

    def no_clean_up(self: RunFolder, kind: Any, exception: Any, trace: Any) -> None:
        release(self.path)  # as the system does for a dead process

    def after(steps: int) -> None:
        left[0] = steps

    monkeypatch.setattr(Fleet, "_steps", counting)
    original = RunFolder.__exit__
    monkeypatch.setattr(
        RunFolder, "__exit__", lambda self, *a: no_clean_up(self, *a) if a[0] is Killed else original(self, *a)
    )
    return after


def named(config: TrainConfig, name: str, **trainer: Any) -> TrainConfig:
    return dataclasses.replace(config, run_name=name, trainer=dataclasses.replace(config.trainer, **trainer))


def left_behind(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return all that a run leaves behind, but for the time it took."""
    metrics = {name: repr(values) for name, values in read_metrics(folder).items() if name != "seconds"}
    status = {k: v for k, v in read_status(folder).items() if k not in ("seconds", "updated", "fleet_size")}
    checkpoint = read_checkpoint(folder)
    for key in ("seconds", "metrics_bytes", "metrics_digest", "config_hash", "config_digest", "fleet"):
        checkpoint.pop(key)
    checkpoint["choices"].pop("budget")
    return metrics, status, checkpoint


def assert_same(a: Path, b: Path) -> None:
    (metrics, status, checkpoint), (other_metrics, other_status, other_checkpoint) = left_behind(a), left_behind(b)
    assert metrics == other_metrics
    assert status == other_status
    assert_equal(checkpoint, other_checkpoint)


def assert_equal(a: Any, b: Any, where: str = "checkpoint") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    else:
        assert a == b, where


RULES: list[tuple[OptimizerConfig, str]] = [
    (LocalEntropyConfig(lr=0.13, nu=1e-5, gamma=0.7, inner_steps=5, burn_in=3, outer_step=0.8), "off"),
    (
        LocalEntropyConfig(
            lr=0.11,
            nu=1e-5,
            gamma=0.7,
            inner_steps=5,
            averaging="ema",
            momentum=0.3,
            outer_momentum=0.2,
            gamma_scoping=0.1,
        ),
        "native",
    ),
    (
        LocalEntropyConfig(lr=0.13, nu=1e-5, inner_steps=8, integrator="leimkuhler_matthews", nu_annealing="linear"),
        "off",
    ),
    (
        LocalEntropyConfig(lr=0.13, nu=1e-5, inner_steps=8, integrator="leimkuhler_matthews", inner_start="reset"),
        "native",
    ),
    (PaperSDEConfig(lr=0.12, nu=1e-5, epsilon=0.4), "off"),
    (PaperLiteralConfig(lr=0.12, nu=1e-4, period=7), "native"),
    (SgdConfig(lr=0.1, momentum=0.7, nesterov=True), "native"),
    (AdamWConfig(lr=0.01), "off"),
    (LangevinConfig(lr=0.1, temperature=1e-5), "native"),
]


@pytest.mark.parametrize(("optimizer", "compile"), RULES)
@pytest.mark.parametrize("steps", [1, 27])
def test_a_killed_run_is_resumed_bit_for_bit(
    optimizer: OptimizerConfig, compile: str, steps: int, kill: Any, tmp_path: Path
) -> None:
    config = small_config(optimizer=optimizer)
    config.trainer.compile = compile
    config = named(config, "undisturbed", log_every=7, eval_every=16, checkpoint_every=11)
    train(config, progress=False)
    kill(steps)
    with pytest.raises(Killed):
        train(named(config, "killed"), progress=False)
    assert read_status(tmp_path / "outputs/killed")["state"] == "running"
    kill(13)
    with pytest.raises(Killed):
        resume(tmp_path / "outputs/killed", progress=False)
    result = resume(tmp_path / "outputs/killed", progress=False)
    assert result.state == "completed"
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/killed")
    assert [int(n or 0) for n in result.metrics["evaluations"]] == read_metrics(result.folder or tmp_path)[
        "evaluations"
    ]


@pytest.mark.slow
def test_a_killed_compiled_run_is_resumed_bit_for_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = small_config(
        optimizer=LocalEntropyConfig(lr=0.13, nu=1e-5, inner_steps=5, integrator="leimkuhler_matthews")
    )
    config = named(config, "undisturbed", compile="on", log_every=7, checkpoint_every=11)
    train(config, progress=False)
    step = Compiled.advance

    def dying(self: Compiled, state: RunState, inputs: Inputs, first: int, stop: int) -> int:
        if first == 28:
            raise Killed
        return step(self, state, inputs, first, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Compiled, "advance", dying)
        patch.setattr(RunFolder, "__exit__", lambda self, *a: release(self.path))
        with pytest.raises(Killed):
            train(named(config, "killed"), progress=False)
    assert read_checkpoint(tmp_path / "outputs/killed")["evaluations"] == 22
    assert resume(tmp_path / "outputs/killed", progress=False).engine == "compiled"
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/killed")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("compile", ["off", "on"])
def test_on_a_gpu_a_stopped_run_is_resumed_bit_for_bit(compile: str, kill: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config(), device=DeviceConfig(name="cuda"))
    config = named(config, "undisturbed", compile=compile, log_every=7, checkpoint_every=11)
    train(config, progress=False)
    advance = Fleet.advance

    def dying(self: Fleet, n: int, pause: Any = None) -> None:
        if self.evaluations >= 28:
            raise Killed
        advance(self, n, pause)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fleet, "advance", dying)
        with pytest.raises(Killed):
            train(named(config, "killed"), progress=False)
    resume(tmp_path / "outputs/killed", progress=False)
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/killed")


def test_runs_with_dropout_replacement_and_a_schedule_are_resumed_too(kill: Any, tmp_path: Path) -> None:
    config = small_config(
        model=MlpConfig(width=10, dropout=0.3), schedule=CosineScheduleConfig(warmup=0.2), optimizer=SgdConfig(lr=0.2)
    )
    config = named(config, "undisturbed", checkpoint_every=9, with_replacement=True, clip_norm=0.8)
    train(config, progress=False)
    kill(30)
    with pytest.raises(Killed):
        train(named(config, "killed"), progress=False)
    assert read_checkpoint(tmp_path / "outputs/killed")["evaluations"] == 27
    resume(tmp_path / "outputs/killed", progress=False)
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/killed")


@pytest.mark.parametrize("committed", [0, 1, 3])
def test_a_fleet_is_resumed_together_wherever_its_process_died(
    committed: int, kill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while its runs change over to new checkpoints, after so many of three have."""
    configs = [named(small_config(seed=s), f"undisturbed{s}", checkpoint_every=11) for s in (3, 4, 5)]
    train_fleet(configs, progress=False)
    commits = []
    commit = RunFolder.commit_checkpoint

    def dying(self: RunFolder) -> None:
        if len(commits) == 3 + committed:  # all of the first checkpoint, some of the second one
            raise Killed
        commits.append(self.path)
        commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit_checkpoint", dying)
        with pytest.raises(Killed):
            train_fleet([named(c, f"killed{c.seed}") for c in configs], progress=False)
    folders = [tmp_path / f"outputs/killed{s}" for s in (3, 4, 5)]
    assert [(folder / STAGED).exists() for folder in folders] == [i >= committed % 3 for i in range(3)]
    results = resume_fleet(folders, progress=False)
    assert [r.state for r in results] == ["completed"] * 3
    for s in (3, 4, 5):
        assert_same(tmp_path / f"outputs/undisturbed{s}", tmp_path / f"outputs/killed{s}")


def test_what_a_run_staged_counts_for_nothing_after_it_began_again_alone(
    kill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet died between two commits; then one of its runs went on by itself, and died again."""
    configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=11) for s in (3, 4, 5)]
    commit = RunFolder.commit_checkpoint

    def dying(self: RunFolder) -> None:
        if self.path.name == "run5":
            raise Killed
        commit(self)

    kill(10**9)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit_checkpoint", dying)
        with pytest.raises(Killed):
            train_fleet(configs, progress=False)
    folders = [tmp_path / f"outputs/run{s}" for s in (3, 4, 5)]
    kill(4)
    with pytest.raises(Killed):
        resume(folders[2], progress=False)
    assert (folders[2] / STAGED).exists()
    assert not (folders[2] / "checkpoint.pt").exists()
    assert [r.state for r in resume_fleet(folders, progress=False)] == ["completed"] * 3
    assert {read_checkpoint(folder)["evaluations"] for folder in folders} == {40}


def test_resuming_with_other_vector_instructions_is_reported(
    kill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped(name: str) -> Path:
        kill(25)
        with pytest.raises(Killed):
            train(named(small_config(), name, checkpoint_every=11), progress=False)
        return tmp_path / "outputs" / name

    same, other = stopped("same"), stopped("other")
    recorded = json.loads((same / "environment.json").read_text())["cpu_capability"]
    assert recorded == torch.backends.cpu.get_cpu_capability()
    resume(same, progress=False)
    assert "started on a processor" not in caplog.text
    monkeypatch.setattr("burgersgd.run_record.cpu_capability", lambda: "VSX")
    said = f"started on a processor with {recorded}, resumed on VSX: results agree only up to rounding"
    resume(other, progress=False)
    assert caplog.text.count(f"{other}: {said}") == 1
    assert (other / "log.txt").read_text().count(said) == 1
    resume(other, progress=False)  # is over: nothing is computed
    assert caplog.text.count(said) == 1


def test_in_another_fleet_a_run_is_resumed_up_to_rounding(kill: Any, tmp_path: Path) -> None:
    configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=11) for s in (3, 4, 5)]
    alone = train(named(configs[1], "alone"), progress=False)
    kill(25)
    with pytest.raises(Killed):
        train_fleet(configs, progress=False)
    result = resume(tmp_path / "outputs/run4", progress=False)
    expected, got = (torch.cat([p.flatten() for p in r.model.parameters()]) for r in (alone, result))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_runs_stopped_at_different_evaluations_are_resumed_in_separate_fleets(kill: Any, tmp_path: Path) -> None:
    for seed, steps in ((3, 12), (4, 25), (5, 14)):
        kill(steps)
        with pytest.raises(Killed):
            train(named(small_config(seed=seed), f"run{seed}", checkpoint_every=11), progress=False)
    results = resume_fleet([tmp_path / f"outputs/run{s}" for s in (3, 4, 5)], progress=False)
    for seed, result in zip((3, 4, 5), results, strict=True):
        alone = train(small_config(seed=seed), record=False, progress=False)
        assert result.config.seed == seed
        assert result.test_loss == pytest.approx(alone.test_loss, rel=1e-10)


def test_a_run_without_a_checkpoint_starts_again(kill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "ROWS_SECONDS", 0.0)  # every row is written at once
    config = named(small_config(), "killed", log_every=3)
    kill(8)
    with pytest.raises(Killed):
        train(config, progress=False)
    assert read_metrics(tmp_path / "outputs/killed")["evaluations"] == [0, 3, 6, 8]
    resume(tmp_path / "outputs/killed", progress=False)
    train(named(config, "undisturbed"), progress=False)
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/killed")


def test_a_finished_run_gives_its_result_again_and_stays_as_it_is(tmp_path: Path) -> None:
    result = train(named(small_config(), "done"), progress=False)
    before = {path: path.read_bytes() for path in (tmp_path / "outputs/done").rglob("*") if path.is_file()}
    again = resume(tmp_path / "outputs/done", progress=False)
    assert {path: path.read_bytes() for path in (tmp_path / "outputs/done").rglob("*") if path.is_file()} == before
    for name in ("state", "evaluations", "test_error", "test_loss", "validation_loss", "best_test_error", "best_at"):
        assert getattr(again, name) == getattr(result, name)
    assert again.metrics == result.metrics


def test_a_checkpoint_beside_metrics_without_rows_is_refused(tmp_path: Path) -> None:
    """metrics.csv may be as long as the checkpoint says and yet hold no row."""
    folder: Any = SimpleNamespace(path=tmp_path, rewind=lambda *position: [])
    run = RunRecord(small_config(), folder, {"evaluations": 20, "metrics_bytes": 3, "metrics_digest": "x"})
    with pytest.raises(RunFolderError, match=r"metrics.csv ends at evaluation -1, which does not fit the checkpoint$"):
        run.rewind()


def test_a_best_loss_in_single_precision_is_refused(tmp_path: Path) -> None:
    train(named(small_config(), "run"), progress=False)
    folder = tmp_path / "outputs/run"
    best = read_checkpoint(folder)["best"]
    rewrite_checkpoint(folder, best=best | {"loss": best["loss"].float()})
    with pytest.raises(RunFolderError, match=r"best.loss: must be torch.float64 of shape \[\], is torch.float32"):
        read_run(folder)


def test_a_checkpoint_of_version_0_1_0_finds_the_loss_of_its_best_x_in_the_metrics(kill: Any, tmp_path: Path) -> None:
    config = named(small_config(), "old", eval_every=8, checkpoint_every=20)
    kill(30)
    with pytest.raises(Killed):
        train(config, progress=False)
    path = tmp_path / "outputs/old/checkpoint.pt"
    old = torch.load(path, weights_only=True)
    known = old["best"].pop("loss")
    torch.save({k: v for k, v in old.items() if "digest" not in k} | {"format": 1}, path)
    with RunFolder.reopen(path.parent) as folder:
        run = RunRecord.reopened(folder)
        run.rewind()
        assert torch.equal(run.best["loss"], known)
        assert known < 3
    train(named(config, "undisturbed"), progress=False)
    resume(path.parent, progress=False)
    assert_same(tmp_path / "outputs/undisturbed", tmp_path / "outputs/old")


def test_a_diverged_run_stays_diverged(tmp_path: Path) -> None:
    config = named(small_config(model=MlpConfig(width=8), optimizer=SgdConfig(lr=1e160)), "diverged")
    result = train(config, progress=False)
    again = resume(tmp_path / "outputs/diverged", progress=False)
    assert (again.state, again.evaluations, again.reason) == (result.state, result.evaluations, result.reason)
    with pytest.raises(
        ConfigError, match=r"trainer\.budget=400: the run in .*diverged diverged and cannot be continued"
    ):
        resume(tmp_path / "outputs/diverged", budget=400, progress=False)


# --- larger budgets


def test_a_larger_budget_continues_in_a_new_folder_that_names_its_parent(tmp_path: Path) -> None:
    config = named(small_config(), "short", log_every=5, eval_every=8)
    train(config, progress=False)
    result = resume(tmp_path / "outputs/short", budget=80, run_name="longer", progress=False)
    assert result.folder == tmp_path / "outputs/longer"
    assert read_status(tmp_path / "outputs/short")["evaluations"] == 40
    train(named(config, "long", budget=80), progress=False)
    metrics, status, checkpoint = left_behind(tmp_path / "outputs/longer")
    expected_metrics, expected_status, expected_checkpoint = left_behind(tmp_path / "outputs/long")
    assert metrics == expected_metrics
    parent = status.pop("parent")
    assert (parent["folder"], parent["evaluations"]) == (str(tmp_path / "outputs/short"), 40)
    assert status | {"parent": None} == expected_status
    assert_equal(checkpoint | {"parent": None}, expected_checkpoint)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"schedule": CosineScheduleConfig()}, "schedule=cosine"),
        ({"optimizer": LocalEntropyConfig(inner_steps=8, nu_annealing="cosine")}, r"optimizer\.nu_annealing"),
        ({"optimizer": PaperLiteralConfig()}, r"optimizer\.period=null"),
    ],
)
def test_a_larger_budget_is_refused_where_something_depends_on_it(
    changes: dict[str, Any], key: str, tmp_path: Path
) -> None:
    train(named(small_config(**changes), "short"), progress=False)
    with pytest.raises(ConfigError, match=rf"trainer\.budget=80: {key} .*start a new run instead"):
        resume(tmp_path / "outputs/short", budget=80, progress=False)
    with pytest.raises(ConfigError, match=r"trainer\.budget=16: must be >= 40"):
        resume(tmp_path / "outputs/short", budget=16, progress=False)


# --- jobs of a sweep


def test_jobs_are_resumed_wherever_they_stopped(kill: Any, tmp_path: Path) -> None:
    """Done, killed together, killed before they began, and new: each ends as if nothing had happened."""
    configs = [named(small_config(seed=s), f"run{s}", checkpoint_every=11) for s in range(7)]
    undisturbed = train_fleet([named(c, f"undisturbed{c.seed}") for c in configs[1:4]], progress=False)
    train(configs[0], progress=False)
    kill(25)
    with pytest.raises(Killed):
        train_fleet(configs[1:4], progress=False)
    kill(5)
    with pytest.raises(Killed):
        train(configs[4], progress=False)
    (tmp_path / "outputs/run5/.hydra").mkdir(parents=True)  # killed while it was made
    shuffled = [configs[i] for i in (6, 3, 0, 5, 1, 4, 2)]
    results = train_jobs(shuffled, [()] * 7, progress=False)
    assert [r.config.seed for r in results if r is not None] == [6, 3, 0, 5, 1, 4, 2]
    assert [r.state for r in results if r is not None] == ["completed"] * 7
    for result in undisturbed:
        assert_same(
            tmp_path / f"outputs/undisturbed{result.config.seed}", tmp_path / f"outputs/run{result.config.seed}"
        )
    for result in results:
        assert result is not None
        alone = train(dataclasses.replace(result.config, run_name=None), record=False, progress=False)
        assert result.test_loss == pytest.approx(alone.test_loss, rel=1e-10)


def test_a_job_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    configs = [named(small_config(seed=s), f"run{s}") for s in (1, 2)]
    train(configs[0], progress=False)
    with RunFolder.reopen(tmp_path / "outputs/run1"):
        results = train_jobs(configs, [()] * 2, progress=False)
    assert results[0] is None
    assert results[1] is not None
    assert results[1].state == "completed"


# --- what must not go on


def test_damaged_or_changed_folders_are_refused(kill: Any, tmp_path: Path) -> None:
    kill(30)
    with pytest.raises(Killed):
        train(named(small_config(), "killed", checkpoint_every=11, log_every=5), progress=False)
    original = tmp_path / "outputs/killed"

    def changed(name: str) -> Path:
        return Path(shutil.copytree(original, tmp_path / "outputs" / name))

    folder = changed("shorter")
    metrics = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(metrics[:3]))
    with pytest.raises(
        RunFolderError, match=r"metrics\.csv has \d+ bytes, fewer than the \d+ of the checkpoint: it was changed"
    ):
        resume(folder, progress=False)
    folder = changed("edited")
    config = (folder / ".hydra/config.yaml").read_text()
    (folder / ".hydra/config.yaml").write_text(config.replace("lr: 0.13", "lr: 0.14"))
    with pytest.raises(RunFolderError, match=r"edited: the configuration, or the update rule of this version, differs"):
        resume(folder, progress=False)
    folder = changed("torn")
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:-100])
    with pytest.raises(RunFolderError, match=r"cannot read .*checkpoint\.pt"):
        resume(folder, progress=False)
    for damaged in ("shorter", "edited", "torn"):
        assert read_status(tmp_path / "outputs" / damaged)["state"] == "running"  # nothing was written
    with pytest.raises(RunFolderError, match=r"nowhere: there is no such folder"):
        resume(tmp_path / "nowhere", progress=False)
    resume(original, progress=False)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    train(named(small_config(), "run"), progress=False)
    file = tmp_path / "outputs/run/checkpoint.pt"
    state = torch.load(file, weights_only=True)
    for found, content in ((0, {k: v for k, v in state.items() if k != "format"}), (3, state | {"format": 3})):
        torch.save(content, file)
        with pytest.raises(
            RunFolderError, match=rf"has format {found}, this version of burgersgd reads formats 1 and 2"
        ):
            resume(tmp_path / "outputs/run", progress=False)


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path) -> None:
    train(named(small_config(), "run"), progress=False)
    with RunFolder.reopen(tmp_path / "outputs/run"), pytest.raises(RunInUseError, match="is training this run"):
        resume(tmp_path / "outputs/run", progress=False)


def test_a_resumed_fleet_keeps_the_engine_it_began_with(kill: Any, tmp_path: Path) -> None:
    config = named(small_config(), "killed", checkpoint_every=10, compile="off")
    kill(25)
    with pytest.raises(Killed):
        train(config, progress=False)
    choices = read_checkpoint(tmp_path / "outputs/killed")["choices"]
    assert choices["engine"] == "eager"
    rewrite_checkpoint(tmp_path / "outputs/killed", choices=choices | {"engine": "native"})
    assert resume(tmp_path / "outputs/killed", progress=False).engine == "native"


def test_a_diverged_run_that_died_before_its_end_was_recorded_takes_no_further_step(
    kill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint holds the end, status.json does not yet."""
    config = small_config(model=MlpConfig(width=8, activation="tanh"), optimizer=SgdConfig(lr=1e3))
    config = named(config, "undisturbed", explosion_factor=1.5)
    assert train(config, progress=False).state == "diverged"

    def dying(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", dying)
        with pytest.raises(Killed):
            train(named(config, "killed"), progress=False)
    killed = tmp_path / "outputs/killed"
    assert read_status(killed)["state"] == "running"

    def stepping(*_: Any) -> None:
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Fleet, "advance", stepping)
    resume(killed, progress=False)
    assert read_status(killed)["seconds"] == read_checkpoint(killed)["seconds"]
    assert_same(tmp_path / "outputs/undisturbed", killed)
