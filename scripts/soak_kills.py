"""Kill runs and sweeps at random moments until they are done, and compare what they leave with undisturbed ones.

Part of `make soak`. Every attempt is a process of its own, forked from this one, that the system ends after a random
time of computing (SIGVTALRM, which nothing handles: as SIGKILL would, with no chance to clean up). One Markdown row per
kind of run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the comparison is the tests' own

from burgersgd import native
from burgersgd.api import train_jobs
from burgersgd.config import (
    AdamWConfig,
    LocalEntropyConfig,
    MlpConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.recording.run_folder import CHECKPOINT, STAGED, read_status
from tests.test_resume import assert_same

RULES = {
    "local_entropy": LocalEntropyConfig(nu=1e-6, inner_steps=7, burn_in=2, integrator="leimkuhler_matthews"),
    "sgd": SgdConfig(lr=0.1, momentum=0.7),
    "adamw": AdamWConfig(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=200, help="smallest number of kills, spread over all kinds of runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("normals", "mlp_gradient"):
        native.library(name)
    moments = random.Random(options.seed)
    kinds = [(rule, compile, runs) for rule in RULES for compile in ("native", "off") for runs in (1, 5)]
    quota = -(-options.kills // len(kinds))
    print("| run | kills | before the first checkpoint | while checkpoints were changed over | differences |")
    print("|---|---:|---:|---:|---:|")
    total = 0
    with tempfile.TemporaryDirectory() as root:
        for rule, compile, runs in kinds:
            kills, early, staged = soak(Path(root, f"{rule}-{compile}-{runs}"), rule, compile, runs, quota, moments)
            total += kills
            print(f"| {rule}, {compile}, {runs} together | {kills} | {early} | {staged} | 0 |", flush=True)
    print(f"\n{total} kills, no difference; seed {options.seed}")


def soak(root: Path, rule: str, compile: str, runs: int, quota: int, moments: random.Random) -> tuple[int, int, int]:
    """Finish jobs again and again, killed in between, until there were `quota` kills; raises where a bit differs."""
    kills = early = staged = attempt = 0
    budget = 2_000 if compile == "native" else 300
    trainer = TrainerConfig(budget=budget, compile=compile, checkpoint_every=budget // 40, log_every=budget // 100)

    def configs(name: str) -> list[TrainConfig]:
        return [
            TrainConfig(
                optimizer=RULES[rule],
                model=MlpConfig(width=16),
                trainer=trainer,
                output_root=str(root),
                run_name=f"{name}-{seed}",
                seed=seed,
            )
            for seed in range(runs)
        ]

    def work(name: str) -> None:
        train_jobs(configs(name), [()] * runs, progress=False)

    started = time.process_time()
    work("undisturbed")
    longest = (time.process_time() - started) / 3
    while kills < quota:
        name, attempt = f"killed{attempt}", attempt + 1
        folders = [root / f"{name}-{seed}" for seed in range(runs)]
        while not in_a_process_of_its_own(lambda name=name: work(name), moments.uniform(0, longest)):
            kills += 1
            early += not any((folder / CHECKPOINT).exists() for folder in folders)
            staged += any((folder / STAGED).exists() for folder in folders)
        for seed, folder in enumerate(folders):
            assert read_status(folder)["state"] == "completed"
            assert_same(root / f"undisturbed-{seed}", folder)
    return kills, early, staged


def in_a_process_of_its_own(work: Callable[[], None], seconds: float) -> bool:
    """Do the work in a forked process that dies after so many seconds of computing; return whether it was done."""
    child = os.fork()
    if child == 0:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds + 1e-4)
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGVTALRM
        return False
    assert os.WEXITSTATUS(status) == 0, "the run failed"
    return True


if __name__ == "__main__":
    main()
