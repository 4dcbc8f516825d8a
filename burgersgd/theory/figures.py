"""The figures of `burgersgd verify`. matplotlib is imported only when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from burgersgd.optimizers.local_entropy import LocalEntropy
from burgersgd.theory import burgers, cole_hopf, local_entropy, traffic, verify_pde, verify_sde
from burgersgd.theory.paths import end_of_walk
from burgersgd.theory.quadrature import Array

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.3,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}
INK, WRONG = "0.15", "#c1432e"


def draw(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Draw the named figures of FIGURES into the folder, under these names; return file name -> caption."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    captions: dict[str, str] = {}
    with mpl.rc_context(STYLE):
        for name in names:
            figure = Figure(figsize=(7.2, 3.2))
            FigureCanvasAgg(figure)
            _, drawing = FIGURES[name]
            captions[name] = drawing(figure)
            figure.savefig(folder / name)
    return captions


def shades(n: int) -> Array:
    """Return n colours from dark to light that can be told apart in grey, too."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0.0, 0.85, n))


def shock(figure: Any) -> str:
    """Draw a sine wave that steepens into a shock, for several nu: exact lines, dots of the solver."""
    times, viscosities = (0.15, 0.4, 1.0), (0.1, 0.03, 0.01, 0.003)
    x = np.linspace(-1, 1, 601)
    axes = figure.subplots(1, 3, sharey=True)
    for nu, color in zip(viscosities, shades(len(viscosities)), strict=True):
        cells = 800
        start = burgers.cell_averages(lambda z: -np.sin(np.pi * z), cells, -1.0, 1.0)
        found = burgers.solve(start, dx=2 / cells, times=times, nu=nu).values
        centers = burgers.cell_centers(cells, -1.0, 1.0)
        for axis, t, values in zip(axes, times, found, strict=True):
            axis.plot(x, cole_hopf.sine(x, t, nu), color=color, label=rf"$\nu = {nu:g}$")
            axis.plot(centers[12::25], values[12::25], ".", color=color, markersize=3.5)
    for axis, t in zip(axes, times, strict=True):
        axis.plot(x, -np.sin(np.pi * x), color="0.75", linewidth=0.8, zorder=0)
        axis.set(title=f"$t = {t:g}$", xlabel="$x$")
    axes[0].set_ylabel("$w(x, t)$")
    axes[2].legend(loc="upper right", handlelength=1.2)
    return (
        "A shock forms and viscosity smooths it: Burgers' equation from -sin(pi x) (grey). Lines: Cole-Hopf (4.16). "
        "Dots: the finite-volume solver, 800 cells, every 25th shown."
    )


def landscape(figure: Any) -> str:
    """Draw a rugged loss, its local entropy and its slope as gamma grows."""
    nu, loss = 0.05, local_entropy.rastrigin_loss(1.0, 0.25, 4 * math.pi)
    gammas = (0.01, 0.05, 0.2, 1.0)
    x = np.linspace(-1.6, 1.6, 641)
    left, right = figure.subplots(1, 2)
    left.plot(x, loss.value(x), color="0.7", label=r"$F$, $\gamma = 0$")
    right.plot(x, loss.gradient(x), color="0.7")
    for gamma, color in zip(gammas, shades(len(gammas)), strict=True):
        found = local_entropy.local_entropy(loss.value, x, gamma, nu)
        left.plot(x, found.value, color=color, label=rf"$\gamma = {gamma:g}$")
        right.plot(x, found.gradient, color=color)
    left.set(xlabel="$x$", ylabel=r"$F_\gamma(x)$", title=r"local entropy, $\nu = 0.05$")
    right.set(
        xlabel="$x$", ylabel=r"$w(x, \gamma) = F_\gamma'(x)$", title=r"its slope: Burgers' equation at time $\gamma$"
    )
    left.legend(loc="upper center", ncols=2, handlelength=1.2, columnspacing=1.0)
    left.set_ylim(top=2.6)
    return (
        "A rugged loss and its local entropy (4.1) as gamma grows, and its slope, which Burgers' equation carries "
        "from F' at time 0 to grad F_gamma at time gamma (4.20): shocks merge, ripples vanish, the basin stays."
    )


def red_light_turns_green(figure: Any) -> str:
    """Draw the density of cars in space and time while a light is red and turns green, with characteristics."""
    arriving, green_at, end = 0.35, 1.0, 3.0  # rho_m = u_m = 1
    cells, reach = 1200, 2.0
    half = cells // 2
    dx = 2 * reach / cells
    x = burgers.cell_centers(cells, -reach, reach)
    law = traffic.Greenshields()
    before, after = np.linspace(0, green_at, 61)[1:], np.linspace(0, end - green_at, 121)[1:]
    queue = burgers.solve(
        np.full(half, arriving), dx=dx, times=before, nu=0.0, law=law, boundary="inflow", inflow=(arriving, 1.0)
    ).values
    start = np.concatenate([queue[-1], np.zeros(half)])
    flows = burgers.solve(start, dx=dx, times=after, nu=0.0, law=law, boundary="inflow", inflow=(arriving, 0.0)).values
    rho = np.concatenate([np.hstack([queue, np.zeros_like(queue)]), flows])
    t = np.concatenate([before, green_at + after])

    axis = figure.subplots()
    mesh = axis.pcolormesh(x, t, rho, cmap="Blues", vmin=0, vmax=1.25, shading="nearest", rasterized=True)
    speed = float(law.characteristic_speed(arriving))
    tail = law.shock_speed(arriving, 1.0)
    meets = green_at / (1 + tail)  # the time when the fan's edge, moving back at u_m, reaches the tail of the queue
    tau = np.linspace(meets - green_at, end - green_at, 200)
    bend = (tail * meets - speed * tau[0]) / math.sqrt(tau[0])  # dx/dtau = (w_l + x / tau) / 2
    shock_t = np.concatenate([[0], green_at + tau])
    shock_x = np.concatenate([[0], speed * tau + bend * np.sqrt(tau)])

    rays = [(x0, 0.0, speed, -1) for x0 in np.arange(-reach - 1.0, 0.0, 0.2)]
    rays += [(0.0, t0, -1.0, 1) for t0 in np.arange(0.1, green_at, 0.2)]
    rays += [(0.0, green_at, w, 1) for w in np.linspace(-1, 1, 11)]
    for x0, t0, w, side in rays:  # each is drawn until it meets the shock, which it reaches from this side
        times = np.linspace(t0, end, 400)
        path = x0 + w * (times - t0)
        met = np.flatnonzero(side * (path - np.interp(times, shock_t, shock_x)) < -1e-9)
        stop = met[0] if met.size else len(times)
        axis.plot(path[:stop], times[:stop], color=INK, linewidth=0.5)
    axis.plot(shock_x, shock_t, color=WRONG, linewidth=1.6)
    axis.plot([0, 0], [0, green_at], color=WRONG, linewidth=3, solid_capstyle="butt")
    axis.annotate("red light", (0.03, 0.45), color=WRONG)
    behind = {"boxstyle": "square,pad=0.15", "facecolor": mesh.cmap(mesh.norm(arriving)), "edgecolor": "none"}
    axis.annotate("tail of the queue", (-0.62, 0.85), color=WRONG, ha="right", bbox=behind)
    axis.set(xlim=(-reach, reach), ylim=(0, end), xlabel="position $x$ (light at 0)", ylabel="time $t$")
    bar = figure.colorbar(mesh, ax=axis, boundaries=np.linspace(0, 1, 101), ticks=[0, 0.5, 1], pad=0.02)
    bar.set_label(r"density $\rho / \rho_m$")
    return (
        "A red light turns green at t = 1 (rho_m = u_m = 1, nu = 0): density by the solver, characteristics (thin) "
        "and the shock at the tail of the queue (red) in closed form, by Rankine and Hugoniot."
    )


def orders(figure: Any) -> str:
    """Draw the errors of the solver and of homogenisation with their fitted slopes."""
    axes = figure.subplots(1, 3)
    sizes = [2 / cells for cells in verify_pde.SINE_CELLS]
    epsilons, found = list(verify_sde.EPSILONS), verify_sde.convergence()
    panels: list[tuple[str, str, list[tuple[str, list[float], list[float], str]]]] = [
        (
            r"solver, $L^1$ error",
            r"$\Delta x$",
            [
                ("first order", sizes, verify_pde.sine_errors(True), "s"),
                ("van Leer", sizes, verify_pde.sine_errors(False), "o"),
            ],
        ),
        (r"weak, $|E\,x(1) - X(1)|$", r"$\epsilon$", [("", epsilons, found.weak, "o")]),
        (r"strong, rms of $x(1) - X(1)$", r"$\epsilon$", [("", epsilons, found.strong, "o")]),
    ]
    for axis, (title, label, series) in zip(axes, panels, strict=True):
        for (name, h, errors, marker), color in zip(series, shades(2), strict=False):
            slope, level = np.polyfit(np.log(h), np.log(errors), 1)
            text = f"{name}, slope {slope:.2f}" if name else f"slope {slope:.2f}"
            axis.loglog(h, np.exp(level) * np.array(h) ** slope, color=color, linewidth=0.9, label=text)
            axis.loglog(h, errors, marker, color=color, markersize=4)
        if title.startswith("weak"):
            axis.errorbar(epsilons, found.weak, 2 * np.array(found.weak_error), fmt="none", color=INK, capsize=2)
        axis.set(title=title, xlabel=label)
        axis.legend(loc="upper left", handlelength=1.2)
        axis.minorticks_off()
        ticks = series[0][1]
        axis.set_xticks(ticks, [f"1/{1 / h:.0f}" for h in ticks])
        if title.startswith("strong"):
            levels = [0.04, 0.06, 0.1, 0.15]
            axis.set_yticks(levels, [f"{level:g}" for level in levels])
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
    return (
        "Orders of convergence with fitted slopes: the solver on -sin(pi x) at t = 0.5 against Cole-Hopf; the "
        "fast-slow system (5.14) with noise sqrt(4 nu / eps) against its limit (5.12), 8,000 paths; bars are two "
        "standard errors."
    )


def stationary_law(figure: Any) -> str:
    """Draw the law of the fast point against exp(-G / 2 nu) and the curve of the wrong temperature."""
    axes = figure.subplots(1, 2)
    cases: list[tuple[str, local_entropy.Loss, float, float, float]] = [
        (r"$F = (y^2 - 1)^2$, $x = 0$, $\gamma = 1$", local_entropy.DOUBLE_WELL, 0.0, 1.0, 0.15),
        (r"$F = y^2/2 + 0.45 \cos 2y$, $x = 0.4$, $\gamma = 0.5$", local_entropy.RIPPLE, 0.4, 0.5, 0.1),
    ]
    rule = LocalEntropy(inner_steps=1500, averaging="last", integrator="leimkuhler_matthews")
    for axis, (title, loss, x, gamma, nu) in zip(axes, cases, strict=True):
        start, hyper = np.full((20_000, 1), x), {"lr": 0.02, "nu": nu, "gamma": gamma}
        sample = end_of_walk(rule, start, loss.gradient, 1500, seed=51, **hyper).y.numpy()
        law = local_entropy.fast_law(loss.value, x, gamma, nu)
        wrong = local_entropy.fast_law(loss.value, x, gamma, nu / 2)
        axis.hist(sample.ravel(), bins=60, density=True, color="0.82", label="fast point $y$, 20,000 chains")
        y = x + np.linspace(law.low[0, 0], law.high[0, 0], 2001)
        density, highest = law.density(y), float(wrong.density(y).max())
        axis.plot(y, density, color=INK, label=r"$\exp(-G / 2\nu) / Z$")
        axis.plot(y, wrong.density(y), "--", color=WRONG, label=r"$\exp(-G / \nu) / Z$, noise as printed in (5.14)")
        seen = y[density > 1e-4 * density.max()]
        axis.set(title=rf"{title}, $\nu = {nu:g}$", xlabel="$y$", xlim=(1.1 * seen[0], 1.1 * seen[-1]))
        axis.set_ylim(0, 1.45 * highest)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
    axes[0].legend(loc="upper left", handlelength=1.4)
    return (
        "The law of the fast point y at frozen x, stepped by the optimizer that trains networks, is exp(-G / 2 nu) / Z "
        "(4.21); with the noise printed in (5.14) it would be the red curve."
    )


FIGURES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "shock.png": ("burgers", shock),
    "landscape.png": ("local_entropy", landscape),
    "red_light_turns_green.png": ("traffic", red_light_turns_green),
    "orders.png": ("homogenisation", orders),
    "stationary_law.png": ("langevin", stationary_law),
}
"""File name -> the group of checks that it belongs to, and the function that draws it and returns its caption."""
