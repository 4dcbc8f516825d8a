"""Evaluates, exports and repeats finished runs: `burgersgd evaluate`, `export` and `rerun`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from burgersgd.api import Result, repeat
from burgersgd.build.parts import UserData, UserModel
from burgersgd.build.prepared import prepare
from burgersgd.config import ConfigError
from burgersgd.datasets.dataset import one_line
from burgersgd.identity import OWN, check_own
from burgersgd.isolation import undisturbed
from burgersgd.predictor import Predictor, network_state, rebuilt
from burgersgd.recording.progress import shown_path
from burgersgd.recording.run_folder import (
    ENDED,
    RunFolderError,
    read_checkpoint,
    read_config,
    read_environment,
    read_metrics,
    read_status,
)
from burgersgd.recording.schema import PredictorRecord, checked
from burgersgd.run_record import read_run
from burgersgd.training.engines import ENGINES

POINTS = ("last", "best")
"""The points of a run that can be evaluated or exported: the last x, and the x with the lowest validation error."""

EXPORT_FORMAT = 1
"""Version of the file that `burgersgd export` writes; it increases when the meaning of the contents changes."""


def x_of(folder: Path, checkpoint: dict[str, Any], point: str) -> Tensor:
    """Return the x ``[d]`` of a checkpoint; point is one of POINTS. Raises RunFolderError if there is no best x."""
    if point == "last":
        return checkpoint["x"]
    if not math.isfinite(checkpoint["best"]["error"]):
        raise RunFolderError(f"{folder}: has no best x, because no validation error was measured")
    return checkpoint["best"]["x"]


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Return the checkpoint of a run folder after checks. Raises RunFolderError if there is none."""
    return read_run(folder, read_only=True).checkpoint or read_checkpoint(folder)


def _finite_x(folder: Path, checkpoint: dict[str, Any], point: str) -> Tensor:
    x = x_of(folder, checkpoint, point)
    if not bool(torch.isfinite(x).all()):
        raise RunFolderError(f"{folder}: the {point} x is not finite, because the run diverged")
    return x


def _buffers(checkpoint: dict[str, Any], point: str) -> dict[str, Tensor]:
    """Return the buffers that training changes, at the last or best x."""
    return checkpoint.get("buffers_at", {}).get(point, {})


def state_dict(folder: Path, point: str = "last") -> dict[str, Tensor]:
    """Return x of a run as the state_dict of its network: an ordinary nn.Module. Raises RunFolderError."""
    checkpoint = _checkpoint(folder)
    description = checkpoint.get("predictor") or {"tied": {}, "fixed": {}}  # 0.1.0 had neither
    return network_state(
        description, checkpoint["parameters"], _finite_x(folder, checkpoint, point), _buffers(checkpoint, point)
    )


@undisturbed()
def exported(
    folder: Path, point: str = "last", *, model: UserModel | None = None, dataset: UserData | None = None
) -> dict[str, Any]:
    """Return the contents of an exported file, plain values and tensors, from which `load_predictor` makes a Predictor.

    model and dataset are needed for a run of 0.1.0 with the user's own model or data, because 0.1.0 did not record
    units. Raises RunFolderError.
    """
    stored = read_run(folder, read_only=True)
    checkpoint = stored.checkpoint or read_checkpoint(folder)
    description = checkpoint.get("predictor")
    if description is None:
        check_own(read_config(folder), model, dataset)
        prepared = prepare([stored.config], model=model, dataset=dataset)
        description = prepared.network["predictor"]
    state = network_state(
        description, checkpoint["parameters"], _finite_x(folder, checkpoint, point), _buffers(checkpoint, point)
    )
    return {"format": EXPORT_FORMAT, "predictor": description, "network": state}


@undisturbed()
def load_predictor(path: Path | str, point: str = "last", *, model: nn.Module | None = None) -> Predictor:
    """Return the predictor of a file written by `burgersgd export`, or of a run folder at a point (last or best).

    It maps raw inputs to class scores, or to targets in their own unit. model is the user's own module, if the run
    trained one. Raises RunFolderError for a file that cannot be read, ConfigError for a module that does not fit.
    """
    path = Path(path)
    if path.is_dir():
        content = exported(path, point, model=model)
    else:
        try:
            content = torch.load(path, weights_only=True)
        except Exception as error:  # a broken file may raise many types
            raise RunFolderError(f"cannot read {path}: {one_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != EXPORT_FORMAT:
        raise RunFolderError(f"{path} is not an exported predictor; write one by burgersgd export RUN --output {path}")
    checked(content["predictor"], PredictorRecord, path)
    return rebuilt(content["predictor"], content["network"], model)


@undisturbed()
def evaluate(
    folder: Path, point: str = "last", *, model: UserModel | None = None, dataset: UserData | None = None
) -> dict[str, float]:
    """Evaluate the last or best x of a run again; return validation and test loss and error. Raises as train does.

    A run without a validation part has no validation loss, validation error or best x.
    """
    checkpoint, config = _checkpoint(folder), read_run(folder, read_only=True).config
    check_own(read_config(folder), model, dataset)
    prepared = prepare([config], model=model, dataset=dataset)
    x = x_of(folder, checkpoint, point)[None].to(prepared.problem.inputs.device)
    if x.shape[1] != prepared.problem.d:
        raise RunFolderError(f"{folder}: x has {x.shape[1]} parameters, but the model has {prepared.problem.d}")
    prepared.check_same(checkpoint, folder)
    measured = {}
    with prepared.torch_settings():
        for part in ("validation", "test"):
            data = getattr(prepared.data, part)
            if data.n == 0:
                continue
            loss, error = prepared.evaluator(data)(x)
            measured |= {f"{part}_loss": loss.item(), f"{part}_error": error.item()}
    return measured


@dataclasses.dataclass(frozen=True)
class Repetition:
    """A run and its repetition."""

    result: Result
    differences: list[str]
    """The bitwise differences between the two runs, one line each."""
    circumstances: list[str]
    """The circumstances that differ between the runs: versions, machine, threads, size of the fleet; one line each."""


@undisturbed()
def rerun(
    folder: Path, *, model: UserModel | None = None, dataset: UserData | None = None, progress: bool | None = None
) -> Repetition:
    """Repeat a run from its start in a new folder, with the same engine and threads, and compare the two bit by bit.

    Raises RunFolderError for a run that is not finished, ConfigError for a run that continued another run, and as
    burgersgd.train does.
    """
    checkpoint, state = _checkpoint(folder), read_status(folder)["state"]
    if state not in ENDED:
        raise RunFolderError(f"{folder}: the run is {state}; finish it first by burgersgd train resume={folder}")
    if checkpoint["parent"] is not None:
        raise ConfigError(
            f"{folder}: continues another run and cannot be repeated; repeat {checkpoint['parent']['folder']} instead"
        )
    fleet, choices = checkpoint["fleet"], checkpoint["choices"]
    then, before = read_environment(folder), read_metrics(folder)
    result = repeat(folder, choices, model=model, dataset=dataset, progress=progress)
    assert result.folder is not None
    now, after = read_environment(result.folder), read_metrics(result.folder)
    circumstances = [f"{key}: {then.get(key)}, now {now.get(key)}" for key in now if then.get(key) != now[key]]
    if fleet["size"] > 1 and not ENGINES[choices["engine"]].gradient_in_c:
        circumstances.append(
            f"fleet: {fleet['size']} runs, now 1; with engine {choices['engine']} they agree only up to rounding"
        )
    differences = [f"metrics.csv: the first run has no column {column}" for column in after if column not in before]
    differences += [
        f"metrics.csv, {column}: {_first_difference(theirs, after[column])}"
        for column, theirs in before.items()
        if column in after and column != "seconds" and repr(theirs) != repr(after[column])
    ]
    again = read_checkpoint(result.folder)
    for name, theirs, ours in [
        ("x", checkpoint["x"], again["x"]),
        ("best x", checkpoint["best"]["x"], again["best"]["x"]),
        *((field, checkpoint["state"].get(field), tensor) for field, tensor in again["state"].items()),
    ]:
        if (theirs is None) != (ours is None) or (theirs is not None and theirs.shape != ours.shape):
            differences.append(f"{name}: exists in only one of the two runs, or has different shapes")
        elif theirs is not None and not _same_bits(theirs, ours):
            differences.append(f"{name}: largest difference {float((theirs - ours).abs().max()):.3g}")
    return Repetition(result, differences, circumstances)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of the same shape are equal, with NaN equal to NaN."""
    return a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _first_difference(a: list[float], b: list[float]) -> str:
    if len(a) != len(b):
        return f"{len(a)} rows, now {len(b)}"
    row = next(i for i, pair in enumerate(zip(a, b, strict=True)) if repr(pair[0]) != repr(pair[1]))
    return f"row {row}: {a[row]!r}, now {b[row]!r}"


# --------------------------------------------------------------------------------------------------- the commands


def _arguments(command: str, description: str, arguments: Sequence[str], check: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"burgersgd {command}", description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    if check:
        parser.add_argument("--check", action="store_true", help="return exit code 1 if any bit differs")
    else:
        parser.add_argument(
            "--point",
            choices=POINTS,
            default="last",
            help="the last x (default), or the x with the lowest validation error",
        )
    if command == "export":
        parser.add_argument("--output", type=Path, help="file to write; default: RUN/model.pt")
        parser.add_argument(
            "--format",
            choices=("predictor", "state_dict"),
            default="predictor",
            help="predictor: takes raw inputs, read by burgersgd.load_predictor; state_dict: tensors of the network",
        )
    return parser.parse_args(arguments)


def main_evaluate(arguments: Sequence[str]) -> int:
    """Run `burgersgd evaluate RUN`: repeat the final evaluation; return 1 if it differs from the record."""
    given = _arguments("evaluate", "Repeat the final evaluation of a run from its checkpoint.", arguments)
    measured, status = evaluate(given.run, given.point), read_status(given.run)
    recorded_values = {"test_error": status.get("best_test_error")} if given.point == "best" else status
    differing = [
        name
        for name in measured
        if recorded_values.get(name) is not None and repr(recorded_values[name]) != repr(measured[name])
    ]
    for name, value in measured.items():
        recorded = f"   recorded {recorded_values[name]:.9g}" if name in differing else ""
        print(f"{name:<18}{value:.9g}{recorded}")
    return 1 if differing else 0


def main_export(arguments: Sequence[str]) -> int:
    """Run `burgersgd export RUN`: write x as a predictor of raw inputs, or as the state_dict of its network."""
    given = _arguments("export", "Write the network of a run to a file, which holds data only and no code.", arguments)
    path = given.output or given.run / "model.pt"
    tensors = state_dict(given.run, given.point)
    try:
        torch.save(tensors if given.format == "state_dict" else exported(given.run, given.point), path)
    except (OSError, RuntimeError) as error:
        raise RunFolderError(f"--output={path}: cannot be written: {str(error).splitlines()[0]}") from error
    print(f"{shown_path(path)}: {sum(t.numel() for t in tensors.values()):,} numbers in {len(tensors)} tensors")
    if given.format == "state_dict":
        print(f'module.load_state_dict(torch.load("{shown_path(path)}", weights_only=True))')
    else:
        own = ", model=..." if read_config(given.run)["model"].get("name") == OWN else ""
        print(f'predictor = burgersgd.load_predictor("{shown_path(path)}"{own})')
    return 0


def main_rerun(arguments: Sequence[str]) -> int:
    """Run `burgersgd rerun RUN [--check]`: repeat a run and compare."""
    given = _arguments(
        "rerun", "Repeat a run in a new folder and compare all results bit by bit.", arguments, check=True
    )
    repetition = rerun(given.run)
    for line in repetition.circumstances:
        print(f"changed circumstances: {line}")
    for line in repetition.differences:
        print(f"different result: {line}")
    verdict = f"{len(repetition.differences)} differences" if repetition.differences else "bit-identical"
    print(f"{verdict}: {shown_path(given.run)} and {shown_path(repetition.result.folder or given.run)}")
    return 1 if given.check and repetition.differences else 0
