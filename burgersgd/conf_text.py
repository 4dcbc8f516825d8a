"""The text of a YAML file of conf/, made from its class: keys with their defaults, meanings and ranges."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from typing import Any

import yaml

from burgersgd.schema import Group, default_of, described

WIDTH = 118


def conf_text(cls: type[Group], choice: str) -> str:
    """Return the text of the YAML file of a choice, which Hydra composes with the schema of its class."""
    header = [f"# {line}" for line in textwrap.wrap(summary_of(cls, choice), WIDTH)]
    defaults = ["defaults:", f"  - /schema/{cls.group}/{choice}@_here_", "  - _self_"]
    return "\n".join([*defaults, "", *header, *key_lines(cls, choice)]) + "\n"


def summary_of(cls: type[Group], choice: str) -> str:
    """Return the description of a choice."""
    for f in dataclasses.fields(cls):
        if "names" in f.metadata:
            return f.metadata["names"].get(choice) or cls.summary
    return cls.summary


def key_lines(cls: type[Group], choice: str) -> list[str]:
    """Return a line for every key of a class: `key: default  # meaning (type and range)`."""
    lines = []
    for f in dataclasses.fields(cls):
        if "names" in f.metadata:
            lines.append(f"{f.name}: {choice}")
        else:
            value = "???" if f.metadata.get("required") else shown(default_of(f))
            lines.append(f"{f.name}: {value}  # {described(f)}")
    return lines


def shown(value: Any) -> str:
    """Return a value as YAML, on one line."""
    if isinstance(value, float) and math.isfinite(value):
        text = f"{value:.6g}" if float(f"{value:.6g}") == value else repr(value)
        mantissa, e, exponent = text.partition("e")
        return (mantissa if "." in mantissa else f"{mantissa}.0") + (f"e{int(exponent):+d}" if e else "")
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")
