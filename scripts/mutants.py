"""Change one place of the package at a time and see which tests notice: a fixed, seeded sample of 400 changes.

    python scripts/mutants.py --work build/mutants            # goes on where it stopped; results.jsonl, one line each
    python scripts/mutants.py --work build/mutants --again    # after new tests: those that survived, once more
    python scripts/mutants.py --work build/mutants --report   # how many survived, which, and the exact interval
    python scripts/mutants.py --work build/fresh --seed 2 --first 60 --by-file    # another sample, by a shorter way

Left out of CI, since it takes hours of processor time. Mutants are drawn uniformly from all places in FOLDERS where an
operator applies: comparisons, arithmetic, number and truth constants, and/or, negated conditions, a value returned, a
statement removed. Docstrings, types, messages and asserts are no places. First the suite is run once and coverage.py
notes which tests execute which lines, and how long they take. Each mutant is tried in a copy of the repository, in a
fork of this process, which has imported what the tests need but for the package itself: first by the tests of its own
module (FIRST) that execute its line, then by all others that do, the quickest first, up to a limit of seconds, and by
those of its own module that execute it in another process, if they do. Lines that run at import only are tried by the
files of FIRST, then of THEN; so are all lines with --by-file, which spares the run of the suite. Limits are of
processor time, so that a busy machine kills no mutant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import coverage

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("optimizers", "training", "datasets", "sweeps", "recording", "recorder.py", "run_record.py", "ends.py")
SEED, SAMPLE = 20261127, 400
SECONDS, LONGEST = (300, 1_500), 3_600
"""Of processor time, by stage, and of the clock, after which a mutant runs forever."""
TESTS_SECONDS = 60.0
"""Tests of other modules are tried until those before them take so long where nothing is changed."""
NOT_TRIED = 97
EQUIVALENT = "equivalent: "
"""How the end of a mutant begins that nobody can notice; the argument follows. Such lines are written by hand."""
IMPORTS = (
    "torch",
    "torch._dynamo",
    "torch.func",
    "torchvision",
    "hydra.main",
    "numpy",
    "scipy.stats",
    "scipy.optimize",
)
IMPORTS = (*IMPORTS, "msgspec", "tqdm.auto", "yaml", "pytest", "hypothesis")

FIRST = {
    "datasets/dataset.py": "datasets/test_preprocess.py datasets/test_batches.py",
    "optimizers/adam.py": "optimizers/test_adamw.py",
    "optimizers/asam.py": "optimizers/test_sam.py",
    "optimizers/local_entropy.py": "optimizers/test_local_entropy.py optimizers/test_momentum_temperature.py "
    "optimizers/test_golden.py",
    "optimizers/momentum.py": "optimizers/test_sgd.py optimizers/test_sam.py",
    "optimizers/protocol.py": "optimizers/test_budget.py optimizers/test_sgd.py contract/test_contract.py",
    "recording/checkpoints.py": "recording/test_run_folder.py test_resume.py",
    "recording/files.py": "recording/test_run_folder.py",
    "recording/metrics_file.py": "recording/test_run_folder.py recording/test_rows.py",
    "recording/mlflow_sink.py": "recording/test_sinks.py",
    "recording/new_folders.py": "recording/test_run_folder.py test_double_starts.py",
    "recording/output.py": "test_output.py recording/test_progress.py",
    "recording/reading.py": "recording/test_run_folder.py test_resume.py recording/test_edited_folders.py",
    "recording/run_log.py": "recording/test_run_folder.py test_resume.py",
    "recording/schema.py": "recording/test_run_folder.py recording/test_edited_folders.py",
    "sweeps/chunks.py": "sweeps/test_sweep.py",
    "sweeps/dry_run.py": "test_help.py test_cli.py",
    "sweeps/launcher.py": "sweeps/test_sweep.py",
    "sweeps/planning.py": "sweeps/test_workers.py sweeps/test_speeds.py sweeps/test_sweep.py",
    "sweeps/plans.py": "sweeps/test_sweep.py sweeps/test_compose.py",
    "sweeps/space.py": "sweeps/test_space.py sweeps/test_spaces.py",
    "sweeps/summary.py": "sweeps/test_sweep.py sweeps/test_report.py",
    "sweeps/sweep.py": "sweeps/test_sweep.py sweeps/test_search.py sweeps/test_spaces.py",
    "sweeps/sweep_folder.py": "sweeps/test_sweep.py sweeps/test_resumable.py",
    "sweeps/status_command.py": "sweeps/test_status.py",
    "recorder.py": "test_run.py test_resume.py test_interruption.py",
    "run_record.py": "test_resume.py recording/test_run_folder.py",
    "ends.py": "test_run.py test_resume.py",
    "training/best.py": "test_run.py",
    "training/engines/__init__.py": "training/test_engines.py",
    "training/engines/compiled.py": "training/test_graphs.py",
    "training/engines/eager.py": "training/test_engines.py training/test_fleet.py",
    "training/engines/native.py": "training/test_native_steps.py",
    "training/engines/codegen.py": "training/test_codegen.py",
    "training/engines/tracing.py": "training/test_codegen.py training/test_persistent.py",
    "training/gradients.py": "training/test_engines.py training/test_fleet.py",
    "training/inputs.py": "training/test_fleet.py training/test_engines.py",
    "training/fleet.py": "training/test_fleet.py test_run.py",
    "training/replicas.py": "contract/test_contract.py",
    "training/rule_check.py": "contract/test_nasty_rules.py contract/test_contract.py",
    "training/state.py": "training/test_fleet.py",
}
"""Tests of a module, where they are not in tests/.../test_MODULE.py."""
NOT_FOR_MUTANTS = ("test_docs.py", "test_packaging.py", "test_types.py")
"""These install packages, check types or follow the documents: they would repeat what others test."""
THEN = {
    "datasets": "test_config.py datasets test_run.py test_predictor.py",
    "optimizers": "test_config.py optimizers contract/test_contract.py training/test_fleet.py test_run.py "
    "training/test_stability.py",
    "recording": "recording test_run.py test_resume.py test_cli.py test_output.py sweeps/test_status.py",
    "sweeps": "sweeps test_cli.py test_help.py",
    "recorder.py": "sweeps/test_sweep.py test_own_modules.py test_device.py test_trouble.py test_state_machine.py "
    "test_revisit.py training/test_fleet.py",
    "training": "test_config.py training contract/test_contract.py test_run.py test_resume.py test_own_modules.py "
    "test_device.py",
}


class Mutant(NamedTuple):
    """A place, and what comes in its stead."""

    path: str
    line: int
    start: int  # characters of the file, of the text that is replaced
    stop: int
    operator: str
    text: str

    @property
    def name(self) -> str:
        """What its result is stored under."""
        return f"{self.path}:{self.line}:{self.start}:{self.operator}:{self.text}"


COMPARISONS = {"Lt": ast.LtE, "LtE": ast.Lt, "Gt": ast.GtE, "GtE": ast.Gt, "Eq": ast.NotEq, "NotEq": ast.Eq}
COMPARISONS |= {"In": ast.NotIn, "NotIn": ast.In, "Is": ast.IsNot, "IsNot": ast.Is}
ARITHMETIC = {"Add": ast.Sub, "Sub": ast.Add, "Mult": ast.Div, "Div": ast.Mult, "FloorDiv": ast.Mult, "Mod": ast.Mult}
ARITHMETIC |= {"Pow": ast.Mult, "BitOr": ast.BitAnd, "BitAnd": ast.BitOr}


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Yield every mutation of a node: its operator, what is replaced (the node or a child of it), and by what."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            other = copy.deepcopy(node)
            other.ops[i] = COMPARISONS[type(operator).__name__]()
            yield "comparison", node, other
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op).__name__ in ARITHMETIC and not _is_text(node):
        other = copy.deepcopy(node)
        other.op = ARITHMETIC[type(node.op).__name__]()
        yield "arithmetic", node, other
    if isinstance(node, ast.BoolOp):
        other = copy.deepcopy(node)
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", node, other
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "sign or not", node, node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", node, ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", node, ast.Constant(node.value + 1)
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "negated condition", node.test, ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield "negated condition", test, ast.UnaryOp(ast.Not(), test)
    if isinstance(node, ast.Return) and node.value is not None and not _is_constant(node.value, None):
        yield "return None", node, ast.Return(ast.Constant(None))
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr) and not _is_constant(getattr(node, "value", None), str):
        yield "removed statement", node, ast.Pass()


def _is_constant(node: ast.AST | None, kind: type | None) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None if kind is None else isinstance(node.value, kind))


def _is_text(node: ast.BinOp | ast.AugAssign) -> bool:
    parts = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    return any(isinstance(part, ast.JoinedStr) or _is_constant(part, str) for part in parts)


def places(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that may change: those that run and decide something."""
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom | ast.Raise):
        return  # f-strings have no positions of their own, and are messages like what is raised
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "type_comment", "type_params"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from places(child)


def mutants(path: Path, name: str) -> Iterator[Mutant]:
    """Yield all mutants of a file, in the order of their places."""
    source = path.read_text(encoding="utf-8")
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line.decode()))
    lines = source.splitlines(keepends=True)

    def position(line: int, column: int) -> int:  # columns are of UTF-8
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node in places(ast.parse(source)):
        for operator, old, new in changes(node):
            start = position(old.lineno, old.col_offset)  # pyright: ignore[reportAttributeAccessIssue]
            stop = position(old.end_lineno, old.end_col_offset)  # pyright: ignore[reportAttributeAccessIssue]
            text = ast.unparse(ast.fix_missing_locations(new))
            text = text if isinstance(new, ast.stmt) else f"({text})"
            yield Mutant(name, old.lineno, start, stop, operator, text)  # pyright: ignore[reportAttributeAccessIssue]


def sample(tree: Path, n: int, seed: int = SEED) -> list[Mutant]:
    """Return the first n of a sample of SAMPLE mutants that depends on the files and the seed alone."""
    package = tree / "burgersgd"
    files = [package / name for name in FOLDERS]
    files = sorted(python_files(files))
    every = [mutant for file in files for mutant in mutants(file, file.relative_to(package).as_posix())]
    return random.Random(seed).sample(every, SAMPLE)[:n]


def python_files(places: list[Path]) -> Iterator[Path]:
    """Yield the Python files among and below some paths."""
    for place in places:
        yield from place.rglob("*.py") if place.is_dir() else [place]


class Tests:
    """Which tests execute which lines, and how long they take: one run of the suite with coverage.py."""

    def __init__(self, tree: Path, work: Path, by_file: bool = False) -> None:
        """Run the suite where that was not done, and read what it left; by_file: do without it."""
        self.tree, data, times = tree, work / "coverage", work / "junit.xml"
        self.data: coverage.CoverageData | None = None
        self.seconds: dict[str, float] = {}
        if by_file:
            return
        if not times.exists():
            _run_with_coverage(tree, data, times)
        self.data = coverage.CoverageData(str(data))
        self.data.read()
        for case in ElementTree.parse(times).iter("testcase"):
            name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
            self.seconds[name] = float(case.get("time", 0.0))

    def own_files(self, mutant: Mutant) -> list[str]:
        """Return the files of the tests of a mutant's module."""
        folder, _, file = mutant.path.rpartition("/")
        return self._existing(FIRST.get(mutant.path, f"{folder}/test_{file}".replace("engines/", "").lstrip("/")))

    def _existing(self, words: str) -> list[str]:
        return [f"tests/{word}" for word in words.split() if (self.tree / "tests" / word).exists()]

    def of(self, mutant: Mutant, stage: int) -> list[str]:
        """Return the tests that try a mutant: those of its own module, then (stage 1) all others."""
        own_files, covering = self.own_files(mutant), self._covering(mutant)
        then_files = self._existing(THEN.get(mutant.path.partition("/")[0], THEN["recorder.py"]))
        if not covering:
            return (own_files or then_files) if stage == 0 else [*own_files, *then_files]
        in_own = [name for name in covering if name.partition("::")[0] in own_files]
        if stage == 0:
            return self._quickest(in_own or covering, math.inf if in_own else TESTS_SECONDS / 4)
        unseen = [name for name in self.seconds if name.partition("::")[0] in own_files and name not in covering]
        others = self._quickest([name for name in covering if name not in in_own], TESTS_SECONDS)
        return [*others, *self._quickest(unseen, TESTS_SECONDS / 2)]  # those that start processes of their own

    def _covering(self, mutant: Mutant) -> list[str]:
        if self.data is None:
            return []
        lines = self.data.contexts_by_lineno(str(self.tree / "burgersgd" / mutant.path))
        source = (self.tree / "burgersgd" / mutant.path).read_text(encoding="utf-8")
        last = source.count("\n", 0, mutant.stop) + 1
        contexts = {context for line in range(mutant.line, last + 1) for context in lines.get(line, ())}
        return sorted({context.rpartition("|")[0] for context in contexts} & self.seconds.keys())

    def _quickest(self, names: list[str], limit: float) -> list[str]:
        chosen, spent = [], 0.0
        for name in sorted(names, key=lambda name: (self.seconds[name], name)):
            spent += self.seconds[name]
            if spent > limit and chosen:
                break
            chosen.append(name)
        return chosen


def _run_with_coverage(tree: Path, data: Path, times: Path) -> None:
    settings = data.with_name("coveragerc")
    settings.write_text(
        f"[run]\nsource = burgersgd\nparallel = True\ndata_file = {data}\ndisable_warnings = module-not-measured, "
        "no-data-collected, already-imported, module-not-imported\n",
        encoding="utf-8",
    )
    paths = ["optimizers", "training", "datasets", "contract", "recording", "sweeps"]
    paths += [file.name for file in sorted((tree / "tests").glob("test_*.py")) if file.name not in NOT_FOR_MUTANTS]
    options = ["--cov=burgersgd", "--cov-context=test", f"--cov-config={settings}", "--cov-report="]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2", "-m", "not slow and not gpu"]
    partial = times.with_suffix(".part")
    command += [*options, f"--junitxml={partial}", *(f"tests/{path}" for path in paths)]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tree, env=environment, check=False)  # a test that coverage disturbs is no harm
    partial.rename(times)


def tried(tree: Path, mutant: Mutant, tests: list[str], seconds: int, log: Path) -> str:
    """Return "killed by TEST", "killed by time" or "survived"."""
    file = tree / "burgersgd" / mutant.path
    source = file.read_text(encoding="utf-8")
    try:
        file.write_text(source[: mutant.start] + mutant.text + source[mutant.stop :], encoding="utf-8")
        _touch(file)
        return _by_tests(tree, tests, seconds, log)
    finally:
        file.write_text(source, encoding="utf-8")
        _touch(file)


def _touch(file: Path) -> None:
    """Give a file a time that it never had: compiled files are valid by time and size."""
    _touch.seconds = getattr(_touch, "seconds", int(time.time())) + 1  # pyright: ignore[reportFunctionMemberAccess]
    os.utime(file, (_touch.seconds, _touch.seconds))  # pyright: ignore[reportFunctionMemberAccess]


def _by_tests(tree: Path, tests: list[str], seconds: int, log: Path) -> str:
    child = os.fork()
    if child == 0:
        _in_the_fork(tree, tests, seconds, log)
    ends = time.monotonic() + LONGEST
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > ends:
            os.killpg(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what tests left running
    code = os.waitstatus_to_exitcode(status)
    if code in (0, NOT_TRIED, 5):  # 5: no test was found
        assert code == 0, log.read_text(encoding="utf-8")
        return "survived"
    shown = log.read_text(encoding="utf-8", errors="replace").splitlines()
    by = [line for line in shown if line.startswith(("FAILED ", "ERROR "))]
    return f"killed by {by[0][:160]}" if by else f"killed by time or crash, exit code {code}"


def _in_the_fork(tree: Path, tests: list[str], seconds: int, log: Path) -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    os.chdir(tree)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.path[:] = [str(tree), *(place for place in sys.path if place != str(ROOT))]
    code = NOT_TRIED
    try:
        import pytest

        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-m",
            "not slow and not gpu",
            "-o",
            "addopts=",
        ]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={log.with_suffix('.tmp')}"]
        hook = "burgersgd.datasets,burgersgd.streams,burgersgd.training.evaluation,beartype.beartype"
        code = int(pytest.main([*options, f"--jaxtyping-packages={hook}", "--timeout=120", *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def report(tree: Path, results: dict[str, dict[str, Any]], chosen: list[Mutant]) -> None:
    """Print how many of the sample survived, with the exact interval of the binomial law, and which."""
    from scipy.stats import binomtest

    done = [mutant for mutant in chosen if mutant.name in results]
    equivalent = [mutant for mutant in done if results[mutant.name]["end"].startswith(EQUIVALENT)]
    alive = [mutant for mutant in done if results[mutant.name]["end"] == "survived"]
    print(f"{len(done)} of {len(chosen)} tried, {len(equivalent)} of them equivalent")
    if n := len(done) - len(equivalent):
        interval = binomtest(len(alive), n).proportion_ci(0.95, "exact")
        shown = f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %"
        print(f"{len(alive)} of the other {n} survived: {100 * len(alive) / n:.1f} %, {shown}")
    for mutant in (*alive, *equivalent):
        source = (tree / "burgersgd" / mutant.path).read_text(encoding="utf-8")
        old = " ".join(source[mutant.start : mutant.stop].split())
        end = results[mutant.name]["end"]
        print(f"{mutant.path}:{mutant.line}: {mutant.operator}: {old}  ->  {mutant.text}  ({end})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("build/mutants"), help="folder for copies of the repository and for results"
    )
    parser.add_argument(
        "--first", type=int, default=SAMPLE, help="number of mutants to test, in the order of the sample"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the sample")
    parser.add_argument(
        "--by-file", action="store_true", help="test by files of tests, without an earlier run of the suite"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--again", action="store_true", help="test surviving mutants again, after tests were changed")
    parser.add_argument("--report", action="store_true", help="print the results so far and test nothing")
    options = parser.parse_args()
    work = options.work.resolve()
    trees = [work / f"tree-{k}" for k in range(options.jobs + 1)]  # the first one is never changed
    for tree in trees:
        if not tree.exists():
            work.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["git", "clone", "--quiet", str(ROOT if tree == trees[0] else trees[0]), str(tree)], check=True
            )
    chosen, file = sample(trees[0], options.first, options.seed), work / "results.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    results = {line["mutant"]: line for line in map(json.loads, lines)}
    if options.report:
        report(trees[0], results, chosen)
        return
    tests = Tests(trees[0], work, options.by_file)
    if options.again:
        results = {name: line for name, line in results.items() if line["end"] != "survived"}
    for name in IMPORTS:
        __import__(name)
    children = []
    for k, tree in enumerate(trees[1:]):
        if options.again:
            shutil.copytree(ROOT / "tests", tree / "tests", dirs_exist_ok=True)
        if (child := os.fork()) == 0:
            os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "BURGERSGD_CACHE": str(work / f"cache-{k}")}
            _try(tree, chosen[k :: options.jobs], results, tests, file, options.again)
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def _try(
    tree: Path, chosen: list[Mutant], results: dict[str, dict[str, Any]], tests: Tests, file: Path, again: bool
) -> None:
    """Try mutants in a tree of their own and append what came out, a line each."""
    for stage in (0, 1):  # all by the tests of their own modules first: most are dead then
        for mutant in chosen:
            known = results.get(mutant.name, {"end": "new", "stage": -1})
            if known["end"] not in ("new", "survived") or known["stage"] >= stage:
                continue
            started = time.monotonic()
            by = tests.own_files(mutant) if again and stage == 0 else tests.of(mutant, stage)
            end = tried(tree, mutant, by, SECONDS[stage], file.with_name(f"{tree.name}.log")) if by else "survived"
            seconds = round(time.monotonic() - started, 1)
            line = {"mutant": mutant.name, "end": end, "stage": stage, "tests": len(by), "seconds": seconds}
            results[mutant.name] = line
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
            print(f"{seconds:6.1f} s {mutant.path}:{mutant.line} {mutant.operator}: {end}", flush=True)


if __name__ == "__main__":
    main()
