"""Texts of `burgersgd train --dry-run`: the runs that would be trained and about how long they would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from burgersgd.build.prepared import prepare
from burgersgd.config import TrainConfig
from burgersgd.recording.naming import job_folders
from burgersgd.sweeps.chunks import Job, chunks_of, recorded_outcome
from burgersgd.sweeps.planning import rate_of
from burgersgd.sweeps.sweep import Plan, Sweep

MEASURED = 6
"""Largest number of fleets whose speed is measured; further ones are assumed to be as fast."""
RUNS = 16
"""Largest number of runs in a measured fleet."""


def of_run(config: TrainConfig) -> str:
    """Return a description of a single run and its duration. Raises the same errors as train."""
    prepared = prepare([config])
    seconds = prepared.budget / rate_of([config])
    return _table(
        {
            "run": f"{config.optimizer.name} on {config.dataset.name}, {config.model.name}",
            "parameters": f"{prepared.problem.d:,}",
            "gradient evaluations": f"{prepared.budget:,}, of {prepared.batch_size} examples each",
            "engine": f"{prepared.engine}, {prepared.problem.inputs.device}",
            "time": f"about {_duration(seconds)}, without the time to start",
        }
    )


def of_sweep(sweep: Sweep) -> str:
    """Return a description of a sweep, as far as it is known before the start. Raises the same errors as train."""
    if sweep.space is None:
        return _table({"jobs": "as many as hydra/sweeper proposes; the first one can be trained"})
    if not sweep.jobs:
        settings, corners = sweep.settings, [sweep.plan(words) for words in sweep.space.corners()]
        budget = max(plan.budget for plan in corners)
        trials = f"{settings.n_samples:,}, {settings.batch} together, one run for each seed"
        return _table({"trials": trials, "gradient evaluations": f"at most {budget:,} a run"})
    plans = {plan.digits: plan for plan in map(sweep.plan, sweep.jobs)}
    settings, first = sweep.settings, next(iter(plans.values()))
    done: set[str] = set()
    if settings.name is not None:
        existing = job_folders(Path(first.config.output_root, "multirun", settings.name))
        done = {digits for digits in plans if digits in existing and recorded_outcome(existing[digits]) is not None}
    jobs = [Job(plan.config, Path(digits), ()) for digits, plan in plans.items() if digits not in done]
    fleets = chunks_of(jobs, settings.max_runs)
    evaluations = sum(plans[job.folder.name].budget for job in jobs)
    sizes = ", ".join(map(str, sorted({len(fleet) for fleet in fleets})))
    return _table(
        {
            "jobs": f"{len(plans):,}" + (f", {len(done):,} of them already trained" if done else ""),
            "fleets": f"{len(fleets):,}, of {sizes} runs" if fleets else "none",
            "gradient evaluations": f"{evaluations:,} in all",
            "time": f"about {_duration(_seconds(fleets, plans))} in one process" if fleets else "none",
        }
    )


def _seconds(fleets: Sequence[Sequence[Job]], plans: Mapping[str, Plan]) -> float:
    """Return the seconds that the fleets would take one after the other, estimated from the speed of some of them."""
    seconds, measured = 0.0, 0
    total = [sum(plans[job.folder.name].budget for job in fleet) for fleet in fleets]
    for fleet, evaluations in [*zip(fleets, total, strict=True)][:MEASURED]:
        seconds += evaluations / rate_of([job.config for job in fleet[:RUNS]])
        measured += evaluations
    return seconds * sum(total) / measured


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["dry run, nothing is written:", *(f"  {label:<22}{text}" for label, text in rows.items())])
