"""hydra/launcher=fleet_ray and fleet_slurm: train the chunks of a sweep in processes of Ray or SLURM.

Chunks, their resumption after a process was lost and the claims that keep a run from being trained twice are the same
as in this process; this module only sends chunks to other processes and collects their outcomes. docs/cluster.md
explains its use.

Hydra imports this module at every start (through hydra_plugins/burgersgd.py), so slow imports are inside functions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import socket
import time
import warnings
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
"""Longest time that the command waits for processes that it asked to stop; it does not wait for those of SLURM."""
ARRAY_SIZE = 1000
"""Largest number of tasks of a job array: the default of SLURM's limit MaxArraySize is 1001."""


@dataclass
class FleetRayConf(Group):
    """The settings of hydra/launcher=fleet_ray."""

    group: ClassVar[str] = "hydra.launcher"
    _target_: str = "hydra_plugins.burgersgd.FleetRayLauncher"
    _convert_: str = "all"
    address: str | None = None
    """Address of a cluster; null: RAY_ADDRESS, else a Ray that runs on this machine, else one started for the sweep."""
    num_cpus: float = opt(1.0, above=0)
    """CPUs that a chunk reserves."""
    num_gpus: float | None = opt(None, at_least=0)
    """GPUs that a chunk reserves; null: 1 with device=cuda, else none."""
    max_retries: int = opt(3, at_least=-1)
    """How often a chunk whose process was lost is resumed in another one; -1: without limit."""
    init: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ray.init."""


@dataclass
class FleetSlurmConf(Group):
    """The settings of hydra/launcher=fleet_slurm."""

    group: ClassVar[str] = "hydra.launcher"
    _target_: str = "hydra_plugins.burgersgd.FleetSlurmLauncher"
    _convert_: str = "all"
    cluster: str = opt("slurm", choices=("slurm", "local"))
    """slurm: as SLURM jobs; local: in processes on this machine, for trying it out."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus: int = opt(1, at_least=1)
    """CPUs that a chunk reserves; gpus and mem_gb are per chunk, too."""
    gpus: int | None = opt(None, at_least=0)
    """GPUs that a chunk reserves; null: 1 with device=cuda, else none."""
    mem_gb: float | None = opt(None, above=0)
    timeout_min: int = opt(60, at_least=1)
    """Time limit of a job, not of a chunk: shortly before it, the chunk is saved and its job is queued again."""
    max_timeouts: int = opt(100, at_least=0)
    """How often a job may reach its time limit; preemptions are not counted."""
    max_parallel: int | None = opt(None, at_least=1)
    """Largest number of jobs at a time; null: as many as the cluster admits (local: one per core)."""
    max_retries: int = opt(3, at_least=0)
    """How often a chunk whose job was lost (killed, out of memory) is resumed in another one."""
    slurm: dict[str, Any] = field(default_factory=dict)
    """Further parameters of submitit's SlurmExecutor: constraint, setup, signal_delay_s, ..."""


ConfigStore.instance().store(group="hydra/launcher", name="fleet_ray", node=FleetRayConf, provider="burgersgd")
ConfigStore.instance().store(group="hydra/launcher", name="fleet_slurm", node=FleetSlurmConf, provider="burgersgd")


class ClusterError(ValueError):
    """A chunk was lost and is not started again."""


@dataclass(frozen=True)
class ChunkTask:
    """The function that runs in another process: called with a chunk, it returns the outcomes of its jobs."""

    folder: Path
    """The working directory of the command, to which paths such as dataset.root refer."""

    def __call__(self, chunk: Chunk) -> list[Outcome]:
        """Train the chunk. At a signal, save the runs and then call the handler that Ray or submitit installed.

        That handler ends or requeues the process; at the SIGTERM of a SLURM preemption it lets training continue.
        """
        from burgersgd.sweeps.chunks import train_chunk
        from burgersgd.sweeps.workers import sendable

        with contextlib.suppress(OSError):  # this machine may lack the folder
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
        """Return the task of a requeued submitit job: the same chunk, since the run folders hold its progress."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, chunk)


class ClusterLauncher(FleetLauncher):
    """Trains chunks in processes of a cluster, to which `submit`, `ended`, `outcomes` and `cancel` connect."""

    def train_chunks(self, chunks: Sequence[Chunk], progress: SweepProgress) -> Iterable[tuple[Chunk, list[Outcome]]]:
        """Yield every chunk, or each of the parts into which it was split, with its outcomes."""
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
                from burgersgd.recording.run_folder import has_contents

                interruption.step_ended()
                self.cancel(list(running))
                if isinstance(error, Interrupted):
                    jobs = [job for chunk in running.values() for job in chunk]
                    error.folders = [job.folder for job in jobs if has_contents(job.folder)]
                raise

    room = ARRAY_SIZE
    """Largest number of chunks that are submitted and have not ended."""

    @abstractmethod
    def start(self, chunks: Sequence[Chunk]) -> None:
        """Connect to the cluster. Raises ConfigError where that fails."""

    @abstractmethod
    def split(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return the chunks, split into enough parts to keep all processes busy."""

    @abstractmethod
    def submit(self, chunks: Sequence[Chunk]) -> Sequence[Any]:
        """Start chunks and return a hashable handle for each of them."""

    @abstractmethod
    def ended(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Return the handles of the chunks that have ended, after a short wait where none has."""

    @abstractmethod
    def outcomes(self, handle: Any, chunk: Chunk) -> list[Outcome] | None:
        """Return the outcomes of a chunk that has ended; None where it was lost and is to be started again."""

    @abstractmethod
    def cancel(self, handles: Sequence[Any]) -> None:
        """Stop chunks, which save their runs first."""


class FleetRayLauncher(ClusterLauncher):
    """Trains every chunk as a task of Ray. Raises ConfigError for a setting out of range, or without Ray."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = FleetRayConf(**settings)
        self._started = False
        _need("ray", "fleet_ray")

    def start(self, chunks: Sequence[Chunk]) -> None:
        """Connect to Ray or start it, unless this was done before."""
        import ray

        self._gpus = _gpus(self.settings.num_gpus, chunks)
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
            before = signal.getsignal(signal.SIGTERM)
            try:
                _check_reachable(self.settings.address)
                with warnings.catch_warnings():  # of some versions, on GPUs that a task has not reserved
                    warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
                    ray.init(**{"address": self.settings.address, **quiet, **self.settings.init})
            except Exception as error:
                raise self.settings.error("address", _first_line(error)) from error
            finally:
                if signal.getsignal(signal.SIGTERM) is not before:  # Ray's handler would end this process at once
                    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            self._started = True
        if not self._slots() and self._started and self.settings.address is None:
            wanted = f"{self.settings.num_cpus:g} CPUs and {self._gpus:g} GPUs"
            raise self.settings.error("num_gpus", f"this machine does not have the {wanted} that a chunk needs")

    def _slots(self) -> int:
        """Return the number of chunks that the cluster, with its present nodes, trains at the same time."""
        import ray

        available = ray.cluster_resources()
        wanted = {"CPU": self.settings.num_cpus, "GPU": self._gpus}
        return int(min(available.get(name, 0) / n for name, n in wanted.items() if n))

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
        """Return the tasks that have ended, after a short wait where none has."""
        import ray

        return ray.wait(list(handles), num_returns=1, timeout=POLL_SECONDS)[0]

    def outcomes(self, handle: Any, chunk: Chunk) -> list[Outcome]:
        """Return the outcomes of the jobs; Ray itself restarts a chunk when its process was lost."""
        import ray

        try:
            return ray.get(handle)
        except ray.exceptions.RayError as error:  # pyright: ignore[reportAttributeAccessIssue]
            cause = getattr(error, "cause", None) or error
            return _failed(chunk, f"lost on Ray: {type(cause).__name__}: {_first_line(cause)}")

    def cancel(self, handles: Sequence[Any]) -> None:
        """Interrupt the tasks as SIGINT does and wait for them."""
        if handles:
            import ray

            for handle in handles:
                ray.cancel(handle)
            ray.wait(list(handles), num_returns=len(handles), timeout=STOP_SECONDS)

    def close(self) -> None:
        """Disconnect from Ray, and stop it, where this launcher has connected to it or started it."""
        if self._started:
            import ray

            ray.shutdown()
            self._started = False


def _check_reachable(address: str | None) -> None:
    """Raise OSError where no process listens at HOST:PORT; Ray itself would retry for many minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _call(task: ChunkTask, chunk: Chunk) -> list[Outcome]:
    return task(chunk)


class FleetSlurmLauncher(ClusterLauncher):
    """Trains every chunk as a task of a SLURM job array.

    Raises ConfigError for a setting out of range, or without submitit.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = FleetSlurmConf(**settings)
        self._lost: dict[Path, int] = {}
        """How many times a chunk was lost, by the folder of its first job."""
        if self.settings.cluster == "local":
            self.room = self.settings.max_parallel or max(1, (os.cpu_count() or 1) // self.settings.cpus)
        _need("submitit", "fleet_slurm")

    def start(self, chunks: Sequence[Chunk]) -> None:
        """Configure submitit with the resources of a job."""
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
        """Return at least max_parallel chunks, if there are as many runs; the capacity of SLURM is not known."""
        from burgersgd.sweeps.chunks import spread

        return spread(chunks, self.settings.max_parallel or (self.room if self.settings.cluster == "local" else 1))

    def submit(self, chunks: Sequence[Chunk]) -> Sequence[Any]:
        """Submit a job array, a task for every chunk."""
        try:
            return self._executor.map_array(ChunkTask(Path.cwd()), chunks)
        except Exception as error:  # an error of sbatch
            raise self.settings.error("cluster", _first_line(error)) from error

    def ended(self, handles: Sequence[Any]) -> Sequence[Any]:
        """Return the jobs that have ended, after a short wait where none has."""
        ended = [job for job in handles if job.done()]
        if not ended:
            time.sleep(POLL_SECONDS)
        return ended

    def outcomes(self, handle: Any, chunk: Chunk) -> list[Outcome] | None:
        """Return the outcomes of the jobs, or None where the process was killed and is to be started again."""
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
        return _failed(chunk, f"job {handle.job_id} {how}; see its log {handle.paths.stderr}")

    def cancel(self, handles: Sequence[Any]) -> None:
        """Cancel the jobs: SLURM sends SIGTERM, at which they save their runs, and half a minute later SIGKILL."""
        for job in handles:
            job.cancel(check=False)
        until = time.monotonic() + STOP_SECONDS
        while self.settings.cluster == "local" and time.monotonic() < until and not all(job.done() for job in handles):
            time.sleep(POLL_SECONDS)


def _need(package: str, launcher: str) -> None:
    if importlib.util.find_spec(package) is None:
        extra = launcher.removeprefix("fleet_")
        raise ConfigError(
            f"hydra/launcher={launcher}: needs the package {package} (pip install '.[{extra}]' in the checkout)"
        )


def _gpus(asked: float | None, chunks: Sequence[Chunk]) -> float:
    """Return the number of GPUs for a chunk: the given one; if None, 1 where a job has device=cuda, else 0."""
    return float(any(chunk[0].config.device.name == "cuda" for chunk in chunks)) if asked is None else asked


def _failed(chunk: Chunk, reason: str) -> list[Outcome]:
    """Return the outcomes of a chunk whose process was lost: recorded ones for jobs that had ended, else failures."""
    from burgersgd.sweeps.chunks import Outcome, recorded_outcome

    return [recorded_outcome(job.folder) or Outcome("failed", job.folder, error=ClusterError(reason)) for job in chunk]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
