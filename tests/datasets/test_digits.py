"""The digits of scikit-learn, the default data set."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from burgersgd.config import DigitsConfig
from burgersgd.datasets import DataError, digits, load


def test_digits_are_those_of_scikit_learn() -> None:
    raw = digits.load_digits()
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    assert np.array_equal(raw.train.inputs.flatten(1).numpy() * 16, images)
    assert np.array_equal(raw.train.targets.numpy(), labels)


def test_digits_load_ready_for_training() -> None:
    data = load(DigitsConfig())
    assert (data.task, data.n_outputs, data.input_shape) == ("classification", 10, (1, 8, 8))
    assert (data.n_train, data.validation.n, data.test.n) == (1797 - 359 - 359, 359, 359)
    assert data.train.inputs.mean().item() == pytest.approx(0, abs=1e-5)


def test_loading_digits_imports_neither_scikit_learn_nor_scipy_nor_torchvision() -> None:
    code = (
        "import sys; from burgersgd.config import DigitsConfig; from burgersgd.datasets import load;"
        "load(DigitsConfig());"
        "print([m for m in ('sklearn', 'scipy', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("damage", ["one digit", "truncated", "not gzip", "missing"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.decompress(digits.digits_file().read_bytes())
    path = tmp_path / "digits.csv.gz"
    if damage == "one digit":
        path.write_bytes(gzip.compress(content.replace(b"5", b"6", 1)))
    elif damage == "truncated":
        path.write_bytes(gzip.compress(content)[:1000])
    elif damage == "not gzip":
        path.write_bytes(content)
    monkeypatch.setattr(digits, "digits_file", lambda: path)
    with pytest.raises(
        DataError, match=rf"^dataset=digits: {path} .*; run: pip install --force-reinstall scikit-learn$"
    ):
        digits.load_digits()


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"run: pip install scikit-learn$"):
        digits.load_digits()
