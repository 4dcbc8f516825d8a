"""The record of the benchmarks over time: `make bench ARGS=--json` adds to it, `python scripts/bench_history.py` draws.

docs/benchmarks/history.jsonl has a line per measurement: date, commit, machine, and per section (workload and threads)
how many times as fast as P1 each rival was. Only ratios are kept: rivals take turns, so that ratios hold on a busy
machine better than times do. Lines of one processor are drawn together.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from burgersgd.recording.environment import code_version, environment_snapshot

HISTORY = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "history.jsonl"
MACHINE = ("cpu", "usable_cores", "torch", "platform")
OURS = "local_entropy"


def append(ratios: Mapping[str, Mapping[str, float]], history: Path = HISTORY, **more: Any) -> dict[str, Any]:
    """Add a line to the record and return it: section -> rival -> times as fast as P1; more is kept beside them."""
    snapshot = environment_snapshot()
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": code_version(),
        "machine": {name: snapshot[name] for name in MACHINE},
        **more,
        "ratios": {section: {k: round(v, 3) for k, v in rivals.items()} for section, rivals in ratios.items()},
    }
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    return line


def read(history: Path = HISTORY) -> list[dict[str, Any]]:
    """Return the lines of the record, the oldest first. Raises ValueError naming a line that is none."""
    lines = []
    for number, text in enumerate(history.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            _ = datetime.fromisoformat(line["date"]), line["code"], line["machine"]["cpu"], line["ratios"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{history}, line {number}: is no measurement ({error})") from error
        lines.append(line)
    return sorted(lines, key=lambda line: line["date"])


def series(lines: list[dict[str, Any]], cpu: str, only: str = OURS) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """Return section -> rival -> (date, ratio) of the lines of one processor, of rivals whose name holds `only`."""
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for line in lines:
        for section, rivals in line["ratios"].items() if line["machine"]["cpu"] == cpu else ():
            for rival, ratio in rivals.items():
                if only in rival:
                    found.setdefault(section, {}).setdefault(rival, []).append((line["date"], ratio))
    return found


def draw(lines: list[dict[str, Any]], cpu: str, out: Path, only: str = OURS) -> None:
    """Write a figure: a panel per section, times as fast as P1 over the measurements."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = series(lines, cpu, only)
    if not found:
        raise ValueError(f"no measurement of {only} on {cpu}")
    figure, axes = plt.subplots(len(found), 1, figsize=(8, 3 * len(found)), squeeze=False, sharex=True)
    dates = sorted({date for rivals in found.values() for points in rivals.values() for date, _ in points})
    for axis, (section, rivals) in zip(axes[:, 0], found.items(), strict=True):
        for rival, points in rivals.items():
            axis.plot([dates.index(date) for date, _ in points], [ratio for _, ratio in points], "o-", label=rival)
        axis.set_title(section, fontsize=9)
        axis.set_ylabel("times as fast as P1")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    axes[-1, 0].set_xticks(range(len(dates)), [date[:16] for date in dates], rotation=45, fontsize=7)
    figure.suptitle(cpu, fontsize=9)
    figure.tight_layout()
    figure.savefig(out)
    plt.close(figure)


def main() -> int:
    """Draw the record of the processor that was measured last, or of the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--cpu", help="name of a processor; default: that of the last record")
    parser.add_argument("--only", default=OURS, help="draw only rivals whose name contains this text")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.png"))
    options = parser.parse_args()
    try:
        lines = read(options.history)
        cpu = options.cpu or (lines[-1]["machine"]["cpu"] if lines else "any processor")
        draw(lines, cpu, options.out, options.only)
    except (OSError, ValueError) as error:
        print(f"bench_history: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
