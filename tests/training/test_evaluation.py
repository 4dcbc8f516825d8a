"""Evaluation in C equals evaluation in PyTorch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from burgersgd.build.prepared import Prepared, prepare
from burgersgd.config import (
    DatasetConfig,
    DigitsConfig,
    LossConfig,
    MlpConfig,
    TeacherStudentConfig,
    TrainConfig,
    TrainerConfig,
    TwoSpiralsConfig,
)
from burgersgd.datasets import load
from burgersgd.training.evaluation import is_guessing
from burgersgd.training.gradients import split

PROBLEMS: list[tuple[str, DatasetConfig]] = [
    ("cross_entropy", DigitsConfig()),
    ("squared_error", DigitsConfig()),
    ("squared_error", TeacherStudentConfig()),
    ("squared_error", TeacherStudentConfig(standardize_targets=False)),
    ("logistic", TwoSpiralsConfig()),
]


def prepared(loss: str, dataset: DatasetConfig, n_runs: int, precision: str, threads: int = 1) -> Prepared:
    trainer = TrainerConfig(budget=40, batch_size=30, precision=precision, compile="native")
    model = MlpConfig(depth=2, width=13, activation="tanh")
    configs = [
        TrainConfig(seed=s, loss=LossConfig(name=loss), dataset=dataset, model=model, trainer=trainer)
        for s in range(n_runs)
    ]
    return prepare(configs, threads=threads)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(("n_runs", "threads"), [(1, 1), (5, 1), (5, 3)])
@pytest.mark.parametrize(("loss", "dataset"), PROBLEMS, ids=lambda value: getattr(value, "name", value))
def test_native_evaluation_is_that_of_torch(
    loss: str, dataset: DatasetConfig, n_runs: int, threads: int, precision: str
) -> None:
    ready = prepared(loss, dataset, n_runs, precision, threads)
    with ready.torch_settings():
        x = ready.fleet().x * torch.linspace(0.5, 1.5, n_runs, dtype=ready.problem.inputs.dtype)[:, None]
        for part in ("train", "validation", "test"):
            evaluator = ready.evaluator(getattr(ready.data, part))
            assert evaluator.native
            assert len(evaluator.labels) % 128, "a short last batch is to be seen"
            got, expected = evaluator(x), dataclasses.replace(evaluator, native=False)(x)
            for a, b in zip(got, expected, strict=True):
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, rtol=3e-6 if precision == "float32" else 1e-13, atol=0)


def test_a_run_is_evaluated_equally_in_any_fleet() -> None:
    ready = prepared("cross_entropy", DigitsConfig(), 4, "float32")
    x, evaluator = ready.fleet().x, ready.evaluator(ready.data.validation)
    for a, b in zip(evaluator(x), evaluator(x[2:3]), strict=True):
        assert torch.equal(a[2:3], b)


def test_guessing_is_the_best_constant_answer() -> None:
    classes = load(DigitsConfig())
    errors = [float((classes.validation.targets != c).double().mean()) for c in range(10)]
    most_frequent = max(range(10), key=lambda c: int((classes.train.targets == c).sum()))
    assert classes.guess_error(classes.validation) == pytest.approx(errors[most_frequent])
    regression = load(TeacherStudentConfig(outputs=3, n_samples=300))
    difference = (regression.validation.targets - regression.train.targets.mean(0)) * regression.units.target_deviation
    assert regression.guess_error(regression.validation) == pytest.approx(float(difference.square().mean().sqrt()))


@pytest.mark.parametrize(
    ("error", "guess", "n", "classification", "expected"),
    [
        (0.85, 0.9, 400, True, False),  # two standard errors are 0.03
        (0.88, 0.9, 400, True, True),
        (0.88, 0.9, 1000, True, False),  # and 0.019
        (0.985, 1.0, 400, False, False),
        (0.995, 1.0, 400, False, True),
        (1.5, 1.0, 400, False, True),
        (math.nan, 0.9, 400, True, True),
    ],
)
def test_guessing_is_what_is_not_clearly_better(
    error: float, guess: float, n: int, classification: bool, expected: bool
) -> None:
    assert is_guessing(error, guess, n, classification) == expected


def test_networks_that_have_blown_up_are_evaluated_alike() -> None:
    ready = prepared("cross_entropy", DigitsConfig(), 3, "float64")
    x = ready.fleet().x.clone()
    x[0, -7] = math.nan  # the bias of class 3: argmax takes the first NaN
    x[1, -2] = math.inf
    x[2, -2] = -math.inf
    evaluator = ready.evaluator(ready.data.test)
    got, expected = evaluator(x), dataclasses.replace(evaluator, native=False)(x)
    assert torch.equal(got[1], expected[1])
    assert got[0].isfinite().tolist() == expected[0].isfinite().tolist() == [False, False, False]


@pytest.mark.parametrize("n_runs", [1, 3])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_the_rmse_of_outputs_of_several_sizes_is_that_of_the_differences_in_their_own_units(
    outputs: int, n_runs: int
) -> None:
    dataset = TeacherStudentConfig(outputs=outputs, n_samples=300)
    ready = prepared("squared_error", dataset, n_runs, "float64")
    sizes = torch.tensor([0.3, 4.0, 11.0], dtype=torch.float64)[:outputs]
    evaluator = dataclasses.replace(ready.evaluator(ready.data.test), scale=sizes)
    assert evaluator.native
    x = ready.fleet().x
    loss, error = evaluator(x)
    model, inputs, labels = ready.problem.model, evaluator.inputs, evaluator.labels
    for run in range(n_runs):
        difference = model.apply(split(x[run], model.shapes), inputs, False, None) - labels
        assert float(loss[run]) == pytest.approx(float(difference.square().sum(1).mean()), rel=1e-12)
        assert float(error[run]) == pytest.approx(float((difference * sizes).square().mean().sqrt()), rel=1e-12)
