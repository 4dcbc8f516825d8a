"""A comparison as tables: text for the terminal, Markdown, LaTeX (booktabs), CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from burgersgd.analysis.compare import Block, Comparison
from burgersgd.analysis.rows import Row, setting_words
from burgersgd.recording.files import plain_json

WIDTH = 110


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first column is aligned left, the others right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    codes: tuple[str, ...] = ()
    """The meaning of each column as a code for programs; empty if no program reads the table."""


@dataclass(frozen=True)
class Form:
    """The format of the values of a block: a factor, a unit, and the number of decimals."""

    factor: float
    unit: str
    decimals: int

    def number(self, value: float, sign: bool = False) -> str:
        """Return a value as text; halves are rounded away from zero, as in JavaScript."""
        return fixed(self.factor * value, self.decimals, sign)

    def interval(self, ends: tuple[float, float], sign: bool = False) -> str:
        """Return both ends as text; empty if they are unknown."""
        return "" if math.isnan(ends[0]) else f"{self.number(ends[0], sign)} to {self.number(ends[1], sign)}"


def fixed(value: float, decimals: int, sign: bool = False) -> str:
    """Return a number with this many decimals; nan is empty, infinity is inf."""
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    text = f"{rounded:f}"
    if not rounded:
        text = text.lstrip("-")
    return f"+{text}" if sign and rounded > 0 else text


def form_of(c: Comparison, block: Block) -> Form:
    """Return the format of the metric of a block."""
    if c.at.kind == "target" or c.question.metric == "evaluations":
        return Form(1, "", 0)
    if block.percent and c.question.metric.endswith("error"):
        return Form(100, "%", 2)
    sizes = [abs(row.mean) for row in block.rows if not math.isnan(row.mean) and row.mean]
    typical = math.floor(math.log10(sorted(sizes)[len(sizes) // 2])) if sizes else 0
    return Form(1, "", max(0, 3 - typical))


def metric_words(c: Comparison, block: Block) -> str:
    """Return a description of the values: the metric, its unit and when it was taken."""
    metric = c.question.metric.replace("_", " ")
    if not block.percent:
        metric = metric.replace("error", "RMSE")
    if c.at.kind == "target":
        value = f"{100 * c.at.value:g} %" if block.percent and "error" in metric else f"{c.at.value:g}"
        return f"gradient evaluations to {metric} {value}"
    when = {"end": "", "best": " at best", "budget": f" after {c.at.value:,.0f}"}[c.at.kind]
    unit = form_of(c, block).unit
    return metric + when + (f" {unit}" if unit else "")


def tables_of(c: Comparison) -> list[Table]:
    """Return the tables of a comparison: values, and differences to the baseline, of each block."""
    tables = []
    for block in c.blocks:
        tables.append(values_table(c, block))
        if (differences := differences_table(c, block)) is not None:
            tables.append(differences)
    if len(c.blocks) > 1 and c.improvement:
        tables.append(improvement_table(c))
    return tables


def values_table(c: Comparison, block: Block) -> Table:
    """Return the table of a block's rows."""
    form, lost = form_of(c, block), "missed" if c.at.kind == "target" else "diverged"
    failed, stopped, open_ = (
        any(row.counts.get(state) for row in block.rows for state in states)
        for states in (("failed",), ("pruned",), ("running", "interrupted"))
    )
    picked = any(row.n_settings > 1 for row in block.rows) and bool(c.picked_keys) and c.question.pick != "none"
    selection = c.question.pick != "none" and c.question.pick != c.question.metric
    columns = [
        " ".join(key.rpartition(".")[2] if not key.endswith(".name") else key.split(".")[0] for key in c.by) or "runs",
        *(["picked by validation", "of"] if picked else []),
        "n",
        metric_words(c, block),
        "95 % interval" + (" (BCa)" if c.question.bootstrap else " (t)"),
        "median",
        "sd",
        lost,
        *(["failed"] if failed else []),
        *(["stopped early"] if stopped else []),
        *(["not finished"] if open_ else []),
        *([_selection_words(c, block)] if selection else []),
    ]
    rows = []
    for row in block.rows:
        n, of = len(row.finite), n_of(block, row)
        rows.append(
            (
                row.label,
                *([setting_words(row, c.picked_keys), str(row.n_settings)] if picked else []),
                str(n) if n == of else f"{n} of {of}",
                form.number(row.mean),
                form.interval(row.interval),
                form.number(row.median),
                form.number(row.sd),
                str(row.n_lost),
                *([str(row.counts.get("failed", 0))] if failed else []),
                *([str(row.counts.get("pruned", 0))] if stopped else []),
                *([str(row.counts.get("running", 0) + row.counts.get("interrupted", 0))] if open_ else []),
                *([_selection(c, block, row)] if selection else []),
            )
        )
    codes = ["label", *(["picked", "of"] if picked else []), "n", "mean", "interval", "median", "sd", "lost"]
    codes += [name for name, is_shown in (("failed", failed), ("stopped", stopped), ("open", open_)) if is_shown]
    codes += ["selection"] if selection else []
    return Table(block.label, tuple(columns), tuple(rows), tuple(codes))


def n_of(block: Block, row: Row) -> int:
    """Return n, the number of runs, or of splits if the split is the unit."""
    return len(row.values) if block.by_split else len(row.runs)


def selection_form(c: Comparison, block: Block) -> Form:
    """Return the format of the means by which rows are ordered."""
    return Form(100, "%", 2) if block.percent and c.question.pick.endswith("error") else Form(1, "", 4)


def _selection_words(c: Comparison, block: Block) -> str:
    unit = selection_form(c, block).unit
    name = c.question.pick.replace("_", " ")
    return f"{name} {unit}".strip() if block.percent else name.replace("error", "RMSE")


def _selection(c: Comparison, block: Block, row: Row) -> str:
    return selection_form(c, block).number(row.selection)


def differences_table(c: Comparison, block: Block) -> Table | None:
    """Return the table of differences to the baseline; None if there is no baseline."""
    base = block.baseline(c.baseline)
    if base is None or len(block.rows) < 2:
        return None
    form = form_of(c, block)
    columns = (
        f"minus {base.label}",
        "pairs",
        f"difference {form.unit}".strip(),
        "95 % interval (unadjusted)",
        "test",
        "p",
        f"p (Holm, {c.family})",
        "P(better)",
        "detectable",
        "n for 80 %",
    )
    rows = []
    for row in block.rows:
        d = row.difference
        if d is not None:
            rows.append(
                (
                    row.label,
                    str(d.n_pairs if d.n_pairs > 1 else 0),
                    form.number(d.mean, sign=True),
                    form.interval(d.interval, sign=True),
                    d.test or "none",
                    p_words(d.p),
                    p_words(d.p_holm),
                    fixed(d.improvement, 2),
                    form.number(d.minimum_detectable),
                    "" if math.isnan(d.n_planning) else ">1e6" if math.isinf(d.n_planning) else f"{d.n_planning:.0f}",
                )
            )
    codes = ("label", "pairs", "difference", "d_interval", "test", "p", "p_holm", "better", "detectable", "planning")
    return Table(block.label, columns, tuple(rows), codes)


def improvement_table(c: Comparison) -> Table:
    """Return the probabilities of improvement, averaged over the data sets."""
    labels = {row.key: row.label for block in c.blocks for row in block.rows}
    base = labels.get(c.baseline or (), "")
    ordered = sorted(c.improvement.items(), key=lambda item: -item[1])
    rows = tuple((labels[key], fixed(value, 2)) for key, value in ordered)
    return Table(f"all {len(c.blocks)}", (f"against {base}", "P(better), mean over them"), rows)


def p_words(p: float) -> str:
    """Return a p-value as text."""
    return "" if math.isnan(p) else "<0.001" if p < 0.001 else fixed(p, 3)


EXPLAINED = (
    "rows in order of {order}; intervals are unadjusted; diverged or missed runs count as +inf in median, P(better) and"
    " the sign test, and not in mean, sd and interval"
)
DETECTABLE = (
    "detectable: the smallest true difference found with 80 % power by these pairs at alpha = 0.05 / {family};"
    " n for 80 %: pairs that would detect a difference as large as the observed one (for planning; not evidence)"
)


def explanations(c: Comparison) -> list[str]:
    """Return explanations of the columns."""
    order = "their values" if c.question.pick == "none" else f"mean {c.question.pick.replace('_', ' ')}"
    lines = [EXPLAINED.format(order=order)]
    if c.question.metric == "seconds":
        lines.append("the seconds of a run are those of its whole fleet; --cost measures the cost of an optimizer")
    if any(row.difference is not None for block in c.blocks for row in block.rows):
        lines.append(DETECTABLE.format(family=max(1, c.family)))
    return lines


# ------------------------------------------------------------------------------------------------------------ formats


def text(c: Comparison) -> str:
    """Return a comparison as text for the terminal."""
    parts = [textwrap.fill(warning, WIDTH) for warning in c.warnings]
    parts += [as_text(table) for table in tables_of(c)]
    notes = [*c.notes, *explanations(c)]
    parts.append("\n".join(textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  ") for note in notes))
    return "\n\n".join(parts)


def all_notes(c: Comparison) -> list[str]:
    """Return the text besides the numbers: forced reasons, notes, and explanations of the columns."""
    return [*c.warnings, *c.notes, *explanations(c)]


def as_text(table: Table) -> str:
    """Return a table in columns of equal width, headings wrapped."""
    headings = [
        textwrap.wrap(name, max(9, *(len(row[i]) for row in table.rows), 0), break_long_words=False) or [""]
        for i, name in enumerate(table.columns)
    ]
    widths = [
        max(len(cell) for cell in (*heading, *(row[i] for row in table.rows))) for i, heading in enumerate(headings)
    ]
    height = max(map(len, headings))
    lines = [[h[k - height + len(h)] if k >= height - len(h) else "" for h in headings] for k in range(height)]
    body = [*lines, ["-" * width for width in widths], *table.rows]
    shown = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        for cells in body
    ]
    return "\n".join([*([table.title, ""] if table.title else []), *(line.rstrip() for line in shown)])


def as_markdown(table: Table) -> str:
    """Return a table in Markdown."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    rule = "|---" + "|---:" * (len(table.columns) - 1) + "|"
    return "\n".join([*([f"**{table.title}**", ""] if table.title else []), lines[0], rule, *lines[1:]])


def as_latex(table: Table) -> str:
    r"""Return a table in LaTeX, for \usepackage{booktabs}."""
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in (table.columns, *table.rows)]
    title = [f"% {table.title}"] if table.title else []
    begin = rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}"
    return "\n".join([*title, begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"])


def _latex(cell: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in cell)


def records(c: Comparison) -> list[dict[str, Any]]:
    """Return every row as plain values by name, unrounded and in the metric's own unit."""
    found = []
    for block in c.blocks:
        for row in block.rows:
            d = row.difference
            record: dict[str, Any] = dict(zip((*c.strata, *c.by), (*block.key, *row.key), strict=True))
            record |= {
                "picked": setting_words(row, c.picked_keys),
                "settings": row.n_settings,
                "runs": len(row.runs),
                "n": len(row.finite),
                "mean": row.mean,
                "low": row.interval.low,
                "high": row.interval.high,
                "median": row.median,
                "sd": row.sd,
                "missed" if c.at.kind == "target" else "diverged": row.n_lost,
                "failed": row.counts.get("failed", 0),
                "pruned": row.counts.get("pruned", 0),
                "not_finished": row.counts.get("running", 0) + row.counts.get("interrupted", 0),
                "selection": row.selection,
                "baseline": row.key == c.baseline,
            }
            names = ("pairs", "unpaired", "difference", "difference_low", "difference_high", "test", "p", "p_holm")
            names += ("probability_of_improvement", "minimum_detectable", "n_planning")
            values: Sequence[Any] = [None] * len(names)
            if d is not None:
                values = [d.n_pairs, d.n_unpaired, d.mean, *d.interval, d.test, d.p, d.p_holm]
                values += [d.improvement, d.minimum_detectable, d.n_planning]
            found.append(record | dict(zip(names, values, strict=True)))
    return found


def as_csv(c: Comparison) -> str:
    """Return every row of a comparison as CSV, see records."""
    rows, stream = records(c), io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: "" if v is None or (isinstance(v, float) and math.isnan(v)) else v for k, v in row.items()} for row in rows
    )
    return stream.getvalue()


def as_json(c: Comparison) -> str:
    """Return a comparison as JSON: question, rows (see records) with all of their values, notes."""
    rows = records(c)
    flat = [row for block in c.blocks for row in block.rows]
    for record, row in zip(rows, flat, strict=True):
        record["values"] = {str(unit): value for unit, value in row.values.items()}
        record["folders"] = [str(run.folder) for run in row.runs]
    question = {k: (list(v) if isinstance(v, tuple) else v) for k, v in vars(c.question).items()}
    question |= {
        "by": [*c.strata, *c.by],
        "where": {k: v if isinstance(v, list) else str(v) for k, v in c.question.where.items()},
    }
    answer = {
        "question": question,
        "baseline": c.baseline,
        "family": c.family,
        "rows": rows,
        "improvement": [{"row": list(k), "probability": v} for k, v in c.improvement.items()],
        "forced": c.warnings,
        "notes": c.notes,
    }
    return json.dumps(plain_json(answer), indent=2, ensure_ascii=False)
