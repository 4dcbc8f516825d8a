"""Makes pages of the site from files at the top of the repository, with their links as seen from docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add README.md as the first page, CONTRIBUTING.md and CHANGELOG.md."""
    for source, page in TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\(([^)\s]+)\)", _link, text)))
    return files


def _link(match: re.Match[str]) -> str:
    """Return a link from the top of the repository as one from docs/; what is no page of the site becomes text."""
    link = match[1]
    if link.startswith(("http", "#")):
        return match[0]
    if link in TOP:
        return f"]({TOP[link]})"
    return f"]({link.removeprefix('docs/')})" if link.startswith("docs/") else "]"
