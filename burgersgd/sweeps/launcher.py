"""Hydra plugins of sweeps: a launcher that trains jobs together, and a sweeper that passes it all jobs at once.

Hydra imports this module at every start (through hydra_plugins/burgersgd.py), so slow imports are inside functions.
With the task function of another program, both behave like Hydra's basic launcher and sweeper.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobRuntime, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from burgersgd.recording.progress import SweepProgress
    from burgersgd.sweeps.chunks import Chunk, Outcome
    from burgersgd.sweeps.planning import LocalTrainer
    from burgersgd.sweeps.sweep import Sweep


@dataclass
class FleetLauncherConf:
    """Configuration of hydra/launcher=fleet."""

    _target_: str = "hydra_plugins.burgersgd.FleetLauncher"


@dataclass
class FleetSweeperConf:
    """Configuration of hydra/sweeper=fleet, whose settings are in the group sweep."""

    _target_: str = "hydra_plugins.burgersgd.FleetSweeper"


ConfigStore.instance().store(group="hydra/launcher", name="fleet", node=FleetLauncherConf, provider="burgersgd")
ConfigStore.instance().store(group="hydra/sweeper", name="fleet", node=FleetSweeperConf, provider="burgersgd")


class FleetLauncher(BasicLauncher):
    """Trains the jobs of a Sweep in fleets on this machine; launchers for other machines override `train_chunks`."""

    sweep: Sweep | None = None
    _trainer: LocalTrainer | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's arguments, and the Sweep of the task function."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.sweep = getattr(task_function, "sweep", None)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Return one JobReturn per list of overrides, in their order, with the objective or the error of the job."""
        if self.sweep is None:
            return super().launch(job_overrides, initial_job_idx)
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.task_function is not None
        folder = Path(self.config.hydra.sweep.dir).absolute()
        jobs = [list(words) for words in job_overrides]
        callbacks = self.hydra_context.callbacks
        asked = callbacks.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        configs = [self._job_config(words, initial_job_idx + i) for i, words in enumerate(jobs)] if asked else []
        for config in configs:
            callbacks.on_job_start(config=config, task_function=self.task_function)
        outcomes = self.sweep.train(jobs, folder, self.train_chunks)
        returns = [self._job_return(words, outcome, bool(asked)) for words, outcome in zip(jobs, outcomes, strict=True)]
        for config, job_return in zip(configs, returns, strict=bool(configs)):
            job_return.hydra_cfg = config
            callbacks.on_job_end(config=config, job_return=job_return)
        return returns

    def train_chunks(self, chunks: Sequence[Chunk], progress: SweepProgress) -> Iterable[tuple[Chunk, list[Outcome]]]:
        """Yield all jobs with their outcomes, in chunks of any size and order, as soon as they are trained."""
        from burgersgd.sweeps.planning import LocalTrainer

        assert self.sweep is not None
        self._trainer = self._trainer or LocalTrainer(self.sweep.settings)
        yield from self._trainer.train(chunks, progress)

    def close(self) -> None:
        """Release the resources of training after the last batch of jobs."""
        if self._trainer is not None:
            self._trainer.close()

    def _job_return(self, words: list[str], outcome: Outcome, composed: bool) -> JobReturn:
        """Return a JobReturn like Hydra's run_job; hydra_cfg is that of the sweep, since a copy per job takes 0.1 MB.

        composed: include the configuration of the job, which only callbacks use.
        """
        assert self.sweep is not None
        failed = outcome.error is not None
        job_return = JobReturn(
            overrides=words,
            cfg=self.sweep.composer.node(words) if composed and not failed else None,
            hydra_cfg=self.config,
            working_dir=os.getcwd(),
            task_name=JobRuntime.instance().get("name"),
            status=JobStatus.FAILED if failed else JobStatus.COMPLETED,
        )
        job_return.return_value = outcome.error if failed else outcome.objective(self.sweep.settings.objective)
        return job_return

    def _job_config(self, words: list[str], index: int) -> DictConfig:
        """Return the configuration of one job with Hydra's own part, for the user's callbacks."""
        assert self.hydra_context is not None
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, words)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(index), index
        return config


class FleetSweeper(Sweeper):
    """Passes the jobs of a Sweep to the launcher, all at once or in the batches of a search.

    The jobs are already composed and checked, and a job that fails does not end the sweep. Launchers of other packages
    get `train_job` as the task function.
    """

    def __init__(self) -> None:
        self._sweep: Sweep | None = None
        self._basic: Sweeper | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's arguments and set up the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self._sweep = getattr(task_function, "sweep", None)
        if self._sweep is None:
            # Imported here and not a base class: Hydra executes its plugins' modules again when it searches them.
            from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

            self._basic = BasicSweeper(max_batch_size=None)
            self._basic.setup(hydra_context=hydra_context, task_function=task_function, config=config)
            return
        from burgersgd.sweeps.sweep import train_job

        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, train_job, config)
        if isinstance(self.launcher, FleetLauncher):
            self.launcher.sweep = self._sweep

    def sweep(self, arguments: list[str]) -> Any:
        """Return the JobReturns of all jobs, batch by batch; the Sweep stores the outcomes."""
        if self._basic is not None:
            return self._basic.sweep(arguments)
        assert self._sweep is not None
        assert self.config is not None
        assert self.launcher is not None
        from burgersgd.sweeps.sweep_folder import MULTIRUN

        folder = Path(self.config.hydra.sweep.dir).absolute()
        self._sweep.begin(folder)
        with contextlib.suppress(OSError):
            OmegaConf.save(self.config, folder / MULTIRUN)
        try:
            return self._sweep.run(self.launcher.launch, folder)
        finally:
            if isinstance(self.launcher, FleetLauncher):
                self.launcher.close()
