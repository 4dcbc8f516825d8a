"""Divides the jobs of a sweep into fleets that fit the memory and are fast, and distributes them over processes.

The other runs of a fleet do not change a run, so only rounding depends on the choice (with the native engine, no bit).
The choice is stored in `plan.json` of the sweep's folder: repeating the command forms the same fleets and measures
nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from burgersgd import own_process
from burgersgd.build.prepared import Prepared, prepare
from burgersgd.config import ConfigError, SweepConfig, TrainConfig
from burgersgd.recording.files import read_bytes, replacing, to_json
from burgersgd.recording.naming import same_job
from burgersgd.recording.progress import SweepProgress
from burgersgd.recording.run_folder import RunFolderError
from burgersgd.recording.schema import Plan, checked, decoded
from burgersgd.sweeps import speeds
from burgersgd.sweeps.chunks import Chunk, Job, Outcome, chunks_of, group_name, train_chunk
from burgersgd.sweeps.workers import Pool

PLAN = "plan.json"
REPAID_SECONDS = 10.0
"""Training time of a sweep in this process below which workers, which start in two to three seconds, save no time."""
REPAID_FORKED_SECONDS = 3.0
"""The same for workers that are forked from a process which has imported PyTorch."""
MEASURE_FROM_SECONDS = 1.0
"""Training time of a group, estimated from the speed of a processor, below which its speed is not measured."""
LOOK_SECONDS = 0.1
"""Longest duration of one measurement, in seconds."""
LOOKS_SHARE = 0.03
"""Largest fraction of a group's training time that its measurements take."""
LOOKS = 5
"""Approximate number of measurements of a group."""
FLEET_SECONDS = 0.1
"""Time of a fleet in addition to its steps and the recording of its runs: preparation, 250 iterations of its loop."""
MEMORY_SHARE = 0.8
"""Fraction of the available memory that fleets may take."""
WORKER_BYTES = 500 << 20
"""Memory that a process takes before it trains, for PyTorch."""

_log = logging.getLogger("burgersgd")

Rates = dict[int, float]
"""Number of runs in a fleet -> gradient evaluations per second of one process."""


def rate_of(configs: Sequence[TrainConfig], seconds: float = LOOK_SECONDS, threads: int | None = None) -> float:
    """Return the gradient evaluations per second of a fleet, measured for `seconds`. Raises as prepare does."""
    prepared = prepare(configs, threads=threads)
    with prepared.torch_settings():
        fleet = prepared.fleet()
        fleet.advance(1)
        n, best, until = 1, 0.0, time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            n = min(n, fleet.budget)
            last = fleet.budget // fleet.points - -(-n // fleet.points)
            fleet.step = min(fleet.step, last)  # all steps take the same time
            fleet.advance(n)
            if fleet.x.device.type == "cuda":  # until here the steps may only be queued
                torch.cuda.synchronize(fleet.x.device)
            elapsed = time.perf_counter() - started
            best = max(best, n * fleet.n_runs / elapsed)  # the fastest interval, least disturbed by other programs
            if elapsed < seconds / 8:
                n *= 2
        return best


# ---------------------------------------------------------------------------------------------------------- memory


def available_memory(device: torch.device) -> int:
    """Return the number of bytes that are still available on a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch reuses it
        return torch.cuda.mem_get_info(device)[0] + unused
    limits = []
    with contextlib.suppress(OSError, ValueError):  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # a container: "max" is no number
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current"))
        limits.append(limit - used)
    if not limits:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # macOS
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(limits, default=1 << 62))


def run_bytes(prepared: Prepared) -> int:
    """Return the approximate number of bytes of one run of a fleet, measured by one eager step of a fleet of one."""
    one = dataclasses.replace(prepared, configs=prepared.configs[:1], engine="eager")
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fleet = one.fleet()
        fleet.advance(1)
    vectors = 6 + sum(value is not None for value in fleet.state)  # initial and best x, gradient, noise, result, spare
    activations = 0 if prepared.kind.gradient_in_c else 2 * kept
    return vectors * fleet.d * fleet.x.element_size() + activations


# ------------------------------------------------------------------------------------------------------------ plan


@dataclass
class Group:
    """Jobs that may share a fleet."""

    name: str
    jobs: Chunk
    new: Chunk
    """The jobs that were in no fleet before."""
    prepared: Prepared
    bytes_per_run: int
    seconds_per_run: float
    """Approximate training time of one run on one core."""

    def measurement_seconds(self, workers: int) -> float:
        """Return the longest duration of one measurement, in seconds."""
        whole = self.seconds_per_run * len(self.jobs) / max(1, workers)
        return min(LOOK_SECONDS, LOOKS_SHARE * whole / LOOKS)

    def largest_fleet(self, workers: int) -> int:
        """Return the number of runs of a fleet that fit the memory together with the fleets of the other workers."""
        device = self.prepared.problem.inputs.device
        free = MEMORY_SHARE * available_memory(device)
        if device.type == "cpu" and workers > 1:
            data = self.prepared.problem.inputs.nbytes
            free = free / workers - WORKER_BYTES - 2 * data
        return math.floor(free / max(1, self.bytes_per_run))


class PlanFile:
    """The contents of `plan.json` of a sweep: the fleets that were formed, and the measured speeds of fleets."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PLAN
        stored: dict[str, Any] = {}
        if self.path.exists():
            try:
                stored = checked(decoded(read_bytes(self.path), self.path), Plan, self.path)
            except RunFolderError as error:
                _log.warning("%s: planning the remaining jobs again", error)
        self.fleets: list[list[str]] = stored.get("fleets", [])
        """Hashes of the runs of each fleet that was formed, unless it contained all runs that could share it."""
        self.rates: dict[str, dict[str, float]] = stored.get("rates", {})
        """Hash of group, cores and workers -> runs in a fleet -> gradient evaluations per second of one process."""

    def save(self) -> None:
        """Write `plan.json`, unless it would be empty; an OSError is ignored."""
        if self.fleets or self.rates:
            with contextlib.suppress(OSError), replacing(self.path) as stream:
                stream.write(to_json({"fleets": self.fleets, "rates": self.rates}).encode())

    def measured(self, group: Group, workers: int, sizes: Sequence[int], measure: Measure) -> Rates:
        """Return the speeds of fleets of the given sizes, which increase, up to the first size that is much slower."""
        text = f"{group.name} {os.cpu_count()} {workers}"
        of_group = self.rates.setdefault(hashlib.sha256(text.encode()).hexdigest()[:12], {})
        key = speeds.key_of(group.prepared, workers)
        before = {runs: rate for runs, rate in speeds.stored_rates(key).items() if runs not in of_group}
        of_group |= {str(runs): before[str(runs)] for runs in sizes if str(runs) in before}
        rates: Rates = {}
        seconds = group.measurement_seconds(workers)
        new: dict[str, float] = {}
        for runs in sizes:
            if str(runs) not in of_group:
                configs = [job.config for job in group.jobs[:runs]]
                try:
                    rate = measure(configs, seconds)
                    if rate < 0.8 * max(rates.values(), default=0.0):  # another program may have run: repeat
                        rate = max(rate, measure(configs, seconds))
                    of_group[str(runs)] = new[str(runs)] = rate
                except (MemoryError, RuntimeError, ValueError) as error:  # training will report the error of each job
                    _log.debug("cannot measure a fleet of %d: %s", runs, error)
                    break
            rates[runs] = of_group[str(runs)]
            if rates[runs] < 0.8 * max(rates.values()):
                break
        if new:
            speeds.store_rates(key, new)
        return rates

    def by_earlier_fleets(self, jobs: Sequence[Job]) -> tuple[list[Chunk], list[Job]]:
        """Return the jobs by the fleets that were formed before, and the jobs that are in none of them."""
        fleet_of = {name: i for i, fleet in enumerate(self.fleets) for name in fleet}
        formed: dict[tuple[int, str], Chunk] = {}
        new = []
        for job in jobs:
            digits = same_job(job.folder.name)
            if digits in fleet_of:
                formed.setdefault((fleet_of[digits], group_name(job.config)), []).append(job)
            else:
                new.append(job)
        return list(formed.values()), new


Measure = Callable[[list[TrainConfig], float], float]
"""Function (runs of a fleet, seconds to measure) -> gradient evaluations per second of one process."""


def sizes_to_try(limit: int) -> list[int]:
    """Return the sizes of fleets to measure: 1, 4, 16, ... and limit."""
    return [4**k for k in range(16) if 4**k < limit] + [limit]


def best_size(rates: Rates, jobs: int, workers: int, budget: int) -> int:
    """Return the size of fleets for which all workers finish earliest, by estimate; within 5 % the largest one."""

    def seconds(runs: int) -> float:
        chunks = -(-jobs // runs)
        return -(-chunks // workers) * (FLEET_SECONDS + jobs / chunks * budget / rates[runs])

    least = min(map(seconds, rates))
    return max(runs for runs in rates if seconds(runs) <= 1.05 * least)


class LocalTrainer:
    """Trains jobs on this machine: in this process or, where that is faster, in workers, which run until `close`."""

    def __init__(self, settings: SweepConfig) -> None:
        self.settings = settings
        self.pool: Pool | None = None

    def train(self, chunks: Sequence[Chunk], progress: SweepProgress) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """Yield all jobs with their outcomes, in chunks that it forms. Raises Interrupted after every run is saved."""
        jobs = [job for chunk in chunks for job in chunk]
        if not jobs:
            return
        plan_file = PlanFile(jobs[0].folder.parent)
        planned, new = plan_file.by_earlier_fleets(jobs)
        groups, unprepared = self._groups(plan_file, jobs, {id(job) for job in new})
        planned += unprepared
        fits = []
        for group in groups:
            if group.largest_fleet(workers=1) >= 1:
                fits.append(group)
                continue
            of_group = {id(job) for job in group.jobs}
            planned = [chunk for chunk in planned if id(chunk[0]) not in of_group]
            yield group.jobs, [Outcome("failed", job.folder, error=_too_large(group)) for job in group.jobs]
        if hint := gpu_hint(fits):
            _log.warning(hint)
        workers = self._start_workers(fits)
        for group in fits:
            cut = self._cut(plan_file, group, workers, alone=len(fits) < 2 * workers)
            planned += cut
            if len(cut) > 1 or workers > 1:  # a later command could divide this group in another way
                plan_file.fleets += [[same_job(job.folder.name) for job in chunk] for chunk in cut]
        plan_file.save()
        if self.settings.max_runs is not None:
            planned = [part for chunk in planned for part in chunks_of(chunk, self.settings.max_runs)]
        _log.info("jobs: %d; fleets: %d; processes: %d", sum(map(len, planned)), len(planned), workers)
        if workers == 1 or self.pool is None:
            yield from ((chunk, train_chunk(chunk, progress)) for chunk in planned)
            return
        seconds = {id(job): group.seconds_per_run for group in fits for job in group.jobs}
        planned.sort(key=lambda chunk: -sum(seconds.get(id(job), 0.0) for job in chunk))  # the longest first
        yield from self.pool.train(planned, progress)

    def close(self) -> None:
        """End the workers."""
        if self.pool is not None:
            self.pool.close()
            self.pool = None

    def _groups(self, plan_file: PlanFile, jobs: Sequence[Job], new: set[int]) -> tuple[list[Group], list[Chunk]]:
        """Return the groups, and chunks of jobs that cannot be prepared, whose errors training will report."""
        groups, unprepared = [], []
        for chunk in chunks_of(jobs, None):
            configs = [job.config for job in chunk]
            try:
                prepared = prepare(configs)
                size = _run_bytes_if_they_matter(prepared)
            except Exception:
                unprepared.append([job for job in chunk if id(job) in new])
                continue
            # a rough estimate for one core
            seconds = prepared.budget * (15e-6 + 6 * prepared.problem.d * prepared.batch_size / 200e9)
            group = Group(
                group_name(configs[0]), chunk, [job for job in chunk if id(job) in new], prepared, size, seconds
            )
            decided = self.settings.workers is not None and self.settings.max_runs is not None
            if len(jobs) > 1 and not decided and seconds * len(chunk) > MEASURE_FROM_SECONDS:
                runs = max(1, min(16, len(chunk), group.largest_fleet(workers=1)))
                measure = functools.partial(_rate_of, threads=1)
                for rate in plan_file.measured(group, 0, [runs], measure).values():
                    group.seconds_per_run = prepared.budget / rate
            groups.append(group)
        return groups, [chunk for chunk in unprepared if chunk]

    def _start_workers(self, groups: Sequence[Group]) -> int:
        """Return the number of processes to train in, 1 for this one alone; start the workers if it is larger."""
        n_jobs = sum(len(group.jobs) for group in groups)
        if n_jobs < 2:
            return 1
        config, device = groups[0].prepared.configs[0], groups[0].prepared.problem.inputs.device
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        room = max(1, cores // (config.device.threads or 1)) if device.type == "cpu" else 1
        if device.type == "cuda" and config.device.index == 0:
            room = torch.cuda.device_count()
        workers = min(n_jobs, self.settings.workers or room)
        if self.settings.workers is None and not _takes_long(groups):
            workers = 1
        if workers > 1 and (self.pool is None or self.pool.n != workers):
            self.close()
            self.pool = Pool(workers, max(1, cores // workers), gpus=device.type == "cuda")
        return workers

    def _cut(self, plan_file: PlanFile, group: Group, workers: int, alone: bool) -> list[Chunk]:
        """Return the new jobs of a group as fleets. alone: other groups are too few to keep all workers busy."""
        if not group.new:
            return []
        limit = min(len(group.new), max(1, group.largest_fleet(workers)))
        if alone:
            limit = min(limit, -(-len(group.new) // workers))
        if self.settings.max_runs is not None:
            return chunks_of(group.new, min(limit, self.settings.max_runs))
        if not group.prepared.kind.compiles and _takes_long([group]):
            measure = _rate_of if workers == 1 or self.pool is None else self.pool.measure
            if rates := plan_file.measured(group, workers, sizes_to_try(limit), measure):
                limit = best_size(rates, len(group.new), workers, group.prepared.budget)
        return chunks_of(group.new, limit)


def _rate_of(configs: Sequence[TrainConfig], seconds: float, threads: int | None = None) -> float:
    return rate_of(configs, seconds, threads=threads)  # called by its name, which tests replace


def gpu_hint(groups: Sequence[Group]) -> str | None:
    """Return a hint where device=auto chose the CPU for small runs that a GPU would train faster together."""
    several = [g for g in groups if g.prepared.configs[0].device.name == "auto"]
    work = sum(len(g.jobs) * g.prepared.gpu_work for g in several)
    on_cpu = any(g.prepared.problem.inputs.device.type == "cpu" for g in several)
    if not on_cpu or not torch.cuda.is_available() or work < 4:
        return None
    return f"device=cuda would train these {sum(len(g.jobs) for g in several)} runs together on the GPU"


def _takes_long(groups: Sequence[Group]) -> bool:
    """Whether training takes so long that measurements and workers save time."""
    least = REPAID_FORKED_SECONDS if own_process.start_method() == "forkserver" else REPAID_SECONDS
    return sum(group.seconds_per_run * len(group.jobs) for group in groups) > least


def _run_bytes_if_they_matter(prepared: Prepared) -> int:
    """Return run_bytes, or 0 where all runs together certainly fit the memory."""
    problem = prepared.problem
    numbers = 32 * problem.d + 1000 * prepared.batch_size
    if len(prepared.configs) * 8 * numbers < available_memory(problem.inputs.device) / 10:
        return 0
    return run_bytes(prepared)


def _too_large(group: Group) -> ConfigError:
    needed, free = group.bytes_per_run / 1e9, available_memory(group.prepared.problem.inputs.device) / 1e9
    return ConfigError(
        f"one run needs about {needed:.2g} GB of memory, {free:.2g} are free; try a smaller model or trainer.batch_size"
    )
