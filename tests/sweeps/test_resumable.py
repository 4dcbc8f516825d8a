"""Named sweeps: repeated, killed, extended or shared by two processes, they train the remaining jobs and none twice."""

from __future__ import annotations

import contextlib
import datetime
import json
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from burgersgd.cli import main
from burgersgd.recording import claims, run_folder
from burgersgd.recording.run_folder import RunFolder, read_checkpoint, read_status
from burgersgd.sweeps import planning, sweep_folder
from burgersgd.sweeps.chunks import Outcome
from burgersgd.sweeps.status import job_states
from burgersgd.training.fleet import Fleet
from tests.test_resume import Killed, assert_same, kill

__all__ = ["kill"]
JOBS = [
    "trainer.budget=60",
    "trainer.checkpoint_every=11",
    "model.width=8",
    "trainer.compile=off",
    "trainer.precision=float64",
    "seed=range(3)",
    "optimizer.nu=1e-6,1e-5",
]


def sweep(*words: str) -> int:
    return main(["train", "--multirun", *words])


def folders(name: str) -> dict[str, Path]:
    return {path.name: path for path in Path("outputs/multirun", name).iterdir() if path.is_dir()}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of all steps that fleets take from now on: their numbers of runs."""
    taken: list[int] = []
    original = Fleet.advance

    def counting(self: Fleet, n: int, pause: Any = None) -> None:
        before = self.evaluations
        original(self, n, pause)
        taken.extend([self.n_runs] * (self.evaluations - before))

    monkeypatch.setattr(Fleet, "advance", counting)
    return taken


def test_the_same_command_again_trains_nothing_and_prints_the_same_report(
    steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*JOBS, "sweep.name=s") == 0
    first = capsys.readouterr().out
    assert len(steps) == 60
    assert sweep(*JOBS, "sweep.name=s") == 0
    assert len(steps) == 60
    assert capsys.readouterr().out.replace("  trained before        6, trained now 0\n", "") == first
    assert sweep(*JOBS[:-2], "seed=range(4)", "optimizer.nu=1e-6,1e-5", "sweep.name=s") == 0  # a larger grid
    assert steps[60:] == [2] * 60  # the new seed, two values of nu
    out = capsys.readouterr().out
    assert "8: 8 completed" in out
    assert "trained before        6, trained now 2" in out


def test_settings_that_decide_nothing_do_not_make_a_job_new(steps: list[int]) -> None:
    assert sweep(*JOBS, "sweep.name=s") == 0
    assert sweep(*JOBS, "sweep.name=s", "trainer.log_every=5", "device=cpu", "trainer.checkpoint_minutes=1") == 0
    assert sweep("trainer.epochs=1.77", *JOBS[1:], "sweep.name=s") == 0  # 60 evaluations
    assert len(steps) == 60


@pytest.mark.parametrize("moment", [25, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (3, 59))])
def test_a_killed_and_resumed_sweep_ends_as_an_uninterrupted_one(moment: int, kill: Any) -> None:
    assert sweep(*JOBS, "sweep.name=undisturbed", "sweep.max_runs=3") == 0
    kill(60 + moment)  # in the second of two fleets
    with pytest.raises(Killed):
        sweep(*JOBS, "sweep.name=killed", "sweep.max_runs=3")
    states = [read_status(path)["state"] for path in folders("killed").values()]
    assert sorted(states) == ["completed"] * 3 + ["running"] * 3
    assert sweep(*JOBS, "sweep.name=killed", "sweep.max_runs=3") == 0
    assert folders("killed").keys() == folders("undisturbed").keys()
    for name, folder in folders("undisturbed").items():
        assert_same(folder, folders("killed")[name])


@pytest.mark.slow
@pytest.mark.parametrize("over", [3, *(pytest.param(over, marks=pytest.mark.slow) for over in (1, 5))])
def test_a_fleet_that_is_killed_while_its_runs_end_leaves_nothing_half_recorded(
    over: int, kill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*JOBS[:5], "trainer.precision=float32", "optimizer=sgd", "optimizer.lr=1,0.3,1e-2,1e-3,1e-4,1e-6"]
    words += ["trainer.eval_every=10", "sweep.prune=median"]  # by comparison with the runs beside it
    assert sweep(*words, "sweep.name=whole") == 0
    ended: list[Path] = []
    commit = run_folder.commit

    def dying(path: Path) -> None:
        commit(path)
        assert read_status(path.parent)["state"] in run_folder.ENDED
        ended.append(path.parent)
        if len(ended) == over:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "commit", dying)
        with pytest.raises(Killed):
            sweep(*words, "sweep.name=dying")
    states = [state.state for state in job_states(Path("outputs/multirun/dying"))]
    assert states.count("interrupted") == 6 - over
    assert sweep(*words, "sweep.name=dying") == 0
    for name, folder in folders("whole").items():
        other = folders("dying")[name]
        assert_same(folder, other)
        assert read_status(folder)["fleet_size"] == read_status(other)["fleet_size"] == 6
        assert read_checkpoint(folder)["fleet"] == read_checkpoint(other)["fleet"]
        for pattern in ("log.txt", "events.out.*"):
            (file,), (other_file,) = folder.glob(pattern), other.glob(pattern)
            assert file.stat().st_size == other_file.stat().st_size


def test_a_sweep_that_receives_a_signal_saves_all_runs_and_can_be_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*JOBS, "sweep.name=undisturbed", "sweep.max_runs=3") == 0
    original = Fleet._steps

    def told(self: Fleet, k: int, stop: int) -> int:
        if k == 33:
            signal.raise_signal(signal.SIGTERM)
        return original(self, k, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "_steps", told)
        assert sweep(*JOBS, "sweep.name=told", "sweep.max_runs=3") == 75
    states = [state.state for state in job_states(Path("outputs/multirun/told"))]
    assert states == ["interrupted"] * 3 + ["waiting"] * 3
    assert main(["status", "told"]) == 0
    assert "6: 3 interrupted, 3 waiting" in capsys.readouterr().out
    assert sweep(*JOBS, "sweep.name=told", "sweep.max_runs=3") == 0
    for name, folder in folders("undisturbed").items():
        assert_same(folder, folders("told")[name])


def test_failed_jobs_are_tried_again_and_diverged_ones_are_not(
    steps: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*JOBS[:5], "optimizer=sgd", "optimizer.lr=0.1,1e200", "seed=1,2", "sweep.name=s"]
    write_rows = RunFolder.write_rows

    def failing(self: RunFolder) -> None:
        is_second = "seed: 2" in (self.path / ".hydra/config.yaml").read_text()
        if is_second and self.table._lines and self.table._lines[-1].startswith(b"30,"):
            shutil.copy(self.path / "metrics.csv", "kept.csv")
            from burgersgd.recording.files import RunFolderError

            raise RunFolderError("cannot write metrics.csv: No space left on device")
        write_rows(self)

    with monkeypatch.context() as patch:
        patch.setattr("burgersgd.recorder.ROWS_SECONDS", 0.0)  # every row is written at once
        patch.setattr(RunFolder, "write_rows", failing)
        assert sweep(*words) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "4: 1 completed, 2 diverged, 1 failed" in out
    assert "failed optimizer.lr=0.1 seed=2: cannot write metrics.csv: No space left on device" in out
    assert main(["status", "s"]) == 1
    assert "No space left on device" in " ".join(capsys.readouterr().out.split())
    before = len(steps)
    assert sweep(*words) == 0
    assert steps[before:] == [1] * (60 - 22)  # from the checkpoint of the one that failed
    assert "4: 2 completed, 2 diverged" in capsys.readouterr().out
    assert main(["status", "outputs/multirun/s", "--jobs"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum("completed" in line and "validation error" in line for line in shown[:4]) == 2


OTHER = """
import sys
from pathlib import Path
from burgersgd.recording import claims, run_folder
assert claims.claim(Path(sys.argv[1]))
print("claimed", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def claimed_elsewhere(folder: Path) -> Iterator[int]:
    """Have another process claim a folder, yield its number, and kill it at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        yield other.pid
        other.kill()


def test_a_job_that_another_process_trains_is_left_to_it(steps: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(*JOBS, "sweep.name=s") == 0
    name, folder = next(iter(folders("s").items()))
    shutil.rmtree(folder)
    with claimed_elsewhere(folder) as pid:
        capsys.readouterr()
        before = len(steps)
        assert sweep(*JOBS, "sweep.name=s") == 75
        assert len(steps) == before
        out = capsys.readouterr().out
        assert "6: 5 completed, 1 trained by another process" in out
        assert f"in other processes    1 by process {pid}\n" in out
        assert {s.name: s.state for s in job_states(Path("outputs/multirun/s"))}[name] == "running"
    assert sweep(*JOBS, "sweep.name=s") == 0  # a dead process holds nothing
    assert len(steps) == before + 60
    assert not claims.is_claimed(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "moment"),
    [
        (["sweep.name=told"], "in the first fleet"),
        ([], "before any job began"),
        (["output_root='out ${puts}'"], "in the first fleet"),
    ],
)
def test_an_interrupted_sweep_prints_its_folder_and_the_command_that_resumes_it(
    moment: str, name: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = [word.replace("${", "\\${") for word in name]

    steps = Fleet._steps

    def told(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    def told_in_a_step(self: Fleet, step: int, stop: int) -> int:
        signal.raise_signal(signal.SIGINT)
        return steps(self, step, stop)

    with monkeypatch.context() as patch:
        if moment == "in the first fleet":
            patch.setattr(Fleet, "_steps", told_in_a_step)
        else:
            patch.setattr(planning.LocalTrainer, "train", told)
        assert sweep(*JOBS, *name) == 75
    shown = capsys.readouterr()
    (folder,) = (line.split(maxsplit=1)[1] for line in shown.out.splitlines() if line.startswith("  folder "))
    assert Path(folder).is_dir()
    assert ("6: 6 not started" if "before" in moment else "6: 6 interrupted") in shown.out
    lines = shown.err.splitlines()
    assert lines[-2] == "burgersgd: interrupted by SIGINT"
    assert lines[-1].startswith("resume with: burgersgd train ")
    words = shlex.split(lines[-1].removeprefix("resume with: burgersgd "))
    if "before" in moment:
        return
    assert main(words) == 0
    again = capsys.readouterr().out
    assert f"  folder                {folder}\n" in again
    assert "6: 6 completed" in again
    assert len(list(Path(folder).parent.iterdir())) == 1


def test_two_unnamed_sweeps_of_the_same_second_have_folders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Self:
            return cls(2026, 11, 26, 12, 0, 0)

    monkeypatch.setattr(sweep_folder, "datetime", Still)
    for _ in range(2):
        assert sweep(*JOBS[:-2], "seed=1,2") == 0
    folders = sorted(Path("outputs/multirun").iterdir())
    assert [folder.name for folder in folders] == ["2026-11-26_12-00-00", "2026-11-26_12-00-00_2"]
    assert all(len(list(folder.glob("*/status.json"))) == 2 for folder in folders)


@pytest.mark.slow
def test_of_several_reasons_the_first_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--multirun", *JOBS[:-2], "seed=1", "optimizer=sgd"]
    assert main(["train", *few, "optimizer.lr=1e30,1e29", "sweep.name=far"]) == 3
    assert main(["train", *few, "optimizer.lr=1e30,0.1", "sweep.name=s"]) == 0

    def failing(self: Any, chunks: Any, progress: Any) -> Any:
        for chunk in chunks:
            yield chunk, [Outcome("failed", job.folder, error=RuntimeError("broken")) for job in chunk]

    monkeypatch.setattr(planning.LocalTrainer, "train", failing)
    assert main(["train", *few, "optimizer.lr=1e30,0.2", "sweep.name=s"]) == 1
    capsys.readouterr()
    folder = folders("far").popitem()[1]
    name = folder.name
    status = (folder / "status.json").read_text()
    (folder / "status.json").unlink()

    def finished_elsewhere(self: Any, chunks: Any, progress: Any) -> Any:
        (folder / "status.json").write_text(status)
        yield from failing(self, chunks, progress)

    monkeypatch.setattr(planning.LocalTrainer, "train", finished_elsewhere)
    assert main(["train", *few, "optimizer.lr=1e30,1e29", "sweep.name=far"]) == 3  # the report is the disk's
    assert "2: 2 diverged" in capsys.readouterr().out
    shutil.rmtree(folder)
    monkeypatch.setattr(planning.LocalTrainer, "train", failing)
    with claimed_elsewhere(folder.with_name("another")):
        assert main(["train", *few, "optimizer.lr=1e30,1e29", "sweep.name=far"]) == 1
    with claimed_elsewhere(folder):
        elsewhere = lambda self, chunks, progress: (  # noqa: E731
            (chunk, [Outcome("elsewhere", job.folder) for job in chunk]) for chunk in chunks
        )
        monkeypatch.setattr(planning.LocalTrainer, "train", elsewhere)
        assert main(["train", *few, "optimizer.lr=1e30,1e29", "sweep.name=far"]) == 75
    assert name == folder.name


def test_what_is_no_sweep_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("burgersgd: error: nothing: there is no such folder, and no sweep or run")


def test_half_a_line_in_the_list_of_jobs_is_no_job() -> None:
    assert sweep(*JOBS, "sweep.name=s") == 0
    file = Path("outputs/multirun/s/jobs.jsonl")
    assert [json.loads(line)["name"] for line in file.read_text().splitlines()] == [
        state.name for state in job_states(file.parent)
    ]
    file.write_text(file.read_text() + '{"name": "ab')
    assert len(job_states(file.parent)) == 6
