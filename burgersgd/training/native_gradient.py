"""Computes loss and gradient of a small network without PyTorch's dispatch: native/mlp_gradient.c, convolutions.c."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from burgersgd.native import library

_MAX_LAYERS = 16  # MAX_LAYERS in mlp_gradient.c
ACTIVATIONS = {"identity": 0, "relu": 1, "tanh": 2}  # enum activation
LOSSES = {"cross_entropy": 0, "squared_error": 1, "logistic": 2}  # enum loss
_MACROS = {torch.float32: "", torch.float64: "DOUBLE"}
_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}


class _Plan(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.c_int64),
        ("widths", ctypes.c_int64 * (_MAX_LAYERS + 1)),
        ("activation", ctypes.c_int64),
        ("loss", ctypes.c_int64),
        ("examples", ctypes.c_int64),
        ("runs", ctypes.c_int64),
        ("max_batch", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("inputs", ctypes.c_void_p),
        ("targets", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_int64),
        ("team", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("padding", ctypes.c_int64),
    ]


def check_size(c_size: Any, mirror: type[ctypes.Structure]) -> None:
    """Raise RuntimeError if the size of a structure in C differs from that of its ctypes mirror in Python."""
    c_size.argtypes, c_size.restype = [], ctypes.c_int64
    found, expected = c_size(), ctypes.sizeof(mirror)
    if found != expected:
        raise RuntimeError(f"{mirror.__qualname__} has {expected} bytes in Python and {found} in C")


TEAM_WORK = 4_000_000
"""Product of weights and examples from which threads share the work of one run: about a tenth of a millisecond."""


def images_of(model: Any) -> Images | None:
    """Return the images that a model takes (attribute `image`, see models/conv.py); None without convolutions."""
    return None if model.image is None else Images(*model.image)


class Images(NamedTuple):
    """Shape of images for LeNet-5's convolutional layers: 6 and 16 filters of 5 x 5, each with ReLU and pooling."""

    channels: int
    height: int
    width: int
    padding: int

    @property
    def pixels(self) -> int:
        """Number of values of an image."""
        return self.channels * self.height * self.width

    @property
    def features(self) -> int:
        """Number of outputs of the second layer."""
        height, width = (((side + 2 * self.padding - 4) // 2 - 4) // 2 for side in (self.height, self.width))
        return 16 * height * width

    @property
    def n_params(self) -> int:
        """Number of parameters of both layers."""
        return 6 * (25 * self.channels + 1) + 16 * (25 * 6 + 1)

    @property
    def work(self) -> int:
        """Number of multiplications of both layers for one image."""
        first = (self.height + 2 * self.padding - 4) * (self.width + 2 * self.padding - 4)
        return first * 6 * 25 * self.channels + 4 * self.features * 25 * 6


class NativeGradient:
    """Computes the mini-batch loss, its gradient and the gradient's norm for several runs, one after the other.

    A run's results are bitwise equal alone, with other runs, and with any number of threads. The parameters of a run
    are one vector W_1 (row-major [out, in], as in nn.Linear), b_1, W_2, b_2, ..., of the network (2.2)-(2.4); the loss
    is the mean over the batch. An object is built once for a data set that stays in memory; the training rows are not
    copied.

    Targets: `cross_entropy` int64 classes [n]; `squared_error` [n, n_out], summed over the outputs; `logistic` +-1 [n]
    and one output.
    """

    @staticmethod
    def supports(
        widths: Sequence[int], activation: str, loss: str, dtype: torch.dtype, images: Images | None = None
    ) -> bool:
        """Whether this class can compute the network and loss (False where the C code could not be compiled)."""
        return (
            2 <= len(widths) <= _MAX_LAYERS + 1
            and min(widths) >= 1
            and activation in ACTIVATIONS
            and loss in LOSSES
            and (loss != "logistic" or widths[-1] == 1)
            and dtype in _SUFFIXES
            and (images is None or images.features == widths[0])
            and library("mlp_gradient", _MACROS[dtype]) is not None
        )

    @staticmethod
    def worthwhile(widths: Sequence[int], batch: int, n_runs: int = 1, images: Images | None = None) -> bool:
        """Whether the C kernel is expected to be faster than autograd on torch.get_num_threads() threads.

        The decision depends on the network and the numbers of runs and threads, never on a clock, so that the same
        command gives the same bits. Measured (docs/benchmarks.md, One step): eager autograd takes 10 times as long for
        64-64-64-10 and batch 32, 1.1 to 2 times for 784-1024-1024-10 (1.9 million weights) and batch 128, 5 times for
        LeNet. Threads share all the work of a run except the convolutions; with more threads than runs, up to 4 of them
        are assumed to be of use.
        """
        weights = sum(n_in * n_out for n_in, n_out in pairwise(widths))
        threads = torch.get_num_threads()
        few = n_runs >= threads or threads <= 4
        if images is not None:
            return few
        return weights <= 2_000_000 and (few or weights * batch <= 8_000_000)

    def __init__(
        self,
        widths: Sequence[int],
        activation: str,
        loss: str,
        inputs: Float[Tensor, "n n_in"],
        targets: Shaped[Tensor, "n *outputs"],
        n_runs: int,
        max_batch: int,
        threads: int | None = None,
        images: Images | None = None,
        evaluates: bool = False,
    ) -> None:
        """`threads`: largest number of threads, None: torch's; they take different runs or, if runs are few, share one.

        `images`: the inputs are images ``[n, channels * height * width]`` that go through LeNet's convolutions first.
        `evaluates`: the object is for `evaluate`, where threads also share the examples of a run.

        Raises ValueError for an unsupported combination, or data of the wrong shape, type, device or range.
        """
        dtype = inputs.dtype
        if not self.supports(widths, activation, loss, dtype, images):
            raise ValueError(
                f"widths={list(widths)}, activation={activation}, loss={loss}, dtype={dtype} is not supported here: "
                f"allowed are {', '.join(ACTIVATIONS)}; {', '.join(LOSSES)}; {', '.join(map(str, _SUFFIXES))}"
            )
        n, n_out = len(inputs), widths[-1]
        target_type = torch.int64 if loss == "cross_entropy" else dtype
        target_shape = (n, n_out) if loss == "squared_error" else (n,)
        for name, data, data_type, shape in (
            ("inputs", inputs, dtype, (n, widths[0] if images is None else images.pixels)),
            ("targets", targets, target_type, target_shape),
        ):
            if data.shape != shape or data.dtype != data_type or data.device.type != "cpu" or not data.is_contiguous():
                raise ValueError(
                    f"{name} is {data.dtype} {list(data.shape)} on {data.device}: "
                    f"must be contiguous {data_type} {list(shape)} on the CPU"
                )
        if loss == "cross_entropy" and n and not 0 <= int(targets.min()) <= int(targets.max()) < n_out:
            raise ValueError(f"targets in [{targets.min()}, {targets.max()}]: must be classes 0 to {n_out - 1}")
        if n_runs < 1 or max_batch < 1:
            raise ValueError(f"n_runs={n_runs}, max_batch={max_batch}: must be at least 1")
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads={threads}: must be at least 1")

        self.dtype = dtype
        self.n_runs = n_runs
        self.max_batch = max_batch
        weights = sum(n_in * n_out for n_in, n_out in pairwise(widths))
        self.n_params = weights + sum(widths[1:]) + (0 if images is None else images.n_params)
        self.work = weights + (0 if images is None else images.work)
        """Number of multiplications for the outputs of one example."""
        self.team = threads if n_runs < threads and weights * max_batch >= TEAM_WORK and not evaluates else 1
        """Number of threads that share the work of one run."""
        self._parts = -(-n // max_batch)
        shares = n_runs * self._parts if evaluates and self.work * n >= TEAM_WORK else n_runs
        check_size(self.function("mlp_plan_size"), _Plan)
        self._kernel = self.function("mlp_gradient")
        pointer, integer = ctypes.c_void_p, ctypes.c_int64
        self._kernel.argtypes = [
            *(pointer, pointer, integer, pointer, integer),
            *(integer, pointer, integer, pointer, pointer),
        ]
        self._kernel.restype = integer

        self._plan = _Plan(
            layers=len(widths) - 1,
            activation=ACTIVATIONS[activation],
            loss=LOSSES[loss],
            examples=n,
            runs=n_runs,
            max_batch=max_batch,
            threads=max(1, min(threads, shares)) if self.team == 1 else 1,
            inputs=inputs.data_ptr(),
            targets=targets.data_ptr(),
            team=self.team,
        )
        if images is not None:
            self._plan.channels, self._plan.height, self._plan.width, self._plan.padding = images
        self._plan.widths[: len(widths)] = list(widths)
        size = self.function("mlp_gradient_workspace")
        size.argtypes, size.restype = [pointer], integer
        self._plan.workspace_size = size(ctypes.addressof(self._plan))
        workspace = torch.zeros(self._plan.threads * self._plan.workspace_size, dtype=torch.uint8)
        self._plan.workspace = workspace.data_ptr()
        self.plan_address = ctypes.addressof(self._plan)
        """Address of the Plan of mlp_gradient.c."""
        self.threads = self._plan.threads
        self._kept_alive = (inputs, targets, workspace)
        self._checked: tuple[Tensor | None, ...] = (None, None, None)
        self._rows = (0, 0)

    def function(self, name: str) -> Any:
        """Return a function of mlp_gradient.c for this precision."""
        code = library("mlp_gradient", _MACROS[self.dtype])
        assert code is not None
        return code[f"{name}_{_SUFFIXES[self.dtype]}"]

    def raise_for(self, status: int, batch: int) -> None:
        """Raise IndexError or ValueError for the status that a C function returned; batch is the largest batch size."""
        if status == 1:  # enum status
            raise IndexError(f"indices outside the training set of {self._plan.examples} examples")
        if status == 2:
            raise ValueError(f"batch={batch}: must be 1 to {self.max_batch}")

    @classmethod
    def of(
        cls,
        model: Any,
        loss: str,
        inputs: Tensor,
        targets: Tensor,
        n_runs: int,
        max_batch: int,
        evaluates: bool = False,
    ) -> NativeGradient:
        """Return the gradient of a model that has `widths`, `activation` and `image`."""
        widths, activation, images = model.widths, model.activation, images_of(model)
        inputs = inputs.flatten(1)
        return cls(widths, activation, loss, inputs, targets, n_runs, max_batch, images=images, evaluates=evaluates)

    def __call__(
        self,
        params: Float[Tensor, "runs d"],
        indices: Int64[Tensor, "runs batch"],
        grad: Float[Tensor, "runs d"],
        loss: Float[Tensor, " runs"],
        norm: Float[Tensor, " runs"],
    ) -> None:
        """Write `grad`, `loss` and `norm` of the batches of training rows `indices`, all in params' dtype.

        For loops, outputs that are the same in every call are checked only once, and new params in a microsecond.
        Raises ValueError for a tensor of the wrong shape, type or layout and for a batch above max_batch, IndexError
        for an index outside the training set, in each case before anything is written.
        """
        checked = self._checked
        if (
            grad is not checked[0]
            or loss is not checked[1]
            or norm is not checked[2]
            or params.shape != grad.shape
            or params.dtype is not self.dtype
            or not params.is_contiguous()
        ):
            self._check(params, grad, loss, norm)
        else:
            self._rows = (self.n_params, self._rows[1])
        n_runs, batch = indices.shape
        row, step = indices.stride()
        if n_runs != self.n_runs or indices.dtype is not torch.int64 or (step != 1 and batch != 1):
            raise ValueError(
                f"indices is {indices.dtype} {list(indices.shape)}: must be torch.int64 [{self.n_runs}, batch], "
                "each row contiguous"
            )
        params_row, grad_row = self._rows
        status = self._kernel(
            self.plan_address,
            params.data_ptr(),
            params_row,
            indices.data_ptr(),
            row,
            batch,
            grad.data_ptr(),
            grad_row,
            loss.data_ptr(),
            norm.data_ptr(),
        )
        self.raise_for(status, batch)

    def evaluate(
        self, params: Float[Tensor, "runs d"], labels: Int64[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, " runs"], Float[Tensor, " runs"]]:
        """Return the sum of the losses of all n examples and the number of wrong classes, each float64.

        Sums over max_batch examples at a time are added in order, so that the result is bitwise equal with any number
        of threads. params must be contiguous.
        """
        if params.shape != (self.n_runs, self.n_params) or params.dtype != self.dtype or not params.is_contiguous():
            raise ValueError(
                f"params is {params.dtype} {list(params.shape)}: "
                f"must be contiguous {self.dtype} {[self.n_runs, self.n_params]}"
            )
        loss, wrong = (torch.zeros(self.n_runs, dtype=torch.float64) for _ in range(2))
        rows = torch.arange(self._plan.examples)
        kernel, pointer = self.function("mlp_evaluate"), ctypes.c_void_p
        kernel.argtypes = [pointer, pointer, ctypes.c_int64, *[pointer] * 5]
        sums = torch.empty(self.n_runs, self._parts, 2, dtype=torch.float64)
        kernel.restype = None
        kernel(
            self.plan_address,
            params.data_ptr(),
            self.n_params,
            rows.data_ptr(),
            None if labels is None else labels.data_ptr(),
            sums.data_ptr(),
            loss.data_ptr(),
            wrong.data_ptr(),
        )
        return loss, wrong

    def _check(self, params: Tensor, grad: Tensor, loss: Tensor, norm: Tensor) -> None:
        """Check the layout of the tensors, and remember the outputs: a loop passes the same ones in every step."""
        for name, tensor, shape in (
            ("params", params, (self.n_runs, self.n_params)),
            ("grad", grad, (self.n_runs, self.n_params)),
            ("loss", loss, (self.n_runs,)),
            ("norm", norm, (self.n_runs,)),
        ):
            contiguous = tensor[0].is_contiguous() if tensor.ndim == 2 else tensor.is_contiguous()
            if tensor.shape != shape or tensor.dtype != self.dtype or tensor.device.type != "cpu" or not contiguous:
                raise ValueError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}: "
                    f"must be {self.dtype} {list(shape)} on the CPU, each row contiguous"
                )
        self._rows = (params.stride(0), grad.stride(0))
        self._checked = (grad, loss, norm)
