"""Generates valid and invalid configurations and command lines, and checks what must hold for each of them.

Everything is drawn from the schema itself (config.py), so that a new key is tried as soon as it is there. Sizes are
either tiny or absurd: nothing between could fill the memory or the time of the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from burgersgd.cli import main
from burgersgd.config import GROUPS, TrainConfig
from burgersgd.recording.run_folder import read_status
from burgersgd.sweeps.compose import Composer

DATASETS = ("digits", "mnist1d", "two_spirals", "teacher_student")
"""Sets that need no network and no file."""

TINY: dict[str, st.SearchStrategy[Any]] = {
    "dataset.n_samples": st.integers(50, 90),
    "dataset.input_dim": st.integers(1, 5),
    "dataset.teacher_width": st.integers(1, 5),
    "dataset.teacher_depth": st.integers(0, 3),
    "dataset.outputs": st.integers(1, 3),
    "dataset.noise": st.floats(0, 1e30),
    "dataset.turns": st.floats(1e-3, 1e6),
    "dataset.train_size": st.none() | st.integers(1, 5),
    "dataset.validation_fraction": st.floats(0.05, 0.45),
    "dataset.test_fraction": st.floats(0.05, 0.45),
    "model.depth": st.integers(0, 3),
    "model.width": st.integers(1, 6),
    "model.widths": st.none() | st.lists(st.integers(1, 6), max_size=3),
    "optimizer.inner_steps": st.integers(1, 4),
    "optimizer.burn_in": st.integers(0, 3),
    "trainer.batch_size": st.integers(1, 5),
    "trainer.compile": st.sampled_from(["off", "native", "auto"]),
    "device.name": st.sampled_from(["auto", "cpu"]),
    "device.threads": st.sampled_from([None, 1]),
    "device.index": st.just(0),
}
"""What must stay small, or would need a compiler for minutes; everything else has the whole range of its field."""

_COMPOSER = Composer()

FIXED = {"trainer.budget", "trainer.epochs", "optimizer.name", "dataset.name", "model.name", "loss.name"}
FIXED |= {"schedule.name", "output_root", "run_name"}
"""Keys that the strategies set themselves."""


def value_of(key: str, field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    """Return allowed values of a field, from its type and range."""
    if key in TINY:
        return TINY[key]
    kind, optional = str(field.type).split(" | ")[0], "None" in str(field.type)
    rule, choices = field.metadata.get("range") or {}, field.metadata.get("choices")
    low = max((b for b in (rule.get("above"), rule.get("at_least")) if b is not None), default=None)
    high = min((b for b in (rule.get("below"), rule.get("at_most")) if b is not None), default=None)
    if choices:
        values: st.SearchStrategy[Any] = st.sampled_from(list(choices))
    elif kind == "bool":
        values = st.booleans()
    elif kind == "int":
        values = st.integers(math.ceil(low or 0), 2**63 - 1 if high is None else math.floor(high))
    elif kind in ("float", "LearningRate"):
        above, below = rule.get("above") is not None, rule.get("below") is not None
        infinite = bool(rule.get("infinite")) and high is None
        values = st.floats(low, high, exclude_min=above, exclude_max=below, allow_nan=False, allow_infinity=infinite)
        usual = st.floats(max(low or 0.0, 1e-4), min(high or 2.0, 2.0), exclude_min=True, exclude_max=True)
        values = usual | values
    elif kind == "list[str]":
        values = st.lists(st.just("tensorboard"), max_size=1)
    else:
        values = st.text(max_size=5)
    return st.none() | values if optional else values


@st.composite
def settings_of(draw: st.DrawFn, group: str, choice: str) -> dict[str, Any]:
    """Return some keys of a group, each with an allowed value."""
    cls = GROUPS[group][choice]
    chosen = {}
    for field in dataclasses.fields(cls):
        key = f"{group}.{field.name}"
        if key not in FIXED and (key in TINY or draw(st.booleans())):
            chosen[field.name] = draw(value_of(key, field))
    return chosen


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Return a command line whose every value is in its range: of one or two cycles of a tiny run."""
    dataset = draw(st.sampled_from(DATASETS))
    choices = {
        "dataset": dataset,
        "model": "mlp",
        "loss": draw(st.sampled_from(["cross_entropy", "squared_error"])),
        "optimizer": draw(st.sampled_from(sorted(GROUPS["optimizer"]))),
        "schedule": draw(st.sampled_from(sorted(GROUPS["schedule"]))),
    }
    if dataset == "teacher_student":
        choices["loss"] = "squared_error"
    if dataset == "two_spirals":
        choices["loss"] = draw(st.sampled_from(["cross_entropy", "squared_error", "logistic"]))
    words = [f"{group}={choice}" for group, choice in choices.items()]
    cycle, sizes = 1, {}
    for group, choice in {**choices, "trainer": "default", "device": "auto"}.items():
        chosen = draw(settings_of(group, choice))
        if group == "trainer" and (train_size := sizes.get("train_size")):
            chosen["batch_size"] = min(chosen["batch_size"], train_size)
        if group == "dataset":
            sizes = chosen
            if dataset == "teacher_student":
                chosen.pop("label_noise", None)
            if dataset != "digits":
                chosen.pop("augment", None)  # no images
        if chosen.get("widths") is not None:  # replaces the others
            chosen = {name: value for name, value in chosen.items() if name not in ("depth", "width")}
        if chosen.get("gamma_min", 0) > chosen.get("gamma", 0):
            del chosen["gamma_min"]
        if chosen.get("nesterov"):
            chosen["momentum"] = 0.5
        no_law = chosen.get("nesterov") or chosen.get("integrator", "em") != "em"
        if choice == "local_entropy" and chosen.get("momentum", 0) > 0 and no_law:
            chosen["nu"] = 0.0
        if group == "optimizer" and choice == "local_entropy":
            cycle = chosen["inner_steps"] + chosen["burn_in"]
        if choice in ("sam", "asam"):
            cycle = 2
        words += [f"{group}.{key}={shown(value)}" for key, value in chosen.items()]
    return [*words, f"trainer.budget={cycle * draw(st.integers(1, 2))}"]


def configuration(arguments: list[str]) -> TrainConfig:
    """Return what overrides ask for, composed once for each choice of groups."""
    return _COMPOSER.config(arguments)


def shown(value: Any) -> str:
    """Return a value as Hydra's grammar has it."""
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" if value else "''"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


# ------------------------------------------------------------------------------------------------------ nonsense

KEYS = sorted(
    {f"{group}.{f.name}" for group, choices in GROUPS.items() for c in choices.values() for f in dataclasses.fields(c)}
    | {"seed", "output_root", "run_name", *GROUPS} - {"sweep.n_samples"}
)
VISION = {"mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"}  # would be downloaded
CHOICES = sorted({choice for choices in GROUPS.values() for choice in choices} - VISION)
SOUP = st.text(alphabet="[]{}(),:=~+'\"\\$@/. \t\n*!&|<>%#-_019eaé€😀\x00\udcff", max_size=8)
ODD = st.sampled_from([
    "nan", "inf", "-inf", ".inf", "null", "None", "true", "yes", "0", "-0.0", "1e400", "-1", "1e15", "1_000", "0x10",
    "1e-320", "99999999999999999999", "[]", "{}", "[1,2]", "{a:1}", "[[]]", "''", '""', "???", "${seed}",
    "${oc.env:HOME}", "${missing}", "${hydra:job.name}", "${now:%Y}", "range(3)", "choice(1,2)", "1,2", "interval(0,1)",
    "sort(1)", "cast(1)", "int(1.5)", "str(a)", "glob(*)", "a\\,b", "..", "/", "\u202e", "",
])  # fmt: skip
EQUALS = st.just("") | st.builds("={}".format, ODD | SOUP) | st.builds("@a.b={}".format, ODD) | st.just("=1=2")
PREFIXES = st.sampled_from(["+", "++", "~", "~", "-", "--"])
HYDRA = st.sampled_from([
    "hydra/launcher=basic", "hydra/launcher=nowhere", "hydra/sweeper=nowhere", "hydra.job.chdir=true",
    "hydra.run.dir=sub", "hydra.output_subdir=.hydra", "hydra.verbose=true", "hydra.job.name=x", "hydra.nowhere=1",
    "+hydra.nowhere=1", "hydra.mode=MULTIRUN", "hydra.mode=wrong", "hydra.sweep.dir=elsewhere",
    "hydra/job_logging=default", "hydra/hydra_logging=nowhere", "hydra.searchpath=1",
    "hydra.sweeper.params={seed:'1,2'}", "hydra.job.env_set={A:1}",
])  # fmt: skip
FLAGS = st.sampled_from([
    ["--multirun"], ["-m"], ["--foo"], ["-x"], ["--"], ["--cfg", "job"], ["--cfg", "nowhere"], ["--cfg"], ["--info"],
    ["--info", "nowhere"], ["--config-name", "nowhere"], ["--config-path", "nowhere"], ["--config-dir", "nowhere"],
    ["--package", "optimizer"], ["--resolve"], ["--run"], ["--experimental-rerun", "nowhere"], ["--help"],
    ["--hydra-help"], ["--version"],
])  # fmt: skip

KEEPING_IT_SHORT = (
    "trainer.budget=20", "trainer.batch_size=30", "model.width=2", "model.depth=1", "trainer.compile=off",
)  # fmt: skip


@st.composite
def nonsense(draw: st.DrawFn) -> list[str]:
    """Return a command line that is wrong, most of the time, in a way that keys, values or grammar can be."""
    known = st.builds("{}={}".format, st.sampled_from(KEYS), ODD)
    named = st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(CHOICES) | st.text(max_size=4))
    prefixed = st.builds(
        "{}{}{}".format, st.sampled_from(["+", "++", "~", "~", "-", "--"]), st.sampled_from(KEYS), EQUALS
    )
    wild = st.builds("{}{}{}".format, st.sampled_from(["", "+", "~"]), SOUP, EQUALS) | SOUP
    single = st.one_of(known, known, known, known, named, named, prefixed, wild, HYDRA)
    words = draw(st.lists(st.one_of(*[st.builds(lambda word: [word], single)] * 6, FLAGS), min_size=1, max_size=3))
    flat = [word for group in words for word in group]
    return [*flat, *draw(st.sampled_from([[], [], [], flat])), *KEEPING_IT_SHORT]  # or everything twice


# ---------------------------------------------------------------------------------------------------- what must hold


@dataclasses.dataclass
class Outcome:
    """How a command ended."""

    arguments: list[str]
    code: int | str | None
    out: str
    err: str
    files: list[str]
    states: list[str]


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """Work in a folder of its own, removed at the end."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def run(arguments: list[str]) -> Outcome:
    """Run `burgersgd train` in this process and in an empty folder."""
    out, err = io.StringIO(), io.StringIO()
    with empty_folder() as folder:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: int | str | None = main(["train", *arguments])
            except SystemExit as ended:  # argparse and Hydra
                code = 0 if ended.code is None else ended.code
            except BaseException:
                code = "traceback"
                err.write(traceback.format_exc())
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        states = [read_status(path.parent)["state"] for path in folder.rglob("status.json")]
    return Outcome(arguments, code, out.getvalue(), err.getvalue(), files, states)


def complaints(outcome: Outcome, accepted_only: bool = False) -> list[str]:
    """Return what is wrong with how a command ended: a mistake is one line and no file, a run has an end."""
    found = []
    lines = outcome.err.strip().splitlines()
    if outcome.code == 2:
        if len(lines) != 1 or not lines[0].startswith("burgersgd: error: "):
            found.append("exit code 2 without one line that says why")
        if outcome.files:
            found.append(f"exit code 2 and {outcome.files[:3]} on the disk")
        if accepted_only:
            found.append("every value is in its range, and still it is refused")
    elif outcome.code in (0, 1, 3):
        if not set(outcome.states) <= {"completed", "diverged"}:
            found.append(f"runs ended as {outcome.states}")
        if outcome.code == 1 and not outcome.states:
            found.append("exit code 1 without a run")
        if accepted_only and len(outcome.states) != 1:
            found.append(f"{len(outcome.states)} runs left a status")
        if "Traceback" in outcome.err:
            found.append("a traceback")
    else:
        found.append(f"exit code {outcome.code}")
    return found
