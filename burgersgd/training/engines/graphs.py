"""Captures PyTorch's kernels as CUDA graphs, which replay all captured kernels in one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3
"""Number of executions before the capture; torch requires a few, which initialise libraries and memory."""


class Capture:
    """Captures work on one device as CUDA graphs.

    The graphs share their memory, because they are replayed one after the other and nothing that they allocate is read
    after a replay.
    """

    def __init__(self, device: torch.device) -> None:
        """Streams and graphs are made on `device`, even if another device is the current one."""
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def warm_up(self, work: Callable[[], object]) -> None:
        """Execute the work a few times on the stream on which it will be captured."""
        with torch.cuda.device(self.device):
            side = self._stream = self._stream or torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    work()
            torch.cuda.current_stream().wait_stream(side)

    def __call__(self, work: Callable[[], object]) -> Callable[[], None]:
        """Capture the work, without executing it, and return a function that replays it; call `warm_up` before."""
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device during the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
            self._pool = self._pool or graph.pool()
        return graph.replay
