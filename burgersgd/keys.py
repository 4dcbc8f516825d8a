"""The keys of a command line as conf/ describes them, for help and completion; reading them does not import torch.

A class that is not shipped with burgersgd has no file; it is imported, and its text is made from it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from burgersgd.conf_text import conf_text, shown
from burgersgd.config import CONF_DIR, GROUPS, TrainConfig
from burgersgd.schema import ConfigError, default_of, described, did_you_mean, fields_of

LINE = re.compile(r"(\w+): (.*?)(?:  # (.*))?")
DEFAULTS = dict(re.findall(r"  - (\w+): (\w+)\n", (CONF_DIR / "train.yaml").read_text(encoding="utf-8")))
"""Group -> the default choice in conf/train.yaml."""


class Key(NamedTuple):
    """One key of a choice."""

    name: str
    """The name with its group, such as optimizer.lr."""
    default: str
    meaning: str
    """The meaning, followed by the allowed values in parentheses."""

    @property
    def allowed(self) -> str:
        """The allowed values, such as `float > 0`, `em, leimkuhler_matthews` or `int >= 1, or null`."""
        return self.meaning.rpartition(" (")[2].removesuffix(")") if self.meaning.endswith(")") else ""

    @property
    def values(self) -> list[str]:
        """The allowed values, if they can be listed."""
        allowed = self.allowed.removesuffix(", or null")
        null = ["null"] * (allowed != self.allowed)
        if allowed == "true or false":
            return ["true", "false"]
        first, *_ = re.split(r"(?:^|, )(?:int|float|str|list|dict)\b", allowed)
        return [*(first.split(", ") if first else ()), *null]


def top_keys() -> list[Key]:
    """Return the keys that belong to no group."""
    plain = [f for name, f in fields_of(TrainConfig).items() if name not in GROUPS]
    return [Key(f.name, shown(default_of(f)), described(f)) for f in plain]


@functools.cache
def choice_of(group: str, choice: str) -> tuple[str, list[Key]]:
    """Return the description of a choice, and its keys. Raises ConfigError for an unknown choice."""
    path = CONF_DIR / group / f"{choice}.yaml"
    if choice in GROUPS[group].shipped:
        text = path.read_text(encoding="utf-8")
    else:
        try:
            text = conf_text(GROUPS[group][choice], choice)
        except KeyError:
            raise ConfigError(no_such_choice(group, choice)) from None
    head, _, body = text.partition("  - _self_\n")
    summary = " ".join(line[2:] for line in body.splitlines() if line.startswith("# "))
    lines = [LINE.fullmatch(line) for line in body.splitlines()]
    given = {m[1]: (m[2], m[3] or "") for m in lines if m}
    based = re.search(r"  - (\w+)\n", head)
    if based:  # a preset, which sets some keys of another choice
        below = choice_of(group, based[1])[1]
        names = {key.name: given.get(key.name.partition(".")[2], (key.default, "")) for key in below}
        return summary, [key._replace(default=names[key.name][0].strip() or "{...}") for key in below]
    return summary, [Key(f"{group}.{name}", *pair) for name, pair in given.items() if name != "name" or pair[1]]


def experiments() -> list[str]:
    """Return the names of the files that set keys of several groups."""
    return sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


def keys_of(choices: Mapping[str, Sequence[str]]) -> list[Key]:
    """Return all keys that exist with these choices of groups and the default choices of all other groups."""
    found = {key.name: key for key in top_keys()}
    for group in GROUPS:
        for choice in choices.get(group) or [DEFAULTS[group]]:
            for key in choice_of(group, choice)[1]:
                found.setdefault(key.name, key)
    return [*found.values()]


def all_keys() -> dict[str, Key]:
    """Return every key of every shipped choice by name; if several have the same name, the first one."""
    every = keys_of({group: [*names.shipped] for group, names in GROUPS.items()})
    return {key.name: key for key in every}


def choices_in(words: Iterable[str]) -> dict[str, list[str]]:
    """Return the choices of groups among overrides. Raises ConfigError for an unknown choice."""
    chosen: dict[str, list[str]] = {}
    for word in words:
        group, equals, value = word.partition("=")
        if equals and group in GROUPS:
            chosen[group] = value.split(",")
            for choice in chosen[group]:
                choice_of(group, choice)
    return chosen


# --------------------------------------------------------------------------------------------------------- suggestions


def no_such_command(word: str, rest: Sequence[str], commands: Iterable[str]) -> str:
    """Return the error message for a first word that is not a command; `rest` are the words after it."""
    if "=" in word:
        return f"{word}: must be a command; did you mean burgersgd train {' '.join([word, *rest])}?"
    return f"{word}: must be one of {', '.join(commands)}{did_you_mean(word, commands)}"


def no_such_choice(group: str, choice: str) -> str:
    """Return the error message for a choice that a group does not have."""
    names = GROUPS[group].names()
    return f"{group}={choice}: must be one of {', '.join(sorted(names))}{did_you_mean(choice, names)}"


def no_such_key(key: str) -> str:
    """Return the error message for an unknown key."""
    every = all_keys()
    ends = [name for name in every if name.endswith(f".{key}")]
    if ends:
        question = f"; did you mean {' or '.join(ends)}?"
    elif key in every:
        where = [f"{g}={c}" for g, names in GROUPS.items() for c in names.shipped if key in _names(g, c)]
        if len(where) in (0, len(GROUPS[key.partition(".")[0]].shipped)):  # all choices have the key
            return f"{key}: cannot be set in this way (see burgersgd help {key})"
        question = f" with this {key.partition('.')[0]}; it exists with {', '.join(where)}"
    else:
        question = did_you_mean(key, [*every, *GROUPS])
    return f"{key}: no such key{question} (burgersgd train --help lists them)"


def _names(group: str, choice: str) -> set[str]:
    return {key.name for key in choice_of(group, choice)[1]}


def no_such_flag(flag: str, value: str, flags: Iterable[str]) -> str:
    """Return the error message for an unknown flag; `value` is the word after it."""
    name, equals, inside = flag.lstrip("-").partition("=")
    value = inside if equals else value
    every = all_keys()
    as_key = [k for k in [*every, *GROUPS] if k == name] or [k for k in every if k.endswith(f".{name}")]
    if as_key:
        return f"{flag}: no such flag; did you mean {as_key[0]}={value}? (keys are written without dashes)"
    return f"{flag}: no such flag{did_you_mean(flag.partition('=')[0], flags)} (burgersgd train --help)"


# ------------------------------------------------------------------------------------------------------ whole numbers

EXPONENT = re.compile(r"(?<![\w.])(\d[\d_]*(?:\.\d+)?[eE]\+?\d+)(?![\w.])")


def with_whole_numbers(word: str) -> str:
    """Return an override of an integer key with 1e4 written out as 10000 if that is exact."""
    key, equals, value = word.partition("=")
    if not (equals and EXPONENT.search(value)):
        return word
    found = all_keys().get(key.lstrip("+~"))
    if found is None or not found.allowed.startswith("int"):
        return word

    def whole(match: re.Match[str]) -> str:
        number = float(match[1])
        return str(int(number)) if number.is_integer() and number < 2**53 else match[1]

    return f"{key}={EXPONENT.sub(whole, value)}"
