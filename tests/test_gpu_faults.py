"""Faults that only a GPU shows, emulated without one: stand-ins for torch.cuda, and tensors without memory ("meta")."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from burgersgd import streams_triton
from burgersgd.build.prepared import prepare
from burgersgd.config import MlpConfig, TrainConfig
from burgersgd.losses import LOSSES
from burgersgd.models.wrapped import Wrapped
from burgersgd.native.cuda import Kernel
from burgersgd.sweeps import planning, workers
from burgersgd.training import evaluation
from burgersgd.training.engines.compiled import Compiled
from burgersgd.training.engines.graphs import WARM_UP, Capture
from burgersgd.training.evaluation import Evaluator
from tests.conftest import small_config


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let torch.cuda.device and device_of change a current device that is the last of the list; streams name theirs."""
    devices = [0]

    @contextlib.contextmanager
    def device(of: Any) -> Iterator[None]:
        devices.append(of.device.index if hasattr(of, "device") else of.index)
        yield
        devices.pop()

    def stream() -> Any:
        return SimpleNamespace(on=devices[-1], cuda_stream=devices[-1], wait_stream=lambda other: None)

    for name, stand_in in {"device": device, "device_of": device, "Stream": stream, "current_stream": stream}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return devices


def test_graphs_are_captured_on_the_device_of_the_fleet(current: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []
    graph = SimpleNamespace(pool=lambda: "pool", replay=lambda: None)

    @contextlib.contextmanager
    def capturing(of: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        seen.append(("graph", stream.on, current[-1]))
        yield

    @contextlib.contextmanager
    def on(stream: Any) -> Iterator[None]:
        seen.append(("stream", stream.on, current[-1]))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "stream", on)
    done: list[int] = []
    capture = Capture(torch.device("cuda", 1))
    capture.warm_up(lambda: done.append(1))
    capture(lambda: done.append(2))
    assert seen == [("stream", 1, 1), ("graph", 1, 1)]
    assert done == [1] * WARM_UP + [2]


def test_kernels_start_on_the_device_and_stream_of_what_they_fill(
    current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Launcher:
        def __getitem__(self, grid: object) -> Any:
            return lambda *arguments, **options: started.append(current[-1])

    monkeypatch.setattr(streams_triton, "_fill", Launcher())
    out: Any = SimpleNamespace(shape=(2, 3, 50), device=torch.device("cuda", 1))
    streams_triton.fill(out, 2, out, 2, 0, 0)
    kernel: Any = object.__new__(Kernel)
    kernel._device, kernel._threads, kernel._shared_bytes, kernel._function = torch.device("cuda", 1), 32, 0, None
    calls: list[tuple[Any, ...]] = []
    kernel._call = lambda *arguments: calls.append((current[-1], *arguments))
    arguments: Any = ctypes.c_int64(3)
    kernel(4, arguments)
    assert started == [1]
    device, name, *_, stream, _parameters, _extra = calls[0]
    assert (device, name, stream.value) == (1, "cuLaunchKernel", 1)


def test_a_rate_is_measured_with_the_work_done_not_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is counted here: a launch costs a microsecond, the step itself a millisecond, for which one has to wait."""
    now, queued = [0.0], [0]

    class Queue:
        n_runs, points, budget, step = 4, 1, 10_000, 0
        x = SimpleNamespace(device=torch.device("cuda"))

        def advance(self, n: int) -> None:
            queued[0] += n
            now[0] += 1e-6 * n

    def synchronize(device: object) -> None:
        now[0] += 1e-3 * queued[0]
        queued[0] = 0

    made = SimpleNamespace(torch_settings=contextlib.nullcontext, fleet=Queue)
    monkeypatch.setattr(planning, "prepare", lambda configs, threads: made)
    monkeypatch.setattr(planning.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert planning.rate_of([TrainConfig()], seconds=1.0) == pytest.approx(4 / 1.001e-3, rel=0.05)


def test_memory_that_torch_keeps_for_later_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (500, 9999))
    assert planning.available_memory(torch.device("cuda")) == 1200


@pytest.mark.parametrize(
    ("visible", "count", "theirs"),
    [("", 2, ["0", "1", "0"]), ("4,7", 2, ["4", "7", "4"]), ("", 0, ["0", "0", "0"]), ("5", 1, ["5", "5", "5"])],
)
def test_workers_share_the_gpus_there_are(
    visible: str, count: int, theirs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(workers, "_Worker", lambda threads, gpu: gpu)
    given: Any = workers.Pool(3, 1, gpus=True).workers
    assert given == theirs
    given = workers.Pool(3, 1).workers
    assert given == [None] * 3


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)
        self.register_buffer("shift", torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1) + self.get_buffer("shift"))


def test_buffers_of_own_modules_go_to_the_device_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[torch.device, torch.dtype]] = []
    move = Wrapped.to

    def noted(self: Wrapped, device: torch.device, dtype: torch.dtype) -> None:
        moved.append((device, dtype))
        move(self, device, dtype)

    monkeypatch.setattr(Wrapped, "to", noted)
    prepared: Any = prepare([small_config()], model=Shifted())
    assert moved == [(prepared.problem.inputs.device, torch.float64)]
    model: Wrapped = prepared.problem.model
    model.to(torch.device("meta"), torch.float32)
    assert {(value.device.type, value.dtype) for value in model.fixed.values()} == {("meta", torch.float32)}


@pytest.mark.parametrize(("examples", "at_once"), [(300, 873), (4096, 64), (50_000, 64)])
def test_a_gpu_evaluates_no_more_examples_at_once_than_fit(
    examples: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def vmap(function: Any, chunk_size: int) -> Any:
        seen.append(chunk_size)
        return lambda x: (x.new_zeros(len(x)), x.new_zeros(len(x)))

    monkeypatch.setattr(evaluation, "vmap", vmap)
    model: Any = prepare([small_config()]).problem.model
    inputs, labels = torch.empty(examples, 64, device="meta"), torch.empty(examples, device="meta")
    evaluate = Evaluator(model, LOSSES["cross_entropy"], True, inputs, labels, labels)
    evaluate(torch.empty(1024, 9, device="meta"))
    assert seen == [at_once]
    assert at_once * min(examples, evaluation.CHUNK) <= evaluation.EXAMPLES_OF_ALL_RUNS


def test_a_data_set_is_copied_to_a_device_once_for_all_who_use_it() -> None:
    data = prepare([small_config()]).data
    first = data.to("meta", torch.float32)
    assert data.to("meta", torch.float32) is first
    assert data.to("meta", torch.float64).train.inputs.dtype == torch.float64
    assert first.train.inputs.device.type == "meta"
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None  # nobody needs it any more
    assert data.to("meta", torch.float32).train.inputs.dtype == torch.float32


@pytest.mark.parametrize(("runs", "steps"), [(1, 64), (16, 64), (64, 16), (1024, 1)])
def test_a_gpu_draws_normal_numbers_for_many_steps_at_once(runs: int, steps: int) -> None:
    inputs = prepare([small_config(model=MlpConfig())]).fleet().inputs
    inputs.__dict__.pop("draw_length", None)
    inputs.n_runs, inputs.device = runs, torch.device("cuda")
    inputs.uniform_shape = (runs, 30, 0)
    assert inputs.d == 8970
    assert inputs.draw_length == steps


def test_the_form_of_sums_is_not_chosen_by_a_clock_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare([small_config()])
    prepared.engine = "compiled"
    seen: list[Any] = []

    def compiler(function: Any, **options: Any) -> Any:
        seen.append(options["options"].get("deterministic"))
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    for captures in (False, True):
        one = prepared.fleet()
        engine: Any = one.stepper
        assert isinstance(engine, Compiled)
        one.inputs.load(0)
        engine.captures = captures
        engine._program(30)
    assert seen == [None, True]
