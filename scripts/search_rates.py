"""The search for the shares of the default learning rate (build/rates.py): prints a table of docs/defaults.md.

Every rule is trained with every rate on networks of growing depth, on LeNet, with both losses and on other data, and
judged on the validation part. A cell is the worst of the seeds: error (RMSE), D for each seed that diverged.
Run: python scripts/search_rates.py [--only sgd] [--seeds 2] [--budget 1000]
"""

from __future__ import annotations

import argparse
import dataclasses

from burgersgd.api import train_fleet
from burgersgd.config import (
    AdamWConfig,
    DatasetConfig,
    DigitsConfig,
    GdConfig,
    LangevinConfig,
    LeNetConfig,
    LocalEntropyConfig,
    LossConfig,
    MlpConfig,
    Mnist1dConfig,
    Mnist5kConfig,
    ModelConfig,
    OptimizerConfig,
    PaperSDEConfig,
    SgdConfig,
    TeacherStudentConfig,
    TrainConfig,
    TrainerConfig,
    TwoSpiralsConfig,
)

RATES = (0.6, 0.3, 0.2, 0.1, 0.06, 0.03, 0.01)
RULES: dict[str, OptimizerConfig] = {
    "sgd": SgdConfig(),
    "sgd, momentum 0.9": SgdConfig(momentum=0.9),
    "local_entropy": LocalEntropyConfig(),
    "adamw": AdamWConfig(),
    "gd": GdConfig(),
    "paper_sde": PaperSDEConfig(),
    "langevin": LangevinConfig(),
}
PROBLEMS: list[tuple[str, DatasetConfig, ModelConfig, str]] = [
    *((f"digits, depth {d}", DigitsConfig(), MlpConfig(depth=d), "cross_entropy") for d in (0, 2, 5, 8)),
    *((f"digits, squared, depth {d}", DigitsConfig(), MlpConfig(depth=d), "squared_error") for d in (0, 2, 5, 8)),
    *((f"teacher, depth {d}", TeacherStudentConfig(), MlpConfig(depth=d), "squared_error") for d in (0, 2, 5, 8)),
    ("teacher, 4 outputs", TeacherStudentConfig(outputs=4), MlpConfig(), "squared_error"),
    ("mnist1d", Mnist1dConfig(), MlpConfig(), "cross_entropy"),
    ("two spirals", TwoSpiralsConfig(), MlpConfig(), "cross_entropy"),
    ("mnist5k, mlp", Mnist5kConfig(), MlpConfig(), "cross_entropy"),
    ("mnist5k, lenet", Mnist5kConfig(), LeNetConfig(), "cross_entropy"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--only", help="name of the only rule to search")
    given = parser.parse_args()
    for rule, base in RULES.items():
        if given.only in (None, rule):
            rates = [r / 100 for r in RATES] if base.name == "adamw" else list(RATES)
            print(f"\n### {rule}\n\n| | " + " | ".join(f"{r:g}" for r in rates) + " |\n" + "|---" * 8 + "|")
            for problem in PROBLEMS:
                cells = [cell(base, lr, problem, given.seeds, given.budget) for lr in rates]
                print(f"| {problem[0]} | " + " | ".join(cells) + " |", flush=True)


def cell(
    base: OptimizerConfig, lr: float, problem: tuple[str, DatasetConfig, ModelConfig, str], n_seeds: int, budget: int
) -> str:
    """Return the worst validation error of all seeds at one rate, and a D for each that diverged."""
    _, dataset, model, loss = problem
    budget = 100 if base.name == "gd" else budget * 3 // 10 if model.name == "lenet" else budget
    optimizer, trainer = dataclasses.replace(base, lr=lr), TrainerConfig(budget=budget)
    common = {"dataset": dataset, "model": model, "optimizer": optimizer, "trainer": trainer}
    configs = [TrainConfig(**common, loss=LossConfig(name=loss), seed=s) for s in range(n_seeds)]
    results = train_fleet(configs, record=False, progress=False)
    worst = max(r.validation_error for r in results)
    return "D" * sum(r.state != "completed" for r in results) or f"{worst:.3f}"


if __name__ == "__main__":
    main()
