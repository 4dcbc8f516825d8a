"""`burgersgd verify`: measures every equation of the paper's derivation and prints one table.

With --sabotage the functions that each row names are made wrong, one after the other, and the row has to fail.

Exit codes: 0 all rows hold; 1 a row fails (with --sabotage: a row holds although a function is wrong); 2 wrong usage
(reported in one line, and nothing is created); 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import math
import platform
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from burgersgd.theory import (  # noqa: F401  (register checks)
    sabotage,
    verify_cole_hopf,
    verify_entropy,
    verify_pde,
    verify_sde,
    verify_trainer,
)
from burgersgd.theory.verify_rows import CHECKS, GROUPS, Row, forget_experiments

MIN_WIDTH, MAX_WIDTH = 100, 160


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of running checks."""

    rows: list[Row]
    seconds: dict[str, float]  # duration of every check

    @property
    def passed(self) -> bool:
        """Whether there is at least one row and all rows hold."""
        return bool(self.rows) and all(row.passed for row in self.rows)


class _Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument]  (generic in the stubs only)
    monitor_interval = 0  # no tqdm monitor thread


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def select(names: Sequence[str]) -> list[str]:
    """Return the full names of the checks selected by names of groups or checks ("group.name"); no names select all.

    Raises ValueError for an unknown name.
    """
    for name in names:
        if name not in GROUPS and name not in CHECKS:
            group = name.partition(".")[0]
            allowed = [n for n in CHECKS if n.startswith(f"{group}.")] if group in GROUPS else GROUPS
            raise ValueError(f"{name}: no such check; must be one of {', '.join(allowed)} (verify --list shows all)")
    chosen = [n for n in CHECKS if not names or n in names or n.partition(".")[0] in names]
    return sorted(chosen, key=lambda n: GROUPS.index(n.partition(".")[0]))  # stable: checks stay in order


def progress(names: Sequence[str], unit: str) -> Iterator[str]:
    """Yield the names, with a progress bar on standard error that shows the current one."""
    live = sys.stderr.isatty()
    bar = _Bar(names, file=sys.stderr, unit=unit, ncols=90, leave=False, mininterval=0.1 if live else 2)
    for name in bar:
        bar.set_description(name, refresh=live)
        yield name


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: 20,000 paths gain little from a second one, and wait for it if no core is free."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(names: Sequence[str]) -> Report:
    """Run the checks with these full names; a check that raises an exception becomes a row that fails."""
    forget_experiments()
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    for name in progress(names, "check"):
        started = time.perf_counter()
        try:
            found = CHECKS[name]()
        except Exception as error:  # the other checks must still run
            text = f"the check stopped: {type(error).__name__}: {error}"
            found = [Row("", "", text, math.nan, math.nan, "", "a check must not raise", False)]
        rows += [dataclasses.replace(row, check=name) for row in found]
        seconds[name] = time.perf_counter() - started
    return Report(rows, seconds)


# ------------------------------------------------------------------------------------------------------------- output


def number(value: float) -> str:
    """Return a number in at most 10 characters."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.5g}"
    return f"{value:.1e}"


def cells(row: Row) -> list[str]:
    """Return equation, statement, measured number, expected number, tolerance with its reason, and verdict."""
    printed = "" if row.printed is None else f"\nprinted: {row.printed:.3g}"
    label = f"({row.equation})" if row.equation else ""
    why = f"{row.tolerance}: {row.reason}"
    return [label, row.statement, number(row.measured) + printed, number(row.expected), why, row.verdict]


def by_group(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield each group that has rows, with its rows."""
    for group in GROUPS:
        chosen = [row for row in rows if row.check.startswith(f"{group}.")]
        if chosen:
            yield group, chosen


def table(report: Report, width: int | None = None) -> str:
    """Return the table as plain text, wrapped to the width of the terminal (100 columns at least)."""
    width = min(max(width or shutil.get_terminal_size((MIN_WIDTH, 24)).columns, MIN_WIDTH), MAX_WIDTH)
    fixed = {"equation": 8, "measured": 16, "expected": 10, "verdict": 9}
    free = width - sum(fixed.values()) - 2 * 5
    statement = free * 55 // 100
    widths = [fixed["equation"], statement, fixed["measured"], fixed["expected"], free - statement, fixed["verdict"]]

    def line(texts: Iterable[str]) -> list[str]:
        wrapped = [
            [part for line in text.split("\n") for part in (textwrap.wrap(line, w) or [""])]
            for text, w in zip(texts, widths, strict=True)
        ]
        return [
            "  ".join(p.ljust(w) for p, w in zip(parts, widths, strict=True)).rstrip()
            for parts in itertools.zip_longest(*wrapped, fillvalue="")
        ]

    lines = line(["equation", "statement", "measured", "expected", "tolerance: reason", "verdict"]) + ["=" * width]
    for group, rows in by_group(report.rows):
        seconds = sum(s for name, s in report.seconds.items() if name.startswith(f"{group}."))
        lines += [f"{group}: {len(rows)} rows, {seconds:.1f} s", "-" * width]
        lines += [text for row in rows for text in line(cells(row))]
        lines.append("-" * width)
    return "\n".join(lines)


def summary(report: Report) -> str:
    """Return a one-line summary, followed by one line for each row that fails."""
    failed = [row for row in report.rows if not row.passed]
    misprints = sum(row.passed and row.printed is not None for row in report.rows)
    text = f"{len(report.rows) - len(failed)} of {len(report.rows)} rows hold, {misprints} of them confirm a misprint"
    return "\n".join([text, *(f"FAILS: {row.check} ({row.equation}) {row.statement}" for row in failed)])


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values for JSON; numbers that are not finite become None."""
    versions = {name: __import__(name).__version__ for name in ("numpy", "scipy", "torch")}
    rows = []
    for row in report.rows:
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(row).items()}
        rows.append({**values, "verdict": row.verdict})
    return {
        "passed": report.passed,
        "seconds": {name: round(s, 3) for name, s in report.seconds.items()},
        "versions": {"python": platform.python_version(), **versions},
        "rows": rows,
    }


def as_markdown(report: Report, figures: dict[str, str]) -> str:
    """Return the report as Markdown; figures: file name -> caption."""
    parts = ["# The paper, checked", "", f"`burgersgd verify`: {summary(report)}", ""]
    for group, rows in by_group(report.rows):
        parts += [f"## {group}", "", "| equation | statement | measured | expected | tolerance: reason | verdict |"]
        parts += ["|---|---|---|---|---|---|"]
        for row in rows:
            texts = (text.replace("|", "\\|").replace("\n", "; ") for text in cells(row))
            parts.append(f"| {' | '.join(texts)} |")
        parts.append("")
    for name, caption in figures.items():
        parts += [f"![{caption}]({name})", "", caption, ""]
    return "\n".join(parts)


def listing() -> str:
    """Return the groups and their checks, each with the first line of its docstring."""
    lines = []
    for group in GROUPS:
        lines.append(group)
        for name in CHECKS:
            if name.startswith(f"{group}."):
                says = (CHECKS[name].__doc__ or "").strip().splitlines()
                lines.append(f"  {name:<40} {says[0] if says else ''}".rstrip())
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------ command line


def main(arguments: list[str]) -> int:
    """Run `burgersgd verify` with these arguments (without the word verify) and return the exit code."""
    parser = _Parser(prog="burgersgd verify", description="Check the paper, equation by equation.")
    parser.add_argument("names", nargs="*", help="groups or checks (default: all); --list names them")
    parser.add_argument("--list", action="store_true", help="print the names of the checks and stop")
    parser.add_argument(
        "--sabotage", action="store_true", help="replace each checked function by a wrong one: its rows must fail"
    )
    parser.add_argument(
        "--plots", action=argparse.BooleanOptionalAction, default=True, help="draw the figures (default), or not"
    )
    parser.add_argument("--output", default="outputs/verify", metavar="DIR", help="folder for JSON, Markdown, figures")
    try:
        options = parser.parse_args(arguments)
        names = select(options.names)
        if options.list:
            print(listing())
            return 0
        folder = Path(options.output)
        if not options.sabotage:
            folder.mkdir(parents=True, exist_ok=True)
    except SystemExit as help_printed:
        return int(help_printed.code or 0)
    except OSError as error:
        print(f"burgersgd: error: --output {error.filename}: must be a folder ({error.strerror})", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"burgersgd: error: {error}", file=sys.stderr)
        return 2

    try:
        with one_thread():
            if options.sabotage:
                return 0 if all_notice(names) else 1
            report = measure(names, folder, options.plots)
    except KeyboardInterrupt:
        print("\nburgersgd: interrupted", file=sys.stderr)  # below the bar
        return 130
    return 0 if report.passed else 1


def all_notice(names: Sequence[str]) -> bool:
    """Make each function that a row of these checks names wrong, print the failures; return whether there are none.

    It is a failure if a row fails while its functions are right, or holds while one of them is wrong.
    """
    report, tried = run(names), 0
    failed = [str(row.statement) for row in report.rows if not row.passed]
    for name in progress(names, "check"):
        for trial in sabotage.trials(name, [row for row in report.rows if row.check == name and row.passed]):
            tried += 1
            if not trial.passed:
                failed.append(str(trial))
    print("\n".join(f"FAILS: {text}" for text in failed))
    print(f"{tried} times a function was wrong, {len(report.rows)} rows; {len(failed)} failures")
    return not failed


def measure(names: Sequence[str], folder: Path, plots: bool) -> Report:
    """Run the checks, print the table, and write JSON, Markdown and, if asked for, figures into the folder."""
    started = time.perf_counter()
    report = run(names)
    print(table(report))
    figures: dict[str, str] = {}
    if plots and importlib.util.find_spec("matplotlib") is None:
        print("no figures: they need matplotlib (pip install matplotlib)", file=sys.stderr)
    elif plots:
        from burgersgd.theory import figures as drawing

        groups = {name.partition(".")[0] for name in names}
        chosen = [name for name, (group, _) in drawing.FIGURES.items() if group in groups]
        figures = drawing.draw(folder, progress(chosen, "figure"))
    (folder / "verify.json").write_text(json.dumps(as_json(report), indent=1) + "\n", encoding="utf-8")
    (folder / "verify.md").write_text(as_markdown(report, figures) + "\n", encoding="utf-8")
    print(summary(report))
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s; verify.json, verify.md and {len(figures)} figures in {folder}")
    return report
