"""`burgersgd train` for a single run, either new, from the command line's configuration, or resumed from its folder."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burgersgd.arguments import OwnFlags
from burgersgd.error_line import fail

if TYPE_CHECKING:
    from burgersgd.api import Result


def train_run(flags: argparse.Namespace, own: OwnFlags) -> int:
    """Train a single run in this process, without Hydra's launcher; everything is checked before it is written."""
    from burgersgd.api import check_output, train_prepared
    from burgersgd.build.prepared import prepare
    from burgersgd.config import ConfigError
    from burgersgd.help import with_failures_in_red
    from burgersgd.recording.progress import summary
    from burgersgd.sweeps.compose import compose_job, split_words

    hydra_words, words = split_words(flags.overrides)
    try:
        config = compose_job(flags.overrides)
        if flags.resolve or flags.package:
            raise ConfigError(
                "--resolve and --package: can only be used with --cfg job, which prints the configuration"
            )
        for word in hydra_words:
            if not word.lstrip("+~").startswith("hydra.searchpath"):
                instead = "has no effect on a single run; set its folder by output_root and run_name"
                raise ConfigError(f"{word}: {instead}")
        check_output(config)
        if own.dry_run:
            from burgersgd.sweeps.dry_run import of_run

            print(of_run(config))
            return 0
        prepared = prepare([config])
    except ValueError as error:
        return fail(error)
    try:
        (result,) = train_prepared(prepared, [words], progress=False if own.quiet else None)
    except ValueError as error:  # checks before the start found nothing: the run itself failed
        fail(error)
        return 1
    print(with_failures_in_red(summary(**_summary_fields(result))), flush=True)
    return 3 if result.state == "diverged" else 0


def resume_run(flags: argparse.Namespace, own: OwnFlags) -> int:
    """Resume the run of a folder: resume=FOLDER [trainer.budget=N] [output_root=...] [run_name=...]."""
    from burgersgd.api import resume
    from burgersgd.config import ConfigError
    from burgersgd.help import with_failures_in_red
    from burgersgd.interruption import RESUMABLE
    from burgersgd.recording.progress import shown_path, summary
    from burgersgd.recording.reading import has_ended, read_config
    from burgersgd.recording.run_folder import RunFolderError, RunInUseError

    words = dict(word.partition("=")[::2] for word in flags.overrides)
    allowed = ("resume", "trainer.budget", "output_root", "run_name")
    try:
        if own.dry_run:
            raise ConfigError("--dry-run: cannot be combined with resume")
        if flags.multirun:
            raise ConfigError("resume: takes one run; to resume a sweep, repeat its command")
        for key in words:
            if key not in allowed:
                raise ConfigError(
                    f"{key}: cannot be set with resume, which uses the recorded configuration; "
                    f"allowed are {', '.join(allowed[1:])}"
                )
        budget = words.get("trainer.budget")
        if budget is not None and not re.fullmatch(r"[0-9_]+", budget):
            raise ConfigError(f"trainer.budget={budget}: must be of type int")
        folder = Path(words["resume"])
        read_config(folder)
        over = has_ended(folder)
        if over and budget is None:
            print(f"{shown_path(folder)}: the run has ended, nothing is left to do")
    except ValueError as error:
        return fail(error)
    try:
        result = resume(
            folder,
            budget=None if budget is None else int(budget),
            output_root=words.get("output_root"),
            run_name=words.get("run_name"),
            progress=False if own.quiet else None,
        )
    except ValueError as error:
        fail(error)
        if isinstance(error, RunInUseError):
            return RESUMABLE
        return 1 if isinstance(error, RunFolderError) else 2
    print(with_failures_in_red(summary(**_summary_fields(result))), flush=True)
    return 3 if result.state == "diverged" else 0


def _summary_fields(result: Result) -> dict[str, Any]:
    config, diverged = result.config, result.state == "diverged"
    return {
        "optimizer": f"{config.optimizer.name}, lr {config.optimizer.lr:g}, seed {config.seed}",
        "data": config.dataset.name,
        "model": config.model.name,
        "parameters": result.n_parameters,
        "evaluations": result.evaluations,
        "seconds": result.seconds,
        "folder": result.folder,
        "train_loss": None if diverged else result.metrics["train_loss"][-1],
        "validation_error": None if diverged or math.isnan(result.validation_error) else result.validation_error,
        "test_error": None if diverged else result.test_error,
        "test_loss": None if diverged else result.test_loss,
        "best_test_error": None if math.isnan(result.best_test_error) else result.best_test_error,
        "percent": result.task == "classification",
        "best_at": result.best_at,
        "diverged_at": result.evaluations if diverged else None,
        "last_finite_loss": result.last_loss if diverged else None,
        "guess_error": result.guess_error if result.no_better_than_guessing else None,
        "regime": None if result.regime is None else str(result.regime),
        "advice": result.advice,
    }
