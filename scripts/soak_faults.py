"""Kill, tear and fail every operation on files of a few commands, cut the power after each, and go on.

Part of `make soak`. A small C library (soak_faults.c, compiled here, preloaded) counts every call that changes a file:
creating, writing, renaming, removing, truncating, flushing. A command is run once for each of them, in a process forked
from this one, which dies before the call (killed), after half of it (torn), or sees it fail: the disk full from then on
(ENOSPC), or one error of the device (EIO). Then the command is given again until it is done, and what it leaves must be
what an undisturbed one leaves: the same files, bits, log and fleet.

For power failures the calls of an undisturbed command are written down, and the disk as it may be found after each of
them is made from that: with nothing that was not flushed; with all names and none of the data; with some names and some
of the data, torn. Prints Markdown rows.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))  # the comparison is the tests' own

COUNT, KILL, TEAR, FAIL_ONCE, FAIL_FROM_THEN_ON = range(5)
MODES = {
    "killed": (KILL, 0),
    "torn": (TEAR, 0),
    "disk full": (FAIL_FROM_THEN_ON, errno.ENOSPC),
    "error of the device": (FAIL_ONCE, errno.EIO),
}
POWER = ("nothing unflushed", "names without data", "some names, some data")
SECONDS = 120
"""After which a command hangs."""


def config(name: str, seed: int = 0) -> Any:
    """Return a run that saves four times before its end."""
    from burgersgd import recorder
    from burgersgd.config import DigitsConfig, MlpConfig, SgdConfig, TrainConfig, TrainerConfig

    recorder.ROWS_SECONDS = 0.0  # rows are written at once: the operations have the same numbers on a slow machine
    trainer = TrainerConfig(budget=15, batch_size=16, eval_every=3, log_every=2, checkpoint_every=3, compile="native")
    return TrainConfig(
        dataset=DigitsConfig(train_size=60),
        model=MlpConfig(depth=1, width=5),
        optimizer=SgdConfig(lr=0.1, momentum=0.3),
        trainer=trainer,
        output_root=".",
        run_name=name,
        seed=seed,
    )


def a_run() -> list[Any]:
    """Train a run, or go on with it where its folder is there already."""
    from burgersgd.api import resume, train
    from burgersgd.recording.run_folder import FolderTakenError

    try:
        return [train(config("run"), progress=False)]
    except FolderTakenError:
        return [resume("run", progress=False)]


def a_fleet() -> list[Any]:
    """Train five runs together, as a sweep does: each from wherever its folder stands."""
    from burgersgd.api import train_jobs

    return list(train_jobs([config(f"job{seed}", seed) for seed in range(5)], [()] * 5, progress=False))


def a_command() -> list[Any]:
    """Train two runs by the command line, Hydra included."""
    from tests.recording.edits import quietly

    words = ["trainer.budget=6", "trainer.batch_size=16", "trainer.eval_every=3", "trainer.checkpoint_every=3"]
    words += ["dataset.train_size=60", "model.depth=1", "model.width=5", "trainer.compile=native", "optimizer=sgd"]
    words += ["output_root=.", "sweep.name=s", "sweep.workers=1", "seed=1,2"]
    code, out, err = quietly(["train", "--multirun", *words])
    if code == "traceback" or "Traceback" in err + out:
        raise RuntimeError(err.splitlines()[-1])
    if code != 0:
        raise ValueError(err.strip() or f"exit code {code}: {out.strip()[-300:]}")
    return []


COMMANDS: dict[str, tuple[Callable[[], list[Any]], float]] = {
    "a run": (a_run, 1.0),
    "a fleet of five": (a_fleet, 1.0),
    "a sweep by the command line": (a_command, 0.1),
}
"""What is run, and which share of the faults is tried on it (Hydra takes 2 s)."""


def preloaded(folder: Path) -> ctypes.CDLL:
    """Return the library; this program starts again with it where it is not preloaded yet."""
    library = Path(os.environ.get("SOAK_FAULTS", folder / "faults.so"))
    if "SOAK_FAULTS" not in os.environ:
        source = HERE.with_suffix(".c")
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        os.environ |= {"SOAK_FAULTS": str(library), "LD_PRELOAD": str(library)}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    return ctypes.CDLL(str(library))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--points", type=int, help="number of random operations per command and kind of fault; default: all operations"
    )
    parser.add_argument("--power", type=int, default=100, help="number of power failures per command and kind of loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", default="", help="only commands whose names contain this text")
    parser.add_argument("--only", default="", help="only kinds of fault whose names contain this text")
    options = parser.parse_args()
    faults = preloaded(Path(tempfile.mkdtemp(prefix="faults-")))
    import torch

    torch.set_num_threads(1)
    chosen, started, findings, total = random.Random(options.seed), time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="soak-faults-") as name:
        root = Path(name).resolve()
        print("| command | fault | operations on files | tried | broken |\n|---|---|---:|---:|---:|")
        for command, (work, share) in COMMANDS.items():
            if options.command not in command:
                continue
            whole = root / f"whole {command}"
            cleared(root / "work")
            run_here(root / "work", work)
            (root / "work").rename(whole)  # made in the place of the others: its path is in the records
            journal = root / "journal"
            operations = recorded(faults, root / "work", work, journal)
            for kind, (mode, error) in MODES.items():
                if options.only not in kind:
                    continue
                points = range(1, len(operations) + 1)
                n = round(share * len(points)) if options.points is None else min(options.points, len(points))
                tried = sorted(chosen.sample(points, n))
                bad = 0
                for n in tried:
                    reason = disturbed(faults, root / "work", work, whole, mode, n, error)
                    if reason is not None:
                        bad += 1
                        what = " ".join(map(str, operations[n - 1][:2])).replace(str(root / "work"), "")
                        print(f"{command}, {kind}, operation {n} ({what}): {reason}", file=sys.stderr, flush=True)
                print(f"| {command} | {kind} | {len(operations)} | {len(tried)} | {bad} |", flush=True)
                findings, total = findings + bad, total + len(tried)
            for kind in POWER:
                if options.only not in f"power failure: {kind}":
                    continue
                bad = 0
                moments = sorted(chosen.choices(range(len(operations) + 1), k=round(share * options.power)))
                for moment in moments:
                    seed = chosen.randrange(2**32)
                    disk = after_power_failure(operations[:moment], kind, random.Random(seed), root / "work")
                    reason = finished(root / "work", work, whole)
                    if reason is not None:
                        bad += 1
                        where = f"after operation {moment}, seed {seed}, {sorted(disk)}"
                        print(f"{command}, {kind}, {where}: {reason}", file=sys.stderr, flush=True)
                print(f"| {command} | power failure: {kind} | {len(operations)} | {len(moments)} | {bad} |", flush=True)
                findings, total = findings + bad, total + len(moments)
    print(
        f"\n{total:,} faults, {findings} broken; seed {options.seed}; {(time.monotonic() - started) / 60:.0f} minutes"
    )
    sys.exit(bool(findings))


# ------------------------------------------------------------------------------------------------- running commands


def run(work: Callable[[], list[Any]]) -> dict[str, Any]:
    """Do some work in this process; return 0 or 1 as a command would, and the line that it would print."""
    try:
        failed = [result.reason for result in work() if result.state == "failed"]
    except ValueError as error:  # a line for the user
        return {"code": 1, "err": str(error)}
    return {"code": int(bool(failed)), "err": "; ".join(failed)}


def run_here(place: Path, work: Callable[[], list[Any]]) -> None:
    """Do some work undisturbed, here, so that all that it imports is there in every fork."""
    before = Path.cwd()
    os.chdir(place)
    did = run(work)
    os.chdir(before)
    assert did["code"] == 0, did


def in_a_fork(place: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do some work in a forked process and in a folder; return what it did: "died" if the process was killed."""
    answer = place.parent / "answer"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(SECONDS)
            os.chdir(place)
            answer.write_text(json.dumps(work()))
        except BaseException as error:
            answer.write_text(json.dumps({"code": "traceback", "err": repr(error)}))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        ended = os.WTERMSIG(status)
        code = "died" if ended == signal.SIGKILL else f"ended by {signal.Signals(ended).name}"
        return {"code": code, "err": ""}
    return json.loads(answer.read_text())


def cleared(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()


def disturbed(
    faults: ctypes.CDLL, place: Path, work: Callable[[], list[Any]], whole: Path, mode: int, n: int, error: int
) -> str | None:
    """Run a command with a fault at its n-th operation, and again until it is done; return what is wrong."""
    cleared(place)

    def armed() -> dict[str, Any]:
        faults.faults_arm(str(place).encode(), mode, ctypes.c_long(n), error, -1)
        did = run(work)
        faults.faults_disarm()
        return did

    did = in_a_fork(place, armed)
    if did["code"] not in (("died",) if mode in (KILL, TEAR) else (0, 1)):
        return f"ended with {did['code']}: {did['err']}"
    return finished(place, work, whole, together=mode in (KILL, TEAR))


def finished(place: Path, work: Callable[[], list[Any]], whole: Path, together: bool = True) -> str | None:
    """Repeat a command, or resume its run, until it is done; return what differs from the undisturbed one.

    together: whether the runs must have stayed in one fleet; a run whose folder failed goes on alone.
    """
    from tests.test_resume import assert_same

    did = in_a_fork(place, lambda: run(work))
    if did["code"] != 0:
        did = in_a_fork(place, lambda: run(work))
    if did["code"] != 0:
        return f"going on ends with {did['code']}: {did['err']}"
    for status in sorted(whole.rglob("status.json")):
        ours, theirs = place / status.parent.relative_to(whole), status.parent
        try:
            assert_same(theirs, ours)
        except Exception as error:
            return f"{ours.name} differs: {type(error).__name__} {' '.join(str(error).split())[:200]}"
        if (is_kept := kept(ours, together)) != (should := kept(theirs, together)):
            return f"{ours.name} differs: {should} was to be kept, {is_kept} is"
    return None


def kept(folder: Path, together: bool) -> dict[str, Any]:
    """Return what else must be the same: the fleet, how often the end is logged, the files and their sizes."""
    status = json.loads((folder / "status.json").read_text())
    log = (folder / "log.txt").read_text()
    views = [path.stat().st_size for path in folder.glob("events.out.tfevents.*")]
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out")}
    return {
        "fleet_size": status["fleet_size"] if together else None,
        "ends": log.count("completed after"),
        "views": views,
        "names": sorted(names - {"checkpoint.next.pt"}),
    }


# ---------------------------------------------------------------------------------------------------- power failures

Operation = tuple[str, str, str, int, bytes]
"""What, path, other path, offset or length, data: as soak_faults.c writes them down."""


def recorded(faults: ctypes.CDLL, place: Path, work: Callable[[], list[Any]], journal: Path) -> list[Operation]:
    """Return the operations on files of an undisturbed command."""
    cleared(place)

    def armed() -> dict[str, Any]:
        descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        faults.faults_arm(str(place).encode(), COUNT, ctypes.c_long(0), 0, descriptor)
        did = run(work)
        return did | {"counted": faults.faults_disarm()}

    did = in_a_fork(place, armed)
    assert did["code"] == 0, did
    operations = list(operations_in(journal.read_bytes()))
    assert len(operations) == did["counted"]
    return operations


def operations_in(journal: bytes) -> Iterator[Operation]:
    at = 0
    while at < len(journal):
        end = journal.index(b"\n", at)
        what, path, other, offset, n = journal[at:end].decode().split("\t")
        at = end + 1 + int(n)
        yield what, path, other, int(offset), journal[end + 1 : at]


class File:
    """What is in a file, and what of it was flushed."""

    def __init__(self) -> None:
        self.flushed = b""
        self.pending: list[tuple[int, bytes | None]] = []  # offset and data, None: the file ends at the offset

    def content(self, changes: int, torn: float = 1.0) -> bytes:
        """Return the content after so many of the changes that were not flushed, the last one torn."""
        content = bytearray(self.flushed)
        for i, (offset, data) in enumerate(self.pending[:changes]):
            if data is None:
                del content[offset:]
                content.extend(bytes(offset - len(content)))
                continue
            part = data[: round(len(data) * torn)] if i == changes - 1 else data
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(part)] = part
        return bytes(content)


def after_power_failure(operations: list[Operation], kind: str, chosen: random.Random, place: Path) -> set[str]:
    """Make `place` what a disk may hold after these operations and a power failure; return the names of its files."""
    names: dict[str, File | None] = {}  # as a process sees them; None is a folder
    lasting: dict[str, File | None] = {}
    pending: list[tuple[str, str, str, File | None]] = []  # changes of names that were not flushed

    def change(entries: dict[str, File | None], what: str, path: str, other: str, file: File | None) -> None:
        if what == "rename":
            entries.pop(other, None)
        if what in ("unlink", "rmdir"):
            entries.pop(path, None)
        else:
            entries[path] = file

    for what, path, other, offset, data in operations:
        if what in ("create", "mkdir", "rename", "unlink", "rmdir", "link"):
            file = File() if what == "create" else names.get(other) if what in ("rename", "link") else None
            change(names, what, path, other, file)
            pending.append((what, path, other, file))
        elif what in ("write", "truncate"):
            file = names[path]
            assert file is not None
            file.pending.append((offset, data if what == "write" else None))
        elif what in ("fsync", "syncfs"):
            if what == "syncfs" or (path in names and names[path] is None) or path == str(place):
                flushed = [c for c in pending if what == "syncfs" or str(Path(c[1]).parent) == path]
                for one in flushed:
                    change(lasting, *one)
                pending = [c for c in pending if c not in flushed]
            for name, file in names.items():
                if file is not None and (what == "syncfs" or name == path):
                    file.flushed, file.pending = file.content(len(file.pending)), []
        else:
            raise AssertionError(f"the model knows no {what}")
    if kind == "names without data":
        lasting = dict(names)
    elif kind == "some names, some data":
        for one in pending:
            if chosen.random() < 0.6:
                change(lasting, *one)
    cleared(place)
    for name, file in sorted(lasting.items()):
        path = Path(name)
        if not path.parent.is_dir():
            continue  # the folder that it was in is lost
        if file is None:
            path.mkdir(exist_ok=True)
        elif kind == "some names, some data":
            path.write_bytes(file.content(chosen.randint(0, len(file.pending)), chosen.random()))
        else:
            path.write_bytes(file.flushed)
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
