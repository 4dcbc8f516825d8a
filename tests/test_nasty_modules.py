"""Modules with unusual properties: each is trained as plain PyTorch trains it, or refused in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from burgersgd.api import train_fleet
from burgersgd.config import ConfigError
from tests.test_own_modules import LABELS, X, by_hand, config, largest_difference, net, run


class Around(nn.Module):
    """A small network with a function around its hidden layer that knows the module: (module, hidden) -> hidden."""

    def __init__(self, what: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last, self.what = nn.Linear(5, 6), nn.Linear(6, 2), what
        for name, value in attributes.items():
            self.register_buffer(name, value) if isinstance(value, Tensor) else setattr(self, name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.what(self, torch.tanh(self.first(inputs))))


# ------------------------------------------------------------------------------------------------- trained as meant


class WritesDeepInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Sequential(nn.Identity(), nn.LeakyReLU(0.2, inplace=True)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs).mul_(0.7)


class Recurrent(nn.Module):
    """Its weights are also in a plain list, which a swap of parameters does not reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.rnn, self.last = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.rnn(inputs[..., None])[0][:, -1])


def mask_made_when_called(module: Any, hidden: Any) -> Tensor:
    if module.mask is None:
        module.mask = torch.linspace(0.5, 1.5, hidden.shape[1], dtype=hidden.dtype)
    return hidden * module.mask


def keeps_what_nobody_reads(module: Any, hidden: Tensor) -> Tensor:
    module.seen = hidden.detach()
    return hidden


def half_as_much_again(layer: nn.Module, inputs: Any, outputs: Any) -> Any:
    return outputs * 1.5


def with_forward_hooks() -> nn.Module:
    module = net()
    module[0].register_forward_hook(half_as_much_again)
    module[2].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + 0.1,))
    return module


def in_half_precision() -> nn.Module:
    return net().half()


MEANT = {
    "writes deep inside": lambda: net(WritesDeepInside()),
    "recurrent": Recurrent,
    "a mask made when called": lambda: Around(mask_made_when_called, mask=None),
    "a cache that is not read": lambda: Around(keeps_what_nobody_reads),
    "forward hooks": with_forward_hooks,
    "float16": in_half_precision,
}


@pytest.mark.parametrize("make", MEANT.values(), ids=MEANT)
@pytest.mark.parametrize("n_runs", [1, 3])
def test_trained_as_plain_pytorch_trains_it(make: Callable[[], nn.Module], n_runs: int) -> None:
    given = [config(seed=s) for s in range(n_runs)]
    results = train_fleet(given, model=make(), dataset=(X, LABELS), record=False, progress=False)
    for one, result in zip(given, results, strict=True):
        expected = by_hand(make(), one)
        assert largest_difference(expected, make().double()) > 1e-3
        assert largest_difference(result.model, expected) < 1e-12


def test_a_buffer_that_counts_whole_numbers_in_every_mode_belongs_to_each_run() -> None:
    def count(module: Any, hidden: Tensor) -> Tensor:
        module.calls.add_(1)
        return hidden * (1 + 0.01 * module.calls.to(hidden.dtype))

    module: Any = Around(count, calls=torch.tensor(0))
    fleet = train_fleet(
        [config(seed=s) for s in range(3)], model=module, dataset=(X, LABELS), record=False, progress=False
    )
    assert int(module.calls) == 0
    for seed, result in enumerate(fleet):
        assert run(module, config(seed=seed)).metrics["validation_loss"] == result.metrics["validation_loss"]


def test_a_buffer_written_in_evaluation_mode_alone_changes_no_evaluation() -> None:
    def darkens(module: Any, hidden: Tensor) -> Tensor:
        if not module.training:
            module.scale.mul_(0.9)
        return hidden * module.scale

    still: Any = run(Around(lambda m, h: h * (1.0 if m.training else 0.9)))
    written: Any = run(Around(darkens, scale=torch.ones(())))
    np.testing.assert_allclose(written.metrics["validation_loss"], still.metrics["validation_loss"], rtol=1e-12)


# ---------------------------------------------------------------------------------------------- refused in one line


def remembers(module: Any, hidden: Tensor) -> Tensor:
    module.mean = 0.9 * module.mean + 0.1 * hidden.detach().mean()
    return hidden - module.mean


def remembers_for_evaluation(module: Any, hidden: Tensor) -> Tensor:
    if module.training:
        module.mean = hidden.detach().mean(0)
        return hidden
    return hidden - module.mean


def own_randomness(module: Any, hidden: Tensor) -> Tensor:
    rng = np.random.default_rng()  # seeded by the system
    return hidden + torch.as_tensor(rng.normal(size=hidden.shape), dtype=hidden.dtype)


def clamps_its_weights(module: Any, hidden: Tensor) -> Tensor:
    module.last.weight.data.clamp_(-0.1, 0.1)
    return hidden


class MaxNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 2, max_norm=0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.embedding(inputs[:, 0].long().clamp(0, 8))


def holds_on_to_itself() -> nn.Module:
    module: Any = net()
    layer = module[0]
    return nn.Sequential(module, Function(lambda y: y + layer.bias[:2]))


class Function(nn.Module):
    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what = what

    def forward(self, inputs: Tensor) -> Tensor:
        return self.what(inputs)


def parameters_in_a_list() -> nn.Module:
    return Around(lambda m, h: h * m.scales[0], scales=[nn.Parameter(torch.ones(6))])


def buffer_in_the_memory_of_a_weight() -> nn.Module:
    module: Any = net()
    module.register_buffer("seen", module[0].weight.detach()[0])
    return module


def not_a_number() -> nn.Module:
    module: Any = net()
    with torch.no_grad():
        module[2].bias[1] = float("nan")
    return module


MEMORY = "its outputs depend on earlier calls"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an average in an attribute": (lambda: Around(remembers, mean=0.0), MEMORY),
    "what evaluation reads": (lambda: Around(remembers_for_evaluation, mean=0.0), MEMORY),
    "randomness of its own": (lambda: Around(own_randomness), MEMORY),
    "clamps its weights": (lambda: Around(clamps_its_weights), "forward writes into the parameter last.weight"),
    "max_norm": (MaxNorm, "Embedding with max_norm changes its weight"),
    "holds on to itself": (holds_on_to_itself, "forward uses 0.0.bias, which is not a parameter of the module"),
    "a list of parameters": (parameters_in_a_list, r"forward uses a tensor \[6\] that requires a gradient"),
    "a buffer of a weight": (buffer_in_the_memory_of_a_weight, "0.weight and seen share memory"),
    "not a number": (not_a_number, "2.bias has values that are not finite"),
    "complex outputs": (lambda: nn.Sequential(net(), Function(torch.view_as_complex)), r"returns outputs \[3\] for 3"),
    "complex numbers": (
        lambda: nn.Sequential(net(), Function(lambda y: y + 0j)),
        "returns outputs of type torch.complex",
    ),
    "one dimension too many": (lambda: nn.Sequential(net(), Function(lambda y: y[:, :, None])), r"outputs \[3, 2, 1\]"),
    "lazy inside": (lambda: nn.Sequential(nn.LazyBatchNorm1d(), net()), "0.weight has no shape yet"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("n_runs", [1, 2])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_refused_in_one_line(make: Callable[[], nn.Module], message: str, n_runs: int) -> None:
    module = make()
    before = copy.deepcopy({name: value for name, value in module.state_dict().items() if type(value) is Tensor})
    with pytest.raises(ConfigError, match=f"^model: .*{message}") as caught:
        train_fleet([config(seed=s) for s in range(n_runs)], model=module, dataset=(X, LABELS), progress=False)
    assert "\n" not in str(caught.value)
    assert all(
        torch.equal(value.nan_to_num(), before[n].nan_to_num())
        for n, value in module.state_dict().items()
        if n in before
    )
