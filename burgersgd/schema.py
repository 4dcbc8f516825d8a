"""Base of all configuration classes: groups of keys with a meaning, a type and a range, checked when they are set.

A key is described where it is defined::

    lr: float = opt(0.3, "learning rate: step size of one gradient evaluation", above=0)

**Runs of earlier versions stay usable.** A key that 0.1.0 did not have has `since`, and `as_before` if its default is
not the value that reproduces 0.1.0. With that value the key is left out of the hash of a run, and a record without the
key is read as if it had that value. Keys that do not change the numbers of a run have `hashed=False`. If the same
settings of a class give other numbers than before, its `version` is increased; it is hashed if it is not 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import nn

    from burgersgd.datasets.preprocess import Raw
    from burgersgd.models import Model
    from burgersgd.optimizers.protocol import Rule


class ConfigError(ValueError):
    """A setting that cannot be used: the message names the key, the value and what is allowed, in one line."""


def opt(
    default: Any = MISSING,
    meaning: str = "",
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    infinite: bool = False,
    choices: Sequence[str] | None = None,
    since: str | None = None,
    as_before: Any = MISSING,
    hashed: bool = True,
    hashed_with: str | None = None,
    hashed_without: str | None = None,
    unused_with: str | None = None,
    required: bool = False,
) -> Any:
    """Return a dataclass field whose value is checked against a range or a list of choices.

    default: a value, or a function without arguments that makes one for every instance. meaning: one line for readers.
    since: the version that added the key to a class of 0.1.0. as_before: its value that reproduces earlier versions (by
    default its default). hashed: whether it changes the numbers of a run. hashed_with, hashed_without, unused_with:
    another key of the group; this key has no effect if that key is 0 or false, if it is set, or (overrides of this key
    are then refused) if it is not null. required: whether the key has no usable default.
    """
    rule = {"above": above, "at_least": at_least, "below": below, "at_most": at_most, "infinite": infinite}
    metadata = {"range": rule, "choices": choices, "meaning": meaning, "since": since, "hashed": hashed}
    others = {"hashed_with": hashed_with, "hashed_without": hashed_without, "unused_with": unused_with}
    metadata |= others | {"required": required}
    if as_before is not MISSING:
        metadata["as_before"] = as_before
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


if TYPE_CHECKING:
    LearningRate = float | Literal["default", "auto"]
else:
    LearningRate = Any
"""The type of a learning rate: a number above 0, or one of LR_WORDS. Hydra sees Any; this module checks the value."""
LR_WORDS = ("default", "auto")


def learning_rate(meaning: str = "learning rate: step size of one gradient evaluation") -> Any:
    """Return the field lr of an optimizer; a run decides on a number before its start (burgersgd/build/rates.py)."""
    text = f"{meaning}; default: the optimizer's, scaled for model and loss; auto: half of the largest stable rate"
    return opt("default", text, above=0)


def weight_decay_on() -> Any:
    """Return the field weight_decay_on of an optimizer."""
    meaning = "parameters to which weight decay applies; matrices: all but biases and normalisation parameters"
    return opt("all", meaning, choices=("all", "matrices"), since="0.2")


def named(*names: str, **described: str) -> Any:
    """Return the field `name` of a class with only these names; the first one is the default.

    described: name=description, if a class has several names.
    """
    all_names = [*names, *described]
    return dataclasses.field(
        default=all_names[0], metadata={"choices": all_names, "names": dict.fromkeys(names, "") | described}
    )


def type_name(f: dataclasses.Field[Any]) -> str:
    """Return the type of a field as it is written: float, int | None, list[str]."""
    return f.type.__name__ if isinstance(f.type, type) and not hasattr(f.type, "__args__") else str(f.type)


def default_of(f: dataclasses.Field[Any]) -> Any:
    """Return the default of a field; MISSING if it has none."""
    return f.default if f.default_factory is MISSING else f.default_factory()


def is_added(f: dataclasses.Field[Any]) -> bool:
    """Return whether the key was added after 0.1.0."""
    return f.metadata.get("since") is not None


def as_before(f: dataclasses.Field[Any]) -> Any:
    """Return the value of an added key that reproduces the versions without the key."""
    return f.metadata.get("as_before", default_of(f))


@dataclass
class Group:
    """Base of all groups: type and range of a field are checked whenever it is set. Raises ConfigError."""

    group: ClassVar[str] = ""
    version: ClassVar[int] = 1
    """Version of the class; increased if the same settings give other numbers than in the previous release."""
    summary: ClassVar[str] = ""
    """The first paragraph of the docstring."""

    def __init_subclass__(cls) -> None:
        """Store the first paragraph of the docstring in summary, and document the keys below it."""
        super().__init_subclass__()
        cls.summary = " ".join((cls.__dict__.get("__doc__") or "").split("\n\n")[0].split())
        keys = [f"{name}: {text}" for name, text in _documented(cls).items()]
        cls.__doc__ = "\n\n".join([cls.__doc__ or "", *keys]) if keys else cls.__doc__

    def __setattr__(self, key: str, value: Any) -> None:
        fields = fields_of(type(self))
        if key not in fields:
            raise self._error(key, value, f"no such key; there are {', '.join(fields)}{did_you_mean(key, fields)}")
        object.__setattr__(self, key, self._checked(fields[key], value))

    def __post_init__(self) -> None:
        """Check the combination of several fields, in subclasses."""

    def error(self, key: str, allowed: str) -> ConfigError:
        """Return the error for one of this group's keys."""
        return self._error(key, getattr(self, key), allowed)

    def _error(self, key: str, value: Any, allowed: str) -> ConfigError:
        path = f"{self.group}.{key}" if self.group else key
        return ConfigError(f"{path}={_show(value)}: {allowed}")

    def _checked(self, f: dataclasses.Field[Any], given: Any) -> Any:
        kind, _, optional = type_name(f).partition(" | ")
        if given is None:
            if optional:
                return given
            raise self._error(f.name, given, "must not be null")
        try:
            value = _converted(kind, given)
        except (TypeError, OverflowError) as error:  # OverflowError: an integer too large for a float
            kind = "float, default or auto" if kind == "LearningRate" else kind
            raise self._error(f.name, given, f"must be of type {kind}") from error
        rule, choices = f.metadata.get("range"), f.metadata.get("choices")
        if choices and value not in choices:
            raise self._error(f.name, given, f"must be one of {', '.join(choices)}")
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in v):
                raise self._error(f.name, ascii(given), "must be text without control characters")
            if isinstance(v, int) and abs(v) >= 2**63:
                raise self._error(f.name, given, "must fit into 64 bits")
            if rule and isinstance(v, int | float) and not isinstance(v, bool) and not _within(v, rule):
                raise self._error(f.name, given, f"must be {_allowed(rule, v)}")
        return value


def described(f: dataclasses.Field[Any]) -> str:
    """Return the meaning of a key with its allowed values: `pull of y (float > 0, inf allowed)`."""
    return f"{f.metadata.get('meaning')} ({allowed_values(f)})".strip()


def allowed_values(f: dataclasses.Field[Any]) -> str:
    """Return the allowed values of a key: `float > 0, inf allowed`, `int >= 1, or null`, `warm, reset`."""
    rule, choices = f.metadata.get("range"), f.metadata.get("choices")
    kind, _, optional = type_name(f).partition(" | ")
    if choices:
        allowed = ", ".join(choices)
    elif kind == "bool":
        allowed = "true or false"
    else:
        limits = _allowed(_readable(rule), 0.0).replace(" (inf allowed)", ", inf allowed") if rule else ""
        if kind.startswith("list["):
            kind = f"list of {kind[5:-1]}"
        elif kind.startswith("dict[str, "):
            kind = f"mapping of keys to {kind[10:-1]}"
        shown = "default, auto, float" if kind == "LearningRate" else kind
        allowed = f"{shown} {limits}".strip()
    return f"{allowed}{', or null' if optional else ''}"


def _readable(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a range without an upper limit that is only the largest number that can be represented."""
    return rule | {"below": None} if (rule["below"] or 0) >= 2**53 else rule


def _documented(cls: type[Group]) -> dict[str, str]:
    """Return the keys of a class that is not a dataclass yet, including those of its bases, each with one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, kind in inspect.get_annotations(base).items():
            f = base.__dict__.get("__dataclass_fields__", {}).get(name) or base.__dict__.get(name)
            if isinstance(f, dataclasses.Field) and f.metadata.get("meaning"):
                f.name, f.type = name, kind
                found[name] = described(f) + ("" if f.default is MISSING else f", default {f.default!r}")
    return found


@functools.cache
def fields_of(cls: type[Group]) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a class by name."""
    return {f.name: f for f in dataclasses.fields(cls)}


def float_values(group: Group) -> dict[str, float]:
    """Return the keys of type float with their values, which may differ between the runs of a fleet."""
    kinds = ("float", "LearningRate")
    return {name: getattr(group, name) for name, f in fields_of(type(group)).items() if type_name(f) in kinds}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question with the most similar known word, such as `; did you mean sgd?`, or an empty string."""
    close = difflib.get_close_matches(word, [*known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _converted(kind: str, value: Any) -> Any:
    """Return the value converted to the type of that name (numpy's numbers to Python's); raises TypeError."""
    if kind == "LearningRate":
        return value if isinstance(value, str) and value in LR_WORDS else _converted("float", value)
    number = {"int": numbers.Integral, "float": numbers.Real}.get(kind)
    if kind.startswith("list[") and isinstance(value, list | tuple):
        return [_converted(kind[5:-1], v) for v in value]
    if kind.startswith("dict[str, ") and isinstance(value, dict):
        return {_converted("str", k): _converted(kind[10:-1], v) for k, v in value.items()}
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e4
    if number and isinstance(value, number) and not isinstance(value, bool):
        return int(value) if kind == "int" else float(value)
    plain = {"bool": bool, "str": str, "Any": object}.get(kind)
    if plain is None:  # a configuration class, known by its name
        plain = next((c for c in type(value).__mro__ if issubclass(c, Group) and c.__name__ == kind), None)
    if plain is None or not isinstance(value, plain):
        raise TypeError
    return value


def _within(v: float, rule: dict[str, Any]) -> bool:
    if math.isnan(v) or (math.isinf(v) and not rule["infinite"]):
        return False
    return (
        (rule["above"] is None or v > rule["above"])
        and (rule["at_least"] is None or v >= rule["at_least"])
        and (rule["below"] is None or v < rule["below"])
        and (rule["at_most"] is None or v <= rule["at_most"])
    )


def _allowed(rule: dict[str, Any], value: float) -> str:
    words = {"above": "> {}", "at_least": ">= {}", "below": "< {}", "at_most": "<= {}"}
    parts = [words[k].format(f"{v:g}") for k, v in rule.items() if k in words and v is not None]
    if not (math.isfinite(value) or rule["infinite"]):
        parts.append("finite")
    return " and ".join(parts) + (" (inf allowed)" if rule["infinite"] else "")


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ------------------------------------------------------------------------------------- what the groups have in common


@dataclass
class DatasetConfig(Group):
    """Base of the data sets: a subclass gives itself a name and returns its arrays from `read`."""

    group: ClassVar[str] = "dataset"
    name: str = ""
    train_size: int | None = opt(None, "number of training examples to keep; null: all", at_least=1)
    label_noise: float = opt(
        0.0,
        "fraction of the labels of the training and validation parts that are replaced by another class",
        at_least=0,
        below=1,
    )
    noisy_validation: bool = opt(
        True,
        "apply label_noise to the validation part, too; the test part never has any",
        since="0.2",
        as_before=False,
        hashed_with="label_noise",
    )
    standardize: bool = opt(True, "standardize the inputs by the mean and standard deviation of the training part")
    standardize_targets: bool = opt(
        True,
        "standardize the targets of a regression for training; errors are reported in the original unit",
        since="0.2",
        as_before=False,
    )
    augment: str = opt(
        "none",
        "random variants of training images; shift: moved by up to 1/8 of their size; crop_flip: also mirrored or not",
        choices=["none", "crop_flip", "shift"],
        since="0.2",
    )
    seed: int = opt(
        0, "seed of the split, the label noise and generated data; the key seed is that of training", at_least=0
    )
    validation_fraction: float = opt(
        0.2, "fraction of the examples in the validation part, which selects settings; 0: none", at_least=0, below=1
    )

    def read(self) -> Raw:
        """Return the arrays of the source without preprocessing. Raises DataError."""
        raise NotImplementedError

    def recorded(self) -> DatasetConfig:
        """Return the settings that a run folder records, which give the same data wherever they are read again."""
        return self


@dataclass
class SplitDatasetConfig(DatasetConfig):
    """Base of the data sets without a test part of their own."""

    test_fraction: float = opt(0.2, "fraction of the examples in the test part, used only at the end", above=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_fraction + self.test_fraction >= 1:
            raise self.error("test_fraction", f"must be < {1 - self.validation_fraction:g} with validation_fraction")


@dataclass
class ModelConfig(Group):
    """Base of the models: a subclass gives itself a name and returns its network from `network`."""

    group: ClassVar[str] = "model"
    name: str = ""

    def lr_share(self, n_inputs: int) -> float:
        """Return the factor on an optimizer's own learning rate that is the default for this model and n_inputs."""
        return 1 / 10

    def network(self, input_shape: tuple[int, ...], n_outputs: int) -> Model | nn.Module:
        """Return the network for inputs of that shape (without the batch). Raises ValueError if the shape does not fit.

        A class of your own returns an nn.Module; a new one is made for every run, with torch's generators seeded by the
        run's seed.
        """
        raise NotImplementedError


@dataclass
class OptimizerConfig(Group):
    """Base of the optimizers: a subclass gives itself a name and returns its update rule from `rule`.

    Every float is a hyperparameter that may differ between the runs of a fleet.
    """

    group: ClassVar[str] = "optimizer"
    full_batch: ClassVar[bool] = False
    base_lr: ClassVar[float] = 0.1
    """The default learning rate for a small classifier."""
    name: str = ""
    lr: LearningRate = learning_rate()

    def default_lr(self, share: float) -> float:
        """Return the default learning rate; share is less than 1 for other models and losses."""
        return self.base_lr * share

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        raise NotImplementedError

    def hyper(self) -> dict[str, float]:
        """Return the float hyperparameters by name; lr=default is the rule's own rate for a small classifier."""
        values = float_values(self)
        return values | {"lr": self.default_lr(1.0)} if self.lr == "default" else values
