"""Kills runs at a chosen file operation without any clean-up, so that tests do not depend on time or load."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

OPERATIONS = ("open", "os.rename", "os.truncate", "os.remove", "os.mkdir", "os.rmdir")

DRIVER = """
import os, signal, sys
from pathlib import Path
import torch
from burgersgd.sweeps.compose import compose_job
from burgersgd.hydra_schemas import register_schemas
from burgersgd.build.prepared import prepare
from burgersgd.recording.run_folder import CHECKPOINT, STATUS, read_checkpoint
from burgersgd.api import resume, train
from tests.killing import OPERATIONS
folder, moments, *arguments = Path(sys.argv[1]), sys.argv[2].split(","), *sys.argv[3:]
torch.set_num_threads(1)
register_schemas()
config = compose_job(arguments)
prepare([config])
for moment in [*map(int, moments), 0]:  # each time the process that imported everything is forked, the last one lives
    child = os.fork()
    if child == 0:
        left = moment
        def look(event, arguments):
            global left
            if event in OPERATIONS and str(arguments[0]).startswith(str(folder)):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(look)
        resume(folder, progress=False) if (folder / STATUS).exists() else train(config, progress=False)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if moment else 0), status
    print(read_checkpoint(folder)["evaluations"] if (folder / CHECKPOINT).exists() else 0, flush=True)
"""


def run_until_done(folder: Path, arguments: list[str], n_kills: int, longest: int, seed: int) -> list[int]:
    """Train into a run folder, dying n_kills times, each time before one of the next `longest` file operations in it.

    Return the evaluations of the checkpoints that each of the processes left (0: none), the last one that of the end.
    """
    moments = random.Random(seed)
    drawn = ",".join(str(moments.randint(1, longest)) for _ in range(n_kills))
    words = [*arguments, f"output_root={folder.parent}", f"run_name={folder.name}"]
    command = [sys.executable, "-c", DRIVER, str(folder), drawn, *words]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]
