"""`burgersgd traffic` from its arguments to its files."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from burgersgd.config import ConfigError
from burgersgd.theory import traffic_command
from burgersgd.theory.traffic import Greenshields
from burgersgd.theory.traffic_command import TrafficConfig, main, parse

FAST = ["cells=160", "nu=0.05"]


@pytest.mark.parametrize("scenario", ["red_light", "green_light", "jam", "ring"])
def test_every_scenario_agrees_with_its_exact_solution_and_saves_its_files(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"scenario={scenario}", f"output={tmp_path / 'run'}", *FAST]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    assert "error against the exact solution: " in out.out
    error = float(out.out.split("exact solution: ")[1].split()[0])
    assert error < 4e-4  # dx = 1/40, second order
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "fundamental_diagram.png",
        "solution.npz",
        "space_time.png",
    ]
    with np.load(tmp_path / "run" / "solution.npz") as saved:
        assert saved["rho"].shape == (traffic_command.FRAMES, 160)
        assert np.mean(np.abs(saved["rho"][-1] - saved["exact"])) == pytest.approx(error, rel=0.01)
        np.testing.assert_allclose(Greenshields().density(saved["w"]), saved["rho"], atol=1e-14)
        assert float(saved["nu"]) == 0.05


def test_custom_jump_with_units_says_the_speed_of_the_shock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scenario=riemann", "rho_left=20", "rho_right=90", "rho_max=120", "u_max=100", "length=5", "nu=4"]
    assert main([*words, "cells=200", f"output={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "shock from 20 to 90, speed 8.33333" in out  # 100 (1 - 110 / 120)
    assert "time 0.02," in out


def test_without_viscosity_a_light_is_compared_and_a_jam_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scenario=jam", "nu=0", "cells=64", f"output={tmp_path}"]) == 0
    assert "not compared" in capsys.readouterr().out
    assert main(["scenario=green_light", "nu=0", "cells=64", f"output={tmp_path}"]) == 0
    assert "error against the exact solution" in capsys.readouterr().out


@pytest.mark.parametrize("rho", ["0", "0.3", "1"])
def test_constant_density_stays_without_shock_or_fan(
    rho: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scenario=riemann", f"rho_left={rho}", f"rho_right={rho}", "cells=32", f"output={tmp_path}"]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("riemann: road [-2, 2], time 1.6, nu 0.02, 32 cells")
    assert float(second.split("exact solution: ")[1].split()[0]) < 1e-14


def test_animation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(traffic_command, "FRAMES", 10)
    assert main(["animate=true", f"output={tmp_path}", *FAST]) == 0
    with Image.open(tmp_path / "cars.gif") as image:
        assert getattr(image, "n_frames") == 4  # noqa: B009  (only some formats have it): every third time


def test_a_coarse_grid_warns_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nu=1e-3", "cells=64", f"output={tmp_path}"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("burgersgd: warning: grid too coarse for nu=0.001: the cell Peclet number")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("scenario=blue", "scenario=blue: must be one of red_light, green_light, jam, ring, riemann"),
        ("nu=-1", "nu=-1.0: must be >= 0"),
        ("nu=nan", "nu=nan: must be >= 0 and finite"),
        ("nu=inf", "nu=inf: must be >= 0 and finite"),
        ("nu=thick", "nu=thick: must be of type float"),
        ("cells=4", "cells=4: must be >= 16 and <= 100000"),
        ("cells=1e3", "cells=1e3: must be of type int"),
        ("animate=yes", "animate=yes: must be true or false"),
        ("time=0", "time=0.0: must be > 0"),
        ("viscosity=1", "viscosity: no such key, must be one of scenario, nu, "),
        ("red_light", "red_light: must be of the form key=value"),
        ("rho_left=0.3", "rho_left=0.3: must be left out with scenario=red_light"),
        ("scenario=riemann rho_left=0.3", "rho_right: must be given with scenario=riemann"),
        ("scenario=riemann rho_left=0.3 rho_right=1.3", "rho_right=1.3: must be <= rho_max=1"),
    ],
)
def test_mistakes_are_one_line_and_create_nothing(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    out = capsys.readouterr()
    assert out.out == ""
    (line,) = out.err.splitlines()
    assert line.startswith(f"burgersgd: error: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_the_way_of_the_folder_is_refused_before_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(traffic_command, "simulate", lambda config: pytest.fail("worked for nothing"))
    (tmp_path / "file").write_text("")
    assert main([f"output={tmp_path / name}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"burgersgd: error: output={tmp_path / name}: must be a folder that can be written (")


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([f"output={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install matplotlib")
    assert not (tmp_path / "run").exists()


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for f in dataclasses.fields(TrafficConfig):
        assert f"\n  {f.name} " in out
    assert max(map(len, out.splitlines())) <= 120


def test_defaults_follow_the_scenario_and_the_units() -> None:
    assert parse([]).output == "outputs/traffic/red_light"
    assert parse(["length=10", "u_max=100"]).time == pytest.approx(0.04)
    assert parse(["scenario=ring"]).time == pytest.approx(8)
    assert parse(["time=null", "nu=1e-3"]).nu == 1e-3
    with pytest.raises(ConfigError):
        TrafficConfig(cells=1.5)  # pyright: ignore[reportArgumentType]
