"""Start runs twice by explicit schedules of their file operations and locks, and look whether each is trained once.

Part of `make soak`. In the first schedules one process stops before its k-th operation until the others are done, for
every k up to the first checkpoint; in the others the processes take turns of drawn lengths. One Markdown row per kind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what must hold is the tests' own

from tests.double_starts import KINDS, double_start
from tests.scheduling import drawn, paused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--schedules", type=int, default=200, help="smallest number of schedules, spread over all kinds"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quota = -(-options.schedules // len(KINDS))
    print("| started | schedules | operations in each | ends besides completed | trained twice, lost or torn |")
    print("|---|---:|---:|---|---:|")
    total = broken = 0
    for kind in KINDS:
        ends: Counter[str] = Counter()
        operations, faults = [], 0
        for i in range(quota):
            choose = paused(0, i + 1) if i < quota * 2 // 3 else drawn(options.seed + i)
            with tempfile.TemporaryDirectory() as root:
                try:
                    states, counts = double_start(kind, Path(root).resolve(), choose)
                except AssertionError as error:
                    faults += 1
                    print(f"schedule {i}, seed {options.seed}: {error}", file=sys.stderr)
                    continue
            ends.update(states)
            operations.append(sum(counts))
        total, broken = total + quota, broken + faults
        others = ", ".join(f"{n} {state}" for state, n in sorted(ends.items()) if state != "completed")
        span = f"{min(operations)} to {max(operations)}" if operations else ""
        print(f"| {kind} | {quota} | {span} | {others} | {faults} |", flush=True)
    print(f"\n{total} scheduled double starts, {broken} broken; seed {options.seed}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
