"""Names of the folders of a sweep's jobs: what people read, and behind it the hash that tells which job it is.

`sgd,lr=0.3,seed=3-050de9ae7725` is the job whose configuration has the hash 050de9ae7725. The words before it depend
on what else a sweep varies, so that two sweeps may call one job differently: jobs are looked up and locked by hash.
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
"""Characters of a name, all of them ASCII: file systems take 255 bytes, and paths have other parts."""
JOBS = "jobs.jsonl"
"""List of a sweep's jobs in its folder, in the order in which they were asked for."""
DIGITS = 12
"""Number of characters of a hash in a folder name."""


def job_name(words: Sequence[str], digits: str) -> str:
    """Return the name of a job's folder: of the overrides that tell it from other jobs, in their order, and its hash.

    Keys go without their group where that is not ambiguous, and a group's choice without the name of the group; `seed`
    is that of the run.
    """
    pairs = [word.lstrip("+~").partition("=")[::2] for word in words]
    short = Counter(key.rpartition(".")[2] for key, _ in pairs)
    parts = []
    for key, value in pairs:
        last = key.rpartition(".")[2]
        is_choice = "." not in key and key != "seed"
        parts.append(value if is_choice else f"{last if short[last] == 1 and last != 'seed' else key}={value}")
    if not any("=" in part for part in parts):  # a name with a hash has one: see hash_of
        parts = [f"{key}={value}" for key, value in pairs]
    label = re.sub(r"[\"'\[\]{}() ]", "", ",".join(parts))
    label = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", label)[: LONGEST - DIGITS - 1].strip(",._-")
    return f"{label}-{digits}" if "=" in label else digits


def hash_of(name: str) -> str | None:
    """Return the hash in the name of a job's folder; None where it is no such name."""
    match = re.fullmatch(rf"(?:.*=.*-)?([0-9a-f]{{{DIGITS}}})", name, re.DOTALL)
    return None if match is None else match[1]


def same_job(name: str) -> str:
    """Return what names of one job have in common: its hash, or the name itself where it is another folder's."""
    return hash_of(name) or name


def job_folders(root: Path) -> dict[str, Path]:
    """Return the folders of jobs below a sweep's folder, by hash: one look at the disk for all of them.

    Of several folders of one job it is the first one by name that holds anything.
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
    """Return where a job is that was to be in this folder: there, or under another name of the same job."""
    other = None if _holds_anything(folder) else other_folder(folder)
    return other or folder


def other_folder(folder: Path) -> Path | None:
    """Return the folder beside this one that holds the same job under another name, None where there is none."""
    digits = hash_of(folder.name)
    if digits is None:
        return None
    with contextlib.suppress(OSError):
        named_so = [
            name for name in os.listdir(folder.parent) if name.endswith(digits)
        ]  # a sweep has thousands of others
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
