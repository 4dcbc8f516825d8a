"""What happens to files: cut off, bits flipped, bytes overwritten, pieces missing or doubled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

from burgersgd.datasets import DataError


@dataclass(frozen=True)
class Damage:
    """One mishap at a relative place of a file."""

    kind: str
    place: float
    value: int

    def to(self, content: bytes) -> bytes:
        at = int(self.place * len(content))
        if self.kind == "cut":
            return content[:at]
        if self.kind == "flip":
            return content[:at] + bytes([content[at] ^ (1 << self.value % 8)]) + content[at + 1 :]
        if self.kind == "overwrite":
            return content[:at] + bytes([self.value]) * 4 + content[at + 4 :]
        if self.kind == "lose":
            return content[:at] + content[at + 1 + self.value :]
        return content[: at + 1 + self.value] + content[at:]


def damages(early: bool = False) -> st.SearchStrategy[Damage]:
    """Return mishaps anywhere; early: among the first hundredth of the file, where formats keep their headers."""
    return st.builds(
        Damage,
        kind=st.sampled_from(["cut", "flip", "overwrite", "lose", "double"]),
        place=st.floats(0, 0.01 if early else 1, exclude_max=True),
        value=st.integers(0, 255),
    )


@contextlib.contextmanager
def refused_or_harmless() -> Iterator[None]:
    """Let the block raise a DataError of one line, and nothing else."""
    try:
        yield
    except DataError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than a line: {error}") from error
