"""Runs in processes of their own that the system kills after a given time of computing, with no chance to clean up."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

CHILD = """
import signal, sys
import torch
from burgersgd.cli import compose_job
from burgersgd.config import register_schemas
from burgersgd.prepare import prepare
from burgersgd.run import resume, train
seconds, folder, *arguments = sys.argv[1:]
torch.set_num_threads(1)
register_schemas()
config = compose_job(arguments)
prepare([config])
if float(seconds):
    signal.setitimer(signal.ITIMER_VIRTUAL, float(seconds))  # SIGVTALRM ends a process that does not handle it
resume(folder, progress=False) if folder else train(config, progress=False)
"""


def run_until_done(folder: Path, arguments: list[str], n_kills: int, longest: float, seed: int) -> list[int]:
    """Train into a run folder and kill the process n_kills times, each time after up to `longest` seconds of computing.

    Return the evaluations of the checkpoints from which it went on (0: from the start).
    """
    from burgersgd.recording.run_folder import CHECKPOINT, read_checkpoint

    moments, reached = random.Random(seed), []
    command = [*arguments, f"output_root={folder.parent}", f"run_name={folder.name}"]
    begun = ""
    while True:
        seconds = moments.uniform(0.0, longest) + 1e-3 if len(reached) < n_kills else 0.0
        child = [sys.executable, "-c", CHILD, str(seconds), begun, *command]
        finished = subprocess.run(child, capture_output=True, text=True, check=False)
        if finished.returncode >= 0:
            assert finished.returncode == 0, finished.stderr
            return reached
        reached.append(read_checkpoint(folder)["evaluations"] if (folder / CHECKPOINT).exists() else 0)
        if folder.joinpath("status.json").exists():
            begun = str(folder)
