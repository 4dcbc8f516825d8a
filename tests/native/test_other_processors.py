"""The C kernels compiled for processors with narrower vectors than this one's: the same numbers, to rounding."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from burgersgd import native, streams
from burgersgd.streams import Purpose
from burgersgd.training import native_gradient
from burgersgd.training.native_gradient import NativeGradient
from tests.training import test_native_gradient as cases

ARCHITECTURES = ["x86-64-v2", "x86-64-v3"]  # SSE4.2, AVX2
compiler = native._compiler()
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or compiler is None or "avx2" not in native._processor(),
    reason="needs a C compiler and an x86 processor with AVX2",
)


def compiled_for(architecture: str, name: str, define: str, folder: Path) -> ctypes.CDLL:
    assert compiler is not None
    path = folder / f"{name}{define}.so"
    flags = [*native._REQUIRED, f"-march={architecture}", "-fopenmp", f"-I{Path(native.__file__).parent}"]
    command = [*compiler, *flags, "-x", "c", "-", "-o", str(path), "-lm"]
    subprocess.run(command, input=native.source_text(name, define), text=True, check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_numbers(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiled_for(architecture, "normals", "", tmp_path)
    monkeypatch.setattr(native, "library", lambda name, define="": library)
    fill = streams._native_fill()
    assert fill is not None
    seeds = torch.tensor([3, -7])
    for n in (33, 1000):
        integers = torch.empty(2, 2, n, dtype=torch.int64)
        fill(integers, streams._Kind.INTEGERS, seeds, Purpose.NOISE, 5, 0)
        assert torch.equal(integers, streams.integers(seeds, Purpose.NOISE, 5, 2, n, backend="torch"))
        normals = torch.empty(2, 2, n)
        fill(normals, streams._Kind.NORMALS, seeds, Purpose.NOISE, 5, 0)
        expected = streams.normal_(torch.empty(2, 2, n), seeds, Purpose.NOISE, 5, backend="torch")
        torch.testing.assert_close(normals, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients(architecture: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = compiled_for(architecture, "mlp_gradient", native_gradient._MACROS[dtype], tmp_path)
    monkeypatch.setattr(native_gradient, "library", lambda name, define="": library)
    for widths in ([17, 1], [64, 64, 64, 10], [2, 1, 130, 67, 5]):
        inputs, targets = cases.make_data(widths, "squared_error", dtype)
        params, indices = cases.make_params(widths, 1, dtype), torch.arange(29)[None]
        grad, value, norm = cases.outputs_like(params)
        kernel = NativeGradient(widths, "tanh", "squared_error", inputs, targets, 1, 29)
        kernel(params, indices, grad, value, norm)
        _, expected = cases.oracle(widths, "tanh", "squared_error", params[0], inputs[:29], targets[:29])
        assert float((grad[0] - expected).norm()) < cases.TOLERANCE[dtype] * float(expected.norm())
    for shape, n_out in cases.LENETS:
        model, inputs, targets = cases.lenet_case(shape, n_out, "cross_entropy", dtype)
        params, indices = cases.lenet_params(model, 1, dtype), torch.arange(13)[None]
        grad, value, norm = cases.outputs_like(params)
        kernel = NativeGradient.of(model, "cross_entropy", inputs, targets, 1, 16)
        kernel(params, indices, grad, value, norm)
        _, expected = cases.lenet_oracle(model, "cross_entropy", params[0], inputs[:13], targets[:13])
        assert float((grad[0] - expected).norm()) < cases.TOLERANCE[dtype] * float(expected.norm()), shape
