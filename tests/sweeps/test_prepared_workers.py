"""Workers that the command forks from a process which has imported PyTorch before: own_process.prepare_workers."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from burgersgd import own_process
from burgersgd.cli import main

WORDS = ["dataset=digits", "dataset.train_size=60", "model.width=6", "optimizer.lr=0.2", "sweep.name=s"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.parametrize(
    ("words", "cores", "expected"),
    [
        (["train", "-m", "seed=1,2"], 2, True),
        (["train", "seed=range(3)", "--multirun"], 4, True),
        (["study", "small"], 2, True),
        (["bench", "sam"], 2, True),
        (["train", "-m", "seed=1,2"], 1, False),
        (["train", "seed=1"], 2, False),
        (["compare", "small"], 2, False),
        (["train", "-m", "seed=1,2", "--dry-run"], 2, False),
        (["train", "-m", "--help"], 2, False),
        (["train", "-m", "seed=1,2", "device=cuda"], 2, False),
        (["train", "-m", "seed=1,2", "sweep.workers=1"], 2, False),
        (["train", "-m", "seed=1,2", "hydra/launcher=joblib"], 2, False),
        ([], 2, False),
    ],
)
def test_only_sweeps_that_may_have_workers_prepare_them(
    words: list[str], cores: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []
    monkeypatch.setattr(forkserver, "ensure_running", lambda: started.append(True))
    server: Any = forkserver._forkserver
    monkeypatch.setattr(server, "_preload_modules", server._preload_modules)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(own_process, "_prepared", False)
    own_process.prepare_workers(words)
    assert bool(started) == expected
    assert own_process.start_method() == ("forkserver" if expected else "spawn")


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start the command in a session of its own; its output goes to a file."""
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "burgersgd", "train", "-q", "--multirun", *WORDS, *words],
            cwd=folder,
            start_new_session=True,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
        )


def of_session(leader: int) -> dict[int, str]:
    """Return the command lines of the processes of a session, but for those that have ended."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found[int(stat.parent.name)] = stat.with_name("cmdline").read_bytes().decode().replace("\0", " ")
        except (OSError, ValueError):  # it has just ended
            continue
    return found


def gone(leader: int, seconds: float = 120.0) -> bool:
    """Whether nothing of a session is left, at the latest after so many seconds."""
    until = time.monotonic() + seconds
    while of_session(leader):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.slow
@needs_proc
def test_forked_workers_train_the_same_bits_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    results = {}
    for name in ("forked", "here"):
        (tmp_path / name).mkdir()
        words = ["seed=range(4)", "trainer.budget=60", "sweep.max_runs=2", f"output_root={tmp_path / name}"]
        if name == "here":
            assert main(["train", "-q", "--multirun", *WORDS, *words, "sweep.workers=1"]) == 0
        else:
            process = command(tmp_path / name, *words, "sweep.workers=2")
            assert process.wait(300) == 0, (tmp_path / name / "said").read_text()
            assert gone(process.pid)
        with (tmp_path / name / "multirun" / "s" / "results.csv").open() as stream:
            results[name] = [
                (row["folder"], row["test_loss"], row["validation_loss"]) for row in csv.DictReader(stream)
            ]
    assert len(results["here"]) == 4
    assert results["forked"] == results["here"]


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGKILL, os.kill), (signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)]
)
def test_a_killed_command_leaves_no_process_and_its_sweep_can_be_resumed(
    tmp_path: Path, number: int, end: Callable[[int, int], None]
) -> None:
    words = ["seed=range(4)", "trainer.budget=20000", "sweep.max_runs=1", "sweep.workers=2"]
    process = command(tmp_path, *words, f"output_root={tmp_path}")
    try:
        until = time.monotonic() + 120
        while not [*tmp_path.glob("multirun/s/*/checkpoint.pt"), *tmp_path.glob("multirun/s/*/metrics.csv")]:
            assert time.monotonic() < until
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        assert sum("forkserver" in line for line in of_session(process.pid).values()) >= 2  # the server and workers
        end(process.pid, number)
        assert process.wait(120) == (-number if number == signal.SIGKILL else 75)
        assert gone(process.pid)
    finally:
        for pid in of_session(process.pid):
            os.kill(pid, signal.SIGKILL)
    again = command(tmp_path, *words, f"output_root={tmp_path}")
    assert again.wait(300) == 0, (tmp_path / "said").read_text()
    assert len([*tmp_path.glob("multirun/s/*/status.json")]) == 4
