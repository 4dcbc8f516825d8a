"""The wheel works from any directory: configs and C sources are inside."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest

from scripts import minimum

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    finished = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=kept | environment,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of an environment that has the wheel itself and, read-only, this one's dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    # No download: the build backend is among the development dependencies.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    venv.create(environment, with_pip=False)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / ("Lib" if os.name == "nt" else f"lib/{version}") / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(binaries / "python", "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
    return binaries


def test_the_source_distribution_has_what_people_read(tmp_path: Path) -> None:
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    for name in ("CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "README.md"):
        assert name in names
    for name in ("burgersgd/native/normals.c", "conf/train.yaml", "docs/architecture.md", "tests/conftest.py"):
        assert name in names


def test_every_dependency_names_its_lowest_version() -> None:
    pins = minimum.lowest(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    assert {"torch==2.11", "hydra-core==1.3.8", "optuna==4"} <= set(pins)
    with pytest.raises(ValueError, match="numpy<3: names no lowest version"):
        minimum.lowest(
            {"dependencies": ["torch>=2", "numpy<3"], "optional-dependencies": {key: [] for key in minimum.EXTRAS}}
        )


def test_the_wheel_trains_from_another_directory(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import burgersgd; print(burgersgd.__file__)", cwd=tmp_path).stdout
    assert Path(where.strip()).is_relative_to(installed.parent)
    shown = run(installed / "burgersgd", "train", "trainer.budget=40", "optimizer.nu=1e-5", cwd=tmp_path).stdout
    assert "test error" in shown
    (folder,) = (path for path in (tmp_path / "outputs").iterdir() if path.is_dir())
    assert (folder / "metrics.csv").is_file()


@pytest.mark.slow
def test_the_wheel_brings_hydras_plugin_along(installed: Path, tmp_path: Path) -> None:
    words = ("--multirun", "trainer.budget=40", "seed=1,2", "sweep.name=s")
    assert "2: 2 completed" in run(installed / "burgersgd", "train", *words, cwd=tmp_path).stdout
    assert len([path for path in (tmp_path / "outputs" / "multirun" / "s").iterdir() if path.is_dir()]) == 2


def test_the_wheel_compiles_its_own_c_sources(installed: Path, tmp_path: Path) -> None:
    code = "from burgersgd import native; print(native.library('normals'), native.library('mlp_gradient'))"
    shown = run(installed / "python", "-c", code, cwd=tmp_path, BURGERSGD_CACHE=str(tmp_path / "cache")).stdout
    assert shown.count("CDLL") == 2
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 2
