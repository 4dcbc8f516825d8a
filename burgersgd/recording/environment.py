"""The environment of a run, needed to repeat it: versions, machine, device and the commit of the checkout."""

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from burgersgd.recording.files import to_json

PACKAGES = ("burgersgd", "numpy", "torchvision")
GIT_TIMEOUT_SECONDS = 5.0


@functools.cache
def _machine() -> dict[str, Any]:
    """Return the entries that cannot change while the process runs; cached for fleets of hundreds of runs."""
    import torch  # imported here, so that reading run folders does not wait for it

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{package: _version(package) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_capability": cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "git": git_state(Path(__file__).resolve().parents[2]),
    }


def environment_snapshot(device: str = "cpu") -> dict[str, Any]:
    """Return versions, machine, torch threads, git state and the name of `device`, all as plain JSON values.

    `cuda` is the CUDA version with which torch was built (None without CUDA); `git` is None outside a checkout.
    """
    import torch

    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else _cpu_model() if kind == "cpu" else kind
    return {**_machine(), "threads": torch.get_num_threads(), "device": device, "device_name": name}


def cpu_capability() -> str:
    """Return which vector instructions torch chose for this processor (AVX2, AVX512, ...): sums differ between them."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def machine_of(device: str) -> list[Any]:
    """Return the facts that the speed of a device depends on: device, processor, numbers of cores and platform."""
    snapshot = environment_snapshot(device)
    return [snapshot[name] for name in ("device_name", "cpu", "cores", "usable_cores", "platform")]


def environment_text(device: str = "cpu") -> str:
    """Return the text of environment.json: the current snapshot, made once for all runs of a fleet."""
    import torch

    return _text(device, torch.get_num_threads())


@functools.lru_cache(maxsize=16)
def _text(device: str, threads: int) -> str:
    return to_json({**environment_snapshot(device), "threads": threads})


@functools.cache
def code_version() -> str:
    """Return version and commit of this code, as recorded in checkpoints."""
    git = _machine()["git"]
    commit = "" if git is None or git["commit"] is None else f" {git['commit'][:12]}"
    return f"burgersgd {_machine()['burgersgd']}{commit}{' with changes' if git and git['dirty'] else ''}"


def git_state(checkout: Path) -> dict[str, Any] | None:
    """Return {"commit", "dirty"} of the git checkout whose root is `checkout`; None if it is not one.

    Untracked files, too, make a checkout dirty: a module that nobody committed is not in the commit. A checkout that
    git cannot read (git not installed, slow disk, other owner) gives None for both values; a repository without a
    commit gives commit None.
    """
    if not (checkout / ".git").exists():  # an installed package inside some other repository is not its checkout
        return None
    # With the GIT_DIR of the caller (set inside git hooks), git would report on another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(checkout), "status", "--porcelain=v2", "--branch"]
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_TIMEOUT_SECONDS, env=variables, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    lines = finished.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    return {
        "commit": None if commit == "(initial)" else commit,
        "dirty": any(not line.startswith("#") for line in lines),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
