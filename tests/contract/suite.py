"""The checks for any rule: every engine against a loop of ten lines that is independent of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from burgersgd import streams
from burgersgd.build.prepared import prepare
from burgersgd.config import MlpConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.datasets import Batches
from burgersgd.optimizers.protocol import Rule
from burgersgd.training.fleet import Fleet
from burgersgd.training.gradients import eager_gradient
from tests.optimizers.driver import drive

STEPS = 9
SMALL = 7
"""Width of a network of 535 parameters."""
LARGE = 700
"""Width of one of 52,510 parameters: three runs are updated in pieces by rules that are element by element."""


def batch_of(width: int) -> int:
    """Return the batch size: of 1079 training examples, every fourth batch is short; less work in large networks."""
    return 300 if width == SMALL else 20


@functools.cache
def _prepared(runs: int, width: int, precision: str, engine: str) -> Any:
    trainer = TrainerConfig(budget=STEPS, batch_size=batch_of(width), precision=precision, compile="off")
    model = MlpConfig(width=width, depth=1, activation="tanh")
    configs = [TrainConfig(model=model, optimizer=SgdConfig(), trainer=trainer, seed=3 * s) for s in range(runs)]
    prepared = prepare(configs)
    prepared.engine = engine
    return prepared


def fleet(
    rule: Rule, hyper: dict[str, float], engine: str, runs: int = 3, width: int = SMALL, precision: str = "float64"
) -> Fleet:
    """Return runs of a rule on digits, different in their seeds and in every hyperparameter."""
    start = _prepared(runs, width, precision, engine).fleet()
    columns = {
        name: torch.tensor(values, dtype=torch.float64)[:, None] for name, values in _spread(hyper, runs).items()
    }
    return Fleet(
        problem=start.problem,
        rule=rule,
        hyper=columns,
        schedule="constant",
        schedule_hyper=start.schedule_hyper,
        batches=start.batches,
        seeds=start.seeds,
        x0=start.x.clone(),
        budget=STEPS * (rule.replicas or 1),
        engine=engine,
    )


def _spread(hyper: dict[str, float], runs: int) -> dict[str, list[float]]:
    return {name: [value * (1 - 0.03 * r) for r in range(runs)] for name, value in hyper.items()}


class _RowByRow:
    """A rule with replicas as a rule of rows, which the driver knows."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def end_cycle(self, c: Any, state: Any) -> Any:
        """Return the end of the cycle, the rows of a run taken together."""
        n = self.rule.replicas
        apart = [type(t)(*(None if f is None else f.reshape(-1, n, f.shape[-1]) for f in t)) for t in (c, state)]
        new = self.rule.end_cycle(*apart)
        return type(new)(*(None if f is None else f.reshape(-1, f.shape[-1]) for f in new))


def expected(rule: Any, hyper: dict[str, float], runs: int = 3, width: int = SMALL, precision: str = "float64") -> Any:
    """Return the state of the same runs after all steps, by tests/optimizers/driver.py and autograd, row by row."""
    return _expected(rule, tuple(hyper.items()), runs, width, precision)


@functools.lru_cache(maxsize=4)  # engine after engine is compared with it
def _expected(rule: Any, hyper_items: tuple[tuple[str, float], ...], runs: int, width: int, precision: str) -> Any:
    hyper = dict(hyper_items)
    start = _prepared(runs, width, precision, "eager").fleet()
    n, held = rule.replicas or 1, rule.gradients_per_batch
    seeds = [start.seeds[row // n : row // n + 1] for row in range(runs * n)]
    purposes = [(row % n) * 65536 for row in range(runs * n)]  # replica r has r in the upper half of a word
    orders = [
        Batches(start.batches.n, batch_of(width), seed, purpose=streams.Purpose.BATCHES + word)
        for seed, word in zip(seeds, purposes, strict=True)
    ]

    def gradient(k: int, at: Tensor) -> Tensor:
        rows = []
        for row, order in enumerate(orders):
            indices = order.indices(k // held, 1)[0, :, : order.size(k // held)]
            rows.append(eager_gradient(start.problem, at[row : row + 1], indices, None)[0])
        return torch.cat(rows)

    def xi(k: int) -> Tensor:
        numbers = [
            streams.normal_(at.new_empty(1, 1, start.d), seed, streams.Purpose.NOISE + word, k)[0]
            for seed, word in zip(seeds, purposes, strict=True)
        ]
        return torch.cat(numbers)

    at = start.x.repeat_interleave(n, dim=0)
    spread = {name: [v for v in values for _ in range(n)] for name, values in _spread(hyper, runs).items()}
    rows: Any = rule if rule.replicas is None else _RowByRow(rule)
    shapes = start.problem.model.shapes
    return list(drive(rows, spread, at, gradient, STEPS, xi if rule.noisy else None, shapes=shapes))[-1]


def assert_same(ours: Any, theirs: Any, tolerance: float) -> None:
    """Check two states field by field."""
    for name, one, other in zip(theirs._fields, ours, theirs, strict=True):
        assert (one is None) == (other is None), name
        if other is not None:
            assert torch.isfinite(other).all(), name
            difference = float((one - other).abs().max())
            assert difference <= tolerance * max(1.0, float(other.abs().max())), f"{name} differs by {difference:.3g}"
