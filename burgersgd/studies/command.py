"""`burgersgd study NAME [--quick]`: runs a study in one folder and writes a report; the same command resumes it."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from burgersgd.config import GROUPS
from burgersgd.hydra_schemas import register_schemas
from burgersgd.interruption import RESUMABLE, Interrupted, interruptible
from burgersgd.schema import ConfigError, fields_of
from burgersgd.studies.cells import StudyStoppedError
from burgersgd.studies.config import StudyConfig, read_study, studies
from burgersgd.studies.study import REPORT, run_study


def main(arguments: Sequence[str]) -> int:
    """Run `burgersgd study`. Raises ConfigError with a one-line message."""
    given = parser().parse_intermixed_args(arguments)
    if given.study is None:
        for name in studies():
            print(f"{name:<10}{read_study(name).question}")
        return 0
    study = read_study(given.study, given.words, given.quick)
    return _run(study, Path(given.study).stem, given, ["study", *arguments])


def main_bench(arguments: Sequence[str]) -> int:
    """Run `burgersgd bench PACKAGE:CLASS`: the study bench with one more optimizer. Raises ConfigError (one line)."""
    given = parser_of_bench().parse_intermixed_args(arguments)
    registry = GROUPS["optimizer"]
    name = registry.named(given.optimizer) if ":" in given.optimizer else given.optimizer
    if name not in registry.names():
        raise ConfigError(f"{name}: must be PACKAGE:CLASS or one of {', '.join(registry.names())}")
    study = read_study("bench", given.words, given.quick)
    space = space_of(registry[name]) if given.space is None else space_given(given.space)
    study = dataclasses.replace(study, optimizers=study.optimizers | {name: space})
    return _run(study, f"bench-{name}", given, ["bench", *arguments])


def space_of(cls: type[Any]) -> dict[str, str]:
    """Return the default search space of an optimizer: its learning rate, momentum and weight decay."""
    lr = cls().default_lr(1.0)
    usual = {
        "lr": f"tag(log, interval({lr / 300:.3g}, {lr * 3:.3g}))",
        "momentum": "interval(0, 0.95)",
        "weight_decay": "tag(log, interval(1e-6, 1e-2))",
    }
    return {f"optimizer.{key}": values for key, values in usual.items() if key in fields_of(cls)}


def space_given(text: str) -> dict[str, str]:
    """Return the search space that a YAML text describes. Raises ConfigError."""
    try:
        space = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--space {text}: must be YAML") from error
    if not isinstance(space, dict) or not space:
        raise ConfigError(f"--space {text}: must be {{KEY: VALUES, ...}}")
    return {str(key): str(values) for key, values in space.items()}


def _run(study: StudyConfig, usual_name: str, given: argparse.Namespace, words: Sequence[str]) -> int:
    name = given.name or usual_name + ("-quick" if given.quick else "")
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name {name}: must be the name of a folder")
    root = Path(given.output_root, "studies", name)
    command = shlex.join(["burgersgd", *words])
    register_schemas()
    try:
        with interruptible(exit_at_once=True):
            answer = run_study(
                study, root, command, _print_progress if not given.quiet else _print_nothing, given.quiet
            )
    except StudyStoppedError as stopped:
        print(f"burgersgd: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except Interrupted as interrupted:
        print(f"burgersgd: interrupted by {interrupted}\nresume with: {command}", file=sys.stderr)
        return RESUMABLE
    print(f"{answer}\n\nreport: {root / REPORT}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    made = argparse.ArgumentParser(
        prog="burgersgd study",
        description="Tune optimizers at equal budgets on validation, test them with fresh seeds, and write a report.",
    )
    made.add_argument(
        "study",
        nargs="?",
        metavar="NAME",
        help=f"{', '.join(studies())}, or a YAML file; if left out, the studies are listed",
    )
    _add_common(made)
    return made


def parser_of_bench() -> argparse.ArgumentParser:
    """Return the parser of the arguments of `burgersgd bench`."""
    made = argparse.ArgumentParser(
        prog="burgersgd bench",
        description="Compare a new optimizer with the shipped ones, each tuned at the same cost.",
    )
    made.add_argument(
        "optimizer",
        metavar="PACKAGE:CLASS",
        help="configuration class of the optimizer, or the name of a shipped optimizer",
    )
    made.add_argument(
        "--space",
        metavar="{KEY: VALUES, ...}",
        help="its search space; default: ranges of lr, momentum and weight_decay",
    )
    _add_common(made)
    return made


def _add_common(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="settings of the study, such as trials=32 width=0.005"
    )
    made.add_argument("--quick", action="store_true", help="run a small version of the study in a separate folder")
    made.add_argument("--name", help="name of the folder below OUTPUT_ROOT/studies; default: that of the study")
    made.add_argument(
        "--output-root",
        default="outputs",
        metavar="FOLDER",
        help="folder in which the folder studies is created; default: outputs",
    )
    made.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr)


def _print_nothing(line: str) -> None:
    pass
