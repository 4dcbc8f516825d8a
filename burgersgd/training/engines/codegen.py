"""The update rule as one pass over memory, its normal numbers drawn on the way: C generated from the rule itself.

There is no second copy of any rule: tracing.py writes the lines that `rule.step` amounts to for one number, and the
compiler makes one loop of them. Where no compiler is found, or a rule has no trace, it runs in PyTorch as it is.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burgersgd import native
from burgersgd.optimizers.protocol import Rule
from burgersgd.streams import Purpose
from burgersgd.training.engines.tracing import Layout, trace
from burgersgd.training.native_gradient import check_size

PARALLEL = 1 << 16
"""Numbers per thread below which waking the threads costs more than they save."""

_LOOP = """
typedef REAL real;
static inline real lerp(real a, real b, real w) {{ return w < (real)0.5 ? a + w * (b - a) : b - (b - a) * (1 - w); }}

typedef struct {{
    real *fields[{n_fields}]; /* the state, in place: [runs, d] each */
    const real **grads;       /* the gradient in pieces, [runs, length of the piece] each */
    const int64_t *starts;    /* where each piece begins in the vector, then d */
    const uint64_t *seeds;    /* [runs] */
    const uint8_t *alive;     /* [runs]: others are left as they are */
    int64_t pieces, runs, d;
    int32_t threads;
}} plan_t;

/* Numbers [from, to) of run r; G[j] is the gradient of number j. */
static void part(const plan_t *p, const real *coefficients, uint64_t step, int64_t r, int64_t from, int64_t to,
                 const real *restrict G) {{
    {pointers}
    {coefficients}
    {stream}
    for (int64_t j = from & ~(int64_t)(GROUP - 1); j < to; j += GROUP) {{
        {draw}
        const int low = from > j ? (int)(from - j) : 0, high = to - j < GROUP ? (int)(to - j) : GROUP;
        if (low == 0 && high == GROUP) {{
            for (int i = 0; i < GROUP; i++) {{
                {body}
            }}
        }} else {{
            for (int i = low; i < high; i++) {{
                {body}
            }}
        }}
    }}
}}

static void row(const plan_t *p, const real *coefficients, uint64_t step, int64_t r, int64_t from, int64_t to) {{
    if (!p->alive[r]) return;
    for (int64_t k = 0; k < p->pieces; k++) {{
        const int64_t start = p->starts[k], end = p->starts[k + 1];
        const int64_t low = from > start ? from : start, high = to < end ? to : end;
        if (low < high) part(p, coefficients, step, r, low, high, p->grads[k] + r * (end - start) - start);
    }}
}}

/* Run r with a gradient that lies elsewhere, in one piece. */
void update_run(const plan_t *p, const real *coefficients, uint64_t step, int64_t r, const real *grad) {{
    part(p, coefficients, step, r, 0, p->d, grad);
}}

int64_t plan_size(void) {{ return sizeof(plan_t); }}

void update(const plan_t *p, const real *coefficients, uint64_t step) {{
    const int64_t groups = (p->d + GROUP - 1) / GROUP;
    if (p->threads == 1) {{
        for (int64_t r = 0; r < p->runs; r++) row(p, coefficients, step, r, 0, p->d);
        return;
    }}
#pragma omp parallel for num_threads(p->threads) schedule(static)
    for (int thread = 0; thread < p->threads; thread++) {{
        const int64_t end = p->runs * groups * (thread + 1) / p->threads;
        for (int64_t group = p->runs * groups * thread / p->threads; group < end;) {{
            const int64_t r = group / groups, from = group % groups;
            const int64_t to = from + (end - group) < groups ? from + (end - group) : groups;
            row(p, coefficients, step, r, from * GROUP, to == groups ? p->d : to * GROUP);
            group += to - from;
        }}
    }}
}}
"""


def source(rule: Rule, layout: Layout, dtype: torch.dtype) -> str | None:
    """Return the C text that does rule.step in place; None for a rule that has no trace."""
    step = trace(rule, layout)
    if step is None:
        return None
    kept = [i for i, present in enumerate(layout.present) if present]
    loads = [f"const real s{i} = F{i}[j + i];" for i in kept] + ["const real g = G[j + i];"]
    if rule.noisy:
        loads.append("const real xi = normals[i];")
    stores = [f"F{i}[j + i] = {name};" for i, name in step.stores]
    loop = _LOOP.format(
        n_fields=len(kept),
        pointers="\n    ".join(f"real *restrict F{i} = p->fields[{k}] + r * p->d;" for k, i in enumerate(kept)),
        coefficients="\n    ".join(
            f"const real c{i} = coefficients[{i} * p->runs + r];" for i in range(len(layout.coefficients_type._fields))
        ),
        stream=f"const row_t stream = row_of(p->seeds[r], {int(Purpose.NOISE)}, step);" if rule.noisy else "",
        draw="float normals[GROUP];\n        group_of_normals(&stream, (uint32_t)(j / 4), normals);"
        if rule.noisy
        else "",
        body="\n                ".join([*loads, *step.lines, *stores]),
    )
    return native.source_text("normals") + loop.replace("REAL", "float" if dtype == torch.float32 else "double")


@functools.cache
def _compiled(rule: Rule, layout: Layout, dtype: torch.dtype) -> ctypes.CDLL | None:
    text = source(rule, layout, dtype)
    library = None if text is None else native.compiled("update", text)
    if library is None:
        return None
    check_size(library.plan_size, _plan_type(sum(layout.present)))
    library.update.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
    library.update.restype = None
    return library


@functools.cache
def _plan_type(n_fields: int) -> type[ctypes.Structure]:
    """Return the mirror of plan_t."""

    class Plan(ctypes.Structure):
        _fields_ = [
            ("fields", ctypes.c_void_p * n_fields),
            ("grads", ctypes.c_void_p),
            ("starts", ctypes.c_void_p),
            ("seeds", ctypes.c_void_p),
            ("alive", ctypes.c_void_p),
            ("pieces", ctypes.c_int64),
            ("runs", ctypes.c_int64),
            ("d", ctypes.c_int64),
            ("threads", ctypes.c_int32),
        ]

    return Plan


def _check(fields: Sequence[Tensor], seeds: Tensor, pieces: Sequence[int]) -> None:
    """Raise ValueError for what C would not notice: vectors of other shapes or types, with gaps, or in one memory."""
    runs, d = fields[0].shape
    for field in fields:
        fits = field.shape == (runs, d) and field.dtype == fields[0].dtype and field.device.type == "cpu"
        if not (fits and field.is_contiguous()):
            raise ValueError(
                f"the state has a vector {field.dtype} {list(field.shape)} on {field.device}: "
                f"all must be contiguous {fields[0].dtype} {[runs, d]} on the CPU"
            )
    ends = sorted((field.data_ptr(), field.data_ptr() + field.nbytes) for field in fields)
    if any(end > start for (_, end), (start, _) in pairwise(ends)):
        raise ValueError("two vectors of the state share memory: each must have its own")
    if seeds.dtype != torch.int64 or seeds.shape != (runs,) or not seeds.is_contiguous():
        raise ValueError(f"seeds are {seeds.dtype} {list(seeds.shape)}: must be contiguous int64 {[runs]}")
    if sum(pieces) != d or (len(pieces) > 1 and runs > 1):
        raise ValueError(f"the gradient comes in pieces of {list(pieces)}: must be {d} numbers, of one run if several")


class FusedUpdate:
    """rule.step on the whole state, in place, as one C loop; None from `make` where that cannot be."""

    def __init__(self, library: ctypes.CDLL, state: Any, seeds: Int[Tensor, " runs"], pieces: Sequence[int]) -> None:
        fields = [field for field in state if field is not None]
        runs, d = fields[0].shape
        _check(fields, seeds, pieces)
        starts = torch.tensor([0, *pieces]).cumsum(0)
        threads = torch.get_num_threads()
        self._function = library.update
        self.run_function = ctypes.cast(library.update_run, ctypes.c_void_p)
        """update_run of the C text, for NativeSteps."""
        self._kept_alive = (fields, seeds, starts)
        self._grads = (ctypes.c_void_p * len(pieces))()
        self._plan = _plan_type(len(fields))(
            grads=ctypes.addressof(self._grads),
            starts=starts.data_ptr(),
            seeds=seeds.data_ptr(),
            pieces=len(pieces),
            runs=runs,
            d=d,
            threads=threads if runs * d >= threads * PARALLEL else 1,
        )
        for i, field in enumerate(fields):
            self._plan.fields[i] = field.data_ptr()
        self.plan_address = ctypes.addressof(self._plan)

    def holds(self, vector: Tensor) -> bool:
        """Whether a tensor is one of the vectors that are updated."""
        return any(vector is field for field in self._kept_alive[0])

    @classmethod
    def make(
        cls, rule: Rule, state: Any, coefficients: Any, seeds: Int[Tensor, " runs"], pieces: Sequence[int] | None = None
    ) -> FusedUpdate | None:
        """Return the compiled update of a state whose tensors are contiguous and stay where they are, or None.

        pieces are the lengths of the tensors in which the gradient comes; None: it is one ``[runs, d]``.
        """
        layout = Layout.of(state, coefficients)
        some = next(field for field in state if field is not None)
        if some.dtype not in (torch.float32, torch.float64):
            return None
        library = _compiled(rule, layout, some.dtype)
        return None if library is None else cls(library, state, seeds, pieces or [some.shape[1]])

    def __call__(
        self,
        coefficients: Float[Tensor, "fields runs 1"],
        grads: Sequence[Float[Tensor, "..."]],
        alive: Bool[Tensor, " runs"],
        step: int,
    ) -> None:
        """Replace the state of living runs by rule.step of it; noise number step + 1 of each run's own stream."""
        for i, grad in enumerate(grads):
            self._grads[i] = grad.data_ptr()
        self._plan.alive = alive.data_ptr()
        self._function(self.plan_address, coefficients.data_ptr(), step + 1)
