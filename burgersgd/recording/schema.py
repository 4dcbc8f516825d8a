"""Types of the contents of the files in run folders and sweep folders, against which everything read is checked.

Keys that are not listed are allowed, so that other versions can write more. Numbers with a bound exclude NaN.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from burgersgd.recording.files import RunFolderError

Count = Annotated[int, Meta(ge=0, lt=2**53)]
Positive = Annotated[int, Meta(ge=1, lt=2**53)]
Threads = Annotated[int, Meta(ge=1, le=1024)]
Seconds = Annotated[float, Meta(ge=0, le=sys.float_info.max)]
Rate = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
Loss = float
"""A loss may have any value: it is infinite or NaN for a run that diverged."""
State = Literal["running", "completed", "diverged", "pruned", "failed", "interrupted"]
Engine = Annotated[str, Meta(pattern="^[a-z][a-z_]*$", max_length=40)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{12,64}$")]
Scalar = str | int | float | bool | None


class Parent(Struct):
    """The run that another one continues."""

    folder: str
    evaluations: Count
    config_hash: Hash


class Status(Struct):
    """status.json of any run."""

    state: State
    updated: str
    config_hash: Hash | None = None
    result_digest: Hash | None = None
    reason: str | None = None
    task: Literal["classification", "regression"] | None = None
    evaluations: Count | None = None
    seconds: Seconds | None = None
    test_error: Loss | None = None
    test_loss: Loss | None = None
    validation_error: Loss | None = None
    validation_loss: Loss | None = None
    best_validation_error: Loss | None = None
    best_test_error: Loss | None = None
    best_at: Count | None = None
    last_loss: Loss | None = None
    n_parameters: Count | None = None
    n_test: Count | None = None
    """Number of examples in the test part."""
    engine: Engine | None = None
    threads: Threads | None = None
    budget: Positive | None = None
    log_every: Positive | None = None
    eval_every: Positive | None = None
    fleet_size: Positive | None = None
    parent: Parent | None = None
    data: Hash | None = None
    code: str | None = None


class End(Struct):
    """Fields of status.json that are required, in addition to those of Status, of a run that has ended."""

    evaluations: Count
    seconds: Seconds
    test_error: Loss
    test_loss: Loss
    validation_error: Loss
    validation_loss: Loss
    best_validation_error: Loss
    best_test_error: Loss
    best_at: Count
    n_parameters: Count
    budget: Positive
    task: Literal["classification", "regression"]


class Environment(Struct):
    """environment.json of a run."""

    python: str
    torch: str
    threads: Threads
    device: str
    device_name: str
    cores: Positive | None = None
    cpu_capability: str | None = None
    git: dict[str, Scalar] | None = None


class ConfigRecord(Struct):
    """config.yaml of a run: its groups, whose keys the classes of the configuration check."""

    dataset: dict[str, Any]
    model: dict[str, Any]
    loss: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    trainer: dict[str, Any]
    device: dict[str, Any]
    sweep: dict[str, Any]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    output_root: str
    run_name: str | None


class Choices(Struct):
    """Choices that a run makes at its start and keeps when it is resumed."""

    engine: Engine
    threads: Threads
    budget: Positive
    log_every: Positive
    eval_every: Positive


class FleetPlace(Struct):
    """The fleet that a run was part of, and its index there."""

    id: Hash
    size: Positive
    index: Count


class Best(Struct):
    """The x of lowest validation error, that error, and the gradient evaluation at which it was found; tensors."""

    x: Any
    error: Any
    at: Any


class PredictorRecord(Struct):
    """Description of the module of raw inputs in a checkpoint or an exported file; torch checks its tensors."""

    model: dict[str, Any]
    n_outputs: Positive
    tied: dict[str, str]
    fixed: dict[str, Any]
    units: dict[str, Any]
    structure: str
    input_shape: list[Positive]
    log_odds: bool


class Checkpoint(Struct):
    """checkpoint.pt of a run; its tensors are checked against the parameters and the configuration elsewhere."""

    evaluations: Count
    x: Any
    state: dict[str, Any]
    alive: Any
    diverged_at: Any
    last_loss: Any
    loss_sum: Any
    grad_norm: Any
    loss_limit: Any
    code: str
    config_hash: Hash
    choices: Choices
    fleet: FleetPlace
    parent: Parent | None
    best: Best
    logged: Annotated[int, Meta(ge=-1, lt=2**53)]
    seconds: Seconds
    metrics_bytes: Positive
    measured: dict[str, float] | None
    parameters: Annotated[list[tuple[str, list[Positive]]], Meta(min_length=1)]
    metrics_digest: Hash | None = None
    config_digest: Hash | None = None
    predictor: PredictorRecord | None = None
    data: Hash | None = None


class NotedJob(Struct):
    """A line of a sweep's jobs.jsonl."""

    name: Annotated[str, Meta(pattern=r"^[^/\x00]+$", min_length=1, max_length=255)]
    overrides: str


class Plan(Struct):
    """plan.json of a sweep."""

    fleets: list[list[str]] = []
    rates: dict[str, dict[str, Rate]] = {}


class Speeds(Struct):
    """A file of measured rates in the cache folder: number of runs in a fleet -> gradient evaluations per second."""

    key: Hash
    rates: dict[Annotated[str, Meta(pattern="^[1-9][0-9]{0,8}$")], Rate]


def checked(value: Any, kind: type[Struct], where: Any) -> Any:
    """Return the value unchanged if it conforms to `kind`; else raise RunFolderError naming `where` and the key."""
    try:
        msgspec.convert(value, kind)
    except Exception as error:  # also any error of an object whose entries cannot be accessed
        what, _, key = str(error).partition(" - at ")
        key = key.strip("`").removeprefix("$").removeprefix(".")
        raise RunFolderError(f"{where}: {f'{key}: ' if key else ''}{what.replace('`', '')}") from error
    return value


def decoded(data: bytes, where: Any) -> Any:
    """Return the value of a JSON text. Raises RunFolderError naming `where` it was read."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunFolderError(f"cannot read {where}: {' '.join(str(error).split()) or 'not JSON'}") from error
