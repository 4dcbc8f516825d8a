"""Names of the folders of a sweep's jobs: a readable label, followed by the hash that identifies the job.

`sgd,lr=0.3,seed=3-050de9ae7725` is the job whose configuration has the hash 050de9ae7725. The label before it depends
on what else a sweep varies, so that two sweeps may name one job differently: jobs are looked up and locked by hash.
Version 0.1.0 named a folder by the hash alone.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

LONGEST = 120
"""Largest number of ASCII characters in a name: file systems allow 255 bytes, and a path has other parts."""
JOBS = "jobs.jsonl"
"""File in a sweep's folder that lists its jobs, in the order in which they were requested."""
DIGITS = 12
"""Number of characters of a hash in a folder name."""


def job_name(words: Sequence[str], digits: str) -> str:
    """Return the name of a job's folder: the overrides that distinguish it from other jobs, in order, and its hash.

    Keys are written without their group where that is not ambiguous, and the choice of a group without the name of the
    group; `seed` without a group is the seed of the run.
    """
    pairs = [word.lstrip("+~").partition("=")[::2] for word in words]
    short = Counter(key.rpartition(".")[2] for key, _ in pairs)
    parts = []
    for key, value in pairs:
        last = key.rpartition(".")[2]
        is_choice = "." not in key and key != "seed"
        parts.append(value if is_choice else f"{last if short[last] == 1 and last != 'seed' else key}={value}")
    if not any("=" in part for part in parts):  # hash_of needs an equals sign in a name with a label
        parts = [f"{key}={value}" for key, value in pairs]
    label = re.sub(r"[\"'\[\]{}() ]", "", ",".join(parts))
    label = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", label)[: LONGEST - DIGITS - 1].strip(",._-")
    return f"{label}-{digits}" if "=" in label else digits


def hash_of(name: str) -> str | None:
    """Return the hash in the name of a job's folder; None where it is not the name of one."""
    match = re.fullmatch(rf"(?:.*=.*-)?([0-9a-f]{{{DIGITS}}})", name, re.DOTALL)
    return None if match is None else match[1]


def same_job(name: str) -> str:
    """Return the part that all names of one job share: its hash, or the name itself where it has none."""
    return hash_of(name) or name


def job_folders(root: Path) -> dict[str, Path]:
    """Return the folders of jobs in a sweep's folder, by hash, from a single listing of that folder.

    If a job has several folders, the first one by name that is not empty is returned.
    """
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(root)):
            digits = hash_of(name)
            if digits is None:
                continue
            if digits not in found or (not _holds_anything(found[digits]) and _holds_anything(root / name)):
                found[digits] = root / name
    return found


def job_folder(folder: Path) -> Path:
    """Return the folder of a job: this one, unless only a folder with another name of the same job is not empty."""
    other = None if _holds_anything(folder) else other_folder(folder)
    return other or folder


def other_folder(folder: Path) -> Path | None:
    """Return the non-empty folder of the same job with another name in the same parent; None where there is none."""
    digits = hash_of(folder.name)
    if digits is None:
        return None
    with contextlib.suppress(OSError):
        named_so = [
            name for name in os.listdir(folder.parent) if name.endswith(digits)
        ]  # a cheap test first: a sweep has thousands of other folders
        for name in sorted(named_so):
            if name != folder.name and hash_of(name) == digits:
                other = folder.with_name(name)
                if _holds_anything(other):
                    return other
    return None


def _holds_anything(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
