"""Stores the measured speeds of fleets on this machine in the cache folder, for later sweeps.

A file holds the rates of one kind of work. A file with any error is ignored: rates determine how jobs are divided into
fleets, but no result of a run.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from burgersgd import native
from burgersgd.build.prepared import Prepared
from burgersgd.recording.environment import code_version, machine_of
from burgersgd.recording.files import RunFolderError, read_bytes, replacing, to_json
from burgersgd.recording.schema import Speeds, checked, decoded

LARGEST = 1 << 16
"""Size in bytes above which a file is not read."""

Rates = dict[str, float]
"""Number of runs in a fleet, as text -> gradient evaluations per second of one process."""


def rates_folder() -> Path | None:
    """Return the folder of the rates; None where there is no folder that only this user can write to."""
    folder = next(iter(native.folders()), None)
    return None if folder is None else folder / "speeds"


def key_of(prepared: Prepared, workers: int) -> str:
    """Return the hash of a kind of work: machine, code, engine, network, batch and rule, but not the budget."""
    problem, config = prepared.problem, prepared.configs[0]
    trainer = config.trainer
    parts = [
        *(machine_of(str(problem.inputs.device)), code_version(), torch.__version__),
        *(prepared.engine, prepared.threads, workers),
        *(type(problem.model).__name__, repr(problem.model) if not prepared.own_model else prepared.network),
        *(problem.loss.name, list(problem.inputs.shape), prepared.batch_size, trainer.precision),
        *(repr(config.optimizer.rule()), trainer.with_replacement, trainer.drop_last, trainer.clip_norm is None),
        repr(problem.augmentation),
        config.schedule.name,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def stored_rates(key: str) -> Rates:
    """Return the rates of a kind of work that were measured before; empty where there is no valid file."""
    with contextlib.suppress(OSError, RunFolderError):
        folder = rates_folder()
        file = None if folder is None else folder / f"{key}.json"
        if file is not None and file.stat().st_size <= LARGEST:
            content = decoded(read_bytes(file), file)
            checked(content, Speeds, file)
            if content["key"] == key:
                return {runs: float(rate) for runs, rate in content["rates"].items()}
    return {}


def store_rates(key: str, rates: Mapping[str, float]) -> None:
    """Add rates to the stored ones of a kind of work, if the folder can be written to."""
    with contextlib.suppress(OSError, RunFolderError):
        folder = rates_folder()
        if folder is not None:
            folder.mkdir(mode=0o700, exist_ok=True)
            with replacing(folder / f"{key}.json", lasting=False) as stream:
                stream.write(to_json({"key": key, "rates": stored_rates(key) | dict(rates)}).encode())
