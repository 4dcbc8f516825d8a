"""What scripts/benchmark.py measures: workloads, ways to train on them, and the floors below which no way can be.

Everything is a Rival: advance(n) spends n gradient evaluations on each of its runs. All use the same network, data,
batch size and learning rate; those that draw no noise are plain SGD, the others run local_entropy's rule

    y <- y - lr (grad + (y - x) / gamma) + noise_scale xi,   mean <- mean + (y - mean) / (j + 1),   j = 0 ... L - 1
    x <- mean                                                 once every L = INNER_STEPS gradients

with fresh normal numbers xi for every parameter.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from burgersgd import streams
from burgersgd.build.prepared import prepare
from burgersgd.config import (
    ConfigError,
    LocalEntropyConfig,
    MlpConfig,
    OptimizerConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.datasets import Dataset, Part
from burgersgd.native import compiled
from burgersgd.streams import Purpose
from burgersgd.training.engines.eager import OneByOne
from burgersgd.training.engines.native import Native
from burgersgd.training.fleet import Fleet
from burgersgd.training.inputs import BLOCK, DRAW_BYTES

LR, GAMMA, NU, INNER_STEPS = 0.01, 1.0, 1e-6, 20
NOISE_SCALE = math.sqrt(4 * NU * LR)
ENDLESS = 10**9
"""A budget that no measurement spends."""


class Rival(Protocol):
    """A way to train: `runs` runs, advanced by multiples of `unit` gradient evaluations of each."""

    runs: int
    unit: int
    warm_up: int
    """Evaluations before the clock starts: everything is compiled and every batch size was seen."""

    def advance(self, n: int) -> None:
        """Spend n evaluations, a multiple of unit, on each run."""
        ...


@dataclass(frozen=True)
class Workload:
    """A network, data and batch size."""

    name: str
    title: str
    hidden: tuple[int, ...]
    batch_size: int
    jax_steps: int
    """Gradient evaluations in one call of the JAX rivals, a multiple of INNER_STEPS."""
    mnist_shaped: bool = False

    @cached_property
    def data(self) -> Dataset:
        """The digits, or random numbers of MNIST's shape."""
        if not self.mnist_shaped:
            return prepare([TrainConfig()]).data
        generator = torch.Generator().manual_seed(0)

        def part(n: int) -> Part:
            return Part(torch.randn(n, 784, generator=generator), torch.randint(10, (n,), generator=generator))

        return Dataset("random", "classification", part(4096), part(512), part(512), 10)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of all layers."""
        return (math.prod(self.data.input_shape), *self.hidden, self.data.n_outputs)

    @property
    def d(self) -> int:
        """Number of parameters."""
        return sum((n_in + 1) * n_out for n_in, n_out in _layers(self.widths))

    @property
    def training_arrays(self) -> tuple[Tensor, Tensor]:
        """Inputs ``[n, features]`` and classes ``[n]``."""
        return self.data.train.inputs.flatten(1), self.data.train.targets

    @property
    def epoch(self) -> int:
        """Gradient evaluations of one epoch."""
        return -(-self.data.n_train // self.batch_size)

    def network(self) -> nn.Sequential:
        """Return the network as an ordinary module."""
        modules: list[nn.Module] = []
        for n_in, n_out in _layers(self.widths):
            modules += [nn.Linear(n_in, n_out), nn.ReLU()]
        return nn.Sequential(*modules[:-1])

    def config(self, optimizer: OptimizerConfig, compile: str, budget: int | None = ENDLESS) -> TrainConfig:
        """Return the configuration of one run."""
        return TrainConfig(
            model=MlpConfig(widths=list(self.hidden)),
            optimizer=optimizer,
            trainer=TrainerConfig(batch_size=self.batch_size, compile=compile, budget=budget),
        )


WORKLOADS = {
    w.name: w
    for w in (
        Workload("w1", "digits, MLP 64-64-64-10, batch 32", (64, 64), 32, 1000),
        Workload("w2", "digits, MLP 64-64-64-10, batch 128", (64, 64), 128, 1000),
        Workload("w3", "MNIST-shaped, MLP 784-1024-1024-10, batch 128", (1024, 1024), 128, 20, mnist_shaped=True),
    )
}


def _layers(widths: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(widths))


# ----------------------------------------------------------------------------------------------------- PyTorch, eager


def loaded_batches(work: Workload) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for ever as PyTorch's tutorials do."""
    data = torch.utils.data.TensorDataset(*work.training_arrays)
    loader = torch.utils.data.DataLoader(data, batch_size=work.batch_size, shuffle=True)
    while True:
        yield from loader


def in_memory_batches(work: Workload) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches for ever, cut from one permutation of the tensors per epoch."""
    inputs, targets = work.training_arrays
    while True:
        for chosen in torch.randperm(len(inputs)).split(work.batch_size):
            yield inputs.index_select(0, chosen), targets.index_select(0, chosen)


class TorchSgd:
    """nn.Sequential and torch.optim.SGD."""

    runs, unit = 1, 1

    def __init__(self, work: Workload, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.warm_up = batches, work.epoch
        self.network = work.network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=LR)

    def advance(self, n: int) -> None:
        """Take n steps."""
        for inputs, targets in islice(self.batches, n):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.network(inputs), targets).backward()
            self.optimizer.step()


class ClosureEntropySgd(torch.optim.Optimizer):
    """The two-time-scale rule as an eager optimizer whose step evaluates a closure INNER_STEPS times."""

    def __init__(self, params: Iterator[nn.Parameter]) -> None:
        super().__init__(params, {})
        self.ys: list[nn.Parameter] = self.param_groups[0]["params"]
        self.xs = [y.detach().clone() for y in self.ys]
        self.means = [y.detach().clone() for y in self.ys]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run one cycle of the fast points (here the parameters), then move the slow ones to their mean."""
        for j in range(INNER_STEPS):
            with torch.enable_grad():
                closure()
            for y, x, mean in zip(self.ys, self.xs, self.means, strict=True):
                assert y.grad is not None
                drift = y.grad.add_(y - x, alpha=1 / GAMMA)
                y.add_(drift, alpha=-LR).add_(torch.randn_like(y), alpha=NOISE_SCALE)
                mean.lerp_(y, 1 / (j + 1))
        for x, mean in zip(self.xs, self.means, strict=True):
            x.copy_(mean)


class TorchEntropySgd:
    """The training loop around ClosureEntropySgd."""

    runs, unit = 1, INNER_STEPS

    def __init__(self, work: Workload) -> None:
        self.batches = in_memory_batches(work)
        self.warm_up = -(-work.epoch // self.unit) * self.unit
        self.network = work.network()
        self.optimizer = ClosureEntropySgd(self.network.parameters())

    def advance(self, n: int) -> None:
        """Take n / INNER_STEPS optimizer steps."""
        for _ in range(n // self.unit):
            self.optimizer.step(self._closure)

    def _closure(self) -> None:
        inputs, targets = next(self.batches)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.network(inputs), targets).backward()


# ---------------------------------------------------------------------------------------------------------------- JAX


class JaxEntropySgd:
    """The same rule under jax.jit: scan over cycles and, within, over gradients; vmap over runs; donated state.

    generator is jax's name of one. flat: one call draws the normal numbers of all parameters (else one per array).
    """

    def __init__(self, work: Workload, generator: str, flat: bool, runs: int = 1) -> None:
        import jax  # pyright: ignore[reportMissingImports]

        self.runs = runs
        self.unit = self.warm_up = work.jax_steps
        self.batch_size = work.batch_size
        self.cycles_done = 0
        self.random = np.random.default_rng(0)
        inputs, targets = (jax.numpy.asarray(t.numpy()) for t in work.training_arrays)
        self.n = len(inputs)
        call = _jax_cycles(inputs, targets, flat)
        key = jax.random.key(0, impl=generator)
        points = tuple(_jax_parameters(work) for _ in range(3))
        if runs == 1:
            self.state = (*points, key)
        else:
            stacked = jax.tree.map(lambda a: jax.numpy.stack([a] * runs), points)
            self.state = (*stacked, jax.random.split(key, runs))
            call = jax.vmap(call, in_axes=(0, 0, None))
        self.call = jax.jit(call, donate_argnums=0)

    def advance(self, n: int) -> None:
        """Take n / unit calls."""
        import jax  # pyright: ignore[reportMissingImports]

        for _ in range(n // self.unit):
            indices = np.stack([self._indices() for _ in range(self.runs)])
            self.state = self.call(self.state, indices[0] if self.runs == 1 else indices, self.cycles_done)
            self.cycles_done += self.unit // INNER_STEPS
        jax.block_until_ready(self.state)

    def _indices(self) -> np.ndarray:
        """Return the examples of one call, [cycles, INNER_STEPS, batch]; short batches are left out."""
        whole = self.n // self.batch_size * self.batch_size
        wanted = self.unit * self.batch_size
        epochs = [self.random.permutation(self.n)[:whole] for _ in range(-(-wanted // whole))]
        return np.concatenate(epochs)[:wanted].reshape(-1, INNER_STEPS, self.batch_size).astype(np.int32)


def _jax_parameters(work: Workload) -> list[tuple[Any, Any]]:
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    random = np.random.default_rng(0)
    return [
        (
            jnp.asarray(random.normal(0, math.sqrt(2 / n_in), (n_in, n_out)), jnp.float32),
            jnp.zeros(n_out, jnp.float32),
        )
        for n_in, n_out in _layers(work.widths)
    ]


def _jax_cycles(inputs: Any, targets: Any, flat: bool) -> Callable[..., Any]:
    """Return the function (x, y, mean, key), indices, first cycle -> the state after len(indices) cycles."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    from jax.flatten_util import ravel_pytree  # pyright: ignore[reportMissingImports]

    def loss(layers: Any, batch: Any, classes: Any) -> Any:
        for weight, bias in layers[:-1]:
            batch = jax.nn.relu(batch @ weight + bias)
        weight, bias = layers[-1]
        log_p = jax.nn.log_softmax(batch @ weight + bias)
        return -jnp.take_along_axis(log_p, classes[:, None], axis=1).mean()

    def normals(key: Any, like: Any) -> Any:
        if flat:
            vector, unravel = ravel_pytree(like)
            return unravel(jax.random.normal(key, vector.shape))
        leaves, tree = jax.tree.flatten(like)
        drawn = [jax.random.normal(jax.random.fold_in(key, i), leaf.shape) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(tree, drawn)

    def gradient_step(state: Any, now: Any) -> Any:
        x, y, mean, key = state
        chosen, j, step = now
        grad = jax.grad(loss)(y, inputs[chosen], targets[chosen])
        xi = normals(jax.random.fold_in(key, step), y)
        y = jax.tree.map(lambda y, x, g, xi: y - LR * (g + (y - x) / GAMMA) + NOISE_SCALE * xi, y, x, grad, xi)
        mean = jax.tree.map(lambda mean, y: mean + (y - mean) / (j + 1), mean, y)
        return (x, y, mean, key), None

    def cycle(state: Any, now: Any) -> Any:
        indices, number = now
        j = jnp.arange(INNER_STEPS)
        (_, y, mean, key), _ = jax.lax.scan(gradient_step, state, (indices, j, number * INNER_STEPS + j))
        return (mean, y, mean, key), None

    def cycles(state: Any, indices: Any, first: Any) -> Any:
        return jax.lax.scan(cycle, state, (indices, first + jnp.arange(len(indices))))[0]

    return cycles


# --------------------------------------------------------------------------------------------------------- burgersgd


class Burgers:
    """burgersgd: Fleet.advance, without evaluation, logging and recording."""

    unit = 1

    def __init__(self, work: Workload, compile: str, runs: int = 1, optimizer: str = "local_entropy") -> None:
        """Raises ConfigError where this engine does not support the workload."""
        settings = {
            "local_entropy": LocalEntropyConfig(lr=LR, gamma=GAMMA, nu=NU, inner_steps=INNER_STEPS),
            "sgd": SgdConfig(lr=LR),
        }[optimizer]
        config = work.config(settings, compile)
        configs = [TrainConfig(**{**vars(config), "seed": seed}) for seed in range(runs)]
        prepared = prepare(configs, dataset=work.data)
        if compile == "auto":
            prepared.engine = automatic_engine(work, runs)  # by the default budget, not by that of the benchmark
        self.fleet: Fleet = prepared.fleet()
        self.prepared = prepared
        self.runs = runs
        self.warm_up = work.epoch + 1  # an epoch ends with a short batch, which is compiled apart

    def advance(self, n: int) -> None:
        """Spend n evaluations on each run."""
        self.fleet.advance(n)

    def check(self) -> None:
        """Raise RuntimeError where a run has diverged: its later steps would not be worth measuring."""
        if not bool(self.fleet.alive.all()):
            raise RuntimeError(f"diverged at {self.fleet.diverged_at.tolist()}")


def automatic_engine(work: Workload, runs: int = 1) -> str:
    """Return what compile=auto chooses for a run of the default length."""
    config = work.config(LocalEntropyConfig(), "auto", budget=None)
    return prepare([TrainConfig(**{**vars(config), "seed": s}) for s in range(runs)], dataset=work.data).engine


def rivals(work: Workload) -> dict[str, Callable[[], Rival]]:
    """Return all ways to train on a workload by name, each to be built when it is its turn."""
    several = 16
    table: dict[str, Callable[[], Rival]] = {
        "P1 torch SGD, DataLoader": lambda: TorchSgd(work, loaded_batches(work)),
        "P2 torch SGD, in memory": lambda: TorchSgd(work, in_memory_batches(work)),
        "P5 eager Entropy-SGD": lambda: TorchEntropySgd(work),
        "P6 JAX threefry, one draw": lambda: JaxEntropySgd(work, "threefry2x32", flat=True),
        "P6 JAX threefry, a draw per array": lambda: JaxEntropySgd(work, "threefry2x32", flat=False),
        "P6 JAX unsafe_rbg, one draw": lambda: JaxEntropySgd(work, "unsafe_rbg", flat=True),
        "sgd off": lambda: Burgers(work, "off", optimizer="sgd"),
        "sgd auto": lambda: Burgers(work, "auto", optimizer="sgd"),
        "local_entropy off": lambda: Burgers(work, "off"),
        "local_entropy auto": lambda: Burgers(work, "auto"),
        "local_entropy on": lambda: Burgers(work, "on"),
        "local_entropy off, 16 runs": lambda: Burgers(work, "off", several),
        "local_entropy auto, 16 runs": lambda: Burgers(work, "auto", several),
        "local_entropy on, 16 runs": lambda: Burgers(work, "on", several),
    }
    if not work.mnist_shaped:  # one call would take half a minute
        table["P6 JAX threefry + vmap, 16 runs"] = lambda: JaxEntropySgd(work, "threefry2x32", True, several)
    return table


# ------------------------------------------------------------------------------------------------------------- floors


class Floor:
    """Something that every gradient evaluation must do at least, `work` being what `per_call` evaluations need."""

    runs, unit, warm_up = 1, 1, 2

    def __init__(self, work: Callable[[], Any], per_call: int = 1) -> None:
        self.work, self.unit = work, per_call
        self.warm_up = 2 * per_call

    def advance(self, n: int) -> None:
        """Do what n evaluations need."""
        for _ in range(n // self.unit):
            self.work()


def matrix_products(work: Workload) -> Callable[[], None]:
    """Return the network's forward and backward products, into memory that is there already."""
    products = []
    for i, (n_in, n_out) in enumerate(_layers(work.widths)):
        inputs, weight, bias = torch.randn(work.batch_size, n_in), torch.randn(n_out, n_in), torch.randn(n_out)
        outputs, delta = torch.randn(work.batch_size, n_out), torch.randn(work.batch_size, n_out)
        products.append((torch.addmm, (bias, inputs, weight.t()), outputs))
        products.append((torch.mm, (delta.t(), inputs), torch.empty_like(weight)))
        if i > 0:
            products.append((torch.mm, (delta, weight), torch.empty_like(inputs)))

    def run() -> None:
        for product, arguments, out in products:
            product(*arguments, out=out)

    return run


def flops(work: Workload) -> int:
    """Return the floating-point operations of matrix_products."""
    layers = _layers(work.widths)
    multiplied = sum(2 * n_in * n_out for n_in, n_out in layers) + sum(n_in * n_out for n_in, n_out in layers[1:])
    return 2 * work.batch_size * multiplied


def copy(n: int) -> Callable[[], Tensor]:
    """Return a copy of n floats: 8 n bytes of traffic."""
    source, target = torch.randn(n), torch.empty(n)
    return lambda: target.copy_(source)


PEAK_OPERATIONS = 2 * 38_400_000
PEAK = """
#include <stdint.h>
#if defined __AVX512F__
#define VECTOR 64
#define SUMS 24
#else
#define VECTOR 32
#define SUMS 12
#endif
typedef float V __attribute__((vector_size(VECTOR)));
float multiply_adds(int64_t n, float x) {
    V sums[SUMS], a = (V){} + x, b = (V){} + 1e-3f;
    for (int i = 0; i < SUMS; i++) sums[i] = (V){} + (float)i;
    for (int64_t done = 0; done < n; done += SUMS * VECTOR / 4)
#pragma GCC unroll 24
        for (int i = 0; i < SUMS; i++) sums[i] = sums[i] * a + b;
    for (int i = 1; i < SUMS; i++) sums[0] += sums[i];
    return sums[0][0];
}
"""
"""Independent multiply-adds of vectors that stay in registers: the limit of one core, whatever is computed."""


def multiply_adds() -> Callable[[], object]:
    """Return a function that does PEAK_OPERATIONS floating-point operations in the registers of one core."""
    built = compiled("peak", PEAK)
    assert built is not None, "the limit of the processor is measured by compiled C"
    function = built.multiply_adds
    function.argtypes, function.restype = [ctypes.c_int64, ctypes.c_float], ctypes.c_float
    return lambda: function(PEAK_OPERATIONS // 2, 0.5)


RULE_TRAFFIC = 6
"""Vectors that local_entropy's step must read (grad, y, x, mean) and write (y, mean)."""
LARGE_COPY, LARGE_PRODUCT = 1 << 26, 2048


def floors(work: Workload) -> dict[str, Callable[[], Rival]]:
    """Return the floors of a workload by name. Normal numbers are drawn in blocks, as the fleet does."""
    seeds = torch.zeros(1, dtype=torch.int64)
    block = max(1, min(64, DRAW_BYTES // (4 * work.d)))
    xi, single = torch.empty(block, 1, work.d), torch.empty(1, 1, work.d)
    square = torch.randn(LARGE_PRODUCT, LARGE_PRODUCT)
    product = torch.empty_like(square)
    return {
        "matrix products": lambda: Floor(matrix_products(work)),
        "copy of d": lambda: Floor(copy(work.d)),
        "normals": lambda: Floor(lambda: streams.normal_(xi, seeds, Purpose.NOISE, 0), block),
        "normals, one step": lambda: Floor(lambda: streams.normal_(single, seeds, Purpose.NOISE, 0)),
        "normals of torch": lambda: Floor(lambda: single.normal_()),
        "multiply-adds": lambda: Floor(multiply_adds()),
        "large product": lambda: Floor(lambda: torch.mm(square, square, out=product)),
        "large copy": lambda: Floor(copy(LARGE_COPY)),
    }


# ------------------------------------------------------------------------------------------------------------ profile


def profile(work: Workload, compile: str) -> dict[str, Callable[[], Rival]]:
    """Return the parts of one step of local_entropy by name, each to be repeated alone; nothing where not supported."""
    try:
        fleet = Burgers(work, compile).fleet
    except ConfigError:
        return {}
    fleet.advance(1)
    inputs, steps = fleet.inputs, fleet.stepper
    steps = steps.one_by_one if isinstance(steps, Native) else steps
    if not isinstance(steps, OneByOne):
        return {}
    at, indices = fleet.rule.gradient_at(inputs.row(0), fleet.state), inputs.indices(0)
    gradient = steps.gradient(at, indices, None)
    grads, norms = [grad.clone() for grad in gradient.grads], gradient.norm.clone()

    parts: dict[str, Callable[[], Rival]] = {
        "gradient": lambda: Floor(lambda: steps.gradient(at, indices, None)),
        "update": lambda: Floor(lambda: steps.update(fleet.runs, inputs, 0, grads, norms, True)),
        "coefficients and batches": lambda: Floor(lambda: inputs.fill(0), BLOCK),
    }
    if inputs.draws.xi is not None:
        parts["normals"] = lambda: Floor(lambda: inputs.draw(0), inputs.draw_length)
    return parts
