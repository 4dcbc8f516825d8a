"""Names -> classes of settings: those of burgersgd, of installed packages, and of imported modules.

A shipped class is imported when it is first used, since most of them import torch. A class of another package is known
once its module is imported in this process. `optimizer=PACKAGE:CLASS` on a command line imports one, and so does the
name of a class that an installed package declares as an entry point `burgersgd.optimizers`, `burgersgd.models` or
`burgersgd.datasets` (under the name that the class gives itself). The files of a run import nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from burgersgd.schema import ConfigError, Group

OWN = "own"
"""Name in a record for a model or data that were given in Python, without a configuration class."""
OWN_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""Matches PACKAGE.MODULE:CLASS."""


class Registry(Mapping[str, type[Group]]):
    """The names of one group, each with its class; iterating yields the shipped and the imported names.

    shipped: name -> class, or its location "module:class". base: the base of classes of other packages; without a base
    the group accepts none.
    """

    def __init__(self, group: str, shipped: Mapping[str, str | type[Group]], base: type[Group] | None = None) -> None:
        self.group, self.shipped, self.base = group, dict(shipped), base

    def __getitem__(self, name: str) -> type[Group]:
        """Return the class of that name. Raises KeyError, or ConfigError for an entry point that cannot be used."""
        found = self.shipped.get(name)
        if isinstance(found, str):
            module, _, attribute = found.partition(":")
            return getattr(importlib.import_module(module), attribute)
        if found is not None:
            return found
        if name not in self._imported() and name in (installed := self.installed()):
            self._check(_loaded(f"{self.group}={name}", installed[name]), f"{self.group}={name}", name)
        return self._imported()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.shipped, *self._imported()])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self)  # without importing it

    def names(self) -> list[str]:
        """Return all names, including those of installed packages."""
        return [*dict.fromkeys([*self, *self.installed()])]

    def installed(self) -> dict[str, EntryPoint]:
        """Return the entry points of installed packages, by name."""
        points = () if self.base is None else entry_points(group=f"burgersgd.{self.group}s")
        return {point.name: point for point in points if point.name not in self.shipped}

    def named(self, path: str) -> str:
        """Import and register the class at PACKAGE:CLASS, and return its name. Raises ConfigError."""
        shown = f"{self.group}={path}"
        if self.base is None:
            raise ConfigError(f"{shown}: must be one of {', '.join(self)}")
        here = ""  # the folder of the command, as for `python -m`
        if here not in sys.path:
            sys.path.append(here)
        cls = _loaded(shown, EntryPoint(name="", value=path, group=""))
        return self._check(cls, shown, None)

    def _check(self, cls: Any, shown: str, name: str | None) -> str:
        """Return the name of a class of another package. Raises ConfigError if the class cannot be used."""
        assert self.base is not None
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise ConfigError(f"{shown}: must be a class derived from burgersgd.config.{self.base.__name__}")
        names = _names_of(cls)
        if not names:
            raise ConfigError(f"{shown}: must be a @dataclass with its own name, `name: str = named(...)`")
        if name is not None and name not in names:
            raise ConfigError(
                f"{shown}: the class has the name {names[0]}, and its entry point must have the same name"
            )
        taken = [n for n in names if n in self.shipped or n == OWN]
        if taken:
            raise ConfigError(
                f"{shown}: the class has the name {taken[0]}, which burgersgd uses itself; choose another one"
            )
        return names[0]

    def _imported(self) -> dict[str, type[Group]]:
        """Return the imported classes of other packages by name; for each name the class that was defined last."""
        classes = () if self.base is None else _subclasses(self.base)
        found = {name: cls for cls in classes for name in _names_of(cls)}
        return {name: cls for name, cls in found.items() if name not in self.shipped}


def _subclasses(cls: type[Group]) -> Iterator[type[Group]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _names_of(cls: type[Group]) -> list[str]:
    """Return the names that a class gives itself; none for a base, or for a class that is not a dataclass yet."""
    if "__dataclass_fields__" not in cls.__dict__ or "name" not in inspect.get_annotations(cls):
        return []
    (field,) = (f for f in dataclasses.fields(cls) if f.name == "name")
    default: Any = field.default
    return list(field.metadata.get("choices") or ([default] if default else []))


def _loaded(shown: str, point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:  # any exception of another package's module while it is imported
        reason = " ".join(str(error).split())
        raise ConfigError(f"{shown}: {point.value} cannot be imported ({type(error).__name__}: {reason})") from error


def with_own_classes(groups: Mapping[str, Registry], words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Import every GROUP=PACKAGE:CLASS among the words of a command line.

    Return all words with PACKAGE:CLASS replaced by the name of the class, and the list of the replaced words. Raises
    ConfigError with a one-line message for a class that cannot be used.
    """
    every, named = [], []
    for word in words:
        group, equals, value = word.partition("=")
        parts = value.split(",")
        if equals and group in groups and any(OWN_CLASS.fullmatch(part) for part in parts):
            parts = [groups[group].named(part) if OWN_CLASS.fullmatch(part) else part for part in parts]
            named.append(f"{group}={','.join(parts)}")
            every.append(named[-1])
        else:
            every.append(word)
    return every, named
