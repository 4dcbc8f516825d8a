"""Is the CUDA path right? Groups of checks in processes of their own: a lost CUDA context costs one group.

    python scripts/gpu_check.py                        # on a machine with a GPU, four minutes at most
    python scripts/gpu_check.py --device cpu --tiny    # shows without a GPU that the script itself is right

One line per check as it ends and a summary last; check.json and the traces of failed checks go to --out. A check that
fails does not stop its group. The exit code is 1 where a check failed.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from typing import IO, cast

import gpu_groups
from gpu_common import MARK, as_in_a_run, options, words
from gpu_groups import GROUPS


def main() -> int:
    """Run the groups side by side, print their lines as they come; return the number of failed checks, 1 at most."""
    if options.group:
        with as_in_a_run():
            GROUPS[options.group]()
        return 0
    if options.edge:
        with as_in_a_run():
            gpu_groups.EDGES[options.edge]()
        return 0
    if options.hash:
        with as_in_a_run():
            gpu_groups.print_hash()
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "2"}
    waiting = options.only.split(",") if options.only else list(GROUPS)
    at_once = len(waiting) if options.device == "cuda" else os.cpu_count() or 1  # the CPU itself does the work there
    select, running = selectors.DefaultSelector(), {}
    lines: list[str] = []
    noise: dict[str, list[str]] = {group: [] for group in waiting}

    def say(line: str) -> None:
        lines.append(line)
        print(f"{time.monotonic() - started:5.0f} s {line}", flush=True)

    while (waiting or running) and time.monotonic() - started < options.seconds:
        while waiting and len(running) < at_once:
            group = waiting.pop(0)
            command = [*words(), "--group", group]
            child = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            assert child.stdout is not None
            running[group] = child
            select.register(child.stdout, selectors.EVENT_READ, group)
        for key, _ in select.select(timeout=1):
            stream, group = cast("IO[str]", key.fileobj), key.data
            line = stream.readline()
            if line.startswith(MARK):
                say(line.removeprefix(MARK).rstrip())
            elif line:
                noise[group].append(line.rstrip())
            else:
                select.unregister(stream)
                code = running.pop(group).wait()
                if code:
                    say(f"FAIL [{group}] the group ended with exit code {code}: {' '.join(noise[group][-3:])[:300]}")
    for group in [*running, *waiting]:
        if group in running:
            running[group].kill()
        say(f"FAIL [{group}] not over after {options.seconds:.0f} s")
    failed = [line for line in lines if line.startswith("FAIL")]
    record = {"seconds": time.monotonic() - started, "lines": lines}
    (options.out / "check.json").write_text(json.dumps(record, indent=1))
    said = "\n\n".join("\n".join([f"== {group}", *said[-40:]]) for group, said in noise.items())
    (options.out / "check_noise.txt").write_text(said)
    passed = sum(line.startswith("PASS") for line in lines)
    print(f"\n{passed} passed, {len(failed)} failed, {record['seconds']:.0f} s", *failed, sep="\n")
    return int(bool(failed) or not passed)


if __name__ == "__main__":
    sys.exit(main())
