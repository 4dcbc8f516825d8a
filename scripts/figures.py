"""The figure of the README and the table of docs/defaults.md: optimizers at equal numbers of gradient evaluations.

Every optimizer has its default hyperparameters (chosen on the validation part, docs/defaults.md), the same seeds and
the same budget. Prints the table in Markdown; saves docs/digits.png. Run: python scripts/figures.py [--seeds 20]
[--epochs 100]
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from burgersgd.api import Result, train_fleet
from burgersgd.config import (
    AdamWConfig,
    LangevinConfig,
    LocalEntropyConfig,
    OptimizerConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)

OPTIMIZERS: dict[str, OptimizerConfig] = {
    "local_entropy": LocalEntropyConfig(),
    "sgd": SgdConfig(),
    "sgd, mean over 20": LocalEntropyConfig(nu=0.0, gamma=math.inf),
    "adamw": AdamWConfig(),
    "langevin": LangevinConfig(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=float, default=100.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "digits.png")
    arguments = parser.parse_args()
    runs = {}
    for name, optimizer in OPTIMIZERS.items():
        trainer = TrainerConfig(epochs=arguments.epochs)
        configs = [TrainConfig(optimizer=optimizer, trainer=trainer, seed=100 + s) for s in range(arguments.seeds)]
        runs[name] = train_fleet(configs, record=False)
    print_table(runs)
    draw(runs, arguments.output)


def print_table(runs: dict[str, list[Result]]) -> None:
    budget = next(iter(runs.values()))[0].evaluations
    n = len(next(iter(runs.values())))
    print(f"\n{budget:,} gradient evaluations, n = {n} seeds, mean and standard deviation over seeds:\n")
    print("| optimizer | test error % | sd | minus sgd, s.e. | best by validation % | test loss | diverged |")
    print("|---|---|---|---|---|---|---|")
    for name, results in runs.items():
        done = [r for r in results if r.state == "completed"]
        errors = [100 * r.test_error for r in done]
        best, loss = (statistics.mean(getattr(r, k) for r in done) for k in ("best_test_error", "test_loss"))
        deviation = statistics.stdev(errors)
        print(
            f"| {name} | {statistics.mean(errors):.2f} | {deviation:.2f} | {paired(results, runs['sgd'])} "
            f"| {100 * best:.2f} | {loss:.4f} "
            f"| {n - len(done)} |"
        )


def paired(results: list[Result], baseline: list[Result]) -> str:
    """Return mean and standard error of the differences of the test error, in %, run by run of the same seed."""
    both = [(r, b) for r, b in zip(results, baseline, strict=True) if {r.state, b.state} == {"completed"}]
    differences = [100 * (r.test_error - b.test_error) for r, b in both]
    if not any(differences):
        return "0"
    return f"{statistics.mean(differences):+.2f} ± {statistics.stdev(differences) / math.sqrt(len(differences)):.2f}"


def draw(runs: dict[str, list[Result]], path: Path) -> None:
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, results in runs.items():
        for axes, column, scale in ((left, "train_loss", 1.0), (right, "validation_error", 100.0)):
            metrics = results[0].metrics
            rows = [i for i, value in enumerate(metrics[column]) if value is not None]
            x = [metrics["evaluations"][i] for i in rows]
            y = scale * np.array([[r.metrics[column][i] for i in rows] for r in results], dtype=float)
            style = "--" if name == "langevin" else "-"  # at its default temperature it lies on sgd
            (line,) = axes.plot(x, y.mean(0), style, label=name, linewidth=1.6)
            low, high = y.mean(0) - y.std(0, ddof=1), y.mean(0) + y.std(0, ddof=1)
            axes.fill_between(x, np.maximum(low, y.min(0)), high, color=line.get_color(), alpha=0.2, linewidth=0)
    for axes, label in ((left, "mini-batch loss"), (right, "validation error, %")):
        axes.set(xlabel="gradient evaluations", ylabel=label, yscale="log")
        axes.grid(alpha=0.25, which="both")
    right.set_ylim(2.5, 25)
    right.set_yticks([3, 4, 5, 7, 10, 20])
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("")
    left.legend(frameon=False)
    n = len(next(iter(runs.values())))
    figure.suptitle(f"scikit-learn's digits, MLP 64-64-64-10: mean and standard deviation of {n} seeds", fontsize=11)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
