"""The folder of one run: the only place that writes below outputs/, and the functions that read such a folder.

No file stays open between calls, so that hundreds of runs can be written by one process. metrics.csv is the truth and
the TensorBoard events a view of it. Every failure to write is a RunFolderError of one line and leaves the files that
were there before readable.
"""

import contextlib
import errno
import functools
import hashlib
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

from burgersgd.recording.claims import LOCK, claim, release, remove_lock_file, still_holds, whose
from burgersgd.recording.environment import environment_text
from burgersgd.recording.files import (
    RunFolderError,
    append,
    digest,
    make_lasting,
    one_line,
    plain_state,
    read_text,
    replacing,
    to_json,
    to_yaml,
)
from burgersgd.recording.naming import other_folder
from burgersgd.recording.reading import (
    CHECKPOINT,
    CONFIG,
    ENDED,
    ENVIRONMENT,
    FORMAT,
    METRICS,
    OVERRIDES,
    STATES,
    STATUS,
    YAML_END,
    is_whole,
    metrics_digest,
    metrics_of,
    read_checkpoint,
    read_config,
    read_environment,
    read_metrics,
    read_status,
    result_digest,
)
from burgersgd.recording.rows import Row, Table, csv_lines, scalar_records, tagged
from burgersgd.recording.sinks import TENSORBOARD
from burgersgd.recording.tensorboard import TensorBoardEvents, hparams_of
from burgersgd.training.metrics import NAMES

COLUMNS = NAMES
HEADER = ",".join(COLUMNS) + "\n"
_log = logging.getLogger("burgersgd")

FINAL_STATES = STATES[1:]
STAGED = "checkpoint.next.pt"
LOG = "log.txt"
EVENTS = "events.out.tfevents.*"


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
        self.config_hash: str | None = None
        """What status.json says of which run this is."""
        self.budget: int | None = None
        """The gradient evaluations that it has to spend; in status.json from the start."""
        self._columns: Sequence[str] = COLUMNS
        self.more: Sequence[str] = ()
        """Columns of a new metrics.csv behind COLUMNS: what else the rule says of its state."""
        self._metrics_sum, self._metrics_length = hashlib.sha256(), 0
        self._lines: list[bytes] = []  # of metrics.csv, that wait to be written
        self._finished = False  # whether the TensorBoard view has its end
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
        config_hash: str | None = None,
        budget: int | None = None,
    ) -> Self:
        """Return the new run folder `path`, holding the configuration and the environment, with status running.

        `config` is the resolved configuration in plain Python values, `device` the one whose name is recorded,
        `metrics` the text of metrics.csv so far, of a run that continues another one, `config_hash` what status.json
        says of which run it is, and `budget` of what it has to spend. A folder that a crash left half made is made
        anew. What is written survives a power failure from the next `make_lasting` on.
        Raises RunFolderError if the folder is in use or cannot be made; then nothing is left behind.
        """
        path = Path(path).absolute()
        begun(path)
        files = {
            CONFIG: to_yaml(dict(config), path) + YAML_END,
            OVERRIDES: to_yaml(list(overrides), path),
            ENVIRONMENT: environment_text(device),
            METRICS: metrics or HEADER,
        }
        with _claimed(path):
            for name, text in files.items():
                (path / name).write_text(text, encoding="utf-8")
            folder = cls(path, config)
            folder.config_hash, folder.budget = config_hash, budget
            folder._kept(files[METRICS])
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
        folder = cls(path, config)
        try:
            folder._mend()
            status = read_status(path)
            folder.config_hash, folder.budget = status.get("config_hash"), status.get("budget")
        except BaseException:
            release(path)
            raise
        return folder

    def _mend(self) -> None:
        """Write anew what a crash kept from the disk: status.json, or all of a folder with nothing to go on with."""
        if not is_half_made(self.path):
            try:
                read_status(self.path)
            except RunFolderError as error:
                if not (self.path / CHECKPOINT).exists():
                    raise
                self.log.warning("%s: the run goes on from its checkpoint", error)
                self.status("interrupted", reason="its status was lost")
            return
        if not is_whole(self.path):
            raise RunFolderError(f"{self.path}: a crash left it half made; repeat the command that trains it")
        with contextlib.suppress(OSError):
            (self.path / METRICS).write_text(HEADER, encoding="utf-8")
            (self.path / ENVIRONMENT).write_text(environment_text(), encoding="utf-8")
        self.status("running")
        self.log.warning("a crash left this folder half made: the run begins again")

    def metrics_text(self, length: int | None = None, known: str | None = None) -> str:
        """Return the first so many bytes of metrics.csv, None for all; `known` is their digest, None for any.

        Raises RunFolderError where there are fewer, or others.
        """
        file = self.path / METRICS
        text = read_text(file)
        if length is not None and len(text) < length:  # the file is plain ASCII
            raise RunFolderError(f"{file} has {len(text)} bytes, the checkpoint knows {length}: it was changed since")
        text = text[:length]
        if known is not None and metrics_digest(text.encode()) != known:
            raise RunFolderError(f"{file} was changed since the checkpoint was written")
        return text

    def rows(self, metrics_bytes: int | None = None, known: str | None = None) -> list[Row]:
        """Return the rows of metrics.csv by column, None for what is empty. Arguments and errors as in metrics_text."""
        columns = metrics_of(self.metrics_text(metrics_bytes, known), self.path / METRICS)
        rows: list[Row] = []
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            entries = {name: None if math.isnan(value) else value for name, value in row.items()}
            rows.append(entries | {"evaluations": int(row["evaluations"])})
        return rows

    def rewind(self, metrics_bytes: int | None, known: str | None = None) -> list[Row]:
        """Forget all rows of metrics behind the first so many bytes (None: all rows) and return those before.

        The TensorBoard events are written anew from the rows: the curve is continuous, without a row twice. `known` is
        what a checkpoint knows of the rows before it (metrics_position).
        Raises RunFolderError where metrics.csv is shorter than that, missing, or was changed.
        """
        file = self.path / METRICS
        header = self.metrics_text().partition("\n")[0] + "\n"
        kept = self.metrics_text(len(header) if metrics_bytes is None else metrics_bytes, known)
        self._columns = list(metrics_of(header, file))
        if ",".join(self._columns) + "\n" != header or not kept.endswith("\n"):
            raise RunFolderError(f"{file} was changed by another program: its lines are not as they were written")
        rows = self.rows(len(kept))
        self._lines.clear()
        try:
            os.truncate(file, len(kept))
            _end_last_line(self.path / LOG)
        except OSError as error:
            raise RunFolderError(f"cannot rewind {file}: {one_line(error)}") from error
        self._kept(kept)
        before = list(self.path.glob(EVENTS))
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

    def _kept(self, text: str) -> None:
        """Take text as all that metrics.csv holds."""
        self._metrics_sum, self._metrics_length = hashlib.sha256(text.encode()), len(text.encode())

    def _new_events(self) -> TensorBoardEvents:
        """Return events in a file that sorts behind all that are there."""
        stamps = [int(s) for path in self.path.glob(EVENTS) if (s := path.name.split(".")[3]).isdecimal()]
        events = self.path / f"events.out.tfevents.{max([int(time.time()), *(s + 1 for s in stamps)]):010d}.burgersgd"
        wanted = TENSORBOARD in self.config.get("trainer", {}).get("sinks", [TENSORBOARD])
        write = functools.partial(append, events) if wanted else _discard
        return TensorBoardEvents(write, hparams_of(self.config))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of metrics.csv. What else the rule says of its state joins those of a file that has no row yet."""
        return (*COLUMNS, *self.more) if self._header_is_short else tuple(self._columns)

    @property
    def _header_is_short(self) -> bool:
        return bool(self.more) and self._metrics_length == len(HEADER)

    def metrics(self, row: Mapping[str, float | None]) -> None:
        """Append one row to metrics.csv and to TensorBoard; missing entries stay empty.

        `row` is keyed by COLUMNS and `more`. A file that is continued keeps the columns that it has.
        Floats are written so that they read back exactly. The line is on the way to the disk when this returns.
        """
        unknown = row.keys() - {*COLUMNS, *self.more}
        if unknown:
            raise ValueError(f"metrics {sorted(unknown)} are unknown; allowed are {', '.join((*COLUMNS, *self.more))}")
        if row.get("evaluations") is None:
            raise ValueError("metrics need the number of gradient evaluations under 'evaluations'")
        add_rows([self], row)
        self.write_rows()

    def add_row(self, line: bytes, evaluations: int, event: bytes) -> None:
        """Take a row as a line of metrics.csv and a record of the event file (see add_rows), to be written later."""
        assert self._events is not None, "a reopened folder must be rewound first"
        self._lines.append(line)
        self._events.add(evaluations, event)

    def write_rows(self) -> None:
        """Write the rows that wait: with one call of the system, so that a reader sees whole lines."""
        if self._lines:
            self._check_claim()
            if self._header_is_short:
                self._columns = self.columns
                header = ",".join(self._columns) + "\n"
                with replacing(self.path / METRICS, lasting=False) as stream:
                    stream.write(header.encode())
                self._kept(header)
            lines = b"".join(self._lines)
            self._lines.clear()  # a row that cannot be written is lost, whole
            append(self.path / METRICS, lines)
            self._metrics_sum.update(lines)
            self._metrics_length += len(lines)
        if self._events is not None:
            self._events.flush_if_due()

    def status(self, state: str, **fields: Any) -> None:
        """Replace status.json by `state` and `fields` (numbers, text, lists, dicts; non-finite floats are kept).

        A final state also ends the run's TensorBoard session, see finish; an interrupted one is left open to go on.
        What is over is on the disk before status.json says so.
        """
        self._write_status(state, fields, synced=False)

    def end(self, state: str, fields: Mapping[str, Any]) -> None:
        """Write the status of a run that is over, all of which is on the disk already: see make_lasting."""
        self._write_status(state, fields, synced=True)

    def _write_status(self, state: str, fields: Mapping[str, Any], synced: bool) -> None:
        if state not in STATES:
            raise ValueError(f"state is {state!r}; allowed are {', '.join(STATES)}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        named = {"config_hash": self.config_hash, "budget": self.budget}
        known = {name: value for name, value in named.items() if value is not None}
        content = {"state": state, "updated": now, **known, **fields}
        if state in ENDED:
            content["result_digest"] = result_digest(content)
        text = to_json(content)
        self._check_claim()
        if state in ENDED:  # nobody comes back to what is over: the view is whole before
            self.finish(state, fields)
            if not synced:
                make_lasting([self.path])
        with replacing(self.path / STATUS, lasting=False) as stream:
            stream.write(text.encode())
        self.state = state
        if state == "failed":
            self.finish(state, fields)

    def _check_claim(self) -> None:
        """Raise RunFolderError where another process may have begun to train the run, too."""
        if not still_holds(self.path):
            lost = f"{self.path.parent / LOCK} was removed or replaced"
            raise RunFolderError(f"{self.path}: {lost}, another process may be training this run; it is left alone")

    def finish(self, state: str, fields: Mapping[str, Any]) -> None:
        """End the TensorBoard session, once, with the final metrics that `fields` holds.

        These are test_error and test_loss.
        """
        if self._events is not None and not self._finished:
            self._finished = True
            self._events.finish(state == "completed", fields)

    def log_once(self, lines: Sequence[tuple[int, str]]) -> None:
        """Log the last lines of a run, (level, text) each, without those that a process before this one has logged."""
        log = self.path / LOG
        known = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        for level, text in lines:
            if f"{logging.getLevelName(level)} {text}\n" not in known:
                self.log.log(level, "%s", text)

    def metrics_position(self) -> dict[str, Any]:
        """Return what a checkpoint must know of metrics.csv: its length, and a digest of what it holds.

        The rows that wait are written first. Raises RunFolderError where another program has written to it.
        """
        self.write_rows()
        file = self.path / METRICS
        try:
            length = file.stat().st_size
        except OSError as error:
            raise RunFolderError(f"cannot write {file}: {one_line(error)}") from error
        if length != self._metrics_length:
            raise RunFolderError(f"{file} has {length} bytes, {self._metrics_length} were written: it was changed")
        return {"metrics_bytes": length, "metrics_digest": self._metrics_sum.hexdigest()[:16]}

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace checkpoint.pt by `state`: tensors, numbers, text and None in lists and dicts, nothing else.

        Loading it can therefore run no code. Tensors are saved without the rest of a storage they are a view of, and
        no two of them share memory when read back.
        """
        self.stage_checkpoint(state)
        make_lasting([self.path])
        self.commit_checkpoint()
        make_lasting([self.path])

    def stage_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Put `state` beside checkpoint.pt, complete: for a fleet, whose runs change over together.

        It may become the checkpoint once it is on the disk (`make_lasting`).
        """
        import torch

        path = self.path / STAGED
        plain = plain_state(dict(state), "checkpoint")
        plain = {"format": FORMAT, "digest": digest(plain), **plain}
        with replacing(path, lasting=False) as stream:
            try:
                torch.save(plain, stream)
            except RuntimeError as error:  # torch's archive writer hides a full disk behind one of its own
                raise RunFolderError(f"cannot write {path}: {one_line(error.__context__ or error)}") from error

    def commit_checkpoint(self) -> None:
        """Make the staged checkpoint the checkpoint."""
        self._check_claim()
        try:
            os.replace(self.path / STAGED, self.path / CHECKPOINT)
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path / CHECKPOINT}: {one_line(error)}") from error

    def close(self) -> None:
        """Write out the rows that wait and give the claim back; may be called twice."""
        try:
            if self._events is not None:
                self.write_rows()
                self._events.flush()
        finally:
            release(self.path)

    def abandon(self, reason: str) -> None:
        """Record the run as failed, as far as the disk allows, and write no more; earlier files stay as they are."""
        self._events = None  # what is pending cannot be written
        self._lines.clear()
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


def add_rows(folders: Sequence[RunFolder | None], table: Table) -> None:
    """Record the metrics of the runs of a fleet at one moment; what is None is not recorded.

    They are formatted together and wait until `RunFolder.write_rows`. Each list in the table has an entry for every
    folder.
    """
    evaluations, n_runs, now = table["evaluations"], len(folders), time.time()
    assert isinstance(evaluations, int | float)
    kinds: dict[tuple[tuple[str, ...], bool], list[tuple[int, RunFolder]]] = {}
    for i, folder in enumerate(folders):
        if folder is not None:
            kinds.setdefault((folder.columns, folder.regression), []).append((i, folder))
    for (names, regression), members in kinds.items():
        lines = csv_lines(names, table, n_runs)
        events = scalar_records(now, int(evaluations), tagged(table, n_runs, regression), n_runs)
        for i, folder in members:
            folder.add_row(lines[i], int(evaluations), events[i])


def _discard(data: bytes) -> None:
    """Write nothing."""


def complete_checkpoints(paths: Sequence[Path]) -> None:
    """Let the runs of a fleet stand at the same evaluation where the process died while they changed over.

    A fleet stages the checkpoints of all its runs before it commits the first one. So where one is committed, the
    others are there, staged; where none is, what is staged counts for nothing. Nor does it where the run has begun
    again by itself since: then metrics.csv lacks the rows that it knows.
    """

    def moment(path: Path, name: str) -> tuple[str, int] | None:
        with contextlib.suppress(RunFolderError, KeyError):  # half a file: the run goes on from where it is, by itself
            state = read_checkpoint(path, name=name)
            return state["fleet"]["id"], state["evaluations"]
        return None

    def has_its_rows(path: Path) -> bool:
        state = read_checkpoint(path, name=STAGED)
        length, known = state["metrics_bytes"], state.get("metrics_digest")
        with contextlib.suppress(OSError):
            rows = (path / METRICS).read_bytes()[:length]
            return len(rows) == length and known in (None, metrics_digest(rows))
        return False

    staged = [path for path in paths if (path / STAGED).exists()]
    committed = {moment(path, CHECKPOINT) for path in paths if staged and (path / CHECKPOINT).exists()}
    for path in staged:
        if moment(path, STAGED) in committed - {None} and has_its_rows(path):
            os.replace(path / STAGED, path / CHECKPOINT)


def begun(path: Path) -> bool:
    """Whether `path` is a run folder with something in it to go on with, or to leave alone.

    What a crash left half made is removed. Raises RunInUseError where another process is making it, RunFolderError
    where it cannot be removed.
    """
    if not path.is_dir() or not any(path.iterdir()):
        return False
    if not is_half_made(path):
        return True
    if not _claim(path.absolute()):
        raise RunInUseError(f"{path}: {whose(path)} is training this run")
    try:
        if not is_half_made(path):  # the other process was faster
            return True
        shutil.rmtree(path)
        _log.warning("%s: a crash left it half made, it is begun again", path)
    except OSError as error:
        raise RunFolderError(f"cannot remove {path}: {one_line(error)}") from error
    finally:
        release(path)
    return False


def is_half_made(path: Path) -> bool:
    """Whether a crash has left the run folder `path` before it held anything of worth.

    It holds no checkpoint, does not say that it is over, lacks some of what every run folder holds, and there is
    nothing in it but files of ours.
    """
    try:
        if (path / CHECKPOINT).exists() or not all(map(_is_ours, path.iterdir())):
            return False
    except OSError:
        return False
    try:
        if read_status(path)["state"] in ENDED:
            return False
        read_config(path)
        read_environment(path)
        return "evaluations" not in read_metrics(path)
    except RunFolderError:
        return True


def _is_ours(file: Path) -> bool:
    names = {CONFIG.parts[0], ENVIRONMENT, METRICS, STATUS, STAGED, LOG}
    return file.name in names or file.match(EVENTS) or (file.name.startswith(".") and file.suffix == ".tmp")


def _end_last_line(log: Path) -> None:
    """Remove what a process wrote of a line before it died."""
    if log.exists():
        os.truncate(log, log.read_bytes().rfind(b"\n") + 1)


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
        _make(path)
        if any(path.iterdir()):
            raise FileExistsError(errno.EEXIST, "the folder exists and is not empty")
        ours = _claim(path)
        if not ours:
            raise RunInUseError(f"{path}: {whose(path)} is training this run")
        if (other := other_folder(path)) is not None:
            raise FileExistsError(errno.EEXIST, f"the same job is in {other.name}")
        _make(path)  # the one that held it may have removed it
        path.joinpath(".hydra").mkdir()  # of two processes that saw an empty folder, one makes this
        claimed = True
        yield
    except BaseException as error:
        for child in path.iterdir() if claimed else ():
            with contextlib.suppress(OSError):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        if ours:
            if path in missing:
                with contextlib.suppress(OSError, ValueError):  # while it is ours: nobody else is about to use it
                    path.rmdir()
            release(path)
        if path.parent in missing and not isinstance(error, RunInUseError):
            with contextlib.suppress(OSError, ValueError):
                remove_lock_file(path.parent)
        for folder in missing if not isinstance(error, RunInUseError) else ():
            with contextlib.suppress(OSError, ValueError):  # not made yet, in use by somebody else, cannot exist
                folder.rmdir()
        if isinstance(error, OSError | ValueError) and not isinstance(error, RunFolderError):
            kind = FolderTakenError if isinstance(error, FileExistsError) else RunFolderError
            raise kind(f"cannot create run folder {path}: {one_line(error)}") from error
        raise


def _make(path: Path) -> None:
    """Make a folder and those above it, also while another process removes those that it had made."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def _claim(path: Path) -> bool:
    try:
        return claim(path)
    except OSError as error:
        raise RunFolderError(f"cannot lock {path.parent / LOCK}: {one_line(error)}") from error
