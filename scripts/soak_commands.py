"""Give command lines that nobody would write, thousands of them, and count what is not answered as it should be.

Part of `make soak`. Drawn from a seed, by category: keys and numbers of hundreds of characters, long paths, values
nested hundreds deep, resolvers within resolvers, Hydra's own keys, sweeps, mixes of sensible and senseless overrides,
and the other commands. Each runs in a process of its own, forked from this one, in an empty folder. A command line is
broken if it ends in a traceback, a crash,
or not at all (in two minutes); with an exit code that is not documented; if a
refusal is not one line (behind argparse's usage, of other commands than train),
or longer than a screen has room for, or
leaves anything behind. Prints one Markdown row per category.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import string
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # keys and choices are those of the tests' own

from burgersgd.cli import main as burgersgd
from burgersgd.recording.run_folder import RunFolderError, read_status
from tests.fuzz import CHOICES, KEEPING_IT_SHORT, KEYS

SECONDS = 120
"""After which a command hangs."""
LONGEST = 1_200
"""Characters of an error: a screen has some 2,000."""
TINY = ("dataset.train_size=30", "device.threads=1", "sweep.workers=1", *KEEPING_IT_SHORT)
Words = list[str]


# ------------------------------------------------------------------------------------------------------- categories


def long_text(chosen: random.Random, *sizes: int) -> str:
    """Return text of one of the sizes, or near it."""
    size = chosen.choice(sizes) + chosen.randint(-2, 2)
    return "".join(chosen.choices(chosen.choice(("x", string.ascii_lowercase, "é", "0", "a_b-c")), k=size))


def maybe_sweep(chosen: random.Random, words: Words) -> Words:
    return [*words, *chosen.choice(([], [], ["--multirun", "seed=1,2"], ["--multirun"]))]


def long_keys(chosen: random.Random) -> Words:
    key = long_text(chosen, 250, 255, 260, 300, 1_000, 5_000)
    stem = chosen.choice(("", "optimizer.", "optimizer/", "a.b.", "hydra.", "hydra/", "sweep.", "/", "model@"))
    prefix = chosen.choice(("", "", "+", "++", "~", "-", "--"))
    value = chosen.choice(("=1", "=sgd", "=", "", "={a:1}", "=1,2", f"={key}", f"@{key}=sgd", f"=${{{key}}}"))
    return maybe_sweep(chosen, [f"{prefix}{stem}{key}{value}"])


def long_numbers(chosen: random.Random) -> Words:
    digits = "".join(chosen.choices("0123456789", k=chosen.choice((20, 309, 400, 4_301, 6_000))))
    forms = "{}", "-{}", "{}.5", "0.{}", "1e{}", "1e-{}", "0x{}", "{}_000", "[{}]", "[1,{}]", "{},1", "range({})"
    forms += ("range(1,{},2)", "interval(0,{})", "{{a:{}}}", "int({})", "float({})", "'{}'", "choice({},2)", "1.{}e400")
    key = chosen.choice([*KEYS, "seed", "trainer.budget", "trainer.epochs", "model.width", "optimizer.lr"])
    return maybe_sweep(chosen, [f"{key}={chosen.choice(forms).format('1' + digits)}"])


def long_paths(chosen: random.Random) -> Words:
    name = long_text(chosen, 200, 255, 300, 1_000, 5_000)
    path = chosen.choice((name, f"a/{name}", f"/tmp/{name}/x", "/".join([name[:200]] * 25), "a/" * 3_000, f"../{name}"))
    path = chosen.choice((path, path, f"'{path} \t'", f"'{path}\x00'", f"'{path}\n'", f"'{path}\udcff'", f"~{path}"))
    keys = ("output_root", "run_name", "sweep.name", "hydra.sweep.dir", "dataset.root", "resume", "hydra.run.dir")
    word = f"{chosen.choice(keys)}={path}"
    file = [f"dataset=npz dataset.path={path}".split(" ", 1), [word], [word], [word]]
    return maybe_sweep(chosen, chosen.choice(file))


def deep_values(chosen: random.Random) -> Words:
    n = chosen.choice((20, 100, 400, 1_000, 2_000))
    pairs = (
        ("[", "]"),
        ("{a:", "}"),
        ("choice(", ")"),
        ("[[1],", "]"),
        ("sort(", ")"),
        ("(", ")"),
        ("'", "'"),
        ("{", "}"),
    )
    opening, closing = chosen.choice(pairs)
    value = opening * n + chosen.choice(("1", "", "x", "1,2")) + closing * chosen.choice((n, n, n, n - 1, n + 1, 0))
    key = chosen.choice((*KEYS, "+a", "++a.b", "model.widths", "sweep.params", "hydra.sweeper.params", "optimizer"))
    deep_key = ".".join(["a"] * n)
    return maybe_sweep(
        chosen, [chosen.choice((f"{key}={value}", f"{key}={value}", f"+{deep_key}=1", f"+x={{{key}:{value}}}"))]
    )


def deep_resolvers(chosen: random.Random) -> Words:
    n = chosen.choice((1, 2, 50, 200, 500, 2_000))
    names = ("oc.env:", "oc.decode:", "oc.select:", "seed", "oc.env:HOME,", "hydra:", "nope.", "oc.create:", "", "now:")
    opening = "${" + chosen.choice(names)
    value = opening * n + chosen.choice(("seed", "HOME", "", "1")) + "}" * chosen.choice((n, n, n, n - 1, n + 1))
    key = chosen.choice((*KEYS, "+a", "seed", "output_root", "run_name", "sweep.name", "hydra.sweep.dir", "optimizer"))
    return maybe_sweep(chosen, [f"{key}={chosen.choice((value, repr(value)))}"])


ODD_HYDRA = (
    "hydra.run.dir=/proc/x", "hydra.run.dir=${nope}", "hydra.sweep.dir=${nope}", "hydra.sweep.dir=/proc/x",
    "hydra.sweep.dir=null", "hydra.sweep.dir=''", "hydra.sweep.dir=[1]", "hydra.sweep.dir={a:1}", "hydra.sweep.dir=1",
    "hydra.sweep.dir=.", "hydra.sweep.dir=elsewhere", "hydra.sweep.dir=a/b/c", "hydra.sweep.dir=${hydra.sweep.dir}",
    "hydra.sweep.dir=${now:%Y}", "hydra.sweep.dir=/dev/null", "hydra.sweep.dir=/dev/null/x", "hydra.sweep.dir=???",
    "hydra.sweep.subdir=${nope}", "hydra.sweep.subdir=/proc/x", "hydra.sweep.subdir=null", "hydra/sweeper=basic",
    "hydra.sweep=null", "hydra.sweep={dir:x}", "hydra.run=null", "hydra.job=null", "~hydra.sweep", "~hydra.sweep.dir",
    "~hydra", "hydra=null", "hydra={}", "hydra.launcher=null", "hydra.sweeper=null", "hydra.runtime=null",
    "hydra/sweeper=fleet", "hydra/sweeper=nowhere", "hydra/sweeper=null", "hydra/sweeper=[1]", "~hydra/sweeper",
    "hydra/launcher=fleet", "hydra/launcher=basic", "hydra/launcher=fleet_slurm", "hydra/launcher=nowhere",
    "hydra/launcher=null", "~hydra/launcher", "hydra/launcher=", "hydra.launcher._target_=nowhere.X",
    "hydra.launcher._target_=os.getcwd", "hydra.sweeper._target_=nowhere.X", "hydra.sweeper._target_=os.getcwd",
    "hydra.launcher.nope=1", "+hydra.launcher.nope=1", "hydra.sweeper.nope=1", "+hydra.sweeper.nope=1",
    "hydra.sweeper.params={seed:'1,2'}", "hydra.sweeper.params=1", "hydra.sweeper.max_batch_size=0",
    "hydra.job.name=${nope}", "hydra.job.name=null", "hydra.job.name=1", "hydra.job.chdir=true", "hydra.job.chdir=x",
    "hydra.job.env_set={A:1}", "hydra.job.env_set=1", "hydra.job.env_copy=[A]", "hydra.job.config.override_dirname=1",
    "hydra.job.num=x", "hydra.job.id=${nope}", "hydra.job_logging=null", "hydra.hydra_logging=null",
    "hydra/job_logging=none", "hydra/job_logging=disabled", "hydra/job_logging=nowhere", "hydra/hydra_logging=none",
    "hydra/hydra_logging=nowhere", "hydra.job_logging.version=7", "hydra.job_logging.handlers=1",
    "hydra.job_logging.handlers.file.filename=/proc/x/y", "hydra.hydra_logging.handlers=1", "hydra.verbose=true",
    "hydra.verbose=[1]", "hydra.verbose=nowhere", "hydra.verbose={}", "hydra.output_subdir=null",
    "hydra.output_subdir=${nope}", "hydra.output_subdir=/proc/x", "hydra.mode=MULTIRUN", "hydra.mode=RUN",
    "hydra.mode=wrong", "hydra.mode=null", "hydra.searchpath=1", "hydra.searchpath=[]", "hydra.searchpath=[nowhere]",
    "hydra.searchpath=['file:///proc/x']", "hydra.searchpath=['pkg://nowhere']", "hydra.searchpath=[${nope}]",
    "hydra.searchpath=null", "hydra.callbacks={a:1}", "hydra.callbacks={a:{_target_:nowhere.X}}",
    "+hydra.callbacks.a._target_=nowhere.X", "+hydra.callbacks.a._target_=os.getcwd", "hydra.callbacks=1",
    "hydra.overrides=1", "hydra.overrides.task=[1]", "hydra.overrides.hydra=[x]", "hydra.help=null", "hydra.env=null",
    "hydra.help.template=${nope}", "hydra/env=nowhere", "hydra/help=nowhere", "hydra/output=nowhere", "hydra.nowhere=1",
    "+hydra.nowhere=1", "++hydra.run.dir=x", "hydra.run.dir=1,2", "hydra.sweep.dir=a,b", "hydra/launcher=fleet,basic",
    "hydra.runtime.cwd=/proc/x", "hydra.runtime.output_dir=/proc/x", "hydra.runtime.version=1", "hydra/nope=1",
)  # fmt: skip


def of_hydra(chosen: random.Random) -> Words:
    sweeping: tuple[Words, ...] = (["--multirun", "seed=1,2"], ["--multirun", "seed=1,-2"], ["--multirun"], [])
    own = chosen.sample(ODD_HYDRA, chosen.choice((1, 1, 1, 2)))
    return [*own, *chosen.choice(sweeping)]


def sweeps(chosen: random.Random) -> Words:
    names = (
        "x" * 300,
        "x" * 200,
        "a/b",
        "..",
        ".",
        "/",
        "''",
        "null",
        "[1]",
        "{a:1}",
        "${nope}",
        "${seed}",
        "1",
        ".lock",
    )
    names += ("'a b'", "'a\nb'", "é" * 130, "'${nope}'", "a,b", "~x", "'\x00'", "'\udcff'", "-", "--help", "con")
    values = (
        "1,2",
        "1,-2",
        "1,x",
        "range(3)",
        "range(0)",
        "range(1,10**9)",
        "range(1,1000000)",
        "choice(1)",
        "choice()",
    )
    values += (
        "interval(0,1)",
        "glob(*)",
        "1,1",
        "1,null",
        "sort(2,1)",
        "shuffle(1,2)",
        "tag(a,1,2)",
        ",",
        "1,",
        "[1,2],3",
    )
    settings = (
        "sampler=nope",
        "sampler=optuna",
        "n_samples=0",
        "n_samples=2",
        "n_samples=x",
        "workers=0",
        "workers=-1",
    )
    settings += ("max_runs=0", "max_runs=1", "objective=nope", "code=same", "params={seed:1}", "params={nope:'1,2'}")
    settings += ("params={seed:'interval(1,2)'}", "params={optimizer.lr:'interval(0.1,0.2)'}", "params=1", "params=[1]")
    settings += ("prune=nope", "sampler=random", "sampler=sobol", "seed=x", "nope=1")
    usual = ["seed=1,2", "optimizer.lr=0.1,0.2", "seed=range(1,3)", "optimizer=sgd,adamw", "model.depth=0,1"]
    odd = f"{chosen.choice(('seed', 'optimizer.lr', *KEYS))}={chosen.choice(values)}"
    words = ["--multirun", chosen.choice((*usual, odd, odd, odd, odd, odd))]
    words += [f"sweep.name={chosen.choice((*names, *['s'] * 9))}"] * chosen.choice((0, 0, 1))
    return [*words, *(f"sweep.{word}" for word in chosen.sample(settings, chosen.choice((0, 0, 1, 1, 2))))]


SENSIBLE = ("optimizer=sgd", "optimizer=adamw", "optimizer=local_entropy", "loss=squared_error", "schedule=cosine",
            "dataset=mnist1d", "dataset=two_spirals", "seed=3", "optimizer.lr=0.1", "trainer.precision=float64",
            "output_root=here", "run_name=name", "model.depth=2", "trainer.eval_every=5", "device=cpu")  # fmt: skip
ODD = ("nan", "inf", "-inf", "null", "true", "0", "-0.0", "1e400", "-1", "1e15", "1_000", "0x10",
       "99999999999999999999",
       "[]", "{}", "[1,2]", "{a:1}", "''", "???", "${seed}", "${missing}", "${oc.env:HOME}", "1,2", "range(3)", "a\\,b",
       "..", "/", "\u202e", "", "x", "0.5", "1", "2", "10", "-3.5", "1e-320", "\x00", "'", '"', "\\", "=", "==",
       "${")  # fmt: skip
FLAGS = ("--multirun", "-m", "--dry-run", "--quiet", "-q", "-v", "--foo", "--", "--cfg=job", "--cfg=nope",
         "--info", "-i=a",
         "--config-name=x", "--config-dir=/proc", "--resolve", "--package=optimizer", "--run", "--help", "--hydra-help",
         "--version", "--experimental-rerun=x", "-", "--cfg=hydra", "--cfg=all", "-c=job",
         "--info=plugins")  # fmt: skip


def mixes(chosen: random.Random) -> Words:
    words: Words = []
    for _ in range(chosen.randint(1, 4)):
        key = chosen.choice((*KEYS, "hydra.run.dir", "sweep.name", "sweep.params", "nope", "optimizer.nope", ""))
        odd = f"{chosen.choice(('', '', '', '+', '++', '~'))}{key}{chosen.choice(('=', '=', '=', '', '@a.b='))}"
        odd += chosen.choice((chosen.choice(ODD), chosen.choice(CHOICES)))
        words.append(chosen.choice((odd, odd, odd, chosen.choice(SENSIBLE), chosen.choice(FLAGS))))
    return words


def other_commands(chosen: random.Random) -> Words:
    command = chosen.choice(("evaluate", "export", "rerun", "status", "list", "compare", "help", "completion",
    "traffic",
                             "resume", "", "trian", "__complete", "-h", "verify"))  # fmt: skip
    words = ("nowhere", "/proc", ".", "/dev/null", "x" * 300, "x/" * 3_000, "\x00", "--nope", "--json",
             "--output=/proc/x",
             "--output", "--help", "--check", "-", "", "=", "seed=1", "seed", "optimizer", "--by=nope", "--metric=nope",
             "--csv=/proc/x", "--device=nope", "[" * 500, "${nope}", "é", "\udcff", "--format=nope",
             "bash")  # fmt: skip
    more = chosen.choices(words, k=chosen.choice((0, 1, 1, 2, 3)))
    if command in ("verify", "traffic"):  # which compute for minutes where nothing is wrong
        more = [*more, "--nope"]
    return ["", command, *more]


CATEGORIES: dict[str, tuple[Callable[[random.Random], Words], float]] = {
    "keys of 250 to 5,000 characters": (long_keys, 1),
    "numbers of 20 to 6,000 digits": (long_numbers, 1),
    "paths of 200 to 6,000 characters": (long_paths, 1),
    "values nested 20 to 2,000 deep": (deep_values, 1),
    "resolvers nested 1 to 2,000 deep": (deep_resolvers, 1),
    "Hydra's own keys": (of_hydra, 2),
    "sweeps": (sweeps, 1),
    "mixes of sensible and senseless words": (mixes, 3),
    "other commands": (other_commands, 1),
}
"""How command lines are drawn, and in which proportion. Those that begin with an empty word are not for `train`."""


# --------------------------------------------------------------------------------------------------------- trying one


def arguments_of(words: Words) -> Words:
    """Return the arguments of a drawn line: those of `train` are followed by what keeps a run short."""
    if words[0] == "":
        return words[1:]
    is_huge = [w for w in words if w.startswith(("trainer.budget=", "trainer.epochs=", "model.width="))]
    return ["train", *words, *TINY, *is_huge]


def attempt(arguments: Words) -> dict[str, Any]:
    """Run a command line in this process; return its exit code, what it printed and what it left behind."""
    out, err = io.StringIO(), io.StringIO()
    warnings.simplefilter("error")  # a warning would be a second line
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = burgersgd(arguments)
        except SystemExit as ended:  # argparse and Hydra
            code = 0 if ended.code is None else ended.code
        except BaseException:
            code = "traceback"
            err.write(traceback.format_exc())
    return {"code": code, "out": out.getvalue()[-3_000:], "err": err.getvalue()[-10_000:]}


def in_a_fork(place: Path, arguments: Words) -> dict[str, Any]:
    """Run a command line in a forked process and an empty folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    answer = place.parent / "answer"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            for descriptor in (0, 1, 2):  # what goes past Python is not shown
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
            os.chdir(place)
            answer.write_text(json.dumps(attempt(arguments)))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        ended = os.WTERMSIG(status)
        what = "hangs" if ended == signal.SIGALRM else f"crashed: {signal.Signals(ended).name}"
        return {"code": what, "out": "", "err": ""}
    return json.loads(answer.read_text()) if answer.exists() else {"code": "no answer", "out": "", "err": ""}


def broken(did: dict[str, Any], place: Path) -> str | None:
    """Return what is wrong with how a command line ended."""
    code, lines = did["code"], did["err"].strip().splitlines()
    if code not in (0, 1, 2, 3, 75, 130):
        return f"exit code {code}: {' '.join(lines[-2:])[:300]}"
    if "Traceback" in did["err"] + did["out"]:
        return f"prints a traceback: {lines[-1][:300]}"
    left = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
    if code == 2:
        longest = LONGEST
        if lines and re.match(r"burgersgd \w+: error: ", lines[-1]):  # of argparse, which repeats what was typed
            lines, longest = lines[-1:] if len(lines) < 12 else lines, 3 * 6_000 + LONGEST
        errors = [line for line in lines if "error: " in line]
        if len(lines) != 1 or len(errors) != 1:
            return f"a mistake is {len(lines)} lines, {len(errors)} of them an error: {did['err'][:300]!r}"
        if len(lines[0]) > longest:
            return f"the error has {len(lines[0]):,} characters"
        return f"refused, and left {left[:3]}" if left else None
    lines = [line for line in lines if not re.search(r"runs +\d+%|/s", line)]  # how far it is
    if len(lines) > 10:
        return f"prints {len(lines)} lines of errors: {did['err'][:300]!r}"
    states = Counter[str]()
    for status in place.rglob("status.json"):
        try:
            states[read_status(status.parent)["state"]] += 1
        except RunFolderError as error:
            return str(error)
    if unfinished := set(states) - {"completed", "diverged", "pruned"}:
        return f"exit code {code}, and runs are {sorted(unfinished)}: {did['err'][:300]!r}"
    return None if code in (0, 3) or states else f"exit code {code} without a run: {did['err'][:300]!r}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only categories whose names contain this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started, n_broken, n_tried = time.monotonic(), 0, 0
    share = options.lines / sum(weight for _, weight in CATEGORIES.values())
    here = Path.cwd()
    print("| command lines | tried | refused | broken |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="commands-") as name:
        place = Path(name).resolve() / "place"
        place.mkdir()
        os.chdir(place)
        for words in (["optimizer=sgd"], ["--multirun", "seed=1,2"]):  # what they import is there in every fork
            did = attempt(["train", *words, *TINY])
            assert did["code"] == 0, did
        os.chdir(here)
        for category, (draw, weight) in CATEGORIES.items():
            if options.only not in category:
                continue
            chosen = random.Random(f"{category} {options.seed}")
            findings, codes, n = 0, Counter[Any](), round(share * weight)
            for _ in range(n):
                arguments = arguments_of(draw(chosen))
                did = in_a_fork(place, arguments)
                codes[did["code"]] += 1
                if reason := broken(did, place):
                    findings += 1
                    shown = [word if len(word) < 80 else f"{word[:40]}...({len(word)})" for word in arguments]
                    print(f"{category}, {shown}: {reason}".encode(errors="backslashreplace").decode(), file=sys.stderr)
                    sys.stderr.flush()
            print(f"| {category} | {n:,} | {codes[2]:,} | {findings} |", flush=True)
            n_broken, n_tried = n_broken + findings, n_tried + n
    minutes = (time.monotonic() - started) / 60
    print(f"\n{n_tried:,} command lines, {n_broken} broken; seed {options.seed}; {minutes:.0f} minutes")
    sys.exit(bool(n_broken))


if __name__ == "__main__":
    main()
