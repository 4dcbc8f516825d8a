"""Train, kill, stop, resume and inspect in any order: a run always leaves the same files at its end."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from burgersgd.api import resume, train
from burgersgd.config import LocalEntropyConfig, MlpConfig, SgdConfig, TrainConfig, TrainerConfig
from burgersgd.interruption import Interrupted
from burgersgd.recording.claims import is_claimed, release
from burgersgd.recording.run_folder import RunFolder, read_checkpoint, read_metrics, read_status
from burgersgd.revisit import state_dict
from burgersgd.training.fleet import Fleet
from tests.test_resume import Killed, assert_same, named

RULES = {
    "local_entropy": LocalEntropyConfig(lr=0.13, nu=1e-5, gamma=0.7, inner_steps=4, burn_in=1, outer_momentum=0.3),
    "sgd": SgdConfig(lr=0.2, momentum=0.6),
}


class Runs(RuleBasedStateMachine):
    """One run and its undisturbed twin; a budget may grow, then both do."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder: Path | None = None
        self.over = False
        self.budget = 30

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @initialize(
        rule_name=st.sampled_from(sorted(RULES)),
        compile=st.sampled_from(["off", "native"]),
        every=st.sampled_from([4, 7, 100]),
    )
    def choose(self, rule_name: str, compile: str, every: int) -> None:
        trainer = TrainerConfig(
            budget=30,
            batch_size=30,
            precision="float64",
            compile=compile,
            checkpoint_every=every,
            log_every=4,
            eval_every=9,
        )
        self.config = TrainConfig(
            optimizer=RULES[rule_name],
            model=MlpConfig(width=6),
            trainer=trainer,
            output_root=str(self.root),
            seed=every,
        )

    def go(self, steps: int | None, ending: str) -> None:
        """Begin or go on; after so many steps the process dies or is told to stop."""
        advance, taken = Fleet._steps, [0]

        def patched(fleet: Fleet, k: int, stop: int) -> int:
            if taken[0] == steps:
                if ending == "killed":
                    raise Killed
                signal.raise_signal(signal.SIGTERM)
            if steps is not None and taken[0] < steps:
                stop = min(stop, k + steps - taken[0])
            reached = advance(fleet, k, stop)
            taken[0] += reached - k
            return reached

        leave = RunFolder.__exit__

        def left(folder: RunFolder, kind: Any, *rest: Any) -> None:
            release(folder.path) if kind is Killed else leave(folder, kind, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Fleet, "_steps", patched)
            patch.setattr(RunFolder, "__exit__", left)
            try:
                begun = self.folder is not None
                self.folder = self.folder or self.root / "run"
                resume(self.folder, progress=False) if begun else train(named(self.config, "run"), progress=False)
                self.over = True
            except (Killed, Interrupted):
                self.over = False

    @precondition(lambda self: not self.over)
    @rule(steps=st.integers(0, 29), ending=st.sampled_from(["killed", "stopped"]))
    def a_while(self, steps: int, ending: str) -> None:
        self.go(steps, ending)

    @precondition(lambda self: not self.over)
    @rule()
    def to_the_end(self) -> None:
        self.go(None, "")
        self.compare()

    @precondition(lambda self: self.over)
    @rule()
    def once_more(self) -> None:
        self.go(None, "")
        self.compare()

    @precondition(lambda self: self.over and self.budget < 90)
    @rule()
    def grow(self) -> None:
        assert self.folder is not None
        self.budget += 30
        self.folder = resume(self.folder, budget=self.budget, output_root=str(self.root), progress=False).folder
        self.compare()

    @precondition(lambda self: self.folder is not None)
    @rule()
    def look(self) -> None:
        assert self.folder is not None
        if (self.folder / "checkpoint.pt").exists():
            x = torch.cat([t.flatten() for t in state_dict(self.folder).values()])
            assert torch.equal(x, read_checkpoint(self.folder)["x"])

    @invariant()
    def what_is_there_is_readable(self) -> None:
        if self.folder is not None:
            assert not is_claimed(self.folder)
            rows = read_metrics(self.folder)["evaluations"]
            assert rows == sorted(set(rows))
            assert read_status(self.folder)["state"] in ("running", "interrupted", "completed")

    def compare(self) -> None:
        assert self.folder is not None
        twin = self.root / f"twin{self.budget}"
        if not twin.exists():
            train(named(self.config, twin.name, budget=self.budget), progress=False)
        if self.budget == 30:
            assert_same(twin, self.folder)
        else:
            mine, theirs = read_checkpoint(self.folder), read_checkpoint(twin)
            assert torch.equal(mine["x"], theirs["x"])
            assert mine["state"].keys() == theirs["state"].keys()


TestRuns = Runs.TestCase
TestRuns.settings = settings(max_examples=6, stateful_step_count=8, deadline=None, derandomize=True, database=None)
