"""What a sweep costs before it trains: composing and checking its jobs, in ms per job.

Run: python scripts/bench_sweep.py [--jobs 1000]
"""

from __future__ import annotations

import argparse
import time

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from burgersgd.config import CONF_DIR
from burgersgd.sweeps.compose import Composer


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    n = parser.parse_args().jobs
    optimizers = ("sgd", "local_entropy", "adamw")
    jobs = [[f"optimizer={optimizers[i % 3]}", f"optimizer.lr={0.1 + i / n:.6g}", f"seed={i}"] for i in range(n)]

    start, cpu = time.perf_counter(), time.process_time()
    composer = Composer()
    for job in jobs:
        composer.config(job)
    ours, cpu = (time.perf_counter() - start) / n, (time.process_time() - cpu) / n

    few = jobs[:20]
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        start = time.perf_counter()
        for job in few:
            OmegaConf.to_object(compose("train", overrides=job))
        hydras = (time.perf_counter() - start) / len(few)

    print(f"{n} jobs of {len(optimizers)} optimizers, composed and checked, each:")
    print(f"  burgersgd {1e3 * ours:.2f} ms ({1e3 * cpu:.2f} ms of CPU), hydra.compose {1e3 * hydras:.0f} ms")


if __name__ == "__main__":
    main()
