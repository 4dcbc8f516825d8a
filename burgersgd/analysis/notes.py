"""Notes below the tables of a comparison: facts that a reader has to know besides the numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from burgersgd.analysis.rows import difference_of
from burgersgd.analysis.runs import Run, shown
from burgersgd.analysis.statistics import ALPHA, standard_error_of_share
from burgersgd.analysis.values import At, curve_problem, measure

MOST_LINES = 5
"""Largest number of runs without a value that are named one by one."""

if TYPE_CHECKING:
    from burgersgd.analysis.compare import Block, Comparison


def notes_of(c: Comparison, repeats: int) -> list[str]:
    """Return the notes of a comparison; repeats: the number of runs dropped because they repeat others."""
    question, at = c.question, c.at
    notes = list(c.runs.notes)
    if repeats:
        notes.append(f"{repeats} runs repeat others (same settings and seeds) and are counted once")
    unusable = [line for run in c.runs if (line := _no_value(run, question.metric, at))]
    notes += unusable[:MOST_LINES]
    if len(unusable) > MOST_LINES:
        notes.append(f"... and {len(unusable) - MOST_LINES} more runs are left out for such reasons")
    codes = sorted({str(run.status["code"]) for run in c.runs if run.status.get("code")})
    if len(codes) > 1:
        notes.append(f"the runs were trained by {len(codes)} versions of the code: {', '.join(codes[:MOST_LINES])}")
    unfinished = [run for run in c.runs if run.state in ("running", "interrupted")]
    if unfinished and at.kind in ("end", "best"):
        notes.append(
            f"{len(unfinished)} runs are not finished and not counted (burgersgd train resume=RUN finishes one)"
        )
    for block in c.blocks:
        notes += _block_notes(c, block)
    return list(dict.fromkeys(notes))


def _no_value(run: Run, metric: str, at: At) -> str:
    """Return the reason why a finished run has no value; empty if it has one, or is not finished."""
    if run.state != "completed" or not math.isnan(measure(run, metric, at)):
        return ""
    return f"{curve_problem(run) or f'{run.folder}: {metric} has no value at {at}'}; this run is left out"


def _block_notes(c: Comparison, block: Block) -> list[str]:
    notes, inside = [], f"{block.label}: " if block.label else ""
    for row in block.rows:
        notes += [f"{inside}{row.label}: {note}" for note in row.notes]
        if row.n_settings > 1 and c.question.metric == c.question.pick:
            notes.append(
                f"{inside}{row.label}: picked out of {row.n_settings} settings by the reported numbers: optimistic"
            )
        if len(row.values) == 1:
            notes.append(f"{inside}{row.label}: n = 1, so the spread is unknown")
        d = row.difference
        if d is not None and d.n_unpaired:
            notes.append(f"{inside}{row.label}: {d.n_unpaired} runs have no partner of the same seed in the other row")
    seeds = {run.split for run in block.rows[0].runs} if block.rows else set()
    if block.by_split:
        notes.append(f"{inside}several splits (dataset.seed): n counts splits, and a setting is picked for each split")
    elif block.n_test and c.question.metric in ("test_error", "validation_error"):
        rates = [row.mean for row in block.rows if not math.isnan(row.mean)]
        error = standard_error_of_share(min(rates), block.n_test) if rates else math.nan
        if c.question.metric == "test_error" and not math.isnan(error):
            notes.append(
                f"{inside}all runs share one split (dataset.seed={shown(next(iter(seeds), None))}): the results hold"
                f" for its {block.n_test:,} test examples; with others, the standard error is {100 * error:.2g} points"
            )
    if (inclusion := inclusion_check(c, block)) is not None:
        notes.append(f"{inside}{inclusion}")
    return notes


def inclusion_check(c: Comparison, block: Block) -> str | None:
    """Return a warning if sgd beats local_entropy, which contains it, in the paired test; None if it does not.

    With inner_steps=1, gamma=.inf, nu=0 local_entropy is sgd: if it is tuned over a space that contains this setting,
    with enough trials, it cannot be worse.
    """
    if [key for key in c.by if key.startswith("optimizer.")] != ["optimizer.name"]:
        return None  # the rows are single settings, which are not tuned
    column = c.by.index("optimizer.name")
    rest = [(row, row.key[:column] + row.key[column + 1 :], row.key[column]) for row in block.rows]
    for row, others, name in rest:
        sgd = next((r for r, o, n in rest if n == "sgd" and o == others), None)
        if name != "local_entropy" or sgd is None:
            continue
        d = difference_of(row, sgd)
        if d.test != "Welch" and d.p < ALPHA and (d.mean > 0 or row.n_lost > sgd.n_lost):
            several = max(row.n_settings, sgd.n_settings) > 1  # otherwise the settings were chosen elsewhere
            tried = f" ({row.n_settings} settings tried against {sgd.n_settings})" if several else ""
            return (
                f"sgd beats local_entropy (p = {d.p:.2g}, {d.test}) although it is a special case of it (inner_steps=1,"
                f" gamma=.inf, nu=0): the search space or the number of trials is too small{tried}"
            )
    return None
