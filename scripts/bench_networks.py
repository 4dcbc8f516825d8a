"""How fast are larger networks on the CPU? Plain in-memory PyTorch SGD, and burgersgd, taking turns; batch 128.

    python scripts/bench_networks.py [--network lenet|mlp] [--rounds 5] [--threads 1,2]

lenet: images of 28 x 28; mlp: MNIST-shaped, 784-1024-1024-10. Prints microseconds per gradient evaluation: the median
of the rounds and their range, and the median of the rounds' ratios to plain PyTorch, which draws no noise. The data are
random: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.nn import functional as F

from burgersgd.build.prepared import prepare
from burgersgd.config import (
    DeviceConfig,
    LeNetConfig,
    LocalEntropyConfig,
    MlpConfig,
    ModelConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.datasets import Dataset, Part

BATCH, EXAMPLES, LR = 128, 1000, 0.01
SECONDS = 1.0
"""Of a turn, about."""
NETWORKS: dict[str, ModelConfig] = {"lenet": LeNetConfig(), "mlp": MlpConfig(depth=2, width=1024)}


def images() -> Dataset:
    """Return random images with random labels."""
    generator = torch.Generator().manual_seed(0)

    def part() -> Part:
        inputs = torch.randn(EXAMPLES, 1, 28, 28, generator=generator)
        return Part(inputs, torch.randint(10, (EXAMPLES,), generator=generator))

    return Dataset("images", "classification", part(), part(), part(), 10)


def prepared(model: ModelConfig, n_runs: int, threads: int, **trainer: str) -> Callable[[int], None]:
    """Return what takes n steps of local_entropy in every run of a fleet."""
    config = TrainConfig(
        model=model,
        optimizer=LocalEntropyConfig(lr=LR, nu=1e-6),
        trainer=TrainerConfig(budget=10**9, batch_size=BATCH, **trainer),  # pyright: ignore[reportArgumentType]
        device=DeviceConfig(name="cpu", threads=threads),
    )
    return prepare([dataclasses.replace(config, seed=seed) for seed in range(n_runs)], dataset=images()).fleet().advance


def plain(model: ModelConfig) -> Callable[[int], None]:
    """Return what takes n steps of torch.optim.SGD on batches of tensors in memory."""
    data = images()
    config = TrainConfig(model=model, device=DeviceConfig(name="cpu"))
    network = prepare([config], dataset=data).problem.model.module()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)

    def advance(n: int) -> None:
        for _ in range(n):
            chosen = torch.randint(EXAMPLES, (BATCH,))
            optimizer.zero_grad()
            F.cross_entropy(network(data.train.inputs[chosen]), data.train.targets[chosen]).backward()
            optimizer.step()

    return advance


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How fast are larger networks on the CPU?")
    parser.add_argument("--network", choices=NETWORKS, default="lenet")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    given = parser.parse_args()
    model = NETWORKS[given.network]
    for threads in map(int, given.threads.split(",")):
        torch.set_num_threads(threads)
        rivals = {
            "plain PyTorch SGD, in memory": (plain(model), 1),
            "burgersgd, one run": (prepared(model, 1, threads), 1),
            "burgersgd, 8 runs": (prepared(model, 8, threads), 8),
            "burgersgd, one run, gradient by autograd": (prepared(model, 1, threads, compile="off"), 1),
            "the same in bfloat16": (prepared(model, 1, threads, compile="off", precision="bfloat16"), 1),
        }
        steps = {}
        for name, (advance, _) in rivals.items():
            advance(3)
            started = time.perf_counter()
            advance(5)
            steps[name] = max(5, round(SECONDS * 5 / (time.perf_counter() - started)))
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in range(given.rounds):
            for name, (advance, n_runs) in rivals.items():
                started = time.perf_counter()
                advance(steps[name])
                times[name].append(1e6 * (time.perf_counter() - started) / (steps[name] * n_runs))
        print(f"\n{given.network}, {threads} thread{'s' * (threads > 1)}, {given.rounds} rounds:")
        print("us per gradient evaluation (range), times plain")
        base = times["plain PyTorch SGD, in memory"]
        for name, us in times.items():
            ratio = median(b / t for b, t in zip(base, us, strict=True))
            print(f"  {name:42s} {median(us):8.0f} ({min(us):.0f} - {max(us):.0f})  {ratio:5.2f}")


if __name__ == "__main__":
    main()
