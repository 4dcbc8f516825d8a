"""Restores the random generators and the modes of torch in the user's process after a call.

It also tests whether the process can use several threads: in a forked child GNU OpenMP hangs forever if the parent had
computed with several threads.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import threading
import time
import warnings
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
    """Return the states of the global generators in a form that can be compared; every draw changes them."""
    of_numpy: Any = np.random.get_state(legacy=True)  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    tensors = (torch.get_rng_state(), *cuda)
    return tuple(t.numpy().tobytes() for t in tensors), random.getstate(), bytes(of_numpy[1]), *of_numpy[2:]


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as in a fresh process, whatever contexts the caller has entered, and restore its generators.

    Gradients are recorded even inside torch.no_grad or torch.inference_mode, and torch.autocast has no effect: only
    trainer.precision decides on the precision.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(generators_kept())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


PROBE_SECONDS = 10.0
"""Seconds after which a computation that takes a millisecond is considered to hang."""
_is_forked = False


def threads_hang() -> bool:
    """Return whether computing with several threads would hang; tested in a child, and only in a forked process.

    A thread that was started after the fork has its own OpenMP threads, which do not hang.
    """
    return _is_forked and threading.current_thread() is threading.main_thread() and _hangs_in_a_child()


@functools.cache
def _hangs_in_a_child() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks while there are other threads
        child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        torch.ones(2**18).add_(1.0)
        os._exit(0)
    until = time.monotonic() + PROBE_SECONDS
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.001)
    return False


def _forked() -> None:
    global _is_forked
    _is_forked = True
    _hangs_in_a_child.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
