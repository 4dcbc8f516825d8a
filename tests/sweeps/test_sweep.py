"""`burgersgd train --multirun`: fleets behind Hydra's launcher, and run folders as of jobs run alone."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback

from burgersgd.cli import main
from burgersgd.config import AdamWConfig, SgdConfig
from burgersgd.identity import config_hash
from burgersgd.interruption import RESUMABLE
from burgersgd.recording.naming import hash_of, job_name
from burgersgd.recording.run_folder import read_config, read_metrics, read_status
from burgersgd.recording.warned import each_warning_once
from burgersgd.sweeps import chunks
from burgersgd.sweeps.chunks import Job, Outcome, chunks_of, recorded_outcome, train_chunk
from burgersgd.sweeps.sweep import Sweep
from tests.conftest import small_config

SHORT = ["trainer.budget=40", "model.width=8", "trainer.compile=off", "trainer.precision=float64"]
SGD = [*SHORT, "optimizer=sgd"]


def sweep(*words: str) -> int:
    return main(["train", "--multirun", *words])


def folders(root: Path, name: str = "s") -> dict[int, Path]:
    """Return the run folders of a named sweep by their seeds."""
    found = [path for path in (root / "outputs" / "multirun" / name).iterdir() if path.is_dir()]
    return {read_config(path)["seed"]: path for path in found}


def fleets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the fleets that are trained from now on."""
    sizes = []
    original = chunks.train_jobs

    def counted(configs: Sequence[Any], *words: Any, **arguments: Any) -> Any:
        sizes.append(len(configs))
        return original(configs, *words, **arguments)

    monkeypatch.setattr(chunks, "train_jobs", counted)
    return sizes


def test_a_job_of_a_sweep_and_the_same_job_alone_leave_the_same_folder(tmp_path: Path) -> None:
    common = [*SHORT, "optimizer.inner_steps=5", "optimizer.gamma=0.7", "sweep.name=s"]
    assert sweep(*common, "optimizer.nu=1e-5,1e-4", "seed=3,4", "sweep.zip=[seed,optimizer.nu]") == 0
    assert folders(tmp_path).keys() == {3, 4}
    for seed, folder in folders(tmp_path).items():
        words = [*common, "sweep.zip=[seed,optimizer.nu]", f"optimizer.nu={(1e-5, 1e-4)[seed - 3]}", f"seed={seed}"]
        assert main(["train", *words, f"run_name=alone{seed}"]) == 0
        alone = tmp_path / "outputs" / f"alone{seed}"
        overrides = [yaml.safe_load((path / ".hydra" / "overrides.yaml").read_text()) for path in (folder, alone)]
        assert [*overrides[0], f"run_name=alone{seed}"] == overrides[1]

        def names(path: Path) -> set[str]:
            return {re.sub(r"\d{10}", "TIME", str(p.relative_to(path))) for p in path.rglob("*")}

        assert names(folder) == names(alone)
        ours, theirs = read_metrics(folder), read_metrics(alone)
        assert ours.keys() == theirs.keys()
        for column in ours.keys() - {"seconds"}:
            assert ours[column] == pytest.approx(theirs[column], rel=1e-10, nan_ok=True), column
        status, other = read_status(folder), read_status(alone)
        assert status.keys() == other.keys()
        for key, value in status.items():
            if isinstance(value, float) and key != "seconds":
                assert value == pytest.approx(other[key], rel=1e-10), key
        configs = [read_config(path) for path in (folder, alone)]
        for config in configs:
            config["output_root"] = config["run_name"] = None
        assert configs[0] == configs[1]
        assert (folder / "log.txt").read_text().count("\n") == (alone / "log.txt").read_text().count("\n")


def test_diverged_and_failed_jobs_do_not_disturb_their_siblings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SGD, "seed=1,2", "optimizer.lr=0.1,1e300"]
    blocked = Sweep([*SGD, "seed=1,2", "optimizer.lr=0.1,1e300"])
    name = next(blocked.place(job).name for job in blocked.jobs if {"seed=2", "optimizer.lr=0.1"} <= set(job))
    path = tmp_path / "outputs" / "multirun" / "s" / name
    path.parent.mkdir(parents=True)
    path.write_text("a file where the run folder should be")
    assert sweep(*words, "sweep.name=s") == 1
    ended = sorted(read_status(folder)["state"] for folder in path.parent.iterdir() if folder.is_dir())
    assert ended == ["completed", "diverged", "diverged"]
    reasons = [read_status(folder).get("reason", "") for folder in path.parent.iterdir() if folder.is_dir()]
    assert sum("diverged at gradient evaluation" in reason for reason in reasons) == 2
    shown = capsys.readouterr().out
    assert "4: 1 completed, 2 diverged, 1 failed" in shown
    text = " ".join(shown.split())
    assert "failed seed=2 optimizer.lr=0.1: cannot create run folder" in text
    assert "best setting: lr=0.1, mean validation error" in text
    assert "diverged 2 jobs, the first is seed=1 optimizer.lr=1e+300: lr * L = " in text
    assert main(["status", "s"]) == 0
    assert "diverged 2 jobs, the first is seed=1 optimizer.lr=1e+300: lr * L = " in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["train", *SGD, "seed=1", "optimizer.lr=0.1", "run_name=alone"]) == 0
    alone = read_status(tmp_path / "outputs" / "alone")["validation_loss"]
    (completed,) = [f for f in path.parent.iterdir() if f.is_dir() and read_status(f)["state"] == "completed"]
    assert read_status(completed)["validation_loss"] == pytest.approx(alone, rel=1e-10)


def test_a_fleet_that_fails_is_halved_until_the_culprit_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = chunks.train_jobs, []

    def too_large(configs: Sequence[Any], *words: Any, **arguments: Any) -> Any:
        sizes.append(len(configs))
        results = original(configs, *words, **arguments)  # it fails at the end, when folders are there
        if len(configs) > 2 or any(config.seed == 3 for config in configs):
            raise MemoryError("no more")
        return results

    monkeypatch.setattr(chunks, "train_jobs", too_large)
    jobs = [Job(small_config(seed), tmp_path / str(seed), (f"seed={seed}",)) for seed in range(6)]
    outcomes = train_chunk(jobs)
    assert sizes == [6, 3, 1, 2, 3, 1, 1, 1][: len(sizes)] or sum(sizes) > 6
    assert [outcome.state for outcome in outcomes] == ["completed"] * 3 + ["failed"] + ["completed"] * 2
    assert isinstance(outcomes[3].error, MemoryError)
    assert [outcome.folder.name for outcome in outcomes] == [str(seed) for seed in range(6)]


def test_jobs_are_grouped_by_what_cannot_vary_inside_a_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = fleets(monkeypatch)
    words = [*SHORT, "optimizer=sgd,adamw", "seed=range(2)", "optimizer.lr=0.1,0.01", "model.depth=1,2"]
    assert sweep(*words, "sweep.name=s") == 0
    assert sizes == [4, 4, 4, 4]
    assert (
        len(list((tmp_path / "outputs" / "multirun" / "s").iterdir())) == 16 + 5
    )  # multirun.yaml, jobs.jsonl, .lock, results.csv, summary.md
    shown = capsys.readouterr()
    assert "16: 16 completed" in shown.out
    assert "16/16 runs 100%  640/640" in shown.err


def test_max_runs_splits_a_group_evenly() -> None:
    jobs = [Job(small_config(seed), Path(str(seed)), ()) for seed in range(7)]
    assert [len(chunk) for chunk in chunks_of(jobs, None)] == [7]
    made = chunks_of(jobs, 3)
    assert sorted(len(chunk) for chunk in made) == [2, 2, 3]
    assert [job for chunk in made for job in chunk] == jobs
    other = [Job(small_config(0, optimizer=optimizer), Path(), ()) for optimizer in (SgdConfig(), AdamWConfig())]
    assert [len(chunk) for chunk in chunks_of([*jobs, *other], 7)] == [7, 1, 1]


def test_equal_jobs_are_trained_once_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = fleets(monkeypatch)
    budgets = ["optimizer.inner_steps=5", "trainer.budget=40,41"]  # both round down to 40
    assert sweep(*SHORT, "seed=1,1,2,3", *budgets, "sweep.name=s", "sweep.max_runs=2") == 0
    assert sorted(sizes) == [1, 2]
    assert len(folders(tmp_path)) == 3
    assert "burgersgd: 5 of 8 jobs repeat another job and are not trained again" in capsys.readouterr().err


def test_finished_jobs_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep(*SGD, "seed=1,2", "sweep.name=s") == 0
    before = {path: (path / "metrics.csv").stat().st_mtime_ns for path in folders(tmp_path).values()}
    sizes = fleets(monkeypatch)
    assert sweep(*SGD, "seed=1,2,3", "sweep.name=s") == 0
    assert sizes == [1]
    assert {path: (path / "metrics.csv").stat().st_mtime_ns for path in before} == before


def test_the_objective_is_the_error_at_the_end_or_the_best_one(tmp_path: Path) -> None:
    outcome = Outcome("completed", tmp_path, validation_error=0.5, best_validation_error=0.25)
    assert (outcome.objective("last"), outcome.objective("best")) == (0.5, 0.25)
    assert Outcome("diverged", tmp_path, validation_error=0.5).objective("last") == math.inf
    (trained,) = train_chunk([Job(small_config(), tmp_path / "run", ())])
    assert trained == recorded_outcome(tmp_path / "run")
    assert recorded_outcome(tmp_path / "nothing") is None


@pytest.mark.slow
def test_every_launcher_and_sweeper_leaves_the_same_folders_that_their_hash_leads_to(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    planned = Sweep([*SGD, "seed=1,2"])
    names = {seed: config_hash(planned.plan(job).config, 40) for seed, job in zip((1, 2), planned.jobs, strict=True)}
    losses = []
    for name, choice in {
        "fleet": [],
        "launcher": ["hydra/launcher=basic"],
        "sweeper": ["hydra/sweeper=basic"],
        "both": ["hydra/launcher=basic", "hydra/sweeper=basic"],
    }.items():
        assert sweep(*SGD, "seed=1,2", f"sweep.name={name}", *choice) == 0
        found = folders(tmp_path, name)
        assert {seed: hash_of(path.name) for seed, path in found.items()} == names
        assert all((path.name == f"seed={seed}-{names[seed]}") == (name != "both") for seed, path in found.items())
        losses.append([read_status(found[seed])["validation_loss"] for seed in (1, 2)])
        shown = " ".join(capfd.readouterr().out.split())
        assert "jobs 2: 2 completed" in shown  # at the end of the command
        assert main(["status", name, "--json"]) == 0
        jobs = json.loads(capfd.readouterr().out)
        assert {job["name"]: job["state"] for job in jobs} == {path.name: "completed" for path in found.values()}
        assert all(f"seed={seed}" in job["words"] for seed, job in zip((1, 2), jobs, strict=True))
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-10)


def test_a_failed_job_of_another_launcher_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    blocked = Sweep([*SGD, "seed=1,2"])
    path = tmp_path / "outputs" / "multirun" / "s" / job_name(["seed=1"], blocked.plan(blocked.jobs[0]).digits)
    path.parent.mkdir(parents=True)
    path.write_text("a file")
    assert sweep(*SGD, "seed=1,2", "sweep.name=s", "hydra/launcher=basic") == 1
    shown = " ".join(capfd.readouterr().out.split())
    assert "2: 1 completed, 1 failed" in shown
    assert "failed seed=1: cannot create run folder" in shown


class Recorder(Callback):
    """What a user may hang on Hydra's events."""

    seen: list[Any]

    def __init__(self) -> None:
        Recorder.seen = []

    def on_job_start(self, config: Any, **kwargs: Any) -> None:
        Recorder.seen.append(("start", config.hydra.job.num, config.seed))

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        Recorder.seen.append(("end", job_return.hydra_cfg.hydra.job.num, job_return.return_value, job_return.cfg.seed))  # pyright: ignore


@pytest.mark.slow
def test_callbacks_and_sweepers_get_a_job_return_of_every_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[JobReturn] = []
    launch = chunks_launcher().launch
    monkeypatch.setattr(
        chunks_launcher(), "launch", lambda *arguments: returned.extend(made := launch(*arguments)) or made
    )
    target = f"+hydra.callbacks.recorder._target_={Recorder.__module__}.Recorder"
    assert sweep(*SGD, "seed=5,6", "optimizer.lr=0.1", target, "sweep.name=s") == 0
    assert [event[:2] for event in Recorder.seen] == [("start", 0), ("start", 1), ("end", 0), ("end", 1)]
    assert [event[-1] for event in Recorder.seen] == [5, 6, 5, 6]
    assert [job.status for job in returned] == [JobStatus.COMPLETED] * 2
    for job, seed in zip(returned, (5, 6), strict=True):
        assert job.overrides is not None
        assert f"seed={seed}" in job.overrides
        status = read_status(folders(tmp_path)[seed])
        assert job.return_value == status["validation_error"]


def chunks_launcher() -> Any:
    from burgersgd.sweeps.launcher import FleetLauncher

    return FleetLauncher


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.nu=1e-5,-1"], "job 2 of 2 (optimizer.nu=-1): optimizer.nu=-1.0: must be >= 0"),
        (["optimizer=local_entropy,sgd", "optimizer.nu=0.1"], "job 2 of 2 (optimizer=sgd): optimizer.nu: no such key"),
        (["model.width=8,0", "seed=1,2"], "job 3 of 4 (model.width=0 seed=1): model.width=0: must be >= 1"),
        (["trainer.batch_size=9,5000"], "job 2 of 2 (trainer.batch_size=5000): trainer.batch_size=5000: must be <= 10"),
        (["optimizer.lr=interval(0.1,1)"], "a range needs sweep.sampler=random"),
        (["optimizer.lr=interval(-1,1)", "sweep.sampler=sobol"], "optimizer.lr=-"),
        (["seed=range(1000000000)"], "seed=range(1000000000): has too many values, must be <= 50,000"),
        (["seed=range(0)"], "seed=range(0): must have at least one value"),
        (["seed=1,2", "model.width=1,2,3", "sweep.zip=[seed,model.width]"], "the same number of values: seed has 2, "),
        (["sweep.sampler=grid,random"], "sweep.sampler=grid,random: settings of the sweep itself cannot vary"),
        (["sweep=seeds,tuning"], "sweep=seeds,tuning: settings of the sweep itself cannot vary within it"),
        (["seed=1,2", "sweep.name=a/b"], "sweep.name=a/b: must consist of letters, digits"),
        (["seed=1,2", "run_name=x"], "run_name=x: must be left out: the runs of a sweep are named"),
        (["seed=1,2", "hydra/launcher=foo"], "hydra/launcher=foo: must be one of basic, fleet"),
        (["seed=1,2", "hydra.sweep.dirr=x"], "hydra.sweep.dirr: no such key"),
        (["seed=1,2", "output_root=file/below"], "output_root=file/below: cannot be written"),
        (["seed=1,x"], "seed=x: must be of type int"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_names_the_job_and_nothing_is_created(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    assert sweep(*words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("burgersgd: error: ")
    assert "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_sweep_whose_folder_cannot_be_written_is_one_line_and_no_job_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "outputs" / "multirun" / "s"
    path.parent.mkdir(parents=True)
    path.write_text("a file where the folder should be")
    assert sweep(*SGD, "seed=1,2", "sweep.name=s") == 2
    shown = capsys.readouterr()
    assert shown.err.strip() == f"burgersgd: error: {path}: cannot be written: File exists"
    assert not shown.out


def test_a_preset_that_lists_values_needs_multirun(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sweep=seeds"]) == 2
    assert "sweep.params: has an effect only in a sweep; add --multirun" in capsys.readouterr().err


def test_presets() -> None:
    seeds = Sweep(["sweep=seeds", "optimizer.lr=0.1,0.2"])
    assert {seeds.plan(job).config.seed for job in seeds.jobs} == set(range(10))
    assert len(seeds.jobs) == 20
    assert len(Sweep(["sweep=seeds", "seed=range(30)"]).jobs) == 30
    tuning = Sweep(["sweep=tuning", "optimizer.nu=0,1e-7", "optimizer.gamma=tag(log, interval(1,100))"])
    assert len(tuning.jobs) == 2 * 16
    by_nu: dict[float, set[tuple[float, float]]] = {}
    for job in tuning.jobs:
        optimizer: Any = tuning.plan(job).config.optimizer
        by_nu.setdefault(optimizer.nu, set()).add((optimizer.lr, optimizer.gamma))
    assert by_nu[0.0] == by_nu[1e-7]
    assert len(by_nu[0.0]) == 16


def test_a_checkout_without_the_plugin_trains_single_runs_and_says_what_a_sweep_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "hydra_plugins.burgersgd", None)
    assert main(["train", *SGD]) == 0
    assert sweep(*SGD, "seed=1,2") == 2
    assert "--multirun: needs hydra_plugins.burgersgd" in capsys.readouterr().err


def test_hydra_finds_the_plugin_without_importing_torch() -> None:
    import subprocess
    import sys

    code = "import sys; from hydra.core.plugins import Plugins; Plugins.instance(); print('torch' in sys.modules)"
    assert Plugins.instance() is not None
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("hydra/launcher=basic",)], ids=["fleet", "basic"])
def test_a_warning_of_all_fleets_is_each_warning_once_and_without_a_stamp(
    words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    unstable = ["optimizer.lr=0.2", "optimizer.gamma=0.1", "optimizer.inner_steps=5", "model.depth=1,2", "seed=1,2"]
    assert sweep(*SHORT, *unstable, "sweep.name=s", *words) == 3  # two fleets, or four; all of them diverge
    shown = capfd.readouterr()
    assert shown.err.count("lr / gamma reaches 2 >= 2") == 1
    assert "lr / gamma reaches" not in shown.out
    assert "[HYDRA]" not in shown.out + shown.err
    assert main(["train", *SHORT, *unstable[:3], "run_name=again"]) == 3  # another command says it again
    assert capfd.readouterr().err.count("lr / gamma reaches 2 >= 2") == 1


def test_warnings_that_differ_in_more_than_numbers_are_all_said(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("burgersgd")
    with each_warning_once():
        for text in ("a 1.5 b", "a -2e-3 b", "a b", "a 7 c"):
            log.warning("%s", text)
    log.warning("a 8 b")
    assert caplog.messages == ["a 1.5 b", "a b", "a 7 c", "a 8 b"]


@pytest.mark.slow
def test_what_other_launchers_send_to_their_processes_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")  # of submitit; joblib brings its own
    made, sent = Plugins.instantiate_launcher, []

    def making(self: Any, hydra_context: Any, task_function: Any, config: Any) -> Any:
        sent.append(cloudpickle.dumps(task_function))
        return made(self, hydra_context, task_function, config)

    monkeypatch.setattr(Plugins, "instantiate_launcher", making)
    for words in (("hydra/launcher=basic",), ("hydra/launcher=basic", "hydra/sweeper=basic")):
        assert sweep(*SGD, "seed=1,2", f"sweep.name=s{len(sent)}", *words) == 0
    assert len(sent) == 2


def test_an_error_is_kept_without_the_frames_that_it_and_its_causes_came_through() -> None:
    def failing(error: Exception, cause: Exception | None) -> None:
        raise error from cause

    raised: list[Exception] = []
    for error in (KeyError("first"), ValueError("second"), TypeError("third")):
        try:
            failing(error, raised[-1] if raised else None)
        except Exception as met:
            raised.append(met)
    assert all(error.__traceback__ is not None for error in raised)
    assert chunks.without_frames(raised[-1]) is raised[-1]
    assert [error.__traceback__ for error in raised] == [None] * 3
    assert raised[2].__cause__ is raised[1]


def test_a_job_that_was_not_trained_has_spent_nothing() -> None:
    outcome = Outcome("failed", Path("x"))
    assert (outcome.evaluations, outcome.seconds, outcome.error) == (0, 0.0, None)
    assert math.isnan(outcome.validation_error)
    assert math.isnan(outcome.best_validation_error)
    assert math.isnan(outcome.test_error)


def test_a_sweep_whose_launcher_gave_up_can_be_resumed(tmp_path: Path) -> None:
    def gives_up(jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
        raise KeyboardInterrupt

    started = Sweep([*SGD, "seed=1,2", f"output_root={tmp_path}"])
    with pytest.raises(KeyboardInterrupt):
        started.run(gives_up, tmp_path / "there")
    assert started.exit_code == RESUMABLE
    assert "jobs                  2: 2 not started" in started.report()


def test_a_sweep_of_one_job_is_placed_and_checked_like_one_of_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*SGD, "seed=1", "sweep.name=s") == 0
    assert folders(tmp_path).keys() == {1}
    (tmp_path / "file").touch()
    assert sweep(*SGD, "seed=1", "output_root=file/there") == 2
    assert "output_root=file/there: cannot be written (Not a directory)" in capsys.readouterr().err
