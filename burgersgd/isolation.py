"""What surrounds a call of this package in the user's process, and is left as it was: generators and modes of torch."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the global generators of torch (CPU and GPUs), numpy and Python at the end."""
    cuda = torch.cuda.is_initialized()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    on_gpus = torch.cuda.get_rng_state_all() if cuda else []
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        if cuda:
            torch.cuda.set_rng_state_all(on_gpus)


@contextlib.contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed the global generators with key, an integer in [0, 2^63), and restore them at the end."""
    with generators_kept():
        torch.manual_seed(key)
        random.seed(key)
        np.random.seed(key % 2**32)  # noqa: NPY002
        yield


def generator_states() -> tuple[object, ...]:
    """Return the states of the global generators in a form that can be compared: different after a draw."""
    of_numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    tensors = (torch.get_rng_state(), *cuda)
    return tuple(t.numpy().tobytes() for t in tensors), random.getstate(), bytes(of_numpy[1]), *of_numpy[2:]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as in a fresh process, whatever the caller is in the middle of, and leave its generators as they are.

    Gradients are recorded even inside torch.no_grad or torch.inference_mode, and torch.autocast does not reach in:
    trainer.precision alone decides on precision.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(generators_kept())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
