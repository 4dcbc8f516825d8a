"""Counter-based random streams keyed by (seed, purpose, step), so that the other runs of a fleet do not change a run.

The integers are those of Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as
1, 2, 3"). The stream of (seed, purpose, step) is the blocks b = 0, 1, 2, ... of four 32-bit words with

    key     = (seed mod 2^32, seed div 2^32)                  # the seed as 64 bits, two's complement
    counter = (b, step mod 2^32, step div 2^32, purpose)

and its value number j is word j mod 4 of block j div 4, an integer w_j in [0, 2^32). These integers give

    uniform numbers   u_j = (w_j div 2^8) / 2^24
    normal numbers    by Box and Muller (1958) from the pairs of words (a_p, b_p) = (w_2p, w_2p+1):
                      r_p = sqrt(-2 log v_p),  v_p = float32((float32(a_p) + 1/2) / 2^32) in (0, 1],  |r_p| < 6.77
                      z_(32 g + i)      = r_p cos(2 pi b_p / 2^32)
                      z_(32 g + 16 + i) = r_p sin(2 pi b_p / 2^32)    for p = 16 g + i, i = 0 ... 15
    permutations      of range(n): the order of the n 63-bit keys (w_2i div 2) 2^32 + w_2i+1, ties in the order of i

No state is stored: resuming needs only the step. Three backends compute exactly the same integers, and normal numbers
that agree to 1e-6: "native" (C, CPU), "triton" (CUDA) and "torch" (CPU and CUDA, slow). The best backend that works is
chosen; for Apple's GPUs it is that of the CPU. All of this is part of the reproducibility contract.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import math
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Literal

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from burgersgd import native

_log = logging.getLogger("burgersgd")

Backend = Literal["native", "triton", "torch"]


class Purpose(IntEnum):
    """The purpose of a stream. The numbers are part of the reproducibility contract: add some, but never change one."""

    INIT = 0
    BATCHES = 1
    NOISE = 2
    DROPOUT = 3
    STABILITY = 4
    AUGMENT = 5


class _Kind(IntEnum):
    """The kind and type of numbers that fill writes; the same codes as in native/normals.c and streams_triton.py."""

    INTEGERS = 0
    UNIFORMS = 1
    NORMALS = 2
    NORMALS_WIDENED = 3


_NORMALS = {torch.float32: _Kind.NORMALS, torch.float64: _Kind.NORMALS_WIDENED}


def integers(
    seeds: Int64[Tensor, " runs"],
    purpose: int,
    first_step: int,
    n_steps: int,
    n: int,
    *,
    first_block: int = 0,
    backend: Backend | None = None,
) -> Int64[Tensor, "steps runs n"]:
    """Return the values of the streams at steps first_step, ..., first_step + n_steps - 1: integers in [0, 2^32).

    The first value is word 0 of first_block. Raises ValueError as normal_ does.
    """
    out = seeds.new_empty(n_steps, seeds.numel(), n)
    return _fill(out, _Kind.INTEGERS, seeds, purpose, first_step, first_block, backend)


def uniform_(
    out: Float32[Tensor, "steps runs n"],
    seeds: Int64[Tensor, " runs"],
    purpose: int,
    first_step: int,
    *,
    backend: Backend | None = None,
) -> Float32[Tensor, "steps runs n"]:
    """Fill out with uniform numbers in [0, 1), multiples of 2^-24, and return it. Raises ValueError as normal_ does."""
    if out.dtype != torch.float32:
        raise ValueError(f"out must be float32, not {out.dtype}")
    return _fill(out, _Kind.UNIFORMS, seeds, purpose, first_step, 0, backend)


def normal_(
    out: Float[Tensor, "steps runs d"],
    seeds: Int64[Tensor, " runs"],
    purpose: int,
    first_step: int,
    *,
    backend: Backend | None = None,
) -> Float[Tensor, "steps runs d"]:
    """Fill out, float32 or float64, with independent standard normal numbers and return it.

    out[k, i] is the beginning of the stream (seeds[i], purpose, first_step + k); float64 holds the float32 numbers.
    Raises ValueError if out is not contiguous or of another type, seeds are not int64, contiguous and one per run on
    the device of out, a step is outside [0, 2^64), purpose is outside [0, 2^32), a row is longer than 2^34, or the
    backend does not work on this machine.
    """
    kind = _NORMALS.get(out.dtype)
    if kind is None:
        raise ValueError(f"out must be float32 or float64, not {out.dtype}")
    return _fill(out, kind, seeds, purpose, first_step, 0, backend)


def permutation(
    seeds: Int64[Tensor, " runs"],
    epoch: int,
    n: int,
    *,
    purpose: int = Purpose.BATCHES,
    backend: Backend | None = None,
) -> Int64[Tensor, "runs n"]:
    """Return a random permutation of range(n) for every run, from the stream (seed, purpose, epoch).

    Raises ValueError as normal_ does.
    """
    return permutations(seeds, epoch, 1, n, purpose=purpose, backend=backend)[0]


def permutations(
    seeds: Int64[Tensor, " runs"],
    first_epoch: int,
    n_epochs: int,
    n: int,
    *,
    purpose: int = Purpose.BATCHES,
    backend: Backend | None = None,
) -> Int64[Tensor, "epochs runs n"]:
    """Return the permutations of epochs first_epoch, ..., first_epoch + n_epochs - 1, each as permutation does."""
    if backend in (None, "native") and seeds.device.type == "cpu" and (orders := _native_orders()):
        out = seeds.new_empty(n_epochs, seeds.numel(), n)
        if orders(_checked(out, seeds, purpose, first_epoch, 0), seeds, purpose, first_epoch):
            return out
    if backend is None and seeds.device.type == "cuda":
        from burgersgd import streams_orders  # only needed with CUDA

        out = _checked(seeds.new_empty(n_epochs, seeds.numel(), n), seeds, purpose, first_epoch, 0)
        if streams_orders.fill(out, seeds, purpose, first_epoch):
            return out
    words = integers(seeds, purpose, first_epoch, n_epochs, 2 * n, backend=backend).unflatten(-1, (n, 2))
    return torch.argsort((words[..., 0] >> 1 << 32) | words[..., 1], dim=-1, stable=True)


def _fill(
    out: Tensor, kind: _Kind, seeds: Tensor, purpose: int, first_step: int, first_block: int, backend: Backend | None
) -> Tensor:
    """Check the arguments and pass them to a backend. It is called once per gradient evaluation and takes 3 us."""
    _checked(out, seeds, purpose, first_step, first_block)
    if not out.numel():
        return out
    _backend(backend, out.device.type)(out, kind, seeds, purpose, first_step, first_block)
    return out


def _checked(out: Tensor, seeds: Tensor, purpose: int, first_step: int, first_block: int) -> Tensor:
    shape = out.shape
    if len(shape) != 3 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous [steps, runs, n], not {tuple(shape)} with strides {out.stride()}")
    steps, runs, n = shape
    if seeds.dtype != torch.int64 or seeds.shape != (runs,) or not seeds.is_contiguous():
        raise ValueError(f"seeds must be int64, contiguous, of shape ({runs},), not {seeds.dtype} {tuple(seeds.shape)}")
    if seeds.device != out.device:
        raise ValueError(f"seeds must be on the device of out, {out.device}, not on {seeds.device}")
    if not 0 <= first_step <= 2**64 - steps:
        raise ValueError(f"steps must lie in [0, 2^64): first_step = {first_step}, {steps} steps")
    if not (0 <= purpose <= _LOW and 0 <= first_block <= _LOW):
        raise ValueError(f"purpose and first_block must lie in [0, 2^32): {purpose}, {first_block}")
    if n > 2**34:
        raise ValueError(f"a stream has 2^34 values, not {n}")
    return out


_Fill = Callable[[Tensor, _Kind, Tensor, int, int, int], None]


@functools.cache
def _backend(name: Backend | None, device: str) -> _Fill:
    """Return the backend of that name, or for None the best one for the type of device."""
    if name in (None, "native") and device == "cpu" and (fill := _native_fill()):
        return fill
    if name in (None, "triton") and device == "cuda":
        reason = "it is not installed"
        if importlib.util.find_spec("triton"):
            from burgersgd.streams_triton import (
                fill as triton_fill,  # triton is optional, and slow to import
            )

            reason = _problem_with(triton_fill, device)
            if reason is None:
                return triton_fill
        if name is None:
            _log.warning("Triton cannot be used (%s): PyTorch draws the same random numbers more slowly", reason)
    if name is None and device == "mps":
        return _host_fill
    if name in (None, "torch"):
        return _torch_fill
    raise ValueError(f"the backend {name!r} does not work here, on {device}")


def _problem_with(fill: _Fill, device: str) -> str | None:
    """Return in one line why a backend fails to draw a few numbers, or None if it works.

    Triton needs a C compiler to start its kernels, a driver that it knows, and a folder for its cache.
    """
    try:
        fill(
            torch.empty(1, 1, 64, device=device),
            _Kind.NORMALS,
            torch.zeros(1, dtype=torch.int64, device=device),
            0,
            0,
            0,
        )
    except Exception as error:  # any error of the system, the compiler or the driver
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


def _host_fill(out: Tensor, kind: _Kind, seeds: Tensor, purpose: int, first_step: int, first_block: int) -> None:
    """Draw on the CPU and copy, for Apple's GPUs, which have no float64."""
    drawn = torch.empty_like(out, device="cpu")
    _backend(None, "cpu")(drawn, kind, seeds.cpu(), purpose, first_step, first_block)
    out.copy_(drawn)


# C ----------------------------------------------------------------------------------------------------------

_PARALLEL = 8192  # values per thread below which waking the threads costs more than they save


_REQUEST = struct.Struct("@PPQqqqIIii")
"""The layout of request_t; one struct is the only argument because ctypes takes 0.1 us for each argument."""


def _native_fill() -> _Fill | None:
    """Return the function of native/normals.c, or None if it cannot be compiled."""
    library = native.library("normals")
    if library is None:
        return None
    c_fill = library.fill
    c_fill.restype = None
    c_fill.argtypes = (ctypes.c_char_p,)
    pack = _REQUEST.pack

    def fill(out: Tensor, kind: _Kind, seeds: Tensor, purpose: int, first_step: int, first_block: int) -> None:
        threads = torch.get_num_threads()
        if out.numel() < threads * _PARALLEL:
            threads = 1  # no number in between: OpenMP rebuilds its pool for a team of another size than torch's
        c_fill(pack(out.data_ptr(), seeds.data_ptr(), first_step, *out.shape, purpose, first_block, kind, threads))

    return fill


@functools.cache
def _native_orders() -> Callable[[Tensor, Tensor, int, int], bool] | None:
    """Return the C function that fills permutations, which returns whether it had memory; None if not compiled."""
    library = native.library("normals")
    if library is None:
        return None
    c_orders = library.orders
    c_orders.argtypes = (ctypes.c_char_p,)

    def orders(out: Tensor, seeds: Tensor, purpose: int, first_epoch: int) -> bool:
        threads = torch.get_num_threads()
        if len(seeds) < threads or out.numel() < threads * _PARALLEL:
            threads = 1
        request = (out.data_ptr(), seeds.data_ptr(), first_epoch, *out.shape, purpose, 0, _Kind.INTEGERS, threads)
        return not out.numel() or c_orders(_REQUEST.pack(*request)) == 0

    return orders


# torch ------------------------------------------------------------------------------------------------------

_LOW = 0xFFFFFFFF


def _torch_fill(out: Tensor, kind: _Kind, seeds: Tensor, purpose: int, first_step: int, first_block: int) -> None:
    n = out.shape[2]
    if kind == _Kind.INTEGERS:
        out.copy_(_words(seeds, purpose, first_step, first_block, out.shape[0], n))
    elif kind == _Kind.UNIFORMS:
        out.copy_((_words(seeds, purpose, first_step, first_block, out.shape[0], n) >> 8) * 2.0**-24)
    else:
        groups = math.ceil(n / 32)
        words = _words(seeds, purpose, first_step, first_block, out.shape[0], 32 * groups)
        a, b = words.unflatten(-1, (groups, 16, 2)).unbind(-1)
        radius = torch.sqrt(-2 * torch.log((a.float() * 2.0**-32 + 2.0**-33).double()))
        angle = b.double() * (2 * math.pi / 2**32)
        normals = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
        out.copy_(normals.flatten(-2)[..., :n].float())


def _words(
    seeds: Int64[Tensor, " runs"], purpose: int, first_step: int, first_block: int, n_steps: int, n: int
) -> Int64[Tensor, "steps runs n"]:
    """Compute Philox4x32-10 in int64: products wrap modulo 2^64, and masks extract the halves."""

    def count(first: int, length: int) -> Tensor:
        signed = first - 2**64 if first >= 2**63 else first
        return torch.arange(length, device=seeds.device) + signed

    step = count(first_step, n_steps)[:, None, None]
    c0 = count(first_block, math.ceil(n / 4)) & _LOW
    c1, c2, c3 = step & _LOW, (step >> 32) & _LOW, torch.full_like(step, purpose)
    k0, k1 = (seeds & _LOW)[:, None], ((seeds >> 32) & _LOW)[:, None]
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(-2)[..., :n]
