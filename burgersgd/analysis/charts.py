"""Small charts as inline SVG, for reports that open without a network: lines with bands, and strips of values."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from burgersgd.analysis.statistics import Values

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 42


@dataclass(frozen=True)
class Line:
    """A curve, optionally with a band around it and fainter curves behind it."""

    label: str
    color: str
    x: Values
    y: Values
    low: Values | None = None
    high: Values | None = None
    behind: Sequence[tuple[Values, Values]] = field(default=())
    dashed: bool = False


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map from values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool

    def __call__(self, values: Values) -> Values:
        """Return pixels; values outside the scale are drawn at its edge."""
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        inside = np.clip(values, self.low, self.high)
        at = np.log(inside) if self.log else inside
        return self.start + (at - low) / ((high - low) or 1) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Return round values within the scale, at most about eight."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            parts = (1, 2, 5) if len(decades) <= 3 else (1,)
            found = [part * 10.0**decade for decade in decades for part in parts]
            step = -(-len(found) // 9)
            inside = [v for v in found[::step] if self.low * 0.999 <= v <= self.high * 1.001]
            if len(inside) > 1:
                return inside
        span = self.high - self.low or 1
        step = 10 ** math.floor(math.log10(span / 4))
        step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale_of(values: Values, start: float, stop: float, log: bool) -> Scale:
    """Return the scale of the finite values; it is logarithmic only if all of them are positive."""
    finite = values[np.isfinite(values)]
    log = log and bool((finite > 0).any())
    finite = finite[finite > 0] if log else finite
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = (low / 1.5, high * 1.5) if log else (low - 0.5, high + 0.5)
    room = 0.04
    if log:
        factor = (high / low) ** room
        return Scale(low / factor, high * factor, start, stop, log)
    return Scale(low - room * (high - low), high + room * (high - low), start, stop, log)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, log_x: bool = False, log_y: bool = False) -> str:
    """Return a chart of curves; the curves determine the vertical axis, and bands are clipped at its ends."""
    x = scale_of(np.concatenate([line.x for line in lines]), LEFT, WIDTH - RIGHT, log_x)
    y = scale_of(np.concatenate([line.y for line in lines]), HEIGHT - BOTTOM, TOP, log_y)
    parts = [_axes(x, y, x_label, y_label, HEIGHT)]
    for line in lines:
        for bx, by in line.behind:
            points = _points(x(bx), y(by))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{line.color}" stroke-opacity=".18"/>')
    for line in lines:
        if line.low is not None and line.high is not None:
            ok = np.isfinite(line.low) & np.isfinite(line.high)
            if ok.any():
                upper, lower = (
                    _points(x(line.x[ok]), y(line.high[ok])),
                    _points(x(line.x[ok])[::-1], y(line.low[ok])[::-1]),
                )
                parts.append(f'<polygon points="{upper} {lower}" fill="{line.color}" fill-opacity=".16"/>')
    for line in lines:
        ok = np.isfinite(line.y)
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        points = _points(x(line.x[ok]), y(line.y[ok]))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{line.color}" stroke-width="1.8"{dash}>')
        parts.append(f"<title>{html.escape(line.label)}</title></polyline>")
    return _svg(parts, HEIGHT, f"{y_label} against {x_label}")


def strip_chart(rows: Sequence[tuple[str, str, Values, float, tuple[float, float], str]], x_label: str) -> str:
    """Return a chart of rows, each (label, colour, values, mean, interval, remark): points, mean and interval."""
    height = TOP + BOTTOM + 30 * len(rows)
    left = min(170, 14 + 6 * max(len(row[0]) for row in rows))
    ends = np.array([end for row in rows for end in row[4]])
    x = scale_of(np.concatenate([*(row[2] for row in rows), ends]), left, WIDTH - RIGHT, False)
    parts = [_axes(x, None, x_label, "", height)]
    for i, (label, color, values, mean, interval, remark) in enumerate(rows):
        at = TOP + 15 + 30 * i
        short = label if len(label) <= 26 else label[:25] + "…"
        parts.append(f'<text x="{left - 6}" y="{at + 4}" text-anchor="end">{html.escape(short)}</text>')
        for k, (value, pixel) in enumerate(zip(values, x(values), strict=True)):
            dot = f'<circle cx="{pixel:.1f}" cy="{at + 6 + (k % 3 - 1) * 3}" r="2.6" fill="{color}" fill-opacity=".5">'
            parts.append(f"{dot}<title>{value:.4g}</title></circle>")
        if math.isfinite(interval[0]):
            low, high = x(np.array(interval))
            parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{at - 5}" y2="{at - 5}" stroke="{color}"')
            parts.append(' stroke-width="2.4"/>')
        if math.isfinite(mean):
            (middle,) = x(np.array([mean]))
            parts.append(f'<circle cx="{middle:.1f}" cy="{at - 5}" r="4" fill="{color}"/>')
        if remark:
            parts.append(f'<text x="{WIDTH - RIGHT}" y="{at + 4}" text-anchor="end">{html.escape(remark)}</text>')
    return _svg(parts, height, x_label)


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title, quote=True)}">'
    return head + "".join(parts) + "</svg>"


def _axes(x: Scale, y: Scale | None, x_label: str, y_label: str, height: float) -> str:
    bottom = height - BOTTOM
    parts = []
    for value in x.ticks():
        (at,) = x(np.array([value]))
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{_tick(value)}</text>')
    for value in y.ticks() if y is not None else ():
        assert y is not None
        (at,) = y(np.array([value]))
        parts.append(f'<line class="grid" x1="{x.start}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{x.start - 5}" y="{at + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    parts.append(f'<line class="axis" x1="{x.start}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (x.start + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{html.escape(x_label)}</text>')
    if y is not None:
        parts.append(f'<line class="axis" x1="{x.start}" x2="{x.start}" y1="{TOP}" y2="{bottom}"/>')
        turned = f'transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)"'
        parts.append(f'<text {turned} text-anchor="middle">{html.escape(y_label)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    if value and abs(value) >= 1e4:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.10g}" if abs(value) >= 1e-3 or not value else f"{value:g}"


def _points(x: Values, y: Values) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
