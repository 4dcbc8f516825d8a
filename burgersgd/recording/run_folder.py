"""The folder of one run: the only place that writes below outputs/, and the functions that read such a folder.

No file stays open between calls, so that hundreds of runs can be written by one process. metrics.csv is the truth and
the TensorBoard events a view of it. Every failure to write is a RunFolderError of one line and leaves the files that
were there before readable.
"""

import contextlib
import csv
import errno
import functools
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from burgersgd.recording.claims import LOCK, claim, release, remove_lock_file, still_holds, whose
from burgersgd.recording.environment import environment_snapshot
from burgersgd.recording.files import (
    YAML_LOADER,
    RunFolderError,
    append,
    csv_number,
    one_line,
    plain_state,
    read_json,
    read_text,
    replacing,
    restored,
    sync_folder,
    to_json,
    to_yaml,
)
from burgersgd.recording.tensorboard import TensorBoardEvents, flat_hparams

COLUMNS = (
    "evaluations",
    "epoch",
    "seconds",
    "train_loss",
    "learning_rate",
    "gradient_norm",
    "x_y_distance",
    "temperature",
    "validation_loss",
    "validation_error",
)
HEADER = ",".join(COLUMNS) + "\n"
STATES = ("running", "completed", "diverged", "pruned", "failed", "interrupted")
ENDED = ("completed", "diverged", "pruned")
"""States with a result; a run in another one can go on from its checkpoint."""
FINAL_STATES = STATES[1:]

CONFIG = Path(".hydra", "config.yaml")
OVERRIDES = Path(".hydra", "overrides.yaml")
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
STATUS = "status.json"
CHECKPOINT = "checkpoint.pt"
STAGED = "checkpoint.next.pt"
LOG = "log.txt"


FORMAT = 1
"""Of checkpoint.pt; changes when what it holds changes its meaning."""


Row = dict[str, float | int | None]
"""Metrics of a run at one moment, by column."""


class RunInUseError(RunFolderError):
    """Another process works on the run."""


class FolderTakenError(RunFolderError):
    """There is something already where a new run folder was to be made."""


class RunFolder:
    """Writes everything that one run leaves behind.

    As a context manager it records how the run ended: an exception as failed, a KeyboardInterrupt as interrupted, and
    leaving without a final status as failed too, because such a run has no result. A final status written before
    stays.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write to the existing folder `path`, which is claimed; runs come from `create` and `reopen`."""
        self.path = path.absolute()
        self.state = "running"
        self.log = logging.Logger("burgersgd.run", logging.INFO)  # not in logging's registry: one per folder
        self.log.addHandler(_AppendingHandler(self.path / LOG))
        self.config = config
        """The resolved configuration in plain values."""
        self.regression = False
        """Whether the errors among the metrics are RMSE, which TensorBoard then shows by that name."""
        self._events: TensorBoardEvents | None = None  # None: the folder is only looked at

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, Any],
        overrides: Sequence[str] = (),
        device: str = "cpu",
        metrics: str = "",
    ) -> Self:
        """Return the new run folder `path`, holding the configuration and the environment, with status running.

        `config` is the resolved configuration in plain Python values, `device` the one whose name is recorded,
        `metrics` the text of metrics.csv so far, of a run that continues another one.
        Raises RunFolderError if the folder is in use or cannot be made; then nothing is left behind.
        """
        path = Path(path).absolute()
        files = {
            CONFIG: to_yaml(dict(config), path),
            OVERRIDES: to_yaml(list(overrides), path),
            ENVIRONMENT: to_json(environment_snapshot(device)),
            METRICS: metrics or HEADER,
        }
        with _claimed(path):
            for name, text in files.items():
                (path / name).write_text(text, encoding="utf-8")
            folder = cls(path, config)
            folder._events = folder._new_events()
            folder.status("running")
        return folder

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Return the existing run folder `path`, claimed: nothing in it changes until it is rewound.

        Raises RunInUseError while another process works on the run, RunFolderError where it is no run folder.
        """
        path = Path(path).absolute()
        config = read_config(path)
        if not _claim(path):
            raise RunInUseError(f"{path}: {whose(path)} is training this run")
        return cls(path, config)

    def metrics_text(self, length: int | None = None) -> str:
        """Return the first so many bytes of metrics.csv, None for all. Raises RunFolderError where there are fewer."""
        text = read_text(self.path / METRICS)
        if length is not None and len(text) < length:  # the file is plain ASCII
            there = f"has {len(text)} bytes, the checkpoint knows {length}"
            raise RunFolderError(f"{self.path / METRICS} {there}: it was changed since")
        return text[:length]

    def rows(self) -> list[Row]:
        """Return the rows of metrics.csv by column, None for what is empty."""
        columns = read_metrics(self.path)
        rows: list[Row] = []
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            known = {name: None if math.isnan(value) else value for name, value in row.items()}
            rows.append(known | {"evaluations": int(row["evaluations"])})
        return rows

    def rewind(self, metrics_bytes: int | None) -> list[Row]:
        """Forget all rows of metrics behind the first so many bytes (None: all rows) and return those before.

        The TensorBoard events are written anew from the rows: the curve is continuous, without a row twice.
        Raises RunFolderError where metrics.csv is shorter than that, or missing.
        """
        kept = self.metrics_text(len(HEADER) if metrics_bytes is None else metrics_bytes)
        try:
            os.truncate(self.path / METRICS, len(kept))
        except OSError as error:
            raise RunFolderError(f"cannot rewind {self.path / METRICS}: {one_line(error)}") from error
        rows = self.rows()
        before = list(self.path.glob("events.out.tfevents.*"))
        self._events = self._new_events()
        self._events.regression = self.regression
        for row in rows:
            self._events.metrics(int(row["evaluations"] or 0), row)
        if before:
            self._events.flush()
        if read_status(self.path)["state"] != "running":
            self.status("running")
        for events in before:
            events.unlink(missing_ok=True)
        return rows

    def _new_events(self) -> TensorBoardEvents:
        """Return events in a file that sorts behind all that are there."""
        stamps = [int(path.name.split(".")[3]) for path in self.path.glob("events.out.tfevents.*")]
        events = self.path / f"events.out.tfevents.{max([int(time.time()), *(s + 1 for s in stamps)]):010d}.burgersgd"
        return TensorBoardEvents(functools.partial(append, events), flat_hparams(self.config))

    def metrics(self, row: Mapping[str, float | None]) -> None:
        """Append one row to metrics.csv and to TensorBoard; `row` is keyed by COLUMNS, missing entries stay empty.

        Floats are written so that they read back exactly. The line is on the way to the disk when this returns.
        """
        unknown = row.keys() - set(COLUMNS)
        if unknown:
            raise ValueError(f"metrics {sorted(unknown)} are unknown; allowed are {', '.join(COLUMNS)}")
        if row.get("evaluations") is None:
            raise ValueError("metrics need the number of gradient evaluations under 'evaluations'")
        line = ",".join(csv_number(row.get(column)) for column in COLUMNS) + "\n"
        append(self.path / METRICS, line.encode())
        assert self._events is not None, "a reopened folder must be rewound first"
        self._events.metrics(int(row["evaluations"] or 0), row)

    def status(self, state: str, **fields: Any) -> None:
        """Replace status.json by `state` and `fields` (numbers, text, lists, dicts; non-finite floats are kept).

        A final state also ends the run's TensorBoard session with those of the final metrics that `fields` holds
        (test_error, test_loss, validation_error, validation_loss); an interrupted one is left open to go on.
        """
        if state not in STATES:
            raise ValueError(f"state is {state!r}; allowed are {', '.join(STATES)}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = to_json({"state": state, "updated": now, **fields})
        self._check_claim()
        if state in ENDED:  # nobody comes back to what is over: the view is whole before
            self._finish_events(state, fields)
        with replacing(self.path / STATUS) as stream:
            stream.write(text.encode())
        self.state = state
        if state == "failed":
            self._finish_events(state, fields)

    def _check_claim(self) -> None:
        """Raise RunFolderError where another process may have begun to train the run, too."""
        if not still_holds(self.path):
            lost = f"{self.path.parent / LOCK} was removed or replaced"
            raise RunFolderError(f"{self.path}: {lost}, another process may be training this run; it is left alone")

    def _finish_events(self, state: str, fields: Mapping[str, Any]) -> None:
        if self._events is not None:
            self._events.finish(state == "completed", fields)

    def metrics_bytes(self) -> int:
        """Return the length of metrics.csv, which is on the disk when this returns."""
        try:
            with open(self.path / METRICS, "ab") as stream:
                os.fsync(stream.fileno())
                return stream.tell()
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path / METRICS}: {one_line(error)}") from error

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace checkpoint.pt by `state`: tensors, numbers, text and None in lists and dicts, nothing else.

        Loading it can therefore run no code. Tensors are saved without the rest of a storage they are a view of, and
        no two of them share memory when read back.
        """
        self.stage_checkpoint(state)
        self.commit_checkpoint()

    def stage_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Put `state` beside checkpoint.pt, complete and on the disk: for a fleet, whose runs change over together."""
        import torch

        path = self.path / STAGED
        plain = plain_state({"format": FORMAT, **state}, "checkpoint")
        with replacing(path) as stream:
            try:
                torch.save(plain, stream)
            except RuntimeError as error:  # torch's archive writer hides a full disk behind one of its own
                raise RunFolderError(f"cannot write {path}: {one_line(error.__context__ or error)}") from error

    def commit_checkpoint(self) -> None:
        """Make the staged checkpoint the checkpoint."""
        self._check_claim()
        try:
            os.replace(self.path / STAGED, self.path / CHECKPOINT)
            sync_folder(self.path)
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path / CHECKPOINT}: {one_line(error)}") from error

    def close(self) -> None:
        """Write out what TensorBoard has pending and give the claim back; may be called twice."""
        try:
            if self._events is not None:
                self._events.flush()
        finally:
            release(self.path)

    def abandon(self, reason: str) -> None:
        """Record the run as failed, as far as the disk allows, and write no more; earlier files stay as they are."""
        self._events = None  # what is pending cannot be written
        with contextlib.suppress(RunFolderError):
            self.log.error("%s", reason)
            self.status("failed", reason=reason)
        release(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is None:
            release(self.path)
            return
        if exception is None:
            if self.state not in FINAL_STATES:
                self.status("failed", reason="the run ended without a result")
            self.close()
            return
        try:
            if self.state not in FINAL_STATES:
                interrupted = isinstance(exception, KeyboardInterrupt)
                if interrupted:
                    self.log.info("%s", one_line(exception))
                else:
                    self.log.error("the run ended by an exception", exc_info=exception)
                self.status("interrupted" if interrupted else "failed", reason=one_line(exception))
            self.close()
        except RunFolderError as error:  # the disk may be what failed in the first place: keep the first cause
            exception.add_note(f"and its end could not be recorded: {error}")
        finally:
            release(self.path)


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Return the columns of metrics.csv in the run folder `path`; empty entries are nan.

    A last line without its end (the writer was killed, or is writing) is left out.
    """
    text = read_text(Path(path) / METRICS)
    rows = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    header = next(rows, [])
    columns: dict[str, list[float]] = {name: [] for name in header}
    try:
        for row in rows:
            for name, entry in zip(header, row, strict=True):
                columns[name].append(float(entry) if entry else math.nan)
    except ValueError as error:
        raise RunFolderError(f"cannot read {Path(path) / METRICS}: {one_line(error)}") from error
    return columns


def read_status(path: Path) -> dict[str, Any]:
    """Return status.json of the run folder `path`, with "inf", "-inf" and "nan" turned back into floats."""
    return restored(read_json(Path(path) / STATUS))


def read_environment(path: Path) -> dict[str, Any]:
    """Return environment.json of the run folder `path`."""
    return read_json(Path(path) / ENVIRONMENT)


def read_config(path: Path) -> dict[str, Any]:
    """Return the resolved configuration of the run folder `path`."""
    file = Path(path) / CONFIG
    try:
        return yaml.load(read_text(file), Loader=YAML_LOADER)
    except yaml.YAMLError as error:
        raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error


def read_checkpoint(path: Path, map_location: str = "cpu", name: str = CHECKPOINT) -> dict[str, Any]:
    """Return checkpoint.pt of the run folder `path`; a file that holds more than data is refused, never executed.

    Raises RunFolderError for that, and for a checkpoint of another format.
    """
    import torch

    file = Path(path) / name
    try:
        state = torch.load(file, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises OSError, RuntimeError, EOFError, UnpicklingError ... for a broken file
        raise RunFolderError(f"cannot read {file}: {one_line(error)}") from error
    found = state.pop("format", 0) if isinstance(state, dict) else None
    if found != FORMAT:
        raise RunFolderError(f"{file} has format {found}, this version of burgersgd reads format {FORMAT}")
    return state


def complete_checkpoints(paths: Sequence[Path]) -> None:
    """Let the runs of a fleet stand at the same evaluation where the process died while they changed over.

    A fleet stages the checkpoints of all its runs before it commits the first one. So where one is committed, the
    others are there, staged; where none is, what is staged counts for nothing.
    """

    def moment(path: Path, name: str) -> tuple[str, int] | None:
        with contextlib.suppress(RunFolderError, KeyError):  # half a file: the run goes on from where it is, by itself
            state = read_checkpoint(path, name=name)
            return state["fleet"]["id"], state["evaluations"]
        return None

    staged = [path for path in paths if (path / STAGED).exists()]
    committed = {moment(path, CHECKPOINT) for path in paths if staged and (path / CHECKPOINT).exists()}
    for path in staged:
        if moment(path, STAGED) in committed - {None}:
            os.replace(path / STAGED, path / CHECKPOINT)


def begun(path: Path) -> bool:
    """Whether `path` is a run folder; what a process left that died while it made one is removed.

    Raises RunInUseError where another process is making it, RunFolderError where it cannot be removed.
    """
    if (path / STATUS).exists():
        return True
    if not path.is_dir():
        return False
    if not _claim(path.absolute()):
        raise RunInUseError(f"{path}: {whose(path)} is training this run")
    try:
        if (path / STATUS).exists():  # another process has made it since
            return True
        shutil.rmtree(path)
    except OSError as error:
        raise RunFolderError(f"cannot remove {path}: {one_line(error)}") from error
    finally:
        release(path)
    return False


class _AppendingHandler(logging.Handler):
    """Appends each record to a file that is open only meanwhile."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        append(self._path, (self.format(record) + "\n").encode(errors="backslashreplace"))


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Make `path` a folder that no other process can claim; on any failure inside, undo all of it."""
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    ours = claimed = False
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise FileExistsError(errno.EEXIST, "the folder exists and is not empty")
        ours = _claim(path)
        if not ours:
            raise RunInUseError(f"{path}: {whose(path)} is training this run")
        path.joinpath(".hydra").mkdir()  # of two processes that saw an empty folder, one makes this
        claimed = True
        yield
    except BaseException as error:
        for child in path.iterdir() if claimed else ():
            with contextlib.suppress(OSError):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        if path in missing:
            with contextlib.suppress(OSError, ValueError):  # while it is ours: nobody else can be about to use it
                path.rmdir()
        if ours:
            release(path)
        if path.parent in missing:
            with contextlib.suppress(OSError, ValueError):
                remove_lock_file(path.parent)
        for folder in missing:
            with contextlib.suppress(OSError, ValueError):  # not made yet, in use by somebody else, cannot exist
                folder.rmdir()
        if isinstance(error, OSError | ValueError) and not isinstance(error, RunFolderError):
            kind = FolderTakenError if isinstance(error, FileExistsError) else RunFolderError
            raise kind(f"cannot create run folder {path}: {one_line(error)}") from error
        raise


def _claim(path: Path) -> bool:
    try:
        return claim(path)
    except OSError as error:
        raise RunFolderError(f"cannot lock {path.parent / LOCK}: {one_line(error)}") from error
