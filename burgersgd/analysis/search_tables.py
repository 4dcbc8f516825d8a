"""Further tables of a comparison: tuning curves, performance profiles, importance of settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from burgersgd.analysis.compare import Block, Comparison
from burgersgd.analysis.importance import importance_of
from burgersgd.analysis.profiles import LONGEST, Key, profiles_of
from burgersgd.analysis.rows import Row
from burgersgd.analysis.runs import SEEDS, Run, Runs
from burgersgd.analysis.tables import Form, Table, fixed
from burgersgd.analysis.tuning import TuningCurve, curve_of
from burgersgd.analysis.values import TEST_METRICS, At, measure

END = At("end")


def tuned_by(c: Comparison) -> str:
    """Return the metric by which trials are picked."""
    return "validation_error" if c.question.pick == "none" else c.question.pick


def reported(c: Comparison) -> str:
    """Return the metric that is reported for the best trial."""
    return c.question.metric if c.question.metric in TEST_METRICS else "test_error"


def curve(c: Comparison, row: Row) -> TuningCurve:
    """Return the tuning curve of a row."""
    return curve_of(row.group, lambda run: measure(run, tuned_by(c), END), lambda run: measure(run, reported(c), END))


def tuning_tables(c: Comparison) -> list[Table]:
    """Return a table per block with the expected best result of n = 1, 2, 4, ... trials of each row."""
    tables = []
    for block in c.blocks:
        form = Form(100, "%", 2) if block.percent and tuned_by(c).endswith("error") else Form(1, "", 4)
        rows, cautions = [], dict[str, None]()
        for row in block.rows:
            found = curve(c, row)
            n_all = len(found.trials)
            cautions |= {found.caution: None} if found.caution else {}
            for n in sorted({*(2**k for k in range(20) if 2**k < n_all), n_all} - {0}):
                kind = found.kind if n > found.medians_until else "median, trials diverged"
                values = found.validation[n - 1], found.test[n - 1]
                numbers = [form.number(float(v)) for v in values]
                ends = found.ranges[n - 1]
                rows.append(
                    (
                        row.label,
                        str(n),
                        f"{found.cost[n - 1]:,.0f}",
                        numbers[0],
                        form.interval(ends),
                        numbers[1],
                        kind,
                    )
                )
        unit = f" {form.unit}" if form.unit else ""
        columns = (
            "best of n trials",
            "n",
            "gradient evaluations",
            f"{tuned_by(c).replace('_', ' ')}{unit}",
            "80 % of searches",
            f"{reported(c).replace('_', ' ')}{unit}",
            "kind",
        )
        title = "; ".join([_title("tuning curve", block), *cautions])
        tables.append(Table(title, columns, tuple(rows)))
    return tables


def profile_table(c: Comparison, cost: Mapping[Key, Mapping[Key, float]] | None = None) -> Table | None:
    """Return the areas under the profiles at each relaxation of the targets; None with fewer than two data sets."""
    found = profiles_of(c, cost)
    if not found:
        return None
    clocks = list(dict.fromkeys(p.clock for p in found))
    rows = []
    for i, label in enumerate(found[0].labels):
        for clock in clocks:
            of_clock = [p for p in found if p.clock == clock]
            rows.append((label, clock, *(f"{fixed(float(p.areas[i]), 3)} ({p.ranks[i]})" for p in of_clock)))
    columns = (
        "area under the profile (rank)",
        "clock",
        *(f"target x {p.relaxation:g}" for p in found if p.clock == clocks[0]),
    )
    title = f"performance profiles, {len(c.blocks)} problems, up to {LONGEST:g} times the fastest"
    return Table(title, columns, tuple(rows))


def rank_changes(c: Comparison, cost: Mapping[Key, Mapping[Key, float]] | None = None) -> list[str]:
    """Return sentences on rows whose rank differs between the clock of evaluations and that of seconds."""
    found = {(p.clock, p.relaxation): p for p in profiles_of(c, cost)}
    if not found:
        return []
    if not any(clock == "seconds" for clock, _ in found):
        return ["no ranks by seconds, because the cost of a gradient evaluation was not measured (--cost)"]
    lines = []
    for (clock, relaxation), p in found.items():
        if clock == "evaluations":
            other = found["seconds", relaxation].ranks
            moved = [f"{p.labels[i]} {a} -> {b}" for i, (a, b) in enumerate(zip(p.ranks, other, strict=True)) if a != b]
            if moved:
                lines.append(f"rank by seconds instead of evaluations, target x {relaxation:g}: {', '.join(moved)}")
    return lines or ["every row has the same rank by evaluations and by seconds"]


def cost_folders(c: Comparison) -> dict[tuple[Key, Key], Path]:
    """Return block and row -> a run folder whose cost represents the row."""
    return {(block.key, row.key): row.runs[0].folder for block in c.blocks for row in block.rows}


def cost_tables(c: Comparison, rounds: Mapping[tuple[Key, Key], Sequence[float]]) -> list[Table]:
    """Return tables of each row's cost per gradient evaluation, and of the seconds its evaluations take at that cost.

    rounds: block and row -> seconds per gradient evaluation in every round; a round times the rows in turn.
    """
    tables = []
    for block in c.blocks:
        base, rows = block.baseline(c.baseline) or block.rows[0], []
        reference = np.array(rounds[block.key, base.key])
        for row in block.rows:
            costs = np.array(rounds[block.key, row.key])
            spent = row.median if c.at.kind == "target" else c.at.value if c.at.kind == "budget" else row.runs[0].budget
            rows.append(
                (
                    row.label,
                    f"{1e6 * float(np.median(costs)):.3g}",
                    f"{1e6 * costs.min():.3g} to {1e6 * costs.max():.3g}",
                    fixed(float(np.median(costs / reference)), 2),
                    "inf" if math.isinf(spent) else f"{spent:,.0f}",
                    f"{spent * float(np.median(costs)):.3g}",
                )
            )
        columns = (
            "cost",
            "microseconds per evaluation",
            f"range of {len(reference)} rounds",
            f"times {base.label}",
            "evaluations" + (" to the target (median)" if c.at.kind == "target" else ""),
            "seconds at that cost",
        )
        tables.append(
            Table(_title("cost of one run alone, timed in turn on this machine", block), columns, tuple(rows))
        )
    return tables


def median_costs(rounds: Mapping[tuple[Key, Key], Sequence[float]]) -> dict[Key, dict[Key, float]]:
    """Return block -> row -> median seconds per gradient evaluation."""
    found: dict[Key, dict[Key, float]] = {}
    for (block, row), costs in rounds.items():
        found.setdefault(block, {})[row] = float(np.median(np.array(costs)))
    return found


def importance_tables(c: Comparison) -> list[Table]:
    """Return, for each row with enough settings, a table of how much of the validation error each key explains."""
    tables = []
    for block in c.blocks:
        rows = []
        for row in block.rows:
            keys = varied_keys(row)
            found = importance_of(row.group, keys, lambda run: measure(run, tuned_by(c), END))
            if found is not None:
                r2 = fixed(found.explained, 2)
                rows += [
                    (row.label, key, fixed(share, 2), str(found.n_settings), r2) for key, share in found.shares.items()
                ]
        if rows:
            columns = ("which settings matter", "key", "share", "settings", "R2 out of bag")
            tables.append(Table(_title("importance", block), columns, tuple(rows)))
    return tables


def varied_keys(row: Row) -> list[str]:
    """Return the keys that differ among the runs of a row, except seeds."""
    return [key for key in Runs(row.group).differing() if key not in SEEDS]


def mean_validation(c: Comparison, runs: list[Run]) -> float:
    """Return the mean of the metric by which trials are picked, +inf if a run diverged, nan without runs."""
    values = [v for run in runs if not math.isnan(v := measure(run, tuned_by(c), END))]
    return sum(values) / len(values) if values else math.nan


def _title(what: str, block: Block) -> str:
    return f"{what}, {block.label}" if block.label else what
