"""Optimizers, models and data sets that are defined in modules and packages of the user's own."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from burgersgd.config import GROUPS, ConfigError
from burgersgd.recording.run_folder import read_config, read_metrics, read_status
from burgersgd.registry import with_own_classes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
(SIGNUM,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
(COMMANDS,) = re.findall(r"```sh\n(burgersgd.*?)```", PAGE, re.S)
(ENTRY_POINT,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)

RUN = """
import sys
from burgersgd.cli import main
codes = [main(line.split()) for line in sys.argv[1:]]
sys.exit(max(codes))
"""


def commands(*lines: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a process of its own, which has imported nothing of ours before."""
    quick = [
        "model.width=6",
        "model.depth=1",
        "dataset.train_size=100",
        "trainer.precision=float64",
        "device.threads=1",
    ]
    argv = [" ".join([*shlex.split(line)[1:], *(quick if "resume" not in line else [])]) for line in lines]
    return subprocess.run([sys.executable, "-c", RUN, *argv], capture_output=True, text=True, check=False, timeout=250)


@pytest.mark.slow
def test_the_page_on_a_new_optimizer_does_what_it_says(tmp_path: Path) -> None:
    assert len(SIGNUM.splitlines()) <= 45
    (tmp_path / "signum.py").write_text(SIGNUM)
    done = commands(*COMMANDS.strip().splitlines())
    assert done.returncode == 0, done.stderr
    first, sweep = tmp_path / "outputs" / "first", tmp_path / "outputs" / "multirun" / "signs"
    record = read_config(first)["optimizer"]
    assert record == {"name": "signum", "lr": 0.001, "beta": 0.8, "class": "signum:SignumConfig"}
    assert read_status(tmp_path / "outputs" / "further")["evaluations"] == 80
    jobs = [path.parent for path in sweep.glob("*/status.json")]
    ended = sorted((read_config(job)["optimizer"]["name"], read_status(job)["fleet_size"]) for job in jobs)
    assert ended == [("sgd", 2), ("sgd", 2), ("signum", 2), ("signum", 2)]
    # A sign step of 1e-3 in every coordinate moves far less than SGD at its default lr: it is another rule that ran.
    steps = {read_config(job)["optimizer"]["name"]: read_metrics(job)["train_loss"][-1] for job in jobs}
    assert steps["signum"] > 1.2 * steps["sgd"]

    refused = commands("burgersgd train resume=outputs/first trainer.budget=100")
    assert refused.returncode == 2
    assert "optimizer=signum: must be one of local_entropy, " in refused.stderr
    assert refused.stderr.strip().endswith(
        "the run used optimizer=signum:SignumConfig, which must be given again on the command line"
    )


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("", "missing:Config", r"^optimizer=missing:Config: missing:Config cannot be imported \(ModuleNotFoundError: "),
        ("", "empty_one:Config", r"optimizer=empty_one:Config: empty_one:Config cannot be imported \(AttributeError: "),
        ("1 / 0", "broken_one:Config", r"cannot be imported \(ZeroDivisionError: division by zero\)$"),
        ("Config = int", "foreign_one:Config", "must be a class derived from burgersgd.config.OptimizerConfig$"),
        (
            "from burgersgd.config import OptimizerConfig\nclass Config(OptimizerConfig): ...",
            "nameless_one:Config",
            r"must be a @dataclass with its own name, `name: str = named\(\.\.\.\)`$",
        ),
        (
            "from dataclasses import dataclass\nfrom burgersgd.config import OptimizerConfig, named\n"
            "@dataclass\nclass Config(OptimizerConfig):\n    name: str = named('sgd')",
            "taken_one:Config",
            "the class has the name sgd, which burgersgd uses itself; choose another one$",
        ),
    ],
)
def test_a_class_that_cannot_be_used_is_one_line(
    source: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source or name.startswith("empty"):
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(source)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ConfigError, match=message) as caught:
        with_own_classes(GROUPS, ["seed=3", f"optimizer={name}"])
    assert "\n" not in str(caught.value)


def test_groups_without_classes_of_ones_own_and_paths_are_left_alone() -> None:
    words = ["dataset.path=a:b", "+x=c:d", "seed=1", "output_root=my:folder"]
    assert with_own_classes(GROUPS, words) == (words, [])
    with pytest.raises(ConfigError, match=r"^loss=a\.b:C: must be one of auto, cross_entropy, "):
        with_own_classes(GROUPS, ["loss=a.b:C"])


MODEL_AND_DATA = '''
from dataclasses import dataclass

import torch
from torch import nn

from burgersgd.config import ModelConfig, SplitDatasetConfig, named, opt
from burgersgd.datasets import Part
from burgersgd.datasets.preprocess import Raw


@dataclass
class Bottleneck(ModelConfig):
    """Two linear layers with few units between."""

    name: str = named("bottleneck")
    units: int = opt(3, "between the layers", at_least=1)

    def network(self, input_shape, n_outputs):
        (n,) = input_shape
        return nn.Sequential(nn.Linear(n, self.units), nn.Tanh(), nn.Linear(self.units, n_outputs))


@dataclass
class Halves(SplitDatasetConfig):
    """Two classes, told apart by the sign of the first input."""

    name: str = named("halves")
    n_samples: int = opt(200, "examples", at_least=20)

    def read(self):
        x = torch.randn(self.n_samples, 5, generator=torch.Generator().manual_seed(self.seed))
        return Raw("classification", 2, Part(x, (x[:, 0] > 0).long()))
'''


@pytest.mark.slow
def test_an_installed_package_sweeps_over_its_optimizer_with_two_workers(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "wideness").mkdir(parents=True)
    (package / "wideness" / "__init__.py").write_text("")
    (package / "wideness" / "signum.py").write_text(SIGNUM)
    (package / "wideness" / "data.py").write_text(MODEL_AND_DATA)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "wideness"\nversion = "1.0"\n'
        + ENTRY_POINT.replace('"signum:', '"wideness.signum:')
        + '[project.entry-points."burgersgd.models"]\nbottleneck = "wideness.data:Bottleneck"\n'
        + '[project.entry-points."burgersgd.datasets"]\nhalves = "wideness.data:Halves"\n'
    )
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "burgersgd_and_more.pth").write_text("\n".join([str(ROOT), *here]) + "\n")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    installed = run("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", str(package))
    assert installed.returncode == 0, installed.stderr
    quick = ("model=bottleneck", "dataset=halves", "trainer.budget=100", "trainer.log_every=50", "device.threads=1")
    sweep = ("sweep.name=s", "sweep.workers=2", "sweep.max_runs=1", "optimizer=signum,sgd", "seed=1,2")
    done = run("burgersgd", "train", "--multirun", *quick, *sweep)
    assert done.returncode == 0, done.stderr
    jobs = [path.parent for path in (tmp_path / "outputs" / "multirun" / "s").glob("*/status.json")]
    assert sorted(read_config(job)["optimizer"]["name"] for job in jobs) == ["sgd", "sgd", "signum", "signum"]
    assert {read_status(job)["state"] for job in jobs} == {"completed"}
    assert {read_config(job)["model"]["class"] for job in jobs} == {"wideness.data:Bottleneck"}
    (job, *_) = (job for job in jobs if read_config(job)["optimizer"]["name"] == "signum")
    assert run("burgersgd", "evaluate", str(job)).returncode == 0  # found by its entry point
    resumed = run("burgersgd", "train", f"resume={job}", "trainer.budget=150", "output_root=o", "run_name=r")
    assert resumed.returncode == 0, resumed.stderr
    assert read_status(tmp_path / "o" / "r")["evaluations"] == 150
    wrong = run("burgersgd", "train", "optimizer=signun")
    assert wrong.returncode == 2
    assert "optimizer=signun: must be one of" in wrong.stderr
    assert "signum" in wrong.stderr
