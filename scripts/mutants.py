"""Change one place of the package at a time and see which tests notice: a fixed, seeded sample of 400 changes.

    python scripts/mutants.py --work build/mutants            # goes on where it stopped; results.jsonl, one line each
    python scripts/mutants.py --work build/mutants --report   # how many survived, which, and the exact interval

Left out of CI, since it takes hours. Mutants are drawn uniformly from all places in FOLDERS where an operator applies:
comparisons, arithmetic, number and truth constants, and/or, negated conditions, a value returned, a statement removed.
Docstrings, types, messages and asserts are no places. Each mutant is tried in a copy of the repository, in a fork of
this process, which has imported what the tests need but for the package itself: first by the tests of its own module
(FIRST), where it survives those by the tests of all that uses it (THEN). Limits are of processor time, so that a busy
machine kills no mutant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import json
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

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("optimizers", "training", "datasets", "sweeps", "recording", "analysis", "recorder.py")
SEED, SAMPLE = 20261127, 400
SECONDS, LONGEST = (300, 1_500), 3_600
"""Of processor time, by stage, and of the clock, after which a mutant runs forever."""
NOT_TRIED = 97
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
    "analysis/charts.py": "analysis/test_report.py",
    "analysis/command.py": "analysis/test_compare.py analysis/test_report.py",
    "analysis/notes.py": "analysis/test_compare.py",
    "analysis/question.py": "analysis/test_compare.py",
    "analysis/rows.py": "analysis/test_compare.py analysis/test_runs.py",
    "analysis/search_tables.py": "analysis/test_tuning.py analysis/test_importance.py",
    "analysis/tables.py": "analysis/test_compare.py",
    "analysis/values.py": "analysis/test_runs.py analysis/test_compare.py",
    "datasets/dataset.py": "datasets/test_preprocess.py datasets/test_batches.py",
    "optimizers/adam.py": "optimizers/test_adamw.py",
    "optimizers/asam.py": "optimizers/test_sam.py",
    "optimizers/local_entropy.py": "optimizers/test_local_entropy.py optimizers/test_momentum_temperature.py "
    "optimizers/test_golden.py",
    "optimizers/momentum.py": "optimizers/test_sgd.py optimizers/test_sam.py",
    "optimizers/protocol.py": "optimizers/test_budget.py optimizers/test_sgd.py contract/test_contract.py",
    "recording/files.py": "recording/test_run_folder.py",
    "recording/mlflow_sink.py": "recording/test_sinks.py",
    "recording/output.py": "test_output.py recording/test_progress.py",
    "recording/reading.py": "recording/test_run_folder.py test_resume.py recording/test_edited_folders.py",
    "recording/schema.py": "recording/test_run_folder.py recording/test_edited_folders.py",
    "sweeps/chunks.py": "sweeps/test_sweep.py",
    "sweeps/dry_run.py": "test_help.py test_cli.py",
    "sweeps/launcher.py": "sweeps/test_sweep.py",
    "sweeps/planning.py": "sweeps/test_workers.py sweeps/test_speeds.py sweeps/test_sweep.py",
    "sweeps/status_command.py": "sweeps/test_status.py",
    "recorder.py": "test_run.py test_resume.py test_interruption.py",
    "training/engines/__init__.py": "training/test_engines.py",
    "training/engines/compiled.py": "training/test_graphs.py",
    "training/engines/eager.py": "training/test_engines.py training/test_fleet.py",
    "training/engines/native.py": "training/test_native_steps.py",
    "training/engines/codegen.py": "training/test_codegen.py",
    "training/engines/tracing.py": "training/test_codegen.py",
    "training/gradients.py": "training/test_engines.py training/test_fleet.py",
    "training/inputs.py": "training/test_fleet.py training/test_engines.py",
    "training/fleet.py": "test_run.py",
    "training/replicas.py": "contract/test_contract.py",
    "training/rule_check.py": "contract/test_contract.py",
    "training/state.py": "training/test_fleet.py",
}
"""Tests of a module, where they are not in tests/.../test_MODULE.py."""
THEN = {
    "analysis": "analysis test_statistics.py studies",
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


def sample(tree: Path, n: int) -> list[Mutant]:
    """Return the first n of a sample of SAMPLE mutants that depends on the files and SEED alone."""
    package = tree / "burgersgd"
    files = [package / name for name in FOLDERS]
    files = sorted(python_files(files))
    every = [mutant for file in files for mutant in mutants(file, file.relative_to(package).as_posix())]
    return random.Random(SEED).sample(every, SAMPLE)[:n]


def python_files(places: list[Path]) -> Iterator[Path]:
    """Yield the Python files among and below some paths."""
    for place in places:
        yield from place.rglob("*.py") if place.is_dir() else [place]


def tests_of(tree: Path, path: str, stage: int) -> list[str]:
    """Return the test files that try a module, first those that are its own."""
    folder, _, file = path.rpartition("/")
    own = f"{folder}/test_{file}".replace("engines/", "").lstrip("/")
    words = FIRST.get(path, own) if stage == 0 else THEN[path.partition("/")[0]]
    found = [f"tests/{word}" for word in words.split()]
    return [word for word in found if (tree / word).exists()] or tests_of(tree, path, 1)


def tried(tree: Path, mutant: Mutant, stage: int, log: Path) -> str:
    """Return "killed by TEST", "killed by time" or "survived"."""
    file = tree / "burgersgd" / mutant.path
    source = file.read_text(encoding="utf-8")
    try:
        file.write_text(source[: mutant.start] + mutant.text + source[mutant.stop :], encoding="utf-8")
        _touch(file)
        return _by_tests(tree, tests_of(tree, mutant.path, stage), SECONDS[stage], log)
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
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={log.with_name('tmp')}"]
        hook = "burgersgd.datasets,burgersgd.streams,burgersgd.training.evaluation,beartype.beartype"
        code = int(pytest.main([*options, f"--jaxtyping-packages={hook}", "--timeout=900", *tests]))
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
    alive = [mutant for mutant in done if results[mutant.name]["end"] == "survived"]
    print(f"{len(done)} of {len(chosen)} tried")
    if done:
        interval = binomtest(len(alive), len(done)).proportion_ci(0.95, "exact")
        shown = f"95 % interval {100 * interval.low:.1f} to {100 * interval.high:.1f} %"
        print(f"{len(alive)} survived: {100 * len(alive) / len(done):.1f} %, {shown}")
    for mutant in alive:
        source = (tree / "burgersgd" / mutant.path).read_text(encoding="utf-8")
        old = " ".join(source[mutant.start : mutant.stop].split())
        print(f"{mutant.path}:{mutant.line}: {mutant.operator}: {old}  ->  {mutant.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/mutants"), help="copy of the repository, and results")
    parser.add_argument("--first", type=int, default=SAMPLE, help="try so many, in the order of the sample")
    parser.add_argument("--again", action="store_true", help="try those once more that survived, after changed tests")
    parser.add_argument("--report", action="store_true", help="print what is known and try nothing")
    options = parser.parse_args()
    work = options.work.resolve()
    tree, file = work / "tree", work / "results.jsonl"
    if not tree.exists():
        tree.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    drawn = work / "sample.json"  # kept, since the tree has a mutant in it while one is tried
    if not drawn.exists():
        drawn.write_text(json.dumps(sample(tree, SAMPLE)), encoding="utf-8")
    chosen = [Mutant(*mutant) for mutant in json.loads(drawn.read_text(encoding="utf-8"))][: options.first]
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    results = {line["mutant"]: line for line in map(json.loads, lines)}
    if options.report:
        report(tree, results, chosen)
        return
    if options.again:
        shutil.copytree(ROOT / "tests", tree / "tests", dirs_exist_ok=True)
        results = {name: line for name, line in results.items() if line["end"] != "survived"}
    os.environ |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "BURGERSGD_CACHE": str(work / "cache")}
    for name in IMPORTS:
        __import__(name)
    for stage in (0, 1):  # all by the tests of their own modules first: most are dead then
        for i, mutant in enumerate(chosen):
            known = results.get(mutant.name, {"end": "new", "stage": -1})
            if known["end"] not in ("new", "survived") or known["stage"] >= stage:
                continue
            started = time.monotonic()
            end = tried(tree, mutant, stage, work / "log.txt")
            seconds = round(time.monotonic() - started, 1)
            line = results[mutant.name] = {"mutant": mutant.name, "end": end, "stage": stage, "seconds": seconds}
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
            print(f"{i + 1:3} {seconds:6.1f} s {mutant.path}:{mutant.line} {mutant.operator}: {end}", flush=True)


if __name__ == "__main__":
    main()
