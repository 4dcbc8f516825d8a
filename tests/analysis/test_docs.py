"""Everything that docs/compare.md tells a reader to type works as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import burgersgd
from burgersgd.cli import main
from burgersgd.config import LocalEntropyConfig, SgdConfig, TrainConfig

DOCS = (Path(__file__).parents[2] / "docs/compare.md").read_text(encoding="utf-8")


def smaller(command: str) -> str:
    """Return the command with fewer trials and seeds, which the test has no time for."""
    return command.replace("n_samples=8", "n_samples=3").replace("seed=range(6)", "seed=range(2)")


@pytest.mark.slow
def test_every_command_of_the_guide_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        line
        for block in re.findall(r"^```\n(burgersgd.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(commands) > 10
    for command in commands:
        name, *words = shlex.split(smaller(command))
        assert name == "burgersgd"
        assert main(words) == 0, f"{command}: {capsys.readouterr().err}"
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("(BCa)", "best of n", "microseconds", "minus sgd"):
        assert part in shown
    for path in ("report.html", "table.csv", "table.md", "table.tex", "table.json", "figures/values.pdf"):
        assert (tmp_path / path).stat().st_size > 100


def test_the_python_of_the_guide_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    exec(compile(code, "docs/compare.md", "exec"), {})
    assert "minus sgd" in capsys.readouterr().out
    assert (tmp_path / "two.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_three_lines_of_the_readme_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(runs = burgersgd.train_all.*?)```", readme, re.DOTALL)
    configs = (LocalEntropyConfig, SgdConfig, TrainConfig)
    names = {"burgersgd": burgersgd, **{cls.__name__: cls for cls in configs}}
    exec(compile(code, "README.md", "exec"), names)
    assert "minus sgd" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_guide_names_every_flag() -> None:
    from burgersgd.analysis.command import parser

    flags = {word for action in parser()._actions for word in action.option_strings if word.startswith("--")}
    assert {flag for flag in flags - {"--help"} if f"{flag}" not in DOCS} == set()
