"""Modules whose training changes buffers: gathered at y, estimated again at x on training data, saved and resumed."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from burgersgd.api import resume, train, train_fleet
from burgersgd.build.prepared import prepare
from burgersgd.config import ConfigError, LocalEntropyConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.revisit import evaluate, load_predictor, state_dict

RNG = np.random.default_rng(5)
X = RNG.normal(size=(90, 5)) * 1.7 + 0.4
Y = (X[:, 0] + X[:, 1] ** 2 > 3).astype(int)
DATA: Any = (X, Y)


def normalised() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=0.3), nn.Tanh(), nn.Linear(6, 2))


def spectral() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 6)), nn.Tanh(), nn.Linear(6, 2))


def config(seed: int = 3, optimizer: Any = None, budget: int = 24, **changes: Any) -> TrainConfig:
    trainer = TrainerConfig(budget=budget, batch_size=9, precision="float64", bn_batches=4, eval_every=8)
    optimizer = SgdConfig(lr=0.08, momentum=0.5) if optimizer is None else optimizer
    return TrainConfig(optimizer=optimizer, trainer=dataclasses.replace(trainer, **changes), seed=seed)


ENTROPY = LocalEntropyConfig(lr=0.13, nu=1e-5, gamma=0.7, inner_steps=5, burn_in=3, outer_step=0.8)


def test_statistics_are_gathered_while_training_as_plain_pytorch_gathers_them() -> None:
    given = config()
    prepared = prepare([given], model=normalised(), dataset=DATA)
    fleet = prepared.fleet()
    fleet.advance(24)
    module = normalised().double()
    rule = torch.optim.SGD(module.parameters(), 0.08, 0.5)
    inputs, targets = prepared.problem.inputs, prepared.problem.targets
    for step in range(24):
        rows = fleet.batches.indices(step, 1)[0, 0, : fleet.batches.size(step)]
        rule.zero_grad()
        F.cross_entropy(module(inputs[rows]), targets[rows]).backward()
        rule.step()
    buffers = fleet.runs.buffers
    assert buffers is not None
    assert set(buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name, value in buffers.items():
        assert torch.allclose(value[0], module.get_buffer(name), rtol=1e-12)
    assert int(buffers["1.num_batches_tracked"]) == 24
    assert torch.allclose(fleet.x[0], nn.utils.parameters_to_vector(module.parameters()), rtol=1e-10)


@pytest.mark.parametrize("optimizer", [SgdConfig(lr=0.08), ENTROPY], ids=["sgd", "local_entropy"])
def test_x_is_evaluated_with_statistics_of_x_on_training_data(optimizer: Any) -> None:
    given = config(optimizer=optimizer)
    result = train(given, model=normalised(), dataset=DATA, record=False, progress=False)
    prepared = prepare([given], model=normalised(), dataset=DATA)
    module = copy.deepcopy(result.model)
    norm: Any = module.get_submodule("1")
    norm.reset_running_stats()
    norm.momentum = None  # a mean over the batches
    module.train()
    with torch.no_grad():
        for batch in prepared.problem.inputs[:36].split(9):
            module(batch)
        module.eval()
        assert torch.allclose(module.get_buffer("1.running_var"), result.model.get_buffer("1.running_var"), rtol=1e-12)
        test = prepared.data.test
        expected = F.cross_entropy(module(test.inputs), test.targets)
    assert result.test_loss == pytest.approx(float(expected), rel=1e-12)


def test_statistics_never_see_test_or_validation_data() -> None:
    prepared = prepare([config()], model=normalised(), dataset=DATA)
    fleet = prepared.fleet()
    fleet.advance(8)
    assert prepared.buffers_at is not None
    before = prepared.buffers_at(fleet.x[0])
    for part in (prepared.data.test, prepared.data.validation):
        part.inputs.mul_(100)
        prepared.evaluator(part)(fleet.x)
    after = prepared.buffers_at(fleet.x[0])
    assert all(torch.equal(before[name], after[name]) for name in before)
    prepared.problem.inputs.mul_(2)
    assert not torch.equal(prepared.buffers_at(fleet.x[0])["1.running_var"], before["1.running_var"])


def test_statistics_are_those_of_y_while_training_and_of_x_when_evaluated() -> None:
    prepared = prepare([config(optimizer=ENTROPY)], model=normalised(), dataset=DATA)
    fleet = prepared.fleet()
    fleet.advance(23)
    assert prepared.buffers_at is not None
    assert fleet.runs.buffers is not None
    gathered = fleet.runs.buffers["1.running_mean"][0].clone()
    prepared.evaluator(prepared.data.validation)(fleet.x)
    assert torch.equal(fleet.runs.buffers["1.running_mean"][0], gathered)
    at_x = prepared.buffers_at(fleet.x[0])["1.running_mean"]
    assert float((at_x - gathered).abs().max()) > 1e-3
    assert torch.equal(prepared.buffers_at(fleet.state.y[0])["1.running_mean"], at_x) is False


@pytest.mark.parametrize("make", [normalised, spectral])
def test_a_fleet_of_three_equals_three_single_runs(make: Any) -> None:
    given = [config(seed=s, optimizer=dataclasses.replace(ENTROPY, lr=lr)) for s, lr in ((0, 0.1), (1, 0.2), (2, 0.3))]
    together = train_fleet(given, model=make(), dataset=DATA, record=False, progress=False)
    alone = [train(one, model=make(), dataset=DATA, record=False, progress=False) for one in given]
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert one.metrics["validation_loss"] == other.metrics["validation_loss"]
    assert len({r.test_loss for r in together}) == 3


@pytest.mark.parametrize("make", [normalised, spectral])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(make: Any) -> None:
    short = dataclasses.replace(config(budget=16), run_name="short")
    train(short, model=make(), dataset=DATA, progress=False)
    longer = resume("outputs/short", budget=32, run_name="longer", model=make(), dataset=DATA, progress=False)
    whole = train(config(budget=32), model=make(), dataset=DATA, record=False, progress=False)
    for a, b in zip(longer.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert longer.test_loss == whole.test_loss


@pytest.mark.parametrize("make", [normalised, spectral])
def test_what_is_exported_predicts_what_was_reported(make: Any) -> None:
    result = train(dataclasses.replace(config(), run_name="run"), model=make(), dataset=DATA, progress=False)
    folder = Path("outputs/run")
    fresh = make().double()
    fresh.load_state_dict(state_dict(folder))  # strict
    assert torch.equal(fresh.eval()(torch.ones(3, 5).double()), result.model(torch.ones(3, 5).double()))
    assert torch.equal(load_predictor(folder, model=make())(X), result.predictor(X))
    for point, key in (("last", result.test_error), ("best", result.best_test_error)):
        assert evaluate(folder, point, model=make(), dataset=DATA)["test_error"] == key
    best = load_predictor(folder, "best", model=make())
    assert torch.isfinite(best(X)).all()


def test_a_diverged_run_leaves_the_statistics_of_the_others_alone() -> None:
    given = [config(seed=s, optimizer=SgdConfig(lr=lr)) for s, lr in ((0, 0.1), (1, 1e200))]
    results = train_fleet(given, model=normalised(), dataset=DATA, record=False, progress=False)
    assert [r.state for r in results] == ["completed", "diverged"]
    alone = train(given[0], model=normalised(), dataset=DATA, record=False, progress=False)
    assert results[0].test_loss == alone.test_loss


class Counts(nn.Module):
    """Exchanges a buffer instead of writing into it."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)
        self.register_buffer("total", torch.zeros(5))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.total = self.total + inputs.mean(0)
        return self.layer(inputs)


def test_a_buffer_that_is_exchanged_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^model: forward replaces the buffer total by another tensor; change it in place"
    ):
        train(config(), model=Counts(), dataset=DATA, record=False, progress=False)


def test_running_statistics_in_other_precisions_work_or_are_one_line() -> None:
    given = config(precision="float32", budget=8)
    assert train(given, model=normalised(), dataset=DATA, record=False, progress=False).state == "completed"
    with pytest.raises(ConfigError, match=r"^model: the gradient cannot be computed: expected scalar type BFloat16"):
        train(config(precision="bfloat16"), model=normalised(), dataset=DATA, record=False, progress=False)


def test_a_last_batch_of_one_example_is_refused() -> None:
    given = config()
    given.trainer.batch_size = 53  # of 54 training examples
    with pytest.raises(ConfigError, match=r"^model: fails on inputs \[1, 5\] in training mode: Expected more than 1"):
        train(given, model=normalised(), dataset=DATA, record=False, progress=False)
