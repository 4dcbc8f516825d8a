"""Folders that were changed by other programs: an error of one line, or the result of the original. See edits.py."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.recording.edits import COMMANDS, broken, edits, originals

SAMPLE = 50
"""Of some 11,000 edits of each folder: `make soak` tries thousands."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        originals(root, sweeps=False)
    return root


@pytest.mark.parametrize("kind", ["over", "stopped"])
def test_a_changed_folder_is_one_line_or_correct(kind: str, made: Path, tmp_path: Path) -> None:
    wrong, chosen = [], random.Random(f"edits {kind}")
    found = edits(made / kind, made / "other")
    assert len(found) > 8_000
    for edit in chosen.sample(found, SAMPLE):
        folder = tmp_path / "edited"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made / kind, folder)
        edit.apply(folder)
        command = chosen.choice(COMMANDS)
        if (reason := broken(command, folder, edit, made / kind, made / "over")) is not None:
            wrong.append(f"{command} after {edit.name}: {reason}")
    assert wrong == []
