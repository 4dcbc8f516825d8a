"""Kill whole sweeps with SIGKILL at random moments until they are done, and compare them with undisturbed ones.

Part of `make soak`. Every attempt is `burgersgd train --multirun sweep.name=...` in a session of its own, forked from
this process, which has imported what takes long; workers are started as ever. What is killed: the command and all it
started, the command alone (its workers have to notice), or one of its workers. One Markdown row per kind of sweep;
raises at the first difference, traceback, job that was trained twice, or process that does not end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the comparison is the tests' own

import hydra_plugins.burgersgd  # noqa: F401  (the children find it imported)
from burgersgd import native
from burgersgd.api import train_fleet
from burgersgd.cli import main as burgersgd
from burgersgd.config import SgdConfig, TrainConfig, TrainerConfig
from burgersgd.recording.run_folder import ENDED, STAGED, RunFolderError, read_status
from burgersgd.sweeps import sweep as _imported_for_the_children  # noqa: F401
from burgersgd.sweeps.status import job_states
from tests.test_resume import assert_same

PATIENCE_SECONDS = 120.0
"""A command that takes longer hangs."""
ORPHAN_SECONDS = 20.0
"""So long may a worker go on whose command was killed: it imports PyTorch, finishes a step and saves its runs."""
WORDS = ["device=cpu", "device.threads=1", "model.width=16", "trainer.batch_size=32"]
NATIVE = [*WORDS, "trainer.compile=native", "trainer.budget=2000", "trainer.checkpoint_every=200"]
EAGER = [*WORDS, "trainer.compile=off", "trainer.budget=160", "trainer.checkpoint_every=16"]
LR = "optimizer.lr=tag(log, interval(0.01, 0.3))"
TPE = [LR, "sweep.sampler=optuna", "sweep.n_samples=16", "sweep.batch=4", "optimizer=sgd,adamw"]


@dataclass(frozen=True)
class Kind:
    """Sweeps to be killed: the words of the command, and those of smaller ones that it grows from."""

    words: list[str]
    jobs: int
    before: list[list[str]] = field(default_factory=list)

    @property
    def workers(self) -> bool:
        """Whether jobs are trained in other processes."""
        return "sweep.workers=2" in self.words

    @property
    def any_company(self) -> bool:
        """Whether bits do not depend on which runs are trained together, as when orphans still hold some."""
        return "trainer.compile=native" in self.words


def grown(words: list[str], *seeds: int) -> Kind:
    *before, last = ([*words, f"seed=range({n})"] for n in seeds)
    return Kind(last, seeds[-1], before)


KINDS = {
    "grid, one fleet, native": Kind([*NATIVE, "sweep.workers=1", "seed=range(4)", "optimizer.nu=1e-6,1e-5"], 8),
    "grid, fleets of 3, eager": Kind(
        [*EAGER, "sweep.workers=1", "sweep.max_runs=3", "seed=range(4)", "optimizer.nu=1e-6,1e-5"], 8
    ),
    "two optimizers and widths, eager": Kind(
        [*EAGER, "sweep.workers=1", "optimizer=sgd,adamw", "model.width=8,12", "seed=range(3)"], 12
    ),
    "random search, native": Kind([*NATIVE, "sweep.workers=1", LR, "sweep.sampler=random", "sweep.n_samples=8"], 8),
    "Sobol, stopping early, eager": Kind(
        [
            *EAGER,
            "sweep.workers=1",
            "optimizer.lr=tag(log, interval(1e-6, 0.3))",
            "sweep.sampler=sobol",
            "sweep.n_samples=8",
            "sweep.prune=median",
            "trainer.eval_every=20",
        ],
        8,
    ),
    "Optuna, native": Kind([*NATIVE, "trainer.budget=1000", "sweep.workers=1", *TPE], 16),
    "growing grid, native": grown([*NATIVE, "sweep.workers=1"], 3, 6, 8),
    "grid, two workers, native": Kind([*NATIVE, "sweep.workers=2", "seed=range(4)", "optimizer.nu=1e-6,1e-5"], 8),
    "two optimizers and widths, two workers, eager": Kind(
        [*EAGER, "sweep.workers=2", "optimizer=sgd,adamw", "model.width=8,12", "seed=range(3)"], 12
    ),
    "Optuna, two workers, native": Kind(
        [*NATIVE, "trainer.budget=1000", "sweep.workers=2", *TPE, "sweep.n_samples=8"], 8
    ),
    "growing grid, two workers, native": grown([*NATIVE, "sweep.workers=2"], 3, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=100, help="smallest number of kills, spread over all kinds of sweeps"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only kinds whose name contains this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("normals", "mlp_gradient"):
        native.library(name)
    _import_what_training_imports()
    kinds = {name: kind for name, kind in KINDS.items() if options.only in name}
    moments = random.Random(options.seed)
    print(
        "| sweep | kills: all processes | the command alone | a worker | nothing recorded | runs begun | runs over "
        "| all over | longest orphan (s) | sweeps compared |"
    )
    print("|---|" + "---:|" * 9)
    total, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        for name, kind in kinds.items():
            soak = Soak(kind, Path(root, name.replace(" ", "-").replace(",", "")), moments)
            soak.until(-(-options.kills // len(kinds)))
            seen, total = soak.seen, total + soak.kills
            numbers = [seen[what] for what in ("all", "command", "worker", "nothing", "begun", "over", "done")]
            cells = [name, *numbers, f"{soak.longest_orphan:.1f}" if kind.workers else "", seen["compared"]]
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    print(f"\n{total} kills, no difference; seed {options.seed}, {time.monotonic() - started:.0f} s")


def _import_what_training_imports() -> None:
    """Train for a moment, once natively and once by autograd, so that children need not import what that imports."""
    for compile in ("native", "off"):
        trainer = TrainerConfig(budget=2, compile=compile)
        train_fleet(
            [TrainConfig(seed=seed, trainer=trainer, optimizer=SgdConfig()) for seed in (0, 1)],
            progress=False,
            record=False,
        )


class Soak:
    """Kills sweeps of one kind in the folder `root`, at moments from `moments`, and compares what they leave."""

    def __init__(self, kind: Kind, root: Path, moments: random.Random) -> None:
        self.kind, self.root, self.moments = kind, root, moments
        self.seen: Counter[str] = Counter()
        self.longest_orphan = 0.0
        root.mkdir()
        started = time.monotonic()
        for words in [*kind.before, kind.words]:
            self.command(words, "undisturbed").succeeds()
        self.seconds = (time.monotonic() - started) / (1 + len(kind.before))
        assert len(folders(root / "multirun" / "undisturbed")) == kind.jobs

    @property
    def kills(self) -> int:
        """How many there were."""
        return self.seen["all"] + self.seen["command"] + self.seen["worker"]

    def until(self, kills: int) -> None:
        """Finish sweeps again and again, killed in between, until there were so many kills."""
        while self.kills < kills:
            name = f"killed{self.seen['compared']}"
            for words in self.kind.before:
                self.attempt(words, name)  # killed or not: then the grid grows
            over: dict[Path, int] = {}
            for _ in range(100):
                ended = self.attempt(self.kind.words, name)
                self.check_kept(name, over)
                if ended and len(over) == self.kind.jobs:
                    break
            else:
                raise AssertionError(f"{name} does not end")
            self.command(self.kind.words, name).succeeds()
            self.check_kept(name, over)
            self.compare(name)
            self.seen["compared"] += 1

    def attempt(self, words: list[str], name: str) -> bool:
        """Start the command and kill something at a random moment; return whether the command came to its end."""
        whom = self.moments.choice(["all", "command", "worker"]) if self.kind.workers else "all"
        command = self.command(words, name)
        until = time.monotonic() + self.moments.uniform(0, self.seconds)
        if whom == "worker":  # from the moment on when there is one
            while not command.over() and not (workers := command.workers()):
                time.sleep(0.002)
            until = time.monotonic() + self.moments.uniform(0, self.seconds)
        while not command.over() and time.monotonic() < until:
            time.sleep(0.001)
        if command.over():
            command.succeeds()
            return True
        if whom == "worker":
            workers = command.workers()
            if workers:
                os.kill(self.moments.choice(workers), signal.SIGKILL)
                self.note(name, "worker")
            command.succeeds()
            return True
        command.kill(alone=whom == "command")
        self.note(name, whom)
        killed = time.monotonic()
        if self.kind.any_company and self.moments.random() < 0.5:
            return False  # and the next command meets what is left of this one
        while command.alive():
            assert time.monotonic() < killed + ORPHAN_SECONDS, f"{name}: {command.alive()} go on without their command"
            time.sleep(0.01)
        if whom == "command":
            self.longest_orphan = max(self.longest_orphan, time.monotonic() - killed)
        return False

    def command(self, words: list[str], name: str) -> Command:
        """Start the sweep `name` in a process of its own."""
        return Command(["train", "--multirun", *words, f"sweep.name={name}", "output_root=."], self.root, name)

    def note(self, name: str, whom: str) -> None:
        """Count a kill, and what it has met."""
        self.seen[whom] += 1
        folder = self.root / "multirun" / name
        with contextlib.suppress(RunFolderError):  # no job is noted yet
            job_states(folder)
        states = list(ended(folder))
        begun = [path for path in folders(folder).values() if (path / "status.json").exists()]
        what = "nothing" if not begun else "begun" if not states else "over" if len(states) < self.kind.jobs else "done"
        self.seen[what] += 1

    def check_kept(self, name: str, over: dict[Path, int]) -> None:
        """Raise where a job that was over was begun again; add to `over` those that are over now."""
        now = {path: (path / "status.json").stat().st_mtime_ns for path in ended(self.root / "multirun" / name)}
        assert over.items() <= now.items(), f"{name}: trained twice: {over.items() - now.items()}"
        over |= now

    def compare(self, name: str) -> None:
        """Raise where the sweep differs from the undisturbed one."""
        ours, theirs = folders(self.root / "multirun" / name), folders(self.root / "multirun" / "undisturbed")
        assert ours.keys() == theirs.keys(), f"{name}: {ours.keys() ^ theirs.keys()}"
        left = [
            path
            for path in (self.root / "multirun" / name).rglob("*")
            if path.name.endswith((".tmp", STAGED, "-journal"))
        ]
        assert not left, f"{name}: left behind: {left}"
        for job, folder in ours.items():
            assert files(folder) == files(theirs[job]), f"{name}/{job}: {files(folder) ^ files(theirs[job])}"
            assert_same(folder, theirs[job])
            assert curves(folder) == curves(theirs[job]), f"{name}/{job}: TensorBoard shows another curve"
        for log in (self.root / "logs").glob(f"{name}-*"):
            text = log.read_text(errors="replace")
            assert "Traceback" not in text, f"{log}:\n{text}"
        if "sweep.sampler=optuna" in self.kind.words:
            assert trials(self.root / "multirun" / name) == trials(self.root / "multirun" / "undisturbed")


class Command:
    """burgersgd with these arguments in a process and a session of its own; what it says goes to a log in `root`."""

    def __init__(self, arguments: list[str], root: Path, name: str) -> None:
        (root / "logs").mkdir(exist_ok=True)
        self.arguments, self.log = arguments, root / "logs" / f"{name}-{len(list((root / 'logs').iterdir()))}.txt"
        self._code: int | None = None
        with open(self.log, "wb") as log:
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    os.setsid()
                    os.chdir(root)
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    sys.modules["__main__"] = types.ModuleType("__main__")  # not this script: workers would import it
                    code = burgersgd(arguments)
                    sys.stdout.flush()
                    os._exit(code)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(70)

    def over(self) -> bool:
        """Whether the command itself has ended."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def succeeds(self) -> None:
        """Wait for the end of the command; raises where that is no good one, or leaves processes behind."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.over() or self.alive():
            assert time.monotonic() < until, f"hangs: {self}"
            time.sleep(0.002)
        assert self._code == 0, f"exit code {self._code}: {self}"

    def kill(self, alone: bool) -> None:
        """End the command, and unless it is to die alone all processes that it has started."""
        (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._code = -signal.SIGKILL

    def alive(self) -> list[int]:
        """Return the processes of the session that have not ended."""
        return [pid for pid, state, _ in self._processes() if state != "Z"]

    def workers(self) -> list[int]:
        """Return the workers among them."""
        return [pid for pid, state, line in self._processes() if state != "Z" and b"spawn_main" in line]

    def _processes(self) -> Iterator[tuple[int, str, bytes]]:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                state, _, _, session = (path / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid:
                    yield int(path.name), state, (path / "cmdline").read_bytes()

    def __str__(self) -> str:
        return f"burgersgd {' '.join(self.arguments)}\n{self.log.read_text(errors='replace')}"


def folders(sweep: Path) -> dict[str, Path]:
    """Return the folders of a sweep's runs by their names."""
    return {path.name: path for path in sweep.glob("*") if path.is_dir()}


def ended(sweep: Path) -> Iterator[Path]:
    """Yield the folders of the runs that are over."""
    for path in folders(sweep).values():
        with contextlib.suppress(RunFolderError):  # just begun
            if read_status(path)["state"] in ENDED:
                yield path


def files(folder: Path) -> set[str]:
    """Return the names of all files below a run's folder; of the event file without the time in it."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sum(name.startswith("events.out") for name in names) == 1, f"{folder}: {names}"
    return {"events" if name.startswith("events.out") else name for name in names}


def curves(folder: Path) -> list[tuple[int, str, float]]:
    """Return what TensorBoard shows of a run."""
    (events,) = folder.glob("events.out.*")
    return [
        (event.step, value.tag, value.simple_value)
        for event in LegacyEventFileLoader(str(events)).Load()
        for value in event.summary.value
    ]


def trials(sweep: Path) -> list[Any]:
    """Return what an Optuna study knows: the state, choices and value of every trial."""
    with contextlib.closing(sqlite3.connect(sweep / "optuna.db")) as study:
        return [
            study.execute(
                f"select number, state, {what} from trials left join {table} using (trial_id) order by 1, 3"
            ).fetchall()
            for table, what in (("trial_params", "param_name, param_value"), ("trial_values", "value"))
        ]


if __name__ == "__main__":
    main()
