"""sweep.sampler=optuna: the tree-structured Parzen estimator proposes a fleet of trials at a time (ask and tell).

What is proposed depends on sweep.seed, the number of the trial and what was told before, and on nothing else: a search
that was interrupted and goes on proposes what it would have proposed.

The study is for other programs to read, too: it has the name of the sweep, the parameters of a trial are the numbers
that were trained (not those that the estimator drew, which are rounded) and typed choices, and the user attribute
"folders" of a trial that is over names its run folders, beside the study's file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser

from burgersgd.config import ConfigError
from burgersgd.identity import NOT_HASHED
from burgersgd.recording.claims import claim, release
from burgersgd.sweeps.space import Axis, Space, Words

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STUDY = "optuna.db"
AS_TRAINED = "parameters as trained"
"""User attribute of studies that hold the trained values; those of version 0.1.0 hold what was drawn, and words."""
STARTUP = 10
"""Trials that are drawn at random before the estimator knows enough; at least the first batch."""


def check_optuna() -> None:
    """Raise ConfigError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("sweep.sampler=optuna: needs Optuna, pip install optuna")


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[None]:
    """Claim the study in a folder, as a search has to know all its trials, and tell in one line if its file fails.

    Raises ConfigError for both.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    file = folder / STUDY
    if not claim(file):
        raise ConfigError(f"{file}: another process is running this search")
    try:
        yield
    except (OptunaError, SQLAlchemyError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]  # Optuna itself only guesses what it may be
        kept = "what is trained is kept, and the same command goes on with it, without that file too"
        raise ConfigError(f"cannot use {file}: {cause}; {kept}") from error
    finally:
        release(file)


class Search:
    """A study of Optuna: trials of the space, each one job or, where seeds are listed, one job per seed.

    folder: where the study is kept, to go on with it; None keeps it in memory. Raises ConfigError where the study that
    is there already is of other settings; whatever goes wrong with its file is to be caught by `keeping`.
    """

    def __init__(self, space: Space, folder: Path | None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._failed: set[int] = set()
        repeats = [axis for axis in space.axes if "seed" in axis.keys]
        self._repeats = list(itertools.chain.from_iterable(axis.settings for axis in repeats)) or [()]
        storage = None if folder is None else f"sqlite:///{folder / STUDY}"
        try:  # the folder may have been renamed, with the study in it
            before = optuna.get_all_study_names(storage) if storage and folder and (folder / STUDY).exists() else []
            name = before[0] if before else space.settings.name or "search"
            self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
        except RuntimeError as error:  # a study of another version of Optuna
            raise ConfigError(f"cannot use {storage}: {error}") from error
        if not self._study.user_attrs:
            self._study.set_user_attr(AS_TRAINED, True)
        self._as_trained = self._study.user_attrs.get(AS_TRAINED, False)
        labels = _typed_labels if self._as_trained else _labels
        self._choices = {_name(axis): labels(axis) for axis in space.axes if axis not in repeats}
        self._ranges = {r.key: r for r in space.ranges}
        self._distributions = _distributions(space, self._choices)
        listed = [f"{_name(axis)}={' '.join(_labels(axis))}" for axis in space.axes]
        fixed = [word for word in space.fixed if _root(word) not in NOT_HASHED]
        of = sorted([f"sweep.objective={space.settings.objective}", *listed, *fixed])
        before = self._study.user_attrs.get("of", of)
        if before != of:
            other = ", ".join(sorted(set(before) - set(of))) or f"nothing of {', '.join(sorted(set(of) - set(before)))}"
            raise ConfigError(f"sweep.name={space.settings.name}: is a search with {other}; use another name")
        self._study.set_user_attr("of", of)

    @property
    def n_left(self) -> int:
        """How many jobs are still to be proposed."""
        return max(0, self._space.settings.n_samples - len(self._trials())) * len(self._repeats)

    def ask(self) -> dict[int, list[Words]]:
        """Return the next trials by their numbers, those first that were proposed and never told: each one's jobs.

        Nothing is left when it is empty. Batches end at multiples of sweep.batch, whenever the search was interrupted.
        """
        settings, waiting, n = self._space.settings, self._waiting(), len(self._trials())
        stop = min(settings.n_samples, -(-n // settings.batch) * settings.batch)
        if not waiting and stop <= n:
            stop = min(settings.n_samples, n + settings.batch)
        try:
            self._propose(range(n, stop))
        except ValueError as error:  # Optuna's: other kinds of ranges than before
            raise ConfigError(f"sweep.name={settings.name}: is a search in other ranges: {error}") from error
        return {trial.number: self.jobs(trial) for trial in self._waiting()}

    def _propose(self, numbers: range) -> None:
        """Add the trials of these numbers to the study, each with all that it chooses at once.

        Optuna itself writes a new trial, then choice after choice: a process that dies in between leaves half a trial.
        """
        import optuna
        from optuna.trial import TrialState, create_trial

        if not numbers:
            return
        draft = optuna.create_study()
        draft.add_trials(self._trials())
        for number in numbers:
            draft.sampler = self._sampler(number)
            drawn = draft.ask(self._distributions)
            if self._as_trained:
                trained = {k: self._ranges[k].value(v) if k in self._ranges else v for k, v in drawn.params.items()}
                self._study.add_trial(
                    create_trial(state=TrialState.RUNNING, params=trained, distributions=self._distributions)
                )
            else:
                self._study.add_trial(draft.trials[number])

    def tell(
        self,
        number: int,
        objectives: Sequence[float | None],
        pruned_at: int | None = None,
        folders: Sequence[str] = (),
    ) -> None:
        """Tell how the jobs of a trial ended, and their folders: their mean counts, +inf where one diverged.

        None is a failed one: its trial stays open for the next process that goes on with the search.
        pruned_at: the gradient evaluations after which the trial was stopped; the mean is what it had reached.
        """
        from optuna.trial import Trial, TrialState

        trial = Trial(self._study, self._trials()[number]._trial_id)
        trial.set_user_attr("folders", [*folders])
        values = [value for value in objectives if value is not None]
        if len(values) < len(objectives):
            self._failed.add(number)
        elif pruned_at is None:
            self._study.tell(number, float(np.mean(values)))
        else:
            trial.report(float(np.mean(values)), pruned_at)
            self._study.tell(number, state=TrialState.PRUNED)

    def told(self) -> list[Words]:
        """Return the jobs of all trials that are over."""
        return [job for trial in self._trials() if trial.state.is_finished() for job in self.jobs(trial)]

    def jobs(self, trial: FrozenTrial) -> list[Words]:
        """Return the overrides of the jobs of a trial."""
        words = list(self._space.fixed)
        for name, value in trial.params.items():
            words += self._choices[name][value] if name in self._choices else [self._ranges[name].word(value)]
        return [[*words, *repeat] for repeat in self._repeats]

    def _waiting(self) -> list[FrozenTrial]:
        return [t for t in self._trials() if not t.state.is_finished() and t.number not in self._failed]

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _sampler(self, number: int) -> Any:
        from optuna.samplers import TPESampler

        settings = self._space.settings
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():  # Optuna 4 calls constant_liar experimental: trials of a batch keep apart
            warnings.simplefilter("ignore")
            return TPESampler(seed=seed, constant_liar=True, n_startup_trials=max(STARTUP, settings.batch))


def _distributions(space: Space, choices: dict[str, dict[Any, tuple[str, ...]]]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, Any] = {name: CategoricalDistribution(list(labels)) for name, labels in choices.items()}
    for r in space.ranges:
        kind = IntDistribution if r.whole else FloatDistribution
        distributions[r.key] = kind(r.low, r.high, log=r.log)  # pyright: ignore[reportArgumentType]
    return distributions


def _name(axis: Axis) -> str:
    return ",".join(axis.keys)


def _labels(axis: Axis) -> dict[Any, tuple[str, ...]]:
    """Return the settings of an axis by what Optuna calls them: the values after the keys."""
    return {",".join(word.partition("=")[2] for word in setting): setting for setting in axis.settings}


def _typed_labels(axis: Axis) -> dict[Any, tuple[str, ...]]:
    """Return the settings of an axis by their values, of one key as numbers, truth values or None where they are.

    By their words where Optuna takes no such value (a list), or takes two of them for one (1 and True).
    """
    words = _labels(axis)
    typed = {_typed(label) if len(axis.keys) == 1 else label: setting for label, setting in words.items()}
    return typed if len(typed) == len(words) else words


def _typed(label: str) -> Any:
    value = OverridesParser.create().parse_override(f"key={label}").value()
    return value if value is None or isinstance(value, bool | int | float | str) else label


def _root(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition(".")[0]
