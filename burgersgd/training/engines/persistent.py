"""Trains small networks on a GPU: one run per thread block, up to 64 gradient evaluations of all runs in one launch.

A run's position, gradient and activations are in the shared memory of its multiprocessor during the entire launch, and
so is the rest of its state if a second run still fits (native/cycles.cu); the lines of the rule come from tracing.py,
like those of the C kernel. A run is bitwise equal alone and in a fleet. The engine `graphed` trains networks that do
not fit.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

THREADS = {1: 512, 2: 384}
"""Number of blocks per multiprocessor -> threads per block, the fastest number on an H100 (docs/benchmarks.md)."""
CHUNKS = (32, 16, 8)
"""Numbers of examples whose activations may be in shared memory at once, of which the largest that fits is chosen."""
RESERVED = 1024
"""Bytes of a multiprocessor's shared memory that the system reserves per block."""

NEEDS = "on a GPU a float32 mlp that fits the shared memory of a multiprocessor, no dropout or augmentation"

Launch = Callable[[int, ctypes.Structure], None]
"""Function (number of runs, arguments) that advances all runs."""


class Plan(NamedTuple):
    """How the numbers of a run are laid out in memory."""

    chunk: int
    """Number of examples whose activations are in shared memory at once."""
    blocks: int
    """Number of runs that share a multiprocessor."""
    all_shared: bool
    """Whether all vectors of the state are in shared memory; otherwise only that at which gradients are taken."""
    shared_bytes: int

    @property
    def threads(self) -> int:
        """Number of threads of a block."""
        return THREADS[self.blocks]


@dataclass(frozen=True)
class Network:
    """The network and loss for which a kernel is generated."""

    widths: tuple[int, ...]
    activation: str
    loss: str

    @classmethod
    def of(cls, model: Any, loss: str) -> Network:
        """Return the network of a model that has `widths` and `activation`."""
        return cls(tuple(model.widths), model.activation, loss)

    def plan(self, fields: int, shared_memory: int) -> Plan | None:
        """Return the best plan that fits for a state of `fields` vectors; None where none fits."""
        two = (shared_memory + RESERVED) // 2 - RESERVED
        for chunk in CHUNKS:
            for blocks, limit in ((2, two), (1, shared_memory)):
                for all_shared in (True, False):
                    needed = self._shared_bytes(fields if all_shared else 1, chunk)
                    if needed <= limit:
                        return Plan(chunk, blocks, all_shared, needed)
        return None

    def _shared_bytes(self, fields: int, chunk: int) -> int:
        """Return SHARED_FLOATS of native/cycles.cu in bytes, for `fields` vectors of the state in shared memory."""
        rows = [_rounded_up(width) + 4 for width in self.widths]
        last = len(rows) - 1
        padded = sum(_rounded_up(out) * row for out, row in zip(self.widths[1:], rows, strict=False))
        roomy = all(sum(rows[layer + 1 :]) >= rows[layer] for layer in range(last - 2, 0, -2))
        gradients = (1 if roomy else 2) * chunk * (_rounded_up(max(self.widths[1:-1], default=0)) + 4)
        return 4 * ((fields + 1) * padded + chunk * sum(rows) + gradients + 32 + 2 * chunk)


def _rounded_up(n: int) -> int:
    return (n + 3) // 4 * 4


def fits(rule: Rule, problem: Problem, device: torch.device) -> bool:
    """Whether runs of the rule are expected to fit: a fully connected float32 network, in shared memory."""
    model, loss = problem.model, problem.loss.name
    if device.type != "cuda" or not isinstance(model, Mlp) or model.n_uniform:
        return False
    if problem.inputs.dtype != torch.float32 or problem.bfloat16 or problem.augmentation is not None:
        return False
    if model.activation not in ACTIVATIONS or loss not in LOSSES or len(model.widths) > 16:
        return False
    some = torch.zeros(1, 1)
    fields = sum(field is not None for field in rule.init(some, some if rule.noisy else None))
    plain = rule.replicas is None and rule.elementwise
    return plain and Network.of(model, loss).plan(fields, cuda.shared_memory(device)) is not None


def source(rule: Rule, layout: Layout, network: Network, at: int, plan: Plan) -> str | None:
    """Return the source of the kernel, None for a rule without a trace.

    `at` is the index of the field at which gradients are taken.
    """
    step, end = trace(rule, layout), _end_cycle(rule, layout)
    if step is None or end is None or layout.wide or rule.replicas is not None:
        return None
    kept = [i for i, present in enumerate(layout.present) if present]
    n = len(layout.coefficients_type._fields)
    unused, gradient = [f"(void)s{i};" for i in kept], ["const real g = gradient; (void)g;"]

    def lines(of: Trace, first: Sequence[str] = ()) -> str:
        """Return the rule's lines, in which a number of vector k is v[part][k][i]."""
        loads = [f"const real s{i} = v[part][{k}][i];" for k, i in enumerate(kept)]
        stores = [f"v[part][{kept.index(i)}][i] = {name};" for i, name in of.stores]
        return " ".join([*loads, *unused, *first, *of.lines, *stores])

    def stores_of(of: Trace) -> str:
        return f"({sum(1 << kept.index(i) for i, _ in of.stores)} >> (k) & 1)"

    defined = {
        "N_LAYERS": len(network.widths) - 1,
        "WIDTHS": "{" + ", ".join(map(str, network.widths)) + "}",
        "CHUNK": plan.chunk,
        "N_THREADS": plan.threads,
        "N_BLOCKS": plan.blocks,
        "ALL_SHARED": int(plan.all_shared),
        "N_FIELDS": len(kept),
        "FIELD_AT": kept.index(at),
        "N_COEFFICIENTS": n,
        "MOST_STEPS": BLOCK,
        "NOISE": f"{int(Purpose.NOISE)}u",
        "NOISY": int(rule.noisy),
        "ACTIVATION": network.activation.upper(),
        "LOSS": network.loss.upper(),
        "RULE_COEFFICIENTS": " ".join(f"const real c{i} = c[{i} * p.runs]; (void)c{i};" for i in range(n)),
        "RULE_STEP": lines(step, gradient),
        "STEP_STORES(k)": stores_of(step),
        "CYCLE_STORES(k)": stores_of(end),
    }
    if step.normed is not None:
        defined["RULE_NORMED"] = f"{lines(Trace(step.normed_lines, ()), gradient)} const real normed = {step.normed};"
    if end.stores:
        defined["RULE_END_CYCLE"] = lines(end)
    head = "\n".join(f"#define {name} {value}" for name, value in defined.items())
    return "\n".join([head, *(native.source_text(name, suffix=".cu") for name in ("device", "mlp", "cycles"))])


@functools.cache
def _end_cycle(rule: Rule, layout: Layout) -> Trace | None:
    try:
        return traced_end_cycle(rule, layout)
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError, NotImplementedError):
        return None


@functools.cache
def args_type(n_fields: int) -> type[ctypes.Structure]:
    """Return the ctypes mirror of Args in native/cycles.cu."""
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
    """The engine whose kernel takes all steps of a block of inputs, including ends of cycles, in one launch."""

    draws_noise = True

    def __init__(self, task: Task, state: RunState, inputs: Inputs, launch: Launch) -> None:
        """`launch` runs the kernel generated by `source` for this task and state."""
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


def text_of(task: Task, state: RunState, inputs: Inputs, shared_memory: int) -> tuple[str, Plan] | None:
    """Return the source of the kernel and its plan; None where the rule cannot be traced or the run does not fit."""
    rule, c = task.rule, inputs.row_of(0)
    network = Network.of(task.problem.model, task.problem.loss.name)
    layout = Layout.of(state.rule, c)
    plan, point = network.plan(sum(layout.present), shared_memory), rule.gradient_at(c, state.rule)
    at = next((i for i, field in enumerate(state.rule) if field is point), None)
    text = None if plan is None or at is None else source(rule, layout, network, at, plan)
    return None if text is None or plan is None else (text, plan)


def make_persistent(task: Task, state: RunState, inputs: Inputs) -> Persistent | Graphed:
    """Return the engine with its kernel, or that of CUDA graphs, with a warning if the kernel cannot be compiled."""
    device = inputs.device
    found = text_of(task, state, inputs, cuda.shared_memory(device))
    if found is None:
        return Graphed(task, state, inputs)
    text, plan = found
    try:
        code = cuda.cubin("cycles", text, cuda.architecture(device))
        kernel = cuda.Kernel(code, "cycles", device, plan.threads, plan.shared_bytes)
    except (OSError, cuda.CudaError) as error:
        _log.warning(
            "the CUDA kernel cannot be used (%s): continuing with CUDA graphs; results agree only up to rounding", error
        )
        return Graphed(task, state, inputs)
    return Persistent(task, state, inputs, kernel)
