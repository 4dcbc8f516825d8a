"""Prepares the runs of a fleet: loads the data, builds the model and checks everything, without writing any file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burgersgd import streams
from burgersgd.build.parts import (
    DTYPES,
    GPU_FROM,
    UserData,
    UserModel,
    budget_of,
    check_labels,
    dataset_of,
    device_of,
    engine_of,
    engine_of_resumed,
    loss_of,
    maker_of,
    model_of,
    own_start,
)
from burgersgd.build.probe import probe
from burgersgd.build.rates import Facts, resolved, with_loss
from burgersgd.config import ConfigError, TrainConfig
from burgersgd.copies import plain_values
from burgersgd.datasets import Batches, DataError, Dataset, Part
from burgersgd.datasets.augment import augmentation_of
from burgersgd.datasets.preprocess import memory
from burgersgd.isolation import threads_hang
from burgersgd.losses import SquaredError
from burgersgd.models.conv import LeNet
from burgersgd.models.mlp import Mlp
from burgersgd.models.own_module import same_values
from burgersgd.models.wrapped import Wrapped
from burgersgd.predictor import described, trained_parameters
from burgersgd.streams import Purpose
from burgersgd.training.engines import ENGINES, Kind
from burgersgd.training.evaluation import Evaluator
from burgersgd.training.fleet import Fleet
from burgersgd.training.gradients import Problem, split
from burgersgd.training.stability import top_eigenvalue

_log = logging.getLogger("burgersgd")

SMALL = 4_000_000
"""Parameters times examples of a step below which several threads are not faster, and are slower on a busy machine."""


def fleet_key(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that must be equal in all runs of a fleet, by dotted key."""
    free = {"seed", "run_name", *(f"sweep.{name}" for name in vars(config.sweep))}
    for part in ("optimizer", "schedule"):
        free |= {f"{part}.{name}" for name in getattr(config, part).hyper()}
    flat = {}
    for name, value in plain_values(config).items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return {k: v for k, v in flat.items() if k not in free} | {"update rule": config.optimizer.rule()}


def prepare(
    configs: Sequence[TrainConfig],
    *,
    model: UserModel | None = None,
    dataset: UserData | None = None,
    engine: str | None = None,
    threads: int | None = None,
) -> Prepared:
    """Load the data, build the model and check that everything fits together, without writing any file.

    engine and threads are those of the run being resumed; None leaves the choice to the configuration. Raises the same
    errors as train.
    """
    if not configs:
        raise ConfigError("configs: must have at least one configuration")
    config = configs[0]
    key = fleet_key(config)
    for other in configs[1:]:
        theirs = fleet_key(other)
        for name in key | theirs:
            if key.get(name) != theirs.get(name):
                raise ConfigError(f"{name}={theirs.get(name)}: must be {key.get(name)} in every run of a fleet")
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    dtype = DTYPES[config.trainer.precision]
    _check_threads(config, threads)
    data = dataset_of(config, dataset)
    check_labels(config, data)
    config = with_loss(config, data.task)
    loss = loss_of(config, data)
    maker = maker_of(config, data, loss) if model is None else model
    network = model_of(config, data, loss, maker)
    batch_size = data.n_train if config.optimizer.full_batch else config.trainer.batch_size
    if batch_size > data.n_train:
        raise config.trainer.error("batch_size", f"must be <= {data.n_train}, the number of training examples")
    device = device_of(config, batch_size * sum(math.prod(shape) for shape in network.shapes))
    if isinstance(network, Wrapped):
        network.to(device, dtype)
    on_device = data.to(device, dtype)
    wide = 12 * data.n_train * data.n_outputs  # int64, then a float
    if isinstance(loss, SquaredError) and data.task == "classification" and wide > memory() / 2:
        size = f"{data.n_train} vectors of {data.n_outputs} classes take {wide / 2**30:.3g} GiB"
        raise config.loss.error("name", f"{size}, more than half the memory of this machine")
    train_targets = loss.encode(on_device.train.targets, data.n_outputs, dtype)
    augmentation = augmentation_of(config.dataset.augment, on_device)
    bfloat16 = config.trainer.precision == "bfloat16"
    problem = Problem(network, loss, on_device.train.inputs, train_targets, bfloat16, augmentation)
    probe(problem, loss.n_outputs(data.n_outputs), len(configs), _batch_sizes(config, data.n_train, batch_size))
    threads = config.device.threads if threads is None else threads
    if threads is None and len(configs) * problem.d * batch_size < SMALL:
        threads = 1
    with _torch_threads(threads):
        if engine is None:
            chosen = engine_of(config, problem, device, len(configs), batch_size)
        else:
            chosen = engine_of_resumed(engine, device)
    if len(configs) > 1 and network.batched and not ENGINES[chosen].gradient_in_c:
        importlib.import_module("torch._dynamo")  # else torch's first vmap imports it, which keeps a fleet alive
    budget = budget_of(config, data.n_train, batch_size)
    facts = Facts(
        data.task, math.prod(data.input_shape), model is not None, budget, functools.cache(lambda: prepared.curvature())
    )
    prepared = Prepared(
        configs=list(configs),
        data=on_device,
        problem=problem,
        batch_size=batch_size,
        budget=budget,
        engine=chosen,
        threads=threads,
        own_model=model is not None,
        data_digest=data.digest,
        own_data=dataset is not None,
        facts=facts,
    )
    prepared.configs = [resolved(config, facts) for config in configs]
    return prepared


def _check_threads(config: TrainConfig, threads: int | None) -> None:
    """Raise ConfigError where the requested number of threads would hang; use one thread where none is requested."""
    requested = config.device.threads if threads is None else threads
    if (torch.get_num_threads() if requested is None else requested) > 1 and threads_hang():
        forked = "this process was forked from one that had used several threads, after which OpenMP hangs"
        if requested is not None:
            raise config.device.error("threads", f"must be 1: {forked}; use multiprocessing's start method spawn")
        _log.warning("computing with one thread: %s", forked)
        torch.set_num_threads(1)


@contextlib.contextmanager
def _torch_threads(n: int | None) -> Iterator[None]:
    """Let torch use n CPU threads within the block; None keeps the present number."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if n is None else n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """Compute float32 in full precision and reproducibly within the block.

    Products and convolutions use neither TF32 (on a GPU) nor bfloat16 (on a CPU), and cuDNN uses only deterministic
    algorithms.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cudnn.deterministic = deterministic
        torch.set_float32_matmul_precision(products)


@dataclass
class Prepared:
    """The runs of one fleet, checked and ready to start."""

    configs: list[TrainConfig]
    data: Dataset
    problem: Problem
    batch_size: int
    budget: int
    engine: str
    threads: int | None
    data_digest: str
    """Digest of the prepared data; it does not depend on the device or the precision of the training."""
    own_model: bool
    """Whether the model is a module given in Python; otherwise the configuration defines it."""
    own_data: bool
    """Whether the data are arrays or a Dataset given in Python."""
    facts: Facts
    """Properties of data and model from which settings that a configuration leaves open (auto) are resolved."""

    @property
    def kind(self) -> Kind:
        """The properties of the engine."""
        return ENGINES[self.engine]

    def curvature(self) -> float:
        """Return the largest |eigenvalue| of the Hessian at the start of a run of seed 0."""
        start = dataclasses.replace(self, configs=[dataclasses.replace(self.configs[0], seed=0)])
        seed = torch.zeros(1, dtype=torch.int64, device=self.problem.inputs.device)
        return top_eigenvalue(self.problem, start.initial(seed)[0])

    @property
    def gpu_work(self) -> float:
        """Work of one step of one run, in units of the work from which device=auto chooses a GPU."""
        return self.problem.d * self.batch_size / GPU_FROM

    @contextlib.contextmanager
    def torch_settings(self) -> Iterator[None]:
        """Let torch use the configured threads and algorithms within the block.

        Raises ConfigError for an operation that trainer.deterministic forbids.
        """
        trainer = self.configs[0].trainer
        before = torch.are_deterministic_algorithms_enabled()
        with _torch_threads(self.threads), _exact_float32():
            try:
                if before != trainer.deterministic:  # the call imports the compiler
                    torch.use_deterministic_algorithms(trainer.deterministic)
                yield
            except RuntimeError as error:
                named = re.match(r"(\S+) does not have a deterministic implementation", str(error))
                if named is None:
                    raise
                raise trainer.error(
                    "deterministic", f"{named.group(1)} has no deterministic implementation on this device"
                ) from error
            finally:
                if before != trainer.deterministic:
                    torch.use_deterministic_algorithms(before)

    @functools.cached_property
    def network(self) -> dict[str, Any]:
        """Description needed to turn x of a checkpoint into an ordinary module and a predictor of raw inputs."""
        problem = self.problem
        return {
            "parameters": [[name, list(p.shape)] for name, p in trained_parameters(problem.model).items()],
            "predictor": described(problem.model, self.own_model, self.configs[0].model, problem.loss, self.data),
        }

    def check_same(self, checkpoint: Mapping[str, Any], folder: object) -> None:
        """Raise ConfigError where a run was trained with another module, and DataError where on other data."""
        recorded, now = checkpoint.get("predictor"), self.network  # version 0.1.0 stored neither structure nor digest
        same = [[name, list(shape)] for name, shape in checkpoint["parameters"]] == now["parameters"]
        if not same or (recorded is not None and recorded["structure"] != now["predictor"]["structure"]):
            raise ConfigError(f"model: differs from the module with which {folder} was trained")
        for name, value in {} if recorded is None else recorded["fixed"].items():
            if name not in self.changing and not same_values(value, now["predictor"]["fixed"].get(name)):
                raise ConfigError(f"model: {name}, which is not trained, differs from that of {folder}")
        digest = checkpoint.get("data")
        if digest not in (None, self.data_digest):
            change = f"digest {digest[:8]}, now {self.data_digest[:8]}"
            raise DataError(f"dataset={self.data.name}: the data changed since {folder} was trained on them ({change})")

    @property
    def changing(self) -> tuple[str, ...]:
        """Names of the model's buffers that training changes."""
        model = self.problem.model
        return model.changing if isinstance(model, Wrapped) else ()

    def fleet(self) -> Fleet:
        """Return the fleet of the runs at the start of training."""
        config, device = self.configs[0], self.problem.inputs.device
        augmentation = self.problem.augmentation
        seeds = torch.tensor([c.seed for c in self.configs], dtype=torch.int64, device=device)
        return Fleet(
            problem=self.problem,
            rule=config.optimizer.rule(),
            hyper=_columns([c.optimizer.hyper() for c in self.configs]),
            schedule=config.schedule.name,
            schedule_hyper=_columns([c.schedule.hyper() for c in self.configs]),
            batches=Batches(
                self.data.n_train,
                self.batch_size,
                seeds,
                with_replacement=config.trainer.with_replacement and not config.optimizer.full_batch,
                drop_last=config.trainer.drop_last,
                variants=1 if augmentation is None else augmentation.variants,
            ),
            seeds=seeds,
            x0=self.initial(seeds),
            budget=self.budget,
            engine=self.engine,
            clip_norm=config.trainer.clip_norm,
            explosion_factor=config.trainer.explosion_factor,
            buffers=self._buffers(),
        )

    def _buffers(self) -> dict[str, Tensor] | None:
        """Return the initial buffers of all runs; None where training changes none."""
        model, n = self.problem.model, len(self.configs)
        if not (isinstance(model, Wrapped) and model.changing):
            return None
        return {name: torch.stack([model.fixed[name]] * n) for name in model.changing}

    @functools.cached_property
    def buffers_at(self) -> Callable[[Tensor], dict[str, Tensor]] | None:
        """Function from x ``[d]`` to batch statistics estimated at x on training data; None for models without any."""
        model, trainer = self.problem.model, self.configs[0].trainer
        if not (isinstance(model, Wrapped) and model.changing):
            return None
        inputs, size = self.problem.inputs, self.batch_size
        return lambda x: model.statistics_at(split(x, model.shapes), inputs, size, trainer.bn_batches)

    def initial(self, seeds: Tensor) -> Tensor:
        """Return the initial parameters of all runs, each from its own stream (seed, INIT, 0)."""
        model, inputs = self.problem.model, self.problem.inputs
        if isinstance(model, Wrapped):
            return torch.stack([own_start(model, c.seed) for c in self.configs]).to(inputs)
        assert isinstance(model, Mlp | LeNet)
        z = torch.empty(1, len(self.configs), self.problem.d)  # drawn on the CPU, so that all devices get the same bits
        if model.init_distribution == "normal":
            streams.normal_(z, seeds.cpu(), Purpose.INIT, 0)
        else:  # uniform with variance 1
            z = (2 * streams.uniform_(z, seeds.cpu(), Purpose.INIT, 0) - 1) * math.sqrt(3)
        return z[0].mul_(model.init_std().to(z)).to(inputs)

    def evaluator(self, part: Part) -> Evaluator:
        """Return the evaluator of loss and error on a part of the data."""
        problem = self.problem
        targets = problem.loss.encode(part.targets, self.data.n_outputs, problem.inputs.dtype)
        classification = self.data.task == "classification"
        deviation = self.data.units.target_deviation
        return Evaluator(
            model=problem.model,
            loss=problem.loss,
            classification=classification,
            inputs=part.inputs,
            labels=part.targets,
            targets=targets,
            scale=deviation.to(targets) if deviation.dim() else None,
            native=self.kind.gradient_in_c,
            buffers_at=self.buffers_at,
        )


def _batch_sizes(config: TrainConfig, n: int, batch_size: int) -> set[int]:
    """Return the sizes of all batches of a run: the last one of an epoch may be short."""
    last = n % batch_size
    return (
        {batch_size} if config.trainer.drop_last or config.trainer.with_replacement or not last else {batch_size, last}
    )


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, Tensor]:
    """Return the float hyperparameters of all runs, float64 ``[runs, 1]`` each."""
    return {name: torch.tensor([[row[name]] for row in rows], dtype=torch.float64) for name in rows[0]}
