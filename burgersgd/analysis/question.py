"""The question of a comparison, and the refusal of comparisons whose answer would mislead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burgersgd.analysis.runs import SEEDS, Run, Runs, grouped, shown
from burgersgd.analysis.values import TEST_METRICS, At


class RefusedError(ValueError):
    """A comparison that would mislead; the message says in one line why, and what to do."""


@dataclass(frozen=True)
class Question:
    """The runs to compare, and how to compare them.

    by: the keys whose values make a row; empty: all that differ. metric: a number of status.json or a column of
    metrics.csv. at: see At. baseline: the value, or the comma-separated values, of the row with which the others are
    compared; None: sgd, if there is one such row. where: settings that runs must have. pick: the metric whose lowest
    mean picks a row's setting; none pools all settings. bootstrap: BCa intervals of the means instead of t intervals.
    force: also make comparisons that are refused otherwise. within: keys of `by` that split the comparison into blocks,
    as the keys of the data and the budget do; nothing is compared across blocks.
    """

    by: tuple[str, ...] = ()
    metric: str = "test_error"
    at: str = "end"
    baseline: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    pick: str = "validation_error"
    bootstrap: bool = False
    force: bool = False
    within: tuple[str, ...] = ()


def refuse(question: Question, warnings: list[str], reason: str) -> None:
    """Raise RefusedError or, if the question forces an answer, add the reason to the warnings."""
    if not question.force:
        raise RefusedError(f"{reason} (--force compares them anyway and marks the result)")
    warnings.append(f"FORCED: {reason}")


def check_pick(question: Question, warnings: list[str]) -> None:
    """Refuse to pick settings by a test metric, which is reported."""
    if question.pick in TEST_METRICS or question.pick.startswith("best_test"):
        refuse(
            question,
            warnings,
            f"pick={question.pick}: must be a metric of the validation part; settings must not be picked by test",
        )


def check_alike(runs: Sequence[Run], question: Question, label: str, warnings: list[str]) -> None:
    """Refuse to compare runs with different data, different budgets or unfinished schedules."""
    inside = f"{label}: " if label else ""
    unlike = [k for k in Runs(tuple(runs)).differing() if k.startswith("dataset.") and k not in SEEDS]
    if unlike:
        refuse(
            question,
            warnings,
            f"{inside}the runs use different data ({', '.join(unlike)} differ): add {unlike[0]} to --by for a table of"
            f" each, or select one by --where {unlike[0]}=...",
        )
    for split, group in grouped(runs, ("dataset.seed",)).items():
        digests = {run.digest for run in group if run.digest}
        if len(digests) > 1 and not unlike:
            refuse(
                question,
                warnings,
                f"{inside}the runs have the same settings, but were trained on different data ({len(digests)} digests"
                f" with dataset.seed={shown(split[0])})",
            )
    _check_budgets(runs, question, inside, warnings)


def _check_budgets(runs: Sequence[Run], question: Question, inside: str, warnings: list[str]) -> None:
    at = At.parse(question.at)
    budgets = sorted((run.budget, run.cycle) for run in runs if not math.isnan(run.budget))
    if at.kind == "budget":
        for run in runs:
            why = depends_on_budget(run.settings)
            if why is not None and run.budget - at.value >= run.cycle:
                refuse(
                    question,
                    warnings,
                    f"{inside}at={at} is before the end of runs of {run.budget:,.0f} gradient evaluations whose"
                    f" {why} is then not finished: compare at=end, or train runs of that budget",
                )
                return
    elif budgets and budgets[-1][0] - budgets[0][0] >= max(cycle for _, cycle in budgets):
        refuse(
            question,
            warnings,
            f"{inside}the budgets differ ({budgets[0][0]:,.0f} to {budgets[-1][0]:,.0f} gradient evaluations): use"
            f" --at budget={budgets[0][0]:.0f}, or add trainer.budget to --by for a table of each",
        )


def depends_on_budget(settings: Mapping[str, Any]) -> str | None:
    """Return the setting that makes a run depend on its budget before it is spent; None if there is none."""
    if settings.get("schedule.warmup"):
        return "schedule.warmup"
    if settings.get("schedule.name", "constant") not in ("constant", "warmup"):
        return f"schedule={settings['schedule.name']}"
    if settings.get("optimizer.nu_annealing", "constant") != "constant":
        return "optimizer.nu_annealing"
    if settings.get("optimizer.name") == "paper_literal" and settings.get("optimizer.period", 1) is None:
        return "optimizer.period=null"
    return None
