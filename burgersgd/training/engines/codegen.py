"""Generates C from an update rule: a single loop over memory, which also draws the rule's normal numbers.

There is no second copy of any rule: tracing.py writes the lines of C that compute `rule.step` for one number, and the
compiler makes one loop of them. If there is no compiler, or a rule has no trace, the rule runs in PyTorch.
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
"""Numbers per thread below which starting the threads takes more time than they save."""

_LOOP = """
typedef REAL real;
static inline real lerp(real a, real b, real w) {{ return w < (real)0.5 ? a + w * (b - a) : b - (b - a) * (1 - w); }}

typedef struct {{
    real *fields[{n_fields}]; /* the state, in place: [runs, d] each */
    const real **grads;       /* the gradient in pieces, [runs, length of the piece] each */
    const int64_t *starts;    /* where each piece begins in the vector, then d */
    const uint64_t *seeds;    /* [runs] */
    const uint8_t *alive;     /* [runs]: others are left as they are */
    real *norms;              /* [runs]: what the rule is given as the gradient's norm */
    const real *wide[{n_wide}]; /* coefficients of every parameter: [runs, d] each */
    int64_t pieces, runs, d;
    int32_t threads;
}} plan_t;

/* Numbers [from, to) of run r; G[j] is the gradient of number j. */
static void part(const plan_t *p, const real *coefficients, uint64_t step, int64_t r, int64_t from, int64_t to,
                 const real *restrict G, const real norm) {{
    {pointers}
    {wide}
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

{normed}
static void row(const plan_t *p, const real *coefficients, uint64_t step, int64_t r, int64_t from, int64_t to) {{
    if (!p->alive[r]) return;
    for (int64_t k = 0; k < p->pieces; k++) {{
        const int64_t start = p->starts[k], end = p->starts[k + 1];
        const int64_t low = from > start ? from : start, high = to < end ? to : end;
        if (low < high) part(p, coefficients, step, r, low, high, p->grads[k] + r * (end - start) - start, p->norms[r]);
    }}
}}

/* Run r with a gradient that lies elsewhere, in one piece. */
void update_run(const plan_t *p, const real *coefficients, uint64_t step, int64_t r, const real *grad,
                double norm) {{
    {norm_of_run}
    part(p, coefficients, step, r, 0, p->d, grad, (real)norm);
}}

int64_t plan_size(void) {{ return sizeof(plan_t); }}

void update(const plan_t *p, const real *coefficients, uint64_t step) {{
    const int64_t groups = (p->d + GROUP - 1) / GROUP;
    {norms}
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

_NORMED = """
/* Sum of the squares of what the rule takes the norm of, of the numbers [from, to) of run r, in a fixed order. */
static double squares(const plan_t *p, const real *coefficients, int64_t r, int64_t from, int64_t to,
                      const real *restrict G) {{
    {pointers}
    {wide}
    {coefficients}
    double sums[8] = {{0}}, sum = 0;
    for (int64_t j = from; j < to; j += 8)
        for (int i = 0; i < 8; i++) {{
            if (j + i >= to) break;
            {body}
            sums[i] += (double){result} * (double){result};
        }}
    for (int i = 0; i < 8; i++) sum += sums[i];
    return sum;
}}

static void norms(const plan_t *p, const real *coefficients) {{
#pragma omp parallel for num_threads(p->threads) schedule(static) if (p->threads > 1)
    for (int64_t r = 0; r < p->runs; r++) {{
        double sum = 0;
        for (int64_t k = 0; k < p->pieces; k++) {{
            const int64_t start = p->starts[k], end = p->starts[k + 1];
            sum += squares(p, coefficients, r, start, end, p->grads[k] + r * (end - start) - start);
        }}
        p->norms[r] = (real)__builtin_sqrt(sum);
    }}
}}
"""


def source(rule: Rule, layout: Layout, dtype: torch.dtype) -> str | None:
    """Return the C text that computes rule.step in place; None for a rule that has no trace."""
    step = trace(rule, layout)
    if step is None:
        return None
    kept = [i for i, present in enumerate(layout.present) if present]
    narrow = [i for i in range(len(layout.coefficients_type._fields)) if i not in layout.wide]
    loads = [f"const real s{i} = F{i}[j + i];" for i in kept] + ["const real g = G[j + i];"]
    loads += [f"const real c{i} = W{i}[j + i];" for i in layout.wide]
    common = {
        "pointers": "\n    ".join(f"real *restrict F{i} = p->fields[{k}] + r * p->d;" for k, i in enumerate(kept)),
        "wide": "\n    ".join(
            f"const real *restrict W{i} = p->wide[{k}] + r * p->d;" for k, i in enumerate(layout.wide)
        ),
        "coefficients": "\n    ".join(
            f"const real c{i} = coefficients[{k} * p->runs + r];" for k, i in enumerate(narrow)
        ),
    }
    normed = ""
    if step.normed is not None:
        body = "\n            ".join([*loads, *step.normed_lines])
        normed = _NORMED.format(body=body, result=step.normed, **common)
    if rule.noisy:
        loads.append("const real xi = normals[i];")
    stores = [f"F{i}[j + i] = {name};" for i, name in step.stores]
    purpose = f"{int(Purpose.NOISE)} + ((uint32_t)(r % {rule.replicas or 1}) << 16)"  # as replicas.purpose_of
    loop = _LOOP.format(
        n_fields=len(kept),
        n_wide=max(1, len(layout.wide)),
        normed=normed,
        norms="norms(p, coefficients);" if normed else "",
        norm_of_run="norm = (real)__builtin_sqrt(squares(p, coefficients, r, 0, p->d, grad));" if normed else "",
        **common,
        stream=f"const row_t stream = row_of(p->seeds[r], {purpose}, step);" if rule.noisy else "",
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
    check_size(library.plan_size, _plan_type(sum(layout.present), len(layout.wide)))
    library.update.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
    library.update.restype = None
    return library


@functools.cache
def _plan_type(n_fields: int, n_wide: int) -> type[ctypes.Structure]:
    """Return the ctypes mirror of plan_t."""

    class Plan(ctypes.Structure):
        _fields_ = [
            ("fields", ctypes.c_void_p * n_fields),
            ("grads", ctypes.c_void_p),
            ("starts", ctypes.c_void_p),
            ("seeds", ctypes.c_void_p),
            ("alive", ctypes.c_void_p),
            ("norms", ctypes.c_void_p),
            ("wide", ctypes.c_void_p * max(1, n_wide)),
            ("pieces", ctypes.c_int64),
            ("runs", ctypes.c_int64),
            ("d", ctypes.c_int64),
            ("threads", ctypes.c_int32),
        ]

    return Plan


def _check(fields: Sequence[Tensor], seeds: Tensor, pieces: Sequence[int]) -> None:
    """Raise ValueError for errors that C would not detect: wrong shapes or types, gaps, or shared memory."""
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
    """rule.step on the complete state, in place, as one C loop; `make` returns None where that is impossible."""

    def __init__(
        self,
        library: ctypes.CDLL,
        state: Any,
        seeds: Int[Tensor, " runs"],
        pieces: Sequence[int],
        wide: Sequence[Float[Tensor, "runs d"]],
        own_norm: bool,
    ) -> None:
        fields = [field for field in state if field is not None]
        runs, d = fields[0].shape
        wide = [field.to(fields[0].dtype).expand(runs, d).contiguous() for field in wide]
        _check(fields, seeds, pieces)
        starts = torch.tensor([0, *pieces]).cumsum(0)
        threads = torch.get_num_threads()
        self._function = library.update
        self.run_function = ctypes.cast(library.update_run, ctypes.c_void_p)
        """Function update_run of the C text, called by NativeSteps."""
        self._own_norms = torch.empty(runs, dtype=fields[0].dtype) if own_norm else None
        self._kept_alive = (fields, seeds, starts, wide)
        self._grads = (ctypes.c_void_p * len(pieces))()
        self._plan = _plan_type(len(fields), len(wide))(
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
        for i, field in enumerate(wide):
            self._plan.wide[i] = field.data_ptr()
        self.plan_address = ctypes.addressof(self._plan)

    def holds(self, vector: Tensor) -> bool:
        """Whether a tensor is one of the vectors that are updated."""
        return any(vector is field for field in self._kept_alive[0])

    @classmethod
    def make(
        cls, rule: Rule, state: Any, coefficients: Any, seeds: Int[Tensor, " runs"], pieces: Sequence[int] | None = None
    ) -> FusedUpdate | None:
        """Return the compiled update of a state whose tensors are contiguous and keep their place in memory, or None.

        pieces are the lengths of the tensors that make up the gradient; None: it is one tensor ``[runs, d]``.
        """
        layout = Layout.of(state, coefficients)
        some = next(field for field in state if field is not None)
        if some.dtype not in (torch.float32, torch.float64):
            return None
        library = _compiled(rule, layout, some.dtype)
        if library is None:
            return None
        wide = [coefficients[i].to(some) for i in layout.wide]
        return cls(library, state, seeds, pieces or [some.shape[1]], wide, rule.normed is not None)

    def __call__(
        self,
        coefficients: Float[Tensor, "fields runs 1"],
        grads: Sequence[Float[Tensor, "..."]],
        norm: Float[Tensor, " runs"],
        alive: Bool[Tensor, " runs"],
        step: int,
    ) -> None:
        """Replace the state of the living runs by the result of rule.step, with noise number step + 1 of each stream.

        norm is the norm of the gradients; for a rule with `normed` it is computed here instead.
        """
        for i, grad in enumerate(grads):
            self._grads[i] = grad.data_ptr()
        self._plan.alive = alive.data_ptr()
        self._plan.norms = (norm if self._own_norms is None else self._own_norms).data_ptr()
        self._function(self.plan_address, coefficients.data_ptr(), step + 1)
