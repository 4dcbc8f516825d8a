"""Writes run folders with given values for tests, in a millisecond each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from burgersgd.recording.files import plain_json

CONFIG: dict[str, Any] = {
    "dataset": {"name": "digits", "label_noise": 0.0, "seed": 0, "root": "data"},
    "model": {"name": "mlp", "width": 12, "widths": None},
    "loss": {"name": "cross_entropy"},
    "device": {"name": "cpu"},
    "optimizer": {"name": "sgd", "lr": 0.3},
    "schedule": {"name": "constant", "warmup": 0.0},
    "trainer": {"budget": 600, "epochs": 100.0, "log_every": 7},
    "sweep": {"name": None},
    "seed": 0,
    "output_root": "outputs",
    "run_name": None,
}
UPDATED = "2026-11-26T12:00:00"
ENVIRONMENT = {
    "python": "3.11.7",
    "torch": "2.14.1",
    "threads": 1,
    "device": "cpu",
    "device_name": "abacus",
    "cpu": "abacus",
}


def write_run(
    path: Path,
    settings: Mapping[str, Any] | None = None,
    state: str = "completed",
    rows: Sequence[Mapping[str, float | str]] = (),
    **status: Any,
) -> Path:
    """Write a run folder; settings by dotted key. Test and validation errors are 0.1 unless given."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in (settings or {}).items():
        node = config
        *groups, name = key.split(".")
        for group in groups:
            node = node[group]
        node[name] = value
    ended = {
        "task": "classification",
        "budget": config["trainer"]["budget"],
        "test_error": 0.1,
        "validation_error": 0.1,
    }
    ended |= {"best_validation_error": 0.1, "best_test_error": 0.1, "best_at": 300, "seconds": 2.5}
    ended |= {"validation_loss": 0.4, "test_loss": 0.4, "evaluations": config["trainer"]["budget"], "n_parameters": 9}
    path.joinpath(".hydra").mkdir(parents=True)
    path.joinpath(".hydra", "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    known = (ended if state in ("completed", "diverged", "pruned") else {}) | status
    path.joinpath("status.json").write_text(json.dumps(plain_json({"state": state, "updated": UPDATED, **known})))
    path.joinpath("environment.json").write_text(json.dumps(ENVIRONMENT))
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["evaluations", "validation_error"]
    lines = [",".join(columns), *(",".join(str(row.get(column, "")) for column in columns) for row in rows)]
    path.joinpath("metrics.csv").write_text("\n".join(lines) + "\n")
    return path


def write_sweep(root: Path, errors: Mapping[str, Sequence[float]], **settings: Any) -> Path:
    """Write runs of several optimizers: name -> test errors by seed; inf is a diverged run."""
    for name, values in errors.items():
        for seed, error in enumerate(values):
            state = "diverged" if error == float("inf") else "completed"
            chosen = {"optimizer.name": name, "seed": seed} | settings
            write_run(root / f"{name}-{seed}", chosen, state, test_error=error, validation_error=error + 0.01)
    return root
