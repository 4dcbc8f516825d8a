"""What the groups of scripts/gpu_check.py share: options, how a check is run and printed, the runs that are trained."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import burgersgd.config as C
from burgersgd.build.prepared import prepare
from burgersgd.datasets import Dataset, Part
from burgersgd.training.engines.compiled import Compiled
from burgersgd.training.fleet import Fleet

MARK = "@@ "
"""What a line of a result begins with."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Is the CUDA path right?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="check very little, only to test the script itself")
    parser.add_argument("--seconds", type=float, default=225)
    parser.add_argument("--only", default="", help="groups of checks to run, separated by commas")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "outputs/gpu")))
    for hidden in ("--group", "--edge", "--hash"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser.parse_args()


options = _parse()
CUDA = options.device == "cuda"


def words() -> list[str]:
    """Return the command that runs a part of this script in a process of its own."""
    script = str(Path(__file__).with_name("gpu_check.py"))
    tiny = ["--tiny"] if options.tiny else []
    return [sys.executable, script, "--device", options.device, "--out", str(options.out), *tiny]


Outcome = str | tuple[bool, str] | None
"""What a check returns: a note, or whether it passed and a note."""


def check(name: str) -> Callable[[Callable[[], Outcome]], None]:
    """Return a decorator that runs a check at once and prints how it went."""

    def now(function: Callable[[], Outcome]) -> None:
        started = time.perf_counter()
        try:
            outcome = function()
            passed, note = outcome if isinstance(outcome, tuple) else (True, outcome)
        except Exception as error:
            passed, note = False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            options.out.mkdir(parents=True, exist_ok=True)
            with (options.out / f"trace_{options.group}.txt").open("a") as file:
                file.write(f"\n==== {name}\n{traceback.format_exc()}")
        state, seconds = "PASS" if passed else "FAIL", time.perf_counter() - started
        print(f"{MARK}{state} [{options.group}] {name}: {note or ''} ({seconds:.1f} s)", flush=True)

    return now


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if CUDA:
        torch.cuda.synchronize()


# -------------------------------------------------------------------------------------------------- what is trained


def rules() -> dict[str, C.OptimizerConfig]:
    """Return the optimizers by the name of their check, no parameter at 0 or 1."""
    entropy = C.LocalEntropyConfig
    return {
        "local_entropy": entropy(
            lr=0.13, nu=1e-5, gamma=0.7, inner_steps=5, burn_in=3, outer_step=0.8, weight_decay=1e-3
        ),
        "local_entropy_momentum": entropy(lr=0.1, nu=1e-5, inner_steps=4, momentum=0.5, outer_momentum=0.3),
        "local_entropy_lm": entropy(lr=0.1, nu=1e-5, inner_steps=4, integrator="leimkuhler_matthews"),
        "local_entropy_reset": entropy(
            lr=0.1,
            nu=1e-5,
            inner_steps=4,
            inner_start="reset",
            averaging="ema",
            gamma_scoping=0.01,
            nu_annealing="cosine",
        ),
        "local_entropy_last": entropy(lr=0.1, nu=0.0, inner_steps=4, averaging="last"),
        "paper_sde": C.PaperSDEConfig(),
        "paper_literal": C.PaperLiteralConfig(period=3),
        "sgd": C.SgdConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        "gd": C.GdConfig(),
        "sam": C.SamConfig(lr=0.1, rho=0.03, momentum=0.6, weight_decay=1e-3),
        "asam": C.AsamConfig(lr=0.1, rho=0.3, eta=0.02, momentum=0.6, weight_decay=1e-3),
        "adamw": C.AdamWConfig(),
        "langevin": C.LangevinConfig(temperature=1e-5, weight_decay=1e-3),
    }


RULE = rules()["local_entropy"]


def images(n: int = 200) -> Dataset:
    """Return random images with random labels."""
    generator = torch.Generator().manual_seed(0)

    def part(n: int) -> Part:
        return Part(torch.randn(n, 1, 28, 28, generator=generator), torch.randint(10, (n,), generator=generator))

    return Dataset("random", "classification", part(n), part(64), part(64), 10)


def configs(
    n_runs: int,
    rule: C.OptimizerConfig,
    compile: str = "off",
    device: str | None = None,
    model: C.ModelConfig | None = None,
    precision: str = "float64",
    schedule: C.ScheduleConfig | None = None,
    augment: str = "none",
    **trainer: Any,
) -> list[C.TrainConfig]:
    """Return the configurations of a fleet whose runs differ in seed and learning rate."""
    trainer = {"budget": 2000, "batch_size": 30} | trainer
    return [
        C.TrainConfig(
            model=model or C.MlpConfig(depth=2, width=12, activation="tanh"),
            optimizer=dataclasses.replace(rule, lr=rule.hyper()["lr"] * 0.97**seed),
            schedule=schedule or C.ScheduleConfig(),
            dataset=C.DigitsConfig(augment=augment),
            trainer=C.TrainerConfig(compile=compile, precision=precision, **trainer),
            device=C.DeviceConfig(name=device or options.device),
            seed=seed,
        )
        for seed in range(n_runs)
    ]


def as_in_a_run() -> contextlib.AbstractContextManager[None]:
    """Return the settings of torch with which runs train."""
    return prepare(configs(1, RULE)).torch_settings()


def fleet(of: list[C.TrainConfig], data: Dataset | None = None, most: int | None = None) -> Fleet:
    """Return the fleet at its start; most: steps of a CUDA graph, None: as many as the budget repays."""
    made = prepare(of, dataset=data).fleet()
    if most is not None and isinstance(made.stepper, Compiled):
        made.stepper.most = most
    return made


def bits(of: Fleet) -> list[Tensor]:
    """Return copies of all that a run's future depends on."""
    kept = [field for field in of.state if field is not None]
    return [t.detach().cpu().clone() for t in (*kept, of.last_loss, of.alive)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether all bits are equal, signs of zero and NaN included."""
    return all(torch.equal(s.view(torch.uint8), t.view(torch.uint8)) for s, t in zip(a, b, strict=True))


def apart(a: Tensor, b: Tensor) -> float:
    """Return the relative difference of two tensors."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).norm() / b.norm())


def against_cpu(
    name: str,
    n_runs: int,
    rule: C.OptimizerConfig,
    mode: str,
    data: Dataset | None = None,
    steps: int = 130,
    most: int | None = None,
    **more: Any,
) -> None:
    """Check that float64 on the device gives the numbers of the CPU's eager engine."""
    # 130 steps amplify float64's rounding by less; normal numbers agree to 1e-6 of a small noise.
    bound = 2e-6 if rule.rule().noisy else 1e-9

    @check(f"{name}, {mode}, R={n_runs}: float64 equals the CPU's")
    def _() -> Outcome:
        cpu = fleet(configs(n_runs, rule, "off", "cpu", **more), data)
        device = fleet(configs(n_runs, rule, mode, **more), data, most)
        for each in (cpu, device):
            each.advance(40 if options.tiny else steps)
        fields = [(a, b) for a, b in zip(device.state, cpu.state, strict=True) if b is not None and float(b.norm()) > 0]
        worst = max(apart(a, b) for a, b in fields)
        alive = torch.equal(device.alive.cpu(), cpu.alive)
        return worst < bound and alive, f"relative difference {worst:.1e} (bound {bound:.0e})"
