"""The scripts of `make gpu` run without errors in their smallest form, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


def run(script: str, only: str, out: Path) -> None:
    command = [sys.executable, str(SCRIPTS / script), "--device", "cpu", "--tiny", "--only", only, "--out", str(out)]
    done = subprocess.run([*command, "--seconds", "280"], capture_output=True, text=True, cwd=out, timeout=290)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.slow
def test_the_check_passes_on_the_cpu(tmp_path: Path) -> None:
    run("gpu_check.py", "base,graphs,augmented,frozen,memory", tmp_path)
    lines = json.loads((tmp_path / "check.json").read_text())["lines"]
    assert len(lines) >= 15
    assert all(line.startswith("PASS") for line in lines)


@pytest.mark.slow
def test_the_benchmark_measures_on_the_cpu(tmp_path: Path) -> None:
    run("gpu_bench.py", "w1,launches,graphs_w1", tmp_path)
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert {"P1 torch SGD, DataLoader", "burgersgd off, R=4"} <= results["w1"].keys()
    assert all(row["evaluations_per_s"] > 0 and row["alive"] for row in results["w1"].values())
