"""Permutations on CUDA (streams.permutations): every permutation is sorted in the shared memory of a thread block.

The bits are those of a sort by PyTorch, which writes and reads all keys several times.
"""

from __future__ import annotations

import ctypes
import functools
import logging

import torch
from jaxtyping import Int64
from torch import Tensor

from burgersgd import native
from burgersgd.native import cuda

_log = logging.getLogger("burgersgd")

THREADS = 256
"""Number of threads of a block."""


class Orders(ctypes.Structure):
    """The mirror of Orders in native/orders.cu."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("seeds", ctypes.c_void_p),
        ("first_epoch", ctypes.c_uint64),
        ("runs", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("purpose", ctypes.c_uint32),
    )


def request(out: Int64[Tensor, "epochs runs n"], seeds: Tensor, purpose: int, first_epoch: int) -> Orders:
    """Return the arguments of the kernel."""
    return Orders(out.data_ptr(), seeds.data_ptr(), first_epoch, out.shape[1], out.shape[2], purpose)


def shared_bytes(n: int) -> int:
    """Return the bytes of shared memory of a block, which native/orders.cu divides."""
    return 16 * n + 4 * THREADS


def source() -> str:
    """Return the text of the kernel."""
    texts = (native.source_text(name, suffix=".cu") for name in ("device", "orders"))
    return "\n".join((f"#define N_THREADS {THREADS}", *texts))


def fill(out: Int64[Tensor, "epochs runs n"], seeds: Tensor, purpose: int, first_epoch: int) -> bool:
    """Fill out with permutations; return False if there is no kernel, or n does not fit into shared memory."""
    if shared_bytes(out.shape[2]) > cuda.shared_memory(out.device):
        return False
    kernel = _kernel(out.device, out.shape[2])
    if kernel is None:
        return False
    if out.numel():
        kernel(out.shape[0] * out.shape[1], request(out, seeds, purpose, first_epoch))
    return True


@functools.cache
def _kernel(device: torch.device, n: int) -> cuda.Kernel | None:
    try:
        code = cuda.cubin("orders", source(), cuda.architecture(device))
        return cuda.Kernel(code, "orders", device, THREADS, shared_bytes(n))
    except (OSError, cuda.CudaError) as error:
        _log.warning(
            "the CUDA kernel for orders cannot be used (%s): PyTorch sorts them, with the same result but more slowly",
            error,
        )
        return None
