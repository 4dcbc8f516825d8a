"""Builds the parts of a run from its configuration and checks them: device, data, loss, model, budget, engine."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from burgersgd import native
from burgersgd.config import GROUPS, LARGEST_BUDGET, ConfigError, TrainConfig
from burgersgd.datasets import DataError, Dataset, Options, from_arrays, load
from burgersgd.datasets.batches import evaluations_per_epoch
from burgersgd.datasets.dataset import one_line
from burgersgd.datasets.preprocess import memory
from burgersgd.isolation import seeded
from burgersgd.losses import LOSSES, Loss
from burgersgd.models import Model
from burgersgd.models.conv import LeNet
from burgersgd.models.mlp import Mlp
from burgersgd.models.wrapped import Wrapped
from burgersgd.training.engines import ENGINES, persistent
from burgersgd.training.engines.compiled import why_not_compiled
from burgersgd.training.gradients import Problem
from burgersgd.training.native_gradient import NativeGradient, images_of

_log = logging.getLogger("burgersgd")

UserModel = nn.Module | Callable[[], nn.Module]
UserData = Dataset | tuple[Any, Any]

DTYPES = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
"""Precision -> dtype of parameters and optimizer state; with bfloat16 only the network computes in bfloat16."""

STATE_BYTES = 16
"""Smallest number of bytes per parameter during training: x, y, the gradient and a sum, in float32."""

MOST_LABELS = 1000
"""Largest number of different integer targets that are assumed to be classes given as real numbers."""

COMPILE_FROM = {("cpu", False): 120_000, ("cpu", True): 15_000, ("cuda", False): 80_000, ("cuda", True): 15_000}
"""compile=auto: (device, whether there are several runs) -> steps from which torch.compile saves time.

The time of a compilation without cache is included; see docs/benchmarks.md.
"""


GPU_FROM = 4_000_000
"""device=auto: parameters times examples in a batch from which a GPU is expected to be faster than two CPU cores.

The CUDA graph of a step takes 150 microseconds on an H100 even for small networks; in that time the C kernel computes
the gradient of a network of about this size (docs/benchmarks.md).
"""


def device_of(config: TrainConfig, work: int) -> torch.device:
    """Return the device for runs; work is the number of parameters times the examples in a batch.

    The choice of device=auto does not depend on the number of runs. Raises ConfigError where the device is missing.
    """
    name, index = config.device.name, config.device.index
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and work >= GPU_FROM else "cpu"
    if name == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found == 0:
            raise config.device.error("name", "no CUDA GPU was found; device=cpu or device=auto works everywhere")
        if index >= found:
            raise config.device.error("index", f"must be < {found}, the number of GPUs")
        return torch.device("cuda", index)
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise config.device.error("name", "no Apple GPU was found; device=cpu or device=auto works everywhere")
        if config.trainer.precision == "float64":
            raise config.trainer.error("precision", "Apple GPUs have no float64")
    return torch.device(name)


class _ByRepr:
    """A configuration as an argument of a cached function; equal if the representations are equal."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __hash__(self) -> int:
        return hash(repr(self.config))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByRepr) and repr(self.config) == repr(other.config)


def dataset_of(config: TrainConfig, own: UserData | None) -> Dataset:
    """Return the data set: that of the user if given, else that of the configuration. Raises DataError."""
    if own is None:
        return _load(_ByRepr(config.dataset))
    if isinstance(own, Dataset):
        return own
    if not (isinstance(own, tuple | list) and len(own) == 2):
        raise DataError(f"dataset: must be a Dataset or a pair of arrays (x, y), not {type(own).__name__}")
    return from_arrays(*own, **dataclasses.asdict(Options.of(config.dataset)))


@functools.lru_cache(maxsize=2)
def _load(config: _ByRepr) -> Dataset:
    return load(config.config)


def check_labels(config: TrainConfig, data: Dataset) -> None:
    """Raise DataError for targets that look like classes given as real numbers, unless loss=squared_error is set."""
    if data.task == "classification" or data.n_outputs > 1 or config.loss.name == "squared_error":
        return
    units = data.units
    given = data.train.targets.double() * units.target_deviation.double() + units.target_mean.double()
    labels = given.round().unique()
    whole = bool((given - given.round()).abs().max() < 1e-3)
    if whole and 2 <= len(labels) <= MOST_LABELS and labels.tolist() == list(range(len(labels))):
        raise DataError(
            f"dataset={data.name}: the targets are the whole numbers 0 to {len(labels) - 1} as real numbers; "
            "convert them to int for a classification, or set loss=squared_error for a regression"
        )


def loss_of(config: TrainConfig, data: Dataset) -> Loss:
    """Return the loss. Raises ConfigError where it does not fit the data."""
    name = config.loss.name
    if data.task == "regression" and name != "squared_error":
        raise config.loss.error("name", f"must be squared_error, because dataset={data.name} is a regression")
    if name == "logistic" and data.n_outputs != 2:
        raise config.loss.error("name", f"needs two classes, but dataset={data.name} has {data.n_outputs}")
    return LOSSES[name]


def maker_of(config: TrainConfig, data: Dataset, loss: Loss) -> Callable[[], nn.Module] | None:
    """Return the function that makes the nn.Module of a model class of another package; None for burgersgd's models.

    Raises ConfigError where the function does not return an nn.Module.
    """
    if config.model.name in GROUPS["model"].shipped:
        return None
    make = functools.partial(config.model.network, data.input_shape, loss.n_outputs(data.n_outputs))
    with seeded(config.seed):
        try:
            network = make()
        except Exception as error:  # any error of the other package
            raise ConfigError(f"model={config.model.name}: {one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"model={config.model.name}: network() must return an nn.Module, not {type(network).__name__}"
        )
    return make  # pyright: ignore[reportReturnType]


def model_of(config: TrainConfig, data: Dataset, loss: Loss, own: UserModel | None) -> Model:
    """Return the model for the data and the loss, or the user's own. Raises ConfigError."""
    if own is not None:
        return own_model(own, config.seed)
    try:
        network = config.model.network(data.input_shape, loss.n_outputs(data.n_outputs))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    assert isinstance(network, Model)
    d = sum(math.prod(shape) for shape in network.shapes)
    if STATE_BYTES * d > memory():
        size = f"{d:.3g} parameters would take {STATE_BYTES * d / 2**30:.3g} GiB"
        raise ConfigError(
            f"model={config.model.name}: {size}, more than the memory of this machine; make the model smaller"
        )
    return network


def own_model(own: UserModel, seed: int) -> Wrapped:
    """Return the user's module, or that made by the user's function with seeded generators. Raises ConfigError."""
    with seeded(seed % 2**63):
        try:
            made = own if isinstance(own, nn.Module) else own()
        except Exception as error:  # any error of the user's function
            raise ConfigError(f"model: calling {getattr(own, '__name__', own)} failed ({one_line(error)})") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model: must be an nn.Module or a function that makes one, not {type(made).__name__}")
    try:
        return Wrapped(made, own)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def own_start(model: Wrapped, seed: int) -> Tensor:
    """Return the initial parameters of a run: those of the module, or those of one made with the seed."""
    if isinstance(model.source, nn.Module):
        return model.start()
    made = own_model(model.source, seed)
    if (made.names, made.shapes) != (model.names, model.shapes):
        raise ConfigError("model: the function must make modules of the same shapes for every seed")
    for name, value in made.fixed.items():
        if not torch.equal(value.to(model.fixed[name]), model.fixed[name]):
            raise ConfigError(f"model: {name} is not trained but differs between seeds; train these runs one by one")
    return made.start()


def budget_of(config: TrainConfig, n_train: int, batch_size: int) -> int:
    """Return the number of gradient evaluations of a run, rounded down to complete cycles.

    Raises ConfigError for less than one cycle, and for LARGEST_BUDGET or more.
    """
    trainer = config.trainer
    rule = config.optimizer.rule()
    points = rule.replicas or 1  # each replica passes through the data, and each gradient counts
    per_epoch = evaluations_per_epoch(n_train, batch_size, trainer.drop_last) * rule.gradients_per_batch * points
    key = "epochs" if trainer.budget is None else "budget"
    requested = trainer.budget if trainer.budget is not None else round(trainer.epochs * per_epoch)
    cycle = rule.gradients_per_cycle * points
    budget = requested // cycle * cycle
    if budget == 0:
        allowed = f"is {requested} gradient evaluations, must be >= {cycle}, one cycle; otherwise x would never move"
        raise trainer.error(key, allowed)
    if budget >= LARGEST_BUDGET:
        raise trainer.error(key, f"is {requested:.3g} gradient evaluations, must be < {LARGEST_BUDGET:.3g}")
    return budget


def engine_of(config: TrainConfig, problem: Problem, device: torch.device, n_runs: int, batch_size: int) -> str:
    """Return the name of the engine (see Fleet). It depends on the configuration and threads, never on timing.

    Raises ConfigError where trainer.compile cannot be satisfied.
    """
    requested, model = config.trainer.compile, problem.model
    if requested == "on" and not model.batched:
        raise config.trainer.error(
            "compile", "must be auto or off for this model, because its runs are computed one by one"
        )
    if requested == "on" and (reason := why_not_compiled(device.type)):
        raise config.trainer.error("compile", f"torch.compile does not work here ({reason})")
    if requested in ("on", "off"):
        return "compiled" if requested == "on" else "eager"
    c_works = device.type == "cpu" and native.library("normals") is not None
    if persistent.fits(config.optimizer.rule(), problem, device):
        return "persistent"
    if requested == "native" and device.type == "cuda":
        raise config.trainer.error("compile", f"needs {persistent.NEEDS}")
    if requested == "native" and not c_works:
        raise config.trainer.error("compile", "needs a C compiler (gcc or clang)")
    if c_works and isinstance(model, Mlp | LeNet) and model.n_uniform == 0 and not problem.bfloat16:
        widths, images = model.widths, images_of(model)
        supported = NativeGradient.supports(widths, model.activation, problem.loss.name, problem.inputs.dtype, images)
        wanted = requested == "native" or NativeGradient.worthwhile(widths, batch_size, n_runs, images)
        if supported and wanted and problem.augmentation is None:
            return "native"
        if supported and requested == "native":
            _log.warning(
                "trainer.compile=native: with dataset.augment the gradient is computed by PyTorch, only the update by C"
            )
    budget = budget_of(config, len(problem.targets), batch_size)
    otherwise = "native_update" if c_works else "eager"
    if requested == "auto" and device.type == "cuda" and isinstance(model, Mlp | LeNet):
        otherwise = "graphed"  # a user's module may use operations that a CUDA graph cannot capture
    if requested == "auto" and model.batched and budget >= COMPILE_FROM.get((device.type, n_runs > 1), math.inf):
        return compiled_or(otherwise, device)
    return otherwise


def engine_of_resumed(engine: str, device: torch.device) -> str:
    """Return the engine with which a resumed run was started if it works here, else eager."""
    kind = ENGINES[engine]
    if kind.compiles:
        return compiled_or("eager", device)
    if kind.needs_c and native.library("normals") is None:
        _log.warning(
            "engine %s needs a C compiler: continuing with engine eager, whose results agree only up to rounding",
            engine,
        )
        return "eager"
    return engine if kind.device in (None, device.type) else "eager"


def compiled_or(otherwise: str, device: torch.device) -> str:
    """Return the engine "compiled" where torch.compile works; else log the reason and return `otherwise`."""
    reason = why_not_compiled(device.type)
    if reason is not None:
        _log.warning("torch.compile does not work here (%s): continuing with engine %s", reason, otherwise)
    return "compiled" if reason is None else otherwise
