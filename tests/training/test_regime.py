"""The regime of the theory: numbers against a naive loop, and the experiment that is in it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from burgersgd.build.prepared import prepare
from burgersgd.cli import main
from burgersgd.config import LocalEntropyConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.recording.run_folder import read_config
from burgersgd.training import regime
from burgersgd.training.regime import Regime, minibatch_traces, regimes
from tests.conftest import small_config

OPTIMIZER = LocalEntropyConfig(lr=0.07, nu=3e-6, gamma=0.9, inner_steps=6, burn_in=2, outer_step=0.4, momentum=0.6)


def config(seed: int, optimizer: LocalEntropyConfig = OPTIMIZER, batch_size: int = 100) -> TrainConfig:
    return small_config(
        seed=seed, optimizer=optimizer, trainer=TrainerConfig(budget=40, batch_size=batch_size, precision="float64")
    )


@pytest.mark.parametrize("together", [regime.TOGETHER, 0])
@pytest.mark.parametrize("engine", ["eager", "native"])
def test_every_run_of_a_fleet_has_the_numbers_of_the_naive_loop(
    engine: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of nn.Module on the batches of the run; the noise and the clock of the rate lr / (1 - momentum)."""
    monkeypatch.setattr(regime, "TOGETHER", together)
    optimizers = [OPTIMIZER, dataclasses.replace(OPTIMIZER, lr=0.2, nu=1e-4, gamma=math.inf, outer_step=0.9)]
    prepared = prepare([config(3 + i, optimizer) for i, optimizer in enumerate(optimizers)], engine=engine)
    fleet = prepared.fleet()
    starts = prepared.initial(fleet.seeds)
    fleet.advance(40)
    found = regimes(fleet, starts)
    inputs, targets = prepared.problem.inputs, prepared.problem.targets
    for run, optimizer in enumerate(optimizers):
        lr = float(optimizer.lr) / (1 - 0.6)
        of_run = found[run]
        assert of_run is not None
        network = prepared.problem.model.module().double()
        for x, ratio in zip((starts, fleet.x), of_run[2:], strict=True):
            nn.utils.vector_to_parameters(x[run].clone(), network.parameters())
            gradients = []
            for k in range(8):  # of 11, the last of which is short
                rows = fleet.batches.indices(k, 1)[0, run]
                loss = nn.functional.cross_entropy(network(inputs[rows]), targets[rows])
                gradient = torch.autograd.grad(loss, list(network.parameters()))
                gradients.append(torch.cat([g.flatten() for g in gradient]).numpy())
            trace = np.cov(np.array(gradients).T).trace()
            assert ratio == pytest.approx(optimizer.nu / (lr * trace / (4 * fleet.d)), rel=1e-9)
        assert of_run.equilibration == pytest.approx(8 * lr / optimizer.gamma)
        assert of_run.epsilon == pytest.approx(optimizer.outer_step * optimizer.gamma / (8 * lr))
    assert found[1] is not None
    assert (found[1].equilibration, found[1].recorded()["epsilon"]) == (0, None)


def test_batches_that_are_cut_short_do_not_count_and_one_batch_has_no_noise() -> None:
    fleets = [prepare([config(1, batch_size=size)]).fleet() for size in (1079, 900, 539)]  # of 1079 examples
    traces = [minibatch_traces(fleet, fleet.x)[0] for fleet in fleets]
    assert math.isnan(traces[0])
    assert math.isnan(traces[1])
    assert traces[2] > 0
    assert regimes(prepare([small_config(optimizer=SgdConfig())]).fleet(), fleets[0].x) == [None]
    assert str(Regime(3.75, 0.08, 0.1, 7.1)).endswith(
        "eps 0.08, nu / mini-batch noise 0.1 at the start, 7.1 at the end"
    )
    assert str(Regime(3.75, 0.08, math.nan, math.nan)).endswith("noise unknown at the start, unknown at the end")


def test_the_experiment_is_in_the_regime_of_the_theory_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "experiment=theory_regime", f"output_root={tmp_path}", "run_name=run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "L lr / gamma 3.75, eps 0.08, nu / mini-batch noise" in shown
    status = json.loads((tmp_path / "run" / "status.json").read_text(encoding="utf-8"))
    assert status["regime"]["equilibration"] >= 3
    assert status["regime"]["epsilon"] <= 0.1
    assert status["regime"]["nu_over_minibatch_at_end"] > 1
    assert status["test_error"] < 0.05  # 10 classes; the default optimizer gives 0.018
    assert "experiment" not in read_config(tmp_path / "run")


def test_the_experiment_can_be_changed_and_swept(tmp_path: Path) -> None:
    words = ["experiment=theory_regime", "trainer.budget=25", f"output_root={tmp_path}", "optimizer.nu=1e-5,1e-4"]
    assert main(["train", "--multirun", "sweep.name=s", *words]) == 0
    runs = [read_config(path.parent) for path in (tmp_path / "multirun" / "s").glob("*/status.json")]
    assert sorted(run["optimizer"]["nu"] for run in runs) == [1e-5, 1e-4]
    assert {run["optimizer"]["gamma"] for run in runs} == {2.0}
