r"""Draw a finished sweep over two keys as a heat map: the mean validation error at the end over whatever else varied.

    burgersgd train --multirun sweep.name=map optimizer.nu=0,1e-8,1e-7,1e-6,1e-5 \
        optimizer.gamma=0.1,1,10,100,.inf "seed=range(8)"
    python scripts/heat_map.py outputs/multirun/map optimizer.gamma optimizer.nu docs/sweep.png

Prints the table that it draws. A diverged run makes its cell diverge.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from burgersgd.recording.run_folder import read_config, read_status
from burgersgd.sweeps.status import job_states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("x", help="key of the horizontal axis")
    parser.add_argument("y", help="key of the vertical axis")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    cells: dict[tuple[float, float], list[float]] = defaultdict(list)
    for job in job_states(options.sweep):
        folder = options.sweep / job.name
        config, status = read_config(folder), read_status(folder)
        x, y = (value_of(config, key) for key in (options.x, options.y))
        cells[x, y].append(100 * status["validation_error"] if status["state"] == "completed" else math.inf)
    xs, ys = sorted({x for x, _ in cells}), sorted({y for _, y in cells})
    n = {len(errors) for errors in cells.values()}
    print(f"validation error in % (mean, standard deviation), n = {', '.join(map(str, n))} in each cell\n")
    print("| " + " | ".join([f"{options.y} \\ {options.x}", *(f"{x:g}" for x in xs)]) + " |")
    print("|---" * (len(xs) + 1) + "|")
    for y in ys:
        print("| " + " | ".join([f"{y:g}", *(words(cells[x, y]) for x in xs)]) + " |")
    figure, axes = plt.subplots(figsize=(1.1 * len(xs) + 2, 0.7 * len(ys) + 1.2), layout="constrained")
    means = [[mean(cells[x, y]) for x in xs] for y in ys]
    image = axes.imshow(means, origin="lower", aspect="auto", cmap="viridis_r")
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.set_xlabel(options.x.rpartition(".")[2])
    axes.set_ylabel(options.y.rpartition(".")[2])
    axes.spines[:].set_visible(False)
    middle = mean(value for row in means for value in row if math.isfinite(value))
    for j, row in enumerate(means):
        for i, value in enumerate(row):
            shown = f"{value:.2f}" if math.isfinite(value) else "diverged"
            axes.text(i, j, shown, ha="center", va="center", color="white" if middle < value < math.inf else "black")
    figure.colorbar(image, label=f"validation error, % (mean of {', '.join(map(str, n))} seeds)")
    figure.savefig(options.output, dpi=150)


def value_of(config: Any, key: str) -> float:
    """Return what a configuration has under a dotted key."""
    for name in key.split("."):
        config = config[name]
    return float(config)


def words(errors: list[float]) -> str:
    """Return mean and standard deviation."""
    if any(map(math.isinf, errors)):
        return f"{sum(map(math.isinf, errors))} diverged"
    return f"{mean(errors):.2f} ({stdev(errors):.2f})" if len(errors) > 1 else f"{errors[0]:.2f}"


if __name__ == "__main__":
    main()
