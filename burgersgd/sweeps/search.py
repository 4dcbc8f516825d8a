"""sweep.sampler=optuna: the tree-structured Parzen estimator proposes the trials of a fleet together (ask and tell).

A proposal depends only on sweep.seed, the number of the trial and the results reported before it: a search that is
resumed after an interruption proposes the same trials as without it.

Other programs can read the study, too: it has the name of the sweep, the parameters of a trial are the numbers used in
training (the estimator's own draws are rounded first) and typed choices, and the user attribute "folders" of a
finished trial names its run folders, which are in the folder of the study's file.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
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
from burgersgd.recording.files import one_line
from burgersgd.sweeps.space import Axis, Space, Words

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STUDY = "optuna.db"
AS_TRAINED = "parameters as trained"
"""User attribute of studies that hold the values used in training; version 0.1.0 stored draws and texts of choices."""
OPTUNA = 4
"""The oldest major version of Optuna whose interface is used here (pyproject.toml)."""
STARTUP = 10
"""Number of trials drawn at random before the estimator is used; at least the first batch."""


def check_optuna() -> None:
    """Raise ConfigError where Optuna is not installed, is too old, or cannot be imported with the packages it needs."""
    wanted = f"sweep.sampler=optuna: needs Optuna {OPTUNA} or later"
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(f"{wanted} (pip install optuna)")
    version = importlib.metadata.version("optuna")
    if int(version.partition(".")[0]) < OPTUNA:
        raise ConfigError(f"{wanted}, {version} is installed (pip install --upgrade optuna)")
    try:
        for module in ("optuna.storages", "alembic.command", "sqlalchemy.orm"):  # Optuna imports them when used first
            importlib.import_module(module)
    except Exception as error:
        reason = f"Optuna {version} cannot be imported: {one_line(error)[:150]}"
        again = "pip install --upgrade optuna alembic sqlalchemy"
        raise ConfigError(f"sweep.sampler=optuna: {reason} ({again})") from error


@contextlib.contextmanager
def claimed_study(folder: Path) -> Iterator[None]:
    """Claim the study in a folder for this process, since a search has to know all its trials.

    Raises ConfigError, in one line, where another process has claimed it and where its file cannot be used.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    file = folder / STUDY
    if not claim(file):
        raise ConfigError(
            f"{file}: another process is running this search; wait until it ends, or choose another sweep.name"
        )
    try:
        yield
    except (OptunaError, SQLAlchemyError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]  # the message of Optuna itself only guesses the reason
        kept = "trained runs are kept, and the same command resumes the search, even without that file"
        raise ConfigError(f"{file}: cannot be used ({cause}); {kept}") from error
    finally:
        release(file)


class Search:
    """A study of Optuna: trials of the space, each one job or, where seeds are listed, one job per seed.

    folder: where the study is stored, so that the search can be resumed; None keeps it in memory. Raises ConfigError
    where the folder holds a study with different settings; `claimed_study` handles the errors of its file.
    """

    def __init__(self, space: Space, folder: Path | None) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._failed: set[int] = set()
        repeats = [axis for axis in space.axes if "seed" in axis.keys]
        self._repeats = list(itertools.chain.from_iterable(axis.settings for axis in repeats)) or [()]
        storage = None if folder is None else f"sqlite:///{folder / STUDY}"
        try:  # the folder may have been renamed; the study in it has kept its name
            before = optuna.get_all_study_names(storage) if storage and folder and (folder / STUDY).exists() else []
            name = before[0] if before else space.settings.name or "search"
            self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
        except RuntimeError as error:  # the study was written by another version of Optuna
            raise ConfigError(f"{storage}: cannot be used ({error})") from error
        if not self._study.user_attrs:
            self._study.set_user_attr(AS_TRAINED, True)
        self._as_trained = self._study.user_attrs.get(AS_TRAINED, False)
        labels = _typed_labels if self._as_trained else _labels
        self._choices = {_name(axis): labels(axis) for axis in space.axes if axis not in repeats}
        self._ranges = {r.key: r for r in space.ranges}
        self._distributions = _distributions(space, self._choices)
        listed = [f"{_name(axis)}={' '.join(_labels(axis))}" for axis in space.axes]
        fixed = [word for word in space.fixed if _group_of(word) not in NOT_HASHED]
        of = sorted([f"sweep.objective={space.settings.objective}", *listed, *fixed])
        before = self._study.user_attrs.get("of", of)
        if before != of:
            other = ", ".join(sorted(set(before) - set(of))) or f"without {', '.join(sorted(set(of) - set(before)))}"
            taken = f"sweep.name={space.settings.name}: the study was created with different settings ({other})"
            raise ConfigError(f"{taken}; choose another sweep.name")
        self._study.set_user_attr("of", of)
        ranges = {key: self._distributions[key] for key in self._ranges}
        for trial in self._trials()[:1]:
            if {key: trial.distributions.get(key) for key in ranges} != ranges:
                known = (
                    f"{key} {_range_text(trial.distributions[key])}" for key in ranges if key in trial.distributions
                )
                taken = f"sweep.name={space.settings.name}: the study has different ranges ({', '.join(known)})"
                raise ConfigError(f"{taken}; choose another sweep.name")

    @property
    def n_left(self) -> int:
        """Number of jobs that are still to be proposed."""
        return max(0, self._space.settings.n_samples - len(self._trials())) * len(self._repeats)

    def ask(self) -> dict[int, list[Words]]:
        """Return the jobs of the next trials by their numbers; proposed trials without a result come first.

        The search is complete when the result is empty. Batches end at multiples of sweep.batch, also
        after an interruption.
        """
        settings, waiting, n = self._space.settings, self._waiting(), len(self._trials())
        stop = min(settings.n_samples, -(-n // settings.batch) * settings.batch)
        if not waiting and stop <= n:
            stop = min(settings.n_samples, n + settings.batch)
        self._propose(range(n, stop))
        return {trial.number: self.jobs(trial) for trial in self._waiting()}

    def _propose(self, numbers: range) -> None:
        """Add the trials with these numbers to the study, each with all of its parameters at once.

        Optuna itself writes a trial and then parameter after parameter: a process that dies leaves half a trial.
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
        """Report the results of the jobs of a trial and their folders to the study; +inf is a job that diverged.

        The value of the trial is their mean. None is a job that failed: its trial stays open for the next process
        that resumes the search. pruned_at: number of gradient evaluations after which the trial was stopped; the mean
        is the value that it had reached.
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

    def finished_jobs(self) -> list[Words]:
        """Return the jobs of all finished trials."""
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
        with (
            warnings.catch_warnings()
        ):  # constant_liar, which keeps the trials of a batch apart, is experimental in Optuna 4
            warnings.simplefilter("ignore")
            return TPESampler(seed=seed, constant_liar=True, n_startup_trials=max(STARTUP, settings.batch))


def _distributions(space: Space, choices: dict[str, dict[Any, tuple[str, ...]]]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, Any] = {name: CategoricalDistribution(list(labels)) for name, labels in choices.items()}
    for r in space.ranges:
        kind = IntDistribution if r.whole else FloatDistribution
        distributions[r.key] = kind(r.low, r.high, log=r.log)  # pyright: ignore[reportArgumentType]
    return distributions


def _range_text(distribution: Any) -> str:
    if not hasattr(distribution, "low"):
        return "a list"
    return f"{distribution.low:g} to {distribution.high:g}{', on a logarithmic scale' if distribution.log else ''}"


def _name(axis: Axis) -> str:
    return ",".join(axis.keys)


def _labels(axis: Axis) -> dict[Any, tuple[str, ...]]:
    """Return the settings of an axis by their labels in Optuna: the values without the keys."""
    return {",".join(word.partition("=")[2] for word in setting): setting for setting in axis.settings}


def _typed_labels(axis: Axis) -> dict[Any, tuple[str, ...]]:
    """Return the settings of an axis by their values: for a single key numbers, truth values or None.

    The labels are texts where Optuna does not accept a value (a list) or confuses two of them (1 and True).
    """
    words = _labels(axis)
    typed = {_value_of(label) if len(axis.keys) == 1 else label: setting for label, setting in words.items()}
    return typed if len(typed) == len(words) else words


def _value_of(label: str) -> Any:
    value = OverridesParser.create().parse_override(f"key={label}").value()
    return value if value is None or isinstance(value, bool | int | float | str) else label


def _group_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].partition(".")[0]
