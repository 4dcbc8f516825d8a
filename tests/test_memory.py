"""The memory of a run of a large network: what building it and its steps need, and no copies beside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident memory from /proc")
@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("rule", ["sgd", "adamw", "local_entropy"])
def test_a_run_takes_little_more_than_its_state_gradient_and_noise(rule: str, compile: str) -> None:
    """The MNIST-shaped network, 7.1 MiB of parameters. The checks of a rule once held ten copies of its state."""

    def measured(kind: str) -> dict[str, int]:
        command = [sys.executable, "scripts/benchmark.py", "--child", "memory", rule, compile, kind]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    steps = measured("steps")
    assert steps["peak"] < 1.5 * steps["expected"]
    if compile == "auto":  # at the end: evaluation, the best x, the result, noise of mini-batches and curvature
        assert measured("run")["peak"] < steps["expected"] + 30 * steps["d_bytes"]
