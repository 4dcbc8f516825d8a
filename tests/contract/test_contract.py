"""Any rule, in every engine, in fleets of every size: the same numbers, or one line that says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.training.engines import ENGINES
from burgersgd.training.fleet import Fleet
from tests.contract import suite
from tests.contract.rules import ENTROPY, FOREIGN, HYPER, PARLE, SHIPPED, Decays, HeavyBall, OwnSam, Parle, Two

TOLERANCE = {"float64": 1e-11, "float32": 2e-5}
RULES = FOREIGN + SHIPPED
PYTORCH_ALONE = {"OwnSam", "Normalised", "Unknown", "Constant"}
"""Rules that the code generator refuses: every engine applies them whole, in PyTorch."""
FLEETS = [(1, suite.SMALL), (3, suite.SMALL), (17, suite.SMALL), (1, 2000), (3, suite.LARGE), (17, 110)]
"""Runs and width: the last three are large enough for updates in pieces, of a row (d = 150,010) or of several rows."""
ON_THE_CPU = ("eager", "native", "native_update")
by_name = pytest.mark.parametrize(("rule", "hyper"), RULES, ids=[type(rule).__name__ for rule, _ in RULES])
engines = pytest.mark.parametrize("engine", ON_THE_CPU)
sizes = pytest.mark.parametrize(
    ("width", "precision"), [(suite.SMALL, "float64"), (suite.LARGE, "float32")], ids=["small", "large"]
)


def test_no_engine_is_left_out() -> None:
    assert set(ENGINES) == {*ON_THE_CPU, "compiled", "graphed", "persistent"}
    gpu = {name for name, kind in ENGINES.items() if kind.device == "cuda"}
    assert gpu == {"graphed", "persistent"}  # scripts/gpu_check.py compares them with eager


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(("runs", "width"), FLEETS)
@by_name
def test_every_engine_computes_what_the_rule_says(
    rule: Any, hyper: dict[str, float], runs: int, width: int, precision: str
) -> None:
    for engine in ON_THE_CPU:
        fleet = suite.fleet(rule, hyper, engine, runs, width, precision)
        fleet.advance(fleet.budget)
        suite.assert_same(fleet.state, suite.expected(rule, hyper, runs, width, precision), TOLERANCE[precision])


@engines
@sizes
@by_name
def test_a_run_stopped_anywhere_is_resumed_bit_for_bit(
    rule: Any, hyper: dict[str, float], width: int, precision: str, engine: str
) -> None:
    kind = {"width": width, "precision": precision}
    whole = suite.fleet(rule, hyper, engine, **kind)
    whole.advance(whole.budget)
    for steps in (1, 4) if width == suite.SMALL else (4,):  # cycles of two are cut in the middle
        first, second = suite.fleet(rule, hyper, engine, **kind), suite.fleet(rule, hyper, engine, **kind)
        first.advance(steps * first.points)
        second.restore([first.snapshot(run) for run in range(3)])
        first.advance(1)  # what is restored is no view of it
        second.advance(second.budget - second.evaluations)
        suite.assert_same(second.state, whole.state, 0.0)


@engines
@sizes
@by_name
def test_a_diverged_run_is_frozen_and_the_others_continue(
    rule: Any, hyper: dict[str, float], width: int, precision: str, engine: str
) -> None:
    fleet, healthy = (suite.fleet(rule, hyper, engine, width=width, precision=precision) for _ in range(2))
    n = fleet.points
    fleet.runs.loss_limit.fill_(1e6)
    fleet.runs.loss_limit[n] = -1.0  # below every loss: the first row of the second run
    fleet.step = healthy.step = 1  # the first loss would set the limit anew
    before = [None if field is None else field[n].clone() for field in fleet.state]
    for f in (fleet, healthy):
        f.advance(f.budget - n)
    assert fleet.alive.tolist() == [True, False, True]
    assert fleet.runs.alive.tolist() == [row // n != 1 for row in range(3 * n)]
    assert fleet.diverged_at.tolist() == [-1, 2 * n - 1, -1]  # the last one of those in the second step
    others = [row for row in range(3 * n) if row // n != 1]
    for field, start, other in zip(fleet.state, before, healthy.state, strict=True):
        if field is not None:
            assert start is not None
            assert torch.equal(field[n], start)
            tolerance = 0.0 if engine == "native" else TOLERANCE[precision] / 10
            assert torch.allclose(field[others], other[others], rtol=tolerance, atol=tolerance)


@engines
def test_one_uncoupled_replica_is_the_rule_itself_bit_by_bit(engine: str) -> None:
    parle = suite.fleet(Parle(**PARLE, replicas=1, coupling=0.0), ENTROPY, engine)
    rule = suite.fleet(LocalEntropy(**PARLE), ENTROPY, engine)
    for fleet in (parle, rule):
        fleet.advance(suite.STEPS)
    suite.assert_same(parle.state, rule.state, 0.0)
    assert torch.equal(parle.x, rule.x)


def test_replicas_count_in_the_budget_and_have_streams_of_their_own() -> None:
    fleet = suite.fleet(Parle(**PARLE), ENTROPY, "eager", runs=2)
    assert (fleet.budget, fleet.points, fleet.evaluations_per_cycle, fleet.evaluations_per_epoch) == (27, 3, 9, 12)
    alone = suite.fleet(LocalEntropy(**PARLE), ENTROPY, "eager", runs=2)
    ours, theirs = (f.inputs.normals(4, 2) for f in (fleet, alone))
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours[:, ::3], theirs)  # replica 0 draws what a rule without replicas does
    assert len({tuple(row.tolist()) for row in ours.flatten(0, 1)}) == 12
    fleet.inputs.load(0)
    alone.inputs.load(0)
    assert torch.equal(fleet.inputs.block.indices[:, ::3], alone.inputs.block.indices)  # pyright: ignore
    fleet.advance(7)
    assert fleet.evaluations == 9  # all replicas take their gradient
    loss = fleet.runs.loss_sum.view(2, 3).clone()
    assert torch.equal(loss, loss[:, :1].expand(2, 3))
    assert torch.allclose(fleet.take_mean_loss(9), loss[:, 0] / 3)  # of three steps, each of three evaluations
    fleet.evaluations = 6
    assert fleet.step == 2
    fleet.evaluations = 9
    with pytest.raises(ValueError, match="n=19: only 18 gradient evaluations"):
        fleet.advance(19)


compiled = [pytest.param(*RULES[0], 3)]
# Each takes the compiler ten seconds or more: some foreign rules stand for all; tests/training compiles shipped ones.
compiled += [pytest.param(rule, hyper, 3, marks=pytest.mark.slow) for rule, hyper in RULES[1:6]]


@pytest.mark.parametrize(("rule", "hyper", "runs"), compiled)
def test_the_compiled_step_computes_what_the_rule_says(rule: Any, hyper: dict[str, float], runs: int) -> None:
    fleet = suite.fleet(rule, hyper, "compiled", runs)
    fleet.advance(fleet.budget)
    fell_back = getattr(fleet.stepper, "otherwise", None) is not None
    if fell_back and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
        pytest.skip("the Inductor of torch 2.11 cannot compile fleets on the CPU")
    assert not fell_back, "the compiler failed"
    suite.assert_same(fleet.state, suite.expected(rule, hyper, runs), TOLERANCE["float64"])


class _Slips(HeavyBall):
    """Breaks the contract in the way that it is told."""

    def __init__(self, slip: str) -> None:
        object.__setattr__(self, "slip", slip)

    def init(self, x: Any, xi: Any) -> Any:
        slip: Any = getattr(self, "slip")  # noqa: B009
        return {"a list": [x, x], "a plain tuple": (x, x), "a number": Two(x, x[:, :1])}.get(slip, Two(x, x))

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
        ("a plain tuple", r"_Slips.init: must return a NamedTuple of tensors \[runs, d\] or None, not tuple"),
        ("a number", r"_Slips.init: must return tensors \[runs, d\], not Two\(float64 \[3, 535\], float64 \[3, 1\]\)"),
        ("in place", "_Slips.step: changes its arguments; must return new tensors"),
        ("the gradient", "_Slips.step: changes its arguments"),
        ("the end", "_Slips.end_cycle: changes its arguments"),
        ("a pair", "_Slips.step: must return a Two, not tuple"),
        ("a sum", r"field x of the state becomes float64 \[1, 1\], must remain float64 \[1, 535\]"),
        ("no vector", "field other of the state becomes None, must remain float64"),
        ("precision", r"field x of the state becomes float16 \[1, 535\], must remain float64"),
        ("mean", r"_Slips.evaluate_at: must return a tensor \[runs, d\], not float64 \[\]"),
        ("state", r"_Slips.gradient_at: must return a tensor \[runs, d\], not Two"),
    ],
)
def test_a_mistake_in_a_rule_is_one_line(slip: str, message: str, engine: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        suite.fleet(_Slips(slip), HYPER, engine)
    assert "\n" not in str(caught.value)


class _Old(HeavyBall):
    def step(self, c: Any, state: Any, grad: Any, xi: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return state


class _Bare:
    """A rule with all functions of the contract, but nothing else."""

    coefficients, init, step = HeavyBall.coefficients, HeavyBall.init, HeavyBall.step
    gradient_at, end_cycle, evaluate_at = HeavyBall.gradient_at, HeavyBall.end_cycle, HeavyBall.evaluate_at
    noisy, gradients_per_cycle, replicas = False, 1, None


class _Counts(HeavyBall):
    gradients_per_batch = 0


class _Drifts(Decays):
    """A coefficient of every parameter that changes from step to step: only its first row could be kept."""

    def coefficients(self, hyper: Any, factor: Any, clock: Any) -> Any:
        c = super().coefficients(hyper, factor, clock)
        return c._replace(decay=c.decay * (1 + clock.fraction))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (_Drifts(), r"_Drifts.coefficients: decay is \[2, 3, 535\] for two steps, must be \[1, runs, d\]: constant$"),
        (_Old(), r"_Old.step: takes \(c, state, grad, xi\), must take \(c, state, grad, norm, xi\)$"),
        (
            _Bare(),
            "_Bare: must have gradients_per_batch; burgersgd.optimizers.protocol.RuleDefaults has defaults for most$",
        ),
        (_Counts(), "_Counts.gradients_per_batch=0: must be at least 1$"),
    ],
)
def test_a_part_of_the_contract_that_is_missing_is_named(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite.fleet(HeavyBall(), HYPER, "eager").__class__(**_arguments(rule))


def _arguments(rule: Any) -> dict[str, Any]:
    like = suite.fleet(HeavyBall(), HYPER, "eager")
    names = ("problem", "hyper", "schedule", "schedule_hyper", "batches", "seeds", "budget")
    return {name: getattr(like, name) for name in names} | {"rule": rule, "x0": like.x}


def test_large_states_go_in_pieces_only_where_the_rule_is_element_by_element() -> None:
    """As it was, a norm of the rule's own was that of each piece."""
    pieces = {type(rule).__name__: _in_pieces(rule, hyper) for rule, hyper in RULES}
    assert {name for name, cut in pieces.items() if not cut} == PYTORCH_ALONE

    class Declared(OwnSam):
        elementwise = False

    assert not _in_pieces(Declared(), HYPER)


def _in_pieces(rule: Any, hyper: dict[str, float]) -> bool:
    stepper: Any = suite.fleet(rule, hyper, "eager", runs=1, width=2000).stepper
    return stepper.update.in_pieces


def test_the_suite_could_fail() -> None:
    class Wrong(HeavyBall):
        def step(self, c: Any, state: Any, grad: Any, norm: Any, xi: Any) -> Any:
            return Two(state.x - c.lr * grad + c.m * (state.x - state.x), state.x)

    fleet = suite.fleet(Wrong(), HYPER, "eager")
    fleet.advance(fleet.budget)
    with pytest.raises(AssertionError, match="x differs by"):
        suite.assert_same(fleet.state, suite.expected(HeavyBall(), HYPER), TOLERANCE["float64"])


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_what_is_said_of_replicas_is_their_mean(replicas: int) -> None:
    fleet = suite.fleet(Parle(**PARLE, replicas=replicas), ENTROPY, "eager", runs=2)
    fleet.advance(4 * fleet.points)  # within a cycle: y is away from x, and each replica has its own noise
    apart = (fleet.state.x - fleet.state.y).square().sum(1).sqrt().view(2, replicas)
    assert len(set(apart.flatten().tolist())) == 2 * replicas
    torch.testing.assert_close(fleet.diagnostics()["x_y_distance"], apart.mean(1), rtol=1e-12, atol=0)


def test_coefficients_are_computed_once_for_all_steps_of_a_block() -> None:
    asked: list[int] = []

    class Watched(HeavyBall):
        def coefficients(self, hyper: Any, factor: Any, clock: Any) -> Any:
            asked.extend(clock.step.flatten().tolist())
            return super().coefficients(hyper, factor * (1 - clock.fraction), clock)

    arguments: dict[str, Any] = {**_arguments(Watched()), "budget": 200}
    fleet = Fleet(**arguments)
    asked.clear()
    for step in range(1, 151):
        fleet.advance(1)
        lr = fleet.coefficients_at(step - 1)["lr"]
        torch.testing.assert_close(lr, fleet.hyper["lr"][:, 0] * (1 - (step - 1) / 200), rtol=1e-12, atol=0)
        fleet.diagnostics()
    assert asked == list(range(192))
