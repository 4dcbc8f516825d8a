"""The CUDA kernel of permutations where there is no GPU: the same source as C++, its threads as threads of the CPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from burgersgd import streams, streams_orders
from burgersgd.native import cuda
from burgersgd.streams import integers, permutations
from burgersgd.streams_orders import THREADS, Orders, request, shared_bytes, source

THREADS_HERE = 4
BEFORE = f"""
#include <barrier>
#include <thread>
#include <vector>
static thread_local int thread_number;
static std::barrier meeting({THREADS_HERE});
#define TID thread_number
#define THREADS {THREADS_HERE}
#define SYNC() meeting.arrive_and_wait()
"""
BEHIND = """
extern "C" void all(const Orders *p, int64_t count, void *memory) {
    std::vector<std::thread> threads;
    for (int t = 0; t < THREADS; t++)
        threads.emplace_back([=] {
            thread_number = t;
            for (int64_t which = 0; which < count; which++) orders(p, which, memory), SYNC();
        });
    for (std::thread &thread : threads) thread.join();
}
extern "C" int64_t args_size(void) { return sizeof(Orders); }
"""
SEEDS = torch.tensor([3, -8, 2**62])
EPOCH, PURPOSE = 2**40 - 1, 7


def library(folder: Path, text: str) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "needs a C++ compiler, as torch.compile does on the CPU"
    words = ["-x", "c++", "-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", "-"]
    subprocess.run([compiler, *words, "-o", str(folder / "orders.so")], input=text, text=True, check=True)
    return ctypes.CDLL(str(folder / "orders.so"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return library(tmp_path_factory.mktemp("orders"), BEFORE + source() + BEHIND)


def ordered(kernel: ctypes.CDLL, n: int, n_epochs: int = 2) -> Tensor:
    out = torch.full((n_epochs, len(SEEDS), n), -1)
    room = ctypes.create_string_buffer(shared_bytes(n))
    asked = request(out, SEEDS, PURPOSE, EPOCH)
    kernel.all(ctypes.byref(asked), ctypes.c_int64(n_epochs * len(SEEDS)), room)
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 33, 128, 1079, 5000])
def test_the_orders_are_those_of_a_sort(kernel: ctypes.CDLL, n: int) -> None:
    assert kernel.args_size() == ctypes.sizeof(Orders)
    assert torch.equal(ordered(kernel, n), permutations(SEEDS, EPOCH, 2, n, purpose=PURPOSE, backend="torch"))


def test_equal_keys_keep_their_order(tmp_path: Path) -> None:
    few = "static void few(uint32_t *w, uint32_t a, uint32_t b) { philox(w, a, b), w[0] &= 0xc0000005u, w[1] &= 1; }\n"
    few += "#define philox few\n"  # what comes behind uses it
    device, orders = source().split("/* The orders of n")
    kernel = library(tmp_path, BEFORE + device + few + "/* The orders of n" + orders + BEHIND)
    n = 700
    words = integers(SEEDS, PURPOSE, EPOCH, 2, 2 * n, backend="torch").unflatten(-1, (n, 2)).clone()
    words[..., ::2, 0] &= 0xC0000005
    words[..., ::2, 1] &= 1
    keys = (words[..., 0] >> 1 << 32) | words[..., 1]
    assert torch.unique(keys[0, 0]).numel() < n - 300
    assert torch.equal(ordered(kernel, n), torch.argsort(keys, dim=-1, stable=True))


def test_what_does_not_fit_or_cannot_be_compiled_is_sorted_by_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> bytes:
        raise cuda.CudaError("NVRTC failed (code 6) no")

    monkeypatch.setattr(cuda, "shared_memory", lambda device: shared_bytes(100))
    monkeypatch.setattr(cuda, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(cuda, "cubin", broken)
    streams_orders._kernel.cache_clear()
    assert not streams_orders.fill(torch.empty(1, 3, 101, dtype=torch.int64), SEEDS, PURPOSE, EPOCH)
    assert not caplog.text
    for _ in range(2):
        assert not streams_orders.fill(torch.empty(1, 3, 100, dtype=torch.int64), SEEDS, PURPOSE, EPOCH)
    assert caplog.text.count("the CUDA kernel for orders cannot be used (NVRTC failed (code 6) no") == 1
    streams_orders._kernel.cache_clear()


def test_nvrtc_compiles_it() -> None:
    try:
        cuda.compile_source('extern "C" __global__ void nothing() {}', "sm_90")
    except cuda.CudaError as error:
        pytest.skip(str(error))
    assert cuda.compile_source(source(), "sm_90")
    assert THREADS % 32 == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("n", [0, 1, 1079, 5000, 60_000])
def test_orders_on_a_gpu_are_those_of_the_cpu(n: int) -> None:
    seeds = torch.arange(-3, 300)
    if 0 < n <= 5000:
        out = torch.empty(2, len(seeds), n, dtype=torch.int64, device="cuda")
        assert streams_orders.fill(out, seeds.cuda(), PURPOSE, EPOCH)
    expected = streams.permutations(seeds, EPOCH, 2, n, purpose=PURPOSE)
    assert torch.equal(permutations(seeds.cuda(), EPOCH, 2, n, purpose=PURPOSE).cpu(), expected)
