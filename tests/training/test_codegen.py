"""The C that is generated from a rule does what the rule does."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from burgersgd import streams
from burgersgd.config import (
    AdamWConfig,
    LangevinConfig,
    LocalEntropyConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SgdConfig,
)
from burgersgd.optimizers.protocol import Clock, RuleDefaults
from burgersgd.streams import Purpose
from burgersgd.training.engines import codegen
from burgersgd.training.engines.codegen import FusedUpdate, source
from burgersgd.training.engines.tracing import Layout, Symbol, UntraceableError, trace, traced

RULES: list[OptimizerConfig] = [
    LocalEntropyConfig(nu=0.02, burn_in=2, inner_steps=3, weight_decay=0.3),
    LocalEntropyConfig(nu=0.02, integrator="leimkuhler_matthews", averaging="ema"),
    LocalEntropyConfig(nu=0.02, averaging="ema", momentum=0.4),
    LocalEntropyConfig(nu=0.0, momentum=0.4, nesterov=True),
    LocalEntropyConfig(nu=0.0, averaging="last", momentum=0.4, outer_momentum=0.3),
    PaperSDEConfig(nu=0.02, epsilon=0.3),
    PaperLiteralConfig(nu=0.02, period=2),
    SgdConfig(momentum=0.7, nesterov=True, weight_decay=0.2),
    SgdConfig(momentum=0.7),
    AdamWConfig(weight_decay=0.2),
    LangevinConfig(temperature=0.02, weight_decay=0.2),
]


def block(config: OptimizerConfig, runs: int, steps: int) -> tuple[Any, Any]:
    """Return the rule and its coefficients [steps, runs, 1], different in every run."""
    hyper = {k: torch.tensor([[v * (1 + 0.1 * r)] for r in range(runs)]).double() for k, v in config.hyper().items()}
    for name in ("beta1", "beta2", "outer_step", "ema_weight"):
        if name in hyper:
            hyper[name] = hyper[name].clamp(max=0.97)
    rule = config.rule()
    step = torch.arange(steps).view(-1, 1, 1)
    cycle = rule.gradients_per_cycle
    clock = Clock(step, step.double() / 100, step // cycle, step % cycle, 100)
    return rule, rule.coefficients(hyper, torch.ones(steps, runs, 1).double(), clock)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("runs", "d"), [(1, 70), (3, 33), (2, 90_001)])
@pytest.mark.parametrize("config", RULES)
def test_the_generated_loop_does_what_the_rule_does(
    config: OptimizerConfig, runs: int, d: int, dtype: torch.dtype
) -> None:
    steps = 5
    rule, c = block(config, runs, steps)
    seeds = torch.arange(runs) + 7
    generator = torch.Generator().manual_seed(1)

    def random() -> Tensor:
        return torch.randn(runs, d, dtype=dtype, generator=generator)

    def normals(first: int) -> Tensor | None:
        return (
            streams.normal_(torch.empty(1, runs, d, dtype=dtype), seeds, Purpose.NOISE, first)[0]
            if rule.noisy
            else None
        )

    expected = rule.init(random(), normals(0))
    state = type(expected)(*(None if f is None else f.clone() for f in expected))
    update = FusedUpdate.make(rule, state, c, seeds)
    assert update is not None
    stacked = torch.stack(list(c), dim=1).to(dtype)
    alive = torch.ones(runs, dtype=torch.bool)
    for k in range(steps):
        grad, norm = random(), torch.rand(runs, dtype=dtype, generator=generator)
        expected = rule.step(type(c)(*stacked[k].unbind(0)), expected, grad, norm[:, None], normals(k + 1))
        update(stacked[k], [grad], norm, alive, k)
    for ours, theirs in zip(state, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            tolerance = 2e-5 if dtype == torch.float32 else 1e-12
            assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_runs_that_are_not_alive_are_left_as_they_are() -> None:
    rule, c = block(RULES[0], 3, 1)
    state = rule.init(torch.randn(3, 50), None)
    before = state.y.clone()
    update = FusedUpdate.make(rule, state, c, torch.arange(3))
    assert update is not None
    grad = torch.full((3, 50), float("nan"))
    grad[::2] = 1.0
    update(torch.stack(list(c), dim=1).float()[0], [grad], torch.ones(3), torch.tensor([True, False, True]), 0)
    assert torch.equal(state.y[1], before[1])
    assert torch.isfinite(state.y).all()
    assert not torch.equal(state.y[0], before[0])


@pytest.mark.parametrize("d", [64, 40_003])
def test_threads_and_other_runs_change_no_bit(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen, "PARALLEL", 1)
    rule, c = block(RULES[1], 3, 1)
    start, grad = torch.randn(3, d), torch.randn(3, d)
    results = []
    for threads, runs in ((1, [0, 1, 2]), (2, [0, 1, 2]), (1, [2])):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        state = rule.init(start[runs].clone(), torch.ones(len(runs), d))
        row = torch.stack(list(c), dim=1).float()[0][:, runs].contiguous()
        update = FusedUpdate.make(rule, state, c, torch.tensor(runs))
        assert update is not None
        update(row, [grad[runs].contiguous()], torch.ones(len(runs)), torch.ones(len(runs), dtype=torch.bool), 3)
        results.append(state.y[-1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_gradient_in_pieces_is_the_same_gradient() -> None:
    rule, c = block(RULES[0], 1, 1)
    start, grad = torch.randn(1, 1000), torch.randn(1, 1000)
    row, alive, seeds = torch.stack(list(c), dim=1).float()[0], torch.ones(1, dtype=torch.bool), torch.tensor([5])
    states = []
    for pieces in ([1000], [3, 61, 500, 32, 404]):
        state = rule.init(start.clone(), None)
        update = FusedUpdate.make(rule, state, c, seeds, pieces)
        assert update is not None
        update(row, [piece.clone() for piece in grad.split(pieces, dim=1)], torch.ones(1), alive, 2)
        states.append(state)
    assert torch.allclose(states[0].y, states[1].y, rtol=1e-6, atol=1e-6)  # partial groups may round otherwise


class _State(NamedTuple):
    x: Any


class _Three(NamedTuple):
    a: Any
    b: Any
    c: Any


class _Coefficients(NamedTuple):
    lr: Any


class _Unknown(RuleDefaults):
    """A rule with an operation that has no C."""

    def step(self, c: _Coefficients, state: _State, grad: Any, norm: Any, xi: Any) -> _State:
        return _State(state.x - c.lr * torch.sinc(grad))


def test_a_rule_that_cannot_be_written_in_c_is_left_to_pytorch() -> None:
    layout = Layout(_State, (True,), _Coefficients)
    with pytest.raises(UntraceableError, match="no C for"):
        traced(_Unknown(), layout)  # pyright: ignore[reportArgumentType]
    assert source(_Unknown(), layout, torch.float32) is None  # pyright: ignore[reportArgumentType]
    state, c = _State(torch.zeros(1, 4)), _Coefficients(torch.ones(1, 1, 1))
    assert FusedUpdate.make(_Unknown(), state, c, torch.arange(1)) is None  # pyright: ignore[reportArgumentType]


def test_symbols_write_one_line_per_operation() -> None:
    lines: list[str] = []
    a: Any = Symbol("a", lines)
    b: Any = Symbol("b", lines)
    result: Any = torch.lerp(torch.addcmul(a, a, b, value=-1), 2 * b - 1, b / 4)
    assert result.name == "t4"
    assert (
        lines
        == [
            "const real t0 = a - a * b;",
            "const real t1 = b * (real)2;",
            "const real t2 = t1 - (real)1;",
            "const real t3 = b / (real)4;",
            "const real t4 = lerp(t0, t2, t3);",
        ]
        or lines[1] == "const real t1 = (real)2 * b;"
    )


OPERATIONS: dict[str, Any] = {
    "arithmetic": lambda a, b, c: 2 / (a * a + 1) - (3 - b) * c / 4 + -a,
    "powers": lambda a, b, c: a**2 + (a * a + 0.5) ** 1.5 + 2.0**b + torch.pow(c * c + 1, -0.5),
    "roots": lambda a, b, c: (a * a).sqrt() + torch.rsqrt(b * b + 1) + torch.reciprocal(c * c + 1) + torch.sqrt(c * c),
    "exponentials": lambda a, b, c: torch.exp(a) + b.tanh() + torch.log(c * c + 1) + torch.sigmoid(a) + a.expm1(),
    "more": lambda a, b, c: torch.log1p(a * a) + torch.erf(b) + c.square() + torch.neg(a),
    "signs": lambda a, b, c: a.sign() * abs(b) + torch.abs(c) * torch.sign(b),
    "limits": lambda a, b, c: torch.maximum(a, b) + torch.minimum(b, c) + a.clamp(-0.5, 0.7) + b.clamp(max=c),
    "choices": lambda a, b, c: torch.where(a < b, a, 2 * c) + torch.where((a >= c) == (b > c), b, 1.0),
    "products": lambda a, b, c: torch.addcmul(a, b, c, value=-2) + torch.addcdiv(a, b, c * c + 1, value=0.3),
    "between": lambda a, b, c: torch.lerp(a, b, c.sigmoid()) + torch.zeros_like(a) + torch.ones_like(b) + c.clone(),
    "infinity": lambda a, b, c: torch.minimum(a, a + float("inf")) + torch.where(b != b, float("nan"), c),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_in_c_is_that_of_pytorch(name: str) -> None:
    class Operation(RuleDefaults):
        def step(self, c: _Coefficients, state: _Three, grad: Any, norm: Any, xi: Any) -> _Three:
            a, b, _ = state
            return _Three(OPERATIONS[name](a, b, grad), a, state.c)  # a moves to b

    generator = torch.Generator().manual_seed(3)
    state = _Three(*(torch.randn(2, 100, dtype=torch.float64, generator=generator) for _ in range(3)))
    grad, c = torch.randn(2, 100, dtype=torch.float64, generator=generator), _Coefficients(torch.ones(1, 2, 1))
    rule: Any = Operation()
    expected = rule.step(c, state, grad, grad[:, :1], None)
    expected = [field.clone() for field in expected]
    update = FusedUpdate.make(rule, state, c, torch.arange(2))
    assert update is not None
    update(torch.ones(1, 2, 1, dtype=torch.float64), [grad], torch.ones(2).double(), torch.ones(2, dtype=torch.bool), 0)
    for ours, theirs in zip(state, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x, g: x - g / torch.linalg.vector_norm(g, dim=-1, keepdim=True), "vector_norm"),
        (lambda x, g: x - g.mean(), "mean"),
        (lambda x, g: x - g[:, :1], "not subscriptable"),
        (lambda x, g: x - g.flip(-1), "flip"),
        (lambda x, g: x - torch.cumsum(g, -1), "cumsum"),
        (lambda x, g: x - g if g > 0 else x, "branch"),
        (lambda x, g: x - max(g, 0.1), "branch"),
        (lambda x, g: x.sub_(g), "sub_"),
        (lambda x, g: x - torch.ones(3), "no C"),
        (lambda x, g: x - True, "no C"),
        (lambda x, g: 3.0, "gives x a float"),
        (lambda x, g: x / x.shape[-1], "shape"),
        (lambda x, g: x @ g, "unsupported operand"),
    ],
)
def test_what_is_not_element_by_element_has_no_trace(step: Any, message: str) -> None:
    class Some(RuleDefaults):
        def step(self, c: _Coefficients, state: _State, grad: Any, norm: Any, xi: Any) -> _State:
            return _State(step(state.x, grad))

    layout, rule = Layout(_State, (True,), _Coefficients), Some()
    with pytest.raises(TypeError, match=message):
        traced(rule, layout)  # pyright: ignore[reportArgumentType]
    assert trace(rule, layout) is None  # pyright: ignore[reportArgumentType]
