"""What any rule is put through: the engines against a loop of ten lines that knows nothing of them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from burgersgd import streams
from burgersgd.config import MlpConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.optimizers.protocol import Rule
from burgersgd.prepare import prepare
from burgersgd.training.fleet import Fleet
from burgersgd.training.gradients import eager_gradient
from tests.optimizers.driver import drive

STEPS = 9
BATCH = 300  # of 1079 training examples of digits: every fourth batch is short


@functools.cache
def _prepared(runs: int, width: int, precision: str, engine: str) -> Any:
    trainer = TrainerConfig(budget=STEPS, batch_size=BATCH, precision=precision, compile="off")
    model = MlpConfig(width=width, depth=1, activation="tanh")
    configs = [TrainConfig(model=model, optimizer=SgdConfig(), trainer=trainer, seed=3 * s) for s in range(runs)]
    prepared = prepare(configs)
    prepared.engine = engine
    return prepared


def fleet(
    rule: Rule, hyper: dict[str, float], engine: str, runs: int = 3, width: int = 7, precision: str = "float64"
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
        budget=STEPS,
        engine=engine,
    )


def _spread(hyper: dict[str, float], runs: int) -> dict[str, list[float]]:
    return {name: [value * (1 - 0.03 * r) for r in range(runs)] for name, value in hyper.items()}


def expected(rule: Rule, hyper: dict[str, float], runs: int = 3, width: int = 7, precision: str = "float64") -> Any:
    """Return the state of the same runs after all steps, by tests/optimizers/driver.py and autograd, run by run."""
    start = _prepared(runs, width, precision, "eager").fleet()

    def gradient(k: int, at: Tensor) -> Tensor:
        indices = start.batches.indices(k, 1)[0, :, : start.batches.size(k)]
        rows = [eager_gradient(start.problem, at[r : r + 1], indices[r : r + 1], None)[0] for r in range(runs)]
        return torch.cat(rows)

    def xi(k: int) -> Tensor:
        out = torch.empty(1, runs, start.d, dtype=start.x.dtype)
        return streams.normal_(out, start.seeds, streams.Purpose.NOISE, k)[0]

    noise = xi if rule.noisy else None
    states = drive(rule, _spread(hyper, runs), start.x.clone(), gradient, STEPS, noise, schedule_hyper=None)
    return list(states)[-1]


def assert_same(ours: Any, theirs: Any, tolerance: float) -> None:
    """Check two states field by field."""
    for name, one, other in zip(theirs._fields, ours, theirs, strict=True):
        assert (one is None) == (other is None), name
        if other is not None:
            assert torch.isfinite(other).all(), name
            difference = float((one - other).abs().max())
            assert difference <= tolerance * max(1.0, float(other.abs().max())), f"{name} differs by {difference:.3g}"
