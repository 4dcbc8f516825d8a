"""Composes overrides to checked configurations, fast enough for thousands of jobs (a Hydra composition takes 0.1 s).

Each combination of choices of config groups is composed once; the other overrides of a job are applied to a copy of it.
"""

from __future__ import annotations

import contextlib
import errno
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from burgersgd.config import CONF_DIR, GROUPS, ConfigError, SweepConfig, TrainConfig
from burgersgd.copies import changed
from burgersgd.hydra_schemas import register_schemas
from burgersgd.identity import NOT_HASHED
from burgersgd.keys import no_such_choice, no_such_key
from burgersgd.schema import Group, fields_of, type_name

T = TypeVar("T")
ROOT = "train"
WHOLE_NUMBER = re.compile(r"([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)=(-?(?:0|[1-9][0-9]{0,17}))")
"""Pattern of overrides that set a key to an integer."""


class Composer:
    """Composes conf/train.yaml with lists of overrides.

    hydra_overrides: overrides of Hydra's own keys, the same for all jobs (hydra.searchpath=... names folders with more
    files). All methods raise ConfigError of one line for errors of Hydra and for values of a wrong type or range.
    """

    def __init__(self, hydra_overrides: Sequence[str] = ()) -> None:
        register_schemas()
        setup_globals()
        version.setbase("1.3")
        self._hydra_overrides = list(hydra_overrides)
        self._loader = ConfigLoaderImpl(create_config_search_path(str(CONF_DIR)))
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._parsed: dict[str, Override] = {}
        self._is_group: dict[str, bool] = {}
        self._objects: dict[tuple[str, ...], TrainConfig | None] = {}
        """Compositions by the overrides that set no numbers; None where a key has no value or refers to another key."""
        self._bases: dict[tuple[str, ...], bytes] = {}  # unpickling takes a fifth of the time of copy.deepcopy
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a missing folder in hydra.searchpath
            _, self._files = as_config_error(
                lambda: self._loader._parse_overrides_and_create_caching_repo(ROOT, self._hydra_overrides)
            )

    def parse(self, words: Sequence[str]) -> list[Override]:
        """Return the parsed overrides of the words of a command line."""
        for word in words:
            if word in self._parsed:
                continue
            if whole := WHOLE_NUMBER.fullmatch(word):  # such as thousands of seeds: Hydra's parser takes 1 ms
                self._parsed[word] = Override(
                    *(OverrideType.CHANGE, whole[1], ValueType.ELEMENT, int(whole[2])),
                    input_line=word,
                    config_loader=self._loader,
                )
            else:
                self._parsed.update(as_config_error(lambda word=word: {word: self._parser.parse_overrides([word])[0]}))
        return [self._parsed[word] for word in words]

    def node(self, words: Sequence[str]) -> DictConfig:
        """Return the composed configuration of one job, as `hydra.compose` does."""
        return as_config_error(lambda: self._node(self.parse(words)))

    def config(self, words: Sequence[str]) -> TrainConfig:
        """Return the checked configuration of one job."""

        def composed() -> TrainConfig:
            overrides = self.parse(words)
            config = self._quickly(overrides)
            if config is None:
                config = OmegaConf.to_object(self._node(overrides))
            refuse_unused(config, overrides)  # pyright: ignore[reportArgumentType]
            return config  # pyright: ignore[reportReturnType]

        return as_config_error(composed)

    def sweep(self, words: Sequence[str]) -> SweepConfig:
        """Return the settings of the sweep (group sweep) with these overrides, which may be lists and ranges."""

        def composed() -> SweepConfig:
            overrides = self.parse(words)
            refuse_varied(overrides)
            fixed = [o for o in overrides if not o.is_sweep_override()]
            own = [o for o in fixed if _of_sweep(o) or self._is_choice(o)]  # all choices: jobs use that base, too
            return OmegaConf.to_object(self._node(own).sweep)  # pyright: ignore[reportReturnType]

        return as_config_error(composed)

    def plugin(self, name: str) -> DictConfig:
        """Return the node hydra.launcher or hydra.sweeper (by name), with the chosen plugin and its settings."""
        load = self._loader.load_configuration
        hydra = as_config_error(lambda: load(ROOT, self._hydra_overrides, RunMode.MULTIRUN, from_shell=False).hydra)
        if not isinstance(hydra.get(name), DictConfig) or not hydra[name].get("_target_"):
            raise ConfigError(f"hydra/{name}: must be the name of a {name}")
        target = hydra[name]["_target_"]
        if target not in Plugins.instance().class_name_to_class:
            raise ConfigError(f"hydra.{name}._target_={target}: must be a plugin of Hydra")
        return hydra[name]

    def _node(self, overrides: list[Override]) -> DictConfig:
        choices: list[str] = []
        settings: list[Override] = []
        for override in overrides:
            if self._is_choice(override):
                choices.append(str(override.input_line))
            else:
                settings.append(override)
        node: DictConfig = pickle.loads(self._base(tuple(choices)))
        ConfigLoaderImpl._apply_overrides_to_config(settings, node)
        return node

    def _quickly(self, overrides: list[Override]) -> TrainConfig | None:
        """Return the configuration of a job by setting numbers in a copy of what the other overrides give.

        Return None where the result might differ from that of OmegaConf: where two overrides set the same key, where a
        value refers to another one, and for invalid values, whose error OmegaConf then reports.
        """
        numbers = {o.key_or_group: o.value() for o in overrides if _is_number(o) and not self._is_choice(o)}
        others = [o for o in overrides if o.key_or_group not in numbers or not _is_number(o)]
        settings = [o.key_or_group for o in others if not self._is_choice(o)]
        if any(f"{number}.".startswith(f"{key}.") for key in settings for number in numbers):
            return None
        given: dict[str, dict[str, Any]] = {}
        for key, value in numbers.items():
            group, _, name = key.rpartition(".")
            given.setdefault(group, {})[name] = value
        words = tuple(str(o.input_line) for o in others)
        if words not in self._objects:
            self._objects[words] = None
            choices = tuple(str(o.input_line) for o in others if self._is_choice(o))
            with contextlib.suppress(ConfigError):
                if b"${" not in self._base(choices) and not any("${" in word for word in words):
                    node = as_config_error(lambda: self._node(others))
                    self._objects[words] = as_config_error(lambda: OmegaConf.to_object(node))  # pyright: ignore
        base = self._objects[words]
        if base is None or not all(_fits(base, group, given[group]) for group in given):
            return None
        with contextlib.suppress(ConfigError):
            groups = {name: group for name, group in vars(base).items() if isinstance(group, Group)}
            parts = {name: changed(group, **given.get(name, {})) for name, group in groups.items()}
            return changed(base, **parts, **given.get("", {}))
        return None

    def _is_choice(self, override: Override) -> bool:
        """Whether an override chooses a file of a config group, by Hydra's own rule."""
        key = override.key_or_group
        if key not in self._is_group:
            self._is_group[key] = self._files.group_exists(key)
        return self._is_group[key] and not isinstance(override.value(), dict)

    def _base(self, choices: tuple[str, ...]) -> bytes:
        if choices not in self._bases:
            words = [*self._hydra_overrides, *choices]
            try:
                node = self._loaded(words)
            except (AttributeError, TypeError) as error:  # raised by Hydra for a dict and null, or a list as a choice
                raise ConfigError(f"{' '.join(words)}: cannot be composed") from error
            with open_dict(node):
                del node["hydra"]
            self._bases[choices] = pickle.dumps(node)
        return self._bases[choices]

    def _loaded(self, words: list[str]) -> DictConfig:
        """Return Hydra's composition; for an unknown name, import the installed packages and try again."""
        try:
            return self._loader.load_configuration(ROOT, words, RunMode.RUN, from_shell=False)
        except MissingConfigException:
            if not self._installed():
                raise
            return self._loader.load_configuration(ROOT, words, RunMode.RUN, from_shell=False)

    def _installed(self) -> list[str]:
        """Import the choices that installed packages add to the groups, and return their names."""
        found = [(choices, name) for choices in GROUPS.values() for name in choices.installed()]
        for choices, name in found:
            choices[name]
        register_schemas()
        return [name for _, name in found]


def _is_number(override: Override) -> bool:
    """Whether an override sets a key to a number."""
    plain = override.type == OverrideType.CHANGE and override.package is None
    return plain and override.value_type == ValueType.ELEMENT and type(override.value()) in (int, float)


def _fits(config: TrainConfig, group: str, values: Mapping[str, Any]) -> bool:
    """Whether a group has keys of these names whose types accept exactly these numbers."""
    settings = getattr(config, group, None) if group else config
    if not isinstance(settings, Group) or "." in group:
        return False
    fields = fields_of(type(settings))
    kinds = {name: type_name(fields[name]).partition(" | ")[0] if name in fields else "" for name in values}
    number = {"int": (int,), "float": (int, float), "LearningRate": (int, float)}
    return all(type(value) in number.get(kinds[name], ()) for name, value in values.items())


def compose_job(overrides: Sequence[str]) -> TrainConfig:
    """Return the checked configuration of a single run.

    Raises ConfigError with a one-line message for errors of Hydra and values out of range.
    """
    hydra_words, words = split_words(overrides)
    composer = Composer(hydra_words)
    if any(override.is_sweep_override() for override in composer.parse(words)):
        raise ConfigError("a list of values, such as seed=1,2,3, makes a sweep: add --multirun")
    config = composer.config(words)
    for key in ("params", "spaces"):
        if getattr(config.sweep, key):
            raise ConfigError(f"sweep.{key}: has an effect only in a sweep; add --multirun")
    return config


def refuse_unused(config: TrainConfig, overrides: Sequence[Override]) -> None:
    """Raise ConfigError for an override of a key that another key of its group replaces.

    Runs of a sweep that differ only in such a key would be the same run by different names.
    """
    for override in overrides:
        group, _, name = override.key_or_group.partition(".")
        settings = getattr(config, group, None)
        fields = fields_of(type(settings)) if isinstance(settings, Group) else {}
        other = fields[name].metadata.get("unused_with") if name in fields else None
        if other is not None and getattr(settings, other) is not None:
            value = f"{group}.{other}={getattr(settings, other)}".replace(" ", "")
            raise ConfigError(
                f"{override.input_line}: has no effect beside {value}; remove one, or set {group}.{other}=null"
            )


def refuse_varied(overrides: Sequence[Override]) -> None:
    """Raise ConfigError for a list or a range of values of a key that does not change what a run computes.

    Runs that differ only in such a key are the same run.
    """
    for override in overrides:
        key = override.key_or_group
        group, _, name = key.partition(".")
        if not override.is_sweep_override() or key == "trainer.epochs":  # epochs determine the budget
            continue
        if _of_sweep(override):
            raise ConfigError(
                f"{override.input_line}: settings of the sweep itself cannot vary within it; give one value"
            )
        classes = [TrainConfig] if group not in GROUPS else [GROUPS[group][choice] for choice in GROUPS[group].shipped]
        fields = [fields_of(cls)[name or group] for cls in classes if (name or group) in fields_of(cls)]
        if group in NOT_HASHED or any(not f.metadata.get("hashed", True) for f in fields):
            why = f"{key} does not change what a run computes, so it cannot vary in a sweep"
            raise ConfigError(f"{override.input_line}: {why}; give it one value")


def _of_sweep(override: Override) -> bool:
    return override.key_or_group.partition(".")[0] == "sweep"


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of Hydra's own keys, and the others, which are those of the job."""
    ours: tuple[list[str], list[str]] = [], []
    for word in words:
        ours[not word.lstrip("+~").startswith(("hydra.", "hydra/"))].append(word)
    return ours


def as_config_error(compose: Callable[[], T]) -> T:
    """Return the result of compose(); turn every error of Hydra and OmegaConf into a ConfigError of one line.

    This includes Python errors that pass through them, such as that of a number that is too large for a float.
    """
    try:
        return compose()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    except RecursionError:
        raise ConfigError("a value is nested too deeply; use fewer levels of brackets") from None
    except OSError as error:  # Hydra has searched a file of that name
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ConfigError(f"{str(error.filename)[-40:]}: no such key (keys are not that long)") from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, UserWarning) as error:
        raise ConfigError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """Return the message of an error of Hydra or OmegaConf in one line."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    while len(causes) > 1 and isinstance(causes[-1], ValueError) and isinstance(causes[-2], OmegaConfBaseException):
        causes.pop()  # in a debugger or with OC_CAUSE=1, OmegaConf also chains the error of int("maybe")
    text, reason = str(error), (str(causes[-1]).splitlines() or [""])[0]
    if isinstance(error, OverrideParseException):
        return f"{error.override}: must be KEY=VALUE in Hydra's grammar (https://hydra.cc); quote special characters"
    options = re.search(r"Could not find '([^']+)/([^/']*)'\s+Available options in '[^']+':\s+((?:\t.*\n?)+)", text)
    if options:
        group, choice, names = options.groups()
        if group in GROUPS:
            return no_such_choice(group, choice)
        return f"{group}={choice}: must be one of {', '.join(names.split())}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return no_such_key(unknown.group(1))
    wrong = re.search(r"Error merging override (\S.*)", text)
    if wrong:
        kind = re.search(r"could not be converted to (\w+)|is not a valid (\w+)", reason)
        if kind:
            reason = f"must be of type {(kind[1] or kind[2]).lower()}"
        if reason.startswith("Unexpected type annotation"):  # of a range in a mapping, which Hydra has parsed
            reason = "lists and ranges inside of braces must be quoted, such as {seed: 'range(3)'}"
        return f"{wrong.group(1)}: " + ("must not be null" if "is not Optional" in reason else reason)
    key = re.search(r"\n\s+full_key: (\S+)", text)
    if key:
        return f"{key[1]}: {text.splitlines()[0]}"[:300]
    return " ".join(line.strip() for line in text.splitlines() if line.strip())[:300] or type(error).__name__
