"""`burgersgd traffic scenario=red_light nu=0.02`: solve a traffic scenario, compare with the exact solution, draw it.

All arguments are checked before anything is written: a mistake is reported in one line, with exit code 2.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from burgersgd.config import ConfigError, Group, opt
from burgersgd.theory import burgers, cole_hopf, traffic, traffic_figures
from burgersgd.theory.burgers import BurgersWarning
from burgersgd.theory.quadrature import Array
from burgersgd.theory.traffic import Greenshields

FRAMES = 241
"""Number of saved times: enough for smooth paths of cars."""
DRAWN_CARS = 32
_LIGHTS = {"red_light": traffic.RED_LIGHT, "green_light": traffic.GREEN_LIGHT}

HELP = """\
usage: burgersgd traffic [key=value ...]

Solve traffic flow with Greenshields' flux, rho_t + Q(rho)_x = nu rho_xx, on a road around x = 0; compare with the exact
solution where there is one; save the arrays, a space-time figure with the cars' paths and the fundamental diagram.

keys:
{keys}

Units are free but must agree: with rho_max in cars per km and u_max in km/h, length is in km, time in hours and nu in
km^2/h.

examples:
  burgersgd traffic scenario=red_light nu=0.02
  burgersgd traffic scenario=green_light nu=0 animate=true
  burgersgd traffic scenario=riemann rho_left=0.1 rho_right=0.7 time=2 length=6
  burgersgd traffic scenario=jam rho_max=120 u_max=100 length=5 nu=1 output=outputs/my_jam
"""


@dataclass
class TrafficConfig(Group):
    """The settings of `burgersgd traffic`, checked when it is built. Raises ConfigError."""

    group: ClassVar[str] = ""
    scenario: str = opt(
        "red_light",
        "red_light: cars run into a queue; green_light: it dissolves; jam: a block of dense traffic; ring: a ring road "
        "with a bump; riemann: rho_left meets rho_right",
        choices=("red_light", "green_light", "jam", "ring", "riemann"),
    )
    nu: float = opt(0.02, "viscosity: how far ahead drivers look; 0 for sharp shocks", at_least=0)
    cells: int = opt(800, "number of cells of the grid", at_least=16, at_most=100_000)
    length: float = opt(4.0, "length of the road, which is [-length/2, length/2]", above=0)
    time: float | None = opt(
        None, "end of the solution in time; by default 0.4 length/u_max, for ring 2 length/u_max", above=0
    )
    rho_max: float = opt(1.0, "largest density, that of cars bumper to bumper", above=0)
    u_max: float = opt(1.0, "largest speed, that on an empty road", above=0)
    rho_left: float | None = opt(None, "density for x < 0, with scenario=riemann only", at_least=0)
    rho_right: float | None = opt(None, "density for x > 0, with scenario=riemann only", at_least=0)
    animate: bool = opt(False, "true: also save an animated GIF")
    output: str | None = opt(None, "folder of the results; by default outputs/traffic/SCENARIO")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time is None:
            self.time = (2.0 if self.scenario == "ring" else 0.4) * self.length / self.u_max
        if self.output is None:
            self.output = f"outputs/traffic/{self.scenario}"
        for key in ("rho_left", "rho_right"):
            if self.scenario != "riemann" and getattr(self, key) is not None:
                raise self.error(key, f"must be left out with scenario={self.scenario}; only scenario=riemann uses it")
            if self.scenario == "riemann" and getattr(self, key) is None:
                raise ConfigError(f"{key}: must be given with scenario=riemann")
            if self.scenario == "riemann" and getattr(self, key) > self.rho_max:
                raise self.error(key, f"must be <= rho_max={self.rho_max:g}")

    @property
    def states(self) -> tuple[float, float] | None:
        """Densities left and right of x = 0 if the scenario is a jump, otherwise None."""
        if self.scenario in _LIGHTS:
            left, right = _LIGHTS[self.scenario]
            return left * self.rho_max, right * self.rho_max
        if self.rho_left is not None and self.rho_right is not None:
            return self.rho_left, self.rho_right
        return None

    @property
    def road(self) -> Greenshields:
        """The road, with its density bumper to bumper and its speed when it is empty."""
        return Greenshields(self.rho_max, self.u_max)


def main(arguments: list[str]) -> int:
    """Run `burgersgd traffic` with these arguments (without the word traffic) and return the exit code.

    0: success; 2: the arguments are wrong, matplotlib is missing, or the folder cannot be written; 130: interrupted.
    """
    if {"-h", "--help", "help"} & set(arguments):
        print(HELP.format(keys=_explained_keys()), end="")
        return 0
    try:
        config = parse(arguments)
        _require_matplotlib()
        folder = _made(Path(str(config.output)))
        run = simulate(config)
        files = save(run, folder)
    except KeyboardInterrupt:
        print("burgersgd: interrupted", file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError) as error:
        print(f"burgersgd: error: {error!s:.1000}", file=sys.stderr)
        return 2
    print("\n".join([*run.summary(), f"saved in {folder}: {', '.join(files)}"]))
    return 0


# ------------------------------------------------------------------------------------------------------------ arguments


def parse(arguments: list[str]) -> TrafficConfig:
    """Return the checked configuration; raises ConfigError, in one line, for a key or value that is not allowed."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(TrafficConfig)}
    values: dict[str, Any] = {}
    for word in arguments:
        key, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"{word}: must be of the form key=value (burgersgd traffic --help)")
        if key not in kinds:
            raise ConfigError(f"{key}: no such key, must be one of {', '.join(kinds)}")
        kind, _, optional = kinds[key].partition(" | ")
        try:
            values[key] = None if optional and text in ("null", "None") else _FROM_TEXT[kind](text)
        except (ValueError, KeyError):
            allowed = "true or false" if kind == "bool" else f"of type {kind}"
            raise ConfigError(f"{key}={text}: must be {allowed}") from None
    return TrafficConfig(**values)


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "float": float,
    "int": int,
    "str": str,
}


def _explained_keys() -> str:
    lines = []
    for f in dataclasses.fields(TrafficConfig):
        default = "" if f.default is None else f" [{str(f.default).lower()}]"
        words = textwrap.wrap(f.metadata["meaning"] + default, 105)
        lines.append(textwrap.indent("\n".join(words), " " * 13).replace(" " * 13, f"  {f.name:<11}", 1))
    return "\n".join(lines)


def _require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("burgersgd traffic draws with matplotlib: pip install matplotlib") from error


def _made(folder: Path) -> Path:
    """Return the folder, creating it if necessary."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={folder}: must be a folder that can be written ({error.strerror})") from error
    return folder


# ------------------------------------------------------------------------------------------------------------ solution


@dataclass(frozen=True)
class Run:
    """A solved scenario; arrays over times and cells."""

    config: TrafficConfig
    x: Array  # [cells]
    faces: Array  # [cells + 1]
    times: Array  # [times]
    rho: Array  # [times, cells]
    count: Array  # [times, cells + 1]: the paths of cars are its level sets
    exact: Array | None  # [cells], at the last time
    steps: int

    @property
    def error(self) -> float | None:
        """Mean of |rho - exact| / rho_max over the road at the last time."""
        if self.exact is None:
            return None
        return float(np.mean(np.abs(self.rho[-1] - self.exact))) / self.config.rho_max

    def car_levels(self) -> Array:
        """Return the values of count whose level sets are drawn, at equal distances."""
        spacing = max(self.count[0, -1], 0.1 * self.config.rho_max * self.config.length) / DRAWN_CARS
        first, last = np.min(self.count) / spacing, np.max(self.count) / spacing
        return spacing * (np.arange(np.floor(first), np.ceil(last)) + 0.5)

    def summary(self) -> list[str]:
        """Return the lines for the terminal."""
        c = self.config
        lines = [
            f"{c.scenario}: road [{-c.length / 2:g}, {c.length / 2:g}], time {c.time:g}, nu {c.nu:g}, {c.cells} cells, "
            f"{self.steps} steps"
        ]
        if c.states is not None and c.states[0] < c.states[1]:
            lines.append(f"shock from {c.states[0]:g} to {c.states[1]:g}, speed {c.road.shock_speed(*c.states):g}")
        elif c.states is not None and c.states[0] > c.states[1]:
            ends = c.road.characteristic_speed(c.states)
            lines.append(f"fan from {c.states[0]:g} to {c.states[1]:g}, between speeds {ends[0]:g} and {ends[1]:g}")
        if self.error is None:
            lines.append("not compared: the exact solution takes nu > 0 in this scenario")
        else:
            lines.append(f"error against the exact solution: {self.error:.2e} of rho_max (mean over x at the end)")
        return lines


def simulate(config: TrafficConfig) -> Run:
    """Solve the scenario; print a one-line warning if the grid is too coarse for nu."""
    half, time, road = config.length / 2, float(config.time or 0), config.road
    x, dx = burgers.cell_centers(config.cells, -half, half), config.length / config.cells
    periodic = config.scenario == "ring"
    jumps: list[float] = []
    if config.states is not None:
        jumps = [0.0]
    elif not periodic:
        jumps = [-traffic.JAM_PART * half, traffic.JAM_PART * half]

    def start(y: Array) -> Array:
        if config.states is not None:
            return road.riemann_solution(y, 0, *config.states, 0)
        return road.ring_density(y, config.length) if periodic else road.jam_density(y, config.length)

    times = np.linspace(0, time, FRAMES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BurgersWarning)
        solution = burgers.solve(
            burgers.cell_averages(start, config.cells, -half, half, breakpoints=jumps),
            dx=dx,
            times=times,
            nu=config.nu,
            law=road,
            boundary="periodic" if periodic else "inflow",
        )
    for warning in caught:
        print(f"burgersgd: warning: {warning.message}", file=sys.stderr)
    exact = None  # in closed form for a jump, otherwise by Cole-Hopf quadrature, which needs nu > 0
    if config.states is not None:
        exact = road.riemann_solution(x, time, *config.states, config.nu)
    elif config.nu > 0:
        w = cole_hopf.w_from_velocity(
            x,
            time,
            config.nu,
            lambda y: road.characteristic_speed(start(y)),
            max_speed=config.u_max,
            breakpoints=jumps,
        )
        exact = road.density(w)
    return Run(
        config=config,
        x=x,
        faces=np.linspace(-half, half, config.cells + 1),
        times=times,
        rho=solution.values,
        count=road.cumulative_count(solution.values, dx, times, config.nu, periodic=periodic),
        exact=exact,
        steps=solution.steps,
    )


# -------------------------------------------------------------------------------------------------------------- results


def save(run: Run, folder: Path) -> list[str]:
    """Write the arrays and the figures into the folder and return the names of the files."""
    config, files = run.config, ["solution.npz", "space_time.png", "fundamental_diagram.png"]
    np.savez_compressed(
        folder / files[0],
        x=run.x,
        times=run.times,
        rho=run.rho,
        w=config.road.characteristic_speed(run.rho),
        count=run.count,
        exact=np.full(0, np.nan) if run.exact is None else run.exact,
        nu=config.nu,
        rho_max=config.rho_max,
        u_max=config.u_max,
    )
    traffic_figures.draw_space_time(run, folder / files[1])
    traffic_figures.draw_fundamental_diagram(run, folder / files[2])
    if config.animate:
        files.append("cars.gif")
        traffic_figures.animate(run, folder / files[-1])
    return files
