"""Measure sweeps and print the Markdown tables of docs/benchmarks.md, Sweeps: `python scripts/bench_sweep.py --quick`.

Sections: compose (ms per job before anything is trained), fleets (a gradient evaluation of R runs together, nothing
recorded, one thread), sweeps (the launcher's own way of training jobs, everything recorded, against the same jobs one
after the other and under joblib), profile (the share of CPU time that is preparing and recording), command (whole
`burgersgd train --multirun`, beside the time of their arithmetic). Rivals take turns, round by round; ratios are
computed per round. Tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from bench_rivals import INNER_STEPS, WORKLOADS, Burgers, JaxEntropySgd, Rival, TorchSgd, Workload, loaded_batches
from benchmark import Times, print_header, print_table, say, speed_ratio, take_turns
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from burgersgd.config import CONF_DIR, DeviceConfig, LocalEntropyConfig, NpzConfig, SweepConfig
from burgersgd.recording.progress import SweepProgress
from burgersgd.sweeps.chunks import Job, train_chunk
from burgersgd.sweeps.planning import LocalTrainer
from burgersgd.sweeps.sweep import Sweep
from burgersgd.training.evaluation import Evaluator
from burgersgd.training.fleet import Fleet

SECTIONS = ("compose", "fleets", "sweeps", "profile", "command")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
P1 = "P1 torch SGD, DataLoader"
OURS, IN_TURN, JOBLIB = "burgersgd --multirun", "one after the other", "joblib"


def main() -> None:
    options = parse()
    if options.steps_only:
        take_steps(*options.steps_only)
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    torch.set_num_threads(1)
    print_header(options)
    if "compose" in options.sections:
        print_composition(200 if options.quick else 1000)
    for name in options.workloads:
        work = dataclasses.replace(WORKLOADS[name], jax_steps=5 * INNER_STEPS)
        if "fleets" in options.sections:
            print_fleets(options, work)
        if "sweeps" in options.sections:
            print_sweeps(options, work)
        if "profile" in options.sections and not work.mnist_shaped:
            print_profile(options, work)
    if "command" in options.sections:
        print_commands(3 if options.quick else options.rounds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="w1,w2,w3", help="workloads to measure, among w1,w2,w3")
    parser.add_argument("--runs", default="1,4,16,64,256", help="sizes of fleets; w3 is measured only up to 16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="duration of a measurement, which is at least one sweep"
    )
    parser.add_argument(
        "--sections", default=",".join(SECTIONS), help="sections to measure, among " + ",".join(SECTIONS)
    )
    parser.add_argument("--quick", action="store_true", help="w1 and w3, 3 rounds of 0.3 s, fleets of 1, 16 and 64")
    parser.add_argument("--steps-only", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.workloads, options.rounds, options.seconds, options.runs = "w1,w3", 3, 0.3, "1,16,64"
    for key in ("workloads", "sections", "runs"):
        setattr(options, key, getattr(options, key).split(","))
    options.runs = [int(runs) for runs in options.runs]
    return options


# --------------------------------------------------------------------------------------------------------- composing


def print_composition(n: int) -> None:
    words = ["optimizer=sgd,local_entropy,adamw,langevin", "optimizer.lr=0.1,0.2,0.3,0.4,0.5", f"seed=range({n // 20})"]
    start, cpu = time.perf_counter(), time.process_time()
    jobs = Sweep(words).jobs
    ours, cpu = (
        1e3 * (now - then) / len(jobs) for now, then in ((time.perf_counter(), start), (time.process_time(), cpu))
    )
    few = jobs[:: len(jobs) // 20]
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        start = time.perf_counter()
        for job in few:
            OmegaConf.to_object(compose("train", overrides=job))
        hydras = 1e3 * (time.perf_counter() - start) / len(few)
    print(f"- {len(jobs)} jobs of 4 optimizers, composed, checked and named: {ours:.2f} ms each ({cpu:.2f} ms of CPU)")
    print(f"- hydra.compose alone: {hydras:.0f} ms each", flush=True)


# ------------------------------------------------------------------------------------------------------------ fleets


def print_fleets(options: argparse.Namespace, work: Workload) -> None:
    """Print what a gradient evaluation of one run costs in fleets of R, on one thread, against JAX."""
    sizes = [runs for runs in options.runs if not work.mnist_shaped or runs <= 16]
    makers: dict[str, Callable[[], Rival]] = {P1: lambda: TorchSgd(work, loaded_batches(work))}
    makers |= {f"fleet, R = {runs}": lambda runs=runs: Burgers(work, "auto", runs) for runs in sizes}
    if not work.mnist_shaped:
        wanted = [runs for runs in sizes if runs <= 64]
        makers |= {f"JAX, R = {r}": lambda r=r: JaxEntropySgd(work, "threefry2x32", True, r) for r in wanted}
    times = take_turns(makers, options.rounds, options.seconds)
    print_times(f"{work.title}: nothing recorded, one thread (JAX: all cores)", times)


def print_times(title: str, times: Times, others: tuple[str, ...] = ()) -> None:
    rows = []
    for name, values in times.items():
        ratios = (f"{speed_ratio(times, name, other):.2f}" for other in (P1, *others))
        rows.append([name, f"{median(values):,.1f}", f"{min(values):,.1f}-{max(values):,.1f}", *ratios])
    print(f"\n### {title}\n")
    print_table(["", "us per evaluation", "min-max", "x P1", *(f"x {other}" for other in others)], rows)


# ------------------------------------------------------------------------------------------------------------ sweeps


class RecordedSweep:
    """Jobs that differ in their seeds, each trained for `unit` evaluations and recorded in a folder of its own."""

    def __init__(self, work: Workload, runs: int, budget: int, train: Callable[[list[Job]], None]) -> None:
        self.runs, self.unit, self.warm_up, self.train = runs, budget, budget, train
        config = work.config(LocalEntropyConfig(inner_steps=INNER_STEPS), "auto", budget)
        # as often as a run of the default length is logged and validated, were it as long
        often = dataclasses.replace(config.trainer, log_every=max(20, budget // 200), eval_every=max(20, budget // 50))
        self.config = dataclasses.replace(config, trainer=often)
        if work.mnist_shaped:
            self.config = dataclasses.replace(self.config, dataset=NpzConfig(path=str(_npz(work))))

    def advance(self, n: int) -> None:
        """Train n / unit sweeps."""
        for _ in range(n // self.unit):
            with tempfile.TemporaryDirectory() as folder:
                configs = [dataclasses.replace(self.config, seed=seed) for seed in range(self.runs)]
                self.train([Job(config, Path(folder, str(config.seed)), ()) for config in configs])


def _npz(work: Workload) -> Path:
    import numpy as np

    path = Path(tempfile.gettempdir(), f"burgersgd-bench-{os.getpid()}.npz")
    if not path.exists():
        parts = (work.data.train, work.data.validation, work.data.test)
        np.savez(path, x=torch.cat([p.inputs for p in parts]).numpy(), y=torch.cat([p.targets for p in parts]).numpy())
    return path


def one_after_the_other(jobs: list[Job], threads: int = 1) -> None:
    for job in jobs:
        device = DeviceConfig(name="cpu", threads=threads)
        _checked(train_chunk([job._replace(config=dataclasses.replace(job.config, device=device))]))


def _checked(outcomes: list[Any]) -> None:
    for outcome in outcomes:
        if outcome.state != "completed":
            raise RuntimeError(f"{outcome.folder}: {outcome.state}: {outcome.error}")


def under_joblib(jobs: list[Job]) -> None:
    """One process per core, which joblib keeps from one call to the next."""
    import joblib  # pyright: ignore[reportMissingImports]

    joblib.Parallel(n_jobs=CORES)(joblib.delayed(one_after_the_other)([job]) for job in jobs)


def launched() -> Callable[[list[Job]], None]:
    """Return the launcher's way, whose workers are kept and whose measurements are those of the first sweep."""
    trainer = LocalTrainer(SweepConfig(workers=CORES))
    plan: list[bytes] = []

    def train(jobs: list[Job]) -> None:
        file = jobs[0].folder.parent / "plan.json"
        if plan:
            file.write_bytes(plan[0])
        for _, outcomes in trainer.train([jobs], SweepProgress(enabled=False)):
            _checked(outcomes)
        if file.exists() and not plan:
            plan.append(file.read_bytes())
            say(f"   planned in fleets of {', '.join(str(len(fleet)) for fleet in _fleets(plan[0]))}")

    return train


def _fleets(plan: bytes) -> list[list[str]]:
    import json

    return json.loads(plan)["fleets"]


def print_sweeps(options: argparse.Namespace, work: Workload) -> None:
    """Print what a gradient evaluation costs in a sweep that is recorded, against other ways to train the same jobs."""
    for runs in (4,) if work.mnist_shaped else [r for r in options.runs if r in (64, 256)]:
        budget = 20 if work.mnist_shaped else 2000
        makers: dict[str, Callable[[], Rival]] = {P1: lambda: TorchSgd(work, loaded_batches(work))}
        ways: dict[str, Callable[[list[Job]], None]] = {OURS: launched(), IN_TURN: one_after_the_other}
        if work.mnist_shaped:
            ways[f"{IN_TURN}, {CORES} threads"] = lambda jobs: one_after_the_other(jobs, CORES)
        ways[JOBLIB] = under_joblib
        for name, way in ways.items():
            n = (
                runs if name == OURS else min(runs, 8)
            )  # of the others, an evaluation costs the same whatever their number
            makers[name] = lambda way=way, n=n, budget=budget: RecordedSweep(work, n, budget, way)
        times = take_turns(makers, options.rounds, options.seconds)
        title = f"{work.title}: {runs} jobs of {budget:,} evaluations, recorded, {CORES} processes"
        print_times(title, times, (IN_TURN, JOBLIB))


# ----------------------------------------------------------------------------------------------------------- profile


def print_profile(options: argparse.Namespace, work: Workload, runs: int = 32, budget: int = 2000) -> None:
    """Print what one fleet of recorded jobs spends on all but steps and evaluation: CPU time of one process."""
    spent = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.process_time() - start

        return measured

    whole: list[float] = []

    def train(jobs: list[Job]) -> None:
        device, start = DeviceConfig(name="cpu", threads=1), time.process_time()
        _checked(train_chunk([job._replace(config=dataclasses.replace(job.config, device=device)) for job in jobs]))
        whole.append(time.process_time() - start)

    sweep, rest = RecordedSweep(work, runs, budget, train), []
    steps = mock.patch.object(Fleet, "advance", timed(Fleet.advance))
    evaluation = mock.patch.object(Evaluator, "__call__", timed(Evaluator.__call__))
    with steps, evaluation:
        for _ in range(options.rounds + 1):  # imports are in the first one
            spent[0] = 0.0
            sweep.advance(budget)
            rest.append(whole[-1] - spent[0])
    shares = [100 * r / all_of_it for r, all_of_it in zip(rest[1:], whole[1:], strict=True)]
    each = [1e3 * r / runs for r in rest[1:]]
    print(
        f"\n- {work.title}: {runs} recorded jobs of {budget:,} evaluations, CPU time of one process: preparing and",
        end=" ",
    )
    print(f"recording are {median(shares):.1f} % ({min(shares):.1f}-{max(shares):.1f}),", end=" ")
    print(f"{median(each):.1f} ms a run ({min(each):.1f}-{max(each):.1f})", flush=True)


# ----------------------------------------------------------------------------------------------------------- command


COMMANDS = ((64, 5000), (1000, 500))
"""Runs and gradient evaluations of each."""
EVALUATIONS = 51
"""Evaluations on the validation part that a run of any length makes by default."""


def print_commands(rounds: int) -> None:
    """Print the seconds of whole sweeps of the default optimizer from Enter to the prompt, and of their arithmetic.

    That is their steps, and their evaluations on the validation part; nothing is recorded.
    """
    rows = []
    for runs, budget in COMMANDS:
        words = ["train", "--multirun", "optimizer=local_entropy", f"seed=range({runs})", f"trainer.budget={budget}"]
        command = [sys.executable, "-m", "burgersgd", *words]
        whole, steps, evaluations = [], [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                subprocess.run([*command, f"output_root={folder}"], check=True, capture_output=True)
                whole.append(time.perf_counter() - start)
            for times, seconds in zip((steps, evaluations), arithmetic(runs, budget), strict=True):
                times.append(seconds)
            say(f"   {runs} runs of {budget}: {whole[-1]:.1f} s, {steps[-1]:.1f} s, {evaluations[-1]:.1f} s")
        cells = (f"{median(v):.1f} ({min(v):.1f}-{max(v):.1f})" for v in (whole, steps, evaluations))
        rows.append([f"{runs:,} of {budget:,}", *cells, f"{1e6 * median(whole) / runs / budget:.1f}"])
    print(f"\nWhole commands, `burgersgd train --multirun 'seed=range(RUNS)' trainer.budget=N`, n = {rounds}:\n")
    print_table(["runs", "seconds", "steps alone", "evaluations alone", "us per gradient evaluation"], rows)


def arithmetic(runs: int, budget: int) -> list[float]:
    """Return the seconds in which a process per core takes the steps of all runs, and makes their evaluations."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--steps-only", str(-(-runs // CORES)), str(budget)]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(CORES)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()  # it is ready
    for child in children:
        assert child.stdin is not None
        child.stdin.close()  # they begin
    seconds = [map(float, child.stdout.read().split()) for child in children if child.stdout is not None]
    for child in children:
        child.wait()
    return [max(of_all) for of_all in zip(*seconds, strict=True)]


def take_steps(runs: int, budget: int) -> None:
    """Build a fleet, say so, wait for the end of the input, take steps, evaluate, and print the seconds of both."""
    torch.set_num_threads(1)
    fleet = Burgers(WORKLOADS["w1"], "auto", runs)
    fleet.advance(INNER_STEPS)
    evaluate = fleet.prepared.evaluator(fleet.prepared.data.validation)
    evaluate(fleet.fleet.x)
    print("ready", flush=True)
    sys.stdin.read()
    start = time.perf_counter()
    fleet.advance(budget)
    middle = time.perf_counter()
    for _ in range(EVALUATIONS):
        evaluate(fleet.fleet.x)
    print(middle - start, time.perf_counter() - middle)


if __name__ == "__main__":
    main()
