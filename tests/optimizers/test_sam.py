"""SAM and ASAM against a loop with autograd that is written from the papers' equations, and against SGD."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from burgersgd import streams
from burgersgd.build.prepared import prepare
from burgersgd.config import AsamConfig, MlpConfig, SamConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.training.fleet import Fleet
from tests.conftest import small_config

BUDGET = 24
CASES: list[Any] = [
    SamConfig(lr=0.2, rho=0.3),
    SamConfig(lr=0.2, rho=0.3, momentum=0.6, weight_decay=0.05),
    SamConfig(lr=0.2, rho=0.3, momentum=0.6, nesterov=True),
    AsamConfig(lr=0.2, rho=0.7, eta=0.2),
    AsamConfig(lr=0.2, rho=0.7, eta=0.0, momentum=0.6, weight_decay=0.05),
]


def config(optimizer: Any, seed: int = 4, **changes: Any) -> TrainConfig:
    trainer = TrainerConfig(**{"budget": BUDGET, "batch_size": 400, "precision": "float64", "compile": "off"} | changes)
    return small_config(seed=seed, optimizer=optimizer, trainer=trainer)


def minimise(fleet: Fleet, optimizer: Any, clip: float | None = None, mask: float | None = None) -> Tensor:
    """Return x after the budget: every batch is seen twice, by torch.optim.SGD and a step up beforehand."""
    x = fleet.x.clone().requires_grad_()
    sgd = torch.optim.SGD(
        [x], optimizer.lr, optimizer.momentum, weight_decay=optimizer.weight_decay, nesterov=optimizer.nesterov
    )
    problem = fleet.problem

    def gradient(k: int) -> Tensor:
        """Of batch k, clipped to the longest norm, as every gradient is."""
        rows = fleet.batches.indices(k, 1)[0, 0, : fleet.batches.size(k)]
        uniform = None
        if mask is not None:
            numbers = torch.empty(1, 1, fleet.batches.batch_size * problem.model.n_uniform)
            numbers = streams.uniform_(numbers, fleet.seeds, streams.Purpose.DROPOUT, k)
            uniform = numbers.view(fleet.batches.batch_size, -1)[: len(rows)]
        parts = [
            p.view(s)
            for p, s in zip(
                x[0].split([s.numel() for s in map(torch.Size, problem.model.shapes)]),
                problem.model.shapes,
                strict=True,
            )
        ]
        loss = problem.loss.mean(problem.model.apply(parts, problem.inputs[rows], True, uniform), problem.targets[rows])
        (grad,) = torch.autograd.grad(loss, x)
        return grad if clip is None else grad * min(1.0, clip / float(grad.norm()))

    for k in range(BUDGET // 2):
        grad = gradient(k)
        t = x.detach().abs() + optimizer.eta if isinstance(optimizer, AsamConfig) else torch.ones_like(grad)
        e = optimizer.rho * t**2 * grad / (t * grad).norm()
        with torch.no_grad():
            x += e
        x.grad = gradient(k)
        with torch.no_grad():
            x -= e
        sgd.step()
    return x.detach()


@pytest.mark.parametrize("engine", ["off", "native"])
@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("optimizer", CASES)
def test_it_is_the_loop_of_the_paper(optimizer: Any, clip: float | None, engine: str) -> None:
    fleet = prepare([config(optimizer, compile=engine, clip_norm=clip)]).fleet()
    expected = minimise(fleet, optimizer, clip)
    fleet.advance(BUDGET)
    torch.testing.assert_close(fleet.x, expected, rtol=1e-9, atol=1e-10)


def test_both_gradients_of_a_batch_see_the_same_dropout_masks() -> None:
    trainer = TrainerConfig(budget=BUDGET, batch_size=400, precision="float64", compile="off")
    model = MlpConfig(depth=1, width=20, dropout=0.4)
    fleet = prepare([small_config(seed=4, optimizer=CASES[0], trainer=trainer, model=model)]).fleet()
    expected = minimise(fleet, CASES[0], mask=0.4)
    fleet.advance(BUDGET)
    torch.testing.assert_close(fleet.x, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("cls", [SamConfig, AsamConfig])
def test_without_a_neighbourhood_it_is_sgd_on_every_batch_once(cls: Any) -> None:
    sam = prepare([config(cls(lr=0.2, rho=0.0, momentum=0.6, nesterov=True, weight_decay=0.05))]).fleet()
    sgd = prepare([config(SgdConfig(lr=0.2, momentum=0.6, nesterov=True, weight_decay=0.05))]).fleet()
    sam.advance(BUDGET)
    sgd.advance(BUDGET // 2)
    torch.testing.assert_close(sam.x, sgd.x, rtol=1e-12, atol=1e-14)


def test_an_epoch_is_two_gradients_of_every_batch() -> None:
    trainer = TrainerConfig(epochs=2, batch_size=400)
    prepared = prepare([small_config(optimizer=SamConfig(), trainer=trainer)])
    assert prepared.budget == 2 * 2 * 3  # 1079 examples are 3 batches
    assert prepared.fleet().evaluations_per_epoch == 6


def test_rho_of_asam_does_not_depend_on_the_scale_of_the_weights() -> None:
    rule: Any = AsamConfig().rule()
    state = rule.init(torch.tensor([[0.5, -2.0, 3.0]]), None)
    c = type("C", (), {"rho": torch.tensor([[0.3]]), "eta": torch.tensor([[0.0]])})()
    grad = torch.tensor([[1.0, -0.4, 0.2]])

    def relative(scale: float) -> Tensor:
        scaled = rule.init(scale * state.x, None)
        g = grad / scale  # of the loss as a function of scale * x
        norm = rule.normed(c, scaled, g).norm(dim=1, keepdim=True)
        return rule.ascent(c, scaled, g, norm) / scaled.x

    torch.testing.assert_close(relative(1.0), relative(7.0))
    assert float(relative(1.0).norm()) == pytest.approx(0.3, rel=1e-6)
