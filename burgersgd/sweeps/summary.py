"""The report at the end of a sweep, one screen of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from burgersgd.recording.claims import whose
from burgersgd.recording.progress import sweep_summary
from burgersgd.sweeps.chunks import Outcome
from burgersgd.sweeps.plans import Plan
from burgersgd.sweeps.report import known_run, settings_of
from burgersgd.sweeps.status import unsuccessful

JobKey = tuple[str, ...]
"""The overrides of a job."""


def summary(
    folder: Path,
    ends: Mapping[JobKey, tuple[str, Outcome]],
    planned: Mapping[JobKey, Plan],
    objective: str,
    done_before: int,
) -> str:
    """Return the report of a sweep: the number of jobs by outcome, the best setting, and the reasons of failures.

    folder: that of the sweep. ends: for every job the overrides in which it differs from the others, and its outcome.
    planned: the jobs whose configuration is known. objective: see SweepConfig. done_before: the number of jobs that
    earlier commands trained.
    """
    count = Counter(end.state for _, end in ends.values())
    jobs = {end.folder: (planned[key], end.state) for key, (_, end) in ends.items() if key in planned}
    runs = (known_run(plan.config, plan.budget, folder, state) for folder, (plan, state) in jobs.items())
    settings = settings_of(folder, runs, objective)
    return sweep_summary(
        states={
            "completed": count["completed"],
            "stopped early": count["pruned"],
            "diverged": count["diverged"],
            "failed": count["failed"],
            "interrupted": count["interrupted"],
            "not started": count["waiting"],
            "trained by another process": count["elsewhere"],
        },
        done_before=done_before,
        failed=[(words, _one_line(end.error)) for words, end in ends.values() if end.error is not None],
        unsuccessful=unsuccessful(
            (words, end.folder) for words, end in ends.values() if end.state in ("completed", "pruned", "diverged")
        ),
        elsewhere=Counter(whose(end.folder) for _, end in ends.values() if end.state == "elsewhere"),
        settings=settings.text,
        best_folder=settings.best_folder,
        folder=folder,
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
