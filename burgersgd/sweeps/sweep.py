"""Runs one sweep: checks its jobs before anything is written, trains them in chunks, and summarises them at the end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from burgersgd.api import check_name, check_output
from burgersgd.build.prepared import prepare
from burgersgd.config import ConfigError, TrainConfig
from burgersgd.identity import config_hash
from burgersgd.interruption import RESUMABLE
from burgersgd.recording.environment import code_version
from burgersgd.recording.naming import JOBS, job_folder, job_name
from burgersgd.recording.progress import SweepProgress
from burgersgd.recording.reading import read_end
from burgersgd.sweeps.chunks import Chunk, Job, Outcome, chunks_of, recorded_outcome, train_chunk
from burgersgd.sweeps.compose import Composer, as_config_error, split_words
from burgersgd.sweeps.other_plugins import check_launcher, check_plugin, jobs_of_other_sweeper
from burgersgd.sweeps.planning import LocalTrainer
from burgersgd.sweeps.plans import Plan, Plans
from burgersgd.sweeps.report import BestMean
from burgersgd.sweeps.search import Search, check_optuna, claimed_study
from burgersgd.sweeps.space import Space, Words, space_of
from burgersgd.sweeps.status import JobState, add_jobs, job_states, listed_names, sweep_text, unfinished_outcome
from burgersgd.sweeps.summary import summary
from burgersgd.sweeps.sweep_folder import SweepFolder

_log = logging.getLogger("burgersgd")

IGNORED = ("hydra.run.", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir")
"""Prefixes of Hydra's keys for its folders, except that of a sweep; they have no effect here and are refused."""
Launch = Callable[[list[Words], int], Sequence[JobReturn]]
"""Method `launch` of a Hydra launcher: (overrides of jobs, number of the first job) -> results of the jobs."""
TrainChunks = Callable[[list[Chunk], SweepProgress], Iterable[tuple[Chunk, list[Outcome]]]]


class ElsewhereError(ConfigError):
    """The sweep cannot continue before another process has trained some of its jobs."""


class Sweep:
    """The sweep of `burgersgd train --multirun`: its jobs, their training, and their outcomes.

    words: the overrides of the command line. Every job is composed and checked (for a search: some jobs that use every
    value and the ends of every range). composer: that of another sweep, to be reused if words have no keys of Hydra's
    own. Raises ConfigError or DataError of one line that names the job.
    """

    def __init__(self, words: Sequence[str], composer: Composer | None = None) -> None:
        hydra_words, words = split_words(words)
        chosen = {word.lstrip("+~").partition("=")[0] for word in hydra_words}
        self.added = [f"{key}=fleet" for key in ("hydra/launcher", "hydra/sweeper") if key not in chosen]
        """Overrides of Hydra's own keys that are added to those of the command line."""
        if self.added:
            check_plugin()
        self.composer, self._sweeper = composer or Composer([*hydra_words, *self.added]), ""
        if any(word.startswith("hydra") for word in chosen):
            as_config_error(lambda: check_launcher(self.composer.plugin("launcher")))
            self._sweeper = str(self.composer.plugin("sweeper")["_target_"])
        for word in hydra_words:
            if word.lstrip("+~").startswith(IGNORED):
                raise ConfigError(f"{word}: has no effect on a sweep; set its folder by hydra.sweep.dir")
        self.settings = self.composer.sweep(words)
        self._folder_is_chosen = "hydra.sweep.dir" in chosen
        self.error: ConfigError | None = None
        """The error that ended the sweep; None if there was none."""
        self.notes: list[str] = []
        """Messages for the user before the sweep starts."""
        self._plans = Plans(self.composer)
        self.quiet = False
        """Whether to hide the progress."""
        self._ends: dict[tuple[str, ...], Outcome | None] = {}
        """Outcomes of the jobs by their overrides; None for jobs that have not ended."""
        self._done_before: set[tuple[str, ...]] = set()
        self._root = Path()
        self.folder = SweepFolder()
        self._progress: SweepProgress | None = None
        self._best = BestMean()
        self._later = 0  # number of jobs that a search has not proposed yet
        if "hydra/sweeper" in chosen:  # another sweeper proposes the jobs
            self.space, self.jobs = None, []
            self._check(jobs_of_other_sweeper(self._sweeper, self.composer.parse(words)))
            return
        self.space = space_of(words, self.settings, self.composer)
        if self.settings.sampler == "optuna":
            check_optuna()
        self.jobs = [] if self.settings.sampler == "optuna" else self.space.jobs()
        self._check(self.jobs or self.space.corners())
        different = {self.plan(job).digits for job in self.jobs}
        if len(different) < len(self.jobs):
            again = len(self.jobs) - len(different)
            self.notes.append(f"{again} of {len(self.jobs)} jobs repeat another job and are not trained again")

    # ------------------------------------------------------------------------------------------- before it starts

    def plan(self, words: Sequence[str]) -> Plan:
        """Return the plan of a job, composed and checked. Raises ConfigError or DataError."""
        return self._plans.of(words)

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
                self._root = Path(plan.config.output_root, "multirun")
                if self.settings.name is not None:
                    name = job_name(self._varied_words(job), plan.digits)
                    check_name(self.settings, "name", (self._root / self.settings.name / name).absolute())

    def take_folder(self) -> None:
        """Choose the folder of the sweep; an unnamed one gets a folder that no other sweep uses."""
        if not self._folder_is_chosen:
            self.folder.choose(self._root, self.settings.name)
            self.added.append(self.folder.word)
            self._folder_is_chosen = True

    def command(self, arguments: Sequence[str]) -> str:
        """Return the command that resumes the sweep which a command line started."""
        words = [*arguments] if self.settings.name is not None else [self.folder.word, *arguments]
        return shlex.join(["burgersgd", "train", *dict.fromkeys(words)])

    # ------------------------------------------------------------------------------------------------- training

    def begin(self, folder: Path) -> None:
        """Make the folder of the sweep, which Hydra determines, if possible. Raises ConfigError."""
        self.folder.make(folder)

    def place(self, words: Sequence[str]) -> Path:
        """Return the folder of a job, which need not exist yet. Raises as plan does."""
        digits = self.plan(words).digits
        return self.folder.place(digits, lambda: job_name(self._varied_words(words), digits))

    def clean_up(self) -> None:
        """Remove the files of a sweep that trained nothing, if its folder is new."""
        self.folder.clean_up()

    def run(self, launch: Launch, folder: Path) -> list[Sequence[JobReturn]]:
        """Launch all jobs, those of a search in batches, and return their results."""
        self.begin(folder)
        try:
            self._check_stored(self.jobs)
            searching = self.settings.sampler == "optuna"
            if searching or any(recorded_outcome(self.place(job)) is None for job in self.jobs):
                self.folder.check_writable()
            if searching:
                with claimed_study(folder):
                    return self._search(launch, folder)
            self._ends |= dict.fromkeys(map(tuple, self.jobs))
            return [self._launched(launch, self.jobs, 0)]
        except ConfigError as error:
            self.error = error
            self.clean_up()
            return []

    def run_here(self, folder: Path) -> None:
        """Train all jobs of a grid or a sample on this machine, without Hydra. Raises ConfigError and Interrupted."""

        def launch(jobs: list[Words], first: int) -> Sequence[JobReturn]:
            self.train(jobs, folder, trainer.train)
            return [JobReturn()] * len(jobs)

        trainer = LocalTrainer(self.settings)
        try:
            self.run(launch, folder)
        finally:
            trainer.close()
        if self.error is not None:
            raise self.error

    def _check_stored(self, jobs: Sequence[Words]) -> None:
        """Compare data and code of the jobs that have ended with the present data and code.

        Raises ConfigError for other data, and for other code where sweep.code=same; otherwise logs a warning.
        """
        codes: dict[str, int] = {}
        for job in jobs:
            plan, place = self.plan(job), self.place(job)
            if recorded_outcome(place) is None:
                continue
            end = read_end(place) or {}
            if end.get("data") not in (None, plan.data):  # version 0.1.0 recorded neither data nor code
                where = f"the data of dataset={plan.config.dataset.name} changed since {place.name} was trained"
                raise self.settings.error("name", f"{where}; choose another sweep.name")
            code = end.get("code")
            if code not in (None, code_version()):
                codes[code] = codes.get(code, 0) + 1
        if codes:
            trained = ", ".join(f"{n} by {code}" for code, n in codes.items())
            text = f"jobs of this sweep were trained by other code ({trained}) than the present {code_version()}"
            if self.settings.code == "same":
                raise self.settings.error("code", f"{text}; choose another sweep.name, or allow it by sweep.code=any")
            _log.warning("%s", text)

    def _search(self, launch: Launch, folder: Path) -> list[Sequence[JobReturn]]:
        """Launch the jobs that a search proposes, until all its trials have results.

        Raises ElsewhereError where another process trains some of the jobs: their trials stay open, and the same
        command continues once they have ended.
        """
        assert isinstance(self.space, Space)
        search = Search(self.space, folder if self.settings.name is not None else None)
        self._check_stored(search.finished_jobs())
        for words in search.finished_jobs():
            done = recorded_outcome(self.place(words))
            if done is not None:
                self._ends[tuple(words)] = done
                self._done_before.add(tuple(words))
        batches: list[Sequence[JobReturn]] = []
        while trials := search.ask():
            elsewhere: list[Words] = []
            self._later = search.n_left
            batches.append(self._launched(launch, [*itertools.chain(*trials.values())], sum(map(len, batches))))
            for number, jobs in trials.items():
                ends = [self._end(tuple(job)) for job in jobs]
                if any(end.state == "elsewhere" for end in ends):
                    elsewhere += jobs
                    continue
                stopped = [end.evaluations for end in ends if end.state == "pruned"]
                which = self.settings.objective
                objectives = [None if end.state == "failed" else end.objective(which) for end in ends]
                names = [end.folder.name for end in ends if end.folder != folder]  # an invalid job has no run folder
                search.tell(number, objectives, max(stopped, default=None), names)
            if elsewhere:
                raise ElsewhereError(
                    f"{self._varied(elsewhere[0])}: another process is training this job; the search needs its result"
                )
        return batches

    def _launched(self, launch: Launch, jobs: list[Words], first: int) -> Sequence[JobReturn]:
        self._note(map(tuple, jobs))  # other processes that train them read the folder names there
        returns = launch(jobs, first)
        for job, ended in zip(jobs, returns, strict=True):
            if self._ends.get(tuple(job)) is None:  # by a launcher of another package
                self._ends[tuple(job)] = self._reported(job, ended)
        return returns

    def _reported(self, job: Words, ended: JobReturn) -> Outcome:
        """Return the outcome of a job that a launcher of another package trained."""
        folder = self.place(job)
        if ended.status == JobStatus.FAILED:  # the property `return_value` would log the error and raise it
            return Outcome("failed", folder, error=ended._return_value)
        objective = float(ended.return_value)
        done = recorded_outcome(folder)
        if done is not None:
            return done
        if math.isnan(objective):
            return Outcome("elsewhere", folder)
        return Outcome("completed" if math.isfinite(objective) else "diverged", folder, objective, objective)

    def train(self, jobs: list[Words], folder: Path, train_chunks: TrainChunks) -> list[Outcome]:
        """Train jobs in chunks, each in a folder in `folder`, and return the outcomes; skip jobs that have ended.

        A job that cannot be trained has a failed outcome and raises no exception.
        """
        self.folder.find_jobs(folder)
        outcomes: dict[tuple[str, ...], Outcome] = {}

        def end(words: Iterable[tuple[str, ...]], outcome: Outcome) -> None:
            for key in words:
                outcomes[key] = self._ends[key] = outcome

        places: dict[Path, set[tuple[str, ...]]] = {}
        self._ends = dict.fromkeys(map(tuple, jobs)) | self._ends
        self._note(map(tuple, jobs) if self.space is None else ())  # with another sweeper they are not in the list yet
        for words in map(tuple, jobs):
            try:
                places.setdefault(self.place(words), set()).add(words)
            except ValueError as error:  # a search may propose an invalid combination
                end([words], Outcome("failed", folder, error=error))
        left = []
        which = self.settings.objective
        for place, words in places.items():
            done, first = recorded_outcome(place), min(words)
            self._best.expect(self._plans.setting(first))
            if done is None:
                left.append(Job(self.plan(first).config, place, first))
            else:
                end(words, done)
                self._best.end(self._plans.setting(first), done.objective(which))
                self._done_before |= words
        self._progress = self._progress or SweepProgress(
            enabled=None if (left or self._later) and not self.quiet else False
        )
        budgets = [self._budget(job) for job in left]
        later = self._later * sum(budgets) // max(len(left), 1)
        self._progress.expect(len(left) + self._later, sum(budgets) + later)
        self._progress.best(self._best.value)
        for chunk, ended in train_chunks(chunks_of(left, self.settings.max_runs), self._progress):
            for job, outcome in zip(chunk, ended, strict=True):
                end(places[job.folder], outcome)
                self._best.end(self._plans.setting(job.overrides), outcome.objective(which))
            self._progress.best(self._best.value)
            self._progress.done(len(chunk), sum(self._budget(job) for job in chunk))
        return [outcomes[tuple(words)] for words in jobs]

    def _note(self, jobs: Iterable[tuple[str, ...]]) -> None:
        """Add jobs to the list of jobs in the sweep's folder."""
        noted: dict[str, str] = {}
        for words in jobs:
            with contextlib.suppress(ValueError):  # a search may propose an invalid combination
                noted.setdefault(self.place(words).name, self._varied(words))
        add_jobs(self.folder.path, noted)

    def _budget(self, job: Job) -> int:
        return self.plan(job.overrides).budget

    # ------------------------------------------------------------------------------------------------- afterwards

    def _varied_words(self, words: Sequence[str]) -> list[str]:
        """Return the overrides in which a job differs from the others."""
        fixed = set(words).intersection(*self._ends) if self.space is None else self.space.fixed
        return [word for word in words if word not in fixed]

    def _varied(self, words: Sequence[str]) -> str:
        """Return the overrides in which a job differs from the others as text; all overrides if there are none."""
        return " ".join(self._varied_words(words)) or " ".join(words)

    def _end(self, words: tuple[str, ...]) -> Outcome:
        """Return the outcome of a job, or its state; a job that failed here may have ended in another process."""
        end = self._ends.get(words)
        if end is not None and end.state not in ("failed", "elsewhere"):
            return end
        try:
            folder = self.place(words)
        except ValueError:
            assert end is not None
            return end
        return recorded_outcome(folder) or end or unfinished_outcome(folder)

    @property
    def started(self) -> bool:
        """Whether any job has ended or, if sweeper and launcher are of other packages, is in the folder's list."""
        return any(end is not None for end in self._ends.values()) or bool(self._noted_states())

    def _noted_states(self) -> list[JobState]:
        """Return the states of the jobs in the folder's list, if sweeper and launcher are of other packages."""
        is_known = self.space is None and not self._ends and (self.folder.path / JOBS).exists()
        return job_states(self.folder.path) if is_known else []

    @property
    def exit_code(self) -> int:
        """Exit code of the command; if there are several reasons, the first of 2, 75, 1, 3."""
        states = [self._end(words).state for words in self._ends] or [job.state for job in self._noted_states()]
        if self.error is not None:
            return RESUMABLE if isinstance(self.error, ElsewhereError) else 2
        if any(state in ("elsewhere", "interrupted", "waiting") for state in states):
            return RESUMABLE
        if "failed" in states:
            return 1
        return 3 if states and set(states) == {"diverged"} else 0

    def report(self) -> str:
        """Close the progress bar and return the report: jobs by outcome, the best setting, and reasons of failures."""
        if self._progress is not None:
            self._progress.close()
        if jobs := self._noted_states():
            return sweep_text(self.folder.path, jobs, every=False)
        self.folder.find_jobs(self.folder.path)  # another process may have made folders with other names
        ends = {words: self._end(words) for words in self._ends}
        planned = {words: plan for words in ends if (plan := self._plans.known(words)) is not None}
        return summary(
            folder=self.folder.path,
            ends={words: (self._varied(words), end) for words, end in ends.items()},
            planned=planned,
            objective=self.settings.objective,
            done_before=len(self._done_before),
        )


def train_job(cfg: Any) -> float:
    """Train one job of a sweep alone and return its objective; launchers of other packages call this function."""
    hydra = HydraConfig.get()
    config: TrainConfig = OmegaConf.to_object(cfg)  # pyright: ignore[reportAssignmentType]
    prepared = prepare([config])
    (config,) = prepared.configs
    root, digits = Path(hydra.sweep.dir).absolute(), config_hash(config, prepared.budget)
    folder = job_folder(root / listed_names(root).get(digits, digits))
    with contextlib.suppress(OSError):  # the run folder cannot be made either, and its error is reported
        root.mkdir(parents=True, exist_ok=True)
    add_jobs(root, {folder.name: " ".join(hydra.overrides.task)})  # another sweeper does not list its jobs
    outcome = recorded_outcome(folder) or train_chunk([Job(config, folder, tuple(hydra.overrides.task))])[0]
    if outcome.error is not None:
        raise outcome.error
    return outcome.objective(config.sweep.objective)
