"""The lowest versions that pyproject.toml allows, as constraints for pip: what `make minimum` installs and tests.

Dependencies of the package and of its extras for users are pinned; tools of development are the newest.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("data", "optuna", "plots", "ray", "slurm")
PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(project: dict[str, object]) -> list[str]:
    """Return `name==version` for every direct dependency of a [project] table and of EXTRAS.

    Raises ValueError for one that names no lowest version.
    """
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    asked = [*project["dependencies"], *(word for extra in EXTRAS for word in extras[extra])]  # pyright: ignore
    pins = []
    for word in asked:
        found = re.match(r"([A-Za-z0-9_.-]+)(?:\[\w+\])?>=([\w.]+)", word)
        if found is None:
            raise ValueError(f"{word}: names no lowest version")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


def main() -> None:
    """Print the constraints."""
    sys.stdout.write("\n".join(lowest(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"])) + "\n")


if __name__ == "__main__":
    main()
