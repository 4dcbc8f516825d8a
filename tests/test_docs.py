"""Everything that README.md and the guides tell a reader to type works as it stands, in the order of the page."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from burgersgd.analysis.command import parser
from burgersgd.cli import main
from burgersgd.keys import all_keys
from tests.forked import forked

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": ("report.html", "curves.png"),
    "docs/compare.md": (
        "report.html",
        "table.csv",
        "table.md",
        "table.tex",
        "table.json",
        "figures/values.pdf",
        "two.png",
    ),
    "docs/troubleshooting.md": ("outputs/longer/status.json",),
    "docs/guides/first_comparison.md": ("outputs/one/metrics.csv", "report.html", "table.tex", "figures/values.png"),
    "docs/guides/hyperparameters.md": ("outputs/multirun/smoothing/summary.md",),
    "docs/guides/own_data.md": ("mine.npz", "weights.pt", "outputs/mine/model.pt"),
    "docs/guides/sweep.md": ("outputs/multirun/map/results.csv", "outputs/multirun/map/summary.md"),
    "docs/guides/optimizer.md": ("outputs/further/status.json",),
}
"""Page -> files that its commands and its Python must leave behind."""
SLOW = (
    "README.md",
    "docs/compare.md",
    "docs/guides/hyperparameters.md",
    "docs/guides/sweep.md",
    "docs/guides/own_data.md",
)
EVERY_PAGE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page, and the line before it."""

    language: str
    text: str
    before: str


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Block(match[1], match[2], text[: match.start()].rstrip().rpartition("\n")[2])


def quick(words: list[str]) -> list[str]:
    """Return the words of a command with fewer seeds, trials and gradient evaluations."""
    seeds = {"range(3)": "range(2)", "range(4)": "range(3)", "range(6)": "range(2)", "range(8)": "range(2)"}
    smaller = [re.sub(r"range\(\d\)", lambda m: seeds[m[0]], word) for word in words]
    smaller = [re.sub(r"n_samples=8$", "n_samples=3", word) for word in smaller]
    smaller = [re.sub(r"budget=(\d{3,})0$", lambda m: f"budget={m[1]}", w) if "000" in w else w for w in smaller]
    asks = any(word.startswith(("trainer.budget=", "resume=", "--help")) for word in words)
    return smaller if words[0] != "train" or asks else [*smaller, "trainer.budget=60"]


def run_command(line: str) -> None:
    """Run a line of a shell block. What is not burgersgd is checked without being run."""
    name, *words = shlex.split(line, comments=True)
    if name == "burgersgd":
        try:
            code = main(quick(words))
        except SystemExit as ended:  # --help
            code = int(ended.code or 0)
        assert code == 0, f"{line}: exit code {code}"
    elif name == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif name == "tensorboard":
        assert words[0] == "--logdir", line
        assert next(Path(words[1]).rglob("events.out.tfevents*"), None), f"{line}: no curves there"
    else:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = re.fullmatch(r"pip install '?\.(?:\[(\w+)\])?'?", line)
        assert asked, f"{line}: who runs this?"
        assert asked[1] is None or asked[1] in extras, line


def follow(page: str) -> None:
    """Do everything that a page says, in its order: its commands, its Python (one session), the files it has saved."""
    names: dict[str, Any] = {}
    sys.path.insert(0, os.getcwd())
    for block in blocks(page):
        saved = re.search(r"[Ss]ave this as `(\w+\.py)`", block.before)
        if block.language == "python" and saved:
            Path(saved[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, page, "exec"), names)
        elif block.language == "sh":
            for line in block.text.splitlines():
                run_command(line)
        elif block.language == "console":
            command, _, shown = block.text.partition("\n")
            print(f"console {shown}", file=sys.stderr)
            main(shlex.split(command)[2:])


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES],
)
def test_a_page_can_be_followed_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    def action() -> int:
        with open("out.txt", "wb", buffering=0) as out, open("err.txt", "wb", buffering=0) as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            try:
                follow(page)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
        return 0

    code = forked(action)
    crash = tmp_path / "crash.txt"
    said = (tmp_path / "err.txt").read_text(encoding="utf-8")
    assert code == 0, (crash.read_text() if crash.exists() else "") + said[-3000:]
    for path in PAGES[page]:
        assert (tmp_path / path).stat().st_size > 40, path
    for expected in re.findall(r"^console (.+)$", said, re.MULTILINE):
        assert said.count(f"{expected}\n") == 2  # as the page has it, and as the command has said it


def test_what_the_guide_to_comparisons_explains_is_shown(tmp_path: Path) -> None:
    text = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    flags = {word for action in parser()._actions for word in action.option_strings if word.startswith("--")}
    assert {flag for flag in flags - {"--help"} if flag not in text} == set()


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in ("sh", "python", "text", "console", "toml"), f"{page}: {block.text[:60]}"


def test_every_key_in_the_documents_exists() -> None:
    groups = "dataset|model|optimizer|schedule|trainer|sweep|device"
    known = {*all_keys(), *(f"{group}.name" for group in groups.split("|"))}
    for page in (page for page in EVERY_PAGE if page.name not in ("equations.md", "errata.md")):  # names of checks
        for key in re.findall(rf"`(?:[^`\n]* )?((?:{groups})\.[a-z_]+)(?=[=`])", page.read_text(encoding="utf-8")):
            assert key in known, f"{page.name}: {key}"


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for page in EVERY_PAGE:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                path, _, anchor = link.partition("#")
                target = page.parent / path if path else page
                assert target.exists(), f"{page.name}: {link}"
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M) if anchor else ()
                slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert not anchor or anchor in slugs, f"{page.name}: {link}"


def test_the_entry_point_of_the_guide_names_its_class() -> None:
    (toml,) = (block.text for block in blocks("docs/guides/optimizer.md") if block.language == "toml")
    ((name, place),) = tomllib.loads(toml)["project"]["entry-points"]["burgersgd.optimizers"].items()
    (code, *_) = (block.text for block in blocks("docs/guides/optimizer.md") if block.language == "python")
    assert f'named("{name}")' in code
    assert f"class {place.partition(':')[2]}(OptimizerConfig)" in code
