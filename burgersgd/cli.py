"""The command line: argparse for the first word, Hydra behind `train`. Read this first.

`burgersgd train [flags] [key=value ...]` composes conf/ with the overrides, checks everything (every job of a grid) and
prepares data and model before Hydra runs the job, so that a mistake is one line on the terminal, exit code 2, and
nothing on the disk.

Exit codes: 0 done; 1 a job failed; 2 usage or configuration; 3 a single run diverged; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from burgersgd import __version__

if TYPE_CHECKING:
    from burgersgd.config import TrainConfig
    from burgersgd.run import Result
    from burgersgd.sweeps.sweep import Sweep

EPILOG = """\
examples:
  burgersgd train                                      the paper's optimizer on scikit-learn's digits
  burgersgd train optimizer=sgd optimizer.lr=0.05      a baseline, same number of gradient evaluations
  burgersgd train --multirun optimizer.nu=1e-7,1e-6,1e-5 seed=range(3)
  burgersgd train --help                               all groups and keys
  burgersgd verify                                     the paper's equations, checked one by one
  burgersgd traffic scenario=red_light nu=0.02         the traffic model behind the optimizer
  tensorboard --logdir outputs                         look at the curves
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        return _complete(arguments)
    parser = argparse.ArgumentParser(
        prog="burgersgd",
        description="Train neural networks by gradient descent on the local entropy of the loss.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"burgersgd {__version__}")
    parser.add_argument(
        "command", choices=list(COMMANDS), metavar="COMMAND", help="train a network; verify the paper; simulate traffic"
    )
    command = parser.parse_args(arguments[:1] or ["--help"]).command  # only the first word is argparse's
    return COMMANDS[command](arguments[1:])


def _train(arguments: list[str]) -> int:
    from burgersgd import config as schema
    from burgersgd import native

    arguments = [_yaml_infinity(a) for a in arguments]
    schema.register_schemas()
    job = _Job()
    if _hydra_flags(arguments).help:
        return _help(arguments)
    if not _only_informs(arguments):
        native.compile_ahead("normals", "mlp_gradient")
        if _hydra_flags(arguments).multirun:
            return _sweep(arguments)
        try:
            config = compose_job(arguments)
            with _interruptible() as interrupted:
                job.prepare(config)
        except ValueError as error:  # ConfigError, DataError: one line that says what to do
            return _fail(error)
        if interrupted:
            return 130
    with _interruptible() as interrupted:
        _run_hydra(arguments, job)
    return 130 if interrupted else job.exit_code


def _sweep(arguments: list[str]) -> int:
    """Check every job of a sweep, train them, and show how they ended."""
    from burgersgd.sweeps.sweep import Sweep, train_job

    words = _hydra_flags(arguments).overrides
    try:
        with _interruptible() as interrupted:
            sweep = Sweep(words)
    except ValueError as error:
        return _fail(error)
    if interrupted:
        return 130
    for note in sweep.notes:
        print(f"burgersgd: {note}", file=sys.stderr)
    at = arguments.index(words[-1]) + 1 if words else len(arguments)  # argparse wants them beside one another
    with _interruptible() as interrupted:
        _run_hydra([*arguments[:at], *sweep.added, *arguments[at:]], train_job, sweep)
    if sweep.error is not None:
        return _fail(sweep.error)
    if sweep.started:
        print(sweep.report(), flush=True)
    return 130 if interrupted else sweep.exit_code


class _Job:
    """What Hydra calls for a single run; it never raises and never exits, but remembers how the run ended."""

    def __init__(self) -> None:
        self.exit_code = 0

    def prepare(self, config: TrainConfig) -> None:
        """Check data, model and budget before anything is written; raises ValueError."""
        from burgersgd.run import check_output, prepare

        check_output(config)
        prepare([config])

    def __call__(self, cfg: Any) -> float:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        from burgersgd.recording.progress import summary
        from burgersgd.run import train

        overrides = list(HydraConfig.get().overrides.task)
        try:
            config: TrainConfig = OmegaConf.to_object(cfg)  # pyright: ignore[reportAssignmentType]
            result = train(config, overrides=overrides)
        except ValueError as error:
            self.exit_code = _fail(error)
            return float("inf")
        self.exit_code = 3 if result.state == "diverged" else 0
        print(summary(**_summary_fields(result)), flush=True)
        return result.objective


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
        "validation_error": None if diverged else result.validation_error,
        "test_error": None if diverged else result.test_error,
        "test_loss": None if diverged else result.test_loss,
        "best_test_error": result.best_test_error,
        "percent": result.task == "classification",
        "best_at": result.best_at,
        "diverged_at": result.evaluations if diverged else None,
        "last_finite_loss": result.last_loss if diverged else None,
    }


# ------------------------------------------------------------------------------------------------ composing and Hydra


def compose_job(arguments: Sequence[str]) -> TrainConfig:
    """Return the checked configuration of a single run.

    Raises ConfigError with a one-line message for whatever Hydra or a range check refuses.
    """
    from burgersgd.config import ConfigError
    from burgersgd.sweeps.compose import Composer, split_words

    hydra_words, words = split_words(_hydra_flags(arguments).overrides)
    composer = Composer(hydra_words)
    if any(override.is_sweep_override() for override in composer.parse(words)):
        raise ConfigError("a list of values such as seed=1,2,3 is a sweep: add --multirun")
    config = composer.config(words)
    if config.sweep.params:
        raise ConfigError("sweep.params is what a sweep tries: add --multirun")
    return config


def _help(arguments: Sequence[str]) -> int:
    """Print the groups with their choices, and the configuration that the arguments compose."""
    from omegaconf import OmegaConf

    from burgersgd.config import GROUPS
    from burgersgd.sweeps.compose import Composer, split_words

    hydra_words, words = split_words(_hydra_flags(arguments).overrides)
    try:
        node = Composer(hydra_words).node(words)
    except ValueError as error:
        return _fail(error)
    print(
        "usage: burgersgd train [--multirun] [--cfg job] [--hydra-help] [GROUP=CHOICE ...] [KEY=VALUE ...]\n\ngroups:"
    )
    for group, choices in GROUPS.items():
        if len(choices) > 1:
            print(f"  {group + '=':<12}{', '.join(choices)}")
    print("\nkeys and their values (with the choices given on this command line; conf/ explains each):\n")
    print(OmegaConf.to_yaml(node))
    print("more: https://hydra.cc for the grammar of overrides and of sweeps such as seed=range(3) with --multirun")
    return 0


def _hydra_flags(arguments: Sequence[str]) -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    return get_args_parser().parse_args(list(arguments))


def _only_informs(arguments: Sequence[str]) -> bool:
    """Whether Hydra is to print something (--cfg, --info, --hydra-help) instead of running."""
    flags = _hydra_flags(arguments)
    return bool(flags.hydra_help or flags.cfg or flags.info or flags.shell_completion)


def _yaml_infinity(argument: str) -> str:
    """Accept YAML's .inf where Hydra's grammar wants inf."""
    return re.sub(r"(?<=[=,\[ -])\.inf\b", "inf", argument)


def _run_hydra(arguments: Sequence[str], task: Callable[[Any], float], sweep: Sweep | None = None) -> None:
    """Let Hydra call the task, or our launcher and sweeper train the sweep, which they find at the task."""
    import hydra

    from burgersgd.config import CONF_DIR

    def train(cfg: Any) -> float:
        return task(cfg)

    train.sweep = sweep  # pyright: ignore[reportFunctionMemberAccess]
    saved = sys.argv
    sys.argv = ["burgersgd", *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")(train)()
    finally:
        sys.argv = saved


def _complete(arguments: Sequence[str]) -> int:
    """Shell completion: of the commands here, of groups and keys by Hydra."""
    line = os.environ.get("COMP_LINE", "").split(" ")
    if line[1:2] == ["train"] and len(line) > 2:
        del line[1]
        os.environ["COMP_LINE"] = " ".join(line)
    elif any("query" in a for a in arguments):
        print(" ".join(c for c in COMMANDS if c.startswith(line[-1])))
        return 0
    from burgersgd.config import register_schemas

    register_schemas()
    _run_hydra(arguments, lambda cfg: 0.0)
    return 0


@contextlib.contextmanager
def _interruptible() -> Iterator[list[str]]:
    """Turn Ctrl-C into an entry of the list that is yielded."""
    interrupted: list[str] = []
    try:
        yield interrupted
    except KeyboardInterrupt:
        interrupted.append("interrupted")
        print("burgersgd: interrupted", file=sys.stderr)


def _fail(error: Exception) -> int:
    print(f"burgersgd: error: {error}", file=sys.stderr)
    return 2


def _verify(arguments: list[str]) -> int:
    from burgersgd.theory.verify import main

    return main(arguments)


def _traffic(arguments: list[str]) -> int:
    from burgersgd.theory.traffic_command import main

    return main(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": _train, "verify": _verify, "traffic": _traffic}
"""First word of the command line -> what handles the rest."""


def run() -> None:
    """Entry point of the installed command."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)
