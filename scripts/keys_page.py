"""Writes docs/keys.md, the page of all keys, from the classes of settings: python scripts/write_conf.py runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from burgersgd.conf_text import shown, summary_of
from burgersgd.config import GROUPS, PRESETS, TrainConfig
from burgersgd.schema import Group, OptimizerConfig, allowed_values, default_of, fields_of, type_name

PAGE = Path(__file__).parents[1] / "docs" / "keys.md"
INTRODUCTION = """\
# All keys

Set a key on the command line as `burgersgd train KEY=VALUE`, and choose another optimizer, model or data set as
`GROUP=CHOICE`. The same names are attributes in Python: `optimizer.nu` is the argument `nu` of `LocalEntropyConfig`.
A value outside its range is an error of one line, and nothing is created. `burgersgd help KEY` explains one key.

This page is generated from the classes of settings by `python scripts/write_conf.py`.
"""
ABOUT = {
    "dataset": "The data, and how they are divided into training, validation and test parts.",
    "model": "The network that is trained.",
    "optimizer": "The update rule. Its float keys may differ between runs that are trained as one computation.",
    "schedule": "The factor on the learning rate during a run.",
    "sweep": "The settings of a sweep, `burgersgd train --multirun`; [Reading a sweep](guides/sweep.md) shows one.",
}
Row = tuple[str, str, str, str]


def page() -> str:
    """Return the text of docs/keys.md."""
    parts = [INTRODUCTION]
    plain = [f for name, f in fields_of(TrainConfig).items() if name not in GROUPS]
    parts.append("## Keys without a group\n\n" + _table(_row(TrainConfig, f) for f in plain))
    return "\n".join([*parts, *map(_group, GROUPS)])


def _group(group: str) -> str:
    """Return the section of a group: its choices, the keys that all of them have, and those of each class."""
    choices = {name: cls for name, cls in GROUPS[group].shipped.items() if name not in PRESETS.get(group, ())}
    classes = {name: GROUPS[group][name] for name in choices}
    rows = {
        name: [_row(cls, f) for f in dataclasses.fields(cls) if "names" not in f.metadata]
        for name, cls in classes.items()
    }
    common = [row for row in next(iter(rows.values())) if all(row in others for others in rows.values())]
    parts = [f"## {group}", ABOUT.get(group) or next(iter(classes.values())).summary]
    if len(classes) > 1:
        described = [(f"`{group}={name}`", summary_of(cls, name)) for name, cls in classes.items()]
        parts.append(_cells(("choice", "what it is"), described))
    if common:
        parts += [f"Keys of every choice of `{group}`:"] * (len(classes) > 1) + [_table(common)]
    sections: dict[tuple[Row, ...], list[str]] = {}
    for name, own in rows.items():
        sections.setdefault(tuple(row for row in own if row not in common), []).append(f"`{group}={name}`")
    parts += [f"### {', '.join(names)}\n\n{_table(special)}" for special, names in sections.items() if special]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _row(cls: type[Group], f: dataclasses.Field[object]) -> Row:
    name = f"{cls.group}.{f.name}" if cls.group else f.name
    default = "required" if f.metadata.get("required") else f"`{shown(default_of(f))}`"
    if issubclass(cls, OptimizerConfig) and type_name(f) == "LearningRate":
        default += f": {cls().default_lr(1.0):g} for a small classifier"
    return f"`{name}`", default, allowed_values(f), f.metadata["meaning"]


def _table(rows: Iterable[Row]) -> str:
    return _cells(("key", "default", "allowed", "meaning"), rows)


def _cells(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write() -> None:
    """Write docs/keys.md."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()
