"""Writes the folder of one run below outputs/, and re-exports the functions that read it.

No file stays open between calls, so that one process can write hundreds of runs. metrics.csv is authoritative; the
TensorBoard events are derived from it. Every failure to write raises a RunFolderError of one line and leaves the
existing files readable.
"""

import contextlib
import functools
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from burgersgd.recording.checkpoints import CommonEntries, commit_checkpoint, complete_checkpoints, stage_checkpoint
from burgersgd.recording.claims import LOCK, release, still_holds, whose
from burgersgd.recording.environment import environment_text
from burgersgd.recording.files import (
    RunFolderError,
    append,
    commit,
    make_lasting,
    one_line,
    replacing,
    stage,
    to_json,
    to_yaml,
    write_new,
)
from burgersgd.recording.metrics_file import COLUMNS, HEADER, MetricsFile
from burgersgd.recording.new_folders import (
    EVENTS,
    LOG,
    STAGED,
    FolderTakenError,
    RunInUseError,
    claim_run,
    claimed_folder,
    has_contents,
    is_incomplete,
)
from burgersgd.recording.reading import (
    CHECKPOINT,
    CONFIG,
    ENDED,
    ENVIRONMENT,
    METRICS,
    OVERRIDES,
    STATES,
    STATUS,
    YAML_END,
    has_last_line,
    read_checkpoint,
    read_config,
    read_environment,
    read_metrics,
    read_status,
    result_digest,
)
from burgersgd.recording.rows import Row, Table, csv_lines, scalar_records, tagged
from burgersgd.recording.run_log import end_last_line, run_log
from burgersgd.recording.sinks import TENSORBOARD
from burgersgd.recording.tensorboard import TensorBoardEvents, hparams_of

__all__ = ["CHECKPOINT", "COLUMNS", "CONFIG", "ENDED", "METRICS", "STAGED", "STATES", "STATUS", "RunFolder"]
__all__ += ["FolderTakenError", "RunFolderError", "RunInUseError", "add_rows", "complete_checkpoints", "has_contents"]
__all__ += ["is_incomplete", "read_checkpoint", "read_config", "read_environment", "read_metrics", "read_status"]


class RunFolder:
    """Writes all files of one run.

    As a context manager it records how the run ended: an exception as failed, a KeyboardInterrupt as interrupted, and
    leaving without a final status as failed, too, because such a run has no result. A final status that was written
    before is kept.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Write to the existing, claimed folder `path`; use `create` or `reopen` to get an object."""
        self.path = path.absolute()
        self.state = "running"
        self.log = run_log(self.path / LOG)
        self.config = config
        """The resolved configuration in plain values."""
        self.config_hash: str | None = None
        """Hash of the configuration, written to status.json; it identifies the run."""
        self.budget: int | None = None
        """Number of gradient evaluations to spend, written to status.json from the start."""
        self.table = MetricsFile(self.path)
        self._finished = False  # whether the TensorBoard session has been ended
        self._is_new = False
        """Whether `create` made the folder and nothing was added to it since."""
        self.regression = False
        """Whether the errors among the metrics are RMSE; TensorBoard then shows them by that name."""
        self._events: TensorBoardEvents | None = None  # None: the folder is only read

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
        """Create the run folder `path` with the configuration, the environment and the status running; return it.

        `config` is the resolved configuration in plain Python values, `device` the device whose name is recorded,
        `metrics` the previous text of metrics.csv for a run that continues another one. `config_hash` and `budget`
        (gradient evaluations) are recorded in status.json. A folder that a crash left incomplete is replaced. The files
        survive a power failure after the next call of `make_lasting`.
        Raises RunFolderError if the folder is in use or cannot be made; then it leaves no files behind.
        """
        path = Path(path).absolute()
        has_contents(path)
        folder = cls(path, config)
        folder.config_hash, folder.budget = config_hash, budget
        files = {
            CONFIG: (to_yaml(dict(config), path) + YAML_END).encode(),
            OVERRIDES: to_yaml(list(overrides), path).encode(),
            ENVIRONMENT: environment_text(device).encode(),
            METRICS: (metrics or HEADER).encode(),
            STATUS: folder._status_text("running", {}),
        }
        with claimed_folder(path):
            for name, content in files.items():
                write_new(f"{path}{os.sep}{name}", content)
            folder.table.kept(metrics or HEADER)
            folder._events = folder._new_events([])
            folder._is_new = not metrics
        return folder

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Claim the existing run folder `path` and return it; its metrics do not change until `rewind` is called.

        Raises RunInUseError while another process works on the run, and RunFolderError where `path` is no run folder.
        """
        path = Path(path).absolute()
        config = read_config(path)
        if not claim_run(path):
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
        """Rewrite files that a crash destroyed: status.json, or all files but config.yaml of an incomplete folder."""
        if not is_incomplete(self.path):
            try:
                read_status(self.path)
            except RunFolderError as error:
                if not (self.path / CHECKPOINT).exists():
                    raise
                self.log.warning("%s: resuming from the checkpoint", error)
                self.status("interrupted", reason="status.json was missing or damaged")
            return
        if not has_last_line(self.path):
            raise RunFolderError(f"{self.path}: a crash left the folder incomplete; repeat the command that trains it")
        with contextlib.suppress(OSError):
            (self.path / METRICS).write_text(HEADER, encoding="utf-8")
            (self.path / ENVIRONMENT).write_text(environment_text(), encoding="utf-8")
        self.status("running")
        self.log.warning("a crash left this folder incomplete: starting the run again")

    def rewind(self, metrics_bytes: int | None, known: str | None = None) -> list[Row]:
        """Remove all rows of metrics after the first `metrics_bytes` bytes (None: all rows); return the remaining ones.

        The TensorBoard events are rewritten from these rows, so that the curve is continuous and no row occurs twice.
        `known` is the digest of these rows that a checkpoint stores (metrics_position).
        A folder that was just made has no rows and is not read.
        Raises RunFolderError where metrics.csv is shorter than that, missing, or was changed.
        """
        if self._is_new and metrics_bytes is None and self._events is not None:
            self._events.regression = self.regression
            return []
        rows = self.table.rewind(metrics_bytes, known)
        try:
            end_last_line(self.path / LOG)
        except OSError as error:
            raise RunFolderError(f"cannot rewind {self.path / LOG}: {one_line(error)}") from error
        before = list(self.path.glob(EVENTS))
        self._events = self._new_events(before)
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

    def _new_events(self, before: Sequence[Path]) -> TensorBoardEvents:
        """Return events for a new file, whose name sorts after those of the files `before`."""
        stamps = [int(s) for path in before if (s := path.name.split(".")[3]).isdecimal()]
        events = self.path / f"events.out.tfevents.{max([int(time.time()), *(s + 1 for s in stamps)]):010d}.burgersgd"
        wanted = TENSORBOARD in self.config.get("trainer", {}).get("sinks", [TENSORBOARD])
        write = functools.partial(append, events) if wanted else lambda data: None
        return TensorBoardEvents(write, hparams_of(self.config))

    def metrics(self, row: Mapping[str, float | None]) -> None:
        """Append one row to metrics.csv and to the TensorBoard events; missing entries are empty.

        The keys of `row` are among COLUMNS and the file's `more`. A file that is continued keeps its columns.
        Floats are written so that reading returns exactly the same numbers. When this returns, the line is with the
        operating system. Raises ValueError for unknown keys or without `evaluations`.
        """
        unknown = row.keys() - {*COLUMNS, *self.table.more}
        if unknown:
            raise ValueError(
                f"unknown metrics {sorted(unknown)}; allowed are {', '.join((*COLUMNS, *self.table.more))}"
            )
        if row.get("evaluations") is None:
            raise ValueError("a row of metrics must have the key 'evaluations', the number of gradient evaluations")
        add_rows([self], row)
        self.write_rows()

    def add_row(self, line: bytes, evaluations: int, event: bytes) -> None:
        """Add a row as a line of metrics.csv and a record of the event file (see add_rows), to be written later."""
        assert self._events is not None, "a reopened folder must be rewound first"
        self._is_new = False
        self.table.add(line)
        self._events.add(evaluations, event)

    def write_rows(self) -> None:
        """Write the added rows with one system call, so that a reader sees complete lines."""
        if self.table.waits:
            self._check_claim()
            self.table.write()
        if self._events is not None:
            self._events.flush_if_due()

    def status(self, state: str, **fields: Any) -> None:
        """Replace status.json by `state` and `fields` (numbers, text, lists, dicts; non-finite floats are kept).

        A final state also ends the run's TensorBoard session (see finish); that of an interrupted run is left open.
        The files of a run that has ended are on the disk before status.json says that it has.
        """
        if state in ENDED:
            self.stage_end(state, fields)
            make_lasting([self.path])
            self.commit_end(state)
            return
        text = self._status_text(state, fields)
        self._check_claim()
        with replacing(self.path / STATUS, lasting=False) as stream:
            stream.write(text)
        self.state = state
        if state == "failed":
            self.finish(state, fields)

    def stage_end(self, state: str, fields: Mapping[str, Any]) -> None:
        """Write the files of a run that has ended, status.json as a staged file, which `commit_end` makes valid.

        The staged file may be committed once all files are on the disk (`make_lasting`).
        """
        text = self._status_text(state, fields)
        self._check_claim()
        self.finish(state, fields)  # a run that has ended is not opened again, so its events must be complete
        stage(self.path / STATUS, text)

    def commit_end(self, state: str) -> None:
        """Replace status.json by the staged file."""
        self._check_claim()
        commit(self.path / STATUS)
        self.state = state

    def _status_text(self, state: str, fields: Mapping[str, Any]) -> bytes:
        if state not in STATES:
            raise ValueError(f"state is {state!r}; allowed are {', '.join(STATES)}")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        named = {"config_hash": self.config_hash, "budget": self.budget}
        known = {name: value for name, value in named.items() if value is not None}
        content = {"state": state, "updated": now, **known, **fields}
        if state in ENDED:
            content["result_digest"] = result_digest(content)
        return to_json(content).encode()

    def _check_claim(self) -> None:
        """Raise RunFolderError where another process may also have started to train the run."""
        if not still_holds(self.path):
            lost = f"{self.path.parent / LOCK} was removed or replaced"
            raise RunFolderError(f"{self.path}: {lost}, so another process may train this run; this process stops")

    def finish(self, state: str, fields: Mapping[str, Any]) -> None:
        """End the TensorBoard session with the final metrics in `fields`, test_error and test_loss; acts only once."""
        if self._events is not None and not self._finished:
            self._finished = True
            self._events.finish(state == "completed", fields)

    def metrics_position(self) -> dict[str, Any]:
        """Return the entries of a checkpoint about metrics.csv: its length, and a digest of its content.

        Added rows are written first. Raises RunFolderError where another program has written to the file.
        """
        self.write_rows()
        return self.table.position()

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace checkpoint.pt by `state`: tensors, numbers, text and None in lists and dicts, nothing else.

        Loading the checkpoint can therefore execute no code. Of a tensor that is a view only its own elements are
        saved, and no two tensors share memory when they are read back.
        """
        self.stage_checkpoint(state)
        make_lasting([self.path])
        self.commit_checkpoint()
        make_lasting([self.path])

    def stage_checkpoint(self, state: Mapping[str, Any], common: CommonEntries | None = None) -> None:
        """Write the complete checkpoint, of `state` and the entries common to all runs, next to checkpoint.pt.

        A fleet stages all its checkpoints before it commits the first. A staged file may be committed once it is on the
        disk (`make_lasting`).
        """
        self._is_new = False
        stage_checkpoint(self.path, state, common)

    def commit_checkpoint(self) -> None:
        """Replace checkpoint.pt by the staged checkpoint."""
        self._check_claim()
        commit_checkpoint(self.path)

    def close(self) -> None:
        """Write the added rows and release the claim; may be called twice."""
        try:
            if self._events is not None:
                self.write_rows()
                self._events.flush()
        finally:
            release(self.path)

    def abandon(self, reason: str) -> None:
        """Record the run as failed, if the disk allows, and write no more; other files are left unchanged."""
        self._events = None  # pending events cannot be written
        self.table.forget_waiting()
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
            if self.state == "running":
                self.status("failed", reason="the run ended without a result")
            self.close()
            return
        try:
            if self.state == "running":
                interrupted = isinstance(exception, KeyboardInterrupt)
                if interrupted:
                    self.log.info("%s", one_line(exception))
                else:
                    self.log.error("the run ended with an exception", exc_info=exception)
                self.status("interrupted" if interrupted else "failed", reason=one_line(exception))
            self.close()
        except RunFolderError as error:  # the disk may be the cause of the exception: keep the first error
            exception.add_note(f"and its end could not be recorded: {error}")
        finally:
            release(self.path)


def add_rows(folders: Sequence[RunFolder | None], table: Table, now: float | None = None) -> None:
    """Record the metrics of the runs of a fleet at one moment; runs whose folder is None are skipped.

    The rows are formatted together and written by `RunFolder.write_rows`. Each list in the table has an entry for every
    folder. now: the wall time that TensorBoard shows; None for the time of the call.
    """
    evaluations, n_runs, now = table["evaluations"], len(folders), time.time() if now is None else now
    assert isinstance(evaluations, int | float)
    kinds: dict[tuple[tuple[str, ...], bool], list[tuple[int, RunFolder]]] = {}
    for i, folder in enumerate(folders):
        if folder is not None:
            kinds.setdefault((folder.table.columns, folder.regression), []).append((i, folder))
    for (names, regression), members in kinds.items():
        lines = csv_lines(names, table, n_runs)
        events = scalar_records(now, int(evaluations), tagged(table, n_runs, regression), n_runs)
        for i, folder in members:
            folder.add_row(lines[i], int(evaluations), events[i])
