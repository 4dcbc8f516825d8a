"""Shell completion: `burgersgd completion SHELL` prints a script, which asks `burgersgd __complete WORD ...`.

The last word is the one to be completed. The answers are complete words, one per line; a word that ends in = is to be
continued. Neither torch nor settings of other packages are imported, unless their names are among the words.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from burgersgd.config import GROUPS
from burgersgd.help import FLAGS, known_words
from burgersgd.keys import Key, choices_in, experiments, keys_of
from burgersgd.schema import ConfigError

BASH = """\
_burgersgd() {
    local line="${COMP_LINE:0:$COMP_POINT}" words word
    read -r -a words <<< "$line"
    [[ "$line" == *[[:space:]] ]] && words+=("")
    word="${words[-1]}"
    local IFS=$'\\n'
    COMPREPLY=($(burgersgd __complete "${words[@]:1}" 2>/dev/null))
    # Where = and : break words, the shell completes what follows the last of them alone.
    local begun=""
    [[ "$COMP_WORDBREAKS" == *=* ]] && begun="${word%"${word##*[=:]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$begun"}")
}
complete -o nospace -o default -F _burgersgd burgersgd
"""
ZSH = """\
_burgersgd() {
    local -a found
    found=(${(f)"$(burgersgd __complete "${(@)words[2,$CURRENT]}" 2>/dev/null)"})
    compadd -Q -S '' -- $found
}
compdef _burgersgd burgersgd
"""
FISH = """\
function __burgersgd
    set -l words (commandline -opc) (commandline -ct)
    burgersgd __complete $words[2..-1] 2>/dev/null
end
complete -c burgersgd -f -a '(__burgersgd)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
INSTALLATION = """\
Print the script that completes commands, keys and values. Add to the start-up file of the shell:
  bash  eval "$(burgersgd completion bash)"
  zsh   eval "$(burgersgd completion zsh)"
  fish  burgersgd completion fish | source"""

OPTIONS = {
    "list": ["--where", "--state", "--json", "--help"],
    "status": ["--jobs", "--json", "--help"],
    "evaluate": ["--point", "--help"],
    "export": ["--point", "--output", "--help"],
    "rerun": ["--check", "--help"],
    "verify": ["--list", "--plots", "--no-plots", "--output", "--help"],
}


def main(arguments: Sequence[str]) -> int:
    """Run `burgersgd completion SHELL`: print the script for that shell. Raises ConfigError for an unknown shell."""
    shell = arguments[0] if arguments else "--help"
    if shell in ("-h", "--help"):
        print(f"usage: burgersgd completion {'|'.join(SCRIPTS)}\n\n{INSTALLATION}")
        return 0
    if shell not in SCRIPTS:
        raise ConfigError(f"completion {shell}: must be one of {', '.join(SCRIPTS)}")
    print(SCRIPTS[shell], end="")
    return 0


def candidates(words: Sequence[str], commands: Sequence[str]) -> list[str]:
    """Return the possible completions of the last of the words after `burgersgd`."""
    word = words[-1] if words else ""
    first = [*commands, "--help", "--version"]
    found = first if len(words) < 2 else _candidates_after(words[0], words[1:-1], word, commands)
    return [candidate for candidate in found if candidate.startswith(word)]


def _candidates_after(command: str, before: Sequence[str], word: str, commands: Sequence[str]) -> list[str]:
    if command == "train":
        return _train(before, word)
    if command == "traffic":
        return _traffic(word)
    if word.startswith("-"):
        return OPTIONS.get(command, ["--help"])
    match command:
        case "list" | "status" | "compare":
            return _sweeps()
        case "evaluate" | "export" | "rerun":
            return _runs()
        case "verify":
            return _checks()
        case "completion":
            return [*SCRIPTS]
        case "help":
            return [*commands, *known_words()]
        case _:
            return []


def _train(before: Sequence[str], word: str) -> list[str]:
    if word.startswith("-"):
        return sorted({flag.split()[0] for flags in FLAGS for flag in flags.split(", ") if flag.startswith("--")})
    key, equals, value = word.partition("=")
    if not equals:
        return [f"{name}=" for name in [*GROUPS, "experiment", *(k.name for k in _keys(before)), "resume"]]
    typed = value.rpartition(",")[0]
    prefix = f"{key}={typed}{',' * bool(typed)}"
    if key in GROUPS:
        return [prefix + name for name in GROUPS[key].names()]
    if key == "experiment":
        return [f"experiment={name}" for name in experiments()]
    if key == "resume":
        return [f"resume={run}" for run in _runs()]
    if key == "sweep.name":
        return [f"sweep.name={name}" for name in _sweeps()]
    return [prefix + v for k in _keys(before) if k.name == key for v in k.values]


def _keys(words: Sequence[str]) -> list[Key]:
    with contextlib.suppress(ConfigError):
        return keys_of(choices_in(words))
    return keys_of({})


def _traffic(word: str) -> list[str]:
    from burgersgd.schema import fields_of
    from burgersgd.theory.traffic_command import TrafficConfig

    key, equals, _ = word.partition("=")
    choices = {name: list(f.metadata.get("choices") or []) for name, f in fields_of(TrafficConfig).items()}
    return [f"{key}={value}" for value in choices.get(key, [])] if equals else [*(f"{k}=" for k in choices), "--help"]


def _checks() -> list[str]:
    """Return the groups and the checks of verify, read from its source because importing it would import torch."""
    found = []
    for path in sorted(Path(__file__).parent.joinpath("theory").glob("verify_*.py")):
        found += re.findall(r'^@check\("(\w+)"\)\ndef (\w+)', path.read_text(encoding="utf-8"), re.M)
    return [*dict.fromkeys(group for group, _ in found), *(f"{group}.{name}" for group, name in found)]


def _runs() -> list[str]:
    """Return the run folders below outputs, including those of sweeps."""
    folders = [*Path("outputs").glob("*/status.json"), *Path("outputs", "multirun").glob("*/*/status.json")]
    return sorted(folder.parent.as_posix() for folder in folders)


def _sweeps() -> list[str]:
    """Return the names of the sweeps below outputs/multirun."""
    return sorted(folder.parent.name for folder in Path("outputs", "multirun").glob("*/jobs.jsonl"))
