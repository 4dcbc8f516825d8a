"""hydra/launcher=fleet_ray and fleet_slurm: the folders of the launcher in this process, whatever happens elsewhere."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burgersgd.config import ConfigError
from burgersgd.recording.naming import job_name, same_job
from burgersgd.recording.progress import SweepProgress
from burgersgd.recording.run_folder import CONFIG, read_checkpoint, read_config, read_metrics, read_status
from burgersgd.sweeps import cluster
from burgersgd.sweeps.chunks import Job, Outcome, spread, train_chunk
from burgersgd.sweeps.cluster import ClusterLauncher, FleetRayConf, FleetRayLauncher, FleetSlurmConf, FleetSlurmLauncher
from burgersgd.sweeps.sweep import Sweep
from burgersgd.sweeps.workers import sendable
from tests.conftest import small_config
from tests.sweeps.test_sweep import SGD, sweep
from tests.sweeps.trouble import TroubledTask, attempts

WORDS = [*SGD, "trainer.checkpoint_every=10"]
LOCAL = ["hydra/launcher=fleet_slurm", "hydra.launcher.cluster=local"]

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed")


def folders(root: Path, name: str) -> dict[int, Path]:
    found = [path for path in (root / "outputs" / "multirun" / name).iterdir() if (path / CONFIG).is_file()]
    return {read_config(path)["seed"]: path for path in found}


def assert_as_trained_here(root: Path, name: str, *words: str) -> None:
    """Train the same sweep in this process and compare."""
    assert sweep(*WORDS, *words, "sweep.name=here") == 0
    here, there = folders(root, "here"), folders(root, name)
    assert here.keys() == there.keys()
    for seed, folder in here.items():
        other = there[seed]
        assert same_job(other.name) == same_job(folder.name)
        kept = [{path.name for path in run.iterdir() if "tfevents" not in path.name} for run in (folder, other)]
        assert kept[0] == kept[1] - {"checkpoint.next.pt"}
        ours, theirs = read_metrics(folder), read_metrics(other)
        for column in ours.keys() - {"seconds"}:
            assert theirs[column] == pytest.approx(ours[column], rel=1e-10, nan_ok=True), column
        assert read_status(other)["state"] == read_status(folder)["state"] == "completed"
        assert read_status(other)["test_loss"] == pytest.approx(read_status(folder)["test_loss"], rel=1e-10)


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, str]], None]:
    def set_up(troubles: dict[int, str]) -> None:
        task = functools.partial(TroubledTask, troubles=troubles, driver=os.getpid())
        monkeypatch.setattr(cluster, "ChunkTask", task)

    return set_up


# ---------------------------------------------------------------------------------------------------------------- Ray


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    launcher = FleetRayLauncher(init={"num_cpus": 2})
    launcher.start([])
    assert signal.getsignal(signal.SIGTERM) is before
    yield
    launcher.close()
    import ray

    assert not ray.is_initialized()


@needs_ray
@pytest.mark.usefixtures("ray_of_two")
@pytest.mark.slow
def test_ray_trains_the_same_although_processes_are_lost(tmp_path: Path, trouble: Callable[..., None]) -> None:
    trouble({1: "kill", 3: "terminate"})
    assert sweep(*WORDS, "seed=1,2,3,4", "sweep.name=there", "hydra/launcher=fleet_ray") == 0
    assert attempts(tmp_path, 1) == [0, 20]  # from the last checkpoint
    assert attempts(tmp_path, 3) == [0, 26]  # saved when it was told
    assert_as_trained_here(tmp_path, "there", "seed=1,2,3,4", "sweep.max_runs=2")


@pytest.mark.slow
@needs_ray
@pytest.mark.usefixtures("ray_of_two")
def test_chunks_on_ray_are_saved_when_the_command_stops_and_resumed_by_the_next(
    tmp_path: Path, trouble: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    trouble({1: "stop"})
    words = ["seed=1,2,3", "sweep.max_runs=2"]
    assert sweep(*WORDS, *words, "sweep.name=there", "hydra/launcher=fleet_ray") == 75
    assert "interrupted by SIGTERM" in capsys.readouterr().err
    stopped = folders(tmp_path, "there")[1]
    assert read_status(stopped)["state"] == "interrupted"
    assert read_checkpoint(stopped)["evaluations"] == 26
    assert sweep(*WORDS, *words, "sweep.name=there", "hydra/launcher=fleet_ray") == 0
    assert attempts(tmp_path, 1) == [0, 26]
    assert_as_trained_here(tmp_path, "there", *words)


def test_a_ray_that_cannot_be_reached_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert sweep(*SGD, "seed=1,2", "hydra/launcher=fleet_ray", f"hydra.launcher.address={address}") == 2
    error = capsys.readouterr().err.strip()
    assert (
        error == f"burgersgd: error: hydra.launcher.address={address}: [Errno {errno.ECONNREFUSED}] Connection refused"
    )


# -------------------------------------------------------------------------------------------------------------- SLURM


@needs_submitit
@pytest.mark.slow
def test_submitit_requeues_what_is_preempted_and_starts_again_what_is_lost(
    tmp_path: Path, trouble: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # how long a result may be under way
    trouble({1: "preempt", 2: "kill"})
    assert sweep(*WORDS, "seed=1,2", *LOCAL, "sweep.max_runs=1", "sweep.name=there") == 0
    assert attempts(tmp_path, 1) == [0, 26]  # saved when it was told
    assert attempts(tmp_path, 2) == [0, 20]  # from the last checkpoint
    submitted = list((tmp_path / "outputs/multirun/there/.submitit").glob("*_submitted.pkl"))
    assert len(submitted) == 2 + 1  # one was lost; the requeued job is the same one
    assert_as_trained_here(tmp_path, "there", "seed=1,2")


@needs_submitit
def test_a_chunk_that_is_lost_again_and_again_has_failed(tmp_path: Path) -> None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    class Ended:
        def __init__(self, how: type[Exception]) -> None:
            self.how, self.job_id, self.paths = how, "7_0", SimpleNamespace(stderr="7_0_0_log.err")

        def result(self) -> None:
            raise self.how("a page of text")

    launcher = FleetSlurmLauncher(cluster="local", max_retries=2)
    done, lost = (Job(small_config(seed), tmp_path / str(seed), ()) for seed in (1, 2))
    train_chunk([done])
    lost_job = Ended(UncompletedJobError)
    assert [launcher.outcomes(lost_job, [done, lost]) for _ in range(2)] == [None, None]
    ended = launcher.outcomes(lost_job, [done, lost])
    assert ended is not None
    assert [outcome.state for outcome in ended] == ["completed", "failed"]
    assert str(ended[1].error) == "job 7_0 was lost; see its log 7_0_0_log.err"
    failed = launcher.outcomes(Ended(FailedJobError), [lost])
    assert failed is not None
    assert str(failed[0].error) == "job 7_0 failed; see its log 7_0_0_log.err"


@pytest.mark.slow
@needs_submitit
def test_jobs_are_cancelled_when_the_command_is_stopped(
    tmp_path: Path, trouble: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    trouble({1: "stop"})
    assert sweep(*WORDS, "seed=1", *LOCAL, "sweep.name=there") == 75
    (told,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("resume with: burgersgd train "))
    assert told.endswith("sweep.name=there --multirun")
    assert sweep(*WORDS, "seed=1", "sweep.name=there") == 0
    assert_as_trained_here(tmp_path, "there", "seed=1")


SBATCH = """#!/bin/bash
# Runs the tasks of an array, all at once, as far as submitit can see
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
for task in $(seq 0 "$last"); do
  SLURM_JOB_ID=$((70 + task)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task bash "$1" >/dev/null 2>&1 &
done
echo Submitted batch job 7
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put commands of SLURM's names on the path, with a given sbatch."""

    def install(sbatch: str) -> None:
        commands = {"sbatch": sbatch, "srun": '#!/bin/bash\nexec "${@:6}"\n', "sacct": "#!/bin/bash\n"}
        (tmp_path / "bin").mkdir()
        for name, text in commands.items():
            (tmp_path / "bin" / name).write_text(text)
            (tmp_path / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return install


@needs_submitit
@pytest.mark.slow
def test_a_job_array_with_what_was_asked_for_and_a_job_that_fails(
    tmp_path: Path, slurm: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    slurm(SBATCH)
    planned = Sweep([*WORDS, "seed=3"])
    blocked = tmp_path / "outputs" / "multirun" / "there" / job_name(["seed=3"], planned.plan(planned.jobs[0]).digits)
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the run folder should be")
    settings = ["partition=day", "gpus=1", "cpus=2", "mem_gb=8", "timeout_min=90", "max_parallel=2"]
    words = ["hydra/launcher=fleet_slurm", *(f"hydra.launcher.{word}" for word in settings)]
    assert sweep(*WORDS, "seed=1,2,3,4", *words, "+hydra.launcher.slurm.constraint=fast", "sweep.name=there") == 1
    (script,) = (tmp_path / "outputs/multirun/there/.submitit").glob("*_submission.sh")
    asked = {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")}
    for line in ("partition=day", "gpus-per-node=1", "cpus-per-task=2", "mem=8GB", "time=90", "array=0-1%2"):
        assert line in asked, asked
    assert "constraint=fast" in asked
    shown = " ".join(capsys.readouterr().out.split())
    assert "4: 3 completed, 1 failed" in shown
    assert "failed seed=3: cannot create run folder" in shown
    blocked.unlink()
    assert sweep(*WORDS, "seed=3", "sweep.name=there") == 0
    assert_as_trained_here(tmp_path, "there", "seed=1,2,3,4")


@needs_submitit
def test_what_sbatch_refuses_is_one_line(slurm: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    slurm("#!/bin/bash\necho 'sbatch: error: invalid partition specified: day' >&2\nexit 1\n")
    assert sweep(*SGD, "seed=1,2", "hydra/launcher=fleet_slurm", "hydra.launcher.partition=day") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]  # submitit itself shows it first
    assert error == "burgersgd: error: hydra.launcher.cluster=slurm: sbatch: error: invalid partition specified: day"


# --------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fleet_ray", "num_cpus=0"], "hydra.launcher.num_cpus=0.0: must be > 0"),
        (["fleet_ray", "max_retries=-2"], "hydra.launcher.max_retries=-2: must be >= -1"),
        (["fleet_ray", "partition=day"], "hydra.launcher.partition: no such key"),
        (["fleet_slurm", "cluster=lsf"], "hydra.launcher.cluster=lsf: must be one of slurm, local"),
        (["fleet_slurm", "timeout_min=0"], "hydra.launcher.timeout_min=0: must be >= 1"),
        (["fleet_slurm", "cpus=many"], "hydra.launcher.cpus=many: must be of type integer"),
    ],
)  # fmt: skip
def test_settings_are_checked_before_anything_is_created(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher, setting = words
    assert sweep(*SGD, "seed=1,2", f"hydra/launcher={launcher}", f"hydra.launcher.{setting}") == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("launcher", "package"), [("fleet_ray", "ray"), ("fleet_slurm", "submitit")])
def test_a_missing_package_is_one_line(
    launcher: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert sweep(*SGD, "seed=1,2", f"hydra/launcher={launcher}") == 2
    extra = launcher.removeprefix("fleet_")
    needed = f"hydra/launcher={launcher}: needs the package {package} (pip install '.[{extra}]' in the checkout)"
    assert capsys.readouterr().err.strip() == f"burgersgd: error: {needed}"


def test_spread_gives_every_process_work() -> None:
    jobs = [Job(small_config(seed), Path(str(seed)), ()) for seed in range(9)]
    assert [len(chunk) for chunk in spread([jobs], 1)] == [9]
    assert [len(chunk) for chunk in spread([jobs], 4)] == [2, 2, 2, 3]
    assert [len(chunk) for chunk in spread([jobs[:6], jobs[6:]], 4)] == [2, 2, 2, 3]
    assert [len(chunk) for chunk in spread([jobs[:2], jobs[2:4]], 9)] == [1, 1, 1, 1]
    assert [len(chunk) for chunk in spread([jobs[:2], jobs[2:4]], 1)] == [2, 2]
    assert [job for chunk in spread([jobs[:6], jobs[6:]], 5) for job in chunk] == jobs
    assert spread([], 4) == []


def test_gpus_are_asked_for_where_a_job_says_cuda() -> None:
    from burgersgd.config import DeviceConfig

    chunks = [[Job(small_config(device=DeviceConfig(name=name)), Path(), ())] for name in ("cpu", "cuda")]
    assert cluster._gpus(None, chunks) == 1
    assert cluster._gpus(None, chunks[:1]) == 0
    assert cluster._gpus(0.5, chunks) == 0.5


class _OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_errors_come_back_from_another_process() -> None:
    kept = Outcome("failed", Path(), error=ConfigError("as it was"))
    assert sendable(kept) == kept
    odd = sendable(Outcome("failed", Path(), error=_OddError(1, 2))).error
    assert isinstance(odd, RuntimeError)
    assert str(odd) == "_OddError: 1 and 2"


def test_a_chunk_that_was_lost_is_submitted_again_and_every_chunk_comes_once() -> None:
    class Engine(ClusterLauncher):
        """Trains nothing: the first attempt at the second chunk is lost."""

        room = 2

        def __init__(self) -> None:
            self.submitted: list[list[Job]] = []

        def start(self, chunks: Any) -> None: ...

        def split(self, chunks: Any) -> list[list[Job]]:
            return [*chunks]

        def submit(self, chunks: Any) -> list[int]:
            before = len(self.submitted)
            self.submitted += chunks
            return [*range(before, len(self.submitted))]

        def ended(self, handles: Any) -> Any:
            assert 0 < len(handles) <= self.room
            return handles[:1]

        def outcomes(self, handle: int, chunk: list[Job]) -> list[Outcome] | None:
            assert self.submitted[handle] is chunk
            return None if handle == 1 else [Outcome("completed", job.folder) for job in chunk]

        def cancel(self, handles: Any) -> None:
            raise AssertionError

    chunks = [[Job(small_config(seed), Path(str(seed)), ())] for seed in range(3)]
    engine = Engine()
    ended = list(engine.train_chunks(chunks, SweepProgress(enabled=False)))
    assert [chunk[0].config.seed for chunk in engine.submitted] == [0, 1, 2, 1]
    assert [chunk[0].config.seed for chunk, _ in ended] == [0, 2, 1]
    assert all(outcome.folder == job.folder for chunk, (outcome,) in ended for job in chunk)


def test_a_task_works_where_the_command_does_if_that_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "of the command").mkdir()
    at: list[Path] = []
    monkeypatch.setattr("burgersgd.sweeps.chunks.train_chunk", lambda chunk: at.append(Path.cwd()) or [])
    assert cluster.ChunkTask(tmp_path / "missing")([]) == []
    assert cluster.ChunkTask(tmp_path / "of the command")([]) == []
    assert at == [tmp_path, tmp_path / "of the command"]


@pytest.mark.parametrize(("where", "waits"), [("local", 2), ("slurm", 0)])
def test_jobs_on_this_machine_are_waited_for_when_they_are_cancelled(
    where: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Saving:
        """A job that is over at the third look."""

        looks = 0
        cancelled = False

        def cancel(self, check: bool) -> None:
            self.cancelled = not check

        def done(self) -> bool:
            assert self.cancelled
            self.looks += 1
            return self.looks > 2

    slept: list[float] = []
    monkeypatch.setattr(cluster, "_need", lambda package, launcher: None)
    launcher, job = FleetSlurmLauncher(cluster=where), Saving()
    monkeypatch.setattr(cluster, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: 100.0))
    launcher.cancel([job])
    assert job.cancelled
    assert slept == [cluster.POLL_SECONDS] * waits


def test_what_a_chunk_reserves_by_default() -> None:
    ray, slurm = FleetRayConf(), FleetSlurmConf()
    assert (ray.num_cpus, ray.num_gpus, ray.max_retries, ray.address, ray.init) == (1.0, None, 3, None, {})
    assert (slurm.cluster, slurm.cpus, slurm.gpus, slurm.mem_gb) == ("slurm", 1, None, None)
    assert (slurm.timeout_min, slurm.max_timeouts, slurm.max_parallel, slurm.max_retries) == (60, 100, None, 3)
