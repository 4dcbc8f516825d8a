"""hydra/launcher=fleet_ray and fleet_slurm: the chunks of a sweep trained in processes of Ray or SLURM.

What a chunk is, how it goes on after its process was lost, and that no run is trained twice, is as in this process;
here is only how chunks get there and outcomes back. docs/cluster.md says how to use it.

Hydra imports this module at every start (through hydra_plugins/burgersgd.py): what takes long is imported in functions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.config_store import ConfigStore

from burgersgd.config import ConfigError, Group, opt
from burgersgd.interruption import Interrupted, interruptible
from burgersgd.sweeps.launcher import FleetLauncher

if TYPE_CHECKING:
    from burgersgd.recording.progress import SweepProgress
    from burgersgd.sweeps.chunks import Chunk, Outcome

POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
"""How long the command waits for processes that were told to stop; SLURM's are not waited for."""
ARRAY_SIZE = 1000
"""Most tasks of a job array: SLURM's own limit, MaxArraySize, is 1001 where it was not changed."""


@dataclass
class FleetRayConf(Group):
    """hydra/launcher=fleet_ray."""

    group: ClassVar[str] = "hydra.launcher"
    _target_: str = "hydra_plugins.burgersgd.FleetRayLauncher"
    _convert_: str = "all"
    address: str | None = None
    """Of a cluster; null: RAY_ADDRESS, else a Ray that runs on this machine, else one that is started for the sweep."""
    num_cpus: float = opt(1.0, above=0)
    """Of a chunk."""
    num_gpus: float | None = opt(None, at_least=0)
    """Of a chunk; null: 1 with device=cuda, else none."""
    max_retries: int = opt(3, at_least=-1)
    """How often a chunk whose process was lost goes on in another one; -1: without end."""
    init: dict[str, Any] = field(default_factory=dict)
    """More arguments of ray.init."""


@dataclass
class FleetSlurmConf(Group):
    """hydra/launcher=fleet_slurm."""

    group: ClassVar[str] = "hydra.launcher"
    _target_: str = "hydra_plugins.burgersgd.FleetSlurmLauncher"
    _convert_: str = "all"
    cluster: str = opt("slurm", choices=("slurm", "local"))
    """local: in processes on this machine, to try things out."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus: int = opt(1, at_least=1)
    """Of a chunk, as gpus and mem_gb are."""
    gpus: int | None = opt(None, at_least=0)
    """null: 1 with device=cuda, else none."""
    mem_gb: float | None = opt(None, above=0)
    timeout_min: int = opt(60, at_least=1)
    """Time limit of a job, not of a chunk: shortly before, the chunk is saved and its job queued again."""
    max_timeouts: int = opt(100, at_least=0)
    """How often that may happen to a job; being preempted does not count."""
    max_parallel: int | None = opt(None, at_least=1)
    """Most jobs at a time; null: as many as the cluster gives (local: as there are cores)."""
    max_retries: int = opt(3, at_least=0)
    """How often a chunk whose job was lost (killed, out of memory) goes on in another one."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """More parameters of submitit's SlurmExecutor: constraint, setup, signal_delay_s, ..."""


ConfigStore.instance().store(group="hydra/launcher", name="fleet_ray", node=FleetRayConf, provider="burgersgd")
ConfigStore.instance().store(group="hydra/launcher", name="fleet_slurm", node=FleetSlurmConf, provider="burgersgd")


class ClusterError(ValueError):
    """A chunk that was lost for good."""


@dataclass(frozen=True)
class ChunkTask:
    """What runs in a process elsewhere: called with a chunk it returns the outcomes."""

    folder: Path
    """The working directory of the command, to which paths such as dataset.root refer."""

    def __call__(self, chunk: Chunk) -> list[Outcome]:
        """Train the chunk. A signal saves it, and then does what Ray or submitit would have done at once.

        That is to end or requeue the process; at the SIGTERM of a SLURM preemption, to go on until the end is near.
        """
        from burgersgd.sweeps.chunks import train_chunk
        from burgersgd.sweeps.workers import sendable

        with contextlib.suppress(OSError):  # of a machine without that folder
            os.chdir(self.folder)
        while True:
            try:
                return [sendable(outcome) for outcome in train_chunk(chunk)]
            except Interrupted as interrupted:
                handler = signal.getsignal(interrupted.signal)
                if not callable(handler):
                    raise
                handler(interrupted.signal, None)

    def checkpoint(self, chunk: Chunk) -> Any:
        """Return what a requeued job of submitit runs: the same, since the run folders know how far it is."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, chunk)


class ClusterLauncher(FleetLauncher):
    """Trains chunks in processes of an engine that is told by `submit`, `ended`, `outcomes` and `cancel`."""

    def train_chunks(self, chunks: Sequence[Chunk], progress: SweepProgress) -> Iterable[tuple[Chunk, list[Outcome]]]:
        """Yield every chunk, or parts of it that are trained beside one another, with its outcomes."""
        with interruptible() as interruption, interruption.deferred():
            running: dict[Any, Chunk] = {}
            try:
                self.start(chunks)
                waiting = self.split(chunks)
                while waiting or running:
                    batch = waiting[: self.room - len(running)]
                    if batch:
                        running |= zip(self.submit(batch), batch, strict=True)
                        del waiting[: len(batch)]
                    for handle in self.ended(list(running)):
                        chunk = running.pop(handle)
                        outcomes = self.outcomes(handle, chunk)
                        if outcomes is None:
                            waiting.append(chunk)
                        else:
                            yield chunk, outcomes
                    interruption.raise_if_requested()
            except BaseException as error:
                from burgersgd.recording.run_folder import begun

                interruption.settle()
                self.cancel(list(running))
                if isinstance(error, Interrupted):
                    error.folders = [job.folder for chunk in running.values() for job in chunk if begun(job.folder)]
                raise

    room = ARRAY_SIZE
    """Most chunks that are submitted and not over."""

    @abstractmethod
    def start(self, chunks: Sequence[Chunk]) -> None:
        """Get ready for chunks. Raises ConfigError where that fails."""

    @abstractmethod
    def split(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return the chunks in so many parts that no process is idle."""

    @abstractmethod
    def submit(self, chunks: Sequence[Chunk]) -> Sequence[Any]:
        """Start chunks and return a hashable handle of each."""

    @abstractmethod
    def ended(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Return those that are over, after a moment's wait where none is."""

    @abstractmethod
    def outcomes(self, handle: Any, chunk: Chunk) -> list[Outcome] | None:
        """Return how the jobs of a chunk ended that is over; None where it was lost and should be started again."""

    @abstractmethod
    def cancel(self, handles: Sequence[Any]) -> None:
        """Stop chunks, which save what they have."""


class FleetRayLauncher(ClusterLauncher):
    """Trains every chunk as a task of Ray. Raises ConfigError for a setting out of range, or without Ray."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = FleetRayConf(**settings)
        self._started = False
        _need("ray", "fleet_ray")

    def start(self, chunks: Sequence[Chunk]) -> None:
        """Connect to Ray, or start it, unless that is done already."""
        import ray

        self._gpus = _gpus(self.settings.num_gpus, chunks)
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
            before = signal.getsignal(signal.SIGTERM)
            try:
                _check_reachable(self.settings.address)
                ray.init(**{"address": self.settings.address, **quiet, **self.settings.init})
            except Exception as error:
                raise self.settings.error("address", _first_line(error)) from error
            finally:
                if signal.getsignal(signal.SIGTERM) is not before:  # Ray's own would end this process at once
                    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            self._started = True
        if not self._slots() and self._started and self.settings.address is None:
            wanted = f"{self.settings.num_cpus:g} CPUs and {self._gpus:g} GPUs"
            raise self.settings.error("num_gpus", f"a chunk needs {wanted}, which this machine lacks")

    def _slots(self) -> int:
        """Return how many chunks the cluster, as it is now, trains at the same time."""
        import ray

        there = ray.cluster_resources()
        wanted = {"CPU": self.settings.num_cpus, "GPU": self._gpus}
        return int(min(there.get(name, 0) / n for name, n in wanted.items() if n))

    def split(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return at least as many chunks as the cluster trains at the same time, if there are as many runs."""
        from burgersgd.sweeps.chunks import spread

        return spread(chunks, self._slots())

    def submit(self, chunks: Sequence[Chunk]) -> Sequence[Any]:
        """Start a task for every chunk."""
        import ray

        options = {"num_cpus": self.settings.num_cpus, "num_gpus": self._gpus, "max_retries": self.settings.max_retries}
        train = ray.remote(_call).options(name="burgersgd", **options)
        task = ChunkTask(Path.cwd())
        return [train.remote(task, chunk) for chunk in chunks]

    def ended(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Return the tasks that are over, after a moment's wait where none is."""
        import ray

        return ray.wait(list(handles), num_returns=1, timeout=POLL_SECONDS)[0]

    def outcomes(self, handle: Any, chunk: Chunk) -> list[Outcome]:
        """Return how the jobs ended; Ray itself has started a chunk again whose process was lost."""
        import ray

        try:
            return ray.get(handle)
        except ray.exceptions.RayError as error:  # pyright: ignore[reportAttributeAccessIssue]
            cause = getattr(error, "cause", None) or error
            return _failed(chunk, f"lost on Ray: {type(cause).__name__}: {_first_line(cause)}")

    def cancel(self, handles: Sequence[Any]) -> None:
        """Raise SIGINT's handler in the tasks and wait for them."""
        if handles:
            import ray

            for handle in handles:
                ray.cancel(handle)
            ray.wait(list(handles), num_returns=len(handles), timeout=STOP_SECONDS)

    def close(self) -> None:
        """Disconnect from Ray, and end it, if this launcher has connected or started it."""
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


def _check_reachable(address: str | None) -> None:
    """Raise OSError where nothing answers at HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _call(task: ChunkTask, chunk: Chunk) -> list[Outcome]:
    return task(chunk)


class FleetSlurmLauncher(ClusterLauncher):
    """Trains every chunk as a task of a SLURM job array. Raises ConfigError as FleetRayLauncher, without submitit."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = FleetSlurmConf(**settings)
        self._lost: dict[Path, int] = {}
        """How often a chunk was lost, by the folder of its first job."""
        if self.settings.cluster == "local":
            self.room = self.settings.max_parallel or max(1, (os.cpu_count() or 1) // self.settings.cpus)
        _need("submitit", "fleet_slurm")

    def start(self, chunks: Sequence[Chunk]) -> None:
        """Tell submitit what a job needs."""
        if not chunks:
            return
        import submitit

        s = self.settings
        specific = {"partition": s.partition, "account": s.account, "qos": s.qos, "array_parallelism": s.max_parallel}
        try:
            self._executor = submitit.AutoExecutor(
                chunks[0][0].folder.parent / ".submitit",
                cluster=s.cluster,
                slurm_max_num_timeout=s.max_timeouts,
                local_max_num_timeout=s.max_timeouts,
            )
            self._executor.update_parameters(
                name="burgersgd",
                timeout_min=s.timeout_min,
                cpus_per_task=s.cpus,
                gpus_per_node=int(_gpus(s.gpus, chunks)) or None,
                mem_gb=s.mem_gb,
                **{f"slurm_{name}": value for name, value in {**specific, **s.slurm}.items()},
            )
        except Exception as error:
            raise s.error("cluster", _first_line(error)) from error

    def split(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return max_parallel chunks or more, if there are as many runs; how many the queue lets run, nobody knows."""
        from burgersgd.sweeps.chunks import spread

        return spread(chunks, self.settings.max_parallel or (self.room if self.settings.cluster == "local" else 1))

    def submit(self, chunks: Sequence[Chunk]) -> Sequence[Any]:
        """Submit a job array, a task for every chunk."""
        try:
            return self._executor.map_array(ChunkTask(Path.cwd()), chunks)
        except Exception as error:  # what sbatch complains about
            raise self.settings.error("cluster", _first_line(error)) from error

    def ended(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Return the jobs that are over, after a moment's wait where none is."""
        over = [job for job in handles if job.done()]
        if not over:
            time.sleep(POLL_SECONDS)
        return over

    def outcomes(self, handle: Any, chunk: Chunk) -> list[Outcome] | None:
        """Return how the jobs ended, or None where the process was killed and may be started again."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return handle.result()
        except FailedJobError:
            how = "failed"
        except UncompletedJobError:
            how = "was lost"
            lost = self._lost[chunk[0].folder] = self._lost.get(chunk[0].folder, 0) + 1
            if lost <= self.settings.max_retries:
                return None
        return _failed(chunk, f"job {handle.job_id} {how}, its log is {handle.paths.stderr}")

    def cancel(self, handles: Sequence[Any]) -> None:
        """Cancel the jobs: SLURM sends SIGTERM, at which they save, and half a minute later SIGKILL."""
        for job in handles:
            job.cancel(check=False)
        until = time.monotonic() + STOP_SECONDS
        while self.settings.cluster == "local" and time.monotonic() < until and not all(job.done() for job in handles):
            time.sleep(POLL_SECONDS)


def _need(package: str, launcher: str) -> None:
    if importlib.util.find_spec(package) is None:
        extra = launcher.removeprefix("fleet_")
        raise ConfigError(
            f"hydra/launcher={launcher}: needs the package {package}: pip install '.[{extra}]' in the checkout"
        )


def _gpus(asked: float | None, chunks: Sequence[Chunk]) -> float:
    """Return the GPUs of a chunk: what is asked for, else 1 where a job says device=cuda."""
    return float(any(chunk[0].config.device.name == "cuda" for chunk in chunks)) if asked is None else asked


def _failed(chunk: Chunk, reason: str) -> list[Outcome]:
    """Return how the jobs of a chunk ended whose process did not come back: what was over before, is."""
    from burgersgd.sweeps.chunks import Outcome, stored

    return [stored(job.folder) or Outcome("failed", job.folder, error=ClusterError(reason)) for job in chunk]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
