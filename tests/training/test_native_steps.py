"""Several steps in one call of C are the steps one by one, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from burgersgd.build.prepared import prepare
from burgersgd.config import (
    AdamWConfig,
    LangevinConfig,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SgdConfig,
    TrainerConfig,
)
from burgersgd.training.engines.native import Native
from burgersgd.training.fleet import Fleet
from burgersgd.training.state import RECORDS
from tests.conftest import small_config

RULES: list[OptimizerConfig] = [
    LocalEntropyConfig(lr=0.07, nu=1e-4, gamma=0.4, burn_in=2, inner_steps=5, outer_step=0.7, weight_decay=0.01),
    LocalEntropyConfig(lr=0.07, nu=1e-4, integrator="leimkuhler_matthews", averaging="ema", outer_momentum=0.4),
    LocalEntropyConfig(lr=0.07, nu=1e-4, averaging="ema", momentum=0.4),
    LocalEntropyConfig(lr=0.07, nu=1e-4, inner_steps=1, inner_start="reset", outer_momentum=0.3),
    PaperSDEConfig(lr=0.07, nu=1e-4, epsilon=0.3),
    PaperLiteralConfig(lr=0.07, nu=1e-4, period=3),
    SgdConfig(lr=0.07, momentum=0.7, nesterov=True),
    AdamWConfig(lr=0.003, weight_decay=0.2),
    LangevinConfig(lr=0.07, temperature=1e-5),
]
TRAINERS: list[dict[str, Any]] = [
    {"batch_size": 500},  # of 1079: every third batch is short
    {"batch_size": 1079},
    {"batch_size": 37, "with_replacement": True, "clip_norm": 0.4},
]


def fleets(optimizer: OptimizerConfig, n_runs: int, trainer: dict[str, Any], **config: Any) -> tuple[Fleet, Fleet]:
    """Return the same fleet twice; the second one goes step by step."""
    configs = [
        small_config(
            seed=5 + s,
            optimizer=dataclasses.replace(optimizer, lr=float(optimizer.lr) * (1 + 0.1 * s)),
            trainer=TrainerConfig(**{"budget": 280, "compile": "native"} | trainer),
            **config,
        )
        for s in range(n_runs)
    ]
    together, one_by_one = (prepare(configs).fleet() for _ in range(2))
    assert isinstance(one_by_one.stepper, Native)
    one_by_one.stepper = one_by_one.stepper.one_by_one
    return together, one_by_one


def assert_equal(a: Fleet, b: Fleet) -> None:
    for one, other in zip(a.state, b.state, strict=True):
        assert one is other is None or torch.equal(one, other)
    for name in RECORDS:
        assert torch.equal(getattr(a.runs, name), getattr(b.runs, name)), name
    assert a.runs.all_alive == b.runs.all_alive


PAIRS = [  # every two of these values meet
    ("float32", 1, TRAINERS[0]),
    ("float64", 18, TRAINERS[0]),
    ("float32", 18, TRAINERS[1]),
    ("float64", 1, TRAINERS[1]),
    ("float32", 18, TRAINERS[2]),
    ("float64", 1, TRAINERS[2]),
]


@pytest.mark.parametrize(("precision", "n_runs", "trainer"), PAIRS)
@pytest.mark.parametrize("optimizer", RULES, ids=lambda optimizer: optimizer.name)
def test_steps_together_are_the_steps_one_by_one(
    optimizer: OptimizerConfig, trainer: dict[str, Any], precision: str, n_runs: int
) -> None:
    together, one_by_one = fleets(optimizer, n_runs, trainer | {"precision": precision})
    for n in (1, 9, 3, 57):  # beyond a block of 64
        together.advance(n)
        for _ in range(n):
            one_by_one.advance(1)
        assert_equal(together, one_by_one)
    assert torch.equal(together.take_mean_loss(70), one_by_one.take_mean_loss(70))
    assert bool(together.alive.all())
    if "clip_norm" in trainer:
        assert bool((together.grad_norm > trainer["clip_norm"]).any()), "nothing was clipped"


@pytest.mark.parametrize(("lr", "explosion_factor"), [(1e3, 1e6), (1e160, float("inf"))])
def test_runs_that_diverge_are_frozen_in_the_very_step(lr: float, explosion_factor: float) -> None:
    trainer = {"batch_size": 64, "explosion_factor": explosion_factor, "precision": "float64"}
    together, one_by_one = fleets(SgdConfig(lr=lr), 4, trainer, model=MlpConfig(width=12))
    for fleet in (together, one_by_one):
        fleet.hyper["lr"][1:3] = 0.1
        fleet.advance(40)
    assert together.alive.tolist() == [False, True, True, False]
    assert 1 <= together.diverged_at[0] < 40  # after the first step, within a call
    assert_equal(together, one_by_one)
    together.stop(torch.tensor([False, True, False, False]))
    one_by_one.stop(torch.tensor([False, True, False, False]))
    before = together.x.clone()
    for fleet in (together, one_by_one):
        fleet.advance(40)
    assert torch.equal(before[1], together.x[1])
    assert not torch.equal(before[2], together.x[2])
    assert_equal(together, one_by_one)


def test_threads_share_out_runs() -> None:
    configs = [small_config(seed=s, trainer=TrainerConfig(budget=96, compile="native")) for s in range(5)]
    states = []
    for threads in (1, 3):
        prepared = prepare(configs, threads=threads)
        with prepared.torch_settings():
            fleet = prepared.fleet()
            fleet.advance(96)
        states.append(fleet)
    assert_equal(*states)


def test_a_call_takes_no_more_steps_than_a_signal_may_wait_for() -> None:
    together, _ = fleets(RULES[0], 3, {"batch_size": 500})
    assert isinstance(together.stepper, Native)
    steps = together.stepper.steps
    call = 6 * 3 * steps._gradient.work * 500
    assert call * steps.most <= 2e9 < call * (steps.most + 1)
    steps.most = 2
    together.advance(1)
    pauses = []

    def pause() -> bool:
        pauses.append(together.evaluations)
        return len(pauses) == 3

    together.advance(60, pause)
    assert pauses == [3, 5, 7]  # the cycle of 7 ends with evaluation 7
    assert together.evaluations == 7


def test_indices_outside_the_training_set_are_refused() -> None:
    together, _ = fleets(RULES[0], 2, {"batch_size": 30})
    together.advance(3)
    before = together.x.clone()
    block = together.inputs.block
    assert block.indices is not None
    together.inputs._block = block._replace(indices=block.indices + 1079)
    with pytest.raises(IndexError, match="outside the training set of 1079 examples"):
        together.advance(4)
    assert torch.equal(together.x, before)
