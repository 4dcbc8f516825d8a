"""The engine that replays CUDA graphs, where there is no GPU: as plain PyTorch, and with stand-ins for capture.

A stand-in for a graph keeps what is called while it captures, without doing it, and does it at every replay: what a
real one does with kernels. What the warm-up changes, or reads beyond its block, shows as on a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from burgersgd.build.parts import engine_of
from burgersgd.build.prepared import prepare
from burgersgd.config import (
    AdamWConfig,
    DeviceConfig,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.native import cuda
from burgersgd.training.engines import compiled
from burgersgd.training.engines.compiled import Graphed
from burgersgd.training.fleet import Fleet

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
            optimizer=dataclasses.replace(rule, lr=60.0 if seed == sick else rule.hyper()["lr"] * (1 - 0.1 * seed)),
            trainer=TrainerConfig(**trainer),
            device=DeviceConfig(name="cpu"),
            seed=seed,
        )
        for seed in range(n_runs)
    ]
    return prepare(configs, engine=engine).fleet() if engine == "eager" else _graphed(configs)


def _graphed(configs: list[TrainConfig]) -> Fleet:
    prepared = prepare(configs, engine="eager")
    prepared.engine = "graphed"
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
        self.step: Callable[[], None] | None = None

    def replay(self) -> None:
        assert self.step is not None
        self.step()


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass


@contextlib.contextmanager
def _capturing(graph: _Graph, stream: _Stream) -> Iterator[None]:
    _Graph.capturing = graph
    try:
        yield
    finally:
        _Graph.capturing = None


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every fleet of the engine capture; return the number of calls of each step that was captured."""
    for name, stand_in in {
        "device": lambda device: contextlib.nullcontext(),
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": _Graph,
        "graph": _capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    real, start, calls = compiled.captured, Graphed.__init__, []

    def captured(step: Callable[[], None], changed: Sequence[Tensor], position: Tensor) -> Callable[[], None]:
        def kept_or_done() -> None:
            if _Graph.capturing is None:
                step()
            else:
                _Graph.capturing.step = step

        calls.append(len(changed))
        return real(kept_or_done, changed, position)

    def capturing(self: Graphed, *arguments: Any) -> None:
        start(self, *arguments)
        self.captures = True

    monkeypatch.setattr(compiled, "captured", captured)
    monkeypatch.setattr(Graphed, "__init__", capturing)
    return calls


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_without_a_gpu_it_is_plain_pytorch(rule: OptimizerConfig, n_runs: int) -> None:
    a, b = (fleet(engine, rule, n_runs, dropout=0.2, clip_norm=0.5) for engine in ("graphed", "eager"))
    for each in (a, b):
        each.advance(70)
    assert_same(a, b)


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_replays_are_the_steps_and_warming_up_leaves_no_trace(
    rule: OptimizerConfig, n_runs: int, graphs: list[int]
) -> None:
    a, b = (fleet(engine, rule, n_runs, batch_size=17) for engine in ("graphed", "eager"))  # the last batch is short
    for each in (a, b):
        each.advance(80)
    assert len(graphs) == 2  # one program for each size of a batch
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
def test_a_fleet_that_is_moved_back_goes_on_from_there(first: int, back: int) -> None:
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
