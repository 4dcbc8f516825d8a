"""Several gradient evaluations of all runs in one call of C: gradient, divergence check, clipping, update.

Fleet._eager_step says what a step is: with the C gradient and the C update, two calls of C with a dozen operations of
PyTorch between them. Here a run goes through all the steps up to the end of its cycle before the next run begins, and
its vectors stay in the processor's cache. The numbers are the same bits.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from burgersgd.training.engines.codegen import FusedUpdate
from burgersgd.training.native_gradient import NativeGradient

CALL_OPERATIONS = 2e9
"""Additions and multiplications of one call, about: some 50 ms, in which no signal is heard."""


class _Steps(ctypes.Structure):
    _fields_ = [
        ("gradient", ctypes.c_void_p),
        ("update", ctypes.c_void_p),
        ("update_plan", ctypes.c_void_p),
        ("at", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("d", ctypes.c_int64),
        ("clip_norm", ctypes.c_double),
        ("first", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("sizes", ctypes.c_void_p),
        ("indices", ctypes.c_void_p),
        ("indices_step", ctypes.c_int64),
        ("indices_run", ctypes.c_int64),
        ("coefficients", ctypes.c_void_p),
        ("coefficients_step", ctypes.c_int64),
        ("alive", ctypes.c_void_p),
        ("diverged_at", ctypes.c_void_p),
        ("last_loss", ctypes.c_void_p),
        ("loss_sum", ctypes.c_void_p),
        ("grad_norm", ctypes.c_void_p),
        ("loss_limit", ctypes.c_void_p),
    ]


class NativeSteps:
    """Advances R runs whose gradient and update are both in C."""

    def __init__(
        self, gradient: NativeGradient, update: FusedUpdate, at: Float[Tensor, "runs d"], clip_norm: float | None
    ) -> None:
        """`at`: the vector of the updated state where gradients are taken, at the same place in memory for good."""
        runs, d = at.shape
        scratch = at.new_empty(gradient.threads, d)
        self._gradient = gradient
        self._kernel = gradient.function("mlp_steps")
        self._kernel.argtypes, self._kernel.restype = [ctypes.c_void_p], ctypes.c_int64
        self._kept_alive = (update, at, scratch)
        self._steps = _Steps(
            gradient=gradient.plan_address,
            update=update.run_function,
            update_plan=update.plan_address,
            at=at.data_ptr(),
            grad=scratch.data_ptr(),
            d=d,
            clip_norm=math.inf if clip_norm is None else clip_norm,
        )
        self.most = max(1, int(CALL_OPERATIONS / (6 * runs * gradient.work * gradient.max_batch)))
        """Steps of one call."""

    def __call__(
        self,
        first: int,
        sizes: Sequence[int],
        indices: Int64[Tensor, "steps runs batch"],
        coefficients: Float[Tensor, "steps fields runs 1"],
        records: Mapping[str, Shaped[Tensor, " runs"]],
    ) -> None:
        """Spend gradient evaluations first, first + 1, ..., one for each batch size, and bring the records up to date.

        Records are those of a fleet, by name. Raises IndexError or ValueError for what the gradient refuses; nothing
        has been written then.
        """
        steps = self._steps
        batch_sizes = (ctypes.c_int64 * len(sizes))(*sizes)
        steps.first, steps.steps, steps.sizes = first, len(sizes), ctypes.addressof(batch_sizes)
        steps.indices = indices.data_ptr()
        steps.indices_step, steps.indices_run, _ = indices.stride()
        steps.coefficients, steps.coefficients_step = coefficients.data_ptr(), coefficients.stride(0)
        for name, record in records.items():
            setattr(steps, name, record.data_ptr())
        self._gradient.raise_for(self._kernel(ctypes.addressof(steps)), max(sizes))
