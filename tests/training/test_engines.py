"""The boundary to C is checked, and a fleet that is no longer used is freed."""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from burgersgd.build import parts
from burgersgd.build.prepared import prepare
from burgersgd.config import DigitsConfig, SgdConfig, TrainerConfig
from burgersgd.training.engines import ENGINES
from burgersgd.training.engines.codegen import FusedUpdate
from burgersgd.training.engines.compiled import Compiled
from burgersgd.training.engines.eager import _all_healthy
from burgersgd.training.engines.native import Native, NativeSteps
from burgersgd.training.native_gradient import check_size
from tests.conftest import small_config
from tests.training.test_codegen import RULES, block


@pytest.mark.parametrize(
    "engine", ["eager", "graphed", "native", "native_update", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_a_dropped_fleet_is_freed_at_once(engine: str) -> None:
    prepared = prepare([small_config(seed=s) for s in range(2)])
    prepared.engine = engine
    prepared.fleet().advance(3)  # what is only done once in a process may well remember it
    gc.collect()
    gc.disable()
    try:
        fleet = prepared.fleet()
        fleet.advance(12)
        gone = [weakref.ref(fleet), weakref.ref(fleet.runs), weakref.ref(fleet.state.x), weakref.ref(fleet.inputs)]
        del fleet
        assert [ref() for ref in gone] == [None] * 4
    finally:
        gc.enable()


def test_the_names_of_the_engines_are_those_that_are_documented() -> None:
    assert list(ENGINES) == ["eager", "graphed", "compiled", "persistent", "native", "native_update"]


def test_an_engine_that_does_not_work_here_is_replaced_by_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert {name: parts.engine_of_resumed(name, cpu) for name in ENGINES} == {name: name for name in ENGINES} | {
        name: "eager" for name, kind in ENGINES.items() if kind.device == "cuda"
    }
    assert parts.engine_of_resumed("native", torch.device("cuda")) == "eager"
    monkeypatch.setattr(parts.native, "library", lambda _: None)
    monkeypatch.setattr(parts, "why_not_compiled", lambda _: "there is no compiler")
    assert {parts.engine_of_resumed(name, cpu) for name in ENGINES} == {"eager"}


def test_an_engine_that_reads_examples_where_they_lie_refuses_changed_ones() -> None:
    prepared = prepare([small_config(dataset=DigitsConfig(augment="shift"))])
    prepared.engine = "native"
    with pytest.raises(ValueError, match=r"engine native does not support dataset\.augment"):
        prepared.fleet()


def test_a_structure_that_differs_from_its_mirror_is_refused() -> None:
    class Mirror(ctypes.Structure):
        _fields_ = [("a", ctypes.c_int64)]

    def c_size(size: int) -> Any:
        return ctypes.CFUNCTYPE(ctypes.c_int64)(lambda: size)

    check_size(c_size(8), Mirror)
    with pytest.raises(RuntimeError, match=r"Mirror has 8 bytes in Python and 16 in C"):
        check_size(c_size(16), Mirror)


def _state(rule: Any, runs: int, d: int) -> Any:
    return rule.init(torch.randn(runs, d), torch.zeros(runs, d))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s._replace(x=s.y), "two vectors of the state share memory"),
        (lambda s: s._replace(x=torch.zeros(50, 3).T), "must be contiguous"),
        (lambda s: s._replace(x=torch.zeros(6, 50)[:3], y=torch.zeros(3, 50)), None),
        (lambda s: s._replace(x=s.x.double()), "float64"),
        (lambda s: s._replace(mean=torch.zeros(3, 49)), r"\[3, 49\]"),
    ],
)
def test_what_c_would_not_notice_is_refused(spoil: Any, message: str | None) -> None:
    rule, c = block(RULES[0], 3, 1)
    state = spoil(_state(rule, 3, 50))
    if message is None:
        assert FusedUpdate.make(rule, state, c, torch.arange(3)) is not None
        return
    with pytest.raises(ValueError, match=message):
        FusedUpdate.make(rule, state, c, torch.arange(3))


def test_overlapping_vectors_pieces_and_seeds_are_refused() -> None:
    rule, c = block(RULES[0], 1, 1)
    state, memory = _state(rule, 1, 50), torch.zeros(1, 99)
    with pytest.raises(ValueError, match="share memory"):
        FusedUpdate.make(rule, state._replace(x=memory[:, :50], y=memory[:, 49:]), c, torch.arange(1))
    with pytest.raises(ValueError, match="seeds are"):
        FusedUpdate.make(rule, state, c, torch.arange(2))
    with pytest.raises(ValueError, match=r"pieces of \[20, 29\]: must be 50 numbers"):
        FusedUpdate.make(rule, state, c, torch.arange(1), [20, 29])


def test_steps_take_the_gradient_at_a_vector_of_the_state_itself() -> None:
    prepared = prepare([small_config(trainer=TrainerConfig(budget=40, compile="native"))])
    stepper = prepared.fleet().stepper
    assert isinstance(stepper, Native)
    update: Any = stepper.one_by_one.update
    with pytest.raises(ValueError, match="a vector of the updated state"):
        NativeSteps(stepper.steps._gradient, update.update, torch.zeros(1, 5), None)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_there_is_one_openmp_runtime() -> None:
    """Two of them would each have threads of their own, which wait for one another by spinning."""
    program = """
import re
from pathlib import Path
from burgersgd.config import MlpConfig, TrainConfig, TrainerConfig
from burgersgd.build.prepared import prepare
config = TrainConfig(model=MlpConfig(width=8), trainer=TrainerConfig(budget=40, compile="native"))
prepare([config]).fleet().advance(9)
mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
print(*sorted({path for path in mapped if re.search(r"lib(gomp|iomp5|omp)\\b[^/]*\\.so", path)}), sep="\\n")
"""  # in a process of its own: other tests load libraries that bring a runtime, scikit-learn one
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    runtimes = child.stdout.split()
    assert len(runtimes) == 1, runtimes


def test_where_the_compiler_fails_training_continues_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Compiled, size: int) -> Any:
        raise RuntimeError("CppCompileError: C++ compile error\n\nCommand: g++ ...")

    def fleet(engine: str) -> Any:
        configs = [small_config(seed=s, optimizer=SgdConfig(lr=0.1 * (1 + s), momentum=0.6)) for s in range(2)]
        prepared = prepare(configs)
        prepared.engine = engine
        return prepared.fleet()

    monkeypatch.setattr(Compiled, "_program", broken)
    compiled, eager = fleet("compiled"), fleet("eager")
    with caplog.at_level(logging.WARNING, logger="burgersgd"):
        for f in (compiled, eager):
            f.advance(5)
            f.advance(9)
    assert torch.equal(compiled.x, eager.x)
    assert torch.equal(compiled.runs.loss_sum, eager.runs.loss_sum)
    failure = "torch.compile failed (CppCompileError: C++ compile error)"
    message = f"{failure}: continuing without it; results agree only up to rounding"
    assert [record.getMessage() for record in caplog.records] == [message]


@pytest.mark.parametrize("n", [1, 3])
def test_runs_are_healthy_where_every_loss_and_every_norm_is(n: int) -> None:
    """One run is looked at in another way than several: the definition, number by number, is the oracle."""
    bad = [math.nan, math.inf, -math.inf]
    limits = torch.full((n,), 2.5, dtype=torch.float64)
    for loss in (0.5, 2.5, math.nextafter(2.5, 3), *bad[:2]):
        for norm in (0.0, 1e300, *bad):
            losses, norms = torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
            losses[-1], norms[-1] = loss, norm
            assert _all_healthy(losses, norms, limits) is (loss <= 2.5 and math.isfinite(norm)), (loss, norm)
