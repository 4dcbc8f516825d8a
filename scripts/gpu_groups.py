"""The checks of scripts/gpu_check.py, group by group; on the CPU (--device cpu) most of them are vacuous."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from gpu_common import (
    CUDA,
    RULE,
    Outcome,
    against_cpu,
    apart,
    bits,
    check,
    configs,
    fleet,
    images,
    options,
    rules,
    same,
    synchronize,
    words,
)
from gpu_launches import launches_per_step
from torch import Tensor, nn

import burgersgd
import burgersgd.config as C
from burgersgd import streams
from burgersgd.build.prepared import prepare
from burgersgd.datasets import Dataset
from burgersgd.sweeps.planning import rate_of, run_bytes
from burgersgd.training.fleet import Fleet
from burgersgd.training.inputs import BLOCK
from burgersgd.training.stability import top_eigenvalue

PROJECT = Path(__file__).resolve().parent.parent
HALVED_BYTES = 1.0e9
"""Memory that the fleet which is to be halved may have."""


# ------------------------------------------------------------------------------------------------------------ groups


def base() -> None:
    """Check versions, streams, one-line errors, waits for the GPU and bfloat16."""

    @check("machine")
    def _() -> Outcome:
        gpu = torch.cuda.get_device_name(0) if CUDA else "none"
        tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        return f"{gpu}, torch {torch.__version__}, Python {platform.python_version()}, TF32 (matmul, cudnn) {tf32}"

    _streams("triton" if CUDA else "torch")

    @check("device.index too large is one line")
    def _() -> Outcome:
        return _refused([C.TrainConfig(device=C.DeviceConfig(name="cuda", index=7))])

    if CUDA:

        @check("compile=native is refused on the GPU")
        def _() -> Outcome:
            return _refused(configs(1, rules()["sgd"], "native"))

    @check("the engine of the default command")
    def _() -> Outcome:
        prepared = prepare([C.TrainConfig()])
        return f"{prepared.problem.inputs.device}, {prepared.engine}"

    for n_runs in (1, 3):

        @check(f"eager, R={n_runs}: no waiting for the GPU within a block")
        def _(n_runs: int = n_runs) -> Outcome:
            waiting = fleet(configs(n_runs, RULE, "off", precision="float32"))
            waiting.advance(70)
            synchronize()
            with _waits() as seen:
                waiting.advance(40)
            return not seen, f"{len(seen) / 40:.2f} waits per step {sorted(set(seen))[:4]}"

    check("bfloat16")(lambda: _bfloat16("off", 3))


def _streams(backend: streams.Backend) -> None:
    @check("Philox: integers, uniforms and normals of the device are those of the CPU")
    def _() -> Outcome:
        seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 20260101])
        there, worst = seeds.to(options.device), 0.0
        for n in (33, 1025) if options.tiny else (1, 3, 31, 32, 33, 1000, 1025, 8970):
            for first in (0, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 3):
                for r in (1, 6):
                    a, b = there[:r].contiguous(), seeds[:r].contiguous()
                    integers = streams.integers(a, 2, first, 3, n, backend=backend).cpu()
                    assert torch.equal(integers, streams.integers(b, 2, first, 3, n, backend="torch")), (n, first, r)
                    for dtype in (torch.float32, torch.float64):
                        empty = torch.full((3, r, n), float("nan"), dtype=dtype)
                        z = streams.normal_(empty.to(options.device), a, 2, first, backend=backend).cpu()
                        worst = max(
                            worst, float((z - streams.normal_(empty, b, 2, first, backend="torch")).abs().max())
                        )
                    empty = torch.empty(3, r, n)
                    u = streams.uniform_(empty.to(options.device), a, 3, first, backend=backend).cpu()
                    assert torch.equal(u, streams.uniform_(empty, b, 3, first, backend="torch"))
        return worst < 1e-6, f"normals differ by {worst:.1e}"

    @check("Philox: a million normals")
    def _() -> Outcome:
        seeds = torch.arange(4, device=options.device)
        z = streams.normal_(torch.empty(8, 4, 1 << 15, device=options.device), seeds, 2, 5, backend=backend).double()
        mean, variance, fourth = (float(z.pow(k).mean()) for k in (1, 2, 4))
        # four standard errors of a million: .004, .0057, .039
        return abs(mean) < 4e-3 and abs(variance - 1) < 6e-3 and abs(fourth - 3) < 4e-2, f"{mean}, {variance}, {fourth}"

    @check("permutations are the CPU's")
    def _() -> Outcome:
        seeds = torch.arange(5)
        there = streams.permutation(seeds.to(options.device), 3, 1078).cpu()
        return torch.equal(there, streams.permutation(seeds, 3, 1078)), ""


def _refused(these: list[C.TrainConfig]) -> Outcome:
    try:
        prepare(these)
    except C.ConfigError as error:
        return "\n" not in str(error), str(error)
    return False, "no error"


@contextlib.contextmanager
def _waits() -> Iterator[list[str]]:
    """Collect the places where the host waits for the GPU."""
    seen: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if CUDA:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            if CUDA:
                torch.cuda.set_sync_debug_mode("default")
        seen += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]


def _bfloat16(mode: str, n_runs: int) -> Outcome:
    exact, rough = (fleet(configs(n_runs, rules()["sgd"], mode, precision=p)) for p in ("float32", "bfloat16"))
    for each in (exact, rough):
        each.advance(20)
    difference = apart(rough.x, exact.x)
    return rough.x.dtype == torch.float32 and 1e-5 < difference < 0.05, f"{difference:.1e} from float32"


def eager() -> None:
    """Check every rule, LeNet and the options of a step, eager and as CUDA graphs, against the CPU."""
    for name, rule in rules().items():
        for n_runs in (1, 3) if options.tiny else (1, 3, 17):
            against_cpu(name, n_runs, rule, "off")
            against_cpu(name, n_runs, rule, "auto")  # a short budget: CUDA graphs without a compiler
    for n_runs in (1, 3):
        for mode in ("off", "auto"):
            against_cpu("lenet", n_runs, RULE, mode, images(), model=C.LeNetConfig(), steps=20)
    against_cpu(
        "dropout, clipping, cosine, with replacement",
        3,
        RULE,
        "off",
        model=C.MlpConfig(width=12, dropout=0.3),
        schedule=C.CosineScheduleConfig(warmup=0.2),
        clip_norm=0.5,
        with_replacement=True,
    )
    for activation in ("gelu", "softplus", "relu"):
        model = C.MlpConfig(width=12, activation=activation)
        against_cpu(activation, 3, rules()["adamw"], "off", model=model, steps=60)
    for name, model, data in (("mlp", None, None), ("lenet", C.LeNetConfig(), images())):

        @check(f"{name}: the same twice in one process, bit for bit (float32, R=3)")
        def _(model: C.ModelConfig | None = model, data: Dataset | None = data) -> Outcome:
            two = [fleet(configs(3, RULE, "off", precision="float32", model=model), data) for _ in range(2)]
            for each in two:
                each.advance(40)
            return same(*map(bits, two)), ""

    @check("power iterations: the CPU's number")
    def _() -> Outcome:
        a, b = (fleet(configs(1, RULE, "off", device)) for device in (None, "cpu"))
        there, here = top_eigenvalue(a.problem, a.x[0]), top_eigenvalue(b.problem, b.x[0])
        return abs(there - here) < 1e-4 * here, f"{there:.6g}, {here:.6g}"

    @check("power iterations through lenet")
    def _() -> Outcome:
        lenet = fleet(configs(1, RULE, "off", model=C.LeNetConfig()), images())
        return f"{top_eigenvalue(lenet.problem, lenet.x[0]):.4g}"


def compiled_a() -> None:
    """Check compiled steps: short batches, one run, full batch, two processes with caches of their own."""
    against_cpu("local_entropy", 1, RULE, "on", drop_last=True)
    if options.tiny:
        return
    against_cpu("local_entropy, short batches", 3, RULE, "on")
    against_cpu("gd", 1, rules()["gd"], "on")
    check("bfloat16, compiled")(lambda: _bfloat16("on", 1))

    @check("the same in two processes with caches of their own (float32: does autotuning change bits?)")
    def _() -> Outcome:
        children = []
        for _ in range(2):
            cache = tempfile.mkdtemp()
            environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"}
            command = [*words(), "--hash", "on"]
            children.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        found = [child.communicate(timeout=150)[0].strip().splitlines()[-1] for child in children]
        return found[0] == found[1], f"{found}"


def print_hash() -> None:
    """Print a hash of the state after 130 steps of a run and of a fleet."""
    digest = hashlib.sha256()
    for n_runs in (1, 64):
        one = fleet(configs(n_runs, RULE, options.hash, precision="float32", drop_last=True, model=C.MlpConfig()))
        one.advance(130)
        for tensor in bits(one):
            digest.update(tensor.numpy().tobytes())
    print(digest.hexdigest()[:16])


def compiled_b() -> None:
    """Check compiled steps of the variants of local entropy, and of a fleet of 17."""
    if not options.tiny:
        for name in ("local_entropy_momentum", "local_entropy_lm", "local_entropy_reset", "local_entropy_last"):
            against_cpu(name, 3, rules()[name], "on", drop_last=True)
        against_cpu("local_entropy", 17, RULE, "on", drop_last=True)


def compiled_c() -> None:
    """Check compiled steps of the other rules, with dropout and clipping."""
    if not options.tiny:
        for name in ("sgd", "adamw", "langevin", "paper_sde", "paper_literal"):
            against_cpu(name, 3, rules()[name], "on", drop_last=True)
        model = C.MlpConfig(width=12, dropout=0.3)
        against_cpu("dropout and clipping", 3, RULE, "on", model=model, clip_norm=0.5, drop_last=True)


def compiled_e() -> None:
    """Check compiled steps of the rules that look at a norm."""
    if not options.tiny:
        for name in ("sam", "asam"):
            against_cpu(name, 3, rules()[name], "on", drop_last=True)


def compiled_d() -> None:
    """Check compiled LeNet, float32 against eager, and that compiled steps never wait."""
    if options.tiny:
        return
    for n_runs in (1, 3):
        against_cpu("lenet", n_runs, RULE, "on", images(), model=C.LeNetConfig(), steps=20, drop_last=True)

    @check("float32, R=16: eager and compiled agree to rounding, and replays really advance")
    def _() -> Outcome:
        plain, program = (fleet(configs(16, RULE, m, precision="float32", drop_last=True)) for m in ("off", "on"))
        for each in (plain, program):
            each.advance(200)
        difference = apart(program.x, plain.x)
        return difference < 1e-3 and program.evaluations == 200, f"{difference:.1e}"

    @check("float32: no waiting within a block, and the same twice")
    def _() -> Outcome:
        two, waits = [], []
        for _ in range(2):
            one = fleet(configs(3, RULE, "on", precision="float32", drop_last=True))
            one.advance(70)
            with _waits() as seen:
                one.advance(50)
            two.append(bits(one))
            waits += seen
        return same(*two) and not waits, f"{waits[:4]}"


def graphs() -> None:
    """Check graphs of many steps: float64 against the CPU, the bits of single steps, waits, launches and memory."""
    entropy = rules()["local_entropy"]
    cases = {"local_entropy, cycle 8": entropy, "sgd": rules()["sgd"], "sam": rules()["sam"]}
    for steps in (7, 20, 64, 90):
        cases[f"local_entropy, cycle {steps}"] = dataclasses.replace(entropy, inner_steps=steps - 2, burn_in=2)
    for name, rule in cases.items():
        for n_runs in (1, 17) if options.tiny else (1, 3, 17):
            against_cpu(f"{name}, graphs of {BLOCK}", n_runs, rule, "auto", most=BLOCK)
    for mode, n_runs in (("auto", 1), ("auto", 3), *([("on", 3)] if CUDA else [])):
        for rule in (entropy, rules()["sgd"]) if mode == "auto" else (entropy,):

            @check(
                f"{rule.name}, {mode}, R={n_runs}: graphs of many steps, cut and restored, have the bits of single ones"
            )
            def _(mode: str = mode, n_runs: int = n_runs, rule: C.OptimizerConfig = rule) -> Outcome:
                these = configs(n_runs, rule, mode, precision="float32", model=C.MlpConfig(width=300))
                one, many, restored = fleet(these, most=1), fleet(these, most=BLOCK), fleet(these, most=BLOCK)
                one.advance(260)
                many.advance(37)
                restored.restore([many.snapshot(i) for i in range(n_runs)])
                for n in (3, 200, 20):
                    restored.advance(n)
                lengths = [sorted({piece.steps for piece in getattr(f.stepper, "graphs", ())}) for f in (one, restored)]
                longer = not CUDA or (lengths[0] == [1] and max(lengths[1]) >= 16)
                return same(bits(one), bits(restored)) and longer, f"lengths {lengths}"

    @check("a run that diverges in the middle of a graph: frozen in that step, as on the CPU; the others untouched")
    def _() -> Outcome:
        rising = {"explosion_factor": 3.0, "schedule": C.CosineScheduleConfig(warmup=0.5)}
        sick = configs(3, entropy, "auto", **rising)
        sick[1] = dataclasses.replace(sick[1], optimizer=dataclasses.replace(entropy, lr=60.0))
        cpu = [dataclasses.replace(c, device=C.DeviceConfig(name="cpu")) for c in sick]
        a, b = fleet(sick, most=BLOCK), fleet(cpu)
        well = fleet(configs(3, entropy, "auto", **rising), most=BLOCK)
        for each in (a, b, well):
            each.advance(120)
        assert a.diverged_at.tolist() == b.diverged_at.tolist(), (a.diverged_at.tolist(), b.diverged_at.tolist())
        assert a.alive.tolist() == [True, False, True]
        return all(torch.equal(a.x[i], well.x[i]) for i in (0, 2)), f"at {a.diverged_at.tolist()}"

    for mode in ("auto", "on") if CUDA else ("auto",):

        @check(f"{mode}: no waiting for the GPU over ten blocks, launches of a block, memory and time of its capture")
        def _(mode: str = mode) -> Outcome:
            notes, waits = [], 0
            for length in (1, BLOCK):
                these = configs(1, entropy, mode, precision="float32", model=C.MlpConfig(width=300), budget=4000)
                one = fleet(these, most=length)
                one.advance(1)
                synchronize()
                before, started = _reserved(), time.perf_counter()
                one.advance(64 * 18 - 1)  # all graphs are captured
                synchronize()
                took, kept = time.perf_counter() - started, _reserved() - before
                with _waits() as seen:
                    one.advance(640)
                synchronize()
                waits += len(seen)
                known = getattr(one.stepper, "graphs", {})
                held = sum(piece.steps for piece in known)
                notes.append(
                    f"up to {length}: {len(seen)} waits, {64 * launches_per_step(one, 640):.1f} launches a block, "
                    f"{len(known)} graphs of {held} steps, {kept / 2**20:.0f} MiB more, first 18 blocks {took:.2f} s"
                )
            return waits == 0, "; ".join(notes)


def _reserved() -> int:
    """Return the bytes in use on the card, whatever they are used for."""
    if not CUDA:
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def persistent() -> None:
    """Check the kernel that takes many steps in one launch, in float32: against the CPU, and bit for bit."""
    if not CUDA:
        return
    model = C.MlpConfig(width=24, activation="relu")
    for name, rule in rules().items():
        for n_runs in (1, 3, 200):
            close_to_native(name, n_runs, rule)
    close_to_native("full batch", 3, RULE, batch_size=1079, steps=20)
    close_to_native("clipping, cosine", 3, RULE, clip_norm=0.5, schedule=C.CosineScheduleConfig(warmup=0.2))
    for width in (5, 64):
        close_to_native(f"relu, width {width}", 3, RULE, model=C.MlpConfig(width=width, activation="relu"))
    close_to_native("depth 4", 3, RULE, model=C.MlpConfig(depth=4, width=32))

    @check("what does not fit is done with CUDA graphs")
    def _() -> Outcome:
        engine = prepare(configs(1, RULE, "auto", precision="float32", model=C.MlpConfig(width=300))).engine
        return engine == "graphed", engine

    @check("compile=native that does not fit is refused")
    def _() -> Outcome:
        return _refused(configs(1, RULE, "native", precision="float32", model=C.MlpConfig(width=300)))

    @check("the same twice, alone, in a fleet of 200, and cut anywhere, bit for bit")
    def _() -> Outcome:
        these = configs(200, RULE, "native", precision="float32", model=model)
        a, b, alone = fleet(these), fleet(these), fleet(these[77:78])
        for each in (a, b):
            each.advance(130)
        for n in (1, 30, 60, 39):
            alone.advance(n)
        pairs = list(zip(bits(a), bits(alone), strict=True))
        return same(bits(a), bits(b)) and same([x[77:78] for x, _ in pairs], [y for _, y in pairs]), ""

    @check("restored from a snapshot at 37: the same bits at 110")
    def _() -> Outcome:
        these = configs(3, RULE, "native", precision="float32", model=model)
        a, b = fleet(these), fleet(these)
        a.advance(37)
        b.restore([a.snapshot(i) for i in range(3)])
        for each in (a, b):
            each.advance(110 - each.evaluations)
        return same(bits(a), bits(b)), ""

    @check("no waiting for the GPU over four blocks")
    def _() -> Outcome:
        waiting = fleet(configs(3, RULE, "native", precision="float32", model=model))
        waiting.advance(70)
        synchronize()
        with _waits() as seen:
            waiting.advance(200)
        return not seen, f"{seen[:4]}"

    @check("divergence: frozen in that step, as on the CPU; the other runs are untouched")
    def _() -> Outcome:
        sick = configs(3, RULE, "native", precision="float32", model=model)
        sick[1] = dataclasses.replace(sick[1], optimizer=dataclasses.replace(RULE, lr=60.0))
        cpu = [dataclasses.replace(c, device=C.DeviceConfig(name="cpu")) for c in sick]
        a, b, well = fleet(sick), fleet(cpu), fleet(configs(3, RULE, "native", precision="float32", model=model))
        for each in (a, b, well):
            each.advance(90)
        assert a.diverged_at.tolist() == b.diverged_at.tolist(), (a.diverged_at.tolist(), b.diverged_at.tolist())
        return all(torch.equal(a.x[i], well.x[i]) for i in (0, 2)), f"at {a.diverged_at.tolist()}"


def close_to_native(name: str, n_runs: int, rule: C.OptimizerConfig, steps: int = 130, **more: object) -> None:
    """Check that the kernel gives the numbers of the CPU's native engine, to the rounding of float32."""

    @check(f"{name}, R={n_runs}: the kernel equals the native engine")
    def _() -> Outcome:
        cpu, device = (
            prepare(configs(n_runs, rule, "native", where, precision="float32", **more))  # pyright: ignore[reportArgumentType]
            for where in ("cpu", None)
        )
        assert device.engine == "persistent", device.engine
        a, b = device.fleet(), cpu.fleet()
        for each in (a, b):
            each.advance(steps)
        fields = [(x, y) for x, y in zip(a.state, b.state, strict=True) if y is not None and float(y.norm()) > 0]
        worst = max(apart(x, y) for x, y in fields)
        kind = type(a.stepper).__name__
        healthy = torch.equal(a.alive.cpu(), b.alive) and kind == "Persistent"
        return worst < 2e-3 and healthy, f"relative difference {worst:.1e} (bound 2e-03), {kind}"


def augmented() -> None:
    """Check changed images: against the CPU in every engine, and that a network that would get the kernel gets none."""
    modes = ("off", "auto") if options.tiny or not CUDA else ("off", "auto", "on")
    mlp = C.MlpConfig(width=12, activation="relu")
    for augment in ("shift",) if options.tiny else ("shift", "crop_flip"):
        for mode in modes:
            for n_runs in (1, 3):
                more = {"augment": augment, "model": mlp, "drop_last": True}
                against_cpu(f"mlp, {augment}", n_runs, RULE, mode, images(), steps=70, **more)
        if not options.tiny:
            more = {"augment": augment, "model": C.LeNetConfig()}
            against_cpu(f"lenet, {augment}", 3, rules()["asam"], "off", images(), steps=20, **more)

    @check("the same twice and cut anywhere, bit for bit")
    def _() -> Outcome:
        these = configs(3, RULE, "off", precision="float32", model=mlp, augment="crop_flip")
        two = [fleet(these, images()) for _ in range(2)]
        two[0].advance(70)
        for n in (1, 30, 39):
            two[1].advance(n)
        return same(*map(bits, two)), ""

    if CUDA:

        @check("the engine of a float32 mlp")
        def _() -> Outcome:
            these = configs(1, RULE, "auto", precision="float32", model=mlp, augment="shift")
            engine = prepare(these, dataset=images()).engine
            return engine == "graphed", engine


def frozen() -> None:
    """Check divergence, snapshots and a killed run."""
    for mode in ("off",) if options.tiny else ("off", "on"):

        @check(f"divergence, {mode}: frozen in that step, as on the CPU; the other runs are untouched")
        def _(mode: str = mode) -> Outcome:
            sick = configs(3, RULE, mode, drop_last=True)
            sick[1] = dataclasses.replace(sick[1], optimizer=dataclasses.replace(RULE, lr=60.0))
            eager_cpu = [
                dataclasses.replace(
                    c, device=C.DeviceConfig(name="cpu"), trainer=dataclasses.replace(c.trainer, compile="off")
                )
                for c in sick
            ]
            a, b = fleet(sick), fleet(eager_cpu)
            for each in (a, b):
                each.advance(90)
            assert a.alive.tolist() == b.alive.tolist() == [True, False, True], (a.alive.tolist(), b.alive.tolist())
            assert a.diverged_at.tolist() == b.diverged_at.tolist(), (a.diverged_at.tolist(), b.diverged_at.tolist())
            before = a.x[1].clone()
            a.advance(8)
            assert torch.equal(a.x[1], before)
            assert bool(torch.isfinite(a.x).all())
            well = fleet(configs(3, RULE, mode, drop_last=True))
            well.advance(98)
            return all(torch.equal(a.x[i], well.x[i]) for i in (0, 2)), f"at {a.diverged_at.tolist()}"

        for n_runs in (1, 3):

            @check(f"restored from snapshots at 37, {mode}, R={n_runs}: the same bits at 110")
            def _(mode: str = mode, n_runs: int = n_runs) -> Outcome:
                these = configs(n_runs, RULE, mode, precision="float32", drop_last=True)
                a, b = fleet(these), fleet(these)
                a.advance(37)
                b.restore([a.snapshot(i) for i in range(n_runs)])
                for each in (a, b):
                    each.advance(110 - each.evaluations)
                return same(bits(a), bits(b)), ""

    @check("a run that is killed and resumed has the rows of the undisturbed one")
    def _() -> Outcome:
        class KilledError(BaseException):
            pass

        def dying(self: Fleet, n: int, pause: Callable[[], bool] | None = None) -> None:
            if self.evaluations >= 40:
                raise KilledError
            advance(self, n, pause)

        advance = Fleet.advance
        with tempfile.TemporaryDirectory() as root:
            config = configs(1, RULE, "off", budget=80, checkpoint_every=11, log_every=7)[0]
            whole, cut = (dataclasses.replace(config, output_root=root, run_name=name) for name in ("whole", "cut"))
            burgersgd.train(whole, progress=False)
            Fleet.advance = dying
            try:
                with contextlib.suppress(KilledError):
                    burgersgd.train(cut, progress=False)
            finally:
                Fleet.advance = advance
            burgersgd.resume(Path(root, "cut"), progress=False)
            rows = [_rows(Path(root, name)) for name in ("whole", "cut")]
        return rows[0] == rows[1], f"{len(rows[0])} rows"


def _rows(folder: Path) -> list[list[str]]:
    """Return the rows of metrics.csv without the seconds."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    seconds = rows[0].index("seconds")
    return [row[:seconds] + row[seconds + 1 :] for row in rows]


def memory() -> None:
    """Check the plan of memory, halving, buffers on the device, and that a dropped fleet is freed."""
    for mode in ("off", "on") if CUDA else ():

        @check(f"run_bytes against the peak, {mode}")
        def _(mode: str = mode) -> Outcome:
            n, model = 64, C.MlpConfig(width=512)
            prepared = prepare(configs(n, RULE, mode, precision="float32", model=model, drop_last=True))
            guess = run_bytes(prepared)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            one = prepared.fleet()
            one.advance(40)
            prepared.evaluator(prepared.data.validation)(one.x)
            synchronize()
            peak = (torch.cuda.max_memory_allocated() - before) / n
            return peak < 1.25 * guess, f"guessed {guess / 2**20:.2f} MiB a run, peak {peak / 2**20:.2f}"

    @check("a fleet that does not fit is halved once, and what it held is given back")
    def _() -> Outcome:
        seen: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: seen.append(record.getMessage())
        logging.getLogger("burgersgd").addHandler(handler)
        if CUDA:
            gc.collect()
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(HALVED_BYTES / total)
        try:
            n, width = (112, 512) if CUDA else (4, 16)
            these = configs(n, RULE, "off", precision="float32", model=C.MlpConfig(width=width), budget=16)
            results = burgersgd.train_fleet(these, record=False, progress=False)
        finally:
            if CUDA:
                torch.cuda.set_per_process_memory_fraction(1.0)
        halved = sum("out of memory" in message for message in seen)
        completed = [result.state for result in results] == ["completed"] * n
        return completed and halved == CUDA, f"halved {halved} times"

    @check("a module with a buffer trains on the device")
    def _() -> Outcome:
        class Shifted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(64, 10)
                self.register_buffer("shift", torch.ones(64))

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x.flatten(1) + self.get_buffer("shift"))

        config = configs(1, rules()["sgd"], "off", precision="float32", budget=40)[0]
        return burgersgd.train(config, model=Shifted(), record=False, progress=False).state

    @check("a fleet that is dropped is freed without the garbage collector")
    def _() -> Outcome:
        fleet(configs(3, rules()["sgd"], "off")).advance(3)  # what is only done once in a process may well remember it
        gc.collect()
        gc.disable()
        try:
            dropped = fleet(configs(3, rules()["sgd"], "off"))
            dropped.advance(3)
            reference = weakref.ref(dropped)
            del dropped
            still = reference()
            holders = [] if still is None else [str(type(holder)) for holder in gc.get_referrers(still)]
            return still is None, f"{holders}" * bool(holders)
        finally:
            gc.enable()


# ------------------------------------------------------------------------------------------------------------- edges


def _compiled_one() -> list[C.TrainConfig]:
    return configs(1, RULE, "on", precision="float32", drop_last=True)


def _restored_at_62() -> None:
    a, b = fleet(_compiled_one()), fleet(_compiled_one())
    a.advance(62)
    b.restore([a.snapshot(0)])
    for each in (a, b):
        each.advance(70)
    assert torch.equal(a.x, b.x)


def _short_batch_at_63() -> None:
    a, b = (fleet(configs(1, RULE, mode, batch_size=17)) for mode in ("on", "off"))
    for each in (a, b):
        each.advance(140)
    assert apart(a.x, b.x) < 1e-6, apart(a.x, b.x)


def _deterministic(n_runs: int, mode: str, lenet: bool = False) -> Callable[[], None]:
    def run() -> None:
        model, data = (C.LeNetConfig(), images()) if lenet else (None, None)
        these = configs(n_runs, RULE, mode, deterministic=True, drop_last=mode == "on", model=model)
        prepared = prepare(these, dataset=data)
        with prepared.torch_settings():
            one = prepared.fleet()
            one.advance(10 if lenet else 70)
            prepared.evaluator(prepared.data.validation)(one.x)
            synchronize()

    return run


def _moved_back() -> None:
    one = fleet(_compiled_one())
    one.advance(48 + 64)
    one.evaluations = 16 + 64  # what rate_of does
    one.advance(64)
    synchronize()


def _rate_of() -> None:
    model = C.MlpConfig(width=512)
    these = configs(64, RULE, "on", precision="float32", model=model, drop_last=True, budget=100_000)
    one = fleet(these)
    one.advance(70)
    tried = []
    for _ in range(5):  # others may use the GPU at the same time
        synchronize()
        started = time.perf_counter()
        one.advance(192)
        synchronize()
        tried.append((192 * 64 / (time.perf_counter() - started), rate_of(these)))
    assert any(said < 1.5 * really for really, said in tried), f"(really, rate_of), evaluations/s: {tried}"


EDGES: dict[str, Callable[[], None]] = {
    "eager, deterministic, R=1": _deterministic(1, "off"),
    "eager, deterministic, R=3": _deterministic(3, "off"),
    "lenet, eager, deterministic": _deterministic(3, "off", lenet=True),
    "compiled, restored at 62 of 64": _restored_at_62,
    "compiled, first short batch at step 63": _short_batch_at_63,
    "compiled, deterministic": _deterministic(3, "on"),
    "lenet, compiled, deterministic": _deterministic(1, "on", lenet=True),
    "compiled, moved back as rate_of does": _moved_back,
    "rate_of waits for the GPU": _rate_of,
}


def edges() -> None:
    """Check what may lose the CUDA context, each in a process of its own."""
    names = list(EDGES)[:2] if options.tiny else list(EDGES)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    running = {name: subprocess.Popen([*words(), "--edge", name], **pipes) for name in names}
    for name, child in running.items():

        @check(name)
        def _(child: subprocess.Popen[str] = child) -> Outcome:
            text = child.communicate(timeout=150)[0]
            if child.returncode == 0:
                return None
            (options.out / f"edge_{child.pid}.txt").write_text(text[-8000:])
            return False, f"exit {child.returncode}: {(text.strip().splitlines() or [''])[-1][:250]}"


# ---------------------------------------------------------------------------------------------------------- commands


def commands() -> None:
    """Check whole commands."""
    device = f"device={options.device}"

    def cli(root: str, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "burgersgd", *arguments]
        child = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
        return child.returncode, child.stdout + child.stderr

    with tempfile.TemporaryDirectory() as root:

        @check("the default command twice: the same metrics")
        def _() -> Outcome:
            for name in ("a", "b"):
                code, text = cli(root, "train", device, "trainer.budget=600", f"run_name={name}")
                assert code == 0, text[-500:]
            return _rows(Path(root, "outputs/a")) == _rows(Path(root, "outputs/b")), ""

        @check("SIGTERM: saved, exit code 75")
        def _() -> Outcome:
            more = ["trainer.budget=200000", "trainer.compile=off", "trainer.eval_every=500", "trainer.log_every=500"]
            command = [sys.executable, "-m", "burgersgd", "train", device, *more, "run_name=t"]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            child = subprocess.Popen(command, cwd=root, **pipes)
            metrics, until = Path(root, "outputs/t/metrics.csv"), time.monotonic() + 60
            while time.monotonic() < until and not (metrics.exists() and len(_rows(metrics.parent)) > 4):
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            text = child.communicate(timeout=60)[0]
            return (
                child.returncode == 75,
                f"exit code {child.returncode} {text[-300:] if child.returncode != 75 else ''}",
            )

        @check("a sweep of 32 seeds")
        def _() -> Outcome:
            code, text = cli(
                root, "train", "--multirun", device, "trainer.budget=600", "seed=range(32)", "sweep.name=s"
            )
            return code == 0, text.strip().splitlines()[-1][:200]

        @check("two workers on one GPU: both use it")
        def _() -> Outcome:
            more = ["seed=range(8)", "sweep.name=w", "sweep.workers=2", "sweep.max_runs=4"]
            code, text = cli(root, "train", "--multirun", device, "trainer.budget=600", *more)
            records = Path(root, "outputs/multirun/w").glob("*/environment.json")
            devices = {json.loads(path.read_text())["device"] for path in records}
            return code == 0 and len(devices) == 1, f"exit {code}, {devices}, {text.strip().splitlines()[-1][:200]}"

        @check("a diverging run ends with code 3 and says why")
        def _() -> Outcome:
            more = ["optimizer=sgd", "optimizer.lr=1e4", "run_name=d"]
            code, text = cli(root, "train", device, "trainer.budget=600", *more)
            reasons = [line[:160] for line in text.splitlines() if "DIVERGED" in line]
            return code == 3 and bool(reasons), f"exit {code}: {reasons[-1:]}"

        @check("evaluate repeats the numbers")
        def _() -> Outcome:
            code, text = cli(root, "evaluate", "outputs/a")
            return code == 0, text.strip().splitlines()[-1][:120]


def run_pytest() -> None:
    """Run the tests that are marked gpu; warnings do not count (torch 2.11 warns of TF32)."""
    marked = ["tests/test_streams.py", "tests/test_streams_orders.py", "tests/training", "tests/test_resume.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-m", "gpu", *marked]
    child = subprocess.run([*command, *(["-n", "4"] if CUDA else [])], cwd=PROJECT, capture_output=True, text=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pytest.txt").write_text(child.stdout + child.stderr)

    @check("pytest -m gpu")
    def _() -> Outcome:
        said = child.stdout.strip().splitlines() or [child.stderr[-200:]]
        nothing_to_run = not CUDA and child.returncode == 5
        return child.returncode == 0 or nothing_to_run, "; ".join(s for s in said if s.startswith("FAILED")) + said[-1]


GROUPS: dict[str, Callable[[], None]] = {
    "base": base,
    "eager": eager,
    "compiled_a": compiled_a,
    "compiled_b": compiled_b,
    "compiled_c": compiled_c,
    "compiled_d": compiled_d,
    "compiled_e": compiled_e,
    "graphs": graphs,
    "persistent": persistent,
    "augmented": augmented,
    "frozen": frozen,
    "memory": memory,
    "edges": edges,
    "commands": commands,
    "pytest": run_pytest,
}
