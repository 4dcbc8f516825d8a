"""The command line: argparse for the first word, Hydra behind `train`. Read this first.

`burgersgd train [flags] [key=value ...]` composes conf/ with the overrides, checks everything (every job of a grid) and
prepares data and model before it trains, so that a mistake is one line on the terminal, exit code 2, and nothing on the
disk. Hydra itself runs sweeps alone, and prints what --cfg and --info ask for.

Exit codes, of several reasons the first: 2 usage or configuration; 130 interrupted, nothing to go on from; 75
interrupted or trained by another process, to be resumed; 1 a run or job failed; 3 all runs diverged; 0 done.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burgersgd import __version__
from burgersgd.arguments import Wishes, adding, at_home, hydra_flags, in_order, yaml_infinity
from burgersgd.own_process import seldom_collecting
from burgersgd.recording.output import let_go, open_descriptors, unfailing
from burgersgd.recording.warned import said_once

if TYPE_CHECKING:
    from burgersgd.run import Result
    from burgersgd.sweeps.sweep import Sweep

LONGEST_ERROR = 1_000
"""Characters of an error that are shown."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; what cannot be shown (a full disk, a gone terminal) is lost."""
    arguments = [at_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    with unfailing() as output, said_once():
        code = _interruptions_told(arguments)
        output.flush()
        if code == 0 and output.is_full and arguments[:1] != ["train"]:  # whose output is not what it is for
            print(f"burgersgd: error: cannot write to standard output: {output.error}", file=sys.stderr)
            code = 1
    return code


def _interruptions_told(arguments: list[str]) -> int:
    """Run the command line; say that it was interrupted, and how it goes on."""
    from burgersgd.interruption import RESUMABLE, Interrupted

    try:
        return _command(arguments)
    except Interrupted as interrupted:
        from burgersgd.recording.progress import shown_path

        print(f"burgersgd: interrupted by {interrupted}", file=sys.stderr)
        if len(interrupted.folders) == 1:
            print(f"resume with: burgersgd train resume={shown_path(interrupted.folders[0])}", file=sys.stderr)
        return RESUMABLE if interrupted.folders or interrupted.signal != signal.SIGINT else 130
    except KeyboardInterrupt:
        print("burgersgd: interrupted", file=sys.stderr)
        return 130


def _command(arguments: list[str]) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if arguments[:1] == ["__complete"]:
        from burgersgd.completion import candidates

        print("\n".join(candidates(arguments[1:], list(COMMANDS))))
        return 0
    from burgersgd.help import EPILOG

    parser = argparse.ArgumentParser(
        prog="burgersgd",
        description="Train neural networks by gradient descent on the local entropy of the loss.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"burgersgd {__version__}")
    parser.add_argument("command", metavar="COMMAND", help=", ".join(COMMANDS))
    command = parser.parse_args(arguments[:1] or ["--help"]).command  # only the first word is argparse's
    if command not in COMMANDS:
        from burgersgd.keys import no_such_command

        return _fail(ValueError(no_such_command(command, arguments[1:], COMMANDS)))
    return COMMANDS[command](arguments[1:])


def _train(arguments: list[str]) -> int:
    from burgersgd import config as schema
    from burgersgd.hydra_schemas import register_schemas
    from burgersgd.interruption import interruptible
    from burgersgd.keys import with_whole_numbers
    from burgersgd.registry import with_own_classes

    wishes, arguments = Wishes.among(arguments)
    if wishes.verbose:
        logging.getLogger("burgersgd").setLevel(logging.INFO)
    try:
        words = in_order(adding(with_whole_numbers(yaml_infinity(word))) for word in arguments)
        arguments, named = with_own_classes(schema.GROUPS, words)
        flags = hydra_flags(arguments)
        if flags.help:
            from burgersgd.help import train_help

            print(train_help(flags.overrides))
            return 0
    except ValueError as error:
        return _fail(error)
    register_schemas()
    with interruptible(exit_at_once=True):
        if any(word.startswith("resume=") for word in flags.overrides):
            flags.overrides = [word for word in flags.overrides if word not in named]
            return _resume(flags, wishes)
        return _train_jobs(arguments, wishes)


def _train_jobs(arguments: list[str], wishes: Wishes) -> int:
    from burgersgd import native
    from burgersgd.sweeps.compose import compose_job, refusing

    flags = hydra_flags(arguments)
    for flag in ("config_name", "config_path", "config_dir", "experimental_rerun"):
        if value := getattr(flags, flag):
            error = f"--{flag.replace('_', '-')}={value}: must be left out, the configuration is burgersgd's own"
            return _fail(ValueError(error))
    try:
        if flags.hydra_help:
            arguments = ["--hydra-help"]  # which takes no overrides
        elif flags.cfg or flags.info or flags.shell_completion:  # Hydra prints something and runs nothing
            compose_job(flags.overrides)
        else:
            native.compile_ahead("normals", "mlp_gradient")
            return _sweep(arguments, wishes) if flags.multirun else _train_one(flags, wishes)
        refusing(lambda: _run_hydra(arguments, lambda cfg: 0.0))  # flags that do not go together
    except ValueError as error:  # ConfigError, DataError: one line that says what to do
        return _fail(error)
    return 0


def _resume(flags: argparse.Namespace, wishes: Wishes) -> int:
    """Go on with the run of a folder: resume=FOLDER [trainer.budget=N] [output_root=...] [run_name=...]."""
    from burgersgd.config import ConfigError
    from burgersgd.interruption import RESUMABLE
    from burgersgd.recording.progress import shown_path, summary
    from burgersgd.recording.reading import is_over, read_config
    from burgersgd.recording.run_folder import RunFolderError, RunInUseError
    from burgersgd.run import resume

    words = dict(word.partition("=")[::2] for word in flags.overrides)
    allowed = ("resume", "trainer.budget", "output_root", "run_name")
    try:
        if wishes.dry_run:
            raise ConfigError("--dry-run: does not go with resume")
        if flags.multirun:
            raise ConfigError("resume: takes one run; to resume a sweep, repeat its command")
        for key in words:
            if key not in allowed:
                raise ConfigError(
                    f"{key}: the configuration is the recorded one; with resume go {', '.join(allowed[1:])}"
                )
        budget = words.get("trainer.budget")
        if budget is not None and not re.fullmatch(r"[0-9_]+", budget):
            raise ConfigError(f"trainer.budget={budget}: must be of type int")
        folder = Path(words["resume"])
        read_config(folder)
        over = is_over(folder)
        if over and budget is None:
            print(f"{shown_path(folder)}: the run is over, nothing is left to do")
    except ValueError as error:
        return _fail(error)
    try:
        result = resume(
            folder,
            budget=None if budget is None else int(budget),
            output_root=words.get("output_root"),
            run_name=words.get("run_name"),
            progress=False if wishes.quiet else None,
        )
    except ValueError as error:
        _fail(error)
        if isinstance(error, RunInUseError):
            return RESUMABLE
        return 1 if isinstance(error, RunFolderError) else 2
    print(summary(**_summary_fields(result)), flush=True)
    return 3 if result.state == "diverged" else 0


def _sweep(arguments: list[str], wishes: Wishes) -> int:
    """Check every job of a sweep, train them, and show how they ended."""
    from burgersgd.interruption import RESUMABLE, Interrupted
    from burgersgd.sweeps.compose import refusing
    from burgersgd.sweeps.sweep import Sweep, train_job

    words = hydra_flags(arguments).overrides
    try:
        sweep = Sweep(words)
        if wishes.dry_run:
            from burgersgd.sweeps.dry_run import of_sweep

            print(of_sweep(sweep))
            return 0
    except ValueError as error:
        return _fail(error)
    sweep.quiet = wishes.quiet
    for note in [] if wishes.quiet else sweep.notes:
        print(f"burgersgd: {note}", file=sys.stderr)
    try:
        sweep.take_folder()
        refusing(lambda: _run_hydra([*sweep.added, *arguments], train_job, sweep))  # overrides come first (in_order)
    except Interrupted as interrupted:
        print(sweep.report(), flush=True)
        print(f"burgersgd: interrupted by {interrupted}", file=sys.stderr)
        print(f"resume with: {sweep.command(arguments)}", file=sys.stderr)
        return RESUMABLE
    except ValueError as error:  # of Hydra's own keys, a launcher or a sweeper
        sweep.clean_up()
        return _fail(error)
    if sweep.started:
        print(sweep.report(), flush=True)
    if sweep.error is not None:
        _fail(sweep.error)
    return sweep.exit_code


def _train_one(flags: argparse.Namespace, wishes: Wishes) -> int:
    """Train a single run, in this process and without Hydra's: composed once, checked before anything is written."""
    from burgersgd.config import ConfigError
    from burgersgd.prepare import prepare
    from burgersgd.recording.progress import summary
    from burgersgd.run import check_output, train_prepared
    from burgersgd.sweeps.compose import compose_job, split_words

    hydra_words, words = split_words(flags.overrides)
    try:
        config = compose_job(flags.overrides)
        if flags.resolve or flags.package:
            raise ConfigError("--resolve and --package go with --cfg job, which shows the configuration")
        for word in hydra_words:
            if not word.lstrip("+~").startswith("hydra.searchpath"):
                instead = "has no effect on a single run; output_root=... and run_name=... say where its folder goes"
                raise ConfigError(f"{word}: {instead}")
        check_output(config)
        if wishes.dry_run:
            from burgersgd.sweeps.dry_run import of_run

            print(of_run(config))
            return 0
        prepared = prepare([config])
    except ValueError as error:
        return _fail(error)
    if wishes.verbose:
        device, d = prepared.problem.inputs.device, prepared.problem.d
        chosen = f"engine {prepared.engine} on {device}, {prepared.threads or 'torch-chosen'} threads"
        print(f"burgersgd: {chosen}, {d:,} parameters, {prepared.budget:,} gradient evaluations", file=sys.stderr)
    try:
        (result,) = train_prepared(prepared, [words], progress=False if wishes.quiet else None)
    except ValueError as error:  # what could be checked before was: this went wrong in mid-run
        _fail(error)
        return 1
    print(summary(**_summary_fields(result)), flush=True)
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


# ------------------------------------------------------------------------------------------------ composing and Hydra


def _run_hydra(arguments: Sequence[str], task: Callable[[Any], float], sweep: Sweep | None = None) -> None:
    """Let Hydra call the task, or our launcher and sweeper train the sweep, which they find at the task."""
    import hydra

    from burgersgd.config import CONF_DIR

    def train(cfg: Any) -> float:
        return task(cfg)

    train.sweep = sweep  # pyright: ignore[reportFunctionMemberAccess]
    saved, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["burgersgd", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here: Hydra would print them, a page each, and exit
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")(train)()
    finally:
        sys.argv = saved
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ |= {} if full is None else {"HYDRA_FULL_ERROR": full}


def _help_on(arguments: list[str]) -> int:
    from burgersgd.help import help_on

    word = arguments[0] if arguments else ""
    if not word:
        return main(["--help"])
    if word in COMMANDS:
        return main([word, "--help"])
    try:
        print(help_on(word))
        return 0
    except ValueError as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    from burgersgd.help import colour

    label = colour("error:", "31;1", sys.stderr)
    text = " ".join(str(error).splitlines())
    if len(text) > LONGEST_ERROR:  # a value of thousands of characters: the key is before it, the reason behind
        text = f"{text[: LONGEST_ERROR // 2]} ... {text[-LONGEST_ERROR // 2 :]}"
    print(f"burgersgd: {label} {text}", file=sys.stderr)
    return 2


def _verify(arguments: list[str]) -> int:
    from burgersgd.theory.verify import main

    return main(arguments)


def _traffic(arguments: list[str]) -> int:
    from burgersgd.theory.traffic_command import main

    return main(arguments)


def _cost_of_runs(folders: list[Path]) -> list[list[float]]:
    from burgersgd.cost import cost_of_runs

    return cost_of_runs(folders)


def _look(command: str, arguments: list[str]) -> int:
    try:
        from burgersgd.config import GROUPS
        from burgersgd.registry import with_own_classes

        arguments, named = with_own_classes(GROUPS, arguments)
        arguments = [word for word in arguments if word not in named]
        if command == "completion":
            from burgersgd import completion

            return completion.main(arguments)
        if command == "status":
            from burgersgd.sweeps import status_command

            return status_command.main(arguments)
        if command == "list":
            from burgersgd.analysis import listing

            return listing.main(arguments)
        if command in ("study", "bench"):
            from burgersgd.studies import command as study

            return study.main(arguments) if command == "study" else study.main_bench(arguments)
        if command == "compare":
            from burgersgd.analysis import command as analysis

            return analysis.main(arguments, _cost_of_runs)
        from burgersgd import revisit

        handlers = {"evaluate": revisit.main_evaluate, "export": revisit.main_export, "rerun": revisit.main_rerun}
        return handlers[command](arguments)
    except ValueError as error:
        return _fail(error)
    except OSError as error:  # of a path that was given: too long, not to be read
        if error.filename is None:
            raise
        return _fail(ValueError(f"{error.filename}: {error.strerror}"))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    **{
        word: functools.partial(_look, word)
        for word in ("list", "status", "compare", "study", "bench", "evaluate", "export", "rerun")
    },
    "verify": _verify,
    "traffic": _traffic,
    "help": _help_on,
    "completion": functools.partial(_look, "completion"),
}
"""First word of the command line -> what handles the rest."""


def run() -> None:
    """Entry point of the installed command."""
    open_descriptors()
    with seldom_collecting():
        try:
            code = main()
        except SystemExit as ended:  # argparse's
            code = ended.code
        let_go()
    sys.exit(code)
