"""CUDA graphs of PyTorch's work: one launch for as many kernels as were captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3
"""Times that work is done before it is captured; torch asks for a few, which settle libraries and memory."""


class Capture:
    """Captures work on one device as CUDA graphs.

    They share their memory, because one is replayed after the other and nothing that they allocate is read later.
    """

    def __init__(self, device: torch.device) -> None:
        """Streams and graphs are made on `device`, whichever is the current one."""
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do the work a few times on the stream on which it is captured."""
        with torch.cuda.device(self.device):
            side = self._stream = self._stream or torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    work()
            torch.cuda.current_stream().wait_stream(side)

    def __call__(self, work: Callable[[], object]) -> Callable[[], None]:
        """Return what replays the work, which has been done before and is not done now."""
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
            self._pool = self._pool or graph.pool()
        return graph.replay
