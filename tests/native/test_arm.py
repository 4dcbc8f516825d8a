"""The C kernels compiled for aarch64, whose vectors are NEON's, and run under qemu-user: the same numbers, to rounding.

The program (kernels_main.c) is tested by itself, too, compiled for the machine at hand.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from burgersgd import native, streams
from burgersgd.streams import Purpose
from burgersgd.training import native_gradient
from burgersgd.training.native_gradient import NativeGradient
from tests.training import test_native_gradient as cases

CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
"""In Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user."""
HAS_ARM = bool(shutil.which(CROSS_COMPILER) and shutil.which(EMULATOR))
MACHINES = ["here", pytest.param("aarch64", marks=pytest.mark.skipif(not HAS_ARM, reason="needs a cross compiler"))]
FOLDER = Path(native.__file__).parent
pytestmark = pytest.mark.skipif(native._compiler() is None or platform.system() != "Linux", reason="needs a C compiler")


def program(machine: str, define: str, folder: Path) -> list[str]:
    """Compile kernels_main.c; return the command that runs it."""
    compiler = [CROSS_COMPILER, "-static"] if machine == "aarch64" else [*(native._compiler() or []), "-march=native"]
    flags = [flag for flag in native._REQUIRED if flag not in ("-shared", "-fPIC")]
    path = folder / f"kernels{define}"
    source = Path(__file__).with_name("kernels_main.c")
    defined = [f"-D{define}"] if define else []
    command = [*compiler, *flags, *defined, f"-I{FOLDER}", str(source), "-o", str(path), "-lm"]
    subprocess.run(command, check=True)
    return [EMULATOR, str(path)] if machine == "aarch64" else [str(path)]


def raw(*tensors: Tensor) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def counted(*numbers: int) -> bytes:
    return np.array(numbers, dtype=np.int64).tobytes()


@pytest.mark.parametrize("machine", MACHINES)
def test_random_numbers(machine: str, tmp_path: Path) -> None:
    command = program(machine, "RANDOM_NUMBERS", tmp_path)
    seeds = torch.tensor([3, -7])
    for n in (33, 1000):
        for kind in (streams._Kind.INTEGERS, streams._Kind.UNIFORMS, streams._Kind.NORMALS):
            request = streams._REQUEST.pack(0, 0, 5, 2, 2, n, Purpose.NOISE, 0, kind, 1)
            given = counted(len(request)) + request + raw(seeds)
            done = subprocess.run(command, input=given, capture_output=True, check=True).stdout
            if kind == streams._Kind.NORMALS:
                found = torch.frombuffer(bytearray(done), dtype=torch.float32).view(2, 2, n)
                expected = streams.normal_(torch.empty(2, 2, n), seeds, Purpose.NOISE, 5, backend="torch")
                torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
                continue
            words = streams.integers(seeds, Purpose.NOISE, 5, 2, n, backend="torch")
            if kind == streams._Kind.INTEGERS:
                assert torch.equal(torch.frombuffer(bytearray(done), dtype=torch.int64).view(2, 2, n), words)
            else:
                found = torch.frombuffer(bytearray(done), dtype=torch.float32).view(2, 2, n)
                assert torch.equal(found, (words >> 8).float() * 2.0**-24)


def answer(command: list[str], kernel: NativeGradient, params: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    """Return gradient, loss, norm and sum of the losses as the program computes them."""
    inputs, targets, _ = kernel._kept_alive
    n, d = len(inputs), kernel.n_params
    plan = bytes(kernel._plan)
    sizes = counted(len(plan)) + plan + counted(indices.shape[1], inputs.nbytes, targets.nbytes, d)
    given = sizes + raw(inputs, targets, params, indices, torch.arange(n))
    done = subprocess.run(command, input=given, capture_output=True, check=True).stdout
    runs, size = len(params), params.element_size()
    numbers = torch.frombuffer(bytearray(done[: runs * (d + 2) * size]), dtype=params.dtype)
    losses = torch.frombuffer(bytearray(done[runs * (d + 2) * size :]), dtype=torch.float64)
    return numbers[: runs * d].view(runs, d), numbers[runs * d :][:runs], numbers[runs * (d + 1) :], losses


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("machine", MACHINES)
def test_gradients(machine: str, dtype: torch.dtype, tmp_path: Path) -> None:
    command, tolerance = program(machine, native_gradient._MACROS[dtype], tmp_path), cases.TOLERANCE[dtype]
    for widths, activation, loss in (
        ([17, 1], "tanh", "logistic"),
        ([64, 64, 64, 10], "tanh", "cross_entropy"),
        ([2, 1, 130, 67, 5], "relu", "squared_error"),
    ):
        inputs, targets = cases.make_data(widths, loss, dtype)
        params, indices = cases.make_params(widths, 2, dtype), cases.make_indices(2, 45)
        kernel = NativeGradient(widths, activation, loss, inputs, targets, 2, 64, 1)
        grad, value, norm, total = answer(command, kernel, params, indices)
        for r in range(2):
            rows = indices[r]
            expected_value, expected = cases.oracle(widths, activation, loss, params[r], inputs[rows], targets[rows])
            assert (grad[r] - expected).norm() <= tolerance * expected.norm(), widths
            assert abs(value[r] - expected_value) <= tolerance * abs(expected_value)
            assert abs(norm[r] - expected.norm()) <= 10 * tolerance * norm[r]
            mean, _ = cases.oracle(widths, activation, loss, params[r], inputs, targets)
            assert abs(total[r] - len(inputs) * mean) <= 10 * tolerance * total[r]
    for shape, n_out in cases.LENETS[:2]:
        model, inputs, targets = cases.lenet_case(shape, n_out, "cross_entropy", dtype)
        params, indices = cases.lenet_params(model, 1, dtype), torch.arange(13)[None]
        kernel = NativeGradient.of(model, "cross_entropy", inputs, targets, 1, 16)
        grad, value, _, _ = answer(command, kernel, params, indices)
        expected_value, expected = cases.lenet_oracle(model, "cross_entropy", params[0], inputs[:13], targets[:13])
        assert (grad[0] - expected).norm() <= tolerance * expected.norm(), shape
        assert abs(value[0] - expected_value) <= tolerance * abs(expected_value)
