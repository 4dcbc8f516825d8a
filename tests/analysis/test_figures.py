"""Figures draw the measured values; their appearance was checked by eye."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from burgersgd.analysis import command, figures
from burgersgd.analysis.compare import compare
from burgersgd.analysis.question import Question
from burgersgd.analysis.runs import load
from burgersgd.cli import main
from tests.analysis.folders import write_run, write_sweep

INF = math.inf


def write_search(root: Path, optimizers: tuple[str, ...] = ("sgd", "adamw"), n: int = 9) -> Path:
    rng = np.random.default_rng(3)
    for name in optimizers:
        for i, lr in enumerate(10 ** rng.uniform(-3, 0, n)):
            for seed in range(2):
                optimizer = {"name": name, "lr": float(lr), "momentum": 0.1 * i, "nesterov": i % 2 == 0}
                error = 0.1 + lr / 10 + seed / 50
                seen = {"train_loss": lr, "validation_loss": 1, "validation_error": error}
                rows = [{"evaluations": e, "seconds": e / 50, **seen} for e in (0, 50, 99)]
                chosen = {"optimizer": optimizer, "seed": seed, "sweep.sampler": "random"}
                state = "diverged" if i == 7 else "completed"
                path = root / f"{name}-{i}-{seed}"
                write_run(path, chosen, state, rows=rows, validation_error=error, test_error=0.12 + lr / 10)
    return root


def test_mean_curve_is_the_mean_of_interpolated_runs_with_its_t_interval(tmp_path: Path) -> None:
    curves = [{0: 4.0, 100: 2.0, 200: 1.0}, {0: 3.0, 50: 2.5, 200: 2.0}, {0: 5.0, 100: 1.0, 200: 0.5}]
    for seed, curve in enumerate(curves):
        rows = [{"evaluations": e, "train_loss": v} for e, v in curve.items()]
        write_run(tmp_path / f"{seed}", {"seed": seed}, rows=rows)
    write_run(tmp_path / "diverged", {"seed": 9}, "diverged", rows=[{"evaluations": 0, "train_loss": 1e9}] * 2)
    band = figures.mean_curve(load(tmp_path), "train_loss", "evaluations")
    assert band is not None
    x, mean, low, high = band
    assert x.tolist() == [0, 100, 200]
    values = np.array([[4, 2, 1], [3, 2.5 - 0.5 / 3, 2], [5, 1, 0.5]])
    assert mean == pytest.approx(values.mean(axis=0))
    expected = stats.ttest_1samp(values, 0).confidence_interval()  # pyright: ignore[reportAttributeAccessIssue]
    assert high == pytest.approx(expected.high)
    assert low == pytest.approx(np.maximum(expected.low, mean * 1e-3))
    assert figures.mean_curve(load(tmp_path), "temperature", "evaluations") is None


def test_values_are_drawn_as_points_with_mean_interval_and_what_diverged(tmp_path: Path) -> None:
    errors = {"sgd": [0.03, 0.02, INF], "adamw": [0.05, 0.04, 0.06]}
    c = compare(load(write_sweep(tmp_path, errors)), Question(by=("optimizer.name",)))
    (ax,) = figures.values(c).axes
    drawn = [line.get_xdata() for line in ax.lines]
    assert drawn[0] == pytest.approx([3, 2])  # rows from below: the one that diverges is last in the table
    assert drawn[2] == pytest.approx([2.5])
    assert drawn[3] == pytest.approx([5, 4, 6])
    assert drawn[4] == pytest.approx([100 * end for end in c.blocks[0].rows[0].interval])
    assert [text.get_text() for text in ax.texts] == ["1 diverged"]


def test_a_heat_map_has_the_means_over_seeds_and_marks_what_diverged(tmp_path: Path) -> None:
    for lr in (0.1, 0.3):
        for momentum in (0.0, 0.9):
            for seed in range(2):
                state = "diverged" if (lr, momentum, seed) == (0.3, 0.9, 1) else "completed"
                settings = {"optimizer": {"name": "sgd", "lr": lr, "momentum": momentum}, "seed": seed}
                write_run(
                    tmp_path / f"{lr}{momentum}{seed}", settings, state, validation_error=lr + momentum / 10 + seed / 50
                )
    c = compare(load(tmp_path), Question(by=("optimizer.name",)))
    ax = figures.heat_map(c, "optimizer.lr", "optimizer.momentum").axes[0]
    image = ax.images[0].get_array()
    assert image is not None
    assert np.asarray(image)[0] == pytest.approx([11, 31])
    assert np.asarray(image)[1, 0] == pytest.approx(20)
    assert [text.get_text() for text in ax.texts] == ["11", "31", "20", "div."]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.1", "0.3"]
    by_lr = compare(load(tmp_path), Question(by=("optimizer.name", "optimizer.lr")))
    (again, _) = figures.heat_map(by_lr, "optimizer.lr", "optimizer.momentum").axes
    assert [text.get_text() for text in again.texts] == ["11", "31", "20", "div."]
    with pytest.raises(ValueError, match=r"heat=optimizer.lr,optimizer.nu: no row has both keys"):
        figures.heat_map(c, "optimizer.lr", "optimizer.nu")


def test_a_search_is_drawn_in_all_ways(tmp_path: Path) -> None:
    c = compare(load(write_search(tmp_path)), Question(by=("optimizer.name",)))
    found = figures.figures_of(c)
    names = ["curves_evaluations", "curves_seconds", "values", "tuning", "slices", "parallel_sgd", "parallel_adamw"]
    assert sorted(found) == sorted(names)
    first, second = found["tuning"].axes
    assert np.size(first.lines[0].get_xdata()) == 8  # nine trials, of which the first value is a median
    assert np.size(first.lines[1].get_xdata()) == 1
    assert second.get_xlabel() == "gradient evaluations of the trials"
    contour = figures.heat_map(c, "optimizer.lr", "optimizer.momentum").axes[0]
    assert contour.get_xscale() == "log"
    assert len(contour.collections) > 1


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_figure_is_written_as_its_suffix_says(tmp_path: Path, suffix: str) -> None:
    runs = load(write_sweep(tmp_path / "runs", {"sgd": [0.1, 0.2]}))
    runs.plot(kind="values", path=tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-")


def test_the_command_writes_figures_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suffix = "svg"
    write_search(tmp_path / "runs", ("sgd",), 3)
    words = ["compare", "runs", "--by", "optimizer.name", "--figures", "drawn", "--heat", "optimizer.lr,seed"]
    tables = ["--save", "t.csv", "--save", "t.md", "--save", "t.tex", "--save", "t.json", "--tuning-curve"]
    assert main([*words, "--format", suffix, *tables]) == 0
    shown = capsys.readouterr()
    assert "best of n" in shown.out
    paths = [Path(line.removeprefix("written: ")) for line in shown.err.splitlines()]
    assert {path.name for path in paths} >= {"t.csv", "t.md", f"values.{suffix}", f"heat_optimizer.lr_seed.{suffix}"}
    assert all(path.stat().st_size > 100 for path in paths)


def test_mistakes_with_figures_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sweep(tmp_path / "runs", {"sgd": [0.1, 0.2]})
    for words, message in (
        (["--save", "t.doc"], "--save t.doc: must end in .csv"),
        (["--heat", "seed"], "--heat seed: must be KEY,KEY"),
        (["--profiles"], "--profiles: needs runs on two data sets"),
    ):
        with pytest.raises(ValueError, match=message):
            command.main(["runs", *words])
    runs = load("runs")
    with pytest.raises(ValueError, match=r"kind=violin: must be heat=KEY,KEY or one of curves_evaluations"):
        runs.plot(kind="violin")
    with pytest.raises(ValueError, match=r"a.doc: a figure must end in"):
        runs.plot(kind="values", path="a.doc")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"figures need matplotlib \(pip install"):
        runs.plot(kind="values")


def test_runs_plot_is_a_figure_of_their_comparison(tmp_path: Path) -> None:
    runs = load(write_sweep(tmp_path / "runs", {"sgd": [0.1, 0.2], "adamw": [0.2, 0.3]}))
    figure = runs.plot("optimizer.name", kind="values", path=tmp_path / "new/values.svg", metric="validation_error")
    assert figure.axes[0].get_xlabel().startswith("validation error %")
    assert (tmp_path / "new/values.svg").read_text().startswith("<?xml")
