"""Counts what the host starts on a GPU: for scripts/gpu_check.py and scripts/gpu_bench.py."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from burgersgd.training.fleet import Fleet

LAUNCHES = ("cudaGraphLaunch", "cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")
"""What starts work on a GPU, as the profiler calls it."""


def launches_per_step(fleet: Fleet, steps: int) -> float:
    """Return how often the host starts something on the GPU in each of so many steps; 0 on the CPU."""
    on_gpu = fleet.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        fleet.advance(steps)
        if on_gpu:
            torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if event.key.startswith(LAUNCHES)) / steps
