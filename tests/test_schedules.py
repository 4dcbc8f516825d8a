"""Schedules against closed forms, as functions of the fraction of the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from burgersgd import schedules
from burgersgd.config import GROUPS, ScheduleConfig
from burgersgd.optimizers.protocol import Clock


def factors(name: str, budget: int, hyper: Mapping[str, Sequence[float]], first: int = 0) -> Tensor:
    """Return the factor at every evaluation from `first` on, ``[steps, runs]``."""
    step = torch.arange(first, budget).view(-1, 1, 1)
    clock = Clock(step, step.double() / budget, step, torch.zeros_like(step), budget)
    columns = {key: torch.tensor(values, dtype=torch.float64)[:, None] for key, values in hyper.items()}
    runs = len(hyper["warmup"])
    return schedules.factor(name, columns, clock).expand(budget - first, runs, 1)[..., 0]


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda s: 1.0,
    "step": lambda s: 0.3 ** math.floor(s / 0.25 + 1e-9),
    "cosine": lambda s: 0.2 + 0.8 * math.cos(math.pi * s / 2) ** 2,
    "linear": lambda s: 0.2 * s + (1 - s),
}
FLOATS: dict[str, dict[str, float]] = {
    "constant": {},
    "step": {"decay": 0.3, "every": 0.25},
    "cosine": {"final": 0.2},
    "linear": {"final": 0.2},
}


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("name", list(SHAPES))
def test_closed_forms(name: str, warmup: float) -> None:
    budget = 40
    actual = factors(name, budget, {key: [value] for key, value in (FLOATS[name] | {"warmup": warmup}).items()})[:, 0]
    for k in range(budget):
        if k + 1 <= warmup * budget:
            expected = (k + 1) / (warmup * budget)
        else:
            expected = SHAPES[name](max(0.0, k / budget - warmup) / (1 - warmup))
        assert math.isclose(float(actual[k]), expected, rel_tol=1e-12), (k, float(actual[k]), expected)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_the_first_evaluation_has_a_positive_factor_and_the_full_one_without_warmup(name: str, budget: int) -> None:
    floats = {key: [value] * 2 for key, value in FLOATS[name].items()}
    first = factors(name, budget, floats | {"warmup": [0.0, 0.7]})[0]
    assert first[0] == 1
    assert math.isclose(float(first[1]), min(1, 1 / budget / 0.7), rel_tol=1e-12)


def test_cosine_and_linear_tend_to_their_final_value() -> None:
    for name in ("cosine", "linear"):
        assert abs(factors(name, 100_000, {"warmup": [0.3], "final": [0.2]}, first=99_999).item() - 0.2) < 2e-5


def test_step_schedules_fall_exactly_at_their_fractions() -> None:
    actual = factors("step", 10, {"warmup": [0.0, 0.0], "decay": [0.5, 0.1], "every": [0.1, 0.3]})
    assert torch.allclose(actual[:, 0], 0.5 ** torch.arange(10.0, dtype=torch.float64), rtol=1e-12)
    steps = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3], dtype=torch.float64)  # 0.3 / 0.3 and 0.9 / 0.3 count
    assert torch.allclose(actual[:, 1], 0.1**steps, rtol=1e-12)


def test_the_last_step_of_the_warmup_is_the_peak() -> None:
    actual = factors("linear", 10, {"warmup": [0.3], "final": [0.0]})[:, 0]
    expected = [1 / 3, 2 / 3, 1, 1, *((10 - k) / 7 for k in range(4, 10))]
    assert torch.allclose(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12)


def test_factors_depend_on_the_fraction_of_the_budget_alone() -> None:
    hyper = {"warmup": [0.0], "final": [0.1]}
    torch.testing.assert_close(factors("cosine", 50, hyper), factors("cosine", 100, hyper)[::2], rtol=1e-14, atol=0)


def test_runs_have_their_own_schedules_and_blocks_continue_each_other() -> None:
    hyper = {"warmup": [0.0, 0.2, 0.05], "final": [0.5, 0.0, 0.9]}
    together = factors("cosine", 30, hyper)
    alone = [factors("cosine", 30, {key: values[i : i + 1] for key, values in hyper.items()}) for i in range(3)]
    assert torch.equal(together, torch.cat(alone, dim=1))
    assert torch.equal(together[13:], factors("cosine", 30, hyper, first=13))


def test_every_schedule_of_the_configuration_exists() -> None:
    for choice in GROUPS["schedule"].values():
        config = choice()
        assert isinstance(config, ScheduleConfig)
        actual = factors(config.name, 10, {key: [value] for key, value in config.hyper().items()})
        assert bool(((actual > 0) & (actual <= 1)).all())
    with pytest.raises(KeyError, match="exponential"):
        factors("exponential", 10, {"warmup": [0.0]})
