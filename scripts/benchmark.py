"""Measure burgersgd against its rivals and print the Markdown tables of docs/benchmarks.md: `make bench ARGS=--quick`.

Sections: steps (gradient evaluations per second), floors (what the hardware allows, and the parts of a step), commands
(seconds of whole commands), crossover (compile=auto where it compiles), memory (peak of a run, per rule). Every
workload and number of threads is measured in a process of its own, bound to as many cores; within it the rivals take
turns, round by round, and ratios are medians of the ratios of the rounds. Tables go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import bench_history

SECTIONS = ("steps", "floors", "commands", "crossover", "memory")
P1, P2 = "P1 torch SGD, DataLoader", "P2 torch SGD, in memory"
PARTS = ("gradient", "update", "coefficients and batches", "normals")
"""Of a step; the fused update draws its normals itself."""
Times = dict[str, list[float]]
"""Name -> microseconds per gradient evaluation, one number per round."""


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](options, *options.child[1:])))
        return
    print_header(options)
    measured: dict[tuple[str, int], dict[str, Any]] = {}
    if {"steps", "floors"} & set(options.sections):
        for work in options.workloads:
            for threads in options.threads:
                result = measured[work, threads] = in_child("steps", work, str(threads), threads=threads)
                if "steps" in options.sections:
                    print_steps(result)
                if "floors" in options.sections:
                    print_floors(result)
        print_targets(measured)
        if options.json and "steps" in options.sections:
            bench_history.append(ratios_of(measured), rounds=options.rounds, seconds=options.seconds)
    if "commands" in options.sections:
        print_commands("Whole commands: the default `burgersgd train`", DEFAULT_COMMANDS, options.rounds_of_commands)
    if "crossover" in options.sections:
        print_commands(
            "Whole commands: no native kernel, and a budget just large enough for compile=auto to compile",
            crossover_commands(),
            min(3, options.rounds_of_commands),
        )
    if "memory" in options.sections:
        print_memory()


def ratios_of(measured: dict[tuple[str, int], dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return workload and threads -> rival -> how many times as fast as P1 it is, for the record."""
    return {
        f"{work}, {threads} thread{'s' if threads > 1 else ''}": {
            name: speed_ratio(result["times"], name, P1) for name in result["names"] if name in result["times"]
        }
        for (work, threads), result in measured.items()
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = str.split
    parser.add_argument("--workloads", default="w1,w2,w3", help="workloads to measure, among w1,w2,w3")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds of steps and commands")
    parser.add_argument("--seconds", type=float, default=1.5, help="duration of a measurement")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help="measure only P1 and rivals whose name contains one of these texts"
    )
    parser.add_argument(
        "--sections", default=",".join(SECTIONS), help="sections to measure, among " + ",".join(SECTIONS)
    )
    parser.add_argument(
        "--quick", action="store_true", help="w1 and w3, 2 rounds of 0.3 s, nothing compiled by torch, no crossover"
    )
    parser.add_argument("--json", action="store_true", help="add the ratios to docs/benchmarks/history.jsonl")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds_of_commands = options.rounds
    if options.quick:
        options.workloads, options.rounds, options.seconds = "w1,w3", 2, 0.3
        options.rounds_of_commands = 3
        options.sections = options.sections.replace("crossover", "").strip(",").replace(",,", ",")
    for name, allowed in (("workloads", ("w1", "w2", "w3")), ("sections", SECTIONS), ("threads", None)):
        chosen = words(getattr(options, name).replace(",", " "))
        if unknown := set(chosen) - set(allowed or chosen):
            parser.error(f"--{name}: {', '.join(unknown)}: must be of {', '.join(allowed or ())}")
        setattr(options, name, [int(c) for c in chosen] if name == "threads" else chosen)
    options.only = [part.strip() for part in options.only.split(",") if part.strip()]
    return options


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------- processes


def in_child(kind: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Return what a function of CHILDREN returns in a process that sees that many threads and cores."""
    one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {one if threads == 1 else ''}".strip(),
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, *sys.argv, "--child", kind, *arguments]
    say(f"-- {kind} {' '.join(arguments)}")
    return json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def bind(threads: int) -> None:
    """Use so many threads on so many cores: JAX's pool is as large as the number of cores it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    torch.set_num_threads(threads)


# --------------------------------------------------------------------------------------------------- steps and floors


def measure_steps(options: argparse.Namespace, work_name: str, threads: str) -> dict[str, Any]:
    """Measure the rivals, floors and parts of one workload, all in one round-robin."""
    bind(int(threads))
    import bench_rivals

    work = bench_rivals.WORKLOADS[work_name]

    def wanted(name: str) -> bool:
        if "steps" not in options.sections:
            return name in ("local_entropy off", "local_entropy auto")
        if options.quick and name.startswith("local_entropy on"):
            return False
        return not options.only or name == P1 or any(part in name for part in options.only)

    makers = {name: make for name, make in bench_rivals.rivals(work).items() if wanted(name)}
    names = list(makers)
    if "floors" in options.sections:
        makers |= bench_rivals.floors(work)
        for mode in ("off", "auto"):
            if f"local_entropy {mode}" in names:
                makers |= {f"{mode}: {part}": make for part, make in bench_rivals.profile(work, mode).items()}
    engine = bench_rivals.automatic_engine(work)
    return {
        "title": work.title,
        "threads": int(threads),
        "d": work.d,
        "flops": bench_rivals.flops(work),
        "auto": engine,
        "names": names,
        "times": take_turns(makers, options.rounds, options.seconds),
    }


def take_turns(makers: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> Times:
    """Return the times of all rivals that can be built; one measurement of each per round, of about `seconds`."""
    from burgersgd.config import ConfigError

    rivals, counts = {}, {}
    for name, make in makers.items():
        started = time.perf_counter()
        try:
            rival = make()
        except ConfigError as error:
            say(f"   {name}: left out, {error}")
            continue
        rival.advance(rival.warm_up)
        rivals[name], counts[name] = rival, calibrated(rival, seconds)
        say(f"   {name}: ready after {time.perf_counter() - started:.1f} s")
    times: Times = {name: [] for name in rivals}
    for turn in range(rounds):
        for name, rival in rivals.items():
            started = time.perf_counter()
            rival.advance(counts[name])
            elapsed = time.perf_counter() - started
            times[name].append(1e6 * elapsed / (counts[name] * rival.runs))
        say(f"   round {turn + 1} of {rounds}")
    for rival in rivals.values():
        getattr(rival, "check", lambda: None)()
    return times


def calibrated(rival: Any, seconds: float) -> int:
    """Return how many evaluations take about `seconds`, a multiple of the rival's unit."""
    n = rival.unit
    while True:
        started = time.perf_counter()
        rival.advance(n)
        elapsed = time.perf_counter() - started
        if elapsed > seconds / 8:
            return max(1, round(n * seconds / elapsed / rival.unit)) * rival.unit
        n *= 2


def speed_ratio(times: Times, name: str, other: str) -> float:
    """Return how many times as fast as `other` something is: the median over the rounds."""
    return median(b / a for a, b in zip(times[name], times[other], strict=True))


def print_steps(result: dict[str, Any]) -> None:
    times: Times = result["times"]
    rows = []
    for name in (n for n in result["names"] if n in times):
        rates = [1e6 / t for t in times[name]]
        rows.append(
            [
                name + (f" ({result['auto']})" if name == "local_entropy auto" else ""),
                f"{median(rates):,.0f}",
                f"{min(rates):,.0f}-{max(rates):,.0f}",
                f"{median(times[name]):,.1f}",
                f"{speed_ratio(times, name, P1):.2f}",
                f"{speed_ratio(times, name, P2):.2f}" if P2 in times else "",
            ]
        )
    print_title(result, f"{result['d']:,} parameters")
    print_table(["", "evaluations/s", "min-max", "us per evaluation", "x P1", "x P2"], rows)


def print_floors(result: dict[str, Any]) -> None:
    from bench_rivals import LARGE_COPY, LARGE_PRODUCT, PEAK_OPERATIONS, RULE_TRAFFIC

    times, d = result["times"], result["d"]
    us = {name: median(values) for name, values in times.items()}
    products, normals = us["matrix products"], us["normals"]
    traffic = RULE_TRAFFIC / 2 * us["copy of d"]
    limit = PEAK_OPERATIONS / us["multiply-adds"] / 1e3 * result["threads"]
    at_limit = result["flops"] / limit / 1e3
    floor = at_limit + traffic + normals
    large = 2 * LARGE_PRODUCT**3 / us["large product"] / 1e3
    rows = [
        [
            "matrix products at the limit",
            f"{at_limit:,.1f}",
            f"{limit:,.0f} GFLOP/s, multiply-adds in the registers of {_cores(result['threads'])}",
        ],
        ["matrix products by torch", f"{products:,.1f}", f"{result['flops'] / products / 1e3:,.0f} GFLOP/s"],
        ["", "", f"{large:,.0f} GFLOP/s for {LARGE_PRODUCT} x {LARGE_PRODUCT}"],
        [
            "memory traffic of the rule",
            f"{traffic:,.1f}",
            f"{8 * d / us['copy of d'] / 1e3:,.1f} GB/s copying d floats",
        ],
        ["", "", f"{8 * LARGE_COPY / us['large copy'] / 1e3:,.1f} GB/s copying {4 * LARGE_COPY >> 20} MiB"],
        ["normal numbers", f"{normals:,.1f}", f"{1e3 * normals / d:,.2f} ns each, in the fleet's blocks"],
        ["", "", f"{1e3 * us['normals, one step'] / d:,.2f} ns each, one step at a time"],
        ["", "", f"{1e3 * us['normals of torch'] / d:,.2f} ns each by torch.normal_"],
        ["**floor**, products at the limit", f"**{floor:,.1f}**", ""],
    ]
    print_title(result, "floors")
    print_table(["", "us per evaluation", "rate"], rows)
    rows = []
    for mode in ("off", "auto", "on"):
        step = f"local_entropy {mode}"
        if step in times:
            share = median(a / b for a, b in zip(times["normals"], times[step], strict=True))
            measured = {part: us.get(f"{mode}: {part}") for part in PARTS}
            known = [v for v in measured.values() if v is not None]
            rows.append(
                [
                    step,
                    f"{us[step]:,.1f}",
                    f"{floor / us[step]:.0%}",
                    f"{share:.1%}",
                    *("" if v is None else f"{v:,.1f}" for v in measured.values()),
                    f"{us[step] - sum(known):,.1f}" if known else "",
                    "" if not known else f"{result['flops'] / us[f'{mode}: gradient'] / 1e3 / limit:.0%}",
                ]
            )
    names = [
        "us per evaluation",
        "floor reached",
        "share of normals",
        *PARTS,
        "rest",
        "gradient of the limit",
    ]
    print_table(["one run", *names], rows)


def _cores(n: int) -> str:
    return "one core" if n == 1 else f"{n} cores"


def print_targets(measured: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Print the ratios that the project has promised, beside what they are."""
    rows = []

    def row(result: dict[str, Any], what: str, name: str, other: str, goal: float) -> None:
        if name in result["times"] and other in result["times"]:
            ratio = speed_ratio(result["times"], name, other)
            setting = [result["title"], str(result["threads"])]
            rows.append([*setting, what, f"{ratio:.2f}", f">= {goal:.2f}", "yes" if ratio >= goal else "no"])

    for (work, threads), result in measured.items():
        times, ours = result["times"], "local_entropy auto"
        if work == "w3":
            row(result, "local_entropy auto / P2", ours, P2, 0.85 if threads == 1 else 0.90)
            if ours in times and "normals" in times:
                share = 1 / speed_ratio(times, "normals", ours)
                goal = 0.15 if threads == 1 else 0.10
                setting = [result["title"], str(threads), "share of normal numbers"]
                rows.append([*setting, f"{share:.3f}", f"<= {goal:.2f}", "yes" if share <= goal else "no"])
        else:
            jax = min((n for n in times if "JAX" in n and "runs" not in n), key=lambda n: median(times[n]), default="")
            row(result, f"local_entropy auto / {jax}", ours, jax, 1)
            row(result, "sgd off / P2", "sgd off", P2, 0.9)
    if rows:
        print("\n### Targets\n")
        print_table(["workload", "threads", "ratio of speeds", "measured", "target", "reached"], rows)


# ----------------------------------------------------------------------------------------------------------- commands

DEFAULT_COMMANDS = {
    "auto, cold": (["trainer.compile=auto"], True),
    "auto, warm": (["trainer.compile=auto"], False),
    "off, cold": (["trainer.compile=off"], True),
    "off, warm": (["trainer.compile=off"], False),
}
"""Name -> overrides, and whether the caches of compiled code are empty."""


def crossover_commands() -> dict[str, tuple[list[str], bool]]:
    from burgersgd.build.parts import COMPILE_FROM

    base = ["model.activation=gelu", f"trainer.budget={round(1.05 * COMPILE_FROM['cpu', False])}"]
    return {
        "auto, cold": ([*base, "trainer.compile=auto"], True),
        "auto, warm": ([*base, "trainer.compile=auto"], False),
        "off, warm": ([*base, "trainer.compile=off"], False),
    }


def print_commands(title: str, commands: dict[str, tuple[list[str], bool]], rounds: int) -> None:
    """Run whole commands in turn and print what a user waits for."""
    say(f"-- {title}")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="burgersgd-bench-") as root:
        warm = Path(root) / "warm"
        timed_command(next(iter(commands.values()))[0], warm, Path(root))  # fills the caches for all
        for turn in range(rounds):
            for name, (overrides, cold) in commands.items():
                cache = Path(tempfile.mkdtemp(dir=root)) if cold else warm
                seen[name].append(timed_command(overrides, cache, Path(root)))
            say(f"   round {turn + 1} of {rounds}")
    rows = []
    for name, pairs in seen.items():
        first, whole = ([pair[i] for pair in pairs] for i in (0, 1))
        baseline = "off, " + name.split(", ")[1]
        baseline = baseline if baseline in seen else "off, warm"
        ratio = median(a[1] / b[1] for a, b in zip(pairs, seen[baseline], strict=True))
        rows.append([name, *(f"{median(s):.2f} ({min(s):.2f}-{max(s):.2f})" for s in (first, whole)), f"{ratio:.2f}"])
    print(f"\n### {title} (n = {rounds})\n")
    print(
        "`"
        + " ".join(next(iter(commands.values()))[0][:-1] or ["no other overrides"])
        + "`; seconds, median (min-max)\n"
    )
    print_table(["compile, caches", "Enter to first progress line", "Enter to prompt", "x off"], rows)


def timed_command(overrides: Sequence[str], cache: Path, output: Path) -> tuple[float, float]:
    """Return the seconds from Enter to the first progress line and to the end, after the summary."""
    command = [sys.executable, "-m", "burgersgd", "train", f"output_root={output / 'outputs'}", *overrides]
    folders = {"BURGERSGD_CACHE": str(cache / "native"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    first: list[float] = []
    text: list[str] = []
    started = time.perf_counter()

    def read(stream: Any) -> None:
        for line in stream:
            if not first and re.search(r"\d% +[\d,]+/[\d,]+", line):
                first.append(time.perf_counter() - started)
            text.append(line)

    with subprocess.Popen(
        command, env=os.environ | folders, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        reader = threading.Thread(target=read, args=(process.stdout,))
        reader.start()
        code = process.wait()
        ended = time.perf_counter() - started
        reader.join()
    if code != 0 or not first or "test error" not in "".join(text):
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{''.join(text)}")
    return first[0], ended


# ------------------------------------------------------------------------------------------------------------- memory

RULES = {
    "sgd": ("SgdConfig", {}),
    "sgd, momentum": ("SgdConfig", {"momentum": 0.9}),
    "gd": ("GdConfig", {}),
    "adamw": ("AdamWConfig", {}),
    "langevin": ("LangevinConfig", {}),
    "local_entropy": ("LocalEntropyConfig", {}),
    "local_entropy, nu = 0": ("LocalEntropyConfig", {"nu": 0.0}),
    "local_entropy, averaging=last": ("LocalEntropyConfig", {"averaging": "last"}),
    "local_entropy, momentum": ("LocalEntropyConfig", {"momentum": 0.9}),
    "local_entropy, leimkuhler_matthews": ("LocalEntropyConfig", {"integrator": "leimkuhler_matthews"}),
    "paper_literal": ("PaperLiteralConfig", {}),
    "paper_sde": ("PaperSDEConfig", {}),
}


def print_memory() -> None:
    rows, megabytes, d = [], 2**20, 0
    for rule in RULES:
        off, auto, run = (
            in_child("memory", rule, *kind, threads=1)
            for kind in (("off", "steps"), ("auto", "steps"), ("auto", "run"))
        )
        d, expected = off["d_bytes"], off["expected"]
        cells = (off["data"], off["vectors"], off["activations"], expected, auto["peak"], off["peak"], run["peak"])
        ratios = [f"{part['peak'] / expected:.2f}" for part in (auto, off)]
        rows.append([rule, str(off["state"]), str(off["noise"]), *(f"{c / megabytes:.0f}" for c in cells), *ratios])
    print("\n### Peak memory of a run, MNIST-shaped network\n")
    print(
        f"MiB; one copy of d is {d / megabytes:.1f} MiB. Expected: data + (state + gradient + noise + one temporary) + "
        "activations. Peaks: increase of the resident memory of a process that has trained a small network before, "
        "with compile=auto and compile=off.\n"
    )
    head = ["rule", "state, copies of d", "noise", "data", "vectors", "activations", "expected", "steps, auto"]
    print_table([*head, "steps, off", "whole run, auto", "auto / expected", "off / expected"], rows)


def measure_memory(options: argparse.Namespace, rule: str, engine: str, kind: str) -> dict[str, Any]:
    """Return the bytes of a run's parts, and the peak of the steps alone or of a run with evaluations and result."""
    bind(1)
    import bench_rivals

    import burgersgd
    from burgersgd import config

    class_name, settings = RULES[rule]
    optimizer = getattr(config, class_name)(lr=1e-4, **settings)

    def train(work: Any) -> Any:
        run = work.config(optimizer, engine, 20)
        if kind == "run":
            return burgersgd.train(run, dataset=work.data, record=False, progress=False)
        fleet = bench_rivals.prepare([run], dataset=work.data).fleet()
        fleet.advance(20)
        return fleet

    train(bench_rivals.WORKLOADS["w1"])
    gc.collect()
    if platform.system() == "Linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of the imports, is forgotten
    before = resident("VmRSS")
    work = bench_rivals.WORKLOADS["w3"]
    trained = train(work)
    peak = resident("VmHWM") - before
    batch_size = len(work.data.train.targets) if optimizer.full_batch else work.batch_size
    hidden, parts = sum(work.hidden), (work.data.train, work.data.validation, work.data.test)
    data = sum(t.numel() * t.element_size() for part in parts for t in part)
    # inputs, every layer before and after its activation, and as much for the gradients of the widest layer
    activations = 4 * batch_size * (work.widths[0] + 2 * hidden + 2 * max(work.hidden) + 2 * work.widths[-1])
    found = {"d_bytes": 4 * work.d, "data": data, "activations": activations, "peak": peak}
    if kind == "steps":
        state, noise = sum(t is not None for t in trained.state), int(trained.rule.noisy)
        vectors = 4 * work.d * (state + noise + 2)  # the gradient and one temporary, too
        found |= {"state": state, "noise": noise, "vectors": vectors, "expected": data + vectors + activations}
    return found


def resident(field: str) -> int:
    """Return a line of /proc/self/status in bytes (resource.getrusage's peak would include the imports)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])  # pyright: ignore[reportOptionalSubscript]


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"steps": measure_steps, "memory": measure_memory}


# ------------------------------------------------------------------------------------------------------------- output


def print_header(options: argparse.Namespace) -> None:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        cpu = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), cpu)
    packages = ("torch", "jax", "numpy", "burgersgd")
    versions = [f"Python {platform.python_version()}", *(f"{p} {importlib.metadata.version(p)}" for p in packages)]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"- Machine: {cpu.split(': ')[-1]}, {os.cpu_count()} cores, {platform.system()}; load at the start {load}")
    print(f"- Date: {datetime.date.today()}; {', '.join(versions)}")
    print(
        f"- n = {options.rounds} interleaved rounds of about {options.seconds:g} s each; medians (min-max); ratios are"
        " medians of the ratios of the rounds. Evaluations: gradients of one mini-batch, summed over the runs.",
        flush=True,
    )


def print_title(result: dict[str, Any], subject: str) -> None:
    plural = "" if result["threads"] == 1 else "s"
    print(f"\n### {result['title']}, {result['threads']} thread{plural}: {subject}\n")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table; every column but the first is aligned right."""
    for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows):
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


if __name__ == "__main__":
    main()
