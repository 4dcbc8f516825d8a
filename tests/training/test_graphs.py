"""The engine that replays CUDA graphs, where there is no GPU: as plain PyTorch, and with stand-ins for capture.

A stand-in for a graph keeps what is called while it captures, without doing it, and does it at every replay: what a
real one does with kernels. What the warm-up changes, or reads beyond its block, shows as on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from burgersgd import schedules
from burgersgd.build.parts import engine_of
from burgersgd.build.prepared import prepare
from burgersgd.config import (
    AdamWConfig,
    DeviceConfig,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    SamConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.native import cuda
from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.training.engines.compiled import Compiled, Graphed, Piece
from burgersgd.training.fleet import Fleet
from burgersgd.training.inputs import BLOCK
from tests.contract import suite
from tests.contract.rules import ENTROPY as HYPER
from tests.contract.rules import PARLE, Parle

RULES = {
    "local_entropy": LocalEntropyConfig(lr=0.13, nu=1e-5, gamma=0.7, inner_steps=5, burn_in=3, outer_step=0.8),
    "sgd": SgdConfig(lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": AdamWConfig(),
}


def fleet(
    engine: str, rule: OptimizerConfig, n_runs: int = 1, dropout: float = 0.0, sick: int | None = None, **trainer: Any
) -> Fleet:
    trainer = {"budget": 400, "batch_size": 30, "precision": "float64"} | trainer
    configs = [
        TrainConfig(
            model=MlpConfig(depth=1, width=12, activation="tanh", dropout=dropout),
            optimizer=dataclasses.replace(rule, lr=60.0 if seed == sick else rule.hyper()["lr"] * (1 - 0.05 * seed)),
            trainer=TrainerConfig(**trainer),
            device=DeviceConfig(name="cpu"),
            seed=seed,
        )
        for seed in range(n_runs)
    ]
    prepared = prepare(configs, engine="eager")
    prepared.engine = engine
    return prepared.fleet()


def assert_same(a: Fleet, b: Fleet) -> None:
    for mine, theirs in zip(a.state, b.state, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(a.last_loss, b.last_loss, rtol=1e-9, atol=0)
    assert torch.equal(a.alive, b.alive)
    assert torch.equal(a.diverged_at, b.diverged_at)


class _Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    capturing: _Graph | None = None

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def pool(self) -> str:
        return "the first graph's"

    def replay(self) -> None:
        for work in self.work:
            work()


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass


@dataclass
class Seen:
    """What the engine captured."""

    replayed: list[Piece] = field(default_factory=list)
    pools: list[str | None] = field(default_factory=list)
    """Where the graphs have their memory, None: in a pool of their own."""
    most: int = BLOCK
    """Steps that a graph of the next fleets may hold."""


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Let every fleet of the engine capture, of several steps wherever they fit."""
    seen = Seen()

    @contextlib.contextmanager
    def capturing(graph: _Graph, pool: str | None, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert isinstance(stream, _Stream)
        seen.pools.append(pool)
        _Graph.capturing = graph
        try:
            yield
        finally:
            _Graph.capturing = None

    for name, stand_in in {
        "device": lambda device: contextlib.nullcontext(),
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": _Graph,
        "graph": capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    start, program, end_cycle, piece = Compiled.__init__, Compiled._program, Compiled._end_cycle, Compiled._piece

    def now_or_later(work: Callable[[], None]) -> None:
        if _Graph.capturing is None:
            work()
        else:
            _Graph.capturing.work.append(work)

    def of_capture(self: Compiled, *arguments: Any) -> None:
        start(self, *arguments)
        self.captures, self.most = True, seen.most

    def noted(self: Compiled, first: int, stop: int) -> Piece:
        seen.replayed.append(piece(self, first, stop))
        return seen.replayed[-1]

    def wrapped(self: Compiled, size: int) -> Callable[[], None]:
        return functools.partial(now_or_later, program(self, size))

    monkeypatch.setattr(Compiled, "__init__", of_capture)
    monkeypatch.setattr(Compiled, "_piece", noted)
    monkeypatch.setattr(Compiled, "_program", wrapped)

    def ended(self: Any) -> None:
        engine: Any = weakref.proxy(self)
        now_or_later(functools.partial(end_cycle, engine))

    monkeypatch.setattr(Compiled, "_end_cycle", ended)
    return seen


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_without_a_gpu_it_is_plain_pytorch(rule: OptimizerConfig, n_runs: int) -> None:
    a, b = (fleet(engine, rule, n_runs, dropout=0.2, clip_norm=0.5) for engine in ("graphed", "eager"))
    for each in (a, b):
        each.advance(70)
    assert_same(a, b)


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_replays_are_the_steps_and_warming_up_leaves_no_trace(rule: OptimizerConfig, n_runs: int, graphs: Seen) -> None:
    a, b = (fleet(engine, rule, n_runs, batch_size=17) for engine in ("graphed", "eager"))  # the last batch is short
    for each in (a, b):
        each.advance(80)
    assert {piece.size for piece in graphs.replayed} == {17, a.inputs.size(63)}
    assert_same(a, b)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("at", [61, 62, 63, 64])
def test_a_graph_that_is_captured_near_the_end_of_a_block_reads_nothing_beyond_it(at: int) -> None:
    before = fleet("eager", RULES["local_entropy"])
    before.advance(at)
    a, b = (fleet(engine, RULES["local_entropy"]) for engine in ("graphed", "eager"))
    for each in (a, b):
        each.restore([before.snapshot(0)])
        each.advance(70)
    assert_same(a, b)


@pytest.mark.usefixtures("graphs")
def test_a_first_short_batch_at_the_end_of_a_block_is_captured_as_well() -> None:
    n = prepare([TrainConfig()]).data.n_train
    size = next(size for size in range(10, 60) if -(-n // size) == 64 and n % size)  # batch 63 is the short one
    a, b = (fleet(engine, RULES["sgd"], batch_size=size) for engine in ("graphed", "eager"))
    for each in (a, b):
        each.advance(66)
    assert_same(a, b)


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize(("first", "back"), [(48, 16), (112, 80), (100, 3)])
def test_a_fleet_restored_to_an_earlier_step_continues_from_there(first: int, back: int) -> None:
    a, b = (fleet(engine, RULES["local_entropy"], 2) for engine in ("graphed", "eager"))
    for each in (a, b):
        each.advance(first)
        each.evaluations = back  # what measures a fleet's speed does
        each.advance(64)
    assert_same(a, b)


@pytest.mark.usefixtures("graphs")
def test_a_diverging_run_is_frozen_in_its_step_alone() -> None:
    a, b = (fleet(engine, RULES["local_entropy"], 3, sick=1) for engine in ("graphed", "eager"))
    for each in (a, b):
        each.advance(90)
    assert a.alive.tolist() == [True, False, True]
    assert_same(a, b)


ENTROPY = RULES["local_entropy"]
CYCLES = [
    RULES["sgd"],
    *(dataclasses.replace(ENTROPY, inner_steps=steps - 2, burn_in=2) for steps in (7, 20, 64, 90)),
    SamConfig(lr=0.1, rho=0.03, momentum=0.6, weight_decay=1e-3),
]
SICK_AT = 71  # the second gradient of a batch with sam


def assert_same_bits(a: Fleet, b: Fleet) -> None:
    states: Any = zip(a.state, b.state, strict=True)
    for mine, theirs in states:
        assert mine is theirs or torch.equal(mine, theirs)  # the same where the rule keeps none
    for name, record in a.runs.records().items():
        assert torch.equal(record, b.runs.records()[name]), name


def _sick(real: Any, sick: int) -> Any:
    """Return schedules.factor with a learning rate at one step of one run that no run survives."""

    def factor(name: str, hyper: Any, clock: Any) -> Tensor:
        run = torch.arange(len(hyper["warmup"])).view(1, -1, 1)
        return torch.where((clock.step == SICK_AT) & (run == sick), 1e300, real(name, hyper, clock))

    return factor


@pytest.mark.parametrize(
    ("rule", "n_runs", "sick"),
    [
        (CYCLES[0], 3, 1),
        (CYCLES[1], 17, 16),
        (CYCLES[1], 1, None),
        (CYCLES[2], 1, None),
        (CYCLES[2], 3, 0),
        (CYCLES[3], 1, 0),
    ]
    + [(CYCLES[4], 3, 1), (CYCLES[5], 1, None), (CYCLES[5], 17, 3)],
    ids=lambda given: f"{given.name}-{given.rule().gradients_per_cycle}" if hasattr(given, "rule") else str(given),
)
def test_many_steps_in_a_graph_are_the_steps_one_by_one(
    rule: OptimizerConfig, n_runs: int, sick: int | None, graphs: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut where a recording would cut, restored in the middle of a cycle; short batches, and a run that diverges."""
    if sick is not None:
        monkeypatch.setattr(schedules, "factor", _sick(schedules.factor, sick))

    def made(most: int) -> Fleet:
        graphs.most = most
        return fleet("graphed", rule, n_runs, batch_size=35, dropout=0.1)

    one, many, restored = made(1), made(BLOCK), made(BLOCK)
    one.advance(130)
    assert {piece.steps for piece in graphs.replayed} == {1}
    many.advance(41)
    restored.restore([many.snapshot(run) for run in range(n_runs)])
    graphs.replayed.clear()
    for n in (3, 1, 85):
        restored.advance(n)
    assert max(piece.steps for piece in graphs.replayed) >= min(14, restored.inputs.draw_length // 2)
    assert graphs.pools.count(None) == 3  # the graphs of a fleet share their memory
    assert_same_bits(restored, one)
    assert one.alive.tolist() == [run != sick for run in range(n_runs)]
    if sick is not None:
        assert SICK_AT <= one.diverged_at[sick] <= SICK_AT + 2


@pytest.mark.slow
@pytest.mark.parametrize("rule", [CYCLES[1], CYCLES[5]])
def test_compiled_steps_in_graphs_are_those_of_the_cpu(rule: OptimizerConfig, graphs: Seen) -> None:
    captured, plain = (fleet("compiled", rule, 3, batch_size=35, drop_last=True) for _ in range(2))
    stepper: Any = plain.stepper
    stepper.captures = False
    for each in (captured, plain):
        each.advance(90)
    assert max(piece.steps for piece in graphs.replayed) >= 14
    assert_same_bits(captured, plain)


def test_one_dead_replica_ends_its_run_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graphed, "repaid_after", 1)
    replicas: Any = suite.fleet(Parle(**PARLE), HYPER, "graphed", runs=1).stepper
    alone: Any = suite.fleet(LocalEntropy(**PARLE), HYPER, "graphed", runs=1).stepper
    assert (replicas.most, alone.most) == (1, suite.STEPS)


@pytest.mark.parametrize(("cycle", "replays"), [(1, 1), (16, 1), (20, 4), (64, 1), (90, 4)])
def test_a_block_takes_few_replays_of_few_graphs(cycle: int, replays: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graphed, "repaid_after", 1)
    rule = dataclasses.replace(ENTROPY, inner_steps=cycle, burn_in=0)
    engine: Any = fleet("graphed", rule, batch_size=35, drop_last=True).stepper
    pieces, step = [], 0
    while step < 960:
        pieces.append(engine._piece(step, step // 64 * 64 + 64))
        step += pieces[-1].steps
    assert len(pieces) <= 15 * replays
    assert len(set(pieces)) <= 10


def test_pieces_are_of_one_batch_size_within_the_loaded_steps_and_end_cycles_where_they_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A naive loop is the oracle: it goes through the pieces step by step."""
    monkeypatch.setattr(Graphed, "repaid_after", 1)
    for cycle in (1, 2, 3, 7, 20, 63, 64, 65, 100):
        rule = dataclasses.replace(ENTROPY, inner_steps=cycle, burn_in=0)
        one, step = fleet("graphed", rule, batch_size=35), 0
        engine: Any = one.stepper
        while step < 400:
            stop = min(400, step // 64 * 64 + 64)
            size, steps, every = engine._piece(step, stop)
            assert step < step + steps <= stop
            for k in range(steps):
                assert one.inputs.size(step + k) == size
                ends = cycle > 1 and (step + k + 1) % cycle == 0
                assert ends == bool(every and (k + 1) % every == 0), (cycle, step, k)
            step += steps


@pytest.mark.parametrize(("budget", "most"), [(399, 1), (400, 2), (4000, 20), (10**6, 64)])
def test_graphs_are_as_long_as_the_budget_repays(budget: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Compiled, Graphed):
        monkeypatch.setattr(kind, "repaid_after", 200)
    for engine, n_runs in (("graphed", 1), ("compiled", 1), ("graphed", 2), ("compiled", 2)):
        stepper: Any = fleet(engine, RULES["sgd"], n_runs, budget=budget).stepper
        assert stepper.most == (most if n_runs == 1 else 1)


def test_everything_that_graphs_read_stays_where_it_is() -> None:
    one = fleet("graphed", ENTROPY, 3, dropout=0.2)
    one.advance(3)

    def places() -> list[int]:
        tensors = (*one.state, *one.runs.records().values(), *one.inputs.block[1:], *one.inputs.draws[1:])
        return [tensor.data_ptr() for tensor in tensors if tensor is not None]

    before = places()
    one.stop(torch.tensor([False, True, False]))
    one.advance(130)
    one.restore([one.snapshot(run) for run in range(3)])
    one.advance(70)
    assert places() == before


@pytest.mark.usefixtures("graphs")
def test_a_dropped_fleet_is_freed_at_once_with_its_graphs() -> None:
    gc.collect()
    gc.disable()
    try:
        one = fleet("graphed", ENTROPY, 2)
        one.advance(20)
        gone = [weakref.ref(one), weakref.ref(one.stepper), weakref.ref(one.state.x), weakref.ref(one.inputs)]
        del one
        assert [ref() for ref in gone] == [None] * 4
    finally:
        gc.enable()


def test_a_gpu_gets_graphs_at_once_and_a_compiler_for_long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare([TrainConfig()])
    monkeypatch.setattr("burgersgd.build.parts.why_not_compiled", lambda device: None)
    monkeypatch.setattr(cuda, "shared_memory", lambda device: 0)  # no room for the persistent kernel
    gpu = torch.device("cuda")

    def engine(**trainer: Any) -> str:
        config = TrainConfig(trainer=TrainerConfig(**trainer))
        return engine_of(config, prepared.problem, gpu, 1, 32)

    assert engine(budget=1000) == "graphed"
    assert engine(budget=1_000_000) == "compiled"
    assert engine(budget=1000, compile="off") == "eager"
    assert engine(budget=1000, compile="on") == "compiled"
