"""SGD and full-batch gradient descent against torch.optim.SGD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from burgersgd.build.prepared import prepare
from burgersgd.config import GdConfig, MlpConfig, OptimizerConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.optimizers.sgd import Sgd
from tests import reference
from tests.optimizers.driver import drive, of_runs, wavy

RATES = [0.05, 0.2, 0.11]
MOMENTA = [0.9, 0.5, 0.3]
DECAYS = [0.01, 0.2, 0.4]
SCHEDULE = {"warmup": [0.2, 0.3, 0.1], "final": [0.3, 0.6, 0.1]}


@pytest.mark.parametrize("weight_decay", [False, True])
@pytest.mark.parametrize(("momentum", "nesterov"), [(False, False), (True, False), (True, True)])
def test_every_run_of_a_fleet_is_torch_sgd(momentum: bool, nesterov: bool, weight_decay: bool) -> None:
    steps = 40
    x = torch.from_numpy(reference.start(3, 4))
    rule = Sgd(momentum, weight_decay, nesterov)
    hyper = {"lr": RATES, "momentum": MOMENTA, "weight_decay": DECAYS}
    gradient = of_runs([wavy(i) for i in range(3)])
    states = list(drive(rule, hyper, x, gradient, steps, schedule="cosine", schedule_hyper=SCHEDULE))
    for i in range(3):
        params = nn.Parameter(x[i].clone())
        optimizer = torch.optim.SGD(
            [params],
            lr=RATES[i],
            momentum=MOMENTA[i] if momentum else 0.0,
            nesterov=nesterov,
            weight_decay=DECAYS[i] if weight_decay else 0.0,
        )
        lr = reference.warm_cosine(RATES[i], SCHEDULE["warmup"][i], SCHEDULE["final"][i], steps)
        for k in range(steps):
            params.grad = torch.from_numpy(wavy(i)(k, params.detach().numpy()))
            optimizer.param_groups[0]["lr"] = lr(k / steps)
            optimizer.step()
            torch.testing.assert_close(states[k].x[i], params.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        SgdConfig(lr=0.07, momentum=0.8, nesterov=True, weight_decay=0.03),
        GdConfig(lr=0.3, momentum=0.6, weight_decay=0.02),
    ],
)
def test_networks_are_trained_as_by_torch_sgd(optimizer: SgdConfig) -> None:
    trainer = TrainerConfig(budget=60, batch_size=50, precision="float64", compile="off")
    config = TrainConfig(model=MlpConfig(width=9, depth=1, activation="tanh"), optimizer=optimizer, trainer=trainer)
    prepared = prepare([config])
    fleet = prepared.fleet()
    network = prepared.problem.model.module().double()
    nn.utils.vector_to_parameters(fleet.x[0].clone(), network.parameters())
    torch_sgd = torch.optim.SGD(
        network.parameters(),
        lr=float(optimizer.lr),
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
    )
    inputs, targets = prepared.problem.inputs, prepared.problem.targets
    for k in range(60):
        chosen: Tensor = torch.arange(len(targets))
        if not optimizer.full_batch:
            chosen = fleet.batches.indices(k, 1)[0, 0, : fleet.batches.size(k)]
        torch_sgd.zero_grad()
        cross_entropy(network(inputs[chosen]), targets[chosen]).backward()
        torch_sgd.step()
    fleet.advance(60)
    expected = nn.utils.parameters_to_vector(network.parameters()).detach()
    torch.testing.assert_close(fleet.x[0], expected, rtol=0, atol=1e-11)  # 60 steps of sums in another order


def test_gradient_descent_sees_the_whole_training_set_in_every_step() -> None:
    config: OptimizerConfig = GdConfig()
    prepared = prepare([TrainConfig(optimizer=config, trainer=TrainerConfig(epochs=7, batch_size=32))])
    assert (prepared.batch_size, prepared.budget) == (prepared.data.n_train, 7)
