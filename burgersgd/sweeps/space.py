"""The space of a sweep: values and ranges of keys, written in Hydra's syntax, and the jobs that they define.

`KEY=a,b,c`, `choice(...)`, `range(...)` and `glob(...)` list values, which form a grid; `sweep.zip` pairs the lists of
some keys. `interval(a,b)` is a range to sample from, `tag(log, interval(a,b))` one on a logarithmic scale,
`int(interval(a,b))` one of integers, including both ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from burgersgd.config import GROUPS, ConfigError, SweepConfig
from burgersgd.keys import no_such_choice
from burgersgd.schema import fields_of
from burgersgd.sweeps.compose import Composer, refuse_varied

MOST_JOBS = 50_000
"""Largest number of jobs of a sweep: composing them takes minutes and 2 GB, and larger grids are usually mistakes."""

Words = list[str]
"""The overrides of one job."""


@dataclass(frozen=True)
class Range:
    """A range of numbers from which samples are drawn."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, u: float) -> str:
        """Return the override at u in [0, 1]: uniform u gives uniform (or log-uniform) values."""
        low, high = self.low, self.high + 1 if self.whole else self.high
        return self.word(math.exp(math.log(low) + u * math.log(high / low)) if self.log else low + u * (high - low))

    def word(self, value: float) -> str:
        """Return the override for a value in the range."""
        return f"{self.key}={self.value(value)!r}"

    def value(self, value: float) -> float:
        """Return the value used in training for a value in the range: rounded to six digits, or an integer."""
        value = math.floor(value) if self.whole else float(f"{value:.6g}")
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Axis:
    """Keys that vary together, with a list of settings, each of which has one override per key."""

    keys: tuple[str, ...]
    settings: list[tuple[str, ...]]


class Space:
    """The values and ranges that a sweep tries. Raises ConfigError of one line for inconsistent settings.

    words: overrides of a command line, without those of Hydra's own keys.
    """

    def __init__(self, words: Sequence[str], settings: SweepConfig, composer: Composer) -> None:
        presets = composer.parse([f"{key}={values}" for key, values in settings.params.items()])
        refuse_varied(presets)
        overrides = {o.get_key_element(): o for o in (*presets, *composer.parse(words))}  # the last override wins
        self.settings = settings
        self.ranges = [_range(key, o) for key, o in overrides.items() if isinstance(o.value(), IntervalSweep)]
        lists = {key: _values(key, o) for key, o in overrides.items() if not isinstance(o.value(), IntervalSweep)}
        self.fixed = [words[0] for key, words in lists.items() if not overrides[key].is_sweep_override()]
        swept = {key: words for key, words in lists.items() if overrides[key].is_sweep_override()}
        self.axes = _axes(swept, settings.zip)
        if self.ranges and settings.sampler == "grid":
            line = overrides[self.ranges[0].key].input_line
            raise ConfigError(f"{line}: a range needs sweep.sampler=random, sobol or optuna, not grid")
        if settings.sampler in ("random", "sobol") and not self.ranges:
            raise settings.error("sampler", "needs a range, such as optimizer.nu='tag(log, interval(1e-9,1e-5))'")
        if settings.sampler == "optuna" and not self.ranges and not self.axes:
            raise settings.error("sampler", "needs a range or a list of values to choose from")
        n = math.prod(len(axis.settings) for axis in self.axes)
        if settings.sampler in ("random", "sobol"):
            n *= settings.n_samples
        if settings.sampler != "optuna" and n > MOST_JOBS:
            raise ConfigError(
                f"the sweep has {n:,} jobs, must be <= {MOST_JOBS:,}: list fewer values, or split the sweep"
            )

    def jobs(self) -> list[Words]:
        """Return the overrides of all jobs of a grid, random or sobol sampler; samples vary fastest."""
        samples = self._samples() if self.ranges else [[]]
        combinations = itertools.product(*(axis.settings for axis in self.axes))
        return [
            [*self.fixed, *itertools.chain(*combination), *sample]
            for combination, sample in itertools.product(combinations, samples)
        ]

    def corners(self) -> list[Words]:
        """Return some jobs that use every listed value and the ends of every range, for checks before a search."""
        first = [axis.settings[0] for axis in self.axes]
        varied = [first] + [
            [*first[:i], other, *first[i + 1 :]] for i, axis in enumerate(self.axes) for other in axis.settings[1:]
        ]
        ends = ([r.at(0.0) for r in self.ranges], [r.at(1.0) for r in self.ranges])
        jobs = [(first, ends[1])] * bool(self.ranges) + [(combination, ends[0]) for combination in varied]
        return [[*self.fixed, *itertools.chain(*combination), *end] for combination, end in jobs]

    @property
    def n_trials(self) -> int:
        """Number of settings that are tried; runs that differ only in the seed have the same setting."""
        lists = math.prod(len(axis.settings) for axis in self.axes if axis.keys != ("seed",))
        return lists * (self.settings.n_samples if self.ranges else 1)

    def _samples(self) -> list[Words]:
        """Return n_samples points of the ranges; a larger n_samples yields the same points first."""
        n, d = self.settings.n_samples, len(self.ranges)
        generator = np.random.default_rng(self.settings.seed)
        if self.settings.sampler == "random":
            points = generator.random((n, d))
        else:
            from scipy.stats import qmc

            points = qmc.Sobol(d, scramble=True, rng=generator).random_base2((n - 1).bit_length())[:n]
        return [[r.at(u) for r, u in zip(self.ranges, point, strict=True)] for point in points]


class Spaces:
    """The spaces of several optimizers, a Space for each, with equal numbers of trials (sweep.spaces).

    Overrides of an optimizer's key on the command line and in sweep.params apply to the optimizers that have the key.
    Raises ConfigError of one line as Space does.
    """

    def __init__(self, words: Sequence[str], settings: SweepConfig, composer: Composer) -> None:
        if settings.sampler == "optuna":
            raise settings.error("sampler", "cannot be combined with sweep.spaces, must be grid, random or sobol")
        given = [*composer.parse(words), *composer.parse([f"{k}={v}" for k, v in settings.params.items()])]
        for override in given:
            key = override.get_key_element().lstrip("+~")
            if key in ("optimizer", "optimizer.name"):
                raise ConfigError(f"{override.input_line}: must be left out, because sweep.spaces lists the optimizers")
            if key.startswith("optimizer.") and not any(_has(name, key) for name in settings.spaces):
                raise ConfigError(f"{key}: none of the optimizers of sweep.spaces has this key")
        self.settings = settings
        self.parts: dict[str, Space] = {}
        for name, space in settings.spaces.items():
            for key in space:
                if not key.startswith("optimizer.") or not _has(name, key):
                    raise ConfigError(f"sweep.spaces.{name}: optimizer={name} has no key {key}")
            own = dataclasses.replace(settings, spaces={}, params=_fitting(name, settings.params))
            common = [word for word in words if _fits(name, word.partition("=")[0])]
            listed = [f"{key}={values}" for key, values in space.items()]
            self.parts[name] = Space([f"optimizer={name}", *listed, *common], own, composer)
        trials = {name: part.n_trials for name, part in self.parts.items()}
        if len(set(trials.values())) > 1:
            unlike = ", ".join(f"{name} has {n}" for name, n in trials.items())
            raise ConfigError(f"sweep.spaces: all optimizers must have the same number of trials: {unlike}")
        n = sum(len(part.jobs()) for part in self.parts.values())
        if n > MOST_JOBS:
            raise ConfigError(
                f"the sweep has {n:,} jobs, must be <= {MOST_JOBS:,}: list fewer values, or split the sweep"
            )

    @property
    def fixed(self) -> Words:
        """Overrides that all jobs have in common."""
        first, *others = self.parts.values()
        return [word for word in first.fixed if all(word in other.fixed for other in others)]

    def jobs(self) -> list[Words]:
        """Return the overrides of all jobs, one optimizer after the other."""
        return [job for part in self.parts.values() for job in part.jobs()]

    def corners(self) -> list[Words]:
        """Return some jobs that use every listed value and the ends of every range."""
        return [job for part in self.parts.values() for job in part.corners()]


def space_of(words: Sequence[str], settings: SweepConfig, composer: Composer) -> Space | Spaces:
    """Return the space of a sweep. Raises ConfigError as Space does."""
    return Spaces(words, settings, composer) if settings.spaces else Space(words, settings, composer)


def _has(optimizer: str, key: str) -> bool:
    """Whether an optimizer has a key, `optimizer.KEY`. Raises ConfigError for an unknown optimizer."""
    try:
        return key.removeprefix("optimizer.") in fields_of(GROUPS["optimizer"][optimizer])
    except KeyError:
        raise ConfigError(f"sweep.spaces: {no_such_choice('optimizer', optimizer)}") from None


def _fits(optimizer: str, key: str) -> bool:
    key = key.lstrip("+~")
    return not key.startswith("optimizer.") or _has(optimizer, key)


def _fitting(optimizer: str, params: dict[str, str]) -> dict[str, str]:
    return {key: values for key, values in params.items() if _fits(optimizer, key)}


def _values(key: str, override: Override) -> Words:
    """Return the override, or one for each value that it lists. Raises ConfigError for none and for too many values."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    try:
        sweep = override.value()
        if isinstance(sweep, RangeSweep) and next(itertools.islice(sweep.range(), MOST_JOBS, None), None) is not None:
            raise ValueError(f"has too many values, must be <= {MOST_JOBS:,}")
        values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except (HydraException, ValueError) as error:
        raise ConfigError(f"{override.input_line}: {error}") from error
    if not values:
        raise ConfigError(f"{override.input_line}: must have at least one value")
    return values


def _range(key: str, override: Override) -> Range:
    sweep = override.value()
    assert isinstance(sweep, IntervalSweep)
    low, high, tags = sweep.start, sweep.end, set(sweep.tags)
    assert low is not None
    assert high is not None

    def refused(allowed: str) -> ConfigError:
        return ConfigError(f"{override.input_line}: {allowed}")

    if tags - {"log"}:
        raise refused(f"unknown tag {min(tags - {'log'})}, must be log")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise refused("the ends of a range must be finite, and the first one must be smaller")
    if "log" in tags and low <= 0:
        raise refused("a range on a logarithmic scale must be > 0")
    return Range(key, low, high, "log" in tags, isinstance(low, int))


def _axes(swept: dict[str, Words], zipped: list[str]) -> list[Axis]:
    shown = f"sweep.zip=[{','.join(zipped)}]"
    for key in zipped:
        if key not in swept:
            raise ConfigError(f"{shown}: {key} must have a list of values")
    lengths = {key: len(swept[key]) for key in zipped}
    if len(set(lengths.values())) > 1:
        differ = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ConfigError(f"{shown}: paired lists must have the same number of values: {differ}")
    axes = []
    for key in swept:
        if key not in zipped:
            axes.append(Axis((key,), [(word,) for word in swept[key]]))
        elif key == next(k for k in swept if k in zipped):  # at the position of the first of these keys
            keys = tuple(k for k in swept if k in zipped)
            axes.append(Axis(keys, list(zip(*(swept[k] for k in keys), strict=True))))
    return axes
