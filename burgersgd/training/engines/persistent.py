"""Small networks on a GPU: one run per block of threads, up to 64 gradient evaluations of all runs in one launch.

The state, the gradient and the activations of a run lie in the shared memory of its multiprocessor for the whole
launch (native/cycles.cu); the rule's lines come from tracing.py, as those of the C kernel do. A run's numbers are the
same bits alone and beside others. What does not fit is done by the engine `graphed`.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burgersgd import native
from burgersgd.models.mlp import Mlp
from burgersgd.native import cuda
from burgersgd.optimizers.protocol import Rule
from burgersgd.streams import Purpose
from burgersgd.training.engines.compiled import Graphed
from burgersgd.training.engines.eager import Task
from burgersgd.training.engines.tracing import Layout, Trace, trace, traced_end_cycle
from burgersgd.training.gradients import Problem
from burgersgd.training.inputs import BLOCK, Inputs
from burgersgd.training.native_gradient import ACTIVATIONS, LOSSES
from burgersgd.training.state import RunState

_log = logging.getLogger("burgersgd")

THREADS = 512
"""Of a block. Measured on an H100: docs/benchmarks.md."""
CHUNKS = (32, 16, 8)
"""Examples whose activations are in shared memory at once: the largest number that fits."""

NEEDS = "on a GPU a float32 mlp that fits the shared memory of a multiprocessor, no dropout or augmentation"

Launch = Callable[[int, ctypes.Structure], None]
"""(runs, arguments) -> None: advances all runs."""


@dataclass(frozen=True)
class Network:
    """What the kernel is made for."""

    widths: tuple[int, ...]
    activation: str
    loss: str

    @classmethod
    def of(cls, model: Any, loss: str) -> Network:
        """Return the network of a model that has `widths` and `activation`."""
        return cls(tuple(model.widths), model.activation, loss)

    def shared_bytes(self, fields: int, chunk: int) -> int:
        """Return SHARED_FLOATS of native/cycles.cu in bytes, for so many vectors of state and examples at once."""
        rows = [_up(width) + 4 for width in self.widths]
        padded = sum(_up(out) * row for out, row in zip(self.widths[1:], rows, strict=False))
        gradients = 2 * chunk * (_up(max(self.widths[1:-1], default=0)) + 4)
        return 4 * ((fields + 1) * padded + chunk * sum(rows) + gradients + 64 + chunk)

    def chunk(self, fields: int, shared_memory: int) -> int | None:
        """Return how many examples fit at once; None where not even the least number does."""
        return next((chunk for chunk in CHUNKS if self.shared_bytes(fields, chunk) <= shared_memory), None)


def _up(n: int) -> int:
    return (n + 3) // 4 * 4


def fits(rule: Rule, problem: Problem, device: torch.device) -> bool:
    """Whether the runs of a rule are expected to fit: a fully connected float32 network in the shared memory."""
    model, loss = problem.model, problem.loss.name
    if device.type != "cuda" or not isinstance(model, Mlp) or model.n_uniform:
        return False
    if problem.inputs.dtype != torch.float32 or problem.bfloat16 or problem.augmentation is not None:
        return False
    if model.activation not in ACTIVATIONS or loss not in LOSSES or len(model.widths) > 16:
        return False
    some = torch.zeros(1, 1)
    fields = sum(field is not None for field in rule.init(some, some if rule.noisy else None))
    plain = rule.replicas is None and rule.normed is None and rule.elementwise
    return plain and Network.of(model, loss).chunk(fields, cuda.shared_memory(device)) is not None


def source(rule: Rule, layout: Layout, network: Network, at: int, chunk: int) -> str | None:
    """Return the text of the kernel; `at`: the field at which gradients are taken. None for a rule without a trace."""
    step, end = trace(rule, layout), _end_cycle(rule, layout)
    if step is None or end is None or layout.wide or rule.replicas is not None or rule.normed is not None:
        return None
    kept = [i for i, present in enumerate(layout.present) if present]
    n = len(layout.coefficients_type._fields)
    unused = [f"(void)s{i};" for i in kept]

    def lines(of: Trace, number: str, first: Sequence[str] = ()) -> str:
        """The rule's lines, where a number of field k is named by number.format(k=k)."""
        loads = [f"const real s{i} = {number.format(k=k)};" for k, i in enumerate(kept)]
        stores = [f"{number.format(k=kept.index(i))} = {name};" for i, name in of.stores]
        return " ".join([*loads, *unused, *first, *of.lines, *stores])

    stored = [kept.index(i) for i, _ in step.stores]
    defined = {
        "N_LAYERS": len(network.widths) - 1,
        "WIDTHS": "{" + ", ".join(map(str, network.widths)) + "}",
        "CHUNK": chunk,
        "N_THREADS": THREADS,
        "N_FIELDS": len(kept),
        "FIELD_AT": kept.index(at),
        "N_COEFFICIENTS": n,
        "MOST_STEPS": BLOCK,
        "NOISE": f"{int(Purpose.NOISE)}u",
        "NOISY": int(rule.noisy),
        "ACTIVATION": network.activation.upper(),
        "LOSS": network.loss.upper(),
        "RULE_COEFFICIENTS": " ".join(f"const real c{i} = c[{i} * p.runs]; (void)c{i};" for i in range(n)),
        "RULE_STEP": lines(step, "v[{k}][i]", ["const real g = gradient; (void)g;"]),
        "RULE_STEP_STORES": " ".join(f"store_two(fields[{k}], at, next, v[{k}]);" for k in stored),
        "RULE_END_CYCLE": lines(end, "fields[{k}][at]") if end.stores else "",
    }
    head = "\n".join(f"#define {name} {value}" for name, value in defined.items())
    return f"{head}\n{native.source_text('cycles', suffix='.cu')}"


@functools.cache
def _end_cycle(rule: Rule, layout: Layout) -> Trace | None:
    try:
        return traced_end_cycle(rule, layout)
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError, NotImplementedError):
        return None


@functools.cache
def args_type(n_fields: int) -> type[ctypes.Structure]:
    """Return the mirror of Args in native/cycles.cu."""
    pointer, integer = ctypes.c_void_p, ctypes.c_int64

    class Args(ctypes.Structure):
        _fields_ = [
            ("fields", pointer * n_fields),
            *((name, pointer) for name in ("inputs", "targets", "indices", "coefficients", "seeds")),
            *((name, pointer) for name in ("alive", "diverged_at", "last_loss", "loss_sum", "grad_norm", "loss_limit")),
            *((name, ctypes.c_float) for name in ("clip_norm", "explosion_factor")),
            *((name, integer) for name in ("indices_step", "indices_run", "coefficients_step")),
            *((name, integer) for name in ("runs", "first", "steps", "cycle")),
            ("sizes", ctypes.c_int32 * BLOCK),
        ]

    return Args


class Persistent:
    """The engine whose kernel takes all steps of a block of inputs, ends of cycles included, in one launch."""

    draws_noise = True

    def __init__(self, task: Task, state: RunState, inputs: Inputs, launch: Launch) -> None:
        """`launch` runs the kernel whose text is `source` of these."""
        self.launch = launch
        data = task.problem.inputs.flatten(1).contiguous(), task.problem.targets.contiguous()
        fields = [field for field in state.rule if field is not None]
        self._kept_alive = (*data, *fields, inputs.seeds)
        self._args = args_type(len(fields))(
            inputs=data[0].data_ptr(),
            targets=data[1].data_ptr(),
            seeds=inputs.seeds.data_ptr(),
            clip_norm=math.inf if task.clip_norm is None else task.clip_norm,
            explosion_factor=task.explosion_factor,
            runs=inputs.n_runs,
            cycle=task.rule.gradients_per_cycle,
        )
        for i, field in enumerate(fields):
            self._args.fields[i] = field.data_ptr()

    def advance(self, state: RunState, inputs: Inputs, first: int, stop: int) -> int:
        """Spend gradient evaluations from number `first` to `stop`; return `stop`."""
        args, block = self._args, inputs.block
        at = first - block.first
        indices: Tensor = inputs.full_batch.expand(1, -1, -1) if block.indices is None else block.indices[at:]
        args.indices_step = 0 if block.indices is None else indices.stride(0)
        args.indices, args.indices_run = indices.data_ptr(), indices.stride(1)
        coefficients: Float[Tensor, "steps fields runs 1"] = block.coefficients[at:]
        args.coefficients, args.coefficients_step = coefficients.data_ptr(), coefficients.stride(0)
        args.first, args.steps = first, stop - first
        for k in range(first, stop):
            args.sizes[k - first] = inputs.size(k)
        for name, record in state.records().items():
            setattr(args, name, record.data_ptr())
        self.launch(inputs.n_runs, args)
        if state.on_cpu:
            state.all_alive = bool(state.alive.all())
        return stop


def text_of(task: Task, state: RunState, inputs: Inputs, shared_memory: int) -> tuple[str, int] | None:
    """Return the text of the kernel and its bytes of shared memory; None where it has no form, or does not fit."""
    rule, c = task.rule, inputs.row_of(0)
    network = Network.of(task.problem.model, task.problem.loss.name)
    layout = Layout.of(state.rule, c)
    chunk, point = network.chunk(sum(layout.present), shared_memory), rule.gradient_at(c, state.rule)
    at = next((i for i, field in enumerate(state.rule) if field is point), None)
    text = None if chunk is None or at is None else source(rule, layout, network, at, chunk)
    return None if text is None or chunk is None else (text, network.shared_bytes(sum(layout.present), chunk))


def make_persistent(task: Task, state: RunState, inputs: Inputs) -> Persistent | Graphed:
    """Return the engine on a GPU; where its kernel cannot be had, that of CUDA graphs, and say so."""
    device = inputs.device
    found = text_of(task, state, inputs, cuda.shared_memory(device))
    if found is None:
        return Graphed(task, state, inputs)
    text, shared_bytes = found
    try:
        code = cuda.cubin("cycles", text, cuda.architecture(device))
        kernel = cuda.Kernel(code, "cycles", device, THREADS, shared_bytes)
    except (OSError, cuda.CudaError) as error:
        _log.warning("the CUDA kernel is not used: %s; going on with CUDA graphs, equal to rounding only", error)
        return Graphed(task, state, inputs)
    return Persistent(task, state, inputs, kernel)
