"""The paper's equations, the tags in the code, docs/equations.md and docs/errata.md agree: none goes missing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import burgersgd
from burgersgd.theory.verify import CHECKS

PACKAGE = Path(burgersgd.__file__).parent
ROOT = PACKAGE.parent
NUMBERED = [f"{section}.{n}" for section, last in ((2, 16), (3, 13), (4, 22), (5, 19)) for n in range(1, last + 1)]
"""The numbered equations of the paper, (2.1)-(5.19)."""

TAG = re.compile(r"Implements\s+Eq\.\s+\(\d+\.\d+\)(?:,\s+\(\d+\.\d+\))*")
"""Implements Eq. (3.3), or Implements Eq. (3.3), (3.4), over a line break as well."""
NUMBER = re.compile(r"\((\d+\.\d+)\)")
CODE = re.compile(r"`([^`]+)`")


class Line(NamedTuple):
    """A row of the table of docs/equations.md."""

    says: str
    printed: str  # "OK" or "misprint"
    remark: str
    places: list[str]  # module.function
    tests: list[str]
    checks: list[str]  # of burgersgd verify
    measured: str  # by them


def table() -> dict[str, Line]:
    """Return the table of docs/equations.md by equation."""
    lines = {}
    for text in (ROOT / "docs" / "equations.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", text)[1:-1]]
        if cells and NUMBER.fullmatch(cells[0]):
            _, says, printed, remark, code, tests, measured = cells
            places, files, checks = (CODE.findall(cell) for cell in (code, tests, measured))
            equation = cells[0].strip("()")
            assert equation not in lines, f"({equation}) twice"
            lines[equation] = Line(says, printed, remark, places, files, checks, measured)
    return lines


def tags() -> Iterator[tuple[str, str]]:
    """Yield every tag of the package as (equation, module.class.function)."""
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield from _tags_below(ast.parse(path.read_text(encoding="utf-8")), module)


def _tags_below(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[tuple[str, str]]:
    for tag in TAG.findall(ast.get_docstring(node) or ""):
        for equation in NUMBER.findall(tag):
            yield equation, name
    for child in ast.walk(node):
        if child is not node and isinstance(child, ast.ClassDef | ast.FunctionDef) and child in node.body:
            yield from _tags_below(child, f"{name}.{child.name}")


def errata() -> set[str]:
    """Return the equations that docs/errata.md has in its headings."""
    text = (ROOT / "docs" / "errata.md").read_text(encoding="utf-8")
    return {n for heading in re.findall(r"^### .*$", text, re.MULTILINE) for n in NUMBER.findall(heading)}


def test_every_numbered_equation_is_listed() -> None:
    assert list(table()) == NUMBERED


def test_what_is_said_to_be_coded_carries_a_tag() -> None:
    tagged = set(tags())
    missing = [(eq, place) for eq, line in table().items() for place in line.places if (eq, place) not in tagged]
    assert missing == []


def test_no_tag_without_a_row() -> None:
    coded = {eq for eq, line in table().items() if line.places}
    assert [(eq, place) for eq, place in tags() if eq not in coded] == []


def test_what_is_not_coded_says_why() -> None:
    silent = [eq for eq, line in table().items() if not line.places and "Not coded:" not in line.remark]
    assert silent == []


def test_errata_are_the_misprints_of_the_table() -> None:
    lines = table()
    assert {line.printed for line in lines.values()} == {"OK", "misprint"}
    assert errata() == {eq for eq, line in lines.items() if line.printed == "misprint"}
    assert [eq for eq, line in lines.items() if line.printed == "misprint" and line.remark == "-"] == []


def test_named_tests_and_checks_exist() -> None:
    lines = table().values()
    assert [test for line in lines for test in line.tests if not (ROOT / test).is_file()] == []
    assert [name for line in lines for name in line.checks if name not in CHECKS] == []
    text = (ROOT / "docs" / "errata.md").read_text(encoding="utf-8")
    groups = {name.partition(".")[0] for name in CHECKS}
    named = [name for name in CODE.findall(text) if name.partition(".")[0] in groups and "." in name]
    assert named
    assert [name for name in named if name not in CHECKS] == []


def test_tags_are_found_however_they_are_written() -> None:
    docstring = "Implements Eq. (3.3), (3.4): x. Implements Eq.\n    (4.1). Not Eq. (5.1), nor (5.2)."
    assert [n for tag in TAG.findall(docstring) for n in NUMBER.findall(tag)] == ["3.3", "3.4", "4.1"]
