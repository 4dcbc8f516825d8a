"""Unusual command lines: some that failed in earlier versions, and a few of those that `make soak` generates."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from scripts.soak_commands import CATEGORIES, arguments_of, broken, in_a_fork
from tests import forked

IMPORTED = forked.IMPORTED  # in this process, so that no fork imports Hydra again


def tried(place: Path, *words: str) -> dict[str, Any]:
    """Give a command line in a fork, and return how it ended: as it should."""
    did = in_a_fork(place, arguments_of(list(words)))
    assert broken(did, place) is None, (words, did)
    return did


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["+" + "w" * 260 + "={a:1}", "--multirun", "seed=1,2"], "no such key (keys are not that long)"),
        (["trainer.epochs=int(" + "17" * 200 + ")"], "trainer.epochs: int too large to convert to float"),
        (["optimizer.epsilon=" + "${oc.select:" * 2_000 + "seed" + "}" * 2_000], " ... }}}}"),
        (["hydra.launcher=null", "--multirun", "seed=1,2"], "hydra/launcher: must be the name of a launcher"),
        (["hydra.sweep.dir=${nope}", "--multirun", "seed=1,2"], "hydra.sweep.dir: Interpolation key 'nope' not found"),
        (["hydra.sweep.dir=" + "d" * 300, "--multirun", "seed=1,2"], "hydra.sweep.dir: cannot be a folder"),
        (["hydra.sweep.dir='a/b\x00'", "--multirun", "seed=1,2"], "hydra.sweep.dir: cannot be a folder"),
        (["hydra.sweep.dir=a/" + "d" * 300, "--multirun", "seed=1,2"], "File name too long"),
        (["", "status", "x" * 300], "File name too long"),
        (["", "compare", "x" * 300], "File name too long"),
        (["hydra.searchpath=[nowhere]"], "path=nowhere is not available"),
        (["hydra.launcher._target_=os.getcwd", "--multirun", "seed=1,2"], "must be a plugin of Hydra"),
        (["hydra/sweeper=basic", "--multirun", "seed=1,-2"], "seed=-2: must be >= 0"),
        (["hydra/sweeper=basic", "--multirun", "seed=range(1,100000)"], "more than 50,000 jobs"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(words: list[str], reason: str, tmp_path: Path) -> None:
    did = tried(tmp_path / "place", *words)
    assert did["code"] == 2
    assert reason in did["err"]


@pytest.mark.slow
def test_a_few_of_all_categories(tmp_path: Path) -> None:
    for category, (draw, _) in CATEGORIES.items():
        chosen = random.Random(category)
        for _ in range(2):
            tried(tmp_path / "place", *draw(chosen))


def test_what_is_wrong_with_an_answer_is_found(tmp_path: Path) -> None:
    def answer(code: Any, err: str = "", out: str = "") -> str | None:
        return broken({"code": code, "out": out, "err": err}, tmp_path)

    error = "burgersgd: error: seed=x: must be of type integer\n"
    assert answer(2, error) is None
    assert answer(0, out="seed: 1") is None
    assert "1 lines, 0 of them" in (answer(2, "no\n") or "")
    assert "2 lines" in (answer(2, error + "Set the environment variable\n") or "")
    assert "characters" in (answer(2, "burgersgd: error: " + "x" * 2_000) or "")
    assert "exit code traceback" in (answer("traceback", "KeyError") or "")
    assert "exit code hangs" in (answer("hangs") or "")
    assert "exit code 4" in (answer(4) or "")
    assert "a traceback" in (answer(1, "Traceback (most recent call last)\nKeyError") or "")
    assert "without a run" in (answer(1, error) or "")
    (tmp_path / "outputs").mkdir()
    assert "left ['outputs']" in (answer(2, error) or "")
