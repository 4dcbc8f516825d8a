"""The user's own modules are trained as their author intended, or refused in one line; they are never changed."""

from __future__ import annotations

import copy
import math
import random
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from burgersgd.api import Result, train, train_fleet
from burgersgd.build.prepared import prepare
from burgersgd.config import ConfigError, LeNetConfig, MlpConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.datasets import DataError, Dataset, from_arrays

RNG = np.random.default_rng(3)
X = RNG.normal(size=(70, 5)) + 2.0
LABELS = (X[:, 0] + X[:, 1] ** 2 > 6.3).astype(int)
REAL = np.stack([X[:, 0] - X[:, 1], X[:, 2] * 0.3], axis=1)


def config(
    seed: int = 4, budget: int = 23, batch_size: int = 8, loss: str | None = None, **trainer: Any
) -> TrainConfig:
    """Return a short run of momentum SGD, in float64 unless said otherwise."""
    settings: dict[str, Any] = {"precision": "float64", "compile": "off"} | trainer
    given = TrainConfig(
        optimizer=SgdConfig(lr=0.07, momentum=0.4, weight_decay=0.02),
        trainer=TrainerConfig(budget=budget, batch_size=batch_size, **settings),
        seed=seed,
    )
    if loss is not None:
        given.loss.name = loss
    return given


def run(model: Any, given: TrainConfig | None = None, dataset: Any = (X, LABELS), **more: Any) -> Result:
    return train(given or config(), model=model, dataset=dataset, record=False, progress=False, **more)


def net(*first: nn.Module, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*first, nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs))


def by_hand(module: nn.Module, given: TrainConfig, loss: Callable[..., Tensor] = F.cross_entropy) -> nn.Module:
    """Return the module, trained by torch.optim.SGD and plain autograd on the same batches: the oracle."""
    prepared = prepare([given], dataset=(X, LABELS), model=lambda: nn.Linear(5, 2))
    inputs, targets = prepared.problem.inputs, prepared.problem.targets
    fleet = prepared.fleet()
    module = module.double()
    for p in module.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    rule = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], 0.07, 0.4, weight_decay=0.02)
    for step in range(prepared.budget):
        rows = fleet.batches.indices(step, 1)[0, 0, : fleet.batches.size(step)]
        rule.zero_grad(set_to_none=False)  # an unused parameter has gradient 0, and decays
        loss(module(inputs[rows].clone()), targets[rows]).backward()
        rule.step()
    return module


def largest_difference(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p.detach() - q.detach()).abs().max()) for p, q in pairs if p.numel())


def frozen_first_layer() -> nn.Module:
    module = net()
    module[0].requires_grad_(False)
    return module


def twice_the_same_layer() -> nn.Module:
    torch.manual_seed(2)
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 2))


class TiedAutoencoder(nn.Module):
    """One parameter at two places of different modules, and one that is transposed in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.encoder, self.decoder, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.decoder(torch.tanh(self.encoder(inputs)))))


class Scaled(nn.Module):
    """A scalar parameter, one that is never used, an integer one, an empty one, and one out of a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.unused = nn.Parameter(torch.ones(3))
        self.order = nn.Parameter(torch.tensor([4, 3, 2, 1, 0]), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, 2))
        self.layer = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs[:, self.order]) * self.scale


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


def symmetric_weight() -> nn.Module:
    torch.manual_seed(8)
    module = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    parametrize.register_parametrization(module[0], "weight", Symmetric())
    return module


def weight_norm() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2))


def old_weight_norm() -> nn.Sequential:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but still found in many programs
        torch.manual_seed(7)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2))


def evaluating_dropout() -> nn.Module:
    module = net()
    module.insert(2, nn.Dropout(0.5))
    module[2].eval()
    return module


MEANT = {
    "writes into its input": lambda: net(nn.ReLU(inplace=True)),
    "frozen weights": frozen_first_layer,
    "a layer used twice": twice_the_same_layer,
    "tied weights": TiedAutoencoder,
    "odd parameters": Scaled,
    "a parametrization": symmetric_weight,
    "weight_norm": weight_norm,
    "the older weight_norm": old_weight_norm,
    "a submodule in eval()": evaluating_dropout,
    "batch statistics": lambda: net(nn.BatchNorm1d(5, track_running_stats=False)),
}


@pytest.mark.parametrize("make", MEANT.values(), ids=MEANT)
@pytest.mark.parametrize("n_runs", [1, 3])
def test_trained_as_plain_pytorch_trains_it(make: Callable[[], nn.Module], n_runs: int) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [m.training for m in module.modules()]
    kinds = {name: type(p) for name, p in module.named_parameters(remove_duplicate=False)}
    given = [config(seed=s) for s in range(n_runs)]
    results = train_fleet(given, model=module, dataset=(X, LABELS), record=False, progress=False)
    for one, result in zip(given, results, strict=True):
        expected = by_hand(make(), one)
        assert largest_difference(expected, module) > 1e-3  # it was trained at all
        assert largest_difference(result.model, expected) < 1e-12
        assert list(result.model.state_dict()) == list(expected.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [m.training for m in module.modules()] == modes
    assert {name: type(p) for name, p in module.named_parameters(remove_duplicate=False)} == kinds
    again = train_fleet(given, model=module, dataset=(X, LABELS), record=False, progress=False)
    assert [r.test_loss for r in again] == [r.test_loss for r in results]  # from the same start


def test_a_module_in_eval_mode_is_trained_in_training_mode() -> None:
    module = net(nn.BatchNorm1d(5, track_running_stats=False), nn.Dropout(0.5))
    assert run(copy.deepcopy(module).eval()).test_loss == run(module).test_loss


@pytest.mark.parametrize("batch_size", [8, 42])  # 42: the full batch
def test_no_module_writes_into_data(batch_size: int) -> None:
    kept = X.copy(), LABELS.copy()
    data = from_arrays(X, LABELS, standardize=False)
    copies = copy.deepcopy(data)
    given = config(batch_size=batch_size)
    reference = run(net(nn.ReLU()), given, data)
    result = run(net(nn.ReLU(inplace=True)), given, data)
    assert result.test_loss == reference.test_loss
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, part).inputs, getattr(copies, part).inputs)
    assert run(net(nn.ReLU(inplace=True)), given).state == "completed"
    assert np.array_equal(X, kept[0])
    assert np.array_equal(LABELS, kept[1])


def test_what_comes_back_has_memory_of_its_own() -> None:
    for model in (None, net(), twice_the_same_layer()):
        results = train_fleet(
            [config(seed=s) for s in range(3)], model=model, dataset=(X, LABELS), record=False, progress=False
        )
        for result in results:
            storages = {}
            for p in result.model.state_dict().values():
                assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
                storages[p.data_ptr()] = p.numel()
            assert sum(storages.values()) == result.n_parameters
            assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in result.model.parameters())


# ------------------------------------------------------------------------------------------------------- randomness


class Noisy(nn.Module):
    """Draws from the generators of torch, numpy and Python, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        noise = torch.randn(len(inputs), 5, dtype=inputs.dtype) * (0.3 if self.training else 0.1)
        return self.layer(inputs + noise) * (1 + 0.1 * random.random() + 0.1 * np.random.random())  # noqa: NPY002


RANDOM = {
    "dropout": lambda: nn.Sequential(nn.Linear(5, 30), nn.Dropout(0.4), nn.Linear(30, 2)),
    "noise": Noisy,
}


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_randomness_of_a_module_follows_the_seed(make: Callable[[], nn.Module]) -> None:
    module = make()
    torch.manual_seed(100)
    first = run(module, config(seed=1))
    torch.manual_seed(200)
    random.seed(7)
    assert run(module, config(seed=1)).metrics["validation_loss"] == first.metrics["validation_loss"]
    fleet = train_fleet(
        [config(seed=s) for s in (0, 1, 2)], model=module, dataset=(X, LABELS), record=False, progress=False
    )
    assert fleet[1].metrics["validation_loss"] == first.metrics["validation_loss"]
    same_batches = [config(seed=s, batch_size=42) for s in (0, 1)]
    assert len({run(module, one).test_loss for one in same_batches}) == 2  # only the masks differ


def test_dropout_masks_differ_from_step_to_step_and_keep_their_share() -> None:
    prepared = prepare([config(budget=9)], model=nn.Sequential(nn.Linear(5, 2000), nn.Dropout(0.3), nn.Linear(2000, 2)),
                       dataset=(X, LABELS))  # fmt: skip
    fleet, seen = prepared.fleet(), []
    prepared.problem.model._called[1].register_forward_hook(lambda m, i, out: seen.append((out == 0).flatten()))  # pyright: ignore
    fleet.advance(9)
    assert len({tuple(mask.tolist()) for mask in seen[::1]}) == 9
    n = seen[0].numel()
    assert all(abs(float(mask.double().mean()) - 0.3) < 6 * math.sqrt(0.21 / n) for mask in seen if mask.numel() == n)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (None, MlpConfig(width=8)),
        (None, MlpConfig(width=8, dropout=0.4)),
        (None, LeNetConfig(dropout=0.2)),
        (net(), None),
        (RANDOM["noise"](), None),
        (lambda: nn.Linear(5, 2), None),
    ],
    ids=["mlp", "mlp with dropout", "lenet", "own", "own with noise", "own function"],
)
def test_no_run_advances_the_global_generators(model: Any, settings: Any) -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)  # noqa: NPY002
    given = config()
    data = (X, LABELS)
    if settings is not None:
        given.model = settings
        data = (RNG.normal(size=(30, 12, 12)), np.arange(30) % 2) if settings.name == "lenet" else data
    train_fleet([given, given], model=model, dataset=data, record=False, progress=False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert str(states[2]) == str(np.random.get_state(legacy=True))  # noqa: NPY002


# --------------------------------------------------------------------------------------------------- refused in a line


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.LazyLinear(2)


class Returns(nn.Module):
    """Returns what a function of its layer's outputs says."""

    def __init__(self, what: Callable[[Tensor], Any], outputs: int = 2) -> None:
        super().__init__()
        self.layer, self.what = nn.Linear(5, outputs), what

    def forward(self, inputs: Tensor) -> Any:
        return self.what(self.layer(inputs))


def with_hook() -> nn.Module:
    module = net()
    p: Any = module[0].weight
    p.register_hook(lambda grad: grad * 0)
    return module


def sharing_memory() -> nn.Module:
    first, second = nn.Linear(5, 5, bias=False), nn.Linear(5, 2)
    second.weight = nn.Parameter(first.weight.detach()[:2])
    return nn.Sequential(first, second)


def with_attribute(value: Any) -> nn.Module:
    module = net()
    module.extra = value
    return module


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 2, sparse=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.embedding(inputs[:, 0].long().clamp(0, 8))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Linear(5, 2))


def all_frozen() -> nn.Module:
    return net().requires_grad_(False)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no parameters": (nn.ReLU, "the module has no parameters$"),
    "all frozen": (all_frozen, "requires_grad is False for every parameter"),
    "complex": (lambda: nn.Linear(5, 2, dtype=torch.complex64), "weight is torch.complex64; .* must be real"),
    "a hook": (with_hook, "0.weight has a gradient hook"),
    "memory shared": (sharing_memory, "0.weight and 1.weight share memory"),
    "lazy": (lazy, "weight has no shape yet"),
    "meta": (lambda: nn.Linear(5, 2, device="meta"), "weight is on the meta device"),
    "scripted": (scripted, "is a ScriptModule"),
    "data parallel": (lambda: nn.DataParallel(net()), "DataParallel distributes a module over devices"),
    "sparse": (SparseEmbedding, "the gradient of embedding.weight is sparse"),
    "own generator": (lambda: with_attribute(torch.Generator()), "Sequential.extra is a random generator"),
    "not copyable": (lambda: with_attribute(threading.Lock()), "Sequential cannot be copied .*lock"),
    "a tuple": (lambda: Returns(lambda y: (y, y)), "returns a tuple, must return one tensor"),
    "no batch": (lambda: Returns(lambda y: y.mean(0)), r"returns outputs \[2\] for 3 examples, must be \[3, 2\]"),
    "integers": (lambda: Returns(lambda y: y.round().long()), "returns outputs of type torch.int64"),
    "gradient cannot be computed": (lambda: Returns(lambda y: y.detach()), "do not depend on any trainable parameter"),
    "inputs": (lambda: nn.Linear(6, 2), r"fails on inputs \[3, 5\] in training mode"),
    "one class too many": (lambda: nn.Linear(5, 3), r"must be \[4, 2\] for this data set and loss=cross_entropy"),
    "not a module": (lambda: lambda: "net", "must be an nn.Module or a function that makes one, not str"),
    "fails": (lambda: lambda: 1 / 0, r"calling <lambda> failed \(division by zero\)"),
    "needs arguments": (lambda: Returns, "calling Returns failed"),
    "neither": (lambda: 3, "calling 3 failed"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("n_runs", [1, 2])
def test_refused_in_one_line(make: Callable[[], Any], message: str, n_runs: int) -> None:
    with pytest.raises(ConfigError, match=f"^model: .*{message}") as caught:
        train_fleet([config(seed=s) for s in range(n_runs)], model=make(), dataset=(X, LABELS), progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "targets", "what", "wrong"),
    [
        ("squared_error", REAL[:, :1], lambda y: y[:, 0], "[3]"),  # would be broadcast to [n, n]
        ("squared_error", REAL[:, :1], lambda y: y, "[4, 3]"),
        ("squared_error", REAL, lambda y: y[:, :1], "[3, 1]"),
        ("squared_error", np.arange(70) % 10, lambda y: y[:, :1], "[3, 1]"),
        ("logistic", LABELS, lambda y: y[:, 0], "[3]"),
        ("logistic", LABELS, lambda y: y[:, :2], "[3, 2]"),
        ("cross_entropy", LABELS, lambda y: y[:, :1], "[3, 1]"),
        ("cross_entropy", LABELS, lambda y: y[:, :2, None], "[3, 2, 1]"),
    ],
)
def test_outputs_that_only_broadcast_are_refused(loss: str, targets: Any, what: Any, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^model: returns outputs \[") as caught:
        run(Returns(what, outputs=3), config(loss=loss), (X, targets))
    dimensions = wrong.strip("[]").split(", ")[1:]
    assert str(caught.value).split(" for ")[0].endswith(", ".join(["", *dimensions])[1:] + "]" if dimensions else "]")


def test_a_last_batch_of_one_example_under_batch_statistics_is_refused() -> None:
    module = net(nn.BatchNorm1d(5, track_running_stats=False))  # 42 training examples = 41 + 1
    with pytest.raises(ConfigError, match=r"^model: fails on inputs \[1, 5\] in training mode: Expected more than"):
        run(module, config(batch_size=41))
    assert run(module, config(batch_size=41, drop_last=True)).state == "completed"


# ------------------------------------------------------------------------------------------ engines and surroundings


class Branches(nn.Module):
    """Control flow on values, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs)
        return outputs * 2 if outputs.sum() > 0 else outputs


def test_control_flow_on_values_is_computed_run_by_run() -> None:
    module = Branches()
    given = [config(seed=s) for s in range(3)]
    fleet = train_fleet(given, model=module, dataset=(X, LABELS), record=False, progress=False)
    for one, result in zip(given, fleet, strict=True):
        assert largest_difference(result.model, by_hand(copy.deepcopy(module), one)) < 1e-12
        assert run(module, one).metrics["train_loss"] == result.metrics["train_loss"]


def test_modules_computed_run_by_run_are_not_compiled_as_a_fleet() -> None:
    given = [config(seed=s, compile="on") for s in range(2)]
    with pytest.raises(ConfigError, match=r"^trainer\.compile=on: must be auto or off for this model"):
        train_fleet(given, model=RANDOM["dropout"](), dataset=(X, LABELS), progress=False)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_mode_changes_nothing(around: Callable[[], Any]) -> None:
    outside = run(net(), config(precision="float32"))
    with around():
        given = from_arrays(torch.tensor(X), LABELS)
        inside = run(net(), config(precision="float32"), given)
        built_in = run(None, config(precision="float32", batch_size=42), given)
    assert inside.test_loss == outside.test_loss
    assert built_in.test_loss == run(None, config(precision="float32", batch_size=42)).test_loss


def compiled_in_part(module: nn.Sequential) -> nn.Module:
    inner: Any = torch.compile(module[0])
    return nn.Sequential(inner, module[1], module[2])


@pytest.mark.parametrize("compiled", [torch.compile, compiled_in_part])
def test_compiled_modules_come_back_without_their_wrapper(compiled: Callable[[Any], Any]) -> None:
    result = run(compiled(net()))
    assert list(result.model.state_dict()) == list(net().state_dict())
    assert result.test_loss == run(net()).test_loss


def test_data_may_be_tensors_with_gradients_or_in_bfloat16() -> None:
    reference = run(net())
    x = torch.tensor(X, requires_grad=True)
    assert run(net(), dataset=(x, torch.tensor(LABELS))).test_loss == reference.test_loss
    rough = torch.tensor(X, dtype=torch.bfloat16)
    assert run(net(), dataset=(rough, LABELS)).test_loss == run(net(), dataset=(rough.float(), LABELS)).test_loss
    made = from_arrays(X, LABELS)
    parts = {n: getattr(made, n)._replace(inputs=getattr(made, n).inputs.clone().requires_grad_()) for n in
             ("train", "validation", "test")}  # fmt: skip
    own = Dataset(made.name, made.task, **parts, n_outputs=2)
    assert run(net(), dataset=own).test_loss == run(net(), dataset=made).test_loss
    with pytest.raises(DataError, match=r"^x is not an array"):
        run(net(), dataset=(torch.tensor(X).to_sparse(), LABELS))


def test_a_function_that_draws_what_is_not_trained_needs_one_run() -> None:
    def make() -> nn.Module:
        module = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
        module[0].requires_grad_(False)
        return module

    given = [config(seed=s) for s in (1, 2)]
    assert run(make, given[0]).test_loss == run(make, given[0]).test_loss != run(make, given[1]).test_loss
    with pytest.raises(ConfigError, match=r"^model: 0\.weight is not trained but differs between seeds"):
        train_fleet(given, model=make, dataset=(X, LABELS), record=False, progress=False)


# -------------------------------------------------------------------------------------------------- configurations


def test_a_mapping_is_a_configuration() -> None:
    from omegaconf import OmegaConf

    plain = {
        "optimizer": {"name": "sgd", "lr": 0.07},
        "dataset": "two_spirals",
        "model": {"width": 9},
        "trainer": {"budget": 11},
        "seed": 2,
    }
    expected = TrainConfig(
        optimizer=SgdConfig(lr=0.07), model=MlpConfig(width=9), trainer=TrainerConfig(budget=11), seed=2
    )
    from burgersgd.config import TwoSpiralsConfig

    expected.dataset = TwoSpiralsConfig()
    structured = OmegaConf.create(plain | {"model": {"widths": [4, 3], "width": "${seed}"}})
    results = [train(given, record=False, progress=False) for given in (plain, expected, structured)]
    assert results[0].test_loss == results[1].test_loss
    assert results[0].config == results[1].config
    assert results[2].config.model == MlpConfig(widths=[4, 3], width=2)
    (fleet,) = train_fleet([plain], record=False, progress=False)
    assert fleet.test_loss == results[0].test_loss


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "config: must be a TrainConfig or a mapping of its keys, not int"),
        ({"sed": 1}, "sed: no such key"),
        ({"optimizer": {"name": "sgd", "gamma": 1.0}}, r"optimizer\.gamma: no such key"),
        ({"optimizer": "sdg"}, "optimizer=sdg: must be one of local_entropy"),
        ({"optimizer": 3}, "optimizer=3: must be a name or a mapping"),
        ({"trainer": None}, "trainer=None: must be a name or a mapping"),
        ({"seed": -1}, "seed=-1: must be"),
    ],
)
def test_a_mapping_with_mistakes_is_refused_in_one_line(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        train(given, record=False, progress=False)
