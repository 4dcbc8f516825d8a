"""Reports a mistake on the command line: one line on standard error."""

from __future__ import annotations

import sys

LONGEST_ERROR = 1_000
"""Largest number of characters of an error that are shown."""


def fail(error: Exception) -> int:
    """Print an error as one line and return the exit code of a mistake, 2."""
    from burgersgd.help import colour

    label = colour("error:", "31;1", sys.stderr)
    text = " ".join(str(error).splitlines())
    if len(text) > LONGEST_ERROR:  # a very long value: the key is before it, the reason after it
        text = f"{text[: LONGEST_ERROR // 2]} ... {text[-LONGEST_ERROR // 2 :]}"
    print(f"burgersgd: {label} {text}", file=sys.stderr)
    return 2
