"""`burgersgd compare PATH...`: from run folders to a table, from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from burgersgd.analysis.compare import compare
from burgersgd.analysis.question import Question
from burgersgd.analysis.runs import load
from burgersgd.analysis.tables import as_json, text

EPILOG = """\
examples:
  burgersgd compare outputs/multirun/NAME                          a row for every setting
  burgersgd compare NAME --by optimizer.name --baseline sgd        each optimizer at its best setting by validation
  burgersgd compare 'outputs/2026-*' --by optimizer.name,schedule.name --at best
  burgersgd compare NAME --by optimizer.name --metric validation_error --at target=5%
docs/compare.md explains every column.
"""


def main(arguments: Sequence[str]) -> int:
    """Run `burgersgd compare`. Raises ValueError of one line for what cannot be compared."""
    given = parser().parse_args(arguments)
    runs = load(*given.path)
    comparison = compare(runs, question_of(given))
    print(as_json(comparison) if given.json else text(comparison))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    words = argparse.ArgumentParser(
        prog="burgersgd compare",
        description="Compare runs: means with intervals, paired differences, and what could have been found at all.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "path", nargs="+", metavar="PATH", help="run folder, folder of them (a sweep), sweep's name, glob"
    )
    words.add_argument("--by", metavar="KEY,KEY", help="keys whose values make a row; default: all that differ")
    words.add_argument("--metric", default="test_error", help="a number of status.json or a column of metrics.csv")
    words.add_argument("--at", default="end", help="end, best (by validation), budget=N, or target=E: the cost of E")
    words.add_argument("--baseline", metavar="ROW", help="values of the row to compare with; default: sgd")
    words.add_argument("--where", metavar="KEY=VALUE", action="append", default=[], help="only such runs; repeatable")
    words.add_argument(
        "--pick", default="validation_error", help="metric that picks each row's setting; none: pool all"
    )
    words.add_argument("--bootstrap", action="store_true", help="BCa bootstrap intervals of the means instead of t")
    words.add_argument("--force", action="store_true", help="compare what would mislead, and label it")
    words.add_argument("--json", action="store_true", help="print every number, unrounded, as JSON")
    return words


def question_of(given: argparse.Namespace) -> Question:
    """Return the question that the arguments ask. Raises ValueError."""
    where: dict[str, Any] = {}
    for word in given.where:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--where {word}: must be KEY=VALUE")
        where.setdefault(key, []).extend(value.split(","))
    return Question(
        by=tuple(key.strip() for key in (given.by or "").split(",") if key.strip()),
        metric=given.metric,
        at=given.at,
        baseline=given.baseline,
        where=where,
        pick=given.pick,
        bootstrap=given.bootstrap,
        force=given.force,
    )
