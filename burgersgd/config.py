"""The schema of conf/: what can be set, of which type, in which range, and what each name stands for.

Every group is a dataclass whose fields carry their range; setting one checks it. Hydra composes the YAML files of conf/
into these classes, and from Python they are used directly::

    TrainConfig(optimizer=LocalEntropyConfig(nu=1e-6), trainer=TrainerConfig(epochs=20), seed=3)
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from burgersgd.optimizers.protocol import Rule

_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The YAML files: inside an installed wheel, beside the package in a checkout."""


class ConfigError(ValueError):
    """A setting that cannot be used: the message names the key, the value and what is allowed, in one line."""


def opt(
    default: Any = MISSING,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    infinite: bool = False,
    choices: Sequence[str] | None = None,
) -> Any:
    """Return a dataclass field whose value is checked against a range or a list of choices."""
    rule = {"above": above, "at_least": at_least, "below": below, "at_most": at_most, "infinite": infinite}
    metadata = {"range": rule, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def named(*names: str) -> Any:
    """Return the field `name` of a class that stands for these names alone; the first is the default."""
    return opt(names[0], choices=names)


def _allowed(rule: dict[str, Any], value: float) -> str:
    words = {"above": "> {}", "at_least": ">= {}", "below": "< {}", "at_most": "<= {}"}
    parts = [words[k].format(f"{v:g}") for k, v in rule.items() if k in words and v is not None]
    if not (math.isfinite(value) or rule["infinite"]):
        parts.append("finite")
    return " and ".join(parts) + (" (inf allowed)" if rule["infinite"] else "")


@dataclass
class Group:
    """Base of all groups: type and range of a field are checked whenever it is set. Raises ConfigError."""

    group: ClassVar[str] = ""

    def __setattr__(self, key: str, value: Any) -> None:
        known = {f.name: f for f in dataclasses.fields(self)}
        if key not in known:
            raise self._error(key, value, f"no such key; there are {', '.join(known)}")
        object.__setattr__(self, key, self._checked(known[key], value))

    def __post_init__(self) -> None:
        """Check what several fields decide together: the work of subclasses."""

    def error(self, key: str, allowed: str) -> ConfigError:
        """Return the error for one of this group's keys."""
        return self._error(key, getattr(self, key), allowed)

    def _error(self, key: str, value: Any, allowed: str) -> ConfigError:
        path = f"{self.group}.{key}" if self.group else key
        return ConfigError(f"{path}={_show(value)}: {allowed}")

    def _checked(self, f: dataclasses.Field[Any], given: Any) -> Any:
        kind, _, optional = str(f.type).partition(" | ")
        if given is None:
            if optional:
                return given
            raise self._error(f.name, given, "must not be null")
        try:
            value = _converted(kind, given)
        except TypeError as error:
            raise self._error(f.name, given, f"must be of type {kind}") from error
        rule, choices = f.metadata.get("range"), f.metadata.get("choices")
        if choices and value not in choices:
            raise self._error(f.name, given, f"must be one of {', '.join(choices)}")
        for v in value if isinstance(value, list) else [value]:
            if isinstance(v, str) and any(unicodedata.category(c) in ("Cc", "Cs") for c in v):
                raise self._error(f.name, ascii(given), "must be text without control characters")
            if isinstance(v, int) and abs(v) >= 2**63:
                raise self._error(f.name, given, "must fit into 64 bits")
            if rule and isinstance(v, int | float) and not isinstance(v, bool) and not _within(v, rule):
                raise self._error(f.name, given, f"must be {_allowed(rule, v)}")
        return value


def _converted(kind: str, value: Any) -> Any:
    """Return the value as the type of that name has it (numpy's numbers as Python's); raises TypeError."""
    number = {"int": numbers.Integral, "float": numbers.Real}.get(kind)
    if kind.startswith("list[") and isinstance(value, list | tuple):
        return [_converted(kind[5:-1], v) for v in value]
    if kind.startswith("dict[str, ") and isinstance(value, dict):
        return {_converted("str", k): _converted(kind[10:-1], v) for k, v in value.items()}
    if number and isinstance(value, number) and not isinstance(value, bool):
        return int(value) if kind == "int" else float(value)
    plain = {"bool": bool, "str": str, "Any": object}.get(kind) or globals().get(kind)
    if plain is None or not isinstance(value, plain):
        raise TypeError
    return value


def _within(v: float, rule: dict[str, Any]) -> bool:
    if math.isnan(v) or (math.isinf(v) and not rule["infinite"]):
        return False
    return (
        (rule["above"] is None or v > rule["above"])
        and (rule["at_least"] is None or v >= rule["at_least"])
        and (rule["below"] is None or v < rule["below"])
        and (rule["at_most"] is None or v <= rule["at_most"])
    )


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------------------------- dataset


@dataclass
class DatasetConfig(Group):
    """What all data sets share."""

    group: ClassVar[str] = "dataset"
    name: str = named("digits")
    train_size: int | None = opt(None, at_least=1)
    label_noise: float = opt(0.0, at_least=0, below=1)
    standardize: bool = True
    seed: int = opt(0, at_least=0)
    validation_fraction: float = opt(0.2, above=0, below=1)


@dataclass
class _OwnTestPart(DatasetConfig):
    """Sets without a test part of their own."""

    test_fraction: float = opt(0.2, above=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_fraction + self.test_fraction >= 1:
            raise self.error("test_fraction", f"must be < {1 - self.validation_fraction:g} with validation_fraction")


@dataclass
class DigitsConfig(_OwnTestPart):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""


@dataclass
class VisionConfig(DatasetConfig):
    """A torchvision data set, downloaded on demand."""

    name: str = named("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100")
    root: str = "data"
    download: bool = True
    validation_fraction: float = opt(0.1, above=0, below=1)


@dataclass
class Mnist1dConfig(_OwnTestPart):
    """MNIST-1D, generated by procedure."""

    name: str = named("mnist1d")
    n_samples: int = opt(5000, at_least=50)


@dataclass
class TwoSpiralsConfig(_OwnTestPart):
    """Two interleaved spirals."""

    name: str = named("two_spirals")
    n_samples: int = opt(2000, at_least=20)
    noise: float = opt(0.1, at_least=0)
    turns: float = opt(1.5, above=0)


@dataclass
class TeacherStudentConfig(_OwnTestPart):
    """Regression on the outputs of a random network."""

    name: str = named("teacher_student")
    n_samples: int = opt(4000, at_least=20)
    input_dim: int = opt(16, at_least=1)
    teacher_width: int = opt(16, at_least=1)
    teacher_depth: int = opt(1, at_least=0, at_most=1000)
    outputs: int = opt(1, at_least=1)
    noise: float = opt(0.1, at_least=0)


@dataclass
class NpzConfig(_OwnTestPart):
    """The user's own arrays."""

    name: str = named("npz")
    path: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise self.error("path", "must be the path of an .npz file")


# ------------------------------------------------------------------------------------------------------------ model

_INITIALIZATIONS = ("he", "glorot", "lecun", "pytorch")


@dataclass
class ModelConfig(Group):
    """What all models share."""

    group: ClassVar[str] = "model"
    name: str = named("mlp")
    dropout: float = opt(0.0, at_least=0, below=1)
    initialization: str = opt("he", choices=_INITIALIZATIONS)
    init_distribution: str = opt("normal", choices=("normal", "uniform"))
    init_scale: float = opt(1.0, above=0, at_most=1e6)


@dataclass
class MlpConfig(ModelConfig):
    """A fully connected network (2.2)-(2.4)."""

    depth: int = opt(2, at_least=0, at_most=1000)
    width: int = opt(64, at_least=1)
    widths: list[int] | None = opt(None, at_least=1)  # noqa: RUF009  (opt returns a dataclass field)
    activation: str = opt("relu", choices=("relu", "tanh", "sigmoid", "gelu", "silu", "elu", "softplus", "identity"))


@dataclass
class LeNetConfig(ModelConfig):
    """LeNet-5 for images."""

    name: str = named("lenet")


@dataclass
class LossConfig(Group):
    """The loss (2.5)-(2.8)."""

    group: ClassVar[str] = "loss"
    name: str = opt("cross_entropy", choices=("cross_entropy", "squared_error", "logistic"))


# -------------------------------------------------------------------------------------------------------- optimizer


@dataclass
class OptimizerConfig(Group):
    """Base of the optimizers: every float is a hyperparameter that may differ between the runs of a fleet."""

    group: ClassVar[str] = "optimizer"
    full_batch: ClassVar[bool] = False
    name: str = ""
    lr: float = opt(0.1, above=0)

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        raise NotImplementedError

    def hyper(self) -> dict[str, float]:
        """Return the float hyperparameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if str(f.type) == "float"}


@dataclass
class LocalEntropyConfig(OptimizerConfig):
    """The consistent two-time-scale rule; see burgersgd/optimizers/local_entropy.py."""

    name: str = named("local_entropy")
    lr: float = opt(0.3, above=0)
    nu: float = opt(1e-7, at_least=0)
    gamma: float = opt(10.0, above=0, infinite=True)
    inner_steps: int = opt(20, at_least=1)
    burn_in: int = opt(0, at_least=0)
    outer_step: float = opt(1.0, above=0, at_most=1)
    inner_start: str = opt("warm", choices=("warm", "reset"))
    averaging: str = opt("uniform", choices=("uniform", "ema", "last"))
    ema_weight: float = opt(0.25, above=0, at_most=1)
    integrator: str = opt("em", choices=("em", "leimkuhler_matthews"))
    gamma_scoping: float = opt(0.0, at_least=0)
    gamma_min: float = opt(0.0, at_least=0)
    nu_annealing: str = opt("constant", choices=("constant", "linear", "cosine"))
    momentum: float = opt(0.0, at_least=0, below=1)
    outer_momentum: float = opt(0.0, at_least=0, below=1)
    nesterov: bool = False
    weight_decay: float = opt(0.0, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0 and self.outer_momentum == 0:
            raise self.error("nesterov", "needs optimizer.momentum > 0 or optimizer.outer_momentum > 0")
        if self.nu > 0 and self.momentum > 0:
            law = f"with optimizer.momentum={self.momentum:g} needs optimizer.nu=0: the noisy y would have no known law"
            if self.nesterov:
                raise self.error("nesterov", law)
            if self.integrator != "em":
                raise self.error("integrator", law)
        if self.gamma_min > self.gamma:
            raise self.error("gamma_min", f"must be <= optimizer.gamma={self.gamma:g}")

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        from burgersgd.optimizers.local_entropy import LocalEntropy

        return LocalEntropy(
            inner_steps=self.inner_steps,
            burn_in=self.burn_in,
            inner_start=self.inner_start,  # pyright: ignore[reportArgumentType]
            averaging=self.averaging,  # pyright: ignore[reportArgumentType]
            integrator=self.integrator,  # pyright: ignore[reportArgumentType]
            nu_annealing=self.nu_annealing,  # pyright: ignore[reportArgumentType]
            noisy=self.nu > 0,
            has_momentum=self.momentum > 0,
            has_outer_momentum=self.outer_momentum > 0,
            has_weight_decay=self.weight_decay > 0,
            nesterov=self.nesterov,
        )


@dataclass
class PaperSDEConfig(OptimizerConfig):
    """Euler-Maruyama of (5.14) with explicit epsilon."""

    name: str = named("paper_sde")
    lr: float = opt(0.3, above=0)
    nu: float = opt(1e-6, at_least=0)
    gamma: float = opt(1.0, above=0)
    epsilon: float = opt(0.3, above=0)
    temperature: str = opt("printed", choices=("printed", "consistent"))

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        from burgersgd.optimizers.paper import PaperSDE

        return PaperSDE(temperature=self.temperature, noisy=self.nu > 0)  # pyright: ignore[reportArgumentType]


@dataclass
class PaperLiteralConfig(OptimizerConfig):
    """(5.18)-(5.19) to the letter."""

    name: str = named("paper_literal")
    lr: float = opt(0.3, above=0)
    nu: float = opt(1e-6, at_least=0)
    gamma: float = opt(1.0, above=0)
    period: int | None = opt(None, at_least=1)
    noise: str = opt("double", choices=("double", "std"))

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        from burgersgd.optimizers.paper import PaperLiteral

        return PaperLiteral(period=self.period, noise=self.noise, noisy=self.nu > 0)  # pyright: ignore[reportArgumentType]


@dataclass
class SgdConfig(OptimizerConfig):
    """Mini-batch SGD."""

    name: str = named("sgd")
    lr: float = opt(0.3, above=0)
    momentum: float = opt(0.0, at_least=0, below=1)
    nesterov: bool = False
    weight_decay: float = opt(0.0, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise self.error("nesterov", "needs optimizer.momentum > 0")

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        from burgersgd.optimizers.sgd import Sgd

        return Sgd(self.momentum > 0, self.weight_decay > 0, self.nesterov)


@dataclass
class GdConfig(SgdConfig):
    """Gradient descent on the whole training set (2.9)."""

    full_batch: ClassVar[bool] = True
    name: str = named("gd")
    lr: float = opt(0.1, above=0)
    momentum: float = opt(0.9, at_least=0, below=1)


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW."""

    name: str = named("adamw")
    lr: float = opt(1e-3, above=0)
    beta1: float = opt(0.9, at_least=0, below=1)
    beta2: float = opt(0.999, at_least=0, below=1)
    eps: float = opt(1e-8, above=0)
    weight_decay: float = opt(1e-2, at_least=0)

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        from burgersgd.optimizers.adam import AdamW

        return AdamW()


@dataclass
class LangevinConfig(OptimizerConfig):
    """Stochastic gradient Langevin dynamics."""

    name: str = named("langevin")
    lr: float = opt(0.3, above=0)
    temperature: float = opt(1e-7, at_least=0)
    weight_decay: float = opt(0.0, at_least=0)

    def rule(self) -> Rule:
        """Return the update rule with its static choices."""
        from burgersgd.optimizers.langevin import Langevin

        return Langevin(self.weight_decay > 0, self.temperature > 0)


# --------------------------------------------------------------------------------------------------------- schedule


@dataclass
class ScheduleConfig(Group):
    """A factor on lr as a function of the fraction of the budget."""

    group: ClassVar[str] = "schedule"
    name: str = named("constant")
    warmup: float = opt(0.0, at_least=0, below=1)

    def hyper(self) -> dict[str, float]:
        """Return the float parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if str(f.type) == "float"}


@dataclass
class StepScheduleConfig(ScheduleConfig):
    """lr is multiplied by decay after every fraction `every` of the budget."""

    name: str = named("step")
    decay: float = opt(0.2, above=0, at_most=1)
    every: float = opt(0.3, above=0, at_most=1)


@dataclass
class CosineScheduleConfig(ScheduleConfig):
    """Half a cosine from 1 to final."""

    name: str = named("cosine")
    final: float = opt(0.0, at_least=0, at_most=1)


@dataclass
class LinearScheduleConfig(ScheduleConfig):
    """A straight line from 1 to final."""

    name: str = named("linear")
    final: float = opt(0.0, at_least=0, at_most=1)


# ------------------------------------------------------------------------------------------------- trainer, device

LARGEST_BUDGET = 2**53
"""Gradient evaluations from which on float64 cannot tell one fraction of the budget from the next."""


@dataclass
class TrainerConfig(Group):
    """Budget, batches, logging and arithmetic."""

    group: ClassVar[str] = "trainer"
    budget: int | None = opt(None, at_least=1, below=LARGEST_BUDGET)
    epochs: float = opt(100.0, above=0)
    batch_size: int = opt(32, at_least=1)
    with_replacement: bool = False
    drop_last: bool = False
    eval_every: int | None = opt(None, at_least=1)
    log_every: int | None = opt(None, at_least=1)
    clip_norm: float | None = opt(None, above=0)
    explosion_factor: float = opt(1e6, above=1, infinite=True)
    checkpoint_every: int | None = opt(None, at_least=1)
    checkpoint_minutes: float = opt(5.0, above=0, infinite=True)
    compile: str = opt("auto", choices=("auto", "on", "off", "native"))
    precision: str = opt("float32", choices=("float32", "bfloat16", "float64"))
    deterministic: bool = False


@dataclass
class DeviceConfig(Group):
    """Where to compute."""

    group: ClassVar[str] = "device"
    name: str = opt("auto", choices=("auto", "cpu", "cuda", "mps"))
    index: int = opt(0, at_least=0)
    threads: int | None = opt(None, at_least=1, at_most=1024)


# ------------------------------------------------------------------------------------------------------------- sweep


@dataclass
class SweepConfig(Group):
    """What --multirun tries: see burgersgd/sweeps/space.py."""

    group: ClassVar[str] = "sweep"
    name: str | None = None
    sampler: str = opt("grid", choices=("grid", "random", "sobol", "optuna"))
    n_samples: int = opt(16, at_least=1)
    batch: int = opt(16, at_least=1)
    seed: int = opt(0, at_least=0)
    objective: str = opt("last", choices=("last", "best"))
    zip: list[str] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    max_runs: int | None = opt(None, at_least=1)
    prune: str = opt("none", choices=("none", "median", "halving"))
    prune_from: float = opt(0.1, above=0, below=1)
    workers: int | None = opt(None, at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise self.error("name", "must be a folder's name of letters, digits and _ . -")


@dataclass
class TrainConfig(Group):
    """One run."""

    dataset: DatasetConfig = field(default_factory=DigitsConfig)
    model: ModelConfig = field(default_factory=MlpConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=LocalEntropyConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = opt(0, at_least=0, below=2**63)
    output_root: str = "outputs"
    run_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        cycle = getattr(self.optimizer, "inner_steps", 1) + getattr(self.optimizer, "burn_in", 0)
        if self.trainer.budget is not None and self.trainer.budget < cycle:
            raise self.trainer.error(
                "budget", f"must be >= optimizer.burn_in + optimizer.inner_steps = {cycle}, or x would never move"
            )
        if self.run_name is not None:
            name = Path(self.run_name)
            if name.is_absolute() or not name.parts or ".." in name.parts:
                raise self.error("run_name", "must name a folder below output_root")


GROUPS: dict[str, dict[str, type[Group]]] = {
    "dataset": {
        "digits": DigitsConfig,
        **dict.fromkeys(("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"), VisionConfig),
        "mnist1d": Mnist1dConfig,
        "two_spirals": TwoSpiralsConfig,
        "teacher_student": TeacherStudentConfig,
        "npz": NpzConfig,
    },
    "model": {"mlp": MlpConfig, "lenet": LeNetConfig},
    "loss": dict.fromkeys(("cross_entropy", "squared_error", "logistic"), LossConfig),
    "optimizer": {
        "local_entropy": LocalEntropyConfig,
        "paper_literal": PaperLiteralConfig,
        "paper_sde": PaperSDEConfig,
        "sgd": SgdConfig,
        "gd": GdConfig,
        "adamw": AdamWConfig,
        "langevin": LangevinConfig,
    },
    "schedule": {
        "constant": ScheduleConfig,
        "step": StepScheduleConfig,
        "cosine": CosineScheduleConfig,
        "linear": LinearScheduleConfig,
        "warmup": ScheduleConfig,
    },
    "device": dict.fromkeys(("auto", "cpu", "cuda", "mps"), DeviceConfig),
    "trainer": {"default": TrainerConfig},
    "sweep": dict.fromkeys(("default", "seeds", "tuning"), SweepConfig),
}
"""Group -> choice -> class: the names that a command line may use."""


def register_schemas() -> None:
    """Store every class under schema/GROUP/CHOICE, where the YAML files of conf/ refer to it."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    for group, choices in GROUPS.items():
        for name, cls in choices.items():
            store.store(group=f"schema/{group}", name=name, node=cls)
    root = OmegaConf.structured(TrainConfig)
    for group in GROUPS:
        root[group] = "???"  # the choice of the defaults list decides on the class
    store.store(group="schema", name="train", node=root)
