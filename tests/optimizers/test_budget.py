"""Everything is counted in gradient evaluations: budgets, cycles, and how often a gradient is really taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from burgersgd.build.parts import budget_of
from burgersgd.build.prepared import prepare
from burgersgd.config import (
    AdamWConfig,
    ConfigError,
    GdConfig,
    LangevinConfig,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.training.engines.native import NativeSteps

CYCLES = [
    (LocalEntropyConfig(inner_steps=4, burn_in=3), 7),
    (LocalEntropyConfig(inner_steps=5), 5),
    (LocalEntropyConfig(inner_steps=1), 1),
    (PaperSDEConfig(), 1),
    (PaperLiteralConfig(period=3), 1),
    (SgdConfig(), 1),
    (GdConfig(), 1),
    (AdamWConfig(), 1),
    (LangevinConfig(), 1),
]


@pytest.mark.parametrize(("optimizer", "cycle"), CYCLES, ids=lambda value: getattr(value, "name", str(value)))
@pytest.mark.parametrize("engine", ["off", "auto"])
def test_the_budget_is_what_is_spent_and_x_moves_at_cycle_ends_only(
    optimizer: OptimizerConfig, cycle: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = TrainerConfig(budget=25, batch_size=20, compile=engine)
    config = TrainConfig(model=MlpConfig(depth=0), optimizer=optimizer, trainer=trainer)
    prepared = prepare([config])
    fleet = prepared.fleet()
    steps: Any = fleet.stepper
    steps = getattr(steps, "one_by_one", steps)
    gradient, calls = steps.gradient, []

    def counting(at: Tensor, *rest: Any) -> Any:
        calls.append(at.clone())
        return gradient(at, *rest)

    native_steps = NativeSteps.__call__

    def counting_natively(self: NativeSteps, first: int, sizes: list[int], *rest: Any) -> None:
        calls.extend(fleet.rule.gradient_at(None, fleet.state).clone() for _ in sizes)
        native_steps(self, first, sizes, *rest)

    steps.gradient = counting
    monkeypatch.setattr(NativeSteps, "__call__", counting_natively)
    moved_at = []
    for k in range(1, prepared.budget + 1):
        before = fleet.x.clone()
        fleet.advance(1)
        if not torch.equal(fleet.x, before):
            moved_at.append(k)
    assert prepared.budget == 25 // cycle * cycle == len(calls) == fleet.evaluations
    if isinstance(optimizer, PaperLiteralConfig):
        assert moved_at == [4, 7, 10, 13, 16, 19, 22, 25]  # k = 3, 6, ...; at k = 0 x and y are still one
    elif isinstance(optimizer, PaperSDEConfig):
        assert moved_at == list(range(2, 26))
    else:
        assert moved_at == list(range(cycle, 26, cycle))
    assert len({tuple(at[0].tolist()) for at in calls}) == len(calls), "a gradient was taken twice at one point"
    with pytest.raises(ValueError, match="n=1: only 0 gradient evaluations of the budget are left"):
        fleet.advance(1)


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"budget": 7}, 7),
        ({"budget": 13}, 7),
        ({"budget": 14}, 14),
        ({"epochs": 3.0}, 28),  # 10 evaluations an epoch, the last batch short
        ({"epochs": 2.5}, 21),  # 25 asked for
        ({"epochs": 1.0, "drop_last": True}, 7),  # 9 asked for
        ({"epochs": 3.0, "drop_last": True}, 21),  # 27
        ({"epochs": 100.0, "budget": 21}, 21),  # a budget goes before epochs
    ],
)
def test_budgets_round_down_to_whole_cycles(trainer: dict[str, Any], expected: int) -> None:
    config = TrainConfig(
        optimizer=LocalEntropyConfig(inner_steps=4, burn_in=3), trainer=TrainerConfig(batch_size=10, **trainer)
    )
    assert budget_of(config, 95, 10) == expected


def test_a_budget_below_one_cycle_is_an_error() -> None:
    optimizer = LocalEntropyConfig(inner_steps=4, burn_in=3)
    with pytest.raises(ConfigError, match=r"trainer\.budget=6: must be >= .* = 7, or x would never move"):
        TrainConfig(optimizer=optimizer, trainer=TrainerConfig(budget=6))
    config = TrainConfig(optimizer=optimizer, trainer=TrainerConfig(epochs=0.6, batch_size=10))
    with pytest.raises(ConfigError, match=r"trainer\.epochs=0\.6: is 6 gradient evaluations, must be >= 7"):
        budget_of(config, 95, 10)


def test_a_budget_beyond_exact_fractions_is_an_error() -> None:
    config = TrainConfig(trainer=TrainerConfig(epochs=1e300))
    with pytest.raises(
        ConfigError, match=r"trainer\.epochs=1e\+300: is 1e\+301 gradient evaluations, must be < 9\.01e\+15"
    ):
        budget_of(config, 95, 10)
