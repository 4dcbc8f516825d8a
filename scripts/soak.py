"""Hours of what the test suite tries for seconds: one Markdown row for each promise of docs/reliability.md.

    python scripts/soak.py                         everything, as `make soak` does
    python scripts/soak.py --fuzz 200 --leaks 0    some of it; 0 leaves a part out

Prints what went wrong on stderr and exits with 1 where anything did.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/, which is not installed

import hypothesis
import numpy as np
import torch
from tqdm import tqdm

from burgersgd.api import train
from burgersgd.cli import main as burgersgd
from burgersgd.config import (
    AdamWConfig,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    PaperSDEConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
    TwoSpiralsConfig,
)
from tests import fuzz

PAGE = os.sysconf("SC_PAGE_SIZE")


class Row(NamedTuple):
    """One promise: what was tried, how often, and what broke it."""

    promise: str
    tried: str
    result: str
    failures: list[str]


# ------------------------------------------------------------------------------------------------------------ fuzzing


def fuzzed(n: int, seed: int) -> Iterator[Row]:
    """Try n command lines of nonsense and as many whose every value is allowed."""
    yield _fuzzed(n, seed, fuzz.nonsense(), "a mistake is one line, exit code 2 and nothing on the disk", False)
    yield _fuzzed(n, seed, fuzz.overrides(), "a command whose every value is in its range trains", True)


def _fuzzed(n: int, seed: int, lines: Any, promise: str, accepted_only: bool) -> Row:
    codes: collections.Counter[int | str | None] = collections.Counter()
    failures: list[str] = []
    bar = tqdm(total=n, desc=promise, disable=None)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
    @hypothesis.given(lines)
    def attempt(arguments: list[str]) -> None:
        outcome = fuzz.run(arguments)
        codes[outcome.code] += 1
        failures.extend(f"{found}: {outcome}" for found in fuzz.complaints(outcome, accepted_only))
        bar.update()

    with warnings.catch_warnings(), bar:
        warnings.simplefilter("error")  # a warning would be a second line
        attempt()
    ends: dict[int | str | None, str] = {0: "trained or shown", 1: "partly failed", 2: "refused", 3: "diverged"}
    counts = ", ".join(f"{count:,} {ends.get(code, code)}" for code, count in codes.most_common())
    return Row(promise, f"{codes.total():,} command lines", f"{len(failures)} broke it ({counts})", failures)


# -------------------------------------------------------------------------------------------------------------- leaks

RULES: list[OptimizerConfig] = [
    LocalEntropyConfig(inner_steps=4),
    LocalEntropyConfig(inner_steps=2, burn_in=2, momentum=0.5, integrator="leimkuhler_matthews"),
    SgdConfig(momentum=0.9),
    AdamWConfig(),
    PaperSDEConfig(),
    SgdConfig(lr=1e30),  # diverges
]


class Resources(NamedTuple):
    """What the process holds."""

    memory: float  # MiB, resident
    files: int
    threads: int
    temporary: int


def resources() -> Resources:
    """Return what this process holds now."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20
    threads = len(os.listdir("/proc/self/task"))
    return Resources(resident, len(os.listdir("/proc/self/fd")), threads, len(os.listdir(tempfile.gettempdir())))


def leaks(n: int, seed: int) -> Iterator[Row]:
    """Train n short runs in this process, each with a run folder; every fifth by the command line."""
    held: list[Resources] = []
    with tempfile.TemporaryDirectory() as private, _temporary_files_in(Path(private) / "tmp"):
        for k in tqdm(range(n), desc="short runs", disable=None):
            root = Path(private) / f"run{k}"
            _short_run(k, seed, root)
            shutil.rmtree(root)
            held.append(resources())
    later = held[n // 2 :]
    slope = float(np.polyfit(range(len(later)), [r.memory for r in later], 1)[0]) if len(later) > 1 else 0.0
    growth = slope * len(later)
    failures = [f"memory grew by {growth:.1f} MiB in the last {len(later)} runs"] if growth > 2 else []
    for name in ("files", "threads", "temporary"):
        first, last = getattr(later[0], name), getattr(later[-1], name)
        if last > first:
            failures.append(f"{name}: {first} after {n - len(later)} runs, {last} after {n}")
    end = later[-1]
    result = (
        f"memory {growth:+.2f} MiB over the last {len(later):,} runs ({end.memory:.0f} MiB), {end.files} files and "
        f"{end.threads} threads open, {end.temporary} temporary files left"
    )
    yield Row("many runs in one process leak nothing", f"{n:,} runs", result, failures)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Any:
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _short_run(k: int, seed: int, root: Path) -> None:
    optimizer, engine = RULES[k % len(RULES)], ("off", "native")[k // len(RULES) % 2]
    config = TrainConfig(
        dataset=TwoSpiralsConfig(n_samples=200, seed=(seed + k) % 7),  # more data sets than are kept
        model=MlpConfig(depth=1, width=8),
        optimizer=optimizer,
        trainer=TrainerConfig(budget=20, batch_size=30, compile=engine, checkpoint_every=8),
        seed=seed + k,
        output_root=str(root),
    )
    if k % 5:
        train(config, progress=False)
        return
    command = ["train", f"optimizer={optimizer.name}", "dataset=two_spirals", "model.width=8", "trainer.budget=20"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = burgersgd([*command, f"trainer.compile={engine}", f"seed={k}", f"output_root={root}"])
    if code not in (0, 3):
        raise RuntimeError(f"run {k} ended with {code}: {err.getvalue()}")


# --------------------------------------------------------------------------------------------------------------- main

PARTS: dict[str, tuple[Callable[[int, int], Iterator[Row]], int, str]] = {
    "fuzz": (fuzzed, 1000, "command lines of each kind"),
    "leaks": (leaks, 1000, "short runs in one process"),
}
"""Option -> what is done so many times, how often unless said otherwise, and what is counted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for and print a row for each promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (_, default, what) in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default {default})")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(10**6), help="seed of all parts; default: a random one"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"soak: seed {options.seed}", file=sys.stderr)
    print("| promise | tried | result | minutes |\n|---|---|---|---|", flush=True)
    failures: list[str] = []
    for name, (part, _, _) in PARTS.items():
        n = getattr(options, name)
        started = time.monotonic()
        for row in part(n, options.seed) if n else ():
            minutes = (time.monotonic() - started) / 60
            print(f"| {row.promise} | {row.tried} | {row.result} | {minutes:.1f} |", flush=True)
            failures += row.failures
            started = time.monotonic()
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
