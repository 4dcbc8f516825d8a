"""Help pages, shell completion, dry runs, and the wording of suggestions."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from burgersgd import cli, help
from burgersgd.cli import main
from burgersgd.completion import SCRIPTS, candidates
from burgersgd.config import GROUPS, ConfigError
from burgersgd.help import help_on, train_help
from burgersgd.keys import all_keys, choice_of, with_whole_numbers
from burgersgd.recording.run_folder import read_status
from burgersgd.schema import fields_of
from burgersgd.theory.verify_rows import CHECKS

COMMANDS = list(cli.COMMANDS)
SHORT = ["trainer.budget=40", "model.width=8", "trainer.compile=off"]


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g, names in GROUPS.items() for c in names.shipped])
def test_help_knows_the_keys_and_choices_that_the_classes_have(group: str, choice: str) -> None:
    """It reads conf/ and not the classes: both must say the same."""
    _, keys = choice_of(group, choice)
    fields = {f"{group}.{name}": f for name, f in fields_of(GROUPS[group][choice]).items() if "names" not in f.metadata}
    assert [key.name for key in keys] == [*fields]
    for key in keys:
        f = fields[key.name]
        assert key.meaning.startswith(f.metadata["meaning"])
        if f.metadata.get("choices"):
            assert key.values == list(f.metadata["choices"])


def test_every_key_is_explained_with_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "118")
    page = " ".join(train_help(["optimizer=adamw,paper_literal", "optimizer.lr=0.25", "seed=7"]).split())
    assert re.search(
        r"optimizer.lr=0.25 learning rate: step size of one gradient evaluation; .* \(default, auto, float > 0\)", page
    )
    assert (
        "seed=7 seed of the initialisation, the order of examples, the noise and the dropout masks (int >= 0)" in page
    )
    assert "optimizer.beta2=0.999 decay rate of the running mean of the squared gradients (float >= 0 and < 1)" in page
    assert "optimizer.noise=double" in page
    assert (
        "trainer.budget=null number of gradient evaluations, rounded down to complete cycles; "
        "null: that of trainer.epochs (int >= 1, or null)" in page
    )
    for bad in ("optimizer=none", "optimizer.gamma=1", "nope=1"):
        with pytest.raises(ConfigError, match=r"must be one of|no such key"):
            train_help(["optimizer=sgd", bad])


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_help_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for page in (train_help([]), help_on("lr"), help_on("optimizer")):
        wide = [line for line in page.splitlines() if len(line) > columns]
        assert all(line.startswith(("usage:", "  burgersgd", "       burgersgd", "burgersgd help")) for line in wide), (
            wide
        )


def test_help_on_one_word() -> None:
    shown = " ".join(help_on("optimizer.gamma").split())
    assert (
        "optimizer.gamma=10.0 time of the PDE: y is pulled towards x by a spring, (y - x) / gamma; .inf: no spring ("
        in shown
    )
    assert "with optimizer=paper_literal, optimizer=paper_sde" in shown
    assert "optimizer.gamma=1.0" in help_on("gamma")
    assert "optimizer.beta1=0.9" in help_on("optimizer=adamw")
    assert "Mini-batch SGD (2.12)." in help_on("optimizer")
    with pytest.raises(ConfigError, match=r"^optimizer\.gama: no such key; did you mean optimizer\.gamma\?"):
        help_on("optimizer.gama")


def test_commands_are_explained_and_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "seed"]) == 0
    assert "int >= 0" in capsys.readouterr().out
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.strip().endswith("did you mean train?")
    assert main(["optimizer=sgd", "seed=3"]) == 2
    assert "did you mean burgersgd train optimizer=sgd seed=3?" in capsys.readouterr().err
    assert main(["completion", "tcsh"]) == 2
    assert "completion tcsh: must be one of bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_examples_are_quoted_as_a_shell_needs_it() -> None:
    examples = [line.strip() for line in (help.EXAMPLES + help.EPILOG).splitlines() if line.startswith("  burgersgd")]
    commands = [re.split(r"   +", line)[0] for line in examples]
    assert len(commands) > 10
    script = "burgersgd() { printf '%s\\n' \"$@\"; }\n" + "\n".join(commands)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [word for command in commands for word in shlex.split(command)[1:]]


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert help.colour("x", "31", Terminal()) == "\x1b[31mx\x1b[0m"
    assert help.colour("x", "31", io.StringIO()) == "x"
    summary = "  DIVERGED    at 2\n  jobs        2\n  failed      seed=1: diverged here\n  failure     none"
    assert help.with_failures_in_red(summary) == summary
    with contextlib.redirect_stdout(Terminal()):
        red = help.with_failures_in_red(summary)
    assert red == summary.replace("DIVERGED", "\x1b[31;1mDIVERGED\x1b[0m").replace("failed", "\x1b[31;1mfailed\x1b[0m")
    monkeypatch.setenv("TERM", "dumb")
    assert help.colour("x", "31", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert help.colour("x", "31", Terminal()) == "x"


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("trainer.budget=1e4", "trainer.budget=10000"),
        ("trainer.budget=1e2,2.5E+3", "trainer.budget=100,2500"),
        ("seed=range(1e1)", "seed=range(10)"),
        ("trainer.budget=1.5e0", "trainer.budget=1.5e0"),  # not whole: an error later
        ("trainer.budget=1e20", "trainer.budget=1e20"),
        ("optimizer.lr=1e1", "optimizer.lr=1e1"),  # no key of whole numbers
        ("run_name=1e4", "run_name=1e4"),
        ("nowhere=1e4", "nowhere=1e4"),
        ("trainer.budget=null", "trainer.budget=null"),
    ],
)
def test_whole_numbers_may_have_exponents_where_that_is_exact(word: str, written: str) -> None:
    assert with_whole_numbers(word) == written


# --------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", ["train", "traffic"]),
        ("train optimizer=pap", ["optimizer=paper_literal", "optimizer=paper_sde"]),
        ("train optimizer=sgd,ad", ["optimizer=sgd,adamw"]),
        ("train optimizer=sgd optimizer.n", ["optimizer.nesterov="]),
        ("train optimizer=sgd optimizer.nesterov=", ["optimizer.nesterov=true", "optimizer.nesterov=false"]),
        ("train --dr", ["--dry-run"]),
        ("train resume=outputs/o", ["resume=outputs/one"]),
        ("train sweep.name=f", ["sweep.name=first"]),
        ("evaluate outputs/multirun", ["outputs/multirun/first/abc"]),
        ("export --o", ["--output"]),
        ("status ", ["first"]),
        ("traffic scenario=red", ["scenario=red_light"]),
        ("traffic anim", ["animate="]),
        ("completion f", ["fish"]),
        ("help trainer.drop", ["trainer.drop_last"]),
        ("verify ", None),
        ("train optimizer=none optimizer.burn", ["optimizer.burn_in="]),
    ],
)
def test_completion(line: str, expected: list[str] | None, tmp_path: Path) -> None:
    for folder in ("one", "multirun/first/abc"):
        (tmp_path / "outputs" / folder).mkdir(parents=True)
        (tmp_path / "outputs" / folder / "status.json").touch()
    (tmp_path / "outputs" / "multirun" / "first" / "jobs.jsonl").touch()
    found = candidates(line.split(" "), COMMANDS)
    if expected is None:  # read from the source, which must give what importing it registers
        import burgersgd.theory.verify  # noqa: F401

        groups = {name.partition(".")[0] for name in CHECKS}
        assert set(found) == {*CHECKS, *groups}
    else:
        assert found == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_what_follows_the_last_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "burgersgd").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m burgersgd "$@"\n')
    (tmp_path / "burgersgd").chmod(0o755)
    ask = 'COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDBREAKS=" =:"; _burgersgd; printf "%s\\n" "${COMPREPLY[@]}"'
    script = f"{SCRIPTS['bash']}\n{ask}"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-c", script, "bash", "burgersgd train optimizer=sgd schedule=co"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PATH": path})
    assert done.stdout.split() == ["constant", "cosine"]


def test_neither_help_nor_completion_imports_torch() -> None:
    code = (
        "import sys; from burgersgd.cli import main\n"
        "assert main(['train', 'optimizer=sgd', '--help']) == main(['help', 'lr']) == 0\n"
        "assert main(['__complete', 'verify', '']) == main(['__complete', 'train', 'optimizer.']) == 0\n"
        "assert main(['train', 'optimizer.gama=1', '--help']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ----------------------------------------------------------------------------------------- dry runs, quiet, verbose


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--dry-run", *SHORT]) == 0
    assert re.search(
        r"gradient evaluations +40, of 32 examples each\n +engine +eager, cpu\n +time +about ", capsys.readouterr().out
    )
    sweep = ["train", "-m", *SHORT, "optimizer=sgd,adamw", "seed=1,2,3"]
    assert main([*sweep, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"jobs +6\n +fleets +2, of 3 runs\n +gradient evaluations +240 in all\n", shown)
    assert [*tmp_path.iterdir()] == []


def test_a_dry_run_of_a_named_sweep_counts_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["train", "-m", "-q", *SHORT, "optimizer=sgd", "sweep.name=s"]
    assert main([*sweep, "seed=1,2"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "2 completed" in captured.out
    assert main([*sweep, "seed=1,2,3,4,5", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"jobs +5, 2 of them already trained\n +fleets +1, of 3 runs\n +gradient evaluations +120 in all", shown
    )
    assert main([*sweep, "seed=1,2", "--dry-run"]) == 0
    assert re.search(r"fleets +none", capsys.readouterr().out)


def test_a_dry_run_of_a_search_shows_the_largest_budget_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    search = ["sweep.sampler=optuna", "sweep.n_samples=12", "sweep.batch=3", "trainer.budget=int(interval(20,70))"]
    assert main(["train", "-m", "optimizer=sgd", "model.width=8", "trainer.compile=off", *search, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"trials +12, 3 together, one run for each seed\n +gradient evaluations +at most 70 a run", shown)
    assert [*tmp_path.iterdir()] == []


def test_quiet_runs_show_the_summary_alone_and_verbose_ones_what_was_chosen(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.NOTSET, "burgersgd")  # restored at the end, which the command does not
    assert main(["train", "-q", *SHORT, "trainer.budget=6e1", "run_name=a"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "test error" in captured.out
    assert read_status(tmp_path / "outputs" / "a")["evaluations"] == 60
    assert main(["train", "--verbose", *SHORT, "run_name=b"]) == 0
    shown = "\n".join(caplog.messages)
    for line in (
        r"^digits: 1,079 train, 359 validation, 359 test examples; 682 parameters$",
        r"^engine eager on cpu, threads: 1$",
        r"^runs trained together: 1; 0 of 40 gradient evaluations done; metrics every 1, validation every 1$",
        r"^checkpoint at 40 gradient evaluations$",
    ):
        assert re.search(line, shown, re.MULTILINE), line
    assert main(["train", "-v", "--multirun", *SHORT, "seed=4,5", "sweep.name=c"]) == 0
    assert "jobs: 2; fleets: 1; processes: 1" in capsys.readouterr().err + "\n".join(caplog.messages)


def test_all_keys_have_ranges() -> None:
    for name, key in all_keys().items():
        assert key.allowed, name
