"""Imports point one way: cli -> api -> {datasets, models, losses, optimizers, training, recording}."""

from __future__ import annotations

import ast
from pathlib import Path

import burgersgd
from burgersgd.training.engines import ENGINES

PACKAGE = Path(burgersgd.__file__).parent
ROOM_ALLOWS: dict[str, set[str]] = {
    "cli": {
        *("analysis", "api", "arguments", "build", "completion", "config", "cost", "error_line", "help"),
        *("hydra_schemas", "interruption", "keys", "native", "one_run", "own_process", "recording"),
        *("registry", "revisit", "schema", "studies", "sweeps", "theory"),
    },
    "one_run": {"api", "arguments", "build", "config", "error_line", "help", "interruption", "recording", "sweeps"},
    "error_line": {"help"},
    "analysis": {"recording"},
    "studies": {"analysis", "config", "hydra_schemas", "interruption", "recording", "schema", "sweeps"},
    "cost": {"build", "config", "identity", "recording"},
    "revisit": {
        *("api", "build", "config", "datasets", "identity", "isolation", "predictor", "recording"),
        *("run_record", "training"),
    },
    "sweeps": {
        *("analysis", "api", "build", "config", "copies", "hydra_schemas", "identity", "interruption"),
        *("keys", "native", "own_process", "recorder", "recording", "result", "schema"),
    },
    "own_process": {"interruption", "sweeps"},
    "config": {"registry", "schema"},
    "hydra_schemas": {"config"},
    "registry": {"schema"},
    "schema": set(),
    "copies": {"schema"},
    "conf_text": {"schema"},
    "keys": {"conf_text", "config", "schema"},
    "help": {"config", "keys", "schema"},
    "completion": {"config", "help", "keys", "schema", "theory"},
    "arguments": {"help", "keys", "schema"},
    "identity": {"config", "copies", "registry", "schema"},
    "interruption": set(),
    "build": {
        *("config", "copies", "datasets", "isolation", "losses", "models", "native", "predictor", "streams"),
        *("training",),
    },
    "run_record": {"config", "identity", "recording"},
    "result": {"config", "predictor", "training"},
    "ends": {"build", "predictor", "recording", "result", "run_record", "training"},
    "recorder": {
        *("build", "config", "ends", "identity", "interruption", "recording", "result", "run_record"),
        *("training",),
    },
    "api": {"build", "config", "copies", "identity", "isolation", "recorder", "recording", "result", "run_record"},
    "training": {"datasets", "losses", "models", "native", "optimizers", "schedules", "streams"},
    "datasets": {"schema", "streams"},
    "models": {"isolation", "schema"},
    "isolation": set(),
    "predictor": {"config", "datasets", "identity", "losses", "models", "schema"},
    "losses": set(),
    "schedules": {"optimizers"},
    "optimizers": {"schema"},
    "recording": {"training"},
    "streams": {"native", "streams_orders", "streams_triton"},
    "streams_orders": {"native"},
    "streams_triton": {"streams"},
    "native": set(),
    "theory": {"config", "datasets", "losses", "models", "optimizers", "streams", "training"},
    "__main__": {"cli"},
    "__init__": {"analysis", "api", "config", "revisit"},
}
ONLY_THESE_KNOW_HYDRA = {"arguments", "cli", "hydra_schemas", "sweeps"}
LONGEST_FILE = 400


def imports(path: Path) -> set[str]:
    """Return what a module imports, at any place, but for the names of types that no running code needs."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_one_way() -> None:
    offenders = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            if parts[0] in ("hydra", "omegaconf") and room not in ONLY_THESE_KNOW_HYDRA:
                offenders.append(f"{path.name} imports {name}")
            inside = parts[0] == "burgersgd" and len(parts) > 1 and not parts[1].startswith("__")
            if inside and parts[1] not in {room, *ROOM_ALLOWS[room]}:
                offenders.append(f"{path.name} imports {name}")
    assert offenders == []


def test_engines_are_compared_by_name_where_one_is_chosen_alone() -> None:
    """Elsewhere a property of the kind of engine decides. In streams, native is a backend of random numbers."""
    offenders = []
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("parts.py", "streams.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                named = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)} & set(ENGINES)
                offenders += [f"{path.name}:{node.lineno} compares {name}" for name in named]
    assert offenders == []


def test_files_of_the_package_are_short_enough_to_be_read_in_one_sitting() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".c", ".cu", ".h", ".js", ".css")]
    too_long = {path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE}
    assert not too_long
