"""The engine of one CUDA kernel for many steps, where there is no GPU: the same source as C++, one thread a run.

The oracle is the engine `native`, whose gradient and update are other C.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from burgersgd.build.parts import engine_of
from burgersgd.build.prepared import Prepared, prepare
from burgersgd.config import (
    AdamWConfig,
    AsamConfig,
    DeviceConfig,
    DigitsConfig,
    LangevinConfig,
    LeNetConfig,
    LocalEntropyConfig,
    LossConfig,
    MlpConfig,
    ModelConfig,
    OptimizerConfig,
    PaperLiteralConfig,
    PaperSDEConfig,
    SamConfig,
    SgdConfig,
    TrainConfig,
    TrainerConfig,
)
from burgersgd.datasets import Dataset, Part
from burgersgd.native import cuda
from burgersgd.training.engines import ENGINES, Kind, Task, persistent
from burgersgd.training.engines.compiled import Graphed
from burgersgd.training.engines.persistent import THREADS, Network, Persistent, Plan, args_type, text_of
from burgersgd.training.fleet import Fleet
from burgersgd.training.inputs import Inputs
from burgersgd.training.state import RunState

RULES: dict[str, OptimizerConfig] = {
    "local_entropy": LocalEntropyConfig(lr=0.13, nu=1e-5, gamma=0.7, inner_steps=5, burn_in=3, outer_step=0.8),
    "decayed": LocalEntropyConfig(lr=0.13, nu=1e-5, gamma=0.7, inner_steps=5, weight_decay=1e-2),
    "momentum": LocalEntropyConfig(lr=0.05, nu=1e-5, inner_steps=4, momentum=0.5, outer_momentum=0.3),
    "reset": LocalEntropyConfig(lr=0.1, nu=1e-5, inner_steps=4, inner_start="reset", averaging="ema"),
    "leimkuhler_matthews": LocalEntropyConfig(lr=0.1, nu=1e-5, inner_steps=4, integrator="leimkuhler_matthews"),
    "last": LocalEntropyConfig(lr=0.1, nu=0.0, inner_steps=4, averaging="last"),
    "paper_sde": PaperSDEConfig(),
    "paper_literal": PaperLiteralConfig(period=3),
    "sgd": SgdConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sam": SamConfig(lr=0.1, rho=0.05, momentum=0.6, weight_decay=1e-2),  # looks at the norm
    "asam": AsamConfig(lr=0.1, rho=0.3, eta=0.02, momentum=0.6, weight_decay=1e-2),  # and at one of its own
    "adamw": AdamWConfig(),
    "langevin": LangevinConfig(temperature=1e-5, weight_decay=1e-3),
}
H100 = 232_448
"""Bytes of shared memory that a block of threads may have there."""


@functools.cache
def _library(text: str) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "needs a C++ compiler, as torch.compile does on the CPU"
    folder = Path(tempfile.mkdtemp())
    words = ["-x", "c++", "-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-"]
    subprocess.run([compiler, *words, "-o", str(folder / "cycles.so")], input=text, text=True, check=True)
    return ctypes.CDLL(str(folder / "cycles.so"))


class Emulated:
    """Stands for the kernel on a GPU."""

    def __init__(self, text: str, plan: Plan, fields: int) -> None:
        library = _library(text)
        assert library.args_size() == ctypes.sizeof(args_type(fields))
        assert library.shared_bytes() == plan.shared_bytes
        self.cycles, self.launches = library.cycles, 0

    def __call__(self, runs: int, arguments: ctypes.Structure) -> None:
        assert runs == arguments.runs
        self.launches += 1
        self.cycles(ctypes.byref(arguments))


def configs(n_runs: int, rule: OptimizerConfig, model: ModelConfig | None = None, **trainer: Any) -> list[TrainConfig]:
    trainer = {"budget": 400, "batch_size": 30} | trainer
    return [
        TrainConfig(
            model=model or MlpConfig(depth=2, width=12, activation="tanh"),
            optimizer=dataclasses.replace(rule, lr=rule.hyper()["lr"] * 0.95**seed),
            trainer=TrainerConfig(compile="off", **trainer),
            device=DeviceConfig(name="cpu"),
            seed=seed,
        )
        for seed in range(n_runs)
    ]


def fleet(prepared: Prepared, engine: str, shared_memory: int = H100) -> Fleet:
    def emulated(task: Task, state: RunState, inputs: Inputs) -> Persistent:
        found = text_of(task, state, inputs, shared_memory)
        assert found is not None
        launch = Emulated(*found, fields=sum(field is not None for field in state.rule))
        return Persistent(task, state, inputs, launch)

    prepared.engine = engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "persistent", Kind(emulated))
        return prepared.fleet()


def assert_close(a: Fleet, b: Fleet, rtol: float = 2e-4) -> None:
    assert torch.equal(a.alive, b.alive)
    assert torch.equal(a.diverged_at, b.diverged_at)
    for mine, theirs in zip(a.state, b.state, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol * max(1e-3, float(theirs.abs().max())))
    for name in ("last_loss", "grad_norm", "loss_limit"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=20 * rtol, atol=1e-6)
    torch.testing.assert_close(a.runs.loss_sum, b.runs.loss_sum, rtol=rtol, atol=1e-5)


def both(prepared: Prepared, steps: int = 90, shared_memory: int = H100) -> tuple[Fleet, Fleet]:
    two = fleet(prepared, "persistent", shared_memory), fleet(prepared, "native")
    for each in two:
        each.advance(steps)
    return two


@pytest.mark.parametrize("name", RULES)
def test_every_rule_moves_as_in_the_native_engine(name: str) -> None:
    a, b = both(prepare(configs(2, RULES[name], clip_norm=0.8)))  # two blocks of inputs, a short batch, broken cycles
    assert_close(a, b)
    assert a.stepper.launch.launches == 2  # pyright: ignore[reportAttributeAccessIssue]


def _data(task: str, n_in: int, n_out: int) -> Dataset:
    generator = torch.Generator().manual_seed(n_in)

    def part(n: int) -> Part:
        x = torch.randn(n, n_in, generator=generator)
        if task == "classification":
            return Part(x, torch.randint(n_out, (n,), generator=generator))
        return Part(x, torch.randn(n, n_out, generator=generator))

    return Dataset("random", task, part(70), part(20), part(20), n_out)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("task", "loss", "n_in", "n_out"),
    [
        ("classification", "cross_entropy", 13, 3),
        ("classification", "squared_error", 5, 4),
        ("classification", "logistic", 6, 2),
        ("regression", "squared_error", 8, 3),
    ],
)
@pytest.mark.parametrize(("activation", "depth", "width"), [("relu", 1, 35), ("tanh", 3, 7), ("relu", 0, 4)])
def test_losses_activations_and_shapes(
    task: str, loss: str, n_in: int, n_out: int, activation: str, depth: int, width: int
) -> None:
    model = MlpConfig(depth=depth, width=width, activation=activation)
    plain = configs(2, RULES["sgd"], model, batch_size=47, clip_norm=0.4)
    these = [dataclasses.replace(config, loss=LossConfig(loss)) for config in plain]
    a, b = both(prepare(these, dataset=_data(task, n_in, n_out)), steps=70)
    assert_close(a, b)


def test_rows_of_a_layer_may_be_just_as_long_as_all_rows_after_it() -> None:
    """Then one gradient of activations has its place: Emulated asserts that C and the plan agree on it."""
    model = MlpConfig(widths=[24, 8], activation="tanh")  # rows have 4 numbers more: 28 = 12 + 16, with 10 classes
    assert_close(*both(prepare(configs(1, RULES["sgd"], model)), steps=20))


def test_full_batches_and_small_chunks() -> None:
    prepared = prepare(configs(2, RULES["momentum"], batch_size=1079))
    network = Network.of(prepared.problem.model, "cross_entropy")
    small = next(n for n in range(0, H100, 4) if network.plan(5, n) is not None) * 3 // 2
    plan = network.plan(5, small)
    assert plan is not None
    assert plan[:3] == (16, 1, False)
    assert_close(*both(prepared, 40, shared_memory=small))


def test_an_unhealthy_run_stops_and_the_others_continue() -> None:
    these = configs(3, RULES["local_entropy"])
    these[1] = dataclasses.replace(these[1], optimizer=dataclasses.replace(these[1].optimizer, lr=60.0))
    a, b = both(prepare(these))
    assert a.alive.tolist() == [True, False, True]
    assert_close(a, b)


def test_a_run_is_the_same_bits_alone_and_however_it_is_cut() -> None:
    these = configs(3, RULES["local_entropy"])
    together, alone = fleet(prepare(these), "persistent"), fleet(prepare(these[2:]), "persistent")
    together.advance(100)
    for n in (1, 7, 60, 32):
        alone.advance(n)
    assert torch.equal(together.state.x[2], alone.state.x[0])
    assert torch.equal(together.state.y[2], alone.state.y[0])
    resumed = fleet(prepare(these[2:]), "persistent")
    half = fleet(prepare(these[2:]), "persistent")
    half.advance(37)
    resumed.restore([half.snapshot(0)])
    resumed.advance(63)
    assert torch.equal(resumed.state.mean, alone.state.mean)


def test_what_does_not_fit_or_has_no_lines_is_refused() -> None:
    made = prepare(configs(1, RULES["sgd"])).fleet()
    task: Any = made.stepper.task  # pyright: ignore[reportAttributeAccessIssue]
    assert text_of(task, made.runs, made.inputs, H100) is not None
    assert text_of(task, made.runs, made.inputs, 10_000) is None
    decayed = SgdConfig(lr=0.1, weight_decay=0.1, weight_decay_on="matrices")  # a coefficient of every parameter
    made = prepare(configs(1, decayed)).fleet()
    assert text_of(made.stepper.task, made.runs, made.inputs, H100) is None  # pyright: ignore[reportAttributeAccessIssue]


def test_where_the_kernel_cannot_be_had_graphs_do_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise cuda.CudaError("NVRTC failed (code 6) no")

    made = prepare(configs(1, RULES["sgd"])).fleet()
    task: Any = made.stepper.task  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(cuda, "shared_memory", lambda device: H100)
    monkeypatch.setattr(cuda, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(cuda, "cubin", broken)
    assert isinstance(ENGINES["persistent"].make(task, made.runs, made.inputs), Graphed)
    assert "(NVRTC failed (code 6) no): continuing with CUDA graphs" in caplog.text


def test_which_runs_get_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "shared_memory", lambda device: H100)
    monkeypatch.setattr("burgersgd.build.parts.why_not_compiled", lambda device: None)

    def engine(compile: str = "auto", optimizer: OptimizerConfig | None = None, **model: Any) -> str:
        precision = model.pop("precision", "float32")
        trainer = TrainerConfig(compile=compile, budget=1_000_000, precision=precision)
        config = TrainConfig(model=MlpConfig(**model), optimizer=optimizer or SgdConfig(lr=0.1), trainer=trainer)
        cpu = dataclasses.replace(config, trainer=dataclasses.replace(trainer, compile="off"))
        return engine_of(config, prepare([cpu]).problem, torch.device("cuda"), 1, 32)

    assert engine() == engine("native") == "persistent"
    assert engine("off") == "eager"
    assert engine("on") == "compiled"
    others: list[dict[str, Any]] = [
        {"width": 200},
        {"dropout": 0.2},
        {"precision": "float64"},
        {"precision": "bfloat16"},
        {"activation": "gelu"},
    ]
    for other in others:
        assert engine(**other) == "compiled"
    with pytest.raises(ValueError, match=r"trainer\.compile=native: needs on a GPU a float32 mlp that fits"):
        engine("native", width=200)
    lenet = prepare(configs(1, SgdConfig(lr=0.1), LeNetConfig()), dataset=_images()).problem
    assert not persistent.fits(SgdConfig().rule(), lenet, torch.device("cuda"))
    images = dataclasses.replace(
        configs(1, SgdConfig(lr=0.1), MlpConfig(width=6))[0], dataset=DigitsConfig(augment="shift")
    )
    changed = prepare([images], dataset=_images()).problem
    assert not persistent.fits(SgdConfig().rule(), changed, torch.device("cuda"))
    assert persistent.fits(SgdConfig().rule(), dataclasses.replace(changed, augmentation=None), torch.device("cuda"))


def _images() -> Dataset:
    part = Part(torch.zeros(40, 1, 28, 28), torch.arange(40) % 10)
    return Dataset("images", "classification", part, part, part, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local_entropy", "adamw"])
def test_nvrtc_compiles_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        cuda.compile_source('extern "C" __global__ void nothing() {}', "sm_90")
    except cuda.CudaError as error:
        pytest.skip(str(error))
    made = prepare(configs(1, RULES[name], MlpConfig(depth=2, width=64))).fleet()
    found = text_of(made.stepper.task, made.runs, made.inputs, H100)  # pyright: ignore[reportAttributeAccessIssue]
    assert found is not None
    assert found[1].shared_bytes <= H100
    assert f"#define N_THREADS {found[1].threads}\n" in found[0]
    monkeypatch.setenv("BURGERSGD_CACHE", str(tmp_path))
    cuda.cubin.cache_clear()
    code = cuda.cubin("cycles", found[0], "sm_90")
    (kept,) = tmp_path.glob("*.cubin")
    assert kept.read_bytes() == code
    assert hashlib.sha256(code).hexdigest().startswith(kept.stem.rpartition("-")[2])
    kept.write_bytes(code[:-1])  # what a crash left half written is compiled anew
    cuda.cubin.cache_clear()
    assert cuda.cubin("cycles", found[0], "sm_90") == code
    with pytest.raises(cuda.CudaError, match="NVRTC failed"):
        cuda.compile_source("this is no CUDA", "sm_90")
    assert all(n % 32 == 0 and n * blocks <= 2048 for blocks, n in THREADS.items())


@pytest.mark.parametrize("widths", [(64, 64, 64, 10), (13, 40, 7, 3), (5, 4)])
def test_two_runs_share_a_multiprocessor_where_both_fit_and_only_there(widths: tuple[int, ...]) -> None:
    """CUDA keeps 1 KiB of every block to itself; a block alone may have all but that of its multiprocessor."""
    network = Network(widths, "tanh", "cross_entropy")
    found = set()
    for memory in range(2_000, H100, 500):
        plan = network.plan(3, memory)
        if plan is None:
            assert network._shared_bytes(1, min(persistent.CHUNKS)) > memory
            continue
        room = memory + 1024
        assert plan.blocks * (plan.shared_bytes + 1024) <= room
        assert plan.blocks == 2 or 2 * (network._shared_bytes(1, plan.chunk) + 1024) > room
        found.add(plan.blocks)
    assert found == {1, 2}
