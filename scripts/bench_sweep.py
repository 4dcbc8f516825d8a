"""What a sweep costs before it trains: composing and checking its jobs, in ms per job.

Run: python scripts/bench_sweep.py [--jobs 1000]
"""

from __future__ import annotations

import argparse
import time

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from burgersgd.config import CONF_DIR
from burgersgd.sweeps.sweep import Sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    n = parser.parse_args().jobs
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
    print(f"{len(jobs)} jobs of 4 optimizers, composed, checked and named, each: {ours:.2f} ms ({cpu:.2f} ms of CPU)")
    print(f"hydra.compose alone, each: {hydras:.0f} ms")


if __name__ == "__main__":
    main()
