"""The command line: argparse for the first word, Hydra behind `train`. Read this first.

`burgersgd train [flags] [key=value ...]` composes conf/ with the overrides, checks everything (every job of a grid) and
prepares data and model before Hydra runs the job, so that a mistake is one line on the terminal, exit code 2, and
nothing on the disk.

Exit codes, of several reasons the first: 2 usage or configuration; 130 interrupted, nothing to go on from; 75
interrupted or trained by another process, to be resumed; 1 a run or job failed; 3 all runs diverged; 0 done.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from burgersgd import __version__
from burgersgd.own_process import seldom_collecting
from burgersgd.recording.output import let_go, open_descriptors, unfailing

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
  burgersgd train resume=RUN                           go on with a run that was stopped
  burgersgd status SWEEP                               how the jobs of a sweep stand
  burgersgd compare SWEEP --by optimizer.name          means, intervals, paired differences
  burgersgd evaluate RUN                               its final evaluation again, from the checkpoint
  burgersgd export RUN                                 its x as a state_dict for an ordinary nn.Module
  burgersgd rerun RUN --check                          the same run again: are the bits the same?
  burgersgd verify                                     the paper's equations, checked one by one
  burgersgd traffic scenario=red_light nu=0.02         the traffic model behind the optimizer
  tensorboard --logdir outputs                         look at the curves
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; what cannot be shown (a full disk, a gone terminal) is lost."""
    arguments = [_at_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    with unfailing() as output:
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
            print(f"go on with: burgersgd train resume={shown_path(interrupted.folders[0])}", file=sys.stderr)
        return RESUMABLE if interrupted.folders or interrupted.signal != signal.SIGINT else 130
    except KeyboardInterrupt:
        print("burgersgd: interrupted", file=sys.stderr)
        return 130


def _command(arguments: list[str]) -> int:
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
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    command = parser.parse_args(arguments[:1] or ["--help"]).command  # only the first word is argparse's
    return COMMANDS[command](arguments[1:])


def _train(arguments: list[str]) -> int:
    from burgersgd import config as schema
    from burgersgd.interruption import interruptible
    from burgersgd.registry import with_own_classes

    try:
        arguments, named = with_own_classes(schema.GROUPS, _in_order(map(_yaml_infinity, arguments)))
    except ValueError as error:
        return _fail(error)
    schema.register_schemas()
    try:
        flags = _hydra_flags(arguments)
    except ValueError as error:
        return _fail(error)
    if flags.help:
        return _help(arguments)
    with interruptible(exit_at_once=True):
        if any(word.startswith("resume=") for word in flags.overrides):
            flags.overrides = [word for word in flags.overrides if word not in named]
            return _resume(flags)
        return _train_jobs(arguments)


def _train_jobs(arguments: list[str]) -> int:
    from burgersgd import native
    from burgersgd.sweeps.compose import refusing

    job, flags = _Job(), _hydra_flags(arguments)
    for flag in ("config_name", "config_path", "config_dir", "experimental_rerun"):
        if value := getattr(flags, flag):
            error = f"--{flag.replace('_', '-')}={value}: must be left out, the configuration is burgersgd's own"
            return _fail(ValueError(error))
    try:
        if flags.hydra_help:
            arguments = ["--hydra-help"]  # which takes no overrides
        elif flags.cfg or flags.info or flags.shell_completion:  # Hydra prints something and runs nothing
            compose_job(arguments)
        else:
            native.compile_ahead("normals", "mlp_gradient")
            if flags.multirun:
                return _sweep(arguments)
            job.prepare(compose_job(arguments))
        refusing(lambda: _run_hydra(arguments, job))  # flags that do not go together, hydra.run.dir=${nothing}
    except ValueError as error:  # ConfigError, DataError: one line that says what to do
        return _fail(error)
    return job.exit_code


def _resume(flags: argparse.Namespace) -> int:
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
        if flags.multirun:
            raise ConfigError("resume: goes on with one run; a sweep goes on by the command that began it")
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
        )
    except ValueError as error:
        _fail(error)
        if isinstance(error, RunInUseError):
            return RESUMABLE
        return 1 if isinstance(error, RunFolderError) else 2
    print(summary(**_summary_fields(result)), flush=True)
    return 3 if result.state == "diverged" else 0


def _sweep(arguments: list[str]) -> int:
    """Check every job of a sweep, train them, and show how they ended."""
    from burgersgd.interruption import RESUMABLE, Interrupted
    from burgersgd.sweeps.sweep import Sweep, train_job

    words = _hydra_flags(arguments).overrides
    try:
        sweep = Sweep(words)
    except ValueError as error:
        return _fail(error)
    for note in sweep.notes:
        print(f"burgersgd: {note}", file=sys.stderr)
    sweep.take_folder()
    try:
        _run_hydra([*sweep.added, *arguments], train_job, sweep)  # overrides come first (_in_order)
    except Interrupted as interrupted:
        print(sweep.report(), flush=True)
        print(f"burgersgd: interrupted by {interrupted}", file=sys.stderr)
        print(f"go on with: {sweep.command(arguments)}", file=sys.stderr)
        return RESUMABLE
    if sweep.started:
        print(sweep.report(), flush=True)
    if sweep.error is not None:
        _fail(sweep.error)
    return sweep.exit_code


class _Job:
    """What Hydra calls for a single run; it never raises and never exits, but remembers how the run ended."""

    def __init__(self) -> None:
        self.exit_code = 0

    def prepare(self, config: TrainConfig) -> None:
        """Check data, model and budget before anything is written; raises ValueError."""
        from burgersgd.prepare import prepare
        from burgersgd.run import check_output

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
        except ValueError as error:  # what could be checked before was: this went wrong in mid-run
            _fail(error)
            self.exit_code = 1
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
        "guess_error": result.guess_error if result.no_better_than_guessing else None,
        "regime": None if result.regime is None else str(result.regime),
        "advice": result.advice,
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

    from burgersgd.config import CONF_DIR, GROUPS
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
    print(f"  {'experiment=':<12}{', '.join(sorted(path.stem for path in (CONF_DIR / 'experiment').glob('*.yaml')))}")
    print("\nkeys and their values (with the choices given on this command line; conf/ explains each):\n")
    print(OmegaConf.to_yaml(node))
    print("more: https://hydra.cc for the grammar of overrides and of sweeps such as seed=range(3) with --multirun")
    return 0


def _hydra_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return Hydra's flags and the overrides; raises ConfigError for a flag that there is not."""
    from hydra._internal.utils import get_args_parser

    from burgersgd.config import ConfigError

    def refuse(message: str) -> NoReturn:  # instead of a page of usage
        raise ConfigError(f"{message} (burgersgd train --help)")

    parser = get_args_parser()
    parser.error = refuse
    return parser.parse_args(list(arguments))


def _in_order(arguments: Iterable[str]) -> list[str]:
    """Return the overrides, of each key the last one alone, and then the flags with their values.

    Hydra wants the overrides beside one another, and in a sweep would try what is set twice both ways.
    """
    flags: list[str] = []
    last: dict[str, str] = {}
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if key.startswith("-") or not (equals or key.startswith("~")):
            flags.append(argument)
        else:
            last.pop(key, None)  # the order is that of the last ones
            last[key] = argument
    return [*last.values(), *flags]


def _at_home(word: str) -> str:
    """Return an argument with ~ expanded in its value, where no shell does it: KEY=~/data, --output=~/model.pt."""
    key, equals, value = word.partition("=")
    return f"{key}={os.path.expanduser(value)}" if equals and value.startswith("~") else word


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
        print(" ".join(c for c in COMMANDS if len(line) <= 2 and c.startswith(line[-1])))
        return 0
    from burgersgd.config import register_schemas

    register_schemas()
    _run_hydra(arguments, lambda cfg: 0.0)
    return 0


def _fail(error: Exception) -> int:
    print(f"burgersgd: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
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
        if command == "status":
            from burgersgd.sweeps import status

            return status.main(arguments)
        if command == "compare":
            from burgersgd.analysis import command as analysis

            return analysis.main(arguments, _cost_of_runs)
        from burgersgd import revisit

        handlers = {"evaluate": revisit.main_evaluate, "export": revisit.main_export, "rerun": revisit.main_rerun}
        return handlers[command](arguments)
    except ValueError as error:
        return _fail(error)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    **{word: functools.partial(_look, word) for word in ("status", "compare", "evaluate", "export", "rerun")},
    "verify": _verify,
    "traffic": _traffic,
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
