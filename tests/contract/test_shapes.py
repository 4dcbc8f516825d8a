"""The contract suite once more with every shape checked: annotations of jaxtyping are asserted at run time.

In a process of its own, since the checks go in when a module is imported.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKED = "datasets", "streams", "optimizers", "training", "models"


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    packages = ",".join([*(f"burgersgd.{name}" for name in CHECKED), "beartype.beartype"])
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += [f"--jaxtyping-packages={packages}", *options, code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_shapes_are_what_the_annotations_say() -> None:
    chosen = "(computes_what_the_rule_says or stopped_anywhere or diverged_run) and (3-7 or 1-7) and not float32"
    done = run("tests/contract/test_contract.py", "-k", chosen, "-m", "not slow and not gpu")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_a_wrong_shape_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "test_wrong.py"
    file.write_text(
        "import torch\nfrom burgersgd.training.engines.eager import meant_norm\n\n\n"
        "def test_it():\n    meant_norm(None, None, None, torch.zeros(2, 5), torch.zeros(3))\n"
    )
    done = run(str(file))
    assert done.returncode == 1
    assert "meant_norm" in done.stdout
    assert "TypeCheckError" in done.stdout
