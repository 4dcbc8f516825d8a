"""Figures of a comparison (matplotlib, the extra `plots`): curves, final values, heat maps, searches, profiles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from burgersgd.analysis.compare import Block, Comparison, words
from burgersgd.analysis.importance import as_numbers, is_logarithmic, settings_table
from burgersgd.analysis.profiles import LONGEST, Key, profile, profiles_of
from burgersgd.analysis.rows import Row
from burgersgd.analysis.runs import Run, shown
from burgersgd.analysis.search_tables import curve, mean_validation, reported, tuned_by, varied_keys
from burgersgd.analysis.statistics import Values, t_interval
from burgersgd.analysis.tables import form_of, metric_words
from burgersgd.analysis.values import At, measure
from burgersgd.recording.files import RunFolderError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B")
"""The colours of Okabe and Ito, which can be told apart with any colour vision."""
DASHES = ("-", "--", ":", "-.")
GRID = 200
"""Number of points of a curve."""


def figures_of(c: Comparison, cost: Mapping[Key, Mapping[Key, float]] | None = None) -> dict[str, Figure]:
    """Return the figures for which a comparison has data, by name."""
    found = {
        "curves_evaluations": curves(c, "evaluations"),
        "curves_seconds": curves(c, "seconds"),
        "values": values(c),
    }
    if any(len({run.setting() for run in row.group}) > 1 for block in c.blocks for row in block.rows):
        found["tuning"] = tuning(c)
        found["slices"] = slices(c)
        for block in c.blocks:
            for row in block.rows:
                if len(varied_keys(row)) >= 3:
                    found[_file_name("parallel", block, row)] = parallel(c, row)
    if profiles_of(c):
        found["profiles"] = profiles(c, cost)
    return found


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the suffix: .png, .svg or .pdf. Raises ValueError for any other suffix."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{path}: a figure must end in .png, .svg or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def new_figure(rows: int, columns: int, width: float = 5.2, height: float = 3.8) -> tuple[Figure, list[list[Axes]]]:
    """Return an empty figure and its axes, without a window and without pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("figures need matplotlib (pip install matplotlib)") from error
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.ravel():
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, axes.tolist()


def style(block: Block, row: Row) -> dict[str, Any]:
    """Return colour and dashes of a row, the same in every figure of a comparison."""
    place = sorted(str(r.key) for r in block.rows).index(str(row.key))
    return {"color": COLORS[place % len(COLORS)], "linestyle": DASHES[place // len(COLORS) % len(DASHES)]}


# ------------------------------------------------------------------------------------------------------------- curves


def curves(c: Comparison, clock: str) -> Figure:
    """Return train loss, validation loss and validation error against a clock: means with 95 % t intervals."""
    metrics = ("train_loss", "validation_loss", "validation_error")
    figure, axes = new_figure(len(c.blocks), len(metrics), 4.6, 3.6)
    for block, line in zip(c.blocks, axes, strict=True):
        for metric, ax in zip(metrics, line, strict=True):
            means: list[float] = []
            percent = block.percent and metric.endswith("error")
            for row in block.rows:
                band = mean_curve(row.runs, metric, clock)
                if band is None:
                    continue
                x, mean, low, high = band
                factor, look = 100 if percent else 1, style(block, row)
                means += (factor * mean[mean > 0]).tolist()
                ax.plot(x, factor * mean, label=row.label, linewidth=1.4, **look)
                ax.fill_between(x, factor * low, factor * high, color=look["color"], alpha=0.18, linewidth=0)
            name = metric.replace("_", " ") if block.percent else metric.replace("_", " ").replace("error", "RMSE")
            ax.set_ylabel(name + (" %" if percent else ""))
            _log_scale(ax)
            if means:
                ax.set_ylim(0.7 * min(means), 1.3 * max(means))  # an interval may reach below 0
            ax.set_xlabel("gradient evaluations" if clock == "evaluations" else "seconds (of the run's whole fleet)")
            ax.set_title(block.label, fontsize=10)
        if len(block.rows) <= 12:
            _legend(line[-1])
    return figure


def mean_curve(runs: Sequence[Run], metric: str, clock: str) -> tuple[Values, Values, Values, Values] | None:
    """Return a grid with the mean and the 95 % interval over the completed runs on it; None if there is none.

    Each run is interpolated linearly between its own rows. The interval is nan with fewer than two runs.
    """
    lines = []
    for run in runs:
        if run.state != "completed":
            continue
        try:
            columns = run.curves
        except RunFolderError:
            continue
        if metric in columns and clock in columns:
            measured = ~np.isnan(columns[metric]) & ~np.isnan(columns[clock])
            if measured.sum() > 1:
                lines.append((columns[clock][measured], columns[metric][measured]))
    if not lines:
        return None
    start, stop = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if not stop > start:
        return None
    longest = max(len(x) for x, _ in lines)
    grid = np.linspace(start, stop, min(GRID, max(2, longest)))
    table = np.stack([np.interp(grid, x, y) for x, y in lines])
    mean = table.mean(axis=0)
    ends = np.array([t_interval(column) for column in table.T])
    return grid, mean, np.maximum(ends[:, 0], mean * 1e-3), ends[:, 1]  # log axes need positive ends


def values(c: Comparison) -> Figure:
    """Return every value of every row as a point, with mean and interval; diverged runs are at the right edge."""
    height = 0.6 + 0.42 * max(len(block.rows) for block in c.blocks)
    figure, axes = new_figure(len(c.blocks), 1, 7, max(1.8, height))
    for block, (ax,) in zip(c.blocks, axes, strict=True):
        form = form_of(c, block)
        every = np.concatenate([row.finite for row in block.rows]) * form.factor
        edge = float(every.max() + 0.08 * (np.ptp(every) or 1)) if len(every) else 1.0
        for i, row in enumerate(reversed(block.rows)):
            look = style(block, row)["color"]
            spread = (np.arange(len(row.finite)) % 5 - 2) * 0.05
            ax.plot(form.factor * row.finite, i - 0.12 + spread, "o", color=look, alpha=0.45, markersize=4, mew=0)
            low, high = (form.factor * end for end in row.interval)
            ax.plot([low, high], [i + 0.2] * 2, color=look, linewidth=2.2, solid_capstyle="butt")
            ax.plot(form.factor * row.mean, i + 0.2, "D", color=look, markersize=5)
            if row.n_lost:
                word = "missed" if c.at.kind == "target" else "diverged"
                ax.text(edge, i, f"{row.n_lost} {word}", va="center", fontsize=8, color=look)
        ax.set_yticks(range(len(block.rows)), [row.label for row in reversed(block.rows)], fontsize=8)
        ax.set_ylim(-0.6, len(block.rows) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"{metric_words(c, block)}: runs, and their mean with its 95 % interval")
        ax.set_title(block.label, fontsize=10)
    return figure


def heat_map(c: Comparison, x: str, y: str) -> Figure:
    """Return the mean of the selection metric over two keys; a cell with a diverged run is marked."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)  # one map for rows that differ only in the two keys
    for block in c.blocks:
        for row in block.rows:
            rest = {key: value for key, value in zip(c.by, row.key, strict=True) if key not in (x, y)}
            kept = [run for run in row.group if {x, y} <= set(run.settings)]
            if kept:
                groups[block.label, words(tuple(rest), tuple(rest.values()), short=True)] += kept
    if not groups:
        raise ValueError(f"heat={x},{y}: no row has both keys")
    widest = max(len({run.settings[x] for run in runs}) for runs in groups.values())
    figure, axes = new_figure(len(groups), 1, max(6.4, 0.5 * widest + 2), 3.6)
    for ((place, label), members), (ax,) in zip(groups.items(), axes, strict=True):
        cells: dict[tuple[Any, Any], list[Run]] = defaultdict(list)
        for run in members:
            cells[run.settings[x], run.settings[y]].append(run)
        xs, ys = (sorted({cell[i] for cell in cells}, key=_order) for i in (0, 1))
        percent = all(run.percent for run in members) and tuned_by(c).endswith("error")
        name = tuned_by(c).replace("_", " ") + (" %" if percent else "")
        ax.set_title(" ".join(filter(None, [place, label])), fontsize=10)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        if len(xs) * len(ys) > 4 * len(cells) and all(_is_number(v) for v in (*xs, *ys)):
            found = {cell: (100 if percent else 1) * mean_validation(c, runs) for cell, runs in cells.items()}
            _contour(figure, ax, found, name)
            continue
        table = np.array([[mean_validation(c, cells.get((a, b), [])) for a in xs] for b in ys]) * (
            100 if percent else 1
        )
        finite = np.where(np.isfinite(table), table, np.nan)
        image = ax.imshow(finite, origin="lower", aspect="auto", cmap="viridis_r")
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.set_xticks(range(len(xs)), [shown(v) for v in xs], rotation=45 if len(xs) > 10 else 0)
        ax.set_yticks(range(len(ys)), [shown(v) for v in ys])
        middle = np.nanmean([np.nanmin(finite), np.nanmax(finite)]) if np.isfinite(finite).any() else 0.0
        if len(xs) <= 40:
            for (j, i), value in np.ndenumerate(table):
                text = "" if math.isnan(value) else "div." if math.isinf(value) else f"{value:.3g}"
                color = "white" if middle < value < math.inf else "black"
                ax.text(i, j, text, ha="center", va="center", fontsize=8, color=color)
        sizes = sorted({len(runs) for runs in cells.values()})
        figure.colorbar(image, ax=ax, label=f"{name}, mean of {'-'.join(map(str, sizes))} runs")
    return figure


def _contour(figure: Figure, ax: Axes, cells: Mapping[tuple[Any, Any], float], name: str) -> None:
    """Draw values at scattered points (a random search) with contours between them; crosses mark diverged settings."""
    points = np.array([(*cell, value) for cell, value in cells.items() if not math.isnan(value)], dtype=np.float64)
    if is_logarithmic(points[:, 0].tolist()):
        ax.set_xscale("log")
    if is_logarithmic(points[:, 1].tolist()):
        ax.set_yscale("log")
    ok = points[np.isfinite(points[:, 2])]
    lost = points[~np.isfinite(points[:, 2])]
    top = float(np.quantile(ok[:, 2], 0.9)) if len(ok) else 1.0  # the worst must not take most colours
    shown_at = np.stack([np.log(v) if is_logarithmic(v.tolist()) else v for v in ok[:, :2].T], axis=1)
    if len(ok) >= 4 and np.linalg.matrix_rank(shown_at - shown_at.mean(axis=0)) == 2:
        ax.tricontourf(ok[:, 0], ok[:, 1], np.minimum(ok[:, 2], top), levels=12, cmap="viridis_r", alpha=0.6)
    drawn = ax.scatter(ok[:, 0], ok[:, 1], c=ok[:, 2], vmax=top, cmap="viridis_r", edgecolor="black", linewidth=0.5)
    ax.plot(lost[:, 0], lost[:, 1], "x", color="0.3", markersize=5)
    figure.colorbar(drawn, ax=ax, label=name)


# ------------------------------------------------------------------------------------------------ searches, profiles


def tuning(c: Comparison) -> Figure:
    """Return the tuning curves: validation and test error of the best of n trials against the cost of the trials."""
    figure, axes = new_figure(len(c.blocks), 2)
    for block, line in zip(c.blocks, axes, strict=True):
        percent = block.percent and tuned_by(c).endswith("error")
        factor = 100 if percent else 1
        for row in block.rows:
            found, look = curve(c, row), style(block, row)
            label = row.label + (f" ({found.kind})" if found.kind != "expected" else "")
            at = found.medians_until
            for ax, x, y in ((line[0], found.trials, found.validation), (line[1], found.cost, found.test)):
                ax.plot(x[at:], factor * y[at:], label=label, marker=".", markersize=4, **look)
                ax.plot(x[:at], factor * y[:at], marker="o", mfc="white", markersize=4, color=look["color"], ls="")
            ends = factor * np.array(found.ranges)[at:]
            line[0].fill_between(found.trials[at:], ends[:, 0], ends[:, 1], color=look["color"], alpha=0.1, linewidth=0)
        line[0].set_xlabel("trials")
        line[1].set_xlabel("gradient evaluations of the trials")
        for ax, name in zip(line, (tuned_by(c), reported(c)), strict=True):
            ax.set_xscale("log")
            ax.set_ylabel(f"{name.replace('_', ' ')} of the best trial" + (" %" if percent else ""))
            ax.set_title(block.label, fontsize=10)
            _plain_ticks(ax.xaxis)
        _legend(line[0], "open: median, trials diverged")
    return figure


def slices(c: Comparison) -> Figure:
    """Return the selection metric against each key that differs, one point per setting."""
    keys = list(dict.fromkeys(key for block in c.blocks for row in block.rows for key in varied_keys(row)))

    def selection(run: Run) -> float:
        return measure(run, tuned_by(c), At("end"))

    figure, axes = new_figure(len(c.blocks), max(1, len(keys)), 3.6, 3.2)
    for block, line in zip(c.blocks, axes, strict=True):
        percent = block.percent and tuned_by(c).endswith("error")
        for key, ax in zip(keys, line, strict=False):
            for row in block.rows:
                table, means = settings_table(
                    row.group, [key, *varied_keys(row)], lambda r: measure(r, tuned_by(c), At("end"))
                )
                ok = [i for i, v in enumerate(means) if math.isfinite(v) and table[i][0] is not None]
                column = [table[i][0] for i in ok]
                if not ok or len(set(column)) < 2:
                    continue
                numeric = all(
                    isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in column
                )
                x = column if numeric else [shown(v) for v in column]
                y = (100 if percent else 1) * means[ok]
                ax.plot(x, y, "o", markersize=4, alpha=0.6, color=style(block, row)["color"], label=row.label)
                if numeric and is_logarithmic(column):
                    ax.set_xscale("log")
            ax.set_xlabel(key)
            _log_scale(ax)
        line[0].set_ylabel(tuned_by(c).replace("_", " ") + (" %" if percent else ""))
        _legend(line[0], block.label)
    return figure


def parallel(c: Comparison, row: Row) -> Figure:
    """Return parallel coordinates: a line per setting of a row; the lower its validation error, the darker it is."""
    keys = varied_keys(row)
    table, means = settings_table(row.group, keys, lambda run: measure(run, tuned_by(c), At("end")))
    figure, ((ax,),) = new_figure(1, 1, 1.8 * (len(keys) + 1) + 1, 3.6)
    finite = means[np.isfinite(means)]
    order = np.argsort(-means)
    columns = [as_numbers([line[i] for line in table]) for i in range(len(keys))]
    scaled = np.stack([(v - v.min()) / (np.ptp(v) or 1) for v in [*columns, np.minimum(means, finite.max())]], axis=1)
    from matplotlib import colormaps

    for i in order:
        if math.isfinite(means[i]):
            ax.plot(scaled[i], color=colormaps["viridis"](scaled[i, -1]), alpha=0.7, linewidth=1.1)
        else:
            ax.plot(scaled[i], color="0.75", linestyle=":", linewidth=1)
    ax.set_xticks(range(len(keys) + 1), [*keys, tuned_by(c).replace("_", " ")], fontsize=8)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    for i, key_values in enumerate([[line[j] for line in table] for j in range(len(keys))] + [finite.tolist()]):
        ordered = sorted(key_values, key=_order)
        for value, place, edge in ((ordered[0], -0.02, "top"), (ordered[-1], 1.02, "bottom")):
            text = f"{value:.3g}" if isinstance(value, float) else shown(value)
            ax.text(i, place, text, ha="center", va=edge, fontsize=7)
    ax.set_ylim(-0.12, 1.12)
    ax.set_xlim(-0.4, len(keys) + 0.4)
    ax.set_title(f"{row.label}: {len(table)} settings, darker is better, dotted diverged", fontsize=10)
    return figure


def profiles(c: Comparison, cost: Mapping[Key, Mapping[Key, float]] | None = None) -> Figure:
    """Return the performance profiles on each clock, at the targets themselves, and the areas at relaxed targets."""
    found = profiles_of(c, cost)
    clocks = list(dict.fromkeys(p.clock for p in found))
    figure, axes = new_figure(len(clocks), 2)
    tau = np.linspace(1, LONGEST, 601)
    for clock, line in zip(clocks, axes, strict=True):
        of_clock = [p for p in found if p.clock == clock]
        shares = profile(of_clock[0].relative, tau)
        for i, (key, label) in enumerate(zip(of_clock[0].rows, of_clock[0].labels, strict=True)):
            row = c.blocks[0].baseline(key)
            look = {} if row is None else style(c.blocks[0], row)
            line[0].step(tau, shares[:, i], where="post", label=label, **look)
            line[1].plot([p.relaxation for p in of_clock], [float(p.areas[i]) for p in of_clock], marker=".", **look)
        line[0].set_xlabel(f"{clock} / those of the fastest")
        line[0].set_ylabel(f"share of {len(c.blocks)} data sets")
        _legend(line[0])
        line[1].set_xlabel("relaxation of the targets")
        line[1].set_ylabel("area under the profile")
        for ax in line:
            ax.set_ylim(-0.02, 1.02)
    return figure


def _legend(ax: Axes, title: str = "") -> None:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=8, title=title or None, title_fontsize=7)


def _log_scale(ax: Axes) -> None:
    """Make the vertical axis logarithmic if a drawn value is positive."""
    if any(np.any(np.asarray(line.get_ydata(), dtype=np.float64) > 0) for line in ax.lines):
        ax.set_yscale("log")
        _plain_ticks(ax.yaxis)


def _plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with 2, 5, 10 instead of 2 x 10^0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, float, str]:
    return not _is_number(value), float(value) if _is_number(value) else 0.0, str(value)


def _file_name(what: str, block: Block, row: Row) -> str:
    name = f"{what} {block.label} {row.label}"
    return "_".join("".join(c if c.isalnum() or c in ".-=" else " " for c in name).split())
