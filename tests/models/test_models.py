from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from burgersgd import streams
from burgersgd.models.conv import LeNet
from burgersgd.models.mlp import ACTIVATIONS, Mlp, dropout, initial_std, weight_std
from burgersgd.models.wrapped import Wrapped
from burgersgd.training.gradients import split


def vector(model: Any, seed: int = 0) -> Tensor:
    d = sum(math.prod(s) for s in model.shapes)
    return 0.3 * torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MODELS = [Mlp((6, 5, 4, 3), activation=name) for name in ACTIVATIONS] + [
    Mlp((6, 3)),
    Mlp((6, 7, 3), dropout=0.5),
    LeNet((1, 28, 28), 10),
    LeNet((3, 32, 32), 10, dropout=0.2),
    LeNet((1, 17, 12), 4),
]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_ordinary_module_computes_what_apply_computes(model: Any) -> None:
    x = vector(model)
    module = model.module().double().eval()
    assert [tuple(p.shape) for p in module.parameters()] == model.shapes
    nn.utils.vector_to_parameters(x, module.parameters())
    shape = model.input_shape if isinstance(model, LeNet) else (2, 3)
    inputs = torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model.apply(split(x, model.shapes), inputs, False, None), module(inputs), rtol=1e-12)


def test_mlp_is_the_papers_recursion() -> None:
    model = Mlp((2, 3, 1), activation="tanh")
    w1 = torch.tensor([[0.1, -0.2], [0.3, 0.4], [-0.5, 0.6]])
    b1, w2, b2 = torch.tensor([0.1, 0.2, -0.3]), torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([0.7])
    theta = torch.tensor([[0.5, -1.5]])
    z = torch.tanh(w1 @ theta[0] + b1)  # (2.2)
    assert torch.allclose(model.apply([w1, b1, w2, b2], theta, True, None)[0], w2 @ z + b2)


def test_dropout_keeps_the_mean_and_drops_the_share_asked_for() -> None:
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(2))
    z = torch.full_like(uniform, 3.0)
    dropped = dropout(z, uniform, 0.3)
    n, p = len(z), 0.3
    assert abs(float((dropped == 0).double().mean()) - p) < 6 * math.sqrt(p * (1 - p) / n)
    assert abs(float(dropped.mean()) / 3 - 1) < 6 * math.sqrt(p / (1 - p) / n)


def test_dropout_of_every_layer_uses_numbers_of_its_own() -> None:
    model = Mlp((4, 3, 5, 2), activation="tanh", dropout=0.5)
    assert model.n_uniform == 8
    x = vector(model)
    inputs = torch.ones(1, 4, dtype=torch.float64)
    keep = torch.full((1, 8), 0.9)
    outputs = [model.apply(split(x, model.shapes), inputs, True, keep)]
    for unit in range(8):
        u = keep.clone()
        u[0, unit] = 0.1
        outputs.append(model.apply(split(x, model.shapes), inputs, True, u))
    assert len({tuple(o[0].tolist()) for o in outputs}) == 9  # each unit changes the output in its own way


@pytest.mark.parametrize(
    ("name", "variance"), [("he", 2 / 30), ("glorot", 2 / 50), ("lecun", 1 / 30), ("pytorch", 1 / 90)]
)
def test_initial_weights_have_the_named_variance(name: str, variance: float) -> None:
    assert weight_std(name, 30, 20) == pytest.approx(math.sqrt(variance), rel=1e-12)
    std = initial_std([(20, 30), (20,)], name, 1.7)
    assert torch.allclose(std[:600], torch.full((600,), 1.7 * math.sqrt(variance)))
    assert torch.allclose(std[600:], torch.full((20,), 1.7 / math.sqrt(90) if name == "pytorch" else 0.0))


def test_pytorch_initialization_is_nn_linears() -> None:
    model = Mlp((40, 50, 10), initialization="pytorch", init_distribution="uniform")
    u = torch.empty(1, 400, sum(math.prod(s) for s in model.shapes))
    z = (2 * streams.uniform_(u, torch.arange(400), streams.Purpose.INIT, 0) - 1) * math.sqrt(3)
    ours = (z[0] * model.init_std())[:, : 40 * 50]
    torch.manual_seed(0)
    theirs = torch.stack([nn.Linear(40, 50).weight.detach().flatten() for _ in range(400)])
    assert float(ours.abs().max()) == pytest.approx(1 / math.sqrt(40), rel=1e-4)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=5e-3)  # 800,000 numbers each: se 8e-4


def test_convolutions_count_the_receptive_field() -> None:
    std = initial_std([(6, 3, 5, 5), (6,)], "he", 1.0)
    assert float(std[0]) == pytest.approx(math.sqrt(2 / 75), rel=1e-6)


def test_unknown_initialization_is_refused() -> None:
    with pytest.raises(ValueError, match="initialization=zero: one of he, glorot"):
        weight_std("zero", 1, 1)


def test_lenet_refuses_what_is_not_an_image() -> None:
    with pytest.raises(ValueError, match="inputs are 64, must be images of at least 12x12"):
        LeNet((64,), 10)


def test_a_wrapped_module_is_the_module() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2)).double()
    model = Wrapped(net)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    x = model.start()
    assert torch.equal(model.apply(split(x, model.shapes), inputs, False, None), net.eval()(inputs))
    changed = model.apply(split(2 * x, model.shapes), inputs, False, None)
    assert not torch.allclose(changed, net(inputs))
    assert torch.equal(model.start(), x)
