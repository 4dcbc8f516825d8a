"""A comparison as one HTML file that opens without a network: tables, charts, data, and a button that recomputes.

The charts are SVG, the script is report.js, and nothing is loaded from elsewhere. Only curves are thinned out, and the
page says so.
"""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from burgersgd import __version__
from burgersgd.analysis.charts import Line, line_chart, strip_chart
from burgersgd.analysis.compare import Block, Comparison
from burgersgd.analysis.figures import COLORS, mean_curve
from burgersgd.analysis.rows import Row, paired_units
from burgersgd.analysis.runs import Run, shown
from burgersgd.analysis.search_tables import curve, reported, tuned_by
from burgersgd.analysis.statistics import Values
from burgersgd.analysis.tables import (
    Table,
    differences_table,
    explanations,
    form_of,
    improvement_table,
    metric_words,
    n_of,
    selection_form,
    values_table,
)
from burgersgd.recording.files import RunFolderError, plain_json

HERE = Path(__file__).parent
MOST_POINTS = 60_000
"""Largest total number of points of all single curves."""
MOST_ROWS = 8
"""Largest number of rows that are drawn; the tables have all rows."""
ENVIRONMENT = ("burgersgd", "torch", "numpy", "python", "platform", "cpu", "device_name", "threads", "cuda")


def report(
    c: Comparison, command: str, more: Sequence[Table] = (), title: str = "", first: Sequence[Table] = ()
) -> str:
    """Return the page; command is the command that made it.

    `first` and `more` are tables to show before and after those of the comparison; title: by default metric and keys.
    """
    title = title or f"{c.question.metric.replace('_', ' ')} by {', '.join(c.by) or 'run'}"
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(c.runs)} runs, burgersgd {__version__}, {when}. Made by <code>{html.escape(command)}</code></p>",
        *(f'<p class="forced">{html.escape(warning)}</p>' for warning in c.warnings),
        '<p><button id="recompute">Recompute</button> the tables of values and differences from the raw values below,'
        ' which can be changed. <span id="outcome" role="status"></span></p>',
    ]
    parts += [f"<h2>{html.escape(table.title)}</h2>{_table(table)}" for table in first]
    thinned = _thinning(c)
    for b, block in enumerate(c.blocks):
        parts.append(f"<h2>{html.escape(block.label or 'Results')}</h2>")
        parts.append(_table(values_table(c, block), f"values-{b}"))
        differences = differences_table(c, block)
        if differences is not None:
            parts.append(_table(differences, f"differences-{b}"))
        parts.append(_charts(c, block, thinned))
    if len(c.blocks) > 1 and c.improvement:
        parts.append(_table(improvement_table(c)))
    notes = [*c.notes, *explanations(c)]
    parts.append("<h2>How to read this</h2><ul class='notes'>")
    parts += [f"<li>{html.escape(note)}</li>" for note in notes]
    parts.append("</ul>")
    parts += [f"<h2>{html.escape(table.title)}</h2>{_table(table)}" for table in more]
    parts += ["<h2>Settings that differ</h2>", _table(_differing(c))]
    parts += ["<h2>Environments</h2>", _table(_environments(c.runs.runs))]
    parts += ["<h2>Raw values</h2>", *(_raw(block, b) for b, block in enumerate(c.blocks))]
    data = json.dumps(plain_json(_data(c)), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>'
        + "\n".join(parts)
        + f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n'
    )


# ------------------------------------------------------------------------------------------------------------- tables


def _table(table: Table, name: str = "") -> str:
    codes = f' id="{name}" data-codes="{" ".join(table.codes)}"' if table.codes else ""
    text = () if table.codes else tuple(range(len(table.columns)))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=text' if i in text and not _numeric(cell) else ''}>{html.escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table{codes}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _numeric(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("-", "").replace(" ", "").isdigit()


def _differing(c: Comparison) -> Table:
    rows = []
    for key in c.runs.differing():
        counts = Counter(shown(run.settings[key]) for run in c.runs if key in run.settings)
        values = [f"{value} ({n})" if len(counts) <= 12 else value for value, n in counts.items()]
        more = f", ... {len(values) - 40} more" if len(values) > 40 else ""
        rows.append((key, ", ".join(values[:40]) + more))
    return Table("", ("key", "values (runs)"), tuple(rows))


def _environments(runs: Sequence[Run]) -> Table:
    found = Counter()
    for run in runs:
        values = {name: run.environment.get(name) for name in ENVIRONMENT}
        git = run.environment.get("git")
        values["commit"] = f"{str(git.get('commit'))[:12]}{'+changes' if git.get('dirty') else ''}" if git else None
        values["engine"] = run.status.get("engine")
        found[tuple((name, str(v)) for name, v in values.items() if v is not None)] += 1
    rows = [(str(n), "; ".join(f"{name} {value}" for name, value in key)) for key, n in found.most_common(50)]
    return Table("", ("runs", "environment"), tuple(rows))


def _raw(block: Block, b: int) -> str:
    parts = [f"<h3>{html.escape(block.label)}</h3>"] if block.label else []
    for r, row in enumerate(block.rows):
        lines = []
        for unit, runs in row.of.items():
            for i, (run, value) in enumerate(zip(runs, row.measured[unit], strict=True)):
                place = html.escape(json.dumps([b, r, str(unit), i]), quote=True)
                text = "inf" if math.isinf(value) else repr(value)
                seeds = f"<td>{html.escape(shown(run.seed))}</td><td>{html.escape(shown(run.split))}</td>"
                field = f'<input data-place="{place}" value="{text}" aria-label="value">'
                folder = f"<td class=text>{html.escape(str(run.folder))}</td>"
                lines.append(f"<tr>{seeds}<td>{field}</td><td>{run.state}</td>{folder}</tr>")
        head = "<tr><th>seed</th><th>split</th><th>value</th><th>state</th><th>folder</th></tr>"
        table = f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'
        parts.append(f"<details><summary>{html.escape(row.label)}: {len(lines)} values</summary>{table}</details>")
    return "".join(parts)


def _data(c: Comparison) -> dict[str, Any]:
    """Return the data from which the page recomputes its tables."""
    blocks = []
    for b, block in enumerate(c.blocks):
        form, selected, base = form_of(c, block), selection_form(c, block), block.baseline(c.baseline)
        rows = [
            {
                "values": {str(unit): list(values) for unit, values in row.measured.items()},
                "selection": row.selected,
                "of": n_of(block, row),
                "baseline": row.key == c.baseline,
                "pairs": [] if base is None else [str(u) for u in paired_units(row, base, c.at.kind == "budget")],
            }
            for row in block.rows
        ]
        blocks.append(
            {
                "values_table": f"values-{b}",
                "differences_table": f"differences-{b}",
                "factor": form.factor,
                "decimals": form.decimals,
                "selection_factor": selected.factor,
                "selection_decimals": selected.decimals,
                "rows": rows,
            }
        )
    return {"family": c.family, "bootstrap": c.question.bootstrap, "others": c.others, "blocks": blocks}


# ------------------------------------------------------------------------------------------------------------- charts


def color_of(block: Block, row: Row) -> str:
    """Return the colour of a row, with black replaced because pages may be dark."""
    place = sorted(str(r.key) for r in block.rows).index(str(row.key))
    return COLORS[place % len(COLORS)].replace("#000000", "#888888")


def _thinning(c: Comparison) -> int:
    """Return the number of points of each single curve that are kept."""
    n = sum(len(row.runs) for block in c.blocks for row in block.rows[:MOST_ROWS])
    return max(8, min(200, MOST_POINTS // max(1, 3 * n)))


def _charts(c: Comparison, block: Block, points: int) -> str:
    rows = block.rows[:MOST_ROWS]
    form = form_of(c, block)
    colors = {row.key: color_of(block, row) for row in rows}
    legend = "".join(f'<span><i style="background:{colors[r.key]}"></i>{html.escape(r.label)}</span>' for r in rows)
    figures = []
    strips = []
    for row in rows:
        lost = f"{row.n_lost} {'missed' if c.at.kind == 'target' else 'diverged'}" if row.n_lost else ""
        low, high = (form.factor * end for end in row.interval)
        values = form.factor * row.finite
        strips.append((row.label, colors[row.key], values, form.factor * row.mean, (low, high), lost))
    figures.append((strip_chart(strips, metric_words(c, block)), "every value; mean and 95 % interval above them"))
    for metric in ("validation_error", "train_loss"):
        percent = block.percent and metric.endswith("error")
        lines, thinned = _lines(rows, colors, metric, 100 if percent else 1, points)
        if lines:
            name = metric.replace("_", " ") if block.percent else metric.replace("_", " ").replace("error", "RMSE")
            chart = line_chart(lines, "gradient evaluations", name + (" %" if percent else ""), log_y=True)
            thinning = f"; single curves are thinned to {points} points" if thinned else ""
            figures.append((chart, f"mean and 95 % interval (t) of the runs that completed{thinning}"))
    if any(len({run.setting() for run in row.group}) > 2 for row in rows):
        figures.append((_tuning(c, block, rows, colors), "the best of n trials; dashed: running best of one search"))
    body = "".join(f"<figure>{svg}<figcaption>{html.escape(text)}</figcaption></figure>" for svg, text in figures)
    more = f" (the first {MOST_ROWS} of {len(block.rows)} rows)" if len(block.rows) > MOST_ROWS else ""
    return f'<p class="legend">{legend}{more}</p><div class="charts">{body}</div>'


def _lines(
    rows: Sequence[Row], colors: dict[tuple[Any, ...], str], metric: str, factor: float, points: int
) -> tuple[list[Line], bool]:
    lines, thinned = [], False
    for row in rows:
        band = mean_curve(row.runs, metric, "evaluations")
        if band is None:
            continue
        x, mean, low, high = band
        behind: list[tuple[Values, Values]] = []
        for run in row.runs:
            try:
                columns = run.curves
            except RunFolderError:
                continue
            if metric not in columns or "evaluations" not in columns:
                continue
            measured = np.flatnonzero(~np.isnan(columns[metric]))
            if len(measured) > points:
                measured, thinned = measured[np.linspace(0, len(measured) - 1, points).round().astype(int)], True
            behind.append((columns["evaluations"][measured], factor * columns[metric][measured]))
        lines.append(Line(row.label, colors[row.key], x, factor * mean, factor * low, factor * high, behind))
    return lines, thinned


def _tuning(c: Comparison, block: Block, rows: Sequence[Row], colors: dict[tuple[Any, ...], str]) -> str:
    factor = 100 if block.percent and tuned_by(c).endswith("error") else 1
    lines = []
    for row in rows:
        found = curve(c, row)
        dashed, start = found.kind != "expected", found.medians_until  # earlier values are medians, not means
        if len(found.trials) > start + 1:
            cost, test = found.cost[start:], factor * found.test[start:]
            lines.append(Line(row.label, colors[row.key], cost, test, dashed=dashed))
    name = f"{reported(c).replace('_', ' ')} of the best trial" + (" %" if factor == 100 else "")
    return line_chart(lines, "gradient evaluations spent on trials", name, log_x=True) if lines else ""
