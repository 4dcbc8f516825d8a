"""A run is prepared once, whichever function of the API trains it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import burgersgd
from burgersgd.build import parts, prepared
from burgersgd.config import AdamWConfig, LocalEntropyConfig, MlpConfig, SgdConfig, TrainConfig, TrainerConfig


def small(optimizer: Any, seed: int = 0, **changes: Any) -> TrainConfig:
    trainer = TrainerConfig(budget=20, batch_size=16)
    return TrainConfig(model=MlpConfig(width=4, depth=1), optimizer=optimizer, trainer=trainer, seed=seed, **changes)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the fleets that are prepared (each is probed once) and the arrays that are split."""
    calls: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counting(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, counting)

    count(prepared, "probe")
    count(parts, "from_arrays")
    return calls


def test_several_fleets_are_prepared_once_each_and_share_the_users_arrays(counted: Counter[str]) -> None:
    rng = np.random.default_rng(5)
    arrays = rng.normal(2.0, 3.0, (120, 3)).astype("float32"), rng.integers(0, 3, 120)
    optimizers = [SgdConfig(lr=0.1), LocalEntropyConfig(inner_steps=5), AdamWConfig(lr=0.01)]
    configs = [small(optimizer, seed) for seed in (3, 1) for optimizer in optimizers]
    results = burgersgd.train_all(configs, dataset=arrays, record=False, progress=False)
    assert counted == {"probe": 3, "from_arrays": 1}
    alone = burgersgd.train(configs[1], dataset=arrays, record=False, progress=False)
    assert alone.test_loss == pytest.approx(results[1].test_loss, rel=1e-5)


def test_a_module_of_the_users_own_is_trained_by_every_fleet(counted: Counter[str]) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    configs = [small(SgdConfig(lr=0.1)), small(AdamWConfig(lr=0.01))]
    configs[1].model = MlpConfig(width=9)  # means nothing beside a module
    results = burgersgd.train_all(configs, model=module, record=False, progress=False)
    assert counted["probe"] == 2
    assert [result.n_parameters for result in results] == [650, 650]


@pytest.mark.parametrize("budget", [20, 40])
def test_a_run_resumed_with_a_budget_is_prepared_once(counted: Counter[str], tmp_path: Path, budget: int) -> None:
    burgersgd.train(small(SgdConfig(lr=0.1), output_root=str(tmp_path), run_name="first"), progress=False)
    assert counted.pop("probe") == 1
    result = burgersgd.resume(tmp_path / "first", budget=budget, run_name="second", progress=False)
    assert counted["probe"] == 1
    assert result.evaluations == budget
    assert result.folder == tmp_path / ("first" if budget == 20 else "second")
