"""`burgersgd compare PATH...`: makes a table of run folders on the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from burgersgd.analysis import search_tables
from burgersgd.analysis.compare import Comparison, compare
from burgersgd.analysis.question import Question
from burgersgd.analysis.report import report
from burgersgd.analysis.runs import load
from burgersgd.analysis.tables import Table, all_notes, as_csv, as_json, as_latex, as_markdown, as_text, tables_of, text

EPILOG = """\
examples:
  burgersgd compare outputs/multirun/NAME                          a row for every setting
  burgersgd compare NAME --by optimizer.name --baseline sgd        each optimizer at its best setting by validation
  burgersgd compare 'outputs/2026-*' --by optimizer.name,schedule.name --at best
  burgersgd compare NAME --by optimizer.name --metric validation_error --at target=5%
docs/compare.md explains every column.
"""


MeasureCost = Callable[[list[Path]], list[list[float]]]
Costs = dict[tuple[Any, ...], dict[tuple[Any, ...], float]]
"""Block -> row -> seconds per gradient evaluation."""


def main(arguments: Sequence[str], measure_cost: MeasureCost | None = None) -> int:
    """Run `burgersgd compare`. Raises ValueError with a one-line message if the runs cannot be compared.

    measure_cost: times the configurations of run folders in turn, and returns seconds per gradient evaluation for each,
    one number per round. It is an argument because it has to train, which this package cannot do.
    """
    given = parser().parse_args(arguments)
    for name in given.save:
        if Path(name).suffix not in WRITERS:
            raise ValueError(f"--save {name}: must end in {', '.join(WRITERS)}")
    comparison = compare(load(*given.path), question_of(given))
    rounds, cost = {}, None
    if given.cost:
        if measure_cost is None:
            raise ValueError("--cost: can be measured only by the command burgersgd compare")
        folders = search_tables.cost_folders(comparison)
        rounds = dict(zip(folders, measure_cost(list(folders.values())), strict=True))
        cost = search_tables.median_costs(rounds)
    more = _more_tables(given, comparison, cost)
    more += search_tables.cost_tables(comparison, rounds) if rounds else []
    print(as_json(comparison) if given.json else "\n\n".join([text(comparison), *map(as_text, more)]))
    written = [_save(Path(name), comparison, more) for name in given.save]
    if given.html:
        path = Path(given.html)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["burgersgd", "compare", *arguments])
        path.write_text(report(comparison, command, more), encoding="utf-8")
        written.append(path)
    if given.figures or given.heat:
        written += _figures(given, comparison, cost)
    if given.profiles and not given.json:
        print("\n" + "\n".join(f"- {line}" for line in search_tables.rank_changes(comparison, cost)))
    for path in written:
        print(f"written: {path}", file=sys.stderr)
    return 0


def _more_tables(given: argparse.Namespace, comparison: Comparison, cost: Costs | None) -> list[Table]:
    tables = []
    if given.tuning_curve:
        tables += search_tables.tuning_tables(comparison)
    if given.profiles:
        profiles = search_tables.profile_table(comparison, cost)
        if profiles is None:
            raise ValueError("--profiles: needs runs on two data sets or more (--by dataset.name,optimizer.name)")
        tables.append(profiles)
    if given.importance:
        tables += search_tables.importance_tables(comparison)
    return tables


def _save(path: Path, comparison: Comparison, more: Sequence[Table]) -> Path:
    tables = [*tables_of(comparison), *more]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WRITERS[path.suffix](comparison, tables) + "\n", encoding="utf-8")
    return path


WRITERS: dict[str, Callable[[Comparison, Sequence[Table]], str]] = {
    ".csv": lambda comparison, tables: as_csv(comparison).rstrip("\n"),
    ".json": lambda comparison, tables: as_json(comparison),
    ".md": lambda comparison, tables: "\n\n".join(
        [*map(as_markdown, tables), "\n".join(f"- {line}" for line in all_notes(comparison))]
    ),
    ".tex": lambda comparison, tables: "\n\n".join(map(as_latex, tables)),
}
"""File suffix -> function that returns the contents of such a file."""


def _figures(given: argparse.Namespace, comparison: Comparison, cost: Costs | None) -> list[Path]:
    from burgersgd.analysis import figures

    folder, found = Path(given.figures or "."), {}
    if given.figures:
        found |= figures.figures_of(comparison, cost)
    if given.heat:
        x, comma, y = given.heat.partition(",")
        if not comma:
            raise ValueError(f"--heat {given.heat}: must be KEY,KEY")
        found[f"heat_{x}_{y}"] = figures.heat_map(comparison, x, y)
    paths = [folder / f"{name}.{given.format}" for name in found]
    for figure, path in zip(found.values(), paths, strict=True):
        figures.save(figure, path)
    return paths


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    words = argparse.ArgumentParser(
        prog="burgersgd compare",
        description="Compare runs: means with intervals, paired differences, and the smallest detectable differences.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "path", nargs="+", metavar="PATH", help="run folder, folder of run folders, name of a sweep, or glob"
    )
    words.add_argument("--by", metavar="KEY,KEY", help="keys that distinguish the rows; default: all that differ")
    words.add_argument(
        "--metric", default="test_error", help="number in status.json or column of metrics.csv; default: test_error"
    )
    words.add_argument(
        "--at",
        default="end",
        help="end, best (by validation), budget=N, or target=E (then the cost of reaching E is compared)",
    )
    words.add_argument(
        "--baseline", metavar="ROW", help="row with which the others are compared, given by its values; default: sgd"
    )
    words.add_argument(
        "--where",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="use only runs with this setting; may be repeated",
    )
    words.add_argument(
        "--pick",
        default="validation_error",
        help="metric by which the best setting of each row is picked; none: pool all settings",
    )
    words.add_argument(
        "--bootstrap", action="store_true", help="use BCa bootstrap intervals of the means instead of t intervals"
    )
    words.add_argument("--force", action="store_true", help="make comparisons that would mislead, and mark them")
    words.add_argument("--json", action="store_true", help="print every number, unrounded, as JSON")
    words.add_argument(
        "--tuning-curve", action="store_true", help="print the best result of n trials as a function of n"
    )
    words.add_argument("--profiles", action="store_true", help="print performance profiles over several data sets")
    words.add_argument("--importance", action="store_true", help="print how much of the error each key explains")
    words.add_argument(
        "--cost", action="store_true", help="measure the time of a gradient evaluation of each row, by training briefly"
    )
    words.add_argument(
        "--save",
        metavar="FILE",
        action="append",
        default=[],
        help="write the tables to a .csv, .md, .tex or .json file; may be repeated",
    )
    words.add_argument("--html", metavar="FILE", help="write a report: one file with tables, charts and raw values")
    words.add_argument("--figures", metavar="FOLDER", help="write all figures for which the runs have data")
    words.add_argument(
        "--heat", metavar="KEY,KEY", help="write a heat map over two keys (into the folder of --figures, or this one)"
    )
    words.add_argument("--format", choices=("png", "svg", "pdf"), default="png", help="format of the figures")
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
