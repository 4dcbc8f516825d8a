"""The CUDA backend of burgersgd.streams: one kernel that computes the same integers and the same pairs."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportCallIssue=false
# (the language of Triton kernels looks like Python, but its types are its own)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCKS = 256  # Philox blocks per program, 1024 values


@triton.jit(do_not_specialize=["purpose", "first_step", "first_block"])
def _fill(
    out, seeds, purpose, first_step, first_block, runs, n, programs, KIND: tl.constexpr, BLOCKS: tl.constexpr
):  # one program: BLOCKS Philox blocks of one row
    row = tl.program_id(0).to(tl.int64) // programs
    block = (tl.program_id(0).to(tl.int64) % programs) * BLOCKS + tl.arange(0, BLOCKS)
    seed = tl.load(seeds + row % runs)
    step = first_step.to(tl.uint64) + (row // runs).to(tl.uint64)
    c0 = (first_block + block).to(tl.uint32)
    c1 = c0 * 0 + (step & 0xFFFFFFFF).to(tl.uint32)
    c2 = c0 * 0 + (step >> 32).to(tl.uint32)
    c3 = c0 * 0 + purpose.to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)

    start = out + row * n
    if KIND >= 2:
        for half in tl.static_range(2):  # pairs 2 block and 2 block + 1
            a = w0 if half == 0 else w2
            b = w1 if half == 0 else w3
            radius = tl.sqrt_rn(-2.0 * tl.log(a.to(tl.float32) * 2.0**-32 + 2.0**-33))
            doubled = b << 1  # the angle modulo pi, in [-pi/2, pi/2); the rest decides the sign of both
            radius = tl.where(((b ^ doubled) >> 31) == 1, -radius, radius)
            angle = doubled.to(tl.int32, bitcast=True).to(tl.float32) * 7.3145904e-10  # pi / 2^32
            pair = 2 * block + half
            j = pair // 16 * 32 + pair % 16
            tl.store(start + j, radius * tl.cos(angle), mask=j < n)
            tl.store(start + j + 16, radius * tl.sin(angle), mask=j + 16 < n)
    else:
        for lane in tl.static_range(4):
            word = w0 if lane == 0 else (w1 if lane == 1 else (w2 if lane == 2 else w3))
            value = word if KIND == 0 else (word >> 8).to(tl.float32) * 2.0**-24
            tl.store(start + 4 * block + lane, value, mask=4 * block + lane < n)


def fill(out: Tensor, kind: int, seeds: Tensor, purpose: int, first_step: int, first_block: int) -> None:
    """Fill out [steps, runs, n] as burgersgd.streams describes; the arguments have been checked there."""
    steps, runs, n = out.shape
    programs = math.ceil(n / 32) * 8 // _BLOCKS + 1
    with torch.cuda.device_of(out):  # kernels start on the current device
        _fill[(steps * runs * programs,)](
            out, seeds, purpose, first_step, first_block, runs, n, programs, int(kind), _BLOCKS, enable_fp_fusion=True
        )
