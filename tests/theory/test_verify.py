"""`burgersgd verify` holds as it stands, and every slip that the paper makes would be seen."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from burgersgd.theory import burgers, sabotage, verify
from burgersgd.theory.traffic import Greenshields
from burgersgd.theory.verify_rows import CHECKS, GROUPS, Row, agrees, misprint, scored, within
from tests.test_equations import table


def run(*arguments: str) -> int:
    return verify.main([*arguments, "--no-plots", "--output", "out"])


# As it stands ----------------------------------------------------------------------------------------------------

DOCUMENTED = table()


@functools.cache
def rows_of(check: str) -> list[Row]:
    with verify.one_thread():
        return CHECKS[check]()


def rows_about(equation: str) -> list[Row]:
    rows = [row for check in DOCUMENTED[equation].checks for row in rows_of(check)]
    return [row for row in rows if equation in row.equation.split(", ")]


@pytest.mark.parametrize("equation", [equation for equation, line in DOCUMENTED.items() if line.checks])
def test_every_equation_holds_as_documented(equation: str) -> None:
    """Its rows hold, measure the functions that docs/equations.md names, and find the numbers that it gives."""
    line, rows = DOCUMENTED[equation], rows_about(equation)
    assert [(r.statement, r.measured, r.expected, r.tolerance, r.printed) for r in rows if not r.passed] == []
    assert all(row.reason for row in rows)
    for row in rows:
        if row.printed is not None:
            assert "misprint" in {DOCUMENTED[other].printed for other in row.equation.split(", ")}, row.statement
    named = {name for row in rows for of in row.functions for name in (of, f"theory.{of}")}
    assert {p for p in line.places if any(f"{n}.".startswith(f"{p}.") for n in named)} == set(line.places)
    written = [float(n) for n in re.findall(r"-?\d[\d.]*(?:e[+-]\d+)?", re.sub(r"`.*?`", "", line.measured))]
    numbers = [(row.measured, row.expected or None, row.printed) for row in rows]
    now = [n for triple in numbers for n in triple if n is not None]
    # to the digits of the document and the rounding of other processors
    np.testing.assert_allclose(written, now, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_measures_the_equations_that_name_it(check: str) -> None:
    measured = {equation for row in rows_of(check) for equation in row.equation.split(", ")}
    assert measured == {equation for equation, line in DOCUMENTED.items() if check in line.checks}
    assert check.partition(".")[0] in GROUPS


def test_every_row_is_written_down(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["traffic", "cole_hopf.heat_kernel", "optimizer.network_and_gradients"]
    assert run(*names) == 0
    shown = capsys.readouterr()
    assert "FAILS" not in shown.out
    report = json.loads(Path("out/verify.json").read_text(encoding="utf-8"))
    assert report["passed"]
    assert list(report["seconds"]) == verify.select(names)
    rows = report["rows"]
    assert len(rows) == sum(len(rows_of(check)) for check in verify.select(names))
    assert {row["verdict"] for row in rows} == {"holds", "misprint confirmed"}
    markdown = Path("out/verify.md").read_text(encoding="utf-8")
    assert all(row["statement"].replace("|", "\\|") in markdown for row in rows)
    assert sum(line.endswith((" holds |", " confirmed |")) for line in markdown.splitlines()) == len(rows)


def test_list_names_groups_and_checks_and_creates_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--list"]) == 0
    words = capsys.readouterr().out.split()
    assert set(GROUPS) | set(CHECKS) <= set(words)
    assert "Implements" not in words  # tags are for readers of the code
    assert not list(Path().iterdir())


def test_names_choose_groups_and_checks() -> None:
    assert verify.select(["burgers.invariants", "traffic.model"]) == ["traffic.model", "burgers.invariants"]
    assert {n.partition(".")[0] for n in verify.select(["cole_hopf", "optimizer"])} == {"cole_hopf", "optimizer"}
    assert len(verify.select([])) == len(CHECKS)


# Sabotage --------------------------------------------------------------------------------------------------------

SLOW = {
    "burgers.reaches_small_viscosity",
    "homogenisation.descent",
    "homogenisation.orders",
    "homogenisation.temperature",
    "langevin.annealing",
    "langevin.invariant_law",
    "langevin.minibatch_noise",
    "local_entropy.burgers_flow",
}
"""Checks that take a second or more for all of their functions."""


@pytest.mark.parametrize("check", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CHECKS])
@pytest.mark.filterwarnings("ignore")  # wrong functions may do anything
def test_every_row_notices_when_a_function_that_it_names_is_wrong(check: str) -> None:
    with verify.one_thread():
        rows = rows_of(check)
        tried = list(sabotage.trials(check, rows))
    assert [str(trial) for trial in tried if not trial.passed] == []
    assert {name for row in rows for name in row.functions} == {trial.function for trial in tried}


def test_sabotage_finds_rows_that_cannot_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of, of_shock = "traffic.Greenshields.flux", "traffic.Greenshields.shock_speed"

    def empty() -> list[Row]:
        flux = Greenshields().flux(0.5)
        return [
            agrees("", of, "cannot fail", 1.0, 1.0, 0.5, "no reason"),
            agrees("", of_shock, "calls something else", flux, 0.25, 1e-9, "rounding"),
            agrees("", of, "can fail", flux, 0.25, 1e-9, "rounding"),
        ]

    monkeypatch.setitem(CHECKS, "traffic.model", empty)
    assert verify.main(["traffic.model", "--sabotage"]) == 1
    shown = capsys.readouterr().out
    assert f"FAILS: traffic.model, {of}: 1 rows notice; HOLDS: cannot fail" in shown
    assert f"FAILS: traffic.model, {of_shock}: was not called" in shown
    assert float(Greenshields().flux(0.5)) == 0.25  # what was wrong is right again
    assert not list(Path().iterdir())
    assert verify.main(["traffic.density_and_speed", "--sabotage"]) == 0


def test_a_wrong_function_returns_wrong_numbers_whatever_it_returns() -> None:
    wrong = 1.07 * 2 + 0.013
    assert sabotage.spoiled(2.0) == wrong
    assert sabotage.spoiled(np.full(3, 2.0)).tolist() == [wrong] * 3
    assert sabotage.spoiled(lambda: 2.0)() == wrong
    assert sabotage.spoiled(agrees("3.4", "", "", 2.0, 0, 0, "")).measured == wrong
    assert sabotage.spoiled((2.0, [2.0], "2", True, 2)) == (wrong, [wrong], "2", True, 2)
    assert sabotage.spoiled(torch.arange(50)).max() == 49  # indices
    with sabotage.sabotaged("burgers.Burgers.godunov"):
        assert burgers.BURGERS.godunov(np.array([2.0]), np.array([2.0])) == wrong
    with pytest.raises(LookupError, match="no such function"), sabotage.sabotaged("traffic.no_such"):
        pass


def test_a_check_that_raises_is_a_row_that_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> list[Row]:
        raise ValueError("no such thing")

    monkeypatch.setitem(CHECKS, "traffic.model", broken)
    assert run("traffic.model", "burgers.invariants") == 1
    assert "ValueError: no such thing" in " ".join(capsys.readouterr().out.split())
    assert len(json.loads(Path("out/verify.json").read_text(encoding="utf-8"))["rows"]) > 1


def test_checks_run_in_one_thread_whatever_torch_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look() -> list[Row]:
        seen.append(torch.get_num_threads())
        return [agrees("3.4", "", "", 0, 0, 0, "")]

    monkeypatch.setitem(CHECKS, "traffic.model", look)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert run("traffic.model") == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> list[Row]:
        raise KeyboardInterrupt

    monkeypatch.setitem(CHECKS, "traffic.model", stopped)
    assert run("traffic.model") == 130
    shown = capsys.readouterr()
    assert "\nburgersgd: interrupted\n" in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


# Rows ------------------------------------------------------------------------------------------------------------


def test_rows_judge() -> None:
    assert agrees("", "", "", 1.1, 1.0, 0.2, "").passed
    assert not any(agrees("", "", "", wrong, 1.0, 0.2, "").passed for wrong in (0.7, 1.3))
    assert agrees("", "", "", np.array([-0.1, 0.05]), 0, 0.2, "").measured == 0.1
    assert not agrees("", "", "", np.array([-0.3, 0.1]), 0, 0.2, "").passed
    assert not agrees("", "", "", math.nan, 1.0, 0.2, "").passed
    assert within("", "", "", 0.9, 1, (0.8, 1.2), "").passed
    assert not within("", "", "", math.nan, 1, (0.8, 1.2), "").passed
    assert scored("", "", "", 1.5, 1.0, 0.1).passed
    assert not any(scored("", "", "", wrong, 1.0, 0.1).passed for wrong in (0.3, 1.7))
    assert not scored("", "", "", math.nan, 1.0, 0.1).passed
    assert misprint("", "", "", (1.0, 2.0), 1.0, 0.1, "").verdict == "misprint confirmed"
    assert misprint("", "", "", (1.0, 1.15), 1.0, 0.1, "").verdict == "FAILS"  # the printed form is not refuted
    assert misprint("", "", "", (1.3, 2.0), 1.0, 0.1, "").verdict == "FAILS"  # the corrected form does not hold


@pytest.mark.parametrize("width", [40, 100, 137])
def test_table_keeps_within_the_terminal(width: int) -> None:
    long = "a statement that is as long as statements can be, " * 4
    rows = [
        agrees("4.12, 4.13", "", long, -1.23456e-12, -1e-300, 1e-3, long),
        misprint("5.18", "", "b", (1, -2e9), 1, 1e-9, "c"),
    ]
    report = verify.Report([dataclasses.replace(row, check="traffic.model") for row in rows], {"traffic.model": 0.1})
    lines = verify.table(report, width).splitlines()
    assert max(map(len, lines)) <= max(width, 100)
    assert " ".join(" ".join(lines).split()).count("misprint") == 1


# Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trafic"], "trafic: no such check; must be one of traffic, burgers, cole_hopf"),
        (["traffic.modell"], "must be one of traffic.model, traffic."),
        (["--colour"], "--colour"),
        (["traffic", "--output", "file"], "file: must be a folder"),
        (["traffic", "--output", "file/deeper"], "must be a folder"),
    ],
)
def test_bad_arguments_are_one_line_and_create_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("taken", encoding="utf-8")
    assert verify.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_without_matplotlib_only_the_figures_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert verify.main(["traffic.model", "--output", "out"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("no figures: they need matplotlib (pip install matplotlib)") == 1
    assert "6 of 6 rows hold" in shown.out
    assert {path.name for path in Path("out").iterdir()} == {"verify.json", "verify.md"}


# Figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_are_drawn_with_captions() -> None:
    pytest.importorskip("matplotlib")
    from burgersgd.theory import figures

    Path("out").mkdir()
    with verify.one_thread():
        captions = figures.draw(Path("out"), figures.FIGURES)
    assert list(captions) == list(figures.FIGURES)
    assert len(captions) == 5
    for name, caption in captions.items():
        assert Path("out", name).read_bytes().startswith(b"\x89PNG")
        assert len(caption) > 50


def test_figures_stand_in_the_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert verify.main(["traffic", "--output", "out"]) == 0
    assert "figure/s" in capsys.readouterr().err  # the bar goes on over the figures
    assert {path.name for path in Path("out").iterdir()} == {"verify.json", "verify.md", "red_light_turns_green.png"}
    assert "](red_light_turns_green.png)" in Path("out/verify.md").read_text(encoding="utf-8")
