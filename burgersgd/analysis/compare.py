"""The comparison of runs: which runs are compared, how, and which comparisons are refused.

Settings are picked by validation and reported by test. Runs with different data, different budgets or unfinished
schedules are not compared unless this is forced, and then a warning says so. See docs/compare.md.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from burgersgd.analysis.notes import notes_of
from burgersgd.analysis.question import Question, check_alike, check_pick
from burgersgd.analysis.rows import Row, difference_of, planned, row_of
from burgersgd.analysis.runs import NAMED_GROUPS, SEEDS, Run, Runs, grouped, matches, shown
from burgersgd.analysis.statistics import ALPHA, holm, minimum_detectable, probability_of_improvement
from burgersgd.analysis.values import At, check, measure, smallest_denominator

STRATA = ("trainer.budget", "trainer.epochs")
"""Keys, besides those of the data, that split a comparison into blocks: nothing is compared across blocks."""


@dataclass(frozen=True)
class Block:
    """The rows on one data set (and budget), in order; nothing is compared across blocks."""

    key: tuple[Any, ...]
    label: str
    rows: tuple[Row, ...]
    percent: bool
    n_test: int
    """Number of examples of the test part; 0 if it is unknown."""
    by_split: bool

    def baseline(self, key: tuple[Any, ...] | None) -> Row | None:
        """Return the row that the others are compared with."""
        return next((row for row in self.rows if row.key == key), None)


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison: blocks of rows, the compared runs, and everything that a reader has to know."""

    question: Question
    runs: Runs
    """The compared runs: those selected by `where`, without repetitions."""
    by: tuple[str, ...]
    """Keys whose values make a row."""
    strata: tuple[str, ...]
    """Keys whose values make a block."""
    blocks: tuple[Block, ...]
    baseline: tuple[Any, ...] | None
    family: int
    """Number of comparisons that p_holm is adjusted for."""
    picked_keys: tuple[str, ...]
    """Keys that distinguish the settings of a row."""
    improvement: dict[tuple[Any, ...], float]
    """Row -> probability of improvement over the baseline, averaged over the data sets."""
    others: tuple[float, ...]
    """p-values of the comparisons that `where` left out, which p_holm counts; nan if a comparison has none."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    """Reasons against the comparison that --force overruled."""

    def __str__(self) -> str:
        from burgersgd.analysis.tables import text

        return text(self)

    @property
    def at(self) -> At:
        """The point of a run at which the metric is taken."""
        return At.parse(self.question.at)


def compare(runs: Runs, question: Question) -> Comparison:
    """Answer a question about runs.

    Raises RefusedError if the answer would mislead, ValueError for unknown keys, metrics and baselines.
    """
    at = At.parse(question.at)
    warnings: list[str] = []
    check_pick(question, warnings)
    for key in (*question.by, *question.where):
        runs.check_key(key)
    everything, repeats = _without_repetitions(runs)
    kept = everything.where(question.where)
    if not len(kept):
        values = {k: tuple(map(str, v)) if isinstance(v, list) else v for k, v in question.where.items()}
        wanted = " ".join(f"{k}={shown(v)}" for k, v in values.items())
        raise ValueError(f"where {wanted}: none of the {len(everything)} runs has these settings")
    check(kept, question.metric, at)
    by = question.by or tuple(key for key in everything.differing() if key not in SEEDS)
    strata = tuple(key for key in by if key.startswith("dataset.") or key in (*STRATA, *question.within))
    by = tuple(key for key in by if key not in strata)
    blocks = _blocks(kept, question, by, strata, warnings)
    baseline = _baseline(question, by, blocks)
    family = _family(everything, by, strata, baseline)
    others = _left_out_p_values(everything, question, by, strata, blocks, baseline) if question.where else []
    blocks = _with_differences(blocks, baseline, family, others, at.kind == "budget")
    comparison = Comparison(
        question=question,
        runs=kept,
        by=by,
        strata=strata,
        blocks=tuple(blocks),
        baseline=baseline,
        family=family,
        picked_keys=tuple(k for k in kept.differing() if k not in (*SEEDS, *by, *strata)),
        improvement=_improvement(blocks, baseline),
        others=tuple(others),
        notes=(),
        warnings=tuple(dict.fromkeys(warnings)),
    )
    return replace(comparison, notes=tuple(notes_of(comparison, repeats)))


def _without_repetitions(runs: Runs) -> tuple[Runs, int]:
    """Return the runs without repetitions (same settings and seeds), and the number of dropped runs."""
    kept: dict[Any, Run] = {}
    for run in runs:
        key = (run.setting(without=()), run.digest)
        other = kept.get(key)
        if other is None or _preference(run) > _preference(other):
            kept[key] = run
    return Runs(
        tuple(run for run in runs if kept[run.setting(without=()), run.digest] is run), runs.notes, runs.paths
    ), (len(runs) - len(kept))


def _preference(run: Run) -> tuple[int, str]:
    states = ("failed", "running", "interrupted", "pruned", "diverged", "completed")
    return states.index(run.state) if run.state in states else -1, str(run.status.get("updated"))


# ------------------------------------------------------------------------------------------------------ blocks, rows


def _blocks(
    runs: Runs, question: Question, by: tuple[str, ...], strata: tuple[str, ...], warnings: list[str]
) -> list[Block]:
    at, metric = At.parse(question.at), question.metric
    picked_at = At("end") if at.kind == "target" else at
    selection = None if question.pick == "none" else (lambda run: measure(run, question.pick, picked_at))
    blocks = []
    for key, members in grouped(runs, strata).items():
        label = words(strata, key)
        check_alike(members, question, label, warnings)
        by_split = len({run.split for run in members}) > 1
        rows = [
            row_of(
                row_key,
                words(by, row_key, short=True) or "all runs",
                group,
                lambda run: measure(run, metric, at),
                selection,
                by_split,
                question.bootstrap,
            )
            for row_key, group in grouped(members, by).items()
        ]
        percent = all(run.percent for run in members)
        blocks.append(
            Block(key, label, tuple(sorted(rows, key=Row.order)), percent, _n_test(members) if percent else 0, by_split)
        )
    return blocks


def words(keys: Sequence[str], values: Sequence[Any], short: bool = False) -> str:
    """Return keys and values as overrides; short: names without their key, and keys without their group."""
    parts = []
    for key, value in zip(keys, values, strict=True):
        group, _, name = key.rpartition(".")
        if short and name == "name" and group in NAMED_GROUPS:
            parts.append(shown(value))
        elif value is not None or not short:
            parts.append(f"{name if short else key}={shown(value)}")
    return " ".join(parts)


def _n_test(runs: Sequence[Run]) -> int:
    recorded = {run.status.get("n_test") for run in runs} - {None}
    if len(recorded) == 1 and isinstance(n := recorded.pop(), int):
        return n
    errors = [measure(run, "test_error", At("end")) for run in runs]
    return smallest_denominator(np.array(errors, dtype=np.float64))


# ------------------------------------------------------------------------------------------------- baseline, family


def _baseline(question: Question, by: tuple[str, ...], blocks: Sequence[Block]) -> tuple[Any, ...] | None:
    keys = list(dict.fromkeys(row.key for block in blocks for row in block.rows))
    wanted = question.baseline
    if wanted is None:
        sgd = [key for key in keys if dict(zip(by, key, strict=True)).get("optimizer.name") == "sgd"]
        return sgd[0] if len(sgd) == 1 and len(keys) > 1 else None
    parts = [part.rpartition("=")[::2] for part in wanted.replace(" ", ",").split(",") if part]

    def fits(key: tuple[Any, ...]) -> bool:
        values = list(zip(by, key, strict=True))
        return all(
            any(matches(v, value) and name in ("", k, k.rpartition(".")[2]) for k, v in values) for name, value in parts
        )

    found = [key for key in keys if fits(key)]
    exact = [key for key in found if len(parts) == sum(value is not None for value in key)]
    found = exact if len(exact) == 1 else found
    if len(found) != 1:
        rows = "; ".join(words(by, key, short=True) for key in keys[:12])
        raise ValueError(f"baseline={wanted}: must match exactly one row, matches {len(found)} of: {rows}")
    return found[0]


def _family(runs: Runs, by: tuple[str, ...], strata: tuple[str, ...], baseline: tuple[Any, ...] | None) -> int:
    """Return the number of rows that are compared with the baseline, including those that `where` leaves out."""
    rows = {(block, key) for block, members in grouped(runs, strata).items() for key in grouped(members, by)}
    return len([key for _, key in rows if key != baseline]) if baseline is not None else 0


def _left_out_p_values(
    everything: Runs,
    question: Question,
    by: tuple[str, ...],
    strata: tuple[str, ...],
    blocks: Sequence[Block],
    baseline: tuple[Any, ...] | None,
) -> list[float]:
    """Return the p-values of the comparisons that `where` leaves out; nan if a comparison has none."""
    if baseline is None:
        return []
    included = {(block.key, row.key) for block in blocks for row in block.rows}
    forced = replace(question, where={}, force=True)
    p_values = []
    for block in _blocks(everything, forced, by, strata, []):
        base = block.baseline(baseline)
        for row in block.rows:
            if (block.key, row.key) not in included and row.key != baseline:
                any_budget = At.parse(question.at).kind == "budget"
                p_values.append(math.nan if base is None else difference_of(row, base, any_budget).p)
    return p_values


def _with_differences(
    blocks: Sequence[Block], baseline: tuple[Any, ...] | None, family: int, others: Sequence[float], any_budget: bool
) -> list[Block]:
    if baseline is None:
        return list(blocks)
    differences = {}
    for block in blocks:
        base = block.baseline(baseline)
        for row in block.rows if base is not None else ():
            if row.key != baseline and base is not None:
                differences[block.key, row.key] = difference_of(row, base, any_budget)
    adjusted = holm([*(d.p for d in differences.values()), *others], family)
    alpha = ALPHA / max(1, family)
    for (place, d), p in zip(list(differences.items()), adjusted, strict=False):
        detectable = minimum_detectable(d.standard_error, d.df, alpha)
        differences[place] = planned(replace(d, p_holm=p), alpha, detectable)
    return [
        replace(
            block,
            rows=tuple(replace(row, difference=differences.get((block.key, row.key))) for row in block.rows),
        )
        for block in blocks
    ]


def _improvement(blocks: Sequence[Block], baseline: tuple[Any, ...] | None) -> dict[tuple[Any, ...], float]:
    """Return the probability of improvement of each row, averaged over blocks (Agarwal et al. 2021)."""
    found: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for block in blocks:
        base = block.baseline(baseline)
        for row in block.rows:
            if base is not None and row.key != baseline:
                found[row.key].append(probability_of_improvement(row.every, base.every))
    return {key: float(np.mean(values)) for key, values in found.items()}
