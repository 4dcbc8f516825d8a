"""The schema of conf/: all keys with their types and ranges, and the class behind each name.

Every group is a dataclass whose fields have a meaning and a range; setting a field checks it. Hydra composes the YAML
files of conf/ into these classes, and from Python they are used directly::

    TrainConfig(optimizer=LocalEntropyConfig(nu=1e-6), trainer=TrainerConfig(epochs=20), seed=3)

The configuration class of an optimizer, a model or a data set is defined next to what it configures; it can be imported
from here, too. This module does not import torch, so that shell completion and help are fast.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from burgersgd.registry import Registry
from burgersgd.schema import ConfigError as ConfigError
from burgersgd.schema import DatasetConfig, Group, ModelConfig, OptimizerConfig, float_values, named, opt
from burgersgd.schema import SplitDatasetConfig as SplitDatasetConfig

if TYPE_CHECKING:
    from burgersgd.datasets.arrays import NpzConfig as NpzConfig
    from burgersgd.datasets.digits import DigitsConfig as DigitsConfig
    from burgersgd.datasets.embedded import DiabetesConfig as DiabetesConfig
    from burgersgd.datasets.embedded import Mnist5kConfig as Mnist5kConfig
    from burgersgd.datasets.embedded import TableConfig as TableConfig
    from burgersgd.datasets.synthetic import Mnist1dConfig as Mnist1dConfig
    from burgersgd.datasets.synthetic import TeacherStudentConfig as TeacherStudentConfig
    from burgersgd.datasets.synthetic import TwoSpiralsConfig as TwoSpiralsConfig
    from burgersgd.datasets.vision import VisionConfig as VisionConfig
    from burgersgd.hydra_schemas import register_schemas as register_schemas
    from burgersgd.models.conv import LeNetConfig as LeNetConfig
    from burgersgd.models.mlp import MlpConfig as MlpConfig
    from burgersgd.optimizers.adam import AdamWConfig as AdamWConfig
    from burgersgd.optimizers.asam import AsamConfig as AsamConfig
    from burgersgd.optimizers.langevin import LangevinConfig as LangevinConfig
    from burgersgd.optimizers.local_entropy import LocalEntropyConfig as LocalEntropyConfig
    from burgersgd.optimizers.paper import PaperLiteralConfig as PaperLiteralConfig
    from burgersgd.optimizers.paper import PaperSDEConfig as PaperSDEConfig
    from burgersgd.optimizers.sam import SamConfig as SamConfig
    from burgersgd.optimizers.sgd import GdConfig as GdConfig
    from burgersgd.optimizers.sgd import SgdConfig as SgdConfig

_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
"""The folder of the YAML files: inside the package in an installed wheel, next to the package in a checkout."""

_DATASETS, _MODELS, _OPTIMIZERS = "burgersgd.datasets", "burgersgd.models", "burgersgd.optimizers"
_SHIPPED = {
    "dataset": {
        "digits": f"{_DATASETS}.digits:DigitsConfig",
        **dict.fromkeys(
            ("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"), f"{_DATASETS}.vision:VisionConfig"
        ),
        "mnist1d": f"{_DATASETS}.synthetic:Mnist1dConfig",
        "two_spirals": f"{_DATASETS}.synthetic:TwoSpiralsConfig",
        "teacher_student": f"{_DATASETS}.synthetic:TeacherStudentConfig",
        **dict.fromkeys(("breast_cancer", "wine", "iris"), f"{_DATASETS}.embedded:TableConfig"),
        "diabetes": f"{_DATASETS}.embedded:DiabetesConfig",
        "mnist5k": f"{_DATASETS}.embedded:Mnist5kConfig",
        "npz": f"{_DATASETS}.arrays:NpzConfig",
    },
    "model": {"mlp": f"{_MODELS}.mlp:MlpConfig", "lenet": f"{_MODELS}.conv:LeNetConfig"},
    "optimizer": {
        "local_entropy": f"{_OPTIMIZERS}.local_entropy:LocalEntropyConfig",
        "paper_literal": f"{_OPTIMIZERS}.paper:PaperLiteralConfig",
        "paper_sde": f"{_OPTIMIZERS}.paper:PaperSDEConfig",
        "sgd": f"{_OPTIMIZERS}.sgd:SgdConfig",
        "gd": f"{_OPTIMIZERS}.sgd:GdConfig",
        "adamw": f"{_OPTIMIZERS}.adam:AdamWConfig",
        "langevin": f"{_OPTIMIZERS}.langevin:LangevinConfig",
        "sam": f"{_OPTIMIZERS}.sam:SamConfig",
        "asam": f"{_OPTIMIZERS}.asam:AsamConfig",
    },
}
"""Group -> name -> location of its class; to ship another one, add a line here and run scripts/write_conf.py."""

_ELSEWHERE = {place.partition(":")[2]: place for names in _SHIPPED.values() for place in names.values()}
_ELSEWHERE["register_schemas"] = "burgersgd.hydra_schemas:register_schemas"  # defined in this module in 0.1.0


def __getattr__(name: str) -> Any:
    """Return an object of another module, which is imported when it is first used."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _ELSEWHERE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


# ---------------------------------------------------------------------------------------------------- loss, schedule


@dataclass
class LossConfig(Group):
    """The loss function (2.5)-(2.8)."""

    group: ClassVar[str] = "loss"
    name: str = named(
        auto="squared_error for real targets, else cross_entropy",
        cross_entropy="-log softmax(output)[class]",
        squared_error="|output - target|^2; classes become one-hot vectors",
        logistic="log(1 + exp(-t output)), two classes t = -1, +1",
    )


@dataclass
class ScheduleConfig(Group):
    """The learning rate is constant after an optional linear warm-up."""

    group: ClassVar[str] = "schedule"
    name: str = named("constant")
    warmup: float = opt(0.0, "fraction of the budget during which lr rises linearly from 0", at_least=0, below=1)

    def hyper(self) -> dict[str, float]:
        """Return the float parameters by name."""
        return float_values(self)


@dataclass
class StepScheduleConfig(ScheduleConfig):
    """The learning rate is multiplied by a factor after every interval."""

    name: str = named("step")
    decay: float = opt(0.2, "factor by which lr is multiplied after every interval", above=0, at_most=1)
    every: float = opt(0.3, "length of an interval as a fraction of the budget", above=0, at_most=1)


@dataclass
class CosineScheduleConfig(ScheduleConfig):
    """The factor on the learning rate falls from 1 to final along half a cosine."""

    name: str = named("cosine")
    final: float = opt(0.0, "factor on lr at the end of the budget", at_least=0, at_most=1)


@dataclass
class LinearScheduleConfig(ScheduleConfig):
    """The factor on the learning rate falls linearly from 1 to final."""

    name: str = named("linear")
    final: float = opt(0.0, "factor on lr at the end of the budget", at_least=0, at_most=1)


# ------------------------------------------------------------------------------------------------- trainer, device

LARGEST_BUDGET = 2**53
"""Number of gradient evaluations above which float64 cannot distinguish consecutive fractions of the budget."""


@dataclass
class TrainerConfig(Group):
    """Budget, batches, logging, checkpoints, engine and precision."""

    group: ClassVar[str] = "trainer"
    budget: int | None = opt(
        None,
        "number of gradient evaluations, rounded down to complete cycles; null: that of trainer.epochs",
        at_least=1,
        below=LARGEST_BUDGET,
    )
    epochs: float = opt(
        100.0,
        "number of passes over the training part; used only if trainer.budget is null",
        above=0,
        hashed=False,
        unused_with="budget",
    )
    batch_size: int = opt(32, "number of examples in the mini-batch of a gradient evaluation", at_least=1)
    with_replacement: bool = opt(
        False, "draw every batch independently (2.13) instead of a fresh permutation each epoch"
    )
    drop_last: bool = opt(False, "leave out the last batch of an epoch if it is shorter than the others")
    eval_every: int | None = opt(
        None,
        "gradient evaluations between two evaluations on the validation part; null: 50 evaluations per run",
        at_least=1,
    )
    log_every: int | None = opt(
        None, "gradient evaluations between two rows of metrics.csv; null: 200 rows per run", at_least=1, hashed=False
    )
    bn_batches: int = opt(
        32,
        "number of training batches from which batch normalisation statistics are estimated before x is evaluated",
        at_least=1,
        since="0.2",
    )
    clip_norm: float | None = opt(
        None, "largest norm of a gradient, to which longer gradients are scaled down; null: no limit", above=0
    )
    explosion_factor: float = opt(
        1e6,
        "a run has diverged if its loss exceeds this factor times max(1, first loss); .inf: only if it is not finite",
        above=1,
        infinite=True,
    )
    checkpoint_every: int | None = opt(
        None,
        "gradient evaluations between two checkpoints, in addition to those of checkpoint_minutes; null: no others",
        at_least=1,
        hashed=False,
    )
    checkpoint_minutes: float = opt(
        5.0,
        "minutes between two checkpoints; .inf: only at the end and when interrupted",
        above=0,
        infinite=True,
        hashed=False,
    )
    sinks: list[str] = opt(
        ["tensorboard"],
        "trackers that receive the metrics of a run: tensorboard, mlflow or a registered name; [] for none",
        since="0.2",
        hashed=False,
    )
    compile: str = opt(
        "auto",
        "engine; on: torch.compile; off: eager PyTorch; native: own C or CUDA kernels; auto: by size of the run",
        choices=("auto", "on", "off", "native"),
    )
    precision: str = opt(
        "float32",
        "number format of network and state; bfloat16: only of the network, with the state in float32",
        choices=("float32", "bfloat16", "float64"),
    )
    deterministic: bool = opt(False, "raise an error for operations whose result may differ between two executions")


@dataclass
class DeviceConfig(Group):
    """The device on which runs are computed."""

    group: ClassVar[str] = "device"
    name: str = named(
        auto="a CUDA GPU, if there is one and parameters times batch size >= 4 million, otherwise the CPU",
        cpu="the CPU",
        cuda="an NVIDIA GPU",
        mps="an Apple GPU",
    )
    index: int = opt(0, "index of the GPU", at_least=0)
    threads: int | None = opt(
        None,
        "number of CPU threads; null: one for small networks, otherwise PyTorch's default",
        at_least=1,
        at_most=1024,
    )


# ------------------------------------------------------------------------------------------------------------- sweep


@dataclass
class SweepConfig(Group):
    """The settings of a sweep (--multirun).

    KEY=a,b,c and KEY=range(3) list values; 'KEY=interval(a,b)' is a range to sample from, 'KEY=tag(log, interval(a,b))'
    one on a logarithmic scale, 'KEY=int(interval(a,b))' one of whole numbers.
    """

    group: ClassVar[str] = "sweep"
    name: str | None = opt(None, "name of the sweep and of its folder below output_root/multirun; null: date and time")
    sampler: str = opt(
        "grid",
        "grid: all combinations of the listed values; random, sobol: n_samples points of the ranges for each "
        "combination; optuna: a search with n_samples trials",
        choices=("grid", "random", "sobol", "optuna"),
    )
    n_samples: int = opt(
        16,
        "number of points of the ranges (a larger number extends the same sequence), or of trials with sampler=optuna",
        at_least=1,
    )
    batch: int = opt(
        16, "number of trials that are proposed and trained together; used only with sampler=optuna", at_least=1
    )
    seed: int = opt(0, "seed of the sampler (random, sobol, optuna)", at_least=0)
    objective: str = opt(
        "last",
        "validation error that a search minimises: the last or the best of a run; a diverged run counts as +inf",
        choices=("last", "best"),
    )
    zip: list[str] = opt([], "keys whose lists are paired element by element, such as [optimizer.nu,optimizer.gamma]")
    params: dict[str, str] = opt({}, "KEY: VALUES, further keys to vary; the command line takes precedence")
    spaces: dict[str, dict[str, str]] = opt(
        {},
        "OPTIMIZER: {KEY: VALUES}, keys to vary for each of several optimizers, which get equally many trials",
        since="0.2",
    )
    max_runs: int | None = opt(
        None,
        "largest number of runs that are trained as one computation; null: the fastest number that fits into memory",
        at_least=1,
    )
    prune: str = opt(
        "none",
        "early stopping of runs by comparison; median: those worse than the median; halving: two thirds of the runs "
        "whenever the number of gradient evaluations has tripled",
        choices=("none", "median", "halving"),
    )
    prune_from: float = opt(0.1, "fraction of the budget before which prune stops no run", above=0, below=1)
    code: str = opt(
        "any",
        "what to do if other versions of the code trained jobs of the sweep; same: refuse to resume it; any: warn",
        choices=("any", "same"),
        since="0.2",
    )
    workers: int | None = opt(
        None,
        "number of processes that train on this machine; null: one per core or GPU, but 1 for short sweeps",
        at_least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise self.error("name", "must consist of letters, digits, _ . and -, and not start with . or -")


# --------------------------------------------------------------------------------------------------------------- all

GROUPS: dict[str, Registry] = {
    "dataset": Registry("dataset", _SHIPPED["dataset"], DatasetConfig),
    "model": Registry("model", _SHIPPED["model"], ModelConfig),
    "loss": Registry("loss", dict.fromkeys(("auto", "cross_entropy", "squared_error", "logistic"), LossConfig)),
    "optimizer": Registry("optimizer", _SHIPPED["optimizer"], OptimizerConfig),
    "schedule": Registry(
        "schedule",
        {
            "constant": ScheduleConfig,
            "step": StepScheduleConfig,
            "cosine": CosineScheduleConfig,
            "linear": LinearScheduleConfig,
            "warmup": ScheduleConfig,
        },
    ),
    "device": Registry("device", dict.fromkeys(("auto", "cpu", "cuda", "mps"), DeviceConfig)),
    "trainer": Registry("trainer", {"default": TrainerConfig}),
    "sweep": Registry("sweep", dict.fromkeys(("default", "seeds", "tuning"), SweepConfig)),
}
"""Group -> choice -> class, by the names that a command line may use."""

PRESETS = {"schedule": ("warmup",), "sweep": ("seeds", "tuning")}
"""Group -> choices that set some keys of another choice; their YAML files are written by hand."""


def _default(group: str, choice: str) -> Callable[[], Any]:
    return lambda: GROUPS[group][choice]()


@dataclass
class TrainConfig(Group):
    """One run."""

    dataset: DatasetConfig = opt(_default("dataset", "digits"))
    model: ModelConfig = opt(_default("model", "mlp"))
    loss: LossConfig = opt(LossConfig)
    optimizer: OptimizerConfig = opt(_default("optimizer", "local_entropy"))
    schedule: ScheduleConfig = opt(ScheduleConfig)
    trainer: TrainerConfig = opt(TrainerConfig)
    device: DeviceConfig = opt(DeviceConfig, hashed=False)
    sweep: SweepConfig = opt(SweepConfig, hashed=False)
    seed: int = opt(
        0, "seed of the initialisation, the order of examples, the noise and the dropout masks", at_least=0, below=2**63
    )
    output_root: str = opt("outputs", "folder in which run folders are created", hashed=False)
    run_name: str | None = opt(None, "name of the run folder; null: date, time, optimizer and data set", hashed=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_root = os.path.expanduser(self.output_root)
        cycle = getattr(self.optimizer, "inner_steps", 1) + getattr(self.optimizer, "burn_in", 0)
        if self.trainer.budget is not None and self.trainer.budget < cycle:
            raise self.trainer.error(
                "budget", f"must be >= optimizer.burn_in + optimizer.inner_steps = {cycle}, or x would never move"
            )
        if getattr(self.dataset, "validation_fraction", None) == 0:
            for key, none in (("sampler", self.sweep.sampler != "optuna"), ("prune", self.sweep.prune == "none")):
                if not none:
                    raise self.sweep.error(key, "needs a validation part to select by: dataset.validation_fraction > 0")
        if self.run_name is not None:
            name = Path(self.run_name)
            if name.is_absolute() or not name.parts or ".." in name.parts:
                raise self.error("run_name", "must name a folder below output_root")


# `from burgersgd.config import *` imports every class, as it did when all of them were defined here.
__all__ = sorted({*_ELSEWHERE, *(name for name in globals() if not name.startswith("_"))})  # pyright: ignore[reportUnsupportedDunderAll]
