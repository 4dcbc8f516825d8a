"""Measure the Burgers solver: nanoseconds per cell and time step, and the same problem by py-pde where it is installed.

The problem: w(x, 0) = -sin(pi x) on the ring [-1, 1], nu as small as the grid resolves (cell Peclet number 1). Prints a
Markdown table. Run: python scripts/bench_burgers.py [--cells 1024 4096 16384] [--steps 200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from burgersgd.theory import cole_hopf
from burgersgd.theory.burgers import BURGERS, cell_averages, cell_centers, solve
from burgersgd.theory.traffic import Greenshields

TARGET = 150.0
"""Nanoseconds per cell and time step, at 4,096 cells and more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-rival", action="store_true", help="do not measure py-pde")
    arguments = parser.parse_args()
    print(f"\nnanoseconds per cell and time step, median of {arguments.rounds} rounds of {arguments.steps} steps:\n")
    print("| cells | w, periodic | w, no flux | rho, periodic | w, nu = 0 |\n|---|---|---|---|---|")
    slowest = 0.0
    for cells in arguments.cells:
        times = [per_step(cells, kind, arguments.steps, arguments.rounds) / cells * 1e9 for kind in KINDS]
        slowest = max([slowest, *times]) if cells >= 4096 else slowest
        print(f"| {cells:,} | " + " | ".join(f"{t:.1f}" for t in times) + " |")
    print(f"\ntarget at 4,096 cells and more: {TARGET:g} ns; slowest: {slowest:.1f} ns")
    if not arguments.no_rival:
        compare_with_py_pde()


KINDS: tuple[dict[str, object], ...] = (
    {},
    {"boundary": "no_flux"},
    {"law": Greenshields()},
    {"nu": 0.0},
)


def per_step(cells: int, kind: dict[str, object], steps: int, rounds: int) -> float:
    """Return the seconds of a time step."""
    dx, law = 2 / cells, kind.get("law", BURGERS)
    w = cell_averages(lambda y: -np.sin(math.pi * y), cells, -1, 1)
    u = (1 - w) / 2 if law is not BURGERS else w
    options: dict[str, object] = {"nu": 2 * dx} | kind
    dt = 0.4 * dx
    return timed(lambda: solve(u, dx=dx, times=steps * dt, dt=dt, **options), rounds) / steps  # pyright: ignore


def timed(call: Callable[[], object], rounds: int) -> float:
    """Return the median of the seconds of a call, after one to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def compare_with_py_pde(nu: float = 0.01, end: float = 0.5) -> None:
    """Print seconds and errors of the same solution on three grids, ours and py-pde's (central differences, RK4).

    py-pde's step is as long as stability of its diffusion allows: 0.6 dx^2 / nu. Its compilation is not counted.
    """
    try:
        from pde import PDE, CartesianGrid, ScalarField  # pyright: ignore[reportMissingImports]
        from pde.solvers import RungeKuttaSolver  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("\npy-pde is not installed: not compared (pip install py-pde)")
        return
    version = importlib.metadata.version("py-pde")
    print(f"\nthe sine at t = {end:g}, nu = {nu:g}, against py-pde {version} (its compilation is not counted):\n")
    print("| cells | solver | time steps | seconds | ns per cell and step | mean error |\n|---|---|---|---|---|---|")
    for cells in (512, 1024, 4096):
        dx, x = 2 / cells, cell_centers(cells, -1, 1)
        exact, initial = cole_hopf.sine(x, end, nu), cell_averages(lambda y: -np.sin(math.pi * y), cells, -1, 1)

        def report(
            name: str, call: Callable[[], np.ndarray], steps: int, n: int = cells, e: np.ndarray = exact
        ) -> None:
            seconds, error = timed(call, 3), float(np.mean(np.abs(call() - e)))
            each = seconds / steps / n * 1e9
            print(f"| {n:,} | {name} | {steps:,} | {seconds:.4f} | {each:.0f} | {error:.1e} |", flush=True)

        def ours(u: np.ndarray = initial, dx: float = dx) -> np.ndarray:
            return solve(u, dx=dx, times=end, nu=nu).values[0]

        report("burgersgd", ours, solve(initial, dx=dx, times=end, nu=nu).steps)
        field = ScalarField(CartesianGrid([(-1, 1)], cells, periodic=True), -np.sin(math.pi * x))
        equation = PDE({"w": f"-d_dx(w**2) / 2 + {nu} * laplace(w)"}, bc="periodic")
        steps = math.ceil(end / (0.6 * dx * dx / nu))
        for backend in ("numpy", "numba"):
            advance = RungeKuttaSolver(equation, backend=backend).make_stepper(field.copy(), end / steps)

            def rival(advance: Callable[..., object] = advance, start: ScalarField = field) -> np.ndarray:
                state = start.copy()
                advance(state, 0.0, end)
                return state.data

            if backend == "numba" or cells <= 1024:
                report(f"py-pde, {backend}", rival, steps)


if __name__ == "__main__":
    main()
