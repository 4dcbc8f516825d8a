"""The command line: argparse parses the first word, Hydra composes the configuration of `train`. Read this first.

`burgersgd train [flags] [key=value ...]` composes conf/ with the overrides, checks everything (every job of a grid) and
prepares data and model before it trains, so that a mistake is reported in one line with exit code 2 and nothing is
written. Hydra itself runs only sweeps, and prints the output of --cfg and --info.

Exit codes; if several apply, the first one: 2 wrong usage or configuration; 130 interrupted, and nothing can be
resumed; 75 interrupted or trained by another process, can be resumed; 1 a run or job failed; 3 all runs diverged; 0
success.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burgersgd import __version__
from burgersgd.arguments import OwnFlags, hydra_flags, in_order, with_home_expanded, with_plus, yaml_infinity
from burgersgd.error_line import fail
from burgersgd.own_process import prepare_workers, rare_garbage_collection
from burgersgd.recording.output import flush_or_discard, open_descriptors, unfailing
from burgersgd.recording.warned import each_warning_once

if TYPE_CHECKING:
    from burgersgd.sweeps.sweep import Sweep


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; output that cannot be written (full disk, no terminal) is lost."""
    arguments = [with_home_expanded(word) for word in (sys.argv[1:] if argv is None else argv)]
    with unfailing() as output, each_warning_once():
        code = _report_interruptions(arguments)
        output.flush()
        if code == 0 and output.is_full and arguments[:1] != ["train"]:  # training matters more than its output
            print(f"burgersgd: error: cannot write to standard output: {output.error}", file=sys.stderr)
            code = 1
    return code


def _report_interruptions(arguments: list[str]) -> int:
    """Run the command line; if it is interrupted, print that and the command that resumes it."""
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
    command = parser.parse_args(arguments[:1] or ["--help"]).command  # argparse parses only the first word
    if command not in COMMANDS:
        from burgersgd.keys import no_such_command

        return fail(ValueError(no_such_command(command, arguments[1:], COMMANDS)))
    return COMMANDS[command](arguments[1:])


def _train(arguments: list[str]) -> int:
    from burgersgd import config as schema
    from burgersgd.hydra_schemas import register_schemas
    from burgersgd.interruption import interruptible
    from burgersgd.keys import with_whole_numbers
    from burgersgd.registry import with_own_classes

    own, arguments = OwnFlags.among(arguments)
    logging.getLogger("burgersgd").setLevel(logging.INFO if own.verbose else logging.WARNING)
    try:
        words = in_order(with_plus(with_whole_numbers(yaml_infinity(word))) for word in arguments)
        arguments, named = with_own_classes(schema.GROUPS, words)
        flags = hydra_flags(arguments)
        if flags.help:
            from burgersgd.help import train_help

            print(train_help(flags.overrides))
            return 0
    except ValueError as error:
        return fail(error)
    register_schemas()
    with interruptible(exit_at_once=True):
        if any(word.startswith("resume=") for word in flags.overrides):
            flags.overrides = [word for word in flags.overrides if word not in named]
            from burgersgd.one_run import resume_run

            return resume_run(flags, own)
        return _compose_and_train(arguments, own)


def _compose_and_train(arguments: list[str], own: OwnFlags) -> int:
    from burgersgd import native
    from burgersgd.one_run import train_run
    from burgersgd.sweeps.compose import as_config_error, compose_job

    flags = hydra_flags(arguments)
    for flag in ("config_name", "config_path", "config_dir", "experimental_rerun"):
        if value := getattr(flags, flag):
            error = f"--{flag.replace('_', '-')}={value}: cannot be used, because burgersgd has its own configuration"
            return fail(ValueError(error))
    try:
        if flags.hydra_help:
            arguments = ["--hydra-help"]  # which takes no overrides
        elif flags.cfg or flags.info or flags.shell_completion:  # Hydra prints something and runs nothing
            compose_job(flags.overrides)
        else:
            native.compile_ahead("normals", "mlp_gradient")
            return _sweep(arguments, own) if flags.multirun else train_run(flags, own)
        as_config_error(lambda: _run_hydra(arguments, lambda cfg: 0.0))  # flags that exclude each other
    except ValueError as error:  # ConfigError, DataError: their messages are one line
        return fail(error)
    return 0


def _sweep(arguments: list[str], own: OwnFlags) -> int:
    """Check every job of a sweep, train them, and show how they ended."""
    from burgersgd.help import with_failures_in_red
    from burgersgd.interruption import RESUMABLE, Interrupted
    from burgersgd.sweeps.compose import as_config_error
    from burgersgd.sweeps.sweep import Sweep, train_job

    words = hydra_flags(arguments).overrides
    try:
        sweep = Sweep(words)
        if own.dry_run:
            from burgersgd.sweeps.dry_run import of_sweep

            print(of_sweep(sweep))
            return 0
    except ValueError as error:
        return fail(error)
    sweep.quiet = own.quiet
    for note in [] if own.quiet else sweep.notes:
        print(f"burgersgd: {note}", file=sys.stderr)
    try:
        sweep.take_folder()
        chosen = {key: value for key, _, value in (word.partition("=") for word in words)}
        others = "hydra/sweeper" in chosen and not chosen.get("hydra/launcher", "fleet").startswith("fleet")
        passed = None if others else sweep  # other launchers send the task to processes, without the sweep
        as_config_error(
            lambda: _run_hydra([*sweep.added, *arguments], train_job, passed)
        )  # overrides come first (in_order)
    except Interrupted as interrupted:
        print(with_failures_in_red(sweep.report()), flush=True)
        print(f"burgersgd: interrupted by {interrupted}", file=sys.stderr)
        print(f"resume with: {sweep.command(arguments)}", file=sys.stderr)
        return RESUMABLE
    except ValueError as error:  # from Hydra's own keys, a launcher or a sweeper
        sweep.clean_up()
        return fail(error)
    if sweep.started:
        print(with_failures_in_red(sweep.report()), flush=True)
    if sweep.error is not None:
        fail(sweep.error)
    return sweep.exit_code


# ------------------------------------------------------------------------------------------------ composing and Hydra


def _run_hydra(arguments: Sequence[str], task: Callable[[Any], float], sweep: Sweep | None = None) -> None:
    """Let Hydra call the task, or burgersgd's launcher and sweeper train the sweep, an attribute of the task."""
    import hydra

    from burgersgd.config import CONF_DIR

    def train(cfg: Any) -> float:
        return task(cfg)

    if sweep is not None:
        train.sweep = sweep  # pyright: ignore[reportFunctionMemberAccess]
    saved, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["burgersgd", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors; otherwise Hydra prints a page for each, and exits
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
        return fail(error)


def _verify(arguments: list[str]) -> int:
    from burgersgd.theory.verify import main

    return main(arguments)


def _traffic(arguments: list[str]) -> int:
    from burgersgd.theory.traffic_command import main

    return main(arguments)


def _cost_of_runs(folders: list[Path]) -> list[list[float]]:
    from burgersgd.cost import cost_of_runs

    return cost_of_runs(folders)


def _run_other(command: str, arguments: list[str]) -> int:
    try:
        from burgersgd.config import GROUPS
        from burgersgd.registry import with_own_classes

        arguments, class_words = with_own_classes(GROUPS, arguments)
        arguments = [word for word in arguments if word not in class_words]
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
        return fail(error)
    except OSError as error:  # for a path among the arguments: too long, not readable
        if error.filename is None:
            raise
        return fail(ValueError(f"{error.filename}: {error.strerror}"))


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    **{
        word: functools.partial(_run_other, word)
        for word in ("list", "status", "compare", "study", "bench", "evaluate", "export", "rerun")
    },
    "verify": _verify,
    "traffic": _traffic,
    "help": _help_on,
    "completion": functools.partial(_run_other, "completion"),
}
"""First word of the command line -> function that handles the remaining words."""


def run() -> None:
    """Run the installed command."""
    open_descriptors()
    with rare_garbage_collection():
        prepare_workers(sys.argv[1:])
        try:
            code = main()
        except SystemExit as ended:  # from argparse
            code = ended.code
        flush_or_discard()
    sys.exit(code)
