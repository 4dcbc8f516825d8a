"""Rules that look correct and are not: each is computed as its author intended, or refused in one line."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from burgersgd.training import rule_check
from tests.contract import suite
from tests.contract.rules import ENTROPY, FOREIGN, HYPER, PARLE, SHIPPED, HeavyBall, Parle, Rates, Two


@dataclass(frozen=True)
class _Views(HeavyBall):
    """Starts from views of one tensor, one of them turned around and back."""

    def init(self, x: Any, xi: Any) -> Two:
        return Two(x.T.contiguous().T, x.view(-1).view_as(x))


@dataclass(frozen=True)
class _Expanded(HeavyBall):
    """Starts from a number that is stretched over the vector: one place in memory for all of them."""

    def init(self, x: Any, xi: Any) -> Two:
        return Two(x, x.new_zeros(()).expand_as(x))

    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        velocity = c.m * state.other - c.lr * grad
        return Two(state.x + velocity, velocity)


@dataclass(frozen=True)
class _Unused(HeavyBall):
    """Leaves the gradient of one step out of two unused, by a coefficient and not by a branch."""

    gradients_per_cycle = 2

    def coefficients(self, hyper: Any, factor: Any, clock: Any) -> Rates:
        lr = hyper["lr"] * factor * (clock.position == 1)
        return Rates(lr, hyper["m"].expand_as(lr))


@pytest.mark.parametrize("rule", [_Views(), _Expanded(), _Unused()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("engine", ["eager", "native", "native_update"])
def test_is_computed_as_meant(rule: Any, engine: str) -> None:
    fleet = suite.fleet(rule, HYPER, engine)
    fleet.advance(fleet.budget)
    suite.assert_same(fleet.state, suite.expected(rule, HYPER), 1e-11)


class _NormOfTheFleet(HeavyBall):
    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        return Two(state.x - c.lr * grad / grad.norm(), state.x)  # of all runs together


class _MeanOfTheFleet(HeavyBall):
    gradients_per_cycle = 2

    def end_cycle(self, c: Any, state: Any) -> Two:
        return Two(state.x + c.m * (state.x.mean(0) - state.x), state.other)


class _Branches(HeavyBall):
    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        clipped = grad / norm if (norm > 1.01 * norm.min()).any() else grad
        return Two(state.x - c.lr * clipped, state.x)


class _EvaluatesTogether(HeavyBall):
    def evaluate_at(self, state: Any) -> Any:
        return state.x - state.x.mean()


class _SaysTogether(HeavyBall):
    def diagnostics(self, c: Any, state: Any) -> dict[str, Any]:
        return {"largest": state.x.abs().amax().expand(len(state.x), 1)}


class _DrawsItself(HeavyBall):
    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        return Two(state.x - c.lr * (grad + 0.1 * torch.randn_like(grad)), state.x)


class _DrawsOneNumber(HeavyBall):
    """Would be written into the C of the rule as a constant."""

    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        return Two(state.x - c.lr * grad * random.random(), state.x)


class _Counts(HeavyBall):
    calls = itertools.count(1)

    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        return Two(state.x - c.lr * grad / next(self.calls), state.x)


class _Decays(HeavyBall):
    def coefficients(self, hyper: Any, factor: Any, clock: Any) -> Rates:
        hyper["lr"].mul_(0.5)
        return super().coefficients(hyper, factor, clock)


class _WritesCoefficients(HeavyBall):
    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        return Two(state.x - c.lr.mul_(0.9) * grad, state.x)


class _WritesBehindThePast(HeavyBall):
    """By .data, which no version counter of torch sees."""

    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        c.lr.data.mul_(0.9)
        return Two(state.x - c.lr * grad, state.x)


TOGETHER, AGAIN = "the other runs of a fleet change a run", "returns different numbers when it is called again"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (_NormOfTheFleet(), f"_NormOfTheFleet.step: {TOGETHER}"),
        (_MeanOfTheFleet(), f"_MeanOfTheFleet.end_cycle: {TOGETHER}"),
        (_Branches(), f"_Branches.step: {TOGETHER}"),
        (_EvaluatesTogether(), f"_EvaluatesTogether.evaluate_at: {TOGETHER}"),
        (_SaysTogether(), f"_SaysTogether.diagnostics: {TOGETHER}"),
        (_DrawsItself(), f"_DrawsItself.step: {AGAIN}"),
        (_DrawsOneNumber(), f"_DrawsOneNumber.step: {AGAIN}"),
        (_Counts(), f"_Counts.step: {AGAIN}"),
        (_Decays(), "_Decays.coefficients: changes its arguments"),
        (_WritesCoefficients(), "_WritesCoefficients.step: changes its arguments"),
        (_WritesBehindThePast(), f"_WritesBehindThePast.step: {AGAIN}"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HeavyBall) else "",
)
@pytest.mark.parametrize(("runs", "precision"), [(1, "float64"), (3, "float32")])
def test_is_refused_in_one_line(rule: Any, message: str, runs: int, precision: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        suite.fleet(rule, HYPER, "eager", runs, precision=precision)
    assert "\n" not in str(caught.value)


class _KnowsItsColumns(HeavyBall):
    """Cannot be called on fewer columns than its state has."""

    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        return Two(state.x - c.lr * (grad + 1e-3 * grad[:, 12_000, None]), state.x)


class _KnowsItsColumnsTogether(_KnowsItsColumns):
    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Two:
        return super().step(c, state, grad / grad.norm(), norm, xi)


def test_large_states_are_looked_at_in_part_and_whole_where_a_rule_needs_that(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    looked = rule_check._check_runs_apart

    def look(rule: Any, c: Any, state: Any) -> None:
        sizes.append(state.x.shape[1])
        looked(rule, c, state)

    monkeypatch.setattr(rule_check, "_check_runs_apart", look)
    d = suite.fleet(HeavyBall(), HYPER, "eager", width=suite.LARGE, precision="float32").d
    assert set(sizes) == {10_000}
    with pytest.raises(ValueError, match=f"_NormOfTheFleet.step: {TOGETHER}"):
        suite.fleet(_NormOfTheFleet(), HYPER, "eager", width=suite.LARGE, precision="float32")
    sizes.clear()
    suite.fleet(_KnowsItsColumns(), HYPER, "eager", width=suite.LARGE, precision="float32")
    assert sizes[-2:] == [10_000, d]
    with pytest.raises(ValueError, match=f"_KnowsItsColumnsTogether.step: {TOGETHER}"):
        suite.fleet(_KnowsItsColumnsTogether(), HYPER, "eager", width=suite.LARGE, precision="float32")


def test_replicas_that_see_one_another_are_no_runs_that_do() -> None:
    class Across(Parle):
        def end_cycle(self, c: Any, state: Any) -> Any:
            state = super().end_cycle(c, state)
            return state._replace(x=state.x + 0.1 * (state.x.mean((0, 1), keepdim=True) - state.x))

    assert suite.fleet(Parle(**PARLE), ENTROPY, "eager").points == 3
    with pytest.raises(ValueError, match=f"Across.end_cycle: {TOGETHER}"):
        suite.fleet(Across(**PARLE), ENTROPY, "eager")


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e3])
def test_no_right_rule_is_refused_whatever_its_hyperparameters(precision: str, scale: float) -> None:
    for rule, hyper in FOREIGN + SHIPPED:
        suite.fleet(rule, hyper | {"lr": hyper["lr"] * scale}, "eager", 2, precision=precision)
