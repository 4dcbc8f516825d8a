"""Trains one run or a fleet, from configurations or from the folders of stopped runs, and returns results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from burgersgd.build.parts import UserData, UserModel, dataset_of
from burgersgd.build.prepared import Prepared, fleet_key, prepare
from burgersgd.config import Group, TrainConfig
from burgersgd.copies import changed
from burgersgd.identity import check_own, config_from, config_hash, config_of, own_record
from burgersgd.isolation import undisturbed
from burgersgd.recorder import Prune, Recorder
from burgersgd.recording.claims import LOCK
from burgersgd.recording.files import digest
from burgersgd.recording.naming import JOBS, hash_of, job_folder, job_folders
from burgersgd.recording.progress import Progress
from burgersgd.recording.run_folder import (
    FolderTakenError,
    RunFolder,
    RunFolderError,
    RunInUseError,
    complete_checkpoints,
    has_contents,
    is_incomplete,
    read_config,
)
from burgersgd.recording.sinks import problem_with
from burgersgd.result import Result
from burgersgd.run_record import RunRecord, depends_on_budget, with_budget


def train(
    config: TrainConfig | Mapping[str, Any] | None = None,
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    overrides: Sequence[str] = (),
    record: bool = True,
    progress: bool | Progress | None = None,
) -> Result:
    """Train one network and return the result, as `burgersgd train` does.

    config: a TrainConfig, or a mapping (dict, OmegaConf) with some of its keys, where a group is a mapping with its
    name or the name alone: ``{"optimizer": "sgd", "model": {"name": "mlp", "width": 32}, "seed": 3}``. model: your own
    module (a copy of it is trained, starting at its parameters) or a function that makes one (called with the
    generators of torch, numpy and Python seeded with config.seed). dataset: a Dataset or arrays (x, y), which
    config.dataset splits. record: whether to write a run folder below config.output_root. progress: None shows a bar on
    a terminal and lines elsewhere; a SweepProgress receives the reports instead.

    Raises ConfigError, DataError or RunFolderError, each with a one-line message, before anything is written; later
    Interrupted (a KeyboardInterrupt) if the process receives a signal to stop; `resume` then continues the run.
    """
    config = TrainConfig() if config is None else config_of(config)
    return train_fleet([config], model=model, dataset=dataset, overrides=[overrides], record=record, progress=progress)[
        0
    ]


@undisturbed()
def train_fleet(
    configs: Sequence[TrainConfig | Mapping[str, Any]],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    overrides: Sequence[Sequence[str]] | None = None,
    record: bool = True,
    progress: bool | Progress | None = None,
    prune: Prune | None = None,
) -> list[Result]:
    """Train runs that differ in seed and float hyperparameters as one batched computation; results in the same order.

    Arguments and errors are those of train. prune may stop runs early (see Prune). A fleet that does not fit into
    memory is continued as two. Raises ConfigError naming the first key that differs although it must not.
    """
    prepared = _prepared([config_of(config) for config in configs], model, dataset)
    recorder = Recorder(model, dataset, prune)
    return train_prepared(prepared, overrides, record=record, progress=progress, recorder=recorder)


def _prepared(configs: Sequence[TrainConfig], model: UserModel | None, dataset: UserData | None) -> Prepared:
    """Return the runs of a fleet, checked and ready to start."""
    if model is not None:  # the model of the configuration has no effect then
        configs = [dataclasses.replace(config, model=TrainConfig().model) for config in configs]
    return prepare(configs, model=model, dataset=dataset)


@undisturbed()
def train_prepared(
    prepared: Prepared,
    overrides: Sequence[Sequence[str]] | None = None,
    *,
    record: bool = True,
    progress: bool | Progress | None = None,
    recorder: Recorder | None = None,
) -> list[Result]:
    """Train prepared runs; results in the same order. recorder: one with the user's own model and data, if any."""
    recorder = Recorder(None, None, None) if recorder is None else recorder
    check_sinks(prepared.configs[0])  # the sinks of all runs of a fleet are the same
    with ExitStack() as stack:
        runs = [RunRecord(config) for config in prepared.configs]
        if record:
            with prepared.torch_settings():  # whose number of threads is recorded
                for run, words in zip(runs, overrides or [()] * len(runs), strict=True):
                    run.folder = stack.enter_context(_new_folder(prepared, run.config, words))
        return recorder.train(runs, progress, prepared)


def train_all(
    configs: Sequence[TrainConfig | Mapping[str, Any]],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    record: bool = True,
    progress: bool | Progress | None = None,
) -> list[Result]:
    """Train runs of any kind; those that can share a fleet are trained together. Results in the same order.

    All runs are prepared, each once, before the first one starts. Arguments and errors are those of train.
    """
    groups: dict[str, list[int]] = {}
    configs = [config_of(config) for config in configs]
    for i, config in enumerate(configs):
        groups.setdefault(repr(sorted(fleet_key(config).items())), []).append(i)
    fleets = [[configs[i] for i in group] for group in groups.values()]
    with undisturbed():  # fleets with the same split share the arrays, which are split once
        splits = {_split_key(config): config for config in configs}
        data = {key: None if dataset is None else dataset_of(config, dataset) for key, config in splits.items()}
        waiting = [_prepared(fleet, model, data[_split_key(fleet[0])]) for fleet in fleets]
    results: dict[int, Result] = {}
    with ExitStack() as stack:
        if len(fleets) > 1 and not isinstance(progress, Progress):  # one bar for all of them
            total = sum(prepared.budget * len(prepared.configs) for prepared in waiting)
            progress = Progress(total, f"{len(configs)} runs", enabled=progress)
            stack.callback(progress.close)
        for group, fleet in zip(groups.values(), fleets, strict=True):
            recorder = Recorder(model, data[_split_key(fleet[0])], None)
            trained = train_prepared(waiting.pop(0), record=record, progress=progress, recorder=recorder)
            results |= dict(zip(group, trained, strict=True))
    return [results[i] for i in range(len(configs))]


def _split_key(config: TrainConfig) -> str:
    """Return the settings that decide how arrays are split and scaled, as a dictionary key."""
    return repr(config.dataset)


@undisturbed()
def resume(
    folder: Path | str,
    *,
    budget: int | None = None,
    output_root: str | None = None,
    run_name: str | None = None,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    progress: bool | Progress | None = None,
) -> Result:
    """Resume the run of a folder to the end of its budget; if it is finished, return its result.

    The result is bit-identical to that of an uninterrupted run on the same device. A larger budget continues the run in
    a new folder (below output_root, called run_name); this is possible only if nothing depends on the fraction of the
    budget. Raises ConfigError if something does, RunInUseError while another process trains the run, and as train does.
    """
    folder, prepared = Path(folder), None
    if budget is not None:
        folder, prepared = _continued(folder, budget, output_root, run_name, model, dataset)
    with RunFolder.reopen(folder) as reopened:
        runs = _reopened([reopened], model, dataset)
        return Recorder(model, dataset, None).train(runs, progress, prepared)[0]


@undisturbed()
def resume_fleet(
    folders: Sequence[Path],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    progress: bool | Progress | None = None,
    prune: Prune | None = None,
) -> list[Result]:
    """Resume several runs; those that have reached the same evaluation share a fleet. Raises as resume does.

    Runs are resumed bit-identically if their fleet is complete and in its order; otherwise their numbers agree up to
    rounding.
    """
    with ExitStack() as stack:
        reopened = [stack.enter_context(RunFolder.reopen(folder)) for folder in folders]
        return Recorder(model, dataset, prune).train(_reopened(reopened, model, dataset), progress)


def _reopened(folders: Sequence[RunFolder], model: Any = None, dataset: Any = None) -> list[RunRecord]:
    """Return the runs of reopened folders, those of one fleet at the same evaluation. Raises as resume does."""
    complete_checkpoints([folder.path for folder in folders])
    for folder in folders:
        check_own(folder.config, model, dataset)
    return [RunRecord.reopened(folder) for folder in folders]


def _continued(
    folder: Path,
    budget: int,
    output_root: str | None,
    run_name: str | None,
    model: UserModel | None,
    dataset: UserData | None,
) -> tuple[Path, Prepared]:
    """Return a new run folder with a larger budget that starts from the last checkpoint of a run, and its prepared run.

    If the budget equals that of the run, the given folder is returned.
    """
    with RunFolder.reopen(folder) as opened:
        check_own(opened.config, model, dataset)
        run = RunRecord.reopened(opened)
        root = _output_root_for(folder, run.config) if output_root is None else output_root
        config = dataclasses.replace(with_budget(run.config, budget), output_root=root, run_name=run_name)
        checkpoint, error = run.checkpoint, functools.partial(config.trainer.error, "budget")
        if checkpoint is None:
            raise error(f"{folder} has no checkpoint to continue from; start a new run instead")
        prepared = Recorder(model, dataset, None).prepare([dataclasses.replace(run, config=config)])
        prepared.check_same(checkpoint, folder)
        if prepared.budget == checkpoint["choices"]["budget"]:
            return folder, prepared
        if prepared.budget < run.evaluations:
            raise error(f"must be >= {run.evaluations}, the gradient evaluations that {folder} has already spent")
        if not run.alive:
            raise error(f"the run in {folder} diverged and cannot be continued")
        key = depends_on_budget(config)
        if key is not None:
            raise error(f"{key} makes the run depend on its budget; start a new run instead")
        spent = {name: checkpoint[name] for name in ("evaluations", "config_hash")}
        continued = {
            **checkpoint,
            "choices": checkpoint["choices"] | {"budget": prepared.budget},
            "config_hash": config_hash(config, prepared.budget),
            "parent": {"folder": str(opened.path), **spent},
        }
        metrics = opened.table.text(checkpoint["metrics_bytes"], checkpoint.get("metrics_digest"))
        with _new_folder(prepared, config, (), metrics) as new:
            new.checkpoint(continued | {"config_digest": digest(new.config)})
            new.status("interrupted", reason=f"not started yet; it continues the run in {folder}")
            return new.path, prepared


def _output_root_for(folder: Path, config: TrainConfig) -> str:
    """Return the output_root of a run that follows the run of a folder; for a sweep's job, the parent of the sweep."""
    sweep = folder.absolute().parent
    return str(sweep.parent) if (sweep / JOBS).is_file() else config.output_root


@undisturbed()
def train_jobs(
    configs: Sequence[TrainConfig],
    overrides: Sequence[Sequence[str]],
    *,
    progress: bool | Progress | None = None,
    prune: Prune | None = None,
) -> list[Result | None]:
    """Train runs that could share a fleet, each in its folder output_root/run_name (or in the job's existing folder).

    Unfinished runs are resumed, those of one earlier fleet together; finished runs return their recorded result; the
    result of a run that another process trains is None. Raises as train_fleet does.
    """
    prepared = prepare(configs)
    with ExitStack() as stack:
        runs: dict[int, RunRecord] = {}
        earlier: dict[int, RunFolder] = {}
        existing = job_folders(Path(configs[0].output_root))
        with prepared.torch_settings():
            for i, (config, words) in enumerate(zip(prepared.configs, overrides, strict=True)):
                with contextlib.suppress(RunInUseError):
                    opened, is_new = _job_opened(prepared, config, words, existing)
                    stack.enter_context(opened)
                    config = _with_run_name(config, opened.path.name)
                    if is_new:
                        runs[i] = RunRecord(config, opened)
                        continue
                    earlier[i] = opened
                    theirs = config_from(opened.config)
                    if config_hash(theirs, prepared.budget) != config_hash(config, prepared.budget):
                        raise RunFolderError(f"{opened.path}: the folder holds the configuration of another run")
        all_new = len(runs) == len(configs)
        runs = dict(sorted((runs | dict(zip(earlier, _reopened(list(earlier.values())), strict=True))).items()))
        results = Recorder(None, None, prune).train(list(runs.values()), progress, prepared if all_new else None)
        return [dict(zip(runs, results, strict=True)).get(i) for i in range(len(configs))]


def _job_opened(
    prepared: Prepared, config: TrainConfig, overrides: Sequence[str], existing: Container[str | None]
) -> tuple[RunFolder, bool]:
    """Return the folder of a job, new or reopened, and whether it is new; an existing one may have another name.

    existing: hashes of the jobs that had a folder when the sweep's folder was listed. Raises RunInUseError if another
    process trains it.
    """
    given = Path(config.output_root, config.run_name or "")
    for again in (False, True):  # another process may create the folder after the search
        path = job_folder(given) if again or hash_of(given.name) in existing else given
        if has_contents(path):
            break
        try:
            return _new_folder(prepared, _with_run_name(config, path.name), overrides), True
        except FolderTakenError:
            if again:
                raise
    return RunFolder.reopen(path), False


def _with_run_name(config: TrainConfig, name: str) -> TrainConfig:
    return config if config.run_name == name else changed(config, run_name=name)


@undisturbed()
def repeat(
    folder: Path,
    choices: dict[str, Any],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    progress: bool | Progress | None = None,
) -> Result:
    """Train the configuration of a run folder again from the start, in a new folder, with the given choices."""
    record = read_config(folder)
    check_own(record, model, dataset)
    config = config_from(record)
    config = dataclasses.replace(config, output_root=_output_root_for(folder, config), run_name=None)
    run, recorder = RunRecord(config, initial_choices=choices), Recorder(model, dataset, None)
    prepared = recorder.prepare([run])
    with prepared.torch_settings(), ExitStack() as stack:
        run.folder = stack.enter_context(_new_folder(prepared, config, ()))
        return recorder.train([run], progress, prepared)[0]


def check_sinks(config: TrainConfig) -> None:
    """Raise ConfigError if trainer.sinks has an unknown name, or one whose package is not installed."""
    for problem in filter(None, map(problem_with, config.trainer.sinks)):
        raise config.trainer.error("sinks", problem)


def check_output(config: TrainConfig) -> None:
    """Raise ConfigError if a run folder, or a sink, could not be written; create no permanent file."""
    check_sinks(config)
    path = Path(config.output_root).absolute()
    check_name(config, "output_root", path)
    check_name(config, "run_name", path / (config.run_name or ""))
    try:
        folder = path / (config.run_name or "")
        if config.run_name is not None and folder.exists() and not is_incomplete(folder):
            raise config.error("run_name", f"the folder {path / config.run_name} already exists")
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise config.error("output_root", f"cannot be written ({error.strerror or error})") from error


def check_name(config: Group, key: str, path: Path) -> None:
    """Raise ConfigError for a key of config if no folder can have this path, for example because a name is too long."""
    if LOCK in path.parts:
        raise config.error(key, f"a folder must not be called {LOCK}")
    for name in (*path.parts, path):
        try:
            os.stat(name)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            raise config.error(key, f"cannot be a folder: {error.strerror}") from error


def _new_folder(prepared: Prepared, config: TrainConfig, overrides: Sequence[str], metrics: str = "") -> RunFolder:
    module = prepared.problem.model.module() if prepared.own_model else None
    own = None if module is None else type(module).__name__
    frozen = [] if module is None else [name for name, p in module.named_parameters() if not p.requires_grad]
    root, plain = Path(config.output_root), own_record(config, own, prepared.own_data, frozen)
    named: dict[str, Any] = {"device": str(prepared.problem.inputs.device), "budget": prepared.budget}
    named["config_hash"] = config_hash(config, prepared.budget)
    if config.run_name is not None:
        return RunFolder.create(root / config.run_name, plain, overrides, metrics=metrics, **named)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = f"{stamp}_{config.optimizer.name}_{prepared.data.name}"
    for suffix in ("", *(f"_{k}" for k in range(2, 10_000))):
        with contextlib.suppress(FolderTakenError, RunInUseError):  # taken by a run that started in the same second
            return RunFolder.create(root / (name + suffix), plain, overrides, metrics=metrics, **named)
    raise RunFolderError(f"output_root={root}: 10,000 runs were started in this second; set run_name")
