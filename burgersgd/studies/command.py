"""`burgersgd study NAME [--quick]`: from a question to a report, in one folder; the same command goes on."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from burgersgd.config import register_schemas
from burgersgd.interruption import RESUMABLE, Interrupted, interruptible
from burgersgd.schema import ConfigError
from burgersgd.studies.cells import StudyStoppedError
from burgersgd.studies.config import read_study, studies
from burgersgd.studies.study import REPORT, run_study


def main(arguments: Sequence[str]) -> int:
    """Run `burgersgd study`. Raises ConfigError of one line."""
    given = parser().parse_intermixed_args(arguments)
    if given.study is None:
        for name in studies():
            print(f"{name:<10}{read_study(name).question}")
        return 0
    study = read_study(given.study, given.words, given.quick)
    name = given.name or Path(given.study).stem + ("-quick" if given.quick else "")
    if Path(name).name != name or name.startswith("."):
        raise ConfigError(f"--name {name}: must be a folder's name")
    root = Path(given.output_root, "studies", name)
    command = shlex.join(["burgersgd", "study", *arguments])
    register_schemas()
    try:
        with interruptible(exit_at_once=True):
            answer = run_study(study, root, command, _tell if not given.quiet else _nothing, given.quiet)
    except StudyStoppedError as stopped:
        print(f"burgersgd: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except Interrupted as interrupted:
        print(f"burgersgd: interrupted by {interrupted}\ngo on with: {command}", file=sys.stderr)
        return RESUMABLE
    print(f"{answer}\n\nreport: {root / REPORT}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    made = argparse.ArgumentParser(
        prog="burgersgd study",
        description="Tune optimizers at equal budgets on validation, test them with fresh seeds, and write a report.",
    )
    made.add_argument(
        "study", nargs="?", metavar="NAME", help=f"{', '.join(studies())}, or a YAML file; none: list them"
    )
    made.add_argument("words", nargs="*", metavar="KEY=VALUE", help="of the study: trials=32 width=0.005 ...")
    made.add_argument("--quick", action="store_true", help="a small version of it, in a folder of its own")
    made.add_argument("--name", help="of its folder below output_root/studies")
    made.add_argument("--output-root", default="outputs", metavar="FOLDER", help="where studies go (outputs)")
    made.add_argument("-q", "--quiet", action="store_true", help="no progress")
    return made


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _nothing(line: str) -> None:
    pass
