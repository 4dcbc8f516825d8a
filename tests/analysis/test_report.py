"""The report: one file that loads nothing, and whose numbers a browser recomputes from the raw values in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burgersgd.analysis.charts import Scale, scale_of
from burgersgd.analysis.compare import Comparison, compare
from burgersgd.analysis.question import Question
from burgersgd.analysis.report import report
from burgersgd.analysis.runs import load
from burgersgd.analysis.tables import differences_table, values_table
from burgersgd.cli import main
from tests.analysis.folders import write_run, write_sweep

INF = float("inf")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
SGD = [0.031, 0.027, 0.035, 0.030, 0.026, 0.033]


class Page(HTMLParser):
    """Cells of the tables that have names, and the text of the outcome."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.outcome = ""
        self.changed: list[str] = []
        self._table, self._place = "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table":
            self._table = given.get("id") or ""
        elif tag == "tr" and self._table:
            self.tables.setdefault(self._table, []).append([])
        elif tag == "td" and self._table:
            self.tables[self._table][-1].append("")
            self._place = "changed" if given.get("class") == "changed" else "cell"
        elif given.get("id") == "outcome":
            self._place = "outcome"

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = ""
        if tag in ("td", "span"):
            self._place = ""

    def handle_data(self, data: str) -> None:
        if self._place == "outcome":
            self.outcome += data
        elif self._place and self._table:
            self.tables[self._table][-1][-1] += data
            if self._place == "changed":
                self.changed.append(data)


def opened(page: Path, script: str = "") -> Page:
    """Return the page as a browser has it after it ran a script of ours as well."""
    assert CHROMIUM is not None
    altered = page.with_name("altered.html")
    altered.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    command = [CHROMIUM, *flags, f"--user-data-dir={page.parent / 'profile'}", altered.as_uri()]
    return Page(subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout)


def trouble(root: Path) -> Comparison:
    """Return a comparison with everything that tables can hold: ties, divergences, no pairs, one run, two data sets."""
    errors: dict[str, list[float]] = {
        "sgd": SGD,
        "local_entropy": [0.028, 0.026, 0.033, 0.031, 0.022, 0.029],
        "adamw": [0.041, 0.039, INF, 0.044, 0.040, 0.047],
        "langevin": [e + 0.01 for e in SGD],
    }
    write_sweep(root / "a", errors)
    for seed in range(4):
        chosen = {"optimizer.name": "paper_sde", "seed": 100 + seed}
        write_run(root / f"b/{seed}", chosen, test_error=0.02 + seed**2 / 1e3, validation_error=0.05)
    write_run(root / "c", {"optimizer.name": "gd"}, test_error=0.5)
    write_sweep(root / "d", {"sgd": SGD[:3], "gd": SGD[1:4]}, **{"dataset.name": "mnist1d"})
    return compare(load(root), Question(by=("dataset.name", "optimizer.name")))


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_browser_recomputes_every_number_of_the_tables(tmp_path: Path, bootstrap: bool) -> None:
    c = trouble(tmp_path)
    if bootstrap:
        c = compare(c.runs, Question(by=("dataset.name", "optimizer.name"), bootstrap=True))
    path = tmp_path / "report.html"
    path.write_text(report(c, "burgersgd compare"))
    cleared = "for (const t of document.querySelectorAll('table[id]')) { const codes = t.dataset.codes.split(' ');"
    cleared += " for (const row of t.tBodies[0].rows) codes.forEach((code, i) => { if (!['label', 'picked', 'of',"
    cleared += " 'failed'].includes(code)) row.cells[i].textContent = '?'; }); }"
    page = opened(path, f"{cleared} document.getElementById('recompute').click();")
    for b, block in enumerate(c.blocks):
        expected = {f"values-{b}": values_table(c, block), f"differences-{b}": differences_table(c, block)}
        for name, table in expected.items():
            assert table is not None
            assert page.tables[name][1:] == [list(row) for row in table.rows]
    tests = {row[4] for row in page.tables["differences-0"][1:]}
    assert tests == {"paired t", "sign", "Welch", "none"}


@in_a_browser
def test_a_value_that_is_altered_in_the_page_changes_the_table(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "runs", {"sgd": SGD, "adamw": [e + i / 1e3 for i, e in enumerate(SGD)]})
    (tmp_path / "report.html").write_text(report(compare(load(root), Question(by=("optimizer.name",))), ""))
    click = "document.getElementById('recompute').click();"
    same = opened(tmp_path / "report.html", click)
    assert re.fullmatch(r"all \d+ numbers are the ones shown before", same.outcome)
    assert same.changed == []
    place = "[...document.querySelectorAll('input')].find((i) => i.dataset.place === '[0, 0, \"3\", 0]')"
    altered = opened(tmp_path / "report.html", f"{place}.value = '0.090'; {click}")
    shown = compare(load(root), Question(by=("optimizer.name",)))
    first = shown.blocks[0].rows[0]
    values = list(first.values.values())
    values[3] = 0.09
    assert altered.tables["values-0"][1][2] == f"{100 * np.mean(values):.2f}"
    assert altered.tables["values-0"][1][2] != same.tables["values-0"][1][2]
    assert altered.tables["differences-0"] != same.tables["differences-0"]
    assert "numbers changed" in altered.outcome
    assert f"{100 * np.mean(values):.2f}" in altered.changed


def test_the_page_says_what_a_reader_has_to_know_and_loads_nothing(tmp_path: Path) -> None:
    trouble(tmp_path / "runs")
    words = ["compare", str(tmp_path / "runs"), "--by", "dataset.name,optimizer.name", "--where", "state=completed"]
    assert main([*words, "--html", str(tmp_path / "out/report.html"), "--profiles"]) == 0
    text = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org)|@import|url\(", text)
    for part in (
        *words[2:],
        "abacus",
        "dataset.name",
        "paper_sde",
        "P(better)",
        "performance profiles",
        "95 % interval",
    ):
        assert part.replace("&", "&amp;") in text
    assert text.count("<svg") == 2
    assert str(tmp_path / "runs/c") in text


def test_what_folders_are_called_cannot_break_the_page(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>&\"'"
    write_run(tmp_path / "runs/a", {"optimizer.name": evil})
    write_run(tmp_path / "runs/b", {"optimizer.name": "<b>"})
    text = report(compare(load(tmp_path / "runs"), Question()), f"burgersgd compare {evil}")
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert text.count("<script") == 2


def write_many(root: Path, seeds: int) -> Comparison:
    rows: list[dict[str, Any]] = [
        {"evaluations": 17 * k, "train_loss": 1 / (1 + k) + 0.123456789, "validation_error": 0.1 + 1 / (2 + k)}
        for k in range(200)
    ]
    for name in ("sgd", "adamw"):
        for seed in range(seeds):
            write_run(root / f"{name}-{seed}", {"optimizer.name": name, "seed": seed}, rows=rows)
    return compare(load(root), Question(by=("optimizer.name",)))


def test_curves_that_are_thinned_are_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = write_many(tmp_path, 3)
    assert "thinned to" not in report(c, "")
    monkeypatch.setattr("burgersgd.analysis.report.MOST_POINTS", 3 * 6 * 20)
    text = report(c, "")
    assert "single curves are thinned to 20 points" in text
    faint = re.findall(r'<polyline points="([^"]*)"[^>]*stroke-opacity', text)
    assert len(faint) == 12
    assert {len(points.split()) for points in faint} == {20}


@pytest.mark.slow
def test_a_thousand_runs_stay_below_five_megabytes(tmp_path: Path) -> None:
    text = report(write_many(tmp_path, 500), "")
    assert len(text.encode()) < 5e6
    assert text.count("<input") == 1000


SCALES: list[tuple[list[float], bool]] = [([0.03, 0.9], True), ([0.0, 0.9], True), ([-3, 5], False), ([2, 2], False)]
SCALES += [([1060.0, 1650.0], True)]


@pytest.mark.parametrize(("values", "log"), SCALES)
def test_scales_keep_their_values_inside_with_round_ticks(values: list[float], log: bool) -> None:
    scale = scale_of(np.array([*values, INF, np.nan]), 50, 400, log)
    assert isinstance(scale, Scale)
    pixels = scale(np.array([v for v in values if v > 0 or not scale.log]))
    assert ((pixels > 50) & (pixels < 400)).all()
    assert 2 <= len(scale.ticks()) <= 9
    assert all(scale.low <= tick * 1.001 and tick <= scale.high * 1.001 for tick in scale.ticks())
