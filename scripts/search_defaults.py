"""The search behind the defaults: grids on digits, judged on the validation part; prints docs/defaults.md's tables.

Every setting is trained with the same seeds and the same number of gradient evaluations; the test part is not looked
at. Settings are compared with the best one run by run. The grids are of unlike sizes, so the last table says how good
the best of as many random settings of each is expected to be. Run: python scripts/search_defaults.py [--seeds 10]
[--epochs 100]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import statistics
from typing import Any

from burgersgd.analysis.tuning import Trial, tuning_curve
from burgersgd.api import train_fleet
from burgersgd.config import (
    AdamWConfig,
    GdConfig,
    LangevinConfig,
    LocalEntropyConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)

RATES = (0.03, 0.1, 0.3)
GRIDS: list[tuple[OptimizerConfig, dict[str, tuple[Any, ...]]]] = [
    (
        LocalEntropyConfig(),
        {"inner_steps": (5, 20), "lr": (0.1, 0.3, 0.6, 1.0), "gamma": (1.0, 3.0, 10.0, 30.0), "nu": (0.0, 1e-7, 1e-6)},
    ),
    (SgdConfig(), {"momentum": (0.0, 0.9), "lr": (0.01, *RATES, 0.6, 1.0)}),
    (GdConfig(), {"momentum": (0.0, 0.9), "lr": (0.1, 0.3, 1.0)}),
    (AdamWConfig(), {"lr": (3e-4, 1e-3, 3e-3, 1e-2), "weight_decay": (0.0, 1e-2)}),
    (LangevinConfig(), {"lr": (*RATES, 0.6, 1.0), "temperature": (1e-7, 1e-6, 1e-5)}),
    (PaperSDEConfig(), {"lr": RATES, "epsilon": (0.03, 0.1, 0.3), "gamma": (0.3, 1.0)}),
    (PaperLiteralConfig(period=20, noise="std"), {"lr": RATES, "gamma": (0.1, 0.3, 1.0)}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=100.0)
    parser.add_argument("--only", help="name of the only optimizer to search")
    arguments = parser.parse_args()
    tried = {
        base.name: search(base, grid, arguments.seeds, arguments.epochs)
        for base, grid in GRIDS
        if arguments.only in (None, base.name)
    }
    fewest = min(map(len, tried.values()))
    print(f"\n### The best of {fewest} settings drawn from each grid, expected\n")
    print("| optimizer | settings | validation error % of the best of them | of the best of all |\n|---|---|---|---|")
    for name, trials in tried.items():
        curve = tuning_curve(trials, "random")
        print(f"| {name} | {len(trials)} | {curve.validation[fewest - 1]:.2f} | {curve.validation[-1]:.2f} |")


def search(base: OptimizerConfig, grid: dict[str, tuple[Any, ...]], n_seeds: int, epochs: float) -> list[Trial]:
    """Train all settings of a grid, print the best ten, by mean validation error, then loss, and return all of them."""
    rows, trials = [], []
    for values in itertools.product(*grid.values()):
        optimizer = dataclasses.replace(base, **dict(zip(grid, values, strict=True)))
        trainer = TrainerConfig(epochs=epochs)
        configs = [TrainConfig(optimizer=optimizer, trainer=trainer, seed=seed) for seed in range(n_seeds)]
        results = train_fleet(configs, record=False, progress=False)
        spent = float(sum(result.evaluations for result in results))
        if all(result.state == "completed" for result in results):
            errors = [100 * result.validation_error for result in results]
            losses = [result.validation_loss for result in results]
            rows.append((statistics.mean(errors), statistics.mean(losses), errors, values))
            trials.append(Trial(rows[-1][0], math.nan, spent))
        else:
            trials.append(Trial(math.inf, math.nan, spent))
    print(f"\n### {base.name}: {len(trials)} settings, {len(trials) - len(rows)} with a diverged run; the best ten\n")
    print("| " + " | ".join(grid) + " | validation error % | sd | minus the first, s.e. | validation loss |")
    print("|" + "---|" * (len(grid) + 4))
    first = min(rows)[2]
    for error, loss, errors, values in sorted(rows)[:10]:
        differences = [a - b for a, b in zip(errors, first, strict=True)]
        minus = f"{statistics.mean(differences):+.2f} ± {statistics.stdev(differences) / math.sqrt(n_seeds):.2f}"
        numbers = f"{error:.2f} | {statistics.stdev(errors):.2f} | {'0' if errors is first else minus} | {loss:.4f}"
        print("| " + " | ".join(f"{v:g}" for v in values) + f" | {numbers} |", flush=True)
    return trials


if __name__ == "__main__":
    main()
