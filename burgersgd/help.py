"""The output of `burgersgd train --help` and `burgersgd help WORD`: keys with meanings and ranges."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from burgersgd.config import GROUPS
from burgersgd.keys import DEFAULTS, Key, all_keys, choice_of, choices_in, experiments, keys_of, no_such_key, top_keys
from burgersgd.schema import ConfigError

COLUMN = 34
"""Column at which meanings begin on a wide terminal."""

EPILOG = """\
examples:
  burgersgd train                                      train the paper's optimizer on scikit-learn's digits
  burgersgd train optimizer=sgd optimizer.lr=0.05      a baseline with the same number of gradient evaluations
  burgersgd train --multirun optimizer.nu=1e-7,1e-6,1e-5 'seed=range(3)'
  burgersgd train --help                               explain all groups and keys
  burgersgd help optimizer.gamma                       explain one key
  burgersgd train resume=RUN                           resume a run that was stopped
  burgersgd list                                       list the runs in outputs, the newest first
  burgersgd status                                     states of the latest runs and sweeps; NAME: of one
  burgersgd compare SWEEP --by optimizer.name          means, intervals and paired differences
  burgersgd study small --quick                        tune optimizers at equal budgets, test and report
  burgersgd bench my_package:MyConfig --quick          compare an optimizer of your own with the shipped ones
  burgersgd evaluate RUN                               repeat the final evaluation of a run
  burgersgd export RUN                                 write a predictor of raw inputs to a file
  burgersgd rerun RUN --check                          repeat a run and compare it bit by bit
  burgersgd verify                                     check the paper's equations one by one
  burgersgd traffic scenario=red_light nu=0.02         simulate the traffic model behind the optimizer
  tensorboard --logdir outputs                         show the curves
"""
TRAIN = """\
usage: burgersgd train [GROUP=CHOICE ...] [KEY=VALUE ...] [flags]
       burgersgd train --multirun [KEY=VALUE,VALUE ...] ...
       burgersgd train resume=RUN [trainer.budget=N] [output_root=FOLDER] [run_name=NAME]
"""
FLAGS = {
    "--multirun, -m": "run a sweep over lists and ranges of values, see the group sweep",
    "--dry-run": "check everything, print what would be trained and about how long it would take; train nothing",
    "--quiet, -q": "show no progress",
    "--verbose, -v": "print the chosen engine, device and other details",
    "--cfg job": "print the composed configuration and stop",
    "--help, -h": "show this page, for the choices and values on the command line",
    "--hydra-help": "show the options of Hydra, which composes the configuration",
}
EXAMPLES = """\
examples, quoted for the shell:
  burgersgd train optimizer=sgd optimizer.lr=0.05 model.depth=3 trainer.budget=1e4
  burgersgd train --multirun optimizer.nu=0,1e-7,1e-6 'seed=range(5)' sweep.name=first
  burgersgd train --multirun sweep=tuning 'optimizer.gamma=tag(log, interval(1, 100))' --dry-run
"""


def colour(text: str, code: str, stream: TextIO | None = None) -> str:
    """Return the text in a colour (or bold: 1) if the stream is a terminal with colours and NO_COLOR is not set."""
    stream = sys.stdout if stream is None else stream
    assert stream is not None
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def with_failures_in_red(text: str) -> str:
    """Return a summary for standard output with its labels of what went wrong in red, as far as `colour` allows."""
    labels = re.compile("^  (diverged|not learnt|failed)(?= )", re.MULTILINE | re.IGNORECASE)
    return labels.sub(lambda found: f"  {colour(found[1], '31;1')}", text)


def train_help(words: Sequence[str]) -> str:
    """Return the help page of `burgersgd train` for the choices and values among the words. Raises ConfigError."""
    chosen = choices_in(words)
    pairs = [word.partition("=") for word in words]
    given = {name: value for name, _, value in pairs if name not in GROUPS}
    known = {key.name for key in keys_of(chosen)}
    for name in given:
        bare = name.lstrip("+~")
        if bare == "experiment" and given[name] in experiments():
            continue
        if bare not in known and not bare.startswith(("hydra.", "hydra/")):
            raise ConfigError(no_such_key(bare))
    lines = [TRAIN, _table(FLAGS.items()), "", EXAMPLES, colour("groups", "1")]
    lines.append(_table((f"{g}=", ", ".join(sorted(n.names()))) for g, n in GROUPS.items() if len(n.shipped) > 1))
    lines.append(_table([("experiment=", ", ".join(experiments()))]))
    lines += ["", colour("keys", "1") + " (see burgersgd help KEY)", _keys(top_keys(), given)]
    for group in GROUPS:
        for choice in chosen.get(group) or [DEFAULTS[group]]:
            summary, keys = choice_of(group, choice)
            title = f"{group}={choice}" if len(GROUPS[group].shipped) > 1 else group
            block = [_wrapped(colour(title, "1") + (f": {summary}" if summary else ""), 4), _keys(keys, given)]
            lines += ["", *(part for part in block if part)]
    lines += [
        "",
        _wrapped("more: https://hydra.cc for the grammar of overrides; CONTRIBUTING.md for classes of your own", 4),
    ]
    return "\n".join(lines)


def help_on(word: str) -> str:
    """Return the help on a key (or its last part), a group or a choice. Raises ConfigError for any other word."""
    group, _, choice = word.partition("=")
    if group in GROUPS and choice:
        summary, keys = choice_of(group, choice)
        return "\n".join([f"{colour(word, '1')}: {summary}", _keys(keys, {})])
    if group in GROUPS:
        entries = ((f"{group}={name}", choice_of(group, name)[0]) for name in GROUPS[group].names())
        return "\n".join([_table(entries), "", f"burgersgd help {group}={DEFAULTS[group]} explains its keys"])
    found: dict[tuple[str, str], list[str]] = {}
    every = {"": top_keys()} | {f"{g}={c}": choice_of(g, c)[1] for g, names in GROUPS.items() for c in names.names()}
    for where, keys in every.items():
        for key in keys:
            if group in (key.name, key.name.partition(".")[2]):
                found.setdefault((f"{key.name}={key.default}", key.meaning), []).append(where)
    if not found:
        raise ConfigError(no_such_key(group))
    blocks = []
    for (shown, meaning), choices in found.items():
        blocks.append(_wrapped(f"{colour(shown, '1')}  {meaning}", 4))
        names = [c for c in choices if c and len(GROUPS[c.partition("=")[0]].shipped) > 1]
        if names:
            blocks.append(_wrapped(f"    with {', '.join(names)}", 9))
    return "\n".join(blocks)


def _keys(keys: Sequence[Key], given: dict[str, str]) -> str:
    return _table((f"{key.name}={given.get(key.name, key.default)}", key.meaning) for key in keys)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    """Return two columns, the second one wrapped; on a narrow terminal the second one is below the first."""
    width = _width()
    lines = []
    for left, right in rows:
        if width < 72 or len(left) > COLUMN - 4:
            lines += [f"  {left}", *textwrap.wrap(right, width - 6, initial_indent=6 * " ", subsequent_indent=6 * " ")]
            continue
        wrapped = textwrap.wrap(right, max(20, width - COLUMN)) or [""]
        lines.append(f"  {left:<{COLUMN - 2}}{wrapped[0]}".rstrip())
        lines += [COLUMN * " " + line for line in wrapped[1:]]
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> str:
    return textwrap.fill(text, _width(), subsequent_indent=indent * " ", break_long_words=False)


def _width() -> int:
    return max(40, min(118, shutil.get_terminal_size((100, 24)).columns))


def known_words() -> list[str]:
    """Return the words that `burgersgd help` accepts besides the names of commands."""
    return [*GROUPS, *all_keys()]
