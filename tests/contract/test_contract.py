"""Any rule, in every engine, in fleets of every size: the same numbers, or one line that says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contract import suite
from tests.contract.rules import FOREIGN, HYPER, HeavyBall, Two

TOLERANCE = {"float64": 1e-11, "float32": 2e-5}
by_name = pytest.mark.parametrize(("rule", "hyper"), FOREIGN, ids=[type(rule).__name__ for rule, _ in FOREIGN])


@pytest.mark.parametrize("engine", ["eager", "native", "native_update"])
@pytest.mark.parametrize(("runs", "width"), [(1, 7), (3, 7), (17, 7), (1, 2000), (3, 700)])  # d up to 150,010
@by_name
def test_every_engine_computes_what_the_rule_says(
    rule: Any, hyper: dict[str, float], runs: int, width: int, engine: str
) -> None:
    fleet = suite.fleet(rule, hyper, engine, runs, width)
    fleet.advance(suite.STEPS)
    suite.assert_same(fleet.state, suite.expected(rule, hyper, runs, width), TOLERANCE["float64"])


@pytest.mark.parametrize("engine", ["eager", "native", "native_update"])
@by_name
def test_in_single_precision_too(rule: Any, hyper: dict[str, float], engine: str) -> None:
    fleet = suite.fleet(rule, hyper, engine, precision="float32")
    fleet.advance(suite.STEPS)
    suite.assert_same(fleet.state, suite.expected(rule, hyper, precision="float32"), TOLERANCE["float32"])


@pytest.mark.parametrize("engine", ["eager", "native", "native_update"])
@by_name
def test_a_run_that_is_stopped_anywhere_goes_on_with_the_same_bits(
    rule: Any, hyper: dict[str, float], engine: str
) -> None:
    whole = suite.fleet(rule, hyper, engine)
    whole.advance(suite.STEPS)
    for steps in (1, 4):  # cycles of two are cut in the middle
        first, second = suite.fleet(rule, hyper, engine), suite.fleet(rule, hyper, engine)
        first.advance(steps)
        second.restore([first.snapshot(run) for run in range(3)])
        first.advance(1)  # what is restored is no view of it
        second.advance(suite.STEPS - steps)
        suite.assert_same(second.state, whole.state, 0.0)


@pytest.mark.parametrize("engine", ["eager", "native", "native_update"])
@by_name
def test_a_diverged_run_is_frozen_and_the_others_go_on(rule: Any, hyper: dict[str, float], engine: str) -> None:
    fleet, healthy = suite.fleet(rule, hyper, engine), suite.fleet(rule, hyper, engine)
    fleet.loss_limit[1] = -1.0  # below every loss
    fleet.loss_limit[[0, 2]] = 1e6
    fleet.step = healthy.step = 1  # the first loss would set the limit anew
    before = [None if field is None else field[1].clone() for field in fleet.state]
    for f in (fleet, healthy):
        f.advance(suite.STEPS - 1)
    assert fleet.alive.tolist() == [True, False, True]
    assert fleet.diverged_at.tolist() == [-1, 1, -1]
    for field, start, other in zip(fleet.state, before, healthy.state, strict=True):
        if field is not None:
            assert start is not None
            assert torch.equal(field[1], start)
            tolerance = 0 if engine == "native" else 1e-12
            assert torch.allclose(field[[0, 2]], other[[0, 2]], rtol=tolerance, atol=tolerance)


class _Slips(HeavyBall):
    """Breaks the contract in the way that it is told."""

    def __init__(self, slip: str) -> None:
        object.__setattr__(self, "slip", slip)

    def init(self, x: Any, xi: Any) -> Any:
        slip: Any = getattr(self, "slip")  # noqa: B009
        return {"a list": [x, x], "a number": Two(x, x[:, :1])}.get(slip, Two(x, x))

    def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Any:
        x, slip = state.x - c.lr * grad, getattr(self, "slip")  # noqa: B009
        if slip == "in place":
            return Two(state.x.sub_(c.lr * grad), state.other)
        if slip == "the gradient":
            return Two(state.x - grad.mul_(c.lr), state.other)
        return {
            "a pair": (x, state.other),
            "a sum": Two(x.sum(dim=1, keepdim=True), state.other),
            "no vector": Two(x, None),  # pyright: ignore[reportArgumentType]
            "precision": Two(x.half(), state.other),
        }.get(slip, Two(x, state.other))

    def end_cycle(self, c: Any, state: Any) -> Any:
        return Two(state.x, state.other.zero_()) if getattr(self, "slip") == "the end" else state  # noqa: B009

    def evaluate_at(self, state: Any) -> Any:
        return state.x.mean() if getattr(self, "slip") == "mean" else state.x  # noqa: B009

    def gradient_at(self, c: Any, state: Any) -> Any:
        return state if getattr(self, "slip") == "state" else state.x  # noqa: B009


@pytest.mark.parametrize("engine", ["eager", "native", "native_update", "compiled"])
@pytest.mark.parametrize(
    ("slip", "message"),
    [
        ("a list", r"_Slips.init: must return a NamedTuple of tensors \[runs, d\] or None, not list"),
        ("a number", r"_Slips.init: must return tensors \[runs, d\], not Two\(float64 \[3, 535\], float64 \[3, 1\]\)"),
        ("in place", "_Slips.step: writes into its arguments; must return new tensors"),
        ("the gradient", "_Slips.step: writes into its arguments"),
        ("the end", "_Slips.end_cycle: writes into its arguments"),
        ("a pair", "_Slips.step: must return a Two, not tuple"),
        ("a sum", r"field x of the state is float64 \[1, 1\], must stay float64 \[1, 535\]"),
        ("no vector", "field other of the state is None, must stay float64"),
        ("precision", r"field x of the state is float16 \[1, 535\], must stay float64"),
        ("mean", r"_Slips.evaluate_at: must return a tensor \[runs, d\], not float64 \[\]"),
        ("state", r"_Slips.gradient_at: must return a tensor \[runs, d\], not Two"),
    ],
)
def test_a_slip_is_one_line(slip: str, message: str, engine: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        suite.fleet(_Slips(slip), HYPER, engine)
    assert "\n" not in str(caught.value)


def test_the_suite_could_fail() -> None:
    class Wrong(HeavyBall):
        def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Any:
            return Two(state.x - c.lr * grad + c.m * (state.x - state.x), state.x)

    fleet = suite.fleet(Wrong(), HYPER, "eager")
    fleet.advance(suite.STEPS)
    with pytest.raises(AssertionError, match="x differs by"):
        suite.assert_same(fleet.state, suite.expected(HeavyBall(), HYPER), TOLERANCE["float64"])
