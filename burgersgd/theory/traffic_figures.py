"""The figures and the animation of `burgersgd traffic`. matplotlib is imported only when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from burgersgd.theory.traffic_command import Run

CARS: dict[str, Any] = {"colors": "k", "linewidths": 0.6, "linestyles": "solid"}


def draw_space_time(run: Run, path: Path) -> None:
    """Save two plots: density over space and time, with the cars' paths and characteristics, and density profiles."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    plane, profile = figure.subplots(1, 2, width_ratios=(1.25, 1), gridspec_kw={"wspace": 0.1})
    stride = max(1, run.config.cells // 1000)
    image = plane.pcolormesh(
        run.x[::stride],
        run.times,
        run.rho[:, ::stride],
        cmap="YlOrRd",
        vmin=0,
        alpha=0.8,
        vmax=run.config.rho_max,
        shading="nearest",
    )
    image.set_rasterized(True)
    figure.colorbar(image, ax=plane, label=r"density $\rho$", pad=0.02)
    plane.contour(run.faces[::stride], run.times, run.count[:, ::stride], run.car_levels(), **CARS)
    handles = [plane.plot([], [], "k", linewidth=0.6, label="cars")[0]]
    if run.config.states is not None:
        handles.append(_draw_characteristics(run, plane, run.config.states))
    plane.set(xlabel="position $x$", ylabel="time $t$", xlim=run.faces[[0, -1]], ylim=run.times[[0, -1]])
    plane.legend(handles=handles, loc="upper left", fontsize="small", framealpha=0.9)
    _draw_profiles(run, profile)
    figure.suptitle(f"{run.config.scenario.replace('_', ' ')}, " + rf"$\nu$ = {run.config.nu:g}", fontsize="medium")
    figure.savefig(path, dpi=160)


def _draw_characteristics(run: Run, plane: Axes, states: tuple[float, float]) -> Any:
    """Draw the characteristics of the inviscid Riemann problem, each until it meets the shock."""
    end = float(run.times[-1])
    left, right = run.config.road.characteristic_speed(states)
    shock = (left + right) / 2
    starts = np.linspace(run.faces[0] - abs(left) * end, run.faces[-1] + abs(right) * end, 28)
    rays = [(x0, left if x0 < 0 else right) for x0 in starts if x0 != 0]
    rays += [(0.0, speed) for speed in np.linspace(left, right, 13)] if left < right else []
    line = None
    for x0, speed in rays:
        meets = x0 / (shock - speed) if left > right else end
        t = min(end, meets)
        (line,) = plane.plot(
            [x0, x0 + speed * t], [0, t], "--", color="tab:blue", linewidth=0.9, label="characteristics"
        )
    return line


def _draw_profiles(run: Run, axes: Axes) -> None:
    rows = (0, len(run.times) // 2, len(run.times) - 1)
    for row, color in zip(rows, ("0.65", "tab:orange", "tab:red"), strict=True):
        axes.plot(run.x, run.rho[row], color=color, label=f"$t$ = {run.times[row]:.3g}")
    if run.exact is not None:
        axes.plot(run.x, run.exact, "k:", linewidth=1.5, label="exact")
    axes.set(xlabel="position $x$", ylabel=r"density $\rho$", xlim=run.faces[[0, -1]])
    axes.set_ylim(-0.04 * run.config.rho_max, 1.04 * run.config.rho_max)
    axes.legend(fontsize="small", framealpha=0.9)


def draw_fundamental_diagram(run: Run, path: Path) -> None:
    """Save flux and speed over density: the model's curves, and the states on the road at the last time."""
    from matplotlib.figure import Figure

    config, road = run.config, run.config.road
    rho = np.linspace(0, config.rho_max, 201)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    flows, speeds = figure.subplots(1, 2)
    flows.plot(rho, road.flux(rho), color="0.6", label=r"$Q(\rho) = \rho\,u(\rho)$")
    speeds.plot(rho, road.car_speed(rho), color="0.6", label=r"$u(\rho)$")
    speeds.plot(rho, road.characteristic_speed(rho), "--", color="tab:blue", label=r"$w = Q'(\rho)$")
    speeds.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    last = run.rho[-1]
    slope = np.gradient(last, config.length / config.cells)
    q = road.viscous_flux(last, slope, config.nu)
    flows.plot(last, q, ".", markersize=3, color="tab:red", label=r"on the road at the end, $q = Q - \nu \rho_x$")
    if config.states is not None and config.states[0] < config.states[1]:
        speed = road.shock_speed(*config.states)
        ends = road.flux(config.states)
        flows.plot(
            config.states, ends, "k-o", linewidth=1, markersize=4, label=f"shock, slope = its speed = {speed:.3g}"
        )
    flows.set(xlabel=r"density $\rho$", ylabel="flux (cars per time)")
    flows.set_ylim(bottom=0, top=1.35 * config.rho_max * config.u_max / 4)  # room for the legend
    speeds.set(xlabel=r"density $\rho$", ylabel="speed")
    for axes in (flows, speeds):
        axes.legend(fontsize="small", framealpha=0.9, loc="upper right")
    figure.savefig(path, dpi=160)


def animate(run: Run, path: Path) -> None:
    """Save a GIF: the density, and the cars as dots on the road."""
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    (density,) = axes.plot(run.x, run.rho[0], color="tab:red")
    (cars,) = axes.plot([], [], "ks", markersize=4)
    axes.set(xlabel="position $x$", ylabel=r"density $\rho$", xlim=run.faces[[0, -1]])
    axes.set_ylim(-0.15 * run.config.rho_max, 1.05 * run.config.rho_max)
    levels = run.car_levels()
    writer = PillowWriter(fps=20)
    with writer.saving(figure, str(path), dpi=80):
        for row in range(0, len(run.times), 3):
            on_road = levels[(levels > run.count[row, 0]) & (levels < run.count[row, -1])]
            positions = np.interp(on_road, run.count[row], run.faces)
            density.set_ydata(run.rho[row])
            cars.set_data(positions, np.full(positions.shape, -0.08 * run.config.rho_max))
            axes.set_title(f"{run.config.scenario.replace('_', ' ')}, $t$ = {run.times[row]:.2f}", fontsize="medium")
            writer.grab_frame()
            figure.set_layout_engine("none")  # laid out once
