"""The quadrature of the theory: Gauss-Legendre panels in one dimension and their tensor product in two.

The theory needs integrals of weights exp(exponent) and means under these weights. `find_mass` finds the box that holds
the mass; `integrate` halves the panels on it until the sums agree up to rounding. Both work on many weights at once,
one per row, and factor the largest exponent out of every sum, so that nothing overflows for a small viscosity.

A row is an integral over offsets z from its own point x: offsets avoid cancellation if the mass is close to x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
Function = Callable[[Array], Array]
"""A function of points: elementwise in 1-D (any shape), otherwise ``[..., d]`` to ``[...]`` or to ``[..., d]``."""
OfRows = Callable[[NDArray[np.intp], Array], Array]
"""A function of row numbers ``[n]`` and of offsets z ``[n, nodes, d]`` in these rows; returns ``[n, nodes, ...]``."""

DEPTH = 60.0
"""Exponents more than this below the largest one are neglected: exp(-60) = 1e-26."""
REACH = 1e5
"""The mass is searched for within this distance of the point x."""

_NODES, _WEIGHTS = special.roots_legendre(16)
_SCALES = REACH * 2.0 ** -np.arange(37)
_SEARCH_POINTS = {1: 257, 2: 65}  # points per axis on every scale, odd
_SCAN_POINTS = {1: 1025, 2: 129}  # points per axis of the scan that narrows a box
_FIRST_PANELS, _LAST_PANELS = {1: 8, 2: 4}, {1: 4096, 2: 32}  # panels per axis
_LARGEST_CHANGE = 1e-3  # largest change of log Z by the last halving that is accepted
_BLOCK = 2**19  # nodes in memory at a time: 4 MiB per array


def panel_nodes(edges: Array) -> tuple[Array, Array]:
    """Return the nodes and the weights, ``[..., panels, 16]`` each, of the panels between edges ``[..., panels + 1]``.

    A sum over the last two axes integrates polynomials of degree 31 on each panel without an error.
    """
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, np.diff(edges) / 2
    return middle[..., None] + half[..., None] * _NODES, half[..., None] * _WEIGHTS


def panel_integrals(f: Function, edges: Array) -> Array:
    """Return the integral of f (element by element) over each of the panels between edges, ``[..., panels]``."""
    nodes, weights = panel_nodes(edges)
    return (f(nodes) * weights).sum(-1)


def cumulative(f: Function, edges: Array) -> Function:
    """Return y -> the integral of f from edges[0] to y, for y between the first and the last of edges ``[n]``."""
    at_edges = np.concatenate([[0.0], np.cumsum(panel_integrals(f, edges))])

    def integral(y: Array) -> Array:
        panel = np.clip(np.searchsorted(edges, y) - 1, 0, edges.size - 2)
        return at_edges[panel] + panel_integrals(f, np.stack([edges[panel], y], axis=-1))[..., 0]

    return integral


# -------------------------------------------------------------------------------------------------- where the mass is


def find_mass(exponent: OfRows, x: Array, *, reach: float | None = None, depth: float = DEPTH) -> tuple[Array, Array]:
    """Return the corners ``[rows, d]`` of boxes that hold all offsets with exponent above its maximum minus depth.

    x is ``[rows, d]``, d = 1, 2. With reach the mass must lie within that distance of x; without it, the mass is
    searched for on all scales up to REACH, and a narrow well far from x may be missed. Raises ValueError unless d is 1
    or 2, the exponent is finite at offset 0, and less than exp(-depth) of exp(exponent) lies at REACH.
    """
    d = x.shape[1]
    if d not in _SCAN_POINTS:
        raise ValueError(f"x: must have 1 or 2 dimensions for quadrature, has {d}")
    half = _search(exponent, x, depth) if reach is None else np.full(len(x), reach)
    low = np.repeat(-half[:, None], d, axis=1)
    high, rows = -low, np.arange(len(x))
    while rows.size:  # a scan resolves no more than its step: repeat it until the box shrinks by less than a fifth
        before = high[rows] - low[rows]
        for part in _blocks(rows, _SCAN_POINTS[d] ** d):
            low[part], high[part] = _narrowed(exponent, part, low[part], high[part], depth)
        rows = rows[(high[rows] - low[rows] < 0.8 * before).any(axis=1)]
    return low, high


def scan(low: Array, high: Array) -> Array:
    """Return the points ``[rows, nodes, d]`` of regular grids on boxes with these corners ``[rows, d]``."""
    d = low.shape[1]
    axes = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, _SCAN_POINTS[d])[:, None]
    return _product([axes[..., i] for i in range(d)])


def _search(exponent: OfRows, x: Array, depth: float) -> Array:
    """Return for each row the half width of a cube beyond which the exponent is `depth` lower than at offset 0."""
    d = x.shape[1]
    side = np.linspace(-1, 1, _SEARCH_POINTS[d])[None]
    unit = _product([side] * d)
    z = (_SCALES[:, None, None] * unit).reshape(1, -1, d)
    distance, half = np.abs(z[0]).max(-1), np.empty(len(x))
    for part in _blocks(np.arange(len(x)), distance.size):
        level = exponent(part, np.zeros((part.size, 1, d)))
        if not np.all(np.isfinite(level)):
            bad = x[part[np.argmin(np.isfinite(level[:, 0]))]]
            raise ValueError(f"loss: must be finite at every x, is not at x={', '.join(f'{value:g}' for value in bad)}")
        inside = _values(exponent, part, z) >= level - depth
        half[part] = 1.1 * np.where(inside, distance, _SCALES[-1]).max(1)
    if np.any(half >= REACH):
        raise ValueError(
            f"loss: must rise far away, so that exp(-loss / T) has an integral, but has mass {REACH:g} away from x "
            "(the local entropy needs gamma * (most negative curvature of the loss) > -1)"
        )
    return half


def _narrowed(exponent: OfRows, rows: NDArray[np.intp], low: Array, high: Array, depth: float) -> tuple[Array, Array]:
    n, d = low.shape
    points = _SCAN_POINTS[d]
    values = _values(exponent, rows, scan(low, high)).reshape(n, *[points] * d)
    peak = values.reshape(n, -1).argmax(1)
    places = np.unravel_index(peak, values.shape[1:])
    top = values[(np.arange(n), *places)]
    drop = np.zeros(n)  # from the largest value to its neighbours: a bound of how much higher the peak between is
    for axis in range(d):
        beside = [np.clip(places[axis] + side, 0, points - 1) for side in (-1, 1)]
        lower = [values[(np.arange(n), *places[:axis], place, *places[axis + 1 :])] for place in beside]
        drop += top - np.minimum(*lower)
    kept = np.asarray(values > (top - depth - drop).reshape(-1, *[1] * d))
    step, new_low, new_high = (high - low) / (points - 1), low.copy(), high.copy()
    for axis in range(d):
        some = np.any(kept, axis=2 - axis) if d == 2 else kept
        first, last = some.argmax(1), points - 1 - some[:, ::-1].argmax(1)
        new_low[:, axis] = np.maximum(low[:, axis], low[:, axis] + (first - 1) * step[:, axis])
        new_high[:, axis] = np.minimum(high[:, axis], low[:, axis] + (last + 1) * step[:, axis])
    return new_low, new_high


def _values(exponent: OfRows, rows: NDArray[np.intp], z: Array) -> Array:
    """Return the exponent on a scan; it may overflow far away, where there is no mass."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = exponent(rows, z)
    return np.where(np.isnan(values), -np.inf, values)


# -------------------------------------------------------------------------------------------------------- the sums


def integrate(
    exponent: OfRows, of: OfRows, low: Array, high: Array, breakpoints: Array | None = None
) -> tuple[Array, Array]:
    """Return log Z ``[rows]``, Z the integral of exp(exponent) over the boxes, and the means ``[rows, ...]`` of `of`.

    low and high are the corners ``[rows, d]``; breakpoints ``[rows, n]`` are offsets, in 1-D, where the exponent or
    `of` have kinks or jumps. The panels are halved until neither log Z nor a mean changes by more than rounding of the
    exponent explains. Raises ValueError if an exponent is not a number, or if log Z has not converged in the end.
    """
    d, rows = low.shape[1], np.arange(len(low))
    breaks = np.empty((rows.size, 0)) if breakpoints is None else breakpoints
    panels, change = _FIRST_PANELS[d], np.full(rows.size, np.inf)
    log_z, means, _ = _sums(exponent, of, rows, low, high, breaks, panels)
    while rows.size and panels < _LAST_PANELS[d]:
        panels *= 2
        finer_z, finer_means, size = _sums(exponent, of, rows, low, high, breaks, panels)
        rounding = 1e-12 + 1e-13 * (np.abs(finer_z) + DEPTH)  # the finer sums are much more accurate than the change
        change = np.abs(finer_z - log_z[rows])
        moved = np.abs(finer_means - means[rows]).reshape(rows.size, -1) > rounding[:, None] * size
        log_z[rows], means[rows] = finer_z, finer_means
        still = (change > rounding) | moved.any(1)
        rows, change = rows[still], change[still]
    if np.any(change > _LARGEST_CHANGE):
        widest = float(np.max(high[rows] - low[rows]))
        raise ValueError(f"loss: has wells too narrow for the quadrature of a law that is {widest:.3g} wide")
    return log_z, means


def _sums(
    exponent: OfRows, of: OfRows, rows: NDArray[np.intp], low: Array, high: Array, breaks: Array, panels: int
) -> tuple[Array, Array, Array]:
    """Return log Z, the means, and the largest |of| ``[rows, numbers]``, with this many panels per axis and piece."""
    nodes = (panels * (breaks.shape[1] + 1) * _NODES.size) ** low.shape[1]
    found = [_block_sums(exponent, of, p, low[p], high[p], breaks[p], panels) for p in _blocks(rows, nodes)]
    log_z, means, size = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return log_z, means, size


def _block_sums(
    exponent: OfRows, of: OfRows, rows: NDArray[np.intp], low: Array, high: Array, breaks: Array, panels: int
) -> tuple[Array, Array, Array]:
    axes = [_axis(low[:, i, None], high[:, i, None], breaks, panels) for i in range(low.shape[1])]
    z = _product([nodes for nodes, _ in axes])
    weight = axes[0][1] if len(axes) == 1 else (axes[0][1][:, :, None] * axes[1][1][:, None]).reshape(len(rows), -1)
    level = exponent(rows, z)
    if np.any(np.isnan(level)):
        raise ValueError("loss: must be a number everywhere, is NaN where the law has its mass")
    top = level.max(1)
    law = weight * np.exp(level - top[:, None])
    total = law.sum(1)
    values = of(rows, z)
    flat = values.reshape(*z.shape[:2], -1)
    means = np.einsum("rn,rnk->rk", law / total[:, None], flat)
    return top + np.log(total), means.reshape(len(rows), *values.shape[2:]), np.abs(flat).max(1)


def _axis(low: Array, high: Array, breaks: Array, panels: int) -> tuple[Array, Array]:
    """Return nodes and weights ``[rows, nodes]`` of one axis, with as many panels between any two breakpoints."""
    corners = np.concatenate([low, np.clip(breaks, low, high), high], axis=1)
    inner = corners[:, :-1, None] + np.diff(corners)[..., None] * np.arange(panels) / panels
    nodes, weights = panel_nodes(np.concatenate([inner.reshape(len(low), -1), high], axis=1))
    return nodes.reshape(len(low), -1), weights.reshape(len(low), -1)


def _product(axes: Sequence[Array]) -> Array:
    """Return the points ``[rows, nodes, d]`` of the tensor product of axes ``[rows, nodes of the axis]``."""
    if len(axes) == 1:
        return axes[0][..., None]
    return np.stack(np.broadcast_arrays(axes[0][:, :, None], axes[1][:, None]), axis=-1).reshape(len(axes[0]), -1, 2)


def _blocks(rows: NDArray[np.intp], nodes: int) -> Iterator[NDArray[np.intp]]:
    """Yield the rows in parts whose arrays, with this many nodes per row, take a few MiB."""
    size = max(1, _BLOCK // nodes)
    for start in range(0, rows.size, size):
        yield rows[start : start + size]
