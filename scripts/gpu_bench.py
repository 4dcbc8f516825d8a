"""How fast is the CUDA path? Everything on one card, the rivals taking turns.

    python scripts/gpu_bench.py                        # on a machine with a GPU, five minutes at most
    python scripts/gpu_bench.py --device cpu --tiny    # shows without a GPU that the script itself is right

Parts, in this order: floors, w1 (digits, batch 32), launches, w3 (MNIST-shaped), w2 (batch 128), jax, commands. Only
where they are asked for: graphs_w1, graphs_w3 (CUDA graphs of single steps and of many). A table is printed as it goes
and the whole again last; bench.json goes to --out. What is not measured in time is left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import bench_rivals as rivals
import torch
from bench_rivals import Workload
from gpu_launches import launches_per_step
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from burgersgd import streams
from burgersgd.build.prepared import prepare
from burgersgd.config import DeviceConfig, LocalEntropyConfig
from burgersgd.streams import Purpose
from burgersgd.training.engines.compiled import Compiled
from burgersgd.training.inputs import BLOCK


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How fast is the CUDA path?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="measure very little, only to test the script itself")
    parser.add_argument("--seconds", type=float, default=290)
    parser.add_argument(
        "--only", default="floors,w1,launches,w3,w2,jax,commands", help="parts to measure, separated by commas"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "outputs/gpu")))
    parser.add_argument("--warm", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--jax", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


options = _parse()
CUDA, DEVICE = options.device == "cuda", options.device
STARTED = time.monotonic()
ROUNDS, STRETCH = (1, 0.05) if options.tiny else (3, 0.35)
"""Turns of every rival, and seconds of one."""
results: dict[str, dict[str, dict[str, Any]]] = {}


def left() -> float:
    """Return the seconds that are left."""
    return options.seconds - (time.monotonic() - STARTED)


def device_name() -> str:
    """Return the name of the card."""
    return torch.cuda.get_device_name(0) if CUDA else "cpu"


def keep(part: str, name: str, **numbers: Any) -> None:
    """Keep numbers, on the disk too."""
    results.setdefault(part, {})[name] = numbers
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps({"device": device_name(), "results": results}, indent=1))


def say(*words: object) -> None:
    """Print words behind the time."""
    print(f"{time.monotonic() - STARTED:5.0f} s", *words, flush=True)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if CUDA:
        torch.cuda.synchronize()


def command(*arguments: str) -> list[str]:
    """Return the command that runs a part of this script in a process of its own."""
    tiny = ["--tiny"] if options.tiny else []
    return [sys.executable, __file__, "--device", DEVICE, "--out", str(options.out), *tiny, *arguments]


# ------------------------------------------------------------------------------------------------------------ rivals


def torch_rivals(work: Workload) -> dict[str, Callable[[], Any]]:
    """Return plain SGD with a DataLoader and with data in memory, and an eager Entropy-SGD, all on the device."""
    inputs, targets = (t.to(DEVICE) for t in work.training_arrays)

    def on_device() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for chosen in torch.randperm(len(inputs), device=DEVICE).split(work.batch_size):
                yield inputs.index_select(0, chosen), targets.index_select(0, chosen)

    def loaded() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in rivals.loaded_batches(work):
            yield x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)

    def sgd(batches: Iterator[tuple[Tensor, Tensor]]) -> Any:
        rival = rivals.TorchSgd(work, batches)
        rival.network.to(DEVICE)
        rival.optimizer = torch.optim.SGD(rival.network.parameters(), lr=rivals.LR)
        return rival

    def entropy() -> Any:
        rival = rivals.TorchEntropySgd(work)
        rival.network.to(DEVICE)
        rival.batches, rival.optimizer = on_device(), rivals.ClosureEntropySgd(rival.network.parameters())
        return rival

    return {
        "P1 torch SGD, DataLoader": lambda: sgd(loaded()),
        "P2 torch SGD, in memory": lambda: sgd(on_device()),
        "P5 eager Entropy-SGD": entropy,
    }


class Ours:
    """A fleet of burgersgd on the device."""

    unit = 1

    def __init__(self, work: Workload, mode: str, runs: int) -> None:
        rule = LocalEntropyConfig(lr=rivals.LR, gamma=rivals.GAMMA, nu=rivals.NU, inner_steps=rivals.INNER_STEPS)
        mode, _, steps = mode.partition(", ")
        config = work.config(rule, "off" if mode == "graph" else mode)
        trainer = dataclasses.replace(config.trainer, drop_last=True)
        config = dataclasses.replace(config, device=DeviceConfig(name=DEVICE), trainer=trainer)
        self.prepared = prepare([dataclasses.replace(config, seed=s) for s in range(runs)], dataset=work.data)
        if mode == "graph" and CUDA:
            self.prepared.engine = "graphed"
        # In so many steps all graphs have been captured: they repeat after 5 blocks, the epochs beside them after 34.
        self.fleet, self.runs, self.warm_up = self.prepared.fleet(), runs, work.epoch + 65 + 640 * CUDA
        if steps and isinstance(self.fleet.stepper, Compiled):
            self.fleet.stepper.most = {"single": 1, "many": BLOCK}[steps]

    def advance(self, n: int) -> None:
        """Spend n evaluations on each run."""
        self.fleet.advance(n)


GRAPHS = ("graph, single", "graph, many", "on, single", "on, many")
"""Modes whose CUDA graphs hold one step, and up to a block of them."""
FLEETS = {
    "w1": [
        *(("native", runs) for runs in (1, 16, 132, 256, 1024)),
        *(("on", runs) for runs in (1, 16, 1024)),
        *(("graph", runs) for runs in (1, 16, 1024)),
        *(("off", runs) for runs in (1, 1024)),
    ],
    "w2": [("native", 1), ("native", 132), ("native", 1024), ("on", 1), ("on", 1024), ("off", 1)],
    "w3": [("on", 1), ("on", 16), ("off", 1), ("off", 16), ("graph", 1), ("graph", 16)],
    "graphs_w1": [(mode, runs) for runs in (1, 16) for mode in GRAPHS],
    "graphs_w3": [(mode, 1) for mode in GRAPHS],
}
"""Part -> trainer.compile (native: the persistent kernel; graph: CUDA graphs) and the runs of what is measured."""


def fleets(name: str) -> list[tuple[str, int]]:
    """Return what is measured of ours."""
    return [("off", 1), ("off", 4)] if options.tiny else FLEETS[name]


def measured(part: str, work: Workload) -> None:
    """Build all rivals of a workload, then let them take turns; the rate of each is kept after every round."""
    makers = ({} if part.startswith("graphs") else torch_rivals(work)) | {
        f"burgersgd {mode}, R={runs}": (lambda mode=mode, runs=runs: Ours(work, mode, runs))
        for mode, runs in fleets(part)
    }
    built: dict[str, tuple[Any, int]] = {}
    times: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    host: dict[str, float] = {}
    for name, make in makers.items():
        if left() < 12:
            say(part, name, "left out: no time")
            continue
        started = time.perf_counter()
        try:
            before = torch.cuda.memory_allocated() if CUDA else 0
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            rival = make()
            rival.advance(rival.warm_up)
            synchronize()
            memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20 if CUDA else 0.0
            host[name] = launches_per_step(rival.fleet, 320) if part.startswith("graphs") else math.nan
            n, took = rival.unit, 0.0
            while took < STRETCH / 6:
                n *= 2 if took else 1
                took = seconds(rival, n)
            built[name] = rival, max(1, round(n * STRETCH / took / rival.unit)) * rival.unit
            times[name] = []
            say(part, name, f"ready after {time.perf_counter() - started:.1f} s, about {n * rival.runs / took:,.0f}/s")
        except Exception as error:
            say(part, name, "FAILED", type(error).__name__, " ".join(str(error).split())[:200])
            keep(part, name, error=str(error)[:500])
    for _ in range(ROUNDS):
        for name, (rival, n) in built.items():
            if left() > 3:
                times[name].append(1e6 * seconds(rival, n) / n)
    for name, microseconds in times.items():
        if not microseconds:
            continue
        rival = built[name][0]
        rates = [1e6 * rival.runs / us for us in microseconds]
        keep(
            part,
            name,
            us_per_step=median(microseconds),
            evaluations_per_s=median(rates),
            lowest=min(rates),
            highest=max(rates),
            rounds=len(rates),
            memory_mib=memory[name],
            host_launches_per_step=host[name],
            alive=bool(rival.fleet.alive.all()) if isinstance(rival, Ours) else True,
        )
    show(part)


def seconds(rival: Any, n: int) -> float:
    """Return the seconds of n evaluations of each run."""
    started = time.perf_counter()
    rival.advance(n)
    synchronize()
    return time.perf_counter() - started


def show(part: str) -> None:
    """Print what is kept of a part."""
    rows = results.get(part, {})
    base = next((v["evaluations_per_s"] for k, v in rows.items() if k.startswith("P1") and "lowest" in v), math.nan)
    print(f"\n{part}: evaluations/s (lowest - highest), us per joint step, times P1, MiB")
    for name, v in rows.items():
        if "lowest" in v:
            spread = f"({v['lowest']:,.0f} - {v['highest']:,.0f})"
            ratio = v["evaluations_per_s"] / base
            ends = "" if v["alive"] else "  DIVERGED"
            numbers = f"{v['evaluations_per_s']:14,.0f} {spread} {v['us_per_step']:10,.1f} {ratio:8.1f}"
            host = v["host_launches_per_step"]
            launched = "" if math.isnan(host) else f" {host:8.2f} launches a step"
            print(f"  {name:34s} {numbers} {v['memory_mib']:8.0f}{launched}{ends}")
        else:
            print(f"  {name:34s} {v}")
    print(flush=True)


# ------------------------------------------------------------------------------------------------------------ floors


def graphed(work: Callable[[], object], n: int = 200) -> float:
    """Return the microseconds of work(), replayed as a CUDA graph where there is one."""
    for _ in range(3):
        work()
    synchronize()
    if CUDA:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
    n = 3 if options.tiny else n
    work()
    synchronize()
    started = time.perf_counter()
    for _ in range(n):
        work()
    synchronize()
    return 1e6 * (time.perf_counter() - started) / n


def floors() -> None:
    """Measure what no way to train can be faster than: copies, products, the products of a step, normal numbers."""
    big = torch.randn(1 << 20 if options.tiny else 1 << 28, device=DEVICE)
    to = torch.empty_like(big)
    rate = 8 * big.numel() / graphed(lambda: to.copy_(big), 10) / 1e3
    keep("floors", "copy", gb_per_s=rate)
    say("floors: device-to-device copy", f"{rate:,.0f} GB/s")
    del big, to
    square = torch.randn(2 * [256 if options.tiny else 8192], device=DEVICE)
    rate = 2 * len(square) ** 3 / graphed(lambda: square @ square, 3) / 1e3
    keep("floors", "float32 product", gflops=rate)
    say(f"floors: float32 product of {len(square)}: {rate / 1e3:,.1f} TFLOP/s")
    shapes = {
        "w1": ((64, 64, 64, 10), 32, (1, 16, 256, 1024)),
        "w2": ((64, 64, 64, 10), 128, (1, 1024)),
        "w3": ((784, 1024, 1024, 10), 128, (1, 16)),
    }
    for name, (widths, batch, sizes) in shapes.items():
        for runs in sizes[:2] if options.tiny else sizes:
            _products(name, widths, batch, runs)
    for runs in (1,) if options.tiny else (1, 16, 1024):
        out, seeds = torch.empty(1, runs, 8970, device=DEVICE), torch.arange(runs, device=DEVICE)

        def draw(out: Tensor = out, seeds: Tensor = seeds) -> Tensor:
            return streams.normal_(out, seeds, Purpose.NOISE, 1)

        us = graphed(draw)
        started = time.perf_counter()
        for _ in range(200):
            draw()
        host = 1e6 * (time.perf_counter() - started) / 200
        synchronize()
        keep("floors", f"normals, R={runs}", us=us, host_us=host)
        say(f"floors: normals of R={runs} x 8,970: {us:,.1f} us on the device, {host:,.1f} us of the host for a launch")


def _products(name: str, widths: tuple[int, ...], batch: int, runs: int) -> None:
    """Measure the matrix products of one step of R networks and nothing else."""
    products, flop = [], 0
    for i, (k, o) in enumerate(pairwise(widths)):
        x, w, z, d = (torch.randn(runs, *s, device=DEVICE) for s in ((batch, k), (o, k), (batch, o), (batch, o)))
        products.append((x, w.transpose(1, 2), z))
        products.append((d.transpose(1, 2), x, torch.empty_like(w)))
        if i:
            products.append((d, w, torch.empty_like(x)))
        flop += 2 * runs * batch * k * o * (3 if i else 2)
    us = graphed(lambda: [torch.bmm(a, b, out=c) for a, b, c in products])
    keep("floors", f"{name} products, R={runs}", us=us, gflops=flop / us / 1e3)
    rate = f"{flop / us / 1e6:,.2f} TFLOP/s, {runs / us * 1e6:,.0f} evaluations/s if there were nothing else"
    say(f"floors: {name}, the {len(products)} products of a step, R={runs}: {us:,.1f} us, {rate}")


def launches() -> None:
    """Count the kernels of a step and the time that the GPU is busy with them."""
    several = (
        ("w1", "native", 132),
        ("w1", "on", 1),
        ("w1", "on", 1024),
        ("w1", "off", 1),
        ("w1", "off", 16),
        ("w3", "on", 1),
    )
    steps = 40
    for name, mode, runs in (("w1", "off", 1),) if options.tiny else several:
        if left() < 20:
            return
        rival = Ours(rivals.WORKLOADS[name], mode, runs)
        rival.advance(rival.warm_up + 3)
        synchronize()
        with profile(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as seen:
            rival.advance(steps)
            synchronize()
        times = [(getattr(e, "self_device_time_total", 0.0), e.count, e.key) for e in seen.key_averages()]
        kernels = sorted((t for t in times if t[0] > 0 and not t[2].startswith(("Memcpy", "Memset"))), reverse=True)
        count, busy = sum(n for _, n, _ in kernels) / steps, sum(t for t, _, _ in kernels) / steps
        top = [(key[:90], n / steps, t / steps) for t, n, key in kernels[:12]]
        keep("launches", f"{name} {mode} R={runs}", kernels_per_step=count, busy_us_per_step=busy, top=top)
        say(f"launches: {name} {mode}, R={runs}: {count:.1f} kernels a step, {busy:.1f} us busy")
        for key, n, us in top:
            print(f"          {us:8.2f} us {n:6.2f} x {key}", flush=True)


# --------------------------------------------------------------------------------------------------- JAX and commands


def jax_child(name: str, runs: str) -> None:
    """Print the evaluations per second of JAX with jit, scan and vmap: float32 products exact, then in TF32."""
    import jax  # pyright: ignore[reportMissingImports]  (of the extra bench)

    work = rivals.WORKLOADS[name]
    if options.tiny or name == "w3":
        work = dataclasses.replace(work, jax_steps=20 if options.tiny else 100)
    out: dict[str, Any] = {"platform": jax.devices()[0].platform}
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            rival = rivals.JaxEntropySgd(work, "threefry2x32", True, int(runs))
            rival.advance(rival.unit)
            rounds = [seconds(rival, rival.unit) for _ in range(1 if options.tiny else 3)]
            out[precision] = rival.unit * int(runs) / median(rounds)
            print(json.dumps(out), flush=True)


def jax_part() -> None:
    """Measure JAX on the same card, in a process of its own."""
    if importlib.util.find_spec("jax") is None:
        return say("jax: not installed")
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | ({} if CUDA else {"JAX_PLATFORMS": "cpu"})
    for name, runs in (("w1", "1"),) if options.tiny else (("w1", "1"), ("w1", "1024"), ("w2", "64"), ("w3", "1")):
        if left() < 25:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            words, limit = command("--jax", name, runs), min(60, left())
            child = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=limit)
            lines = [line for line in child.stdout.splitlines() if line.startswith("{")]
            numbers = json.loads(lines[-1]) if lines else {"error": child.stderr[-300:]}
            keep("jax", f"{name} R={runs}", **numbers)
            said = {k: f"{v:,.0f}/s" if isinstance(v, float) else v for k, v in numbers.items()}
            say("jax", name, f"R={runs}", said)
    return None


def commands() -> None:
    """Time whole commands, as a person sees them."""
    table = {
        "train, default, cpu": ["train", "device=cpu"],
        "train, default, device": ["train", f"device={DEVICE}"],
        "train, compile=on, device": ["train", f"device={DEVICE}", "trainer.compile=on"],
        "256 seeds, cpu": ["train", "--multirun", "device=cpu", "seed=range(256)", "sweep.name=c"],
        "256 seeds, device": ["train", "--multirun", f"device={DEVICE}", "seed=range(256)", "sweep.name=g"],
    }
    if options.tiny:
        table = {name: [*words, "trainer.budget=200"] for name, words in list(table.items())[:2]}
    with tempfile.TemporaryDirectory() as root:
        for name, words in table.items():
            if left() < 15:
                return
            started, words = time.perf_counter(), [sys.executable, "-m", "burgersgd", *words]
            try:
                child = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=left())
            except subprocess.TimeoutExpired:
                say("commands:", name, "left out: no time")
                continue
            took = time.perf_counter() - started
            keep("commands", name, seconds=took, code=child.returncode)
            say(
                f"commands: {name}: {took:.1f} s, exit {child.returncode}",
                child.stderr[-200:] * (child.returncode != 0),
            )


def compile_all(parts: Sequence[str]) -> None:
    """Compile all that will be measured in these parts, side by side, into the cache."""
    several = [(name, *one) for name in FLEETS.keys() & set(parts) for one in FLEETS[name]]
    waiting = [(name, mode, runs) for name, mode, runs in several if mode in ("on", "on, many")]
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "2", "OMP_NUM_THREADS": "1"}
    running: list[subprocess.Popen[bytes]] = []
    total = len(waiting)
    while (waiting or running) and left() > options.seconds - 75:
        running = [child for child in running if child.poll() is None]
        if waiting and len(running) < 6:
            name, mode, runs = waiting.pop(0)
            words, nowhere = command("--warm", name, mode, str(runs)), subprocess.DEVNULL
            running.append(subprocess.Popen(words, env=environment, stdout=nowhere, stderr=nowhere))
        time.sleep(0.1)
    for child in running:
        child.kill()
    say(f"{total - len(waiting) - len(running)} of {total} programs compiled side by side")


def main() -> None:
    """Measure the parts in their order."""
    warnings.filterwarnings("ignore")
    parts = options.only.split(",")
    if options.warm:
        name, mode, runs = options.warm
        Ours(rivals.WORKLOADS[name.removeprefix("graphs_")], mode, int(runs)).advance(2)
        return synchronize()
    if options.jax:
        return jax_child(*options.jax)
    say(device_name(), "torch", torch.__version__, "cores", os.cpu_count())
    if CUDA and not options.tiny and FLEETS.keys() & set(parts):
        compile_all(parts)
    table = {"floors": floors, "launches": launches, "jax": jax_part, "commands": commands}
    for part in parts:
        if left() < 10:
            say(part, "left out: no time")
            continue
        try:
            if part in table:
                table[part]()
            else:
                measured(part, rivals.WORKLOADS[part.removeprefix("graphs_")])
        except Exception as error:
            say(part, "FAILED", type(error).__name__, " ".join(str(error).split())[:400])
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
    print("\nAll of it")
    for part in results:
        show(part)
    return None


if __name__ == "__main__":
    main()
