"""Golden runs: 20 float64 gradient evaluations of local_entropy on digits, committed as text.

Where the numbers change on purpose, write them anew and say why in the commit:

    python -m tests.optimizers.test_golden

Nothing in them depends on the machine beyond rounding: initial weights are uniform (exact multiples of 2^-24) and the
noise is small (nu = 1e-11), because normal numbers agree between backends to 1e-6 only: seen, 1e-11 in these numbers.
Doubling nu still moves the parameters by 1e-6, ten thousand times the tolerance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from burgersgd.build.prepared import prepare
from burgersgd.config import CosineScheduleConfig, LocalEntropyConfig, MlpConfig, TrainConfig, TrainerConfig

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: dict[str, dict[str, Any]] = {
    "local_entropy": {"integrator": "leimkuhler_matthews"},
    "local_entropy_momentum": {"momentum": 0.4},
}


def config_of(case: str) -> TrainConfig:
    """Return the configuration of a golden run."""
    return TrainConfig(
        model=MlpConfig(width=8, depth=2, activation="tanh", init_distribution="uniform"),
        optimizer=LocalEntropyConfig(
            lr=0.3,
            nu=1e-11,
            gamma=0.6,
            inner_steps=3,
            burn_in=2,
            outer_step=0.7,
            nu_annealing="cosine",
            gamma_scoping=0.1,
            gamma_min=0.5,
            outer_momentum=0.3,
            weight_decay=0.01,
            **CASES[case],
        ),
        schedule=CosineScheduleConfig(warmup=0.1, final=0.3),
        trainer=TrainerConfig(budget=20, batch_size=32, precision="float64", compile="off"),
        seed=3,
    )


def golden_run(case: str) -> dict[str, float]:
    """Return the loss of every evaluation, a few parameters, |x| and |x - y| at the end."""
    fleet = prepare([config_of(case)]).fleet()
    numbers = {}
    for k in range(20):
        fleet.advance(1)
        numbers[f"loss {k}"] = float(fleet.last_loss)
    for name, point in (("x", fleet.x), ("y", fleet.state.y)):
        for j in (0, 17, 300, 500, fleet.d - 1):
            numbers[f"{name}[{j}]"] = float(point[0, j])
    numbers["|x|"] = float(torch.linalg.vector_norm(fleet.x))
    numbers["|x - y|"] = float(torch.linalg.vector_norm(fleet.x - fleet.state.y))
    return numbers


@pytest.mark.parametrize("case", CASES)
def test_golden_run(case: str) -> None:
    lines = [line.rsplit(" ", 1) for line in (GOLDEN / f"{case}.txt").read_text().splitlines()]
    expected = {name: float(value) for name, value in lines}
    actual = golden_run(case)
    assert actual.keys() == expected.keys()
    wrong = {k: (actual[k], expected[k]) for k in expected if not abs(actual[k] / expected[k] - 1) < 1e-10}
    assert not wrong, f"(now, golden): {wrong}"


if __name__ == "__main__":
    for name in CASES:
        lines = [f"{key} {value!r}\n" for key, value in golden_run(name).items()]
        (GOLDEN / f"{name}.txt").write_text("".join(lines))
