"""scripts/results.py puts the tables of studies into docs/results.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.results import filled

ROOT = Path(__file__).parents[2]
SUMMARY = """# Why?

**Mean error and more**

| a | b |
|---|---:|
| 1 | 2.5 |

**Another**

| c |
|---|
| 3 |

- a note
"""
PAGE = """before
<!-- table small: Mean -->
{}<!-- end -->
between
<!-- table small: Another -->
{}<!-- end -->
after
"""
TABLES = (
    "\nMean error and more\n\n| a | b |\n|---|---:|\n| 1 | 2.5 |\n\n",
    "\nAnother\n\n| c |\n|---|\n| 3 |\n\n",
)


def test_a_table_takes_the_place_of_what_was_there_and_the_rest_stays(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "summary.md").write_text(SUMMARY)
    new = filled(PAGE.format("old\n| x |\n", ""), tmp_path)
    assert new == PAGE.format(*TABLES)
    assert filled(new, tmp_path) == new


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="burgersgd study small writes it"):
        filled("<!-- table small: Mean -->\n<!-- end -->", tmp_path)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "summary.md").write_text(SUMMARY)
    with pytest.raises(SystemExit, match="no table whose title begins with Median"):
        filled("<!-- table small: Median -->\n<!-- end -->", tmp_path)


def test_every_place_of_the_page_has_its_table() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    places = page.split("<!-- table ")[1:]
    assert len(places) >= 4
    assert all("\n|---|" in place.split("<!-- end -->")[0] for place in places)
