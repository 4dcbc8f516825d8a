"""The Python API: results, budgets, checks, and the user's own models and data."""

from __future__ import annotations

import dataclasses
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import burgersgd
from burgersgd import native
from burgersgd.api import train, train_fleet
from burgersgd.build.parts import engine_of
from burgersgd.build.prepared import prepare
from burgersgd.config import (
    AdamWConfig,
    ConfigError,
    GdConfig,
    LangevinConfig,
    LinearScheduleConfig,
    LocalEntropyConfig,
    LossConfig,
    MlpConfig,
    SgdConfig,
    TeacherStudentConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.datasets import DataError, Dataset, Options, from_arrays
from burgersgd.identity import config_hash
from burgersgd.recording.run_folder import read_checkpoint, read_config, read_metrics, read_status
from burgersgd.training.best import Best
from burgersgd.training.fleet import Point
from burgersgd.training.gradients import split
from burgersgd.training.stability import top_eigenvalue
from tests.conftest import small_config


def quiet(config: TrainConfig, **arguments: Any) -> burgersgd.Result:
    return train(config, record=False, progress=False, **arguments)


def test_train_learns_digits_with_the_defaults() -> None:
    result = quiet(TrainConfig(trainer=TrainerConfig(epochs=20)))
    assert result.state == "completed"
    assert result.test_error < 0.08  # a linear classifier reaches 4-5 %, chance is 90 %
    assert result.n_parameters == 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert result.objective == result.validation_error


def test_the_model_of_the_result_reproduces_the_reported_errors() -> None:
    config = small_config()
    result = quiet(config)
    data = prepare([config]).data
    with torch.no_grad():
        outputs = result.model(data.test.inputs)
    assert float((outputs.argmax(1) != data.test.targets).double().mean()) == pytest.approx(result.test_error)
    loss = float(nn.functional.cross_entropy(outputs, data.test.targets))
    assert loss == pytest.approx(result.test_loss, rel=1e-10)


def test_what_is_reported_is_x_and_not_y() -> None:
    optimizer = LocalEntropyConfig(lr=0.3, nu=1e-3, gamma=0.7, inner_steps=8, outer_step=0.5)
    prepared = prepare([small_config(optimizer=optimizer)])
    fleet = prepared.fleet()
    fleet.advance(40)
    evaluator = prepared.evaluator(prepared.data.validation)
    (at_x,), (at_y,) = evaluator(fleet.x)[0], evaluator(fleet.state.y)[0]
    result = quiet(small_config(optimizer=optimizer))
    assert result.validation_loss == pytest.approx(float(at_x), rel=1e-12)
    assert result.metrics["validation_loss"][-1] == pytest.approx(float(at_x), rel=1e-12)
    assert abs(float(at_x) - float(at_y)) > 1e-3


def test_best_by_validation_is_the_minimum_of_the_recorded_curve_and_of_equal_errors_the_lowest_loss() -> None:
    config = small_config(optimizer=SgdConfig(lr=0.5), trainer=TrainerConfig(budget=400, eval_every=4, batch_size=30))
    result = quiet(config)
    columns = (result.metrics[name] for name in ("evaluations", "validation_error", "validation_loss"))
    rows = [(e, loss, n) for n, e, loss in zip(*columns, strict=True) if e is not None]
    assert sum(e == min(rows)[0] for e, _, _ in rows) > 1, "no ties, nothing is tested"
    assert result.best_validation_error == min(rows)[0]
    assert result.best_at == min(rows)[2]
    assert result.best_at != next(n for e, _, n in rows if e == min(rows)[0]), "the earliest one would do as well"


def at_points(*points: tuple[float, float]) -> Best:
    """Return the best of a fleet of two runs whose x are 0, 1, 2, ... at points of such error and loss; run 1 died."""
    fleet: Any = types.SimpleNamespace(x=torch.zeros(2, 3, dtype=torch.float64), n_runs=2)
    best = Best(fleet)
    for k, (error, loss) in enumerate(points):
        fleet.x = torch.full((2, 3), float(k), dtype=torch.float64)
        measured = {name: torch.tensor([value] * 2) for name, value in (("error", error), ("loss", loss))}
        alive = torch.tensor([True, False])
        best.update(
            Point(10 * k, 0.0, 0.0, alive, validation_error=measured["error"], validation_loss=measured["loss"]), fleet
        )
    return best


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.5, 1.0), (0.25, 3.0), (0.5, 0.5)], 1),  # the error decides first
        ([(0.25, 2.0), (0.25, 1.0), (0.25, 1.5)], 1),  # then the loss
        ([(0.25, 1.0), (0.5, 1.0), (0.25, 1.0), (0.75, 0.1)], 2),  # then the later point
        ([(0.25, 1.0), (0.125, math.inf), (math.nan, 0.1), (0.125, math.nan)], 0),  # what is not finite is never best
    ],
)
def test_the_best_point_has_the_lowest_error_then_the_lowest_loss_and_is_then_the_latest(
    points: list[tuple[float, float]], expected: int
) -> None:
    best = at_points(*points)
    assert best.at.tolist() == [10 * expected, 0]
    assert best.x[0].tolist() == [float(expected)] * 3
    assert (float(best.error[0]), float(best.loss[0])) == points[expected]
    assert best.error[1] == math.inf, "a run that is not alive has no best point"


@pytest.mark.parametrize(
    ("trainer", "optimizer", "budget"),
    [
        (TrainerConfig(budget=47), LocalEntropyConfig(inner_steps=5, burn_in=3), 40),
        (TrainerConfig(epochs=2), LocalEntropyConfig(inner_steps=5, burn_in=3), 64),  # 2 x 34 evaluations
        (TrainerConfig(epochs=2), SgdConfig(), 68),
        (TrainerConfig(epochs=2, drop_last=True), SgdConfig(), 66),
        (TrainerConfig(epochs=2, drop_last=True, with_replacement=True), SgdConfig(), 66),
        (TrainerConfig(epochs=7), GdConfig(), 7),
    ],
)
def test_budgets_round_down_to_whole_cycles(trainer: TrainerConfig, optimizer: Any, budget: int) -> None:
    assert prepare([small_config(trainer=trainer, optimizer=optimizer)]).budget == budget


@pytest.mark.parametrize("with_replacement", [False, True])
@pytest.mark.parametrize(("drop_last", "per_epoch"), [(False, 34), (True, 33)])
def test_a_run_of_four_epochs_ends_at_epoch_four(with_replacement: bool, drop_last: bool, per_epoch: int) -> None:
    trainer = TrainerConfig(epochs=4, with_replacement=with_replacement, drop_last=drop_last)
    result = quiet(small_config(trainer=trainer, optimizer=SgdConfig()))
    assert (result.evaluations, result.metrics["epoch"][-1]) == (4 * per_epoch, 4.0)


def test_the_error_of_a_regression_is_the_rmse_of_an_output_and_is_called_so() -> None:
    dataset = TeacherStudentConfig(n_samples=200, outputs=3, teacher_depth=2, standardize_targets=False)
    config = small_config(dataset=dataset)
    result = train(config, progress=False)
    data = prepare([config]).data
    with torch.no_grad():
        difference = result.model(data.test.inputs) - data.test.targets
    by_output = difference.square().mean(0)
    assert result.test_error == pytest.approx(float(by_output.mean().sqrt()), rel=1e-10)
    assert result.test_error == pytest.approx(math.sqrt(result.test_loss / 3), rel=1e-10)
    assert result.folder is not None
    assert read_status(result.folder)["errors_are"] == "RMSE"
    tags = EventAccumulator(str(result.folder)).Reload().Tags()["scalars"]
    assert {"RMSE/validation", "test/RMSE", "test/loss"} <= set(tags)
    assert not any("error" in tag for tag in tags)


@pytest.mark.parametrize("compile", ["native", "off"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_targets_are_standardized_for_training_and_errors_reported_in_their_own_unit(
    outputs: int, compile: str
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5))
    y = (x @ rng.standard_normal((5, outputs))) * [300.0, 0.02, 7.0][:outputs] + [5000.0, -3.0, 0.4][:outputs]
    trainer = TrainerConfig(budget=800, batch_size=30, precision="float64", compile=compile)
    config = TrainConfig(trainer=trainer, model=MlpConfig(depth=1, width=16, activation="tanh"))
    result = quiet(config, dataset=(x, y))
    assert (result.state, result.config.loss.name, result.no_better_than_guessing) == (
        "completed",
        "squared_error",
        False,
    )
    raw = quiet_data(config, x, y, standardize_targets=False)
    data = quiet_data(config, x, y)
    torch.testing.assert_close(data.units.target_mean, raw.train.targets.mean(0))
    torch.testing.assert_close(data.units.target_deviation, raw.train.targets.std(0, correction=0))
    with torch.no_grad():
        outputs_ = result.model(data.test.inputs.double()) * data.units.target_deviation + data.units.target_mean
    by_hand = float((outputs_ - raw.test.targets).square().mean().sqrt())
    assert result.test_error == pytest.approx(by_hand, rel=1e-4)  # the targets are float32
    difference = raw.validation.targets.double() - raw.train.targets.double().mean(0)
    assert result.guess_error == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-4)
    assert result.test_error < 0.5 * result.guess_error


def quiet_data(config: TrainConfig, x: Any, y: Any, **options: Any) -> Dataset:
    return from_arrays(x, y, **(dataclasses.asdict(Options.of(config.dataset)) | options))


@pytest.mark.parametrize(
    ("config", "loss", "lr"),
    [
        (TrainConfig(), "cross_entropy", 0.3),
        (TrainConfig(model=MlpConfig(depth=0)), "cross_entropy", 0.3),
        (TrainConfig(model=MlpConfig(widths=[8, 8, 8])), "cross_entropy", 0.1),
        (TrainConfig(optimizer=SgdConfig(momentum=0.75)), "cross_entropy", 0.075),
        (TrainConfig(optimizer=LocalEntropyConfig(momentum=0.9)), "cross_entropy", 0.03),
        (TrainConfig(optimizer=GdConfig()), "cross_entropy", 0.1),
        (TrainConfig(loss=LossConfig(name="squared_error")), "squared_error", 0.01),
        (TrainConfig(dataset=TeacherStudentConfig(), model=MlpConfig(depth=8)), "squared_error", 0.01),
        (TrainConfig(dataset=TeacherStudentConfig(), optimizer=AdamWConfig()), "squared_error", 0.001),
        (TrainConfig(dataset=TeacherStudentConfig(), optimizer=SgdConfig(lr=0.7)), "squared_error", 0.7),
    ],
)
def test_what_a_configuration_leaves_open_is_decided_by_data_and_model(
    config: TrainConfig, loss: str, lr: float
) -> None:
    prepared = prepare([config])
    assert (prepared.configs[0].loss.name, prepared.configs[0].optimizer.lr) == (loss, lr)
    explicit = dataclasses.replace(
        config,
        loss=LossConfig(name=loss),
        optimizer=dataclasses.replace(config.optimizer, lr=lr),
        dataset=dataclasses.replace(config.dataset, standardize_targets=prepared.data.task == "regression"),
    )
    names = {config_hash(c, prepared.budget) for c in (*prepared.configs, *prepare([explicit]).configs)}
    assert len(names) == 1, "what was found is hashed, not that it was looked for"


@pytest.mark.parametrize(
    ("optimizer", "bound"),
    [
        (SgdConfig(lr="auto"), lambda lr, lip: lr * lip / 2),
        (SgdConfig(lr="auto", momentum=0.9), lambda lr, lip: lr * lip / 3.8),
        (SgdConfig(lr="auto", momentum=0.5, nesterov=True), lambda lr, lip: lr * lip / 1.5),
        (LocalEntropyConfig(lr="auto", gamma=0.05), lambda lr, lip: lr * (lip + 20) / 2),
        (LocalEntropyConfig(lr="auto", gamma=3, gamma_scoping=0.5, gamma_min=0.1), lambda lr, lip: lr * (lip + 10) / 2),
        (LangevinConfig(lr="auto", weight_decay=0.3), lambda lr, lip: lr * (lip + 0.3) / 2),
    ],
)
def test_a_rate_from_the_curvature_is_half_of_the_rules_own_bound(optimizer: Any, bound: Any, tmp_path: Path) -> None:
    config = small_config(optimizer=optimizer, trainer=TrainerConfig(budget=400, batch_size=30))
    prepared = prepare([config, dataclasses.replace(config, seed=5)])
    first, second = (c.optimizer.lr for c in prepared.configs)
    start = prepare([config]).initial(torch.tensor([0]))[0]
    assert bound(first, top_eigenvalue(prepared.problem, start)) == pytest.approx(0.5, rel=0.05)  # two digits
    assert first == second, "the rate is one of the problem, not of the seed"
    result = train(config, progress=False)
    assert result.folder is not None
    assert read_config(result.folder)["optimizer"]["lr"] == first
    assert result.state == "completed"


def test_a_rate_from_the_curvature_is_refused_where_there_is_no_bound() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer.lr=auto: no bound on the learning rate of adamw is known"):
        prepare([TrainConfig(optimizer=AdamWConfig(lr="auto"))])
    flat = small_config(optimizer=SgdConfig(lr="auto"))
    data = np.zeros((100, 3)), np.arange(100) % 2
    with pytest.raises(ConfigError, match=r"^optimizer.lr=auto: the curvature at the start is 0, must be positive"):
        prepare([flat], model=Still, dataset=data)


class Still(nn.Module):
    """A network that is linear in its parameters and in nothing that the loss sees twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, :1] + self.weight) * 0.0


def test_gradient_evaluations_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    from burgersgd.training.engines import eager

    calls = []
    original = eager.eager_gradient

    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(eager, "eager_gradient", counting)
    result = quiet(small_config(trainer=TrainerConfig(budget=47, compile="off")))
    assert len(calls) == result.evaluations == 40


def test_the_train_loss_of_a_row_is_the_mean_of_the_mini_batch_losses_since_the_row_before() -> None:
    def losses(log_every: int) -> list[float]:
        trainer = TrainerConfig(budget=40, batch_size=30, precision="float64", compile="off", log_every=log_every)
        found = quiet(small_config(trainer=dataclasses.replace(trainer, eval_every=40))).metrics["train_loss"][1:]
        return [loss for loss in found if loss is not None]

    single, rows = losses(1), losses(7)
    expected = [sum(single[k : k + 7]) / len(single[k : k + 7]) for k in range(0, 40, 7)]
    assert rows == pytest.approx(expected, rel=1e-12)
    prepared = prepare([small_config()])
    indices = prepared.fleet().batches.indices(0, 1)[0, 0]
    outputs = prepared.problem.model.apply(
        split(prepared.fleet().x[0], prepared.problem.model.shapes), prepared.problem.inputs[indices], False, None
    )
    first = nn.functional.cross_entropy(outputs, prepared.problem.targets[indices])
    assert single[0] == pytest.approx(float(first), rel=1e-12)


def test_a_row_has_the_learning_rate_of_its_last_gradient_evaluation() -> None:
    schedule = LinearScheduleConfig(final=0.2)
    config = small_config(optimizer=SgdConfig(lr=0.3), schedule=schedule)
    metrics = quiet(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, log_every=7))).metrics
    rows = list(zip(metrics["evaluations"], metrics["learning_rate"], strict=True))[1:]
    assert len(rows) > 5
    for n, rate in rows:
        assert n is not None
        assert rate == pytest.approx(0.3 * (1 - 0.8 * (n - 1) / 40), rel=1e-12)


def test_the_best_test_error_is_that_of_the_best_x_and_not_of_the_last() -> None:
    config = small_config(optimizer=SgdConfig(lr=0.5), trainer=TrainerConfig(budget=60, eval_every=4, batch_size=30))
    for seed in range(5):
        result = train(dataclasses.replace(config, seed=seed, run_name=f"{seed}"), progress=False)
        assert result.folder is not None
        prepared = prepare([config])
        best = read_checkpoint(result.folder)["best"]["x"][None]
        assert result.best_test_error == float(prepared.evaluator(prepared.data.test)(best)[1])
        if result.best_test_error != result.test_error:
            return
    raise AssertionError("the best x is the last one: nothing was tested")


def test_evaluations_fall_on_cycle_ends() -> None:
    config = small_config(trainer=TrainerConfig(budget=48, compile="off", eval_every=10, log_every=7))
    metrics = quiet(config).metrics
    rows = list(zip(metrics["evaluations"], metrics["validation_error"], strict=True))
    assert [n for n, error in rows if error is not None] == [0, 16, 24, 32, 40, 48]
    assert [n for n, _ in rows] == [0, 7, 14, 16, 21, 24, 28, 32, 35, 40, 42, 48]


def test_logging_more_often_changes_no_number() -> None:
    results = []
    for log_every, eval_every in ((40, 40), (3, 8)):
        config = small_config()
        config.trainer.log_every, config.trainer.eval_every = log_every, eval_every
        results.append(quiet(config))
    a, b = (torch.cat([p.flatten() for p in r.model.parameters()]) for r in results)
    assert torch.equal(a, b)


def test_a_fleet_gives_each_run_its_own_result_and_folder(tmp_path: Path) -> None:
    configs = [small_config(seed=s) for s in (4, 9)]
    results = train_fleet(configs, progress=False)
    for config, result in zip(configs, results, strict=True):
        alone = quiet(config)
        assert result.test_loss == pytest.approx(alone.test_loss, rel=1e-10)
        assert result.folder is not None
        assert read_status(result.folder)["test_error"] == result.test_error
        assert read_metrics(result.folder)["train_loss"][1:] == result.metrics["train_loss"][1:]
        checkpoint = read_checkpoint(result.folder)
        expected = torch.cat([p.detach().flatten() for p in result.model.parameters()])
        assert torch.equal(checkpoint["x"], expected)
    assert results[0].folder != results[1].folder


def test_a_fleet_refuses_runs_that_cannot_share_it() -> None:
    trainer = dataclasses.replace(small_config().trainer, batch_size=31)
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=31: must be 30 in every run of a fleet"):
        train_fleet([small_config(), small_config(trainer=trainer)])
    optimizer = dataclasses.replace(small_config().optimizer, inner_steps=6)
    with pytest.raises(ConfigError, match=r"optimizer\.inner_steps=6: must be 5"):
        train_fleet([small_config(), small_config(optimizer=optimizer)])


def test_a_module_of_ones_own_and_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(int)
    config = TrainConfig(optimizer=SgdConfig(lr=0.2), trainer=TrainerConfig(budget=600, batch_size=20))
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))
    start = [p.detach().clone() for p in net.parameters()]
    result = quiet(config, model=net, dataset=(x, y))
    assert result.test_error < 0.25
    assert all(
        torch.equal(a, b) for a, b in zip(start, net.parameters(), strict=True)
    )  # the user's module is untouched
    assert isinstance(result.model, nn.Sequential)


def test_a_model_factory_is_seeded_by_the_run() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    configs = [small_config(seed=s, optimizer=SgdConfig()) for s in (1, 2)]
    fleet = prepare(configs, model=make).fleet()
    again = prepare(configs[:1], model=make).fleet()
    assert not torch.equal(fleet.x[0], fleet.x[1])
    assert torch.equal(fleet.x[0], again.x[0])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(63, 10), "fails on inputs"),
        (nn.ReLU(), "no parameters"),
        (nn.BatchNorm2d(1), "returns outputs"),
    ],
)
def test_modules_that_do_not_fit_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quiet(small_config(), model=model)


def test_data_that_are_no_pair_of_arrays_are_refused() -> None:
    x = np.zeros((40, 3))
    with pytest.raises(DataError, match=r"^dataset: must be a Dataset or a pair of arrays \(x, y\), not ndarray$"):
        quiet(small_config(), dataset=x)


def test_a_diverged_run_is_a_result() -> None:
    config = small_config(model=MlpConfig(width=8), optimizer=SgdConfig(lr=1e160))
    result = quiet(config)
    assert result.state == "diverged"
    assert result.objective == math.inf
    assert math.isfinite(result.last_loss)
    assert 0 < result.evaluations < 40
    losses = [loss for loss in result.metrics["train_loss"] if loss is not None]
    assert all(math.isfinite(loss) for loss in losses)


def test_an_interrupted_run_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from burgersgd.training.fleet import Fleet

    def interrupt(self: Fleet, n: int, pause: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fleet, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(small_config(), run_name="stopped"), progress=False)
    assert read_status(tmp_path / "outputs" / "stopped")["state"] == "interrupted"


@pytest.mark.parametrize(
    ("compile", "budget", "n_runs", "device", "engine"),
    [
        ("off", 10**6, 1, "cpu", "eager"),
        ("on", 100, 1, "cpu", "compiled"),
        ("native", 100, 1, "cpu", "native"),
        ("auto", 100, 1, "cpu", "native"),
        ("auto", 10**6, 64, "cpu", "native"),
    ],
)
def test_the_engine_depends_on_the_configuration_alone(
    compile: str, budget: int, n_runs: int, device: str, engine: str
) -> None:
    config = TrainConfig(trainer=TrainerConfig(budget=budget, compile=compile))
    problem = prepare([TrainConfig()]).problem
    assert engine_of(config, problem, torch.device(device), n_runs, 32) == engine


def test_large_networks_are_compiled_only_when_the_budget_repays_it() -> None:
    model = MlpConfig(depth=2, width=2000)
    for budget, engine in ((1000, "native_update"), (10**6, "compiled")):
        config = TrainConfig(model=model, trainer=TrainerConfig(budget=budget, batch_size=128))
        assert prepare([config]).engine == engine


def test_native_with_a_model_that_has_no_c_gradient_updates_in_c() -> None:
    trainer = TrainerConfig(budget=100, compile="native")
    assert prepare([TrainConfig(model=MlpConfig(dropout=0.5), trainer=trainer)]).engine == "native_update"


def test_without_a_c_compiler_everything_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda name: None)
    assert prepare([TrainConfig()]).engine == "eager"
    trainer = TrainerConfig(budget=100, compile="native")
    with pytest.raises(ConfigError, match=r"trainer\.compile=native: needs a C compiler"):
        prepare([TrainConfig(trainer=trainer)])


def test_train_all_trains_mixed_optimizers_and_keeps_the_order(tmp_path: Path) -> None:
    optimizers = [SgdConfig(lr=0.13), LocalEntropyConfig(lr=0.2, inner_steps=5), SgdConfig(lr=0.3)]
    configs = [small_config(seed, optimizer=optimizer) for seed in (3, 1) for optimizer in optimizers]
    results = burgersgd.train_all(configs, progress=False)
    assert [(r.config.optimizer, r.config.seed) for r in results] == [(c.optimizer, c.seed) for c in configs]
    assert len({result.folder for result in results}) == 6
    for config, result in zip(configs[:2], results, strict=False):
        alone = burgersgd.train(config, record=False, progress=False)
        assert alone.test_loss == pytest.approx(result.test_loss, rel=1e-10)


def test_train_all_checks_every_run_before_it_trains_one(tmp_path: Path) -> None:
    wrong = small_config(1, trainer=TrainerConfig(budget=40, batch_size=3000))
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=3000"):
        burgersgd.train_all([small_config(), wrong], progress=False)
    assert not list(tmp_path.iterdir())


def test_a_result_reads_as_five_lines_and_a_small_table(tmp_path: Path) -> None:
    result = quiet(small_config(optimizer=SgdConfig(lr=0.2)))
    lines = repr(result).splitlines()
    assert len(lines) == 5
    assert lines[0] == "Result(completed: sgd, lr 0.2, seed 0, digits"
    assert f"{100 * result.test_error:.2f} %" in lines[1]
    assert result._repr_html_().count("<tr>") == 5
    diverged = quiet(small_config(model=MlpConfig(width=8), optimizer=SgdConfig(lr=1e160)))
    lines = repr(diverged).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("Result(DIVERGED: sgd")
    assert "error" not in repr(diverged).replace("validation error was lowest", "")
    assert "&gt;= 2" in diverged._repr_html_()


def test_the_package_offers_what_it_loads_when_asked() -> None:
    assert set(burgersgd.__all__) <= set(dir(burgersgd))
    for name in burgersgd.__all__:
        assert getattr(burgersgd, name) is not None
