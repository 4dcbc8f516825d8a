"""Run folders as an editor, another program or a torn disk leaves them, and what commands may then do.

A command on a folder that was changed either says in one line what is wrong, or gives what it gives on the original.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import math
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from burgersgd.cli import main
from burgersgd.recording.files import digest
from burgersgd.recording.reading import (
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    OVERRIDES,
    STATUS,
    YAML_END,
    has_ended,
    read_status,
)
from burgersgd.recording.run_folder import RunFolder

RUN = [
    *("dataset.train_size=60", "model.depth=1", "model.width=5", "trainer.batch_size=16", "trainer.compile=off"),
    *("device=cpu", "device.threads=1", "optimizer.inner_steps=3", "optimizer.burn_in=1", "optimizer.nu=1e-5"),
    *("trainer.precision=float64", "trainer.eval_every=4", "trainer.log_every=3", "trainer.checkpoint_every=8"),
]
SHORT, OTHER = [*RUN, "trainer.budget=16"], [*RUN, "trainer.budget=24", "model.width=6", "seed=7"]
FILES = (str(CONFIG), STATUS, ENVIRONMENT, METRICS, CHECKPOINT, str(OVERRIDES))
VALUES: dict[str, Any] = {
    "null": None, "text": "bogus", "empty text": "", "list": [1, "a"], "no list": [], "keys": {"a": 1}, "no keys": {},
    "true": True, "billion": 10**9, "million": 10**6, "huge": 10**400, "beyond 64 bits": 2**64, "negative": -1,
    "zero": 0, "half": 0.5, "large": 1e308, "NaN": math.nan, "infinity": math.inf, "long text": "x" * 70_000,
    "two lines": "a\nb", "NaN as text": "nan",
}  # fmt: skip
DROPPED = object()


class Stop(BaseException):
    """Ends a process that has saved once."""


@dataclass(frozen=True)
class Edit:
    """One change of a folder."""

    name: str
    apply: Callable[[Path], object]
    forged: bool = False
    """Whether it carries what belongs together (digests) along, or has none: then other numbers are not noticed."""


# ------------------------------------------------------------------------------------------------------- originals


def quietly(arguments: list[str]) -> tuple[int | str, str, str]:
    """Run a command in this process; return its exit code ("traceback" for an exception) and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: int | str = main(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 2
        except Stop:
            raise
        except BaseException:
            code = "traceback"
            err.write(traceback.format_exc())
    return code, out.getvalue(), err.getvalue()


def stopped_once(arguments: list[str]) -> None:
    """Run a command whose process dies after it has saved once."""
    commit = RunFolder.commit_checkpoint

    def dying(folder: RunFolder) -> None:
        commit(folder)
        raise Stop

    with (
        mock.patch.object(RunFolder, "commit_checkpoint", dying),
        mock.patch.object(RunFolder, "__exit__", _gone),
        contextlib.suppress(Stop),
    ):
        quietly(arguments)


def _gone(folder: RunFolder, *_: object) -> None:
    from burgersgd.recording.claims import release

    release(folder.path)


def originals(root: Path, sweeps: bool = True) -> None:
    """Make, in the working folder: runs that are over, stopped, and another one; a sweep, half and whole."""
    for name, words in (("over", SHORT), ("other", OTHER)):
        assert quietly(["train", *words, "output_root=.", f"run_name={name}"])[0] == 0
    stopped_once(["train", *SHORT, "output_root=.", "run_name=stopped"])
    if not sweeps:
        return
    sweep = ["train", "--multirun", *SHORT, "output_root=.", "sweep.name=s", "sweep.workers=1"]
    assert quietly([*sweep, "seed=1"])[0] == 0
    stopped_once([*sweep, "seed=1,2"])
    shutil.copytree(root / "multirun/s", root / "whole")
    assert quietly([*sweep, "seed=1,2", "hydra.sweep.dir=whole"])[0] == 0


# ------------------------------------------------------------------------------------------------------------ edits


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the place of every entry of nested dicts and lists (of a list: the first one)."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*place, key)
        yield from places(entry, (*place, key))


def with_entry(value: Any, place: tuple[Any, ...], entry: Any) -> Any:
    """Return a copy of nested dicts and lists with another entry at a place."""
    changed = copy.deepcopy(value)
    at = changed
    for key in place[:-1]:
        at = at[key]
    if entry is DROPPED:
        del at[place[-1]]
    else:
        at[place[-1]] = entry
    return changed


def entry_at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def entry_edits(load: Callable[[Path], Any], save: Callable[[Path, Any], object], file: str, folder: Path, other: Path,
                values: dict[str, Any], forged: bool = False) -> Iterator[Edit]:  # fmt: skip
    """Return the edits of every entry of a file: dropped, each of the values, that of another run."""
    content, theirs = load(folder / file), load(other / file)
    for place in places(content):
        named = {"dropped": DROPPED, **values}
        with contextlib.suppress(KeyError, IndexError, TypeError):
            named["other run's"] = entry_at(theirs, place)
        for how, value in named.items():

            def apply(at: Path, place: tuple[Any, ...] = place, value: Any = value) -> None:
                save(at / file, with_entry(load(at / file), place, value))

            yield Edit(f"{file} {'.'.join(map(str, place))}: {how}", apply, forged)


def save_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2))


def save_yaml(file: Path, value: Any) -> None:
    file.write_text(yaml.safe_dump(value, sort_keys=False) + YAML_END)


def load_checkpoint(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def save_forged(file: Path, state: Any) -> None:
    """Save a checkpoint with the digest of what it now holds, as far as there is one."""
    if isinstance(state, dict) and type(state.get("format")) is int and "digest" in state:
        content = {key: value for key, value in state.items() if key not in ("format", "digest")}
        with contextlib.suppress(Exception):
            state = {"format": state["format"], "digest": digest(content), **content}
    torch.save(state, file)


def save_as_0_1_0(file: Path, state: Any) -> None:
    """Save a checkpoint as version 0.1.0 did."""
    unknown = ("digest", "metrics_digest", "config_digest")
    torch.save({k: v for k, v in state.items() if k not in unknown} | {"format": 1}, file)


D = 385
"""Parameters of the runs."""

TENSORS: dict[str, Any] = {
    "one number": torch.tensor(0.5, dtype=torch.float64),
    "complex": torch.ones(D, dtype=torch.complex128),
    "float32": torch.ones(D),
    "integers": torch.ones(D, dtype=torch.int64),
    "NaN tensor": torch.full((D,), math.nan, dtype=torch.float64),
    "too long": torch.ones(10_000, dtype=torch.float64),
    "too flat": torch.ones(1, D, dtype=torch.float64),
    "empty tensor": torch.empty(0, dtype=torch.float64),
    "a view of one number": torch.ones(1, dtype=torch.float64).expand(10**12),
    "sparse": torch.ones(D, dtype=torch.float64).to_sparse(),
    "false": torch.tensor(False),
    "large integer": torch.tensor(2**62),
}
with contextlib.suppress(Exception):  # deprecated, some day gone
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TENSORS["quantized"] = torch.quantize_per_tensor(torch.ones(D), 0.1, 0, torch.qint8)


def edits(folder: Path, other: Path) -> list[Edit]:
    """Return all edits of a run folder; `other` is that of another run."""
    found: list[Edit] = []
    for file in (STATUS, ENVIRONMENT):
        found += entry_edits(lambda f: json.loads(f.read_text()), save_json, file, folder, other, VALUES)
        for how, value in VALUES.items():
            found.append(Edit(f"{file}: {how}", lambda at, f=file, v=value: save_json(at / f, v)))
    found += entry_edits(lambda f: yaml.safe_load(f.read_text()), save_yaml, str(CONFIG), folder, other, VALUES)
    for how, value in VALUES.items():
        found.append(Edit(f"{CONFIG}: {how}", lambda at, v=value: save_yaml(at / CONFIG, v)))
    values = {
        key: VALUES[key] for key in ("null", "text", "list", "keys", "true", "billion", "huge", "negative", "NaN")
    }
    for save in (torch.save, save_forged, save_as_0_1_0):
        way = save.__name__

        def stored(file: Path, state: Any, save: Any = save) -> None:
            save(state, file) if save is torch.save else save(file, state)

        for edit in entry_edits(
            load_checkpoint, stored, CHECKPOINT, folder, other, values | TENSORS, save is not torch.save
        ):
            found.append(Edit(f"{edit.name} ({way})", edit.apply, edit.forged))
    for how, value in (VALUES | TENSORS).items():
        found.append(Edit(f"{CHECKPOINT}: {how}", lambda at, v=value: torch.save(v, at / CHECKPOINT)))
    found += [
        Edit(f"{METRICS}: {how}", lambda at, c=change: _rewrite(at / METRICS, c)) for how, change in TABLES.items()
    ]
    for file in FILES:
        length = (folder / file).stat().st_size
        cuts = (
            range(length) if length < 1500 else sorted({*range(0, length, length // 200), *range(length - 60, length)})
        )
        found += [Edit(f"{file}: cut at {n}", lambda at, f=file, n=n: _cut(at / f, n)) for n in cuts]
        found.append(Edit(f"{file}: missing", lambda at, f=file: (at / f).unlink()))
        found.append(Edit(f"{file}: a folder", lambda at, f=file: ((at / f).unlink(), (at / f).mkdir())))
        found.append(
            Edit(f"{file}: garbage", lambda at, f=file, n=length: (at / f).write_bytes(random.Random(n).randbytes(n)))
        )
        found.append(Edit(f"{file}: zeros", lambda at, f=file, n=length: (at / f).write_bytes(bytes(n))))
        found.append(Edit(f"{file}: another run's", lambda at, f=file: shutil.copy(other / f, at / f)))
        found += [
            Edit(f"{file}: byte {n} flipped", lambda at, f=file, n=n: _flip(at / f, n))
            for n in range(3, length, max(1, length // 40))
        ]
    return found


def _rewrite(file: Path, change: Callable[[str], str | bytes]) -> None:
    text = change(file.read_text())
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def _cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def _flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x15
    file.write_bytes(bytes(content))


def _by_column(change: Callable[[list[list[str]]], list[list[str]]]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows(change([line.split(",") for line in text.splitlines()]))
        return stream.getvalue()

    return changed


TABLES: dict[str, Callable[[str], str | bytes]] = {
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "CR": lambda text: text.replace("\n", "\r"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "UTF-16": lambda text: text.encode("utf-16"),
    "semicolons": lambda text: text.replace(",", ";"),
    "all in quotes": lambda text: (
        "\n".join(",".join(f'"{e}"' for e in line.split(",")) for line in text.splitlines()) + "\n"
    ),
    "an open quote": lambda text: text.replace(",", ',"', 1),
    "no last end": lambda text: text.rstrip("\n"),
    "an empty line": lambda text: text + "\n",
    "a long field": lambda text: text.replace("\n", "\n" + "7" * 200_000, 1),
    "a column more": _by_column(lambda rows: [[*row, "1"] for row in rows]),
    "a column less": _by_column(lambda rows: [row[:-1] for row in rows]),
    "a column in front": _by_column(lambda rows: [["", *rows[0]], *([str(i), *row] for i, row in enumerate(rows[1:]))]),
    "columns exchanged": _by_column(lambda rows: [[row[1], row[0], *row[2:]] for row in rows]),
    "a column twice": _by_column(lambda rows: [[*row, row[3]] for row in rows]),
    "a row less": lambda text: "".join(text.splitlines(keepends=True)[:2] + text.splitlines(keepends=True)[3:]),
    "a row twice": lambda text: text + text.splitlines(keepends=True)[-1],
    "rows exchanged": _by_column(lambda rows: [rows[0], rows[2], rows[1], *rows[3:]]),
    "rounded": _by_column(lambda rows: [rows[0], *([e[:6] for e in row] for row in rows[1:])]),
    "a number changed": lambda text: text.replace("1", "2"),
    "evaluations NaN": _by_column(lambda rows: [rows[0], *(["nan", *row[1:]] for row in rows[1:])]),
    "evaluations huge": _by_column(lambda rows: [rows[0], *(["1e300", *row[1:]] for row in rows[1:])]),
    "evaluations infinite": _by_column(lambda rows: [rows[0], *(["inf", *row[1:]] for row in rows[1:])]),
    "evaluations negative": _by_column(lambda rows: [rows[0], *(["-3", *row[1:]] for row in rows[1:])]),
    "underscores": lambda text: text.replace("0.", "0_0."),
    "NUL": lambda text: text.replace("0", "\0", 1),
    "headless": lambda text: text.partition("\n")[2],
    "header alone": lambda text: text.partition("\n")[0] + "\n",
}

# ---------------------------------------------------------------------------------------------------- what must hold

COMMANDS = ("evaluate", "export", "rerun", "resume")


def broken(command: str, folder: Path, edit: Edit, original: Path, undisturbed: Path) -> str | None:
    """Run a command on an edited folder and return what is wrong with what it did, None for nothing.

    original is the folder before the edit, undisturbed what it becomes where its run goes on to the end.
    """
    words = {
        "evaluate": ["evaluate", str(folder)],
        "export": ["export", str(folder), "--format", "state_dict", "--output", "model.pt"],
        "rerun": ["rerun", str(folder), "--check"],
        "resume": ["train", f"resume={folder}"],
    }[command]
    Path("model.pt").unlink(missing_ok=True)
    before = _run_folders()
    code, out, err = quietly(words)
    complaints = [line for line in err.splitlines() if line and "%|" not in line]
    if code == "traceback" or "Traceback" in err:
        return f"traceback: {complaints[-1] if complaints else ''}"
    errors = [line for line in complaints if line.startswith("burgersgd: error")]
    if errors:
        if len(errors) > 1 or complaints[-1] != errors[0] or code not in (1, 2):
            return f"not one line, exit code {code}: {complaints}"
        new = _run_folders() - before
        return f"refused, and left {sorted(map(str, new))}" if new else None
    if code not in (0, 1, 3):
        return f"exit code {code} without a line"
    if edit.forged:
        return None
    if command == "evaluate":
        return None if code == 0 or "recorded" in out else "exit code 1 without a difference"
    if command == "export":
        return (
            None if _equal(torch.load("model.pt", weights_only=True), _exported(original)) else "exported other numbers"
        )
    if command == "rerun":
        same = _same_run(folder, original)
        return (
            None if same == (code == 0) else f"exit code {code} though the run is {'the same' if same else 'another'}"
        )
    return None if _same_run(folder, undisturbed) else "went on to other numbers"


def _run_folders() -> set[Path]:
    return {path.parent for path in Path().rglob(STATUS)}


def _exported(folder: Path) -> dict[str, Any]:
    from burgersgd.revisit import state_dict

    return state_dict(folder)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return repr(a) == repr(b)


def _same_run(folder: Path, reference: Path) -> bool:
    """Whether parameters, state and metrics are the same, read without this program's own readers."""
    a, b = (torch.load(path / CHECKPOINT, weights_only=True) for path in (folder, reference))
    try:
        metrics = _table(folder)
    except ValueError:  # a line that is cut, which the program leaves out
        return False
    return all(_equal(a[key], b[key]) for key in ("x", "state", "best", "evaluations")) and metrics == _table(reference)


def _table(folder: Path) -> list[list[str]]:
    with open(folder / METRICS, newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream) if row]
    kept = [i for i, name in enumerate(rows[0]) if name != "seconds"]
    return [rows[0], *([repr(float(row[i] or "nan")) if i < len(row) else "" for i in kept] for row in rows[1:])]


# ------------------------------------------------------------------------------------------------------------- sweeps


def sweep_edits(sweep: Path, other: Path) -> list[Edit]:
    """Return edits of a sweep's folder: of its list of jobs, its plan, and the folders of its runs."""
    found: list[Edit] = []
    jobs = (sweep / "jobs.jsonl").read_text()
    lines = [json.loads(line) for line in jobs.splitlines()]
    for place in places(lines):
        for how, value in {"dropped": DROPPED, **VALUES}.items():

            def apply(at: Path, place: tuple[Any, ...] = place, value: Any = value) -> None:
                changed = with_entry(lines, place, value)
                (at / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))

            found.append(Edit(f"jobs.jsonl {'.'.join(map(str, place))}: {how}", apply))
    found += [Edit(f"jobs.jsonl: cut at {n}", lambda at, n=n: _cut(at / "jobs.jsonl", n)) for n in range(len(jobs))]
    plan = {"fleets": [[line["name"] for line in lines], ["nobody"]], "rates": {"abc": {"1": 100.0, "4": 300.0}}}
    for place in [(), *places(plan)]:
        for how, value in VALUES.items():

            def planned(at: Path, place: tuple[Any, ...] = place, value: Any = value) -> None:
                save_json(at / "plan.json", with_entry(plan, place, value) if place else value)

            found.append(Edit(f"plan.json {'.'.join(map(str, place))}: {how}", planned))
    text = json.dumps(plan)
    found += [
        Edit(f"plan.json: cut at {n}", lambda at, n=n: (at / "plan.json").write_text(text[:n]))
        for n in range(len(text))
    ]
    for i, line in enumerate(lines):
        name = line["name"]
        found += [
            Edit(f"{edit.name} (of a sweep)", lambda at, e=edit, name=name: e.apply(at / name), edit.forged)
            for edit in edits(sweep / name, other)[:: 7 + i]
        ]
    return found


def sweep_broken(folder: Path, edit: Edit, whole: Path) -> str | None:
    """Show an edited sweep and repeat its command; return what is wrong with what that did."""
    over = {path.parent.name for path in whole.glob("*/status.json") if has_ended(folder / path.parent.name)}
    code, _, err = quietly(["status", str(folder)])
    if code == "traceback" or "Traceback" in err or len(err.splitlines()) > 1:
        return f"status: {err.splitlines()[-1:]}"
    words = ["train", "--multirun", *SHORT, "output_root=.", "sweep.name=s", "sweep.workers=1", "seed=1,2"]
    code, out, err = quietly(words)
    if code == "traceback" or "Traceback" in err + out or code not in (0, 1, 2):
        return f"exit code {code}: {err.splitlines()[-1:]}"
    if code == 2 and "burgersgd: error" not in err:
        return "exit code 2 without a line"
    for path in whole.glob("*/status.json"):
        job = folder / path.parent.name
        if code == 0 and job.name in over:  # and therefore left as it is: its status is all that counts
            same = {key: value for key, value in read_status(job).items() if key.endswith(("_error", "_loss"))}
            theirs = read_status(path.parent)
            if any(repr(theirs[key]) != repr(value) for key, value in same.items() if key in theirs):
                return f"{job.name}: an edited result is accepted"
        elif code == 0 and not edit.forged and not _same_run(job, path.parent):
            return f"{job.name} has other numbers"
    return None
