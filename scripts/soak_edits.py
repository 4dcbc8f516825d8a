"""Run commands on run folders that were edited, torn or exchanged, and count what is neither one line nor correct.

Part of `make soak`. The edits are those of tests/recording/edits.py: every file and every key, dropped, of another
type, out of range, another run's; files cut at every length, flipped, exchanged; metrics.csv as other programs save it.
Every command runs in a process of its own, forked from this one, so that a crash of the interpreter or an endless loop
is one more finding. Prints one Markdown row per file.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the edits are the tests' own

from tests.recording.edits import COMMANDS, Edit, broken, edits, originals, sweep_broken, sweep_edits

SECONDS = 120
"""After which a command hangs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--commands", type=int, default=5_000, help="number of commands, drawn from all edits and commands"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen, started = random.Random(options.seed), time.monotonic()
    tried, findings = Counter(), []
    here = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="edits-") as name:
        root = Path(name).resolve()
        os.chdir(root)
        originals(root)
        runs = {kind: edits(root / kind, root / "other") for kind in ("over", "stopped")}
        sweep = sweep_edits(root / "multirun" / "s", root / "other")
        nothing = Edit("nothing", lambda folder: None)
        for command in COMMANDS:  # in this process: what it imports is there in every fork
            shutil.copytree(root / "stopped", root / "attempt" / "edited")
            os.chdir(root / "attempt")
            reason = broken(command, Path("edited"), nothing, root / "stopped", root / "over")
            assert reason is None, f"{command} on a folder that nobody has edited: {reason}"
            os.chdir(root)
            shutil.rmtree(root / "attempt")
        for _ in range(options.commands):
            kind = chosen.choices([*runs, "sweep"], [5, 5, 1])[0]
            edit = chosen.choice(runs.get(kind, sweep))
            command = "sweep" if kind == "sweep" else chosen.choice(COMMANDS)
            reason = in_a_fork(root, kind, command, edit)
            file = edit.name.split()[0].rstrip(":")
            tried[file] += 1
            if reason is not None:
                findings.append(file)
                print(f"{kind}, {command}, {edit.name}: {reason}", file=sys.stderr, flush=True)
        os.chdir(here)
    print("| edited file | commands | broken |\n|---|---:|---:|")
    for file, n in sorted(tried.items()):
        print(f"| {file} | {n:,} | {findings.count(file)} |")
    n_edits = sum(map(len, runs.values())) + len(sweep)
    print(
        f"\n{options.commands:,} commands of {n_edits:,} edits, {len(findings)} broken; seed {options.seed}; ", end=""
    )
    print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    sys.exit(bool(findings))


def in_a_fork(root: Path, kind: str, command: str, edit: Edit) -> str | None:
    """Edit a copy of a folder, run the command on it in a forked process, and return what went wrong."""
    place = root / "attempt"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    original = root / ("multirun/s" if kind == "sweep" else kind)
    edited = place / ("multirun/s" if kind == "sweep" else "edited")
    shutil.copytree(original, edited)
    edit.apply(edited)
    child = os.fork()
    if child == 0:
        code = 0
        try:
            signal.alarm(SECONDS)
            os.chdir(place)
            if kind == "sweep":
                reason = sweep_broken(edited, edit, root / "whole")
            else:
                reason = broken(command, Path("edited"), edit, original, root / "over")
            (place / "reason").write_text(reason or "")
        except BaseException as error:
            (place / "reason").write_text(f"{type(error).__name__}: {error}")
            code = 1
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        ended = os.WTERMSIG(status)
        return "it hangs" if ended == signal.SIGALRM else f"the interpreter crashed: {signal.Signals(ended).name}"
    return (place / "reason").read_text() or None


if __name__ == "__main__":
    main()
