"""A run is resumed only with the data and module of its start; a sweep reports which code trained its jobs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from burgersgd.api import resume, train, train_jobs
from burgersgd.build import prepared as prepare_module
from burgersgd.cli import main
from burgersgd.config import ConfigError, MlpConfig, NpzConfig
from burgersgd.datasets import DataError, from_arrays
from burgersgd.recording.run_folder import read_config, read_status
from burgersgd.revisit import evaluate
from tests.conftest import small_config

RNG = np.random.default_rng(2)
X, Y = RNG.normal(size=(200, 6)), np.arange(200) % 3


def saved(x: np.ndarray) -> None:
    np.savez("data.npz", x=x, y=Y)


def changed() -> np.ndarray:
    x = X.copy()
    x[17, 3] += 0.5
    return x


def stopped_run(**more: Any) -> Path:
    """Return the folder of a run that stands at its budget, and may go on to a larger one."""
    config = small_config(model=MlpConfig(width=8), run_name="run")
    train(config, progress=False, **more)
    return Path("outputs/run")


def test_the_digest_knows_every_number() -> None:
    data, again = from_arrays(X, Y), from_arrays(X, Y)
    assert data.digest == again.digest
    assert len(data.digest) == 32
    labels = Y.copy()
    labels[5] = (labels[5] + 1) % 3
    others = [from_arrays(changed(), Y), from_arrays(X, labels), from_arrays(X, Y, seed=1), from_arrays(X * 2, Y)]
    others += [
        from_arrays(X, Y, standardize=False),
        from_arrays(X, Y, train_size=50),
        from_arrays(X.reshape(200, 3, 2), Y),
    ]
    digests = [other.digest for other in others]
    assert len({data.digest, *digests}) == 1 + len(others) - 1  # X * 2 is the same once it is standardised
    assert digests[3] == data.digest


def test_other_data_behind_the_same_path_are_refused() -> None:
    saved(X)
    config = small_config(dataset=NpzConfig(path="data.npz"), model=MlpConfig(width=8), run_name="run")
    train(config, progress=False)
    folder = Path("outputs/run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    saved(changed())
    from burgersgd.build.parts import _load
    from burgersgd.datasets import load

    _load.cache_clear()
    assert load(config.dataset).digest != ""
    with pytest.raises(DataError, match=r"^dataset\.path=.*data\.npz: the file was changed: its digest is "):
        resume(folder)
    with pytest.raises(DataError, match=r"^dataset\.path=.*data\.npz: the file was changed: its digest is "):
        evaluate(folder)
    assert main(["train", "resume=outputs/run", "trainer.budget=80", "run_name=further"]) == 2
    assert not Path("outputs/further").exists()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    saved(X)
    _load.cache_clear()
    assert resume(folder).evaluations == 40


def test_arrays_given_again_must_be_the_same() -> None:
    folder = stopped_run(dataset=(X, Y))
    assert resume(folder, dataset=(X, Y), progress=False).evaluations == 40
    with pytest.raises(DataError, match=r"the data changed since .*outputs/run"):
        resume(folder, dataset=(changed(), Y), progress=False)


class Tanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(inputs)))


class Relu(Tanh):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(inputs)))


@pytest.mark.parametrize(
    ("model", "other"),
    [
        (Tanh(), Relu()),
        (
            nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        ),
        (nn.Sequential(nn.Linear(6, 3)), nn.Linear(6, 3)),
    ],
)
def test_another_module_of_the_same_shapes_is_refused(model: nn.Module, other: nn.Module) -> None:
    folder = stopped_run(model=model, dataset=(X, Y))
    for call in (resume, evaluate):
        with pytest.raises(ConfigError, match=r"^model: differs from the module with which .*outputs/run was trained$"):
            call(folder, model=other, dataset=(X, Y))
    assert resume(folder, model=model, dataset=(X, Y), progress=False).evaluations == 40


def half_frozen(part: str | None) -> Tanh:
    torch.manual_seed(1)
    module = Tanh()
    if part is not None:
        getattr(module, part).requires_grad_(False)
    return module


@pytest.mark.parametrize(("part", "other"), [("a", None), (None, "a"), ("a", "b")])
def test_a_module_that_differs_in_what_is_frozen_is_another_module(part: str | None, other: str | None) -> None:
    folder = stopped_run(model=half_frozen(part), dataset=(X, Y))
    recorded = read_config(folder)["model"]
    expected = {"frozen": [f"{part}.weight", f"{part}.bias"]} if part else {}
    assert recorded == {"name": "own", "class": "Tanh"} | expected
    for call in (resume, evaluate, partial(resume, budget=80)):
        with pytest.raises(ValueError, match=r"differs from the module with which|parameters, but the model has \d+$"):
            call(folder, model=half_frozen(other), dataset=(X, Y))
    assert resume(folder, budget=80, model=half_frozen(part), dataset=(X, Y), progress=False).evaluations == 80


def frozen(by: float, trained_by: float = 0.0) -> nn.Module:
    """Return a module with a frozen layer and a constant buffer, some of whose numbers are moved."""
    torch.manual_seed(4)
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    module[0].requires_grad_(False)
    module.register_buffer("constant", torch.tensor([1.0, float("nan"), 3.0]))
    with torch.no_grad():
        module[0].weight[2, 1] += by  # pyright: ignore
        module[2].weight += trained_by  # pyright: ignore
    return module


def test_frozen_weights_belong_to_a_run_and_those_that_are_trained_are_its_own() -> None:
    folder = stopped_run(model=frozen(0.0), dataset=(X, Y))
    before = evaluate(folder, model=frozen(0.0), dataset=(X, Y))
    for call in (resume, evaluate, partial(resume, budget=60)):
        with pytest.raises(
            ConfigError, match=r"^model: 0\.weight, which is not trained, differs from that of .*outputs/run$"
        ):
            call(folder, model=frozen(0.1), dataset=(X, Y))
    other = frozen(0.0)
    other.get_buffer("constant")[0] = 2.0
    with pytest.raises(ConfigError, match=r"^model: constant, which is not trained, differs"):
        resume(folder, model=other, dataset=(X, Y))
    trained = frozen(0.0, trained_by=0.5)
    trained[1].running_mean += 1  # pyright: ignore[reportIndexIssue, reportOperatorIssue]
    assert evaluate(folder, model=trained, dataset=(X, Y)) == before
    assert resume(folder, model=trained, dataset=(X, Y), progress=False).evaluations == 40


def test_what_is_trained_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []
    look = prepare_module.probe
    monkeypatch.setattr(prepare_module, "probe", lambda *given: prepared.append(given) or look(*given))
    assert main(["train", "trainer.budget=20", "model.width=4"]) == 0
    assert len(prepared) == 1
    train(small_config(), record=False, progress=False)
    assert len(prepared) == 2
    configs = [small_config(seed, run_name=f"run{seed}") for seed in (1, 2)]
    train_jobs(configs, [(), ()], progress=False)
    assert len(prepared) == 3


def sweep(*words: str) -> int:
    fixed = ("trainer.budget=20", "model.width=4", "trainer.batch_size=40", "optimizer=sgd", "sweep.name=named")
    return main(["train", "--multirun", "dataset=npz", "dataset.path=data.npz", *fixed, *words])


def test_a_named_sweep_keeps_to_its_data_and_says_whose_code_trained(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    saved(X)
    assert sweep("seed=1,2") == 0
    capsys.readouterr()
    (first, second) = sorted(Path("outputs/multirun/named").glob("*/status.json"))
    for path in (first, second):
        assert {"data", "code"} <= read_status(path.parent).keys()
    status = json.loads(first.read_text())
    first.write_text(json.dumps(status | {"code": "burgersgd 0.0.9"}))
    from burgersgd.build.parts import _load

    assert sweep("seed=1,2,3", "sweep.code=same") == 2
    error = capsys.readouterr().err
    assert (
        "sweep.code=same: jobs of this sweep were trained by other code (1 by burgersgd 0.0.9) than the present"
        in error
    )
    assert sweep("seed=1,2,3") == 0
    assert "trained by other code (1 by burgersgd 0.0.9)" in "".join(capsys.readouterr()) + caplog.text
    first.write_text(json.dumps(status | {"data": 32 * "0"}))  # as of a source that tells nothing of a change
    _load.cache_clear()
    assert sweep("seed=1,2,3,4") == 2
    error = capsys.readouterr().err
    assert "sweep.name=named: the data of dataset=npz changed since" in error
    assert len(list(Path("outputs/multirun/named").glob("*/status.json"))) == 3
