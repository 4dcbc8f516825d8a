"""The arguments of `burgersgd train`: overrides, Hydra's flags, and flags of burgersgd."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, NoReturn

from burgersgd.schema import ConfigError


class OwnFlags(NamedTuple):
    """Flags of `burgersgd train` that Hydra does not know."""

    dry_run: bool
    quiet: bool
    verbose: bool

    @classmethod
    def among(cls, arguments: list[str]) -> tuple[OwnFlags, list[str]]:
        """Return the flags among the arguments, and the other arguments."""
        spelt = {"dry_run": ("--dry-run",), "quiet": ("--quiet", "-q"), "verbose": ("--verbose", "-v")}
        rest = [word for word in arguments if not any(word in words for words in spelt.values())]
        return cls(**{name: any(word in arguments for word in words) for name, words in spelt.items()}), rest


def hydra_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return Hydra's flags and the overrides. Raises ConfigError for an unknown flag."""
    from hydra._internal.utils import get_args_parser

    from burgersgd.help import FLAGS
    from burgersgd.keys import no_such_flag

    def refuse(message: str) -> NoReturn:  # instead of printing a page of usage
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        if unknown and unknown[1] in arguments:
            after = [*arguments[arguments.index(unknown[1]) + 1 :], ""][0]
            flags = [word for words in FLAGS for word in words.split(", ")]
            raise ConfigError(no_such_flag(unknown[1], "VALUE" if after.startswith("-") else after or "VALUE", flags))
        raise ConfigError(f"{message} (burgersgd train --help)")

    parser = get_args_parser()
    parser.error = refuse
    return parser.parse_args(list(arguments))


def in_order(arguments: Iterable[str]) -> list[str]:
    """Return the overrides, only the last one for each key, followed by the flags with their values.

    Hydra requires the overrides to be adjacent, and in a sweep it would try both values of a key that is set twice.
    """
    flags: list[str] = []
    last: dict[str, str] = {}
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if key.startswith("-") or not (equals or key.startswith("~")):
            flags.append(argument)
        else:
            last.pop(key, None)  # keys are in the order of their last overrides
            last[key] = argument
    return [*last.values(), *flags]


def with_home_expanded(word: str) -> str:
    """Return an argument with ~ expanded where no shell does it: KEY=~/data, --output=~/model.pt, '~/runs/one'.

    A word such as ~optimizer.nu stays: it takes a key away, as Hydra has it.
    """
    if word.startswith("~/"):
        return os.path.expanduser(word)
    key, equals, value = word.partition("=")
    return f"{key}={os.path.expanduser(value)}" if equals and value.startswith("~") else word


def with_plus(word: str) -> str:
    """Return an override of a mapping with arbitrary keys as Hydra requires it: with a plus, since the keys are new."""
    return f"+{word}" if word.startswith(("sweep.spaces=", "sweep.params=")) else word


def yaml_infinity(argument: str) -> str:
    """Return an argument with YAML's .inf replaced by inf, which Hydra's grammar requires."""
    return re.sub(r"(?<=[=,\[ -])\.inf\b", "inf", argument)
