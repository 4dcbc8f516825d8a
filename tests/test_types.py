"""The types that a program of a user's sees (py.typed), by mypy --strict."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = """\
from pathlib import Path

import burgersgd
from burgersgd.config import LocalEntropyConfig, SgdConfig

config = burgersgd.TrainConfig(optimizer=SgdConfig(lr=0.1), trainer=burgersgd.TrainerConfig(budget=40), seed=1)
result = burgersgd.train(config, record=False)
runs = burgersgd.load(Path("outputs"))
reveal_type(burgersgd.train)
reveal_type(burgersgd.train_all)
reveal_type(burgersgd.resume)
reveal_type(burgersgd.load)
reveal_type(burgersgd.load_predictor)
reveal_type(runs.compare)
reveal_type(result)
reveal_type(result.test_error)
reveal_type(result.state)
reveal_type(result.metrics)
reveal_type(result.folder)
reveal_type(result.model)
reveal_type(result.predictor)
reveal_type(runs[0].settings)
reveal_type(config.optimizer)
reveal_type(config.optimizer.lr)
reveal_type(config.trainer.budget)
assert isinstance(config.optimizer, LocalEntropyConfig)
reveal_type(config.optimizer.gamma)
"""
WRONG = {
    "burgersgd.trian(config)": "attr-defined",
    'burgersgd.train(config, record="no")': "arg-type",
    "burgersgd.TrainConfig(sede=1)": "call-arg",
    "result.test_eror": "attr-defined",
    'burgersgd.TrainConfig(optimizer="sgd")': "arg-type",
    "LocalEntropyConfig(gama=1.0)": "call-arg",
    'SgdConfig(lr="fast")': "arg-type",
}
"""Mistakes that a checker has to find, and what mypy calls them."""


@pytest.mark.slow  # some 20 s, most of them PyTorch's types
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_strict_checker_sees_the_types_of_the_package(tmp_path: Path) -> None:
    lines = [*CLIENT.splitlines(), *WRONG]
    (tmp_path / "client.py").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir=cache", "client.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert checked.stderr == ""
    revealed = dict(re.findall(r'^client\.py:(\d+): note: Revealed type is "(.*)"$', checked.stdout, re.MULTILINE))
    asked = [i for i, line in enumerate(lines, 1) if line.startswith("reveal_type")]
    assert [int(number) for number in revealed] == asked
    assert "Any" not in {re.sub(r"\[.*\]", "", kind) for kind in revealed.values()}
    kinds = {lines[int(number) - 1]: kind for number, kind in revealed.items()}
    assert kinds["reveal_type(burgersgd.train)"].endswith("-> burgersgd.result.Result")
    assert kinds["reveal_type(result.test_error)"] == "float"
    assert kinds["reveal_type(result.metrics)"] == "dict[str, list[float | None]]"
    assert kinds["reveal_type(result.folder)"] == "pathlib.Path | None"
    assert kinds["reveal_type(config.optimizer)"] == "burgersgd.schema.OptimizerConfig"
    assert "float" in kinds["reveal_type(config.optimizer.lr)"]
    assert kinds["reveal_type(config.trainer.budget)"] == "int | None"
    assert kinds["reveal_type(config.optimizer.gamma)"] == "float"
    errors = re.findall(r"^client\.py:(\d+): error: .* \[([a-z-]+)\]$", checked.stdout, re.MULTILINE)
    assert {lines[int(number) - 1]: kind for number, kind in errors} == WRONG
