"""Writes the tables of studies into docs/results.md, each between its two comments.

A comment <!-- table STUDY: BEGINNING OF ITS TITLE --> names a table of outputs/studies/STUDY/summary.md, which takes
the place of everything up to <!-- end -->. Run after the studies: python scripts/results.py [--studies FOLDER]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "results.md"
PLACE = re.compile(r"(<!-- table ([\w-]+): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLE = re.compile(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", re.MULTILINE)


def main() -> None:
    """Fill the page. Raises SystemExit where a summary or a table is missing."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=Path, default=Path("outputs", "studies"))
    given = parser.parse_args()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), given.studies), encoding="utf-8")


def filled(page: str, studies: Path) -> str:
    """Return the page with the tables that the studies have now."""

    def table(place: re.Match[str]) -> str:
        summary = studies / place[2] / "summary.md"
        if not summary.is_file():
            raise SystemExit(f"{summary} is missing: burgersgd study {place[2]} writes it")
        for title, rows in TABLE.findall(summary.read_text(encoding="utf-8")):
            if title.startswith(place[3]):
                return f"{place[1]}\n{title}\n\n{rows}\n{place[4]}"
        raise SystemExit(f"{summary}: has no table whose title begins with {place[3]}")

    return PLACE.sub(table, page)


if __name__ == "__main__":
    main()
