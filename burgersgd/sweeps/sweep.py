"""One sweep: checked before anything is written, trained chunk by chunk, and told about at the end."""

from __future__ import annotations

import importlib
import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from burgersgd.config import ConfigError, TrainConfig
from burgersgd.identity import config_hash
from burgersgd.prepare import prepare
from burgersgd.recording.files import one_line
from burgersgd.recording.progress import SweepProgress, sweep_summary
from burgersgd.run import check_output
from burgersgd.sweeps.chunks import Chunk, Job, Outcome, chunks_of, group_name, stored, train_chunk
from burgersgd.sweeps.compose import Composer, split_words
from burgersgd.sweeps.search import Search, check_optuna, keeping
from burgersgd.sweeps.space import Space, Words
from burgersgd.sweeps.status import note_jobs, unwell

IGNORED = ("hydra.run.", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir")
"""Keys of Hydra's that decide where it writes, or works, but for the folder of a sweep."""
PLUGIN = "hydra_plugins.burgersgd"
Launch = Callable[[list[Words], int], Sequence[JobReturn]]
"""A Hydra launcher's launch: overrides of jobs and the number of the first -> how they ended."""
TrainChunks = Callable[[list[Chunk], SweepProgress], Iterable[tuple[Chunk, list[Outcome]]]]


class Plan(NamedTuple):
    """A job that is composed and checked."""

    config: TrainConfig
    budget: int
    percent: bool
    """Whether its errors are shares of wrong classes."""
    name: str
    """Of its folder: the hash of its configuration."""


class Sweep:
    """The jobs of `burgersgd train --multirun`: which they are, how to train them, how they ended.

    words: the overrides of the command line. Every job is composed and checked (of a search: some that use every value
    and the ends of every range). Raises ConfigError or DataError of one line that names the job.
    """

    def __init__(self, words: Sequence[str]) -> None:
        hydra_words, words = split_words(words)
        chosen = {word.lstrip("+~").partition("=")[0] for word in hydra_words}
        self.added = [f"{key}=fleet" for key in ("hydra/launcher", "hydra/sweeper") if key not in chosen]
        """Overrides of Hydra's own keys that the command line lacks."""
        if self.added:
            try:
                importlib.import_module(PLUGIN)
            except ImportError as error:
                raise ConfigError(f"--multirun needs {PLUGIN}, which pip install burgersgd brings along") from error
        self.composer = Composer([*hydra_words, *self.added])
        if "hydra/launcher" in chosen:
            _check_launcher(self.composer.launcher())
        for word in hydra_words:
            if word.lstrip("+~").startswith(IGNORED):
                raise ConfigError(f"{word}: has no effect here; hydra.sweep.dir=... says where a sweep goes")
        self.settings = self.composer.sweep(words)
        if self.settings.name is not None and "hydra.sweep.dir" not in chosen:
            self.added.append(f"hydra.sweep.dir=${{output_root}}/multirun/{self.settings.name}")
        self.error: ConfigError | None = None
        """Why the sweep could not go on, if it could not."""
        self.notes: list[str] = []
        """What the user should know before the sweep starts."""
        self._plans: dict[tuple[str, ...], Plan] = {}
        self._checked: dict[str, tuple[int, bool]] = {}
        self._ends: dict[tuple[str, ...], float | Exception] = {}
        self._pruned_at: dict[tuple[str, ...], int] = {}
        """Gradient evaluations of the jobs that were stopped early."""
        self.quiet = False
        """Whether to show no progress."""
        self._folder = Path()
        self._progress: SweepProgress | None = None
        self._later = 0  # jobs that a search will propose after those it has proposed
        if "hydra/sweeper" in chosen:  # another sweeper decides what is tried
            self.space, self.jobs = None, []
            self._check([_first_values(self.composer.parse(words))])
            return
        self.space = Space(words, self.settings, self.composer)
        if self.settings.sampler == "optuna":
            check_optuna()
        self.jobs = [] if self.settings.sampler == "optuna" else self.space.jobs()
        self._check(self.jobs or self.space.corners())
        names = {self.plan(job).name for job in self.jobs}
        if len(names) < len(self.jobs):
            again = len(self.jobs) - len(names)
            self.notes.append(f"{again} of {len(self.jobs)} jobs are the same as another one and are trained once")

    # ------------------------------------------------------------------------------------------- before it starts

    def plan(self, words: Sequence[str]) -> Plan:
        """Return a job, composed and checked. Raises ConfigError or DataError."""
        key = tuple(words)
        if key not in self._plans:
            config = self.composer.config(words)
            if config.run_name is not None:
                raise config.error("run_name", "the runs of a sweep are named by their settings; use sweep.name")
            group = group_name(config)
            if group not in self._checked:
                prepared = prepare([config])
                self._checked[group] = prepared.budget, prepared.data.task == "classification"
            budget, percent = self._checked[group]
            self._plans[key] = Plan(config, budget, percent, config_hash(config, budget))
        return self._plans[key]

    def _check(self, jobs: list[Words]) -> None:
        for i, job in enumerate(jobs):
            try:
                plan = self.plan(job)
            except ValueError as error:
                if len(jobs) == 1:
                    raise
                raise type(error)(f"job {i + 1} of {len(jobs)} ({self._varied(job)}): {error}") from error
            if i == 0:
                check_output(plan.config)

    # ------------------------------------------------------------------------------------------------- training

    def run(self, launch: Launch, folder: Path) -> list[Sequence[JobReturn]]:
        """Launch all jobs, of a search batch by batch, and return how they ended."""
        self._folder = folder
        try:
            searching = self.settings.sampler == "optuna"
            if searching or any(stored(folder / self.plan(job).name) is None for job in self.jobs):
                _check_writable(folder)
            if searching:
                with keeping(folder):
                    return self._search(launch, folder)
            return [self._launched(launch, self.jobs, 0)]
        except ConfigError as error:
            self.error = error
            return []

    def _search(self, launch: Launch, folder: Path) -> list[Sequence[JobReturn]]:
        """Launch what a search proposes, until it has proposed enough.

        Raises ConfigError where another process trains some of it: those trials stay open, and the same command goes on
        once they are over.
        """
        assert self.space is not None
        search = Search(self.space, folder if self.settings.name is not None else None)
        for words in search.told():
            done = stored(folder / self.plan(words).name)
            if done is not None:
                self._ends[tuple(words)] = done.objective(self.settings.objective)
        batches: list[Sequence[JobReturn]] = []
        while trials := search.ask():
            elsewhere: list[Words] = []
            self._later = search.n_left
            batches.append(self._launched(launch, [*itertools.chain(*trials.values())], sum(map(len, batches))))
            for number, jobs in trials.items():
                ends = [self._ends[tuple(job)] for job in jobs]
                if any(map(_is_elsewhere, ends)):
                    elsewhere += jobs
                    continue
                stopped = [self._pruned_at[tuple(job)] for job in jobs if tuple(job) in self._pruned_at]
                objectives = [None if isinstance(end, Exception) else end for end in ends]
                search.tell(number, objectives, pruned_at=max(stopped, default=None))
            if elsewhere:
                raise ConfigError(
                    f"{self._varied(elsewhere[0])}: another process trains this job, of which the search has to know"
                )
        return batches

    def _launched(self, launch: Launch, jobs: list[Words], first: int) -> Sequence[JobReturn]:
        returns = launch(jobs, first)
        for job, end in zip(jobs, returns, strict=True):  # `return_value` of a failed one would raise, and write
            self._ends[tuple(job)] = end._return_value if end.status == JobStatus.FAILED else end.return_value
        return returns

    def train(self, jobs: list[Words], folder: Path, train_chunks: TrainChunks) -> list[Outcome]:
        """Train jobs in chunks, each in `folder`/hash, and return how they ended; what is done there already, is kept.

        A job that cannot be trained is a failed outcome and no exception.
        """
        self._folder = folder
        outcomes: dict[tuple[str, ...], Outcome] = {}

        def end(words: Iterable[tuple[str, ...]], outcome: Outcome) -> None:
            for key in words:
                outcomes[key] = outcome
                self._ends[key] = outcome.objective(self.settings.objective) if outcome.error is None else outcome.error
                if outcome.state == "pruned":
                    self._pruned_at[key] = outcome.evaluations

        places: dict[Path, set[tuple[str, ...]]] = {}
        for words in map(tuple, jobs):
            try:
                places.setdefault(folder / self.plan(words).name, set()).add(words)
            except ValueError as error:  # of a search: what it proposed does not go together
                end([words], Outcome("failed", folder, error=error))
        left = []
        for place, words in places.items():
            done = stored(place)
            if done is None:
                first = min(words)
                left.append(Job(self.plan(first).config, place, first))
            else:
                end(words, done)
        note_jobs(folder, {place.name: self._varied(min(words)) for place, words in places.items()})
        self._progress = self._progress or SweepProgress(
            enabled=None if (left or self._later) and not self.quiet else False
        )
        budgets = [self._budget(job) for job in left]
        later = self._later * sum(budgets) // max(len(left), 1)
        self._progress.expect(len(left) + self._later, sum(budgets) + later)
        for chunk, ended in train_chunks(chunks_of(left, self.settings.max_runs), self._progress):
            for job, outcome in zip(chunk, ended, strict=True):
                end(places[job.folder], outcome)
            self._progress.done(len(chunk), sum(self._budget(job) for job in chunk))
        return [outcomes[tuple(words)] for words in jobs]

    def _budget(self, job: Job) -> int:
        return self.plan(job.overrides).budget

    # ------------------------------------------------------------------------------------------------- afterwards

    def _varied(self, words: Sequence[str]) -> str:
        """Return what tells a job from the others."""
        fixed = set(words).intersection(*self._ends) if self.space is None else self.space.fixed
        return " ".join(word for word in words if word not in fixed) or " ".join(words)

    @property
    def started(self) -> bool:
        """Whether any job has ended (that is known: another sweeper with another launcher tells nothing)."""
        return bool(self._ends)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 where a job failed."""
        return int(any(isinstance(end, Exception) for end in self._ends.values()))

    def report(self) -> str:
        """End the progress bar and return a screen of text: how many jobs ended how, the best, and why some failed."""
        if self._progress is not None:
            self._progress.close()
        ends = self._ends.items()
        failed = [(self._varied(words), _one_line(end)) for words, end in ends if isinstance(end, Exception)]
        finite = [(end, words) for words, end in ends if not isinstance(end, Exception) and math.isfinite(end)]
        best = min(finite, key=lambda pair: pair[0], default=None)
        plan = None if best is None else self.plan(best[1])
        return sweep_summary(
            states={
                "completed": len(finite) - len(self._pruned_at),
                "stopped early": len(self._pruned_at),
                "diverged": sum(end == math.inf for _, end in ends),
                "failed": len(failed),
                "trained by another process": sum(_is_elsewhere(end) for _, end in ends),
            },
            failed=failed,
            unwell=unwell(
                (self._varied(words), self._folder / self.plan(words).name)
                for words, end in ends
                if not isinstance(end, Exception) and not _is_elsewhere(end)
            ),
            objective=self.settings.objective,
            best_error=None if best is None else best[0],
            best_job="" if best is None else self._varied(best[1]),
            best_folder=None if plan is None else self._folder / plan.name,
            percent=plan is None or plan.percent,
            folder=self._folder,
        )


def train_job(cfg: Any) -> float:
    """Train one job of a sweep on its own and return its objective: what launchers call that are not ours."""
    hydra = HydraConfig.get()
    config: TrainConfig = OmegaConf.to_object(cfg)  # pyright: ignore[reportAssignmentType]
    folder = Path(hydra.sweep.dir).absolute() / config_hash(config, prepare([config]).budget)
    outcome = stored(folder) or train_chunk([Job(config, folder, tuple(hydra.overrides.task))])[0]
    if outcome.error is not None:
        raise outcome.error
    return outcome.objective(config.sweep.objective)


def _check_writable(folder: Path) -> None:
    """Raise ConfigError where a sweep cannot write to its folder, before each of its jobs fails of that."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write there: {one_line(error)}") from error


def _check_launcher(node: DictConfig) -> None:
    """Raise ConfigError where a launcher of ours cannot be made with its settings; others are not looked at."""
    settings: dict[str, Any] = OmegaConf.to_container(node)  # pyright: ignore[reportAssignmentType]
    module, _, name = settings.pop("_target_").rpartition(".")
    if module == PLUGIN:
        getattr(importlib.import_module(PLUGIN), name)(**settings)


def _first_values(overrides: Sequence[Override]) -> Words:
    """Return the overrides of one job: of lists their first value, nothing of ranges."""
    words = []
    for o in overrides:
        if o.is_discrete_sweep():
            words += [f"{o.get_key_element()}={value}" for value in itertools.islice(o.sweep_string_iterator(), 1)]
        elif not o.is_sweep_override():
            words.append(str(o.input_line))
    return words


def _is_elsewhere(end: float | Exception) -> bool:
    return isinstance(end, float) and math.isnan(end)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
