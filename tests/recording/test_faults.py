"""Kills, errors and power failures at single operations on files: a few of those that `make soak` tries all of."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.soak_faults import Operation, after_power_failure

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak_faults.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc and LD_PRELOAD")
def test_a_fleet_is_resumed_after_faults_and_power_failures(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--command", "fleet", "--points", "2", "--power", "3"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    rows = re.findall(r"\| a fleet of five \| ([^|]+) \| (\d+) \| (\d+) \| 0 \|", finished.stdout)
    assert [int(tried) for _, _, tried in rows] == [2, 2, 2, 2, 3, 3, 3]
    assert int(rows[0][1]) > 200  # operations on files


def disk(place: Path, operations: list[Operation], kind: str, seed: int = 0) -> dict[str, bytes]:
    names = after_power_failure(operations, kind, random.Random(seed), place)
    return {name: (place / name).read_bytes() for name in names}


def test_what_was_not_flushed_is_lost_in_a_power_failure(tmp_path: Path) -> None:
    """The model of the disk, against what the calls promise (POSIX, and syncfs(2))."""
    place = tmp_path / "disk"
    a, b = f"{place}/a", f"{place}/b"
    written: list[Operation] = [("create", a, "", 0, b""), ("write", a, "", 0, b"12"), ("write", a, "", 2, b"34")]
    everything: Operation = ("syncfs", str(place), "", 0, b"")
    rename: Operation = ("rename", b, a, 0, b"")
    nothing, names, some = "nothing unflushed", "names without data", "some names, some data"
    assert disk(place, written, nothing) == {}
    assert disk(place, written, names) == {"a": b""}
    assert disk(place, [*written, ("fsync", a, "", 0, b"")], nothing) == {}  # the file, but not its name
    assert disk(place, [*written, ("fsync", a, "", 0, b"")], names) == {"a": b"1234"}
    flushed = [*written, ("fsync", a, "", 0, b""), ("fsync", str(place), "", 0, b"")]
    assert disk(place, flushed, nothing) == disk(place, [*written, everything], nothing) == {"a": b"1234"}
    assert disk(place, [*written, everything, rename], nothing) == {"a": b"1234"}
    assert disk(place, [*written, everything, rename], names) == {"b": b"1234"}
    cut = [*written, everything, ("truncate", a, "", 1, b""), ("write", a, "", 1, b"x")]
    assert disk(place, cut, nothing) == {"a": b"1234"}
    assert disk(place, [*cut, everything], nothing) == {"a": b"1x"}
    found = {tuple(disk(place, [*written, rename], some, seed).items()) for seed in range(60)}
    assert {(), (("a", b"1234"),), (("b", b"12"),), (("b", b"1"),)} <= found
