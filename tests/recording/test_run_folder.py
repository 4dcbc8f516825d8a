"""Run folders: what is written is read back exactly, no file is ever incomplete, and no two runs share a folder."""

import json
import logging
import math
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burgersgd import run_record
from burgersgd.api import train_fleet
from burgersgd.recording import files, run_folder
from burgersgd.recording.claims import LOCK
from burgersgd.recording.run_folder import (
    COLUMNS,
    STATES,
    RunFolder,
    RunFolderError,
    RunInUseError,
    read_checkpoint,
    read_config,
    read_metrics,
    read_status,
)
from burgersgd.recording.schema import Plan, Status, checked
from tests.conftest import small_config

CONFIG = {
    "seed": 0,
    "device": None,
    "optimizer": {"name": "local_entropy", "lr": 1e-5, "gamma": math.inf, "nesterov": False},
    "model": {"widths": [64, 64], "name": "größe"},
}


class Crash(BaseException):
    """Stands for the end of the process: nothing in the package may catch it."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.create(tmp_path / "run", CONFIG, ["seed=0", "optimizer.lr=1e-5"]) as created:
        yield created
        created.status("completed")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: writing fails like on a full disk, in the middle of the data."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(path: Path) -> set[str]:
    return {entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.is_file()}


# --- creating


def test_new_folder_holds_config_overrides_environment_and_status(folder: RunFolder) -> None:
    written = {".hydra/config.yaml", ".hydra/overrides.yaml", "environment.json", "metrics.csv", "status.json"}
    assert names(folder.path) == written
    assert read_config(folder.path) == CONFIG
    assert folder.path.joinpath(".hydra/overrides.yaml").read_text() == "- seed=0\n- optimizer.lr=1e-5\n"
    assert read_status(folder.path)["state"] == "running"
    assert read_metrics(folder.path) == {column: [] for column in COLUMNS}
    assert json.loads(folder.path.joinpath("environment.json").read_text())["device"] == "cpu"


def test_parents_are_made_and_an_empty_folder_is_used(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a" / "b" / "run", {})
    empty = tmp_path / "empty"
    empty.mkdir()
    RunFolder.create(empty, {})
    assert read_status(empty)["state"] == "running"


def test_used_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {"seed": 1})
    with pytest.raises(RunFolderError, match=r"cannot create run folder .*run: the folder exists and is not empty$"):
        RunFolder.create(tmp_path / "run", {"seed": 2})
    assert read_config(tmp_path / "run") == {"seed": 1}


@pytest.mark.parametrize("exists", [False, True])
def test_of_many_who_ask_for_one_folder_exactly_one_gets_it(tmp_path: Path, exists: bool) -> None:
    askers = 8
    RunFolder.create(tmp_path / "warm_up", {})  # the environment is asked for once per process
    for attempt in range(10):
        path = tmp_path / f"run{attempt}"
        if exists:
            path.mkdir()
        barrier = threading.Barrier(askers)
        winners: list[int] = []
        refused: list[str] = []

        def ask(seed: int, path: Path = path, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                RunFolder.create(path, {"seed": seed})
            except RunFolderError as error:
                refused.append(str(error))  # noqa: B023
            else:
                winners.append(seed)  # noqa: B023

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(askers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1
        assert len(refused) == askers - 1
        assert read_config(path) == {"seed": winners[0]}
        assert read_status(path)["state"] == "running"


def test_late_loser_of_the_race_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    winner = RunFolder.create(tmp_path / "run", {"seed": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda _: iter(()))  # it looked before the winner had written anything
        with pytest.raises(RunInUseError, match=r"run: process \d+ is training this run"):
            RunFolder.create(tmp_path / "run", {"seed": 2})
        winner.close()
        with pytest.raises(RunFolderError, match=r"cannot create run folder .*run: File exists"):
            RunFolder.create(tmp_path / "run", {"seed": 2})
    assert read_config(tmp_path / "run") == {"seed": 1}
    assert read_status(tmp_path / "run")["state"] == "running"


@pytest.mark.parametrize("name", ["run", "deep/er/run"])
def test_folder_below_a_file_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    tmp_path.joinpath("file").write_text("not a folder")
    with pytest.raises(RunFolderError) as caught:
        RunFolder.create(tmp_path / "file" / name, {})
    assert str(caught.value) == f"cannot create run folder {tmp_path}/file/{name}: Not a directory"
    assert names(tmp_path) == {"file"}


def test_path_that_is_a_file_or_impossible_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("kept")
    with pytest.raises(RunFolderError, match=r"cannot create run folder .*file: File exists"):
        RunFolder.create(tmp_path / "file", {})
    assert tmp_path.joinpath("file").read_text() == "kept"
    with pytest.raises(RunFolderError, match=r"cannot create run folder .*null"):
        RunFolder.create(tmp_path / "a\0b", {})
    with pytest.raises(RunFolderError, match=r"cannot create run folder .*: File name too long"):
        RunFolder.create(tmp_path / "new" / ("x" * 300), {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("exists", [False, True])
def test_failed_creation_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    path = tmp_path / "new" / "run"
    if exists:
        path.mkdir(parents=True)
    with full_disk(10), pytest.raises(RunFolderError, match="File too large"):
        RunFolder.create(path, CONFIG)
    write = run_folder.write_new

    def writing(file: str, data: bytes) -> None:
        if file.endswith("status.json"):  # the last file
            raise Crash
        write(file, data)

    monkeypatch.setattr(run_folder, "write_new", writing)
    with pytest.raises(Crash):
        RunFolder.create(path, CONFIG)
    assert names(tmp_path) == ({"new/.lock"} if exists else set())
    assert path.exists() == exists
    assert tmp_path.joinpath("new").exists() == exists


def test_config_that_is_more_than_data_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"cannot create run folder .*run: RepresenterError"):
        RunFolder.create(tmp_path / "run", {"activation": torch.nn.ReLU()})
    assert not tmp_path.joinpath("run").exists()


# --- metrics


@settings(max_examples=50)
@given(rows=st.lists(st.lists(st.none() | st.floats() | st.integers(-(2**53), 2**53), min_size=9, max_size=9)))
def test_metrics_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, rows: list[list[float | None]]) -> None:
    folder = RunFolder.create(tmp_path_factory.mktemp("metrics") / "run", {})
    for evaluations, row in enumerate(rows):
        folder.metrics(dict(zip(COLUMNS, [evaluations, *row], strict=True)))
    columns = read_metrics(folder.path)
    assert columns["evaluations"] == list(range(len(rows)))
    for position, name in enumerate(COLUMNS[1:]):
        expected = [math.nan if (value := row[position]) is None else value for row in rows]
        # repr tells -0.0 from 0.0 and makes nan equal to nan
        assert [repr(value) for value in columns[name]] == [repr(float(value)) for value in expected]


def test_row_is_one_readable_line(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 20, "train_loss": 0.1 + 0.2, "validation_loss": math.inf, "epoch": math.nan})
    header, row = folder.path.joinpath("metrics.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert row == "20,NaN,,0.30000000000000004,NaN,NaN,NaN,NaN,inf,"


def test_metrics_refuse_unknown_names_and_rows_without_evaluations(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"unknown metrics \['loss'\]; allowed are evaluations, epoch"):
        folder.metrics({"evaluations": 1, "loss": 0.1})
    with pytest.raises(ValueError, match="must have the key 'evaluations', the number of gradient evaluations"):
        folder.metrics({"train_loss": 0.1})
    assert read_metrics(folder.path)["evaluations"] == []


def test_full_disk_leaves_whole_lines(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 1, "train_loss": 0.5})
    before = folder.path.joinpath("metrics.csv").read_bytes()
    with (
        full_disk(len(before) + 5),
        pytest.raises(RunFolderError, match=r"cannot write .*metrics.csv: File too large$"),
    ):
        folder.metrics({"evaluations": 2, "train_loss": 0.25})
    assert folder.path.joinpath("metrics.csv").read_bytes() == before
    folder.metrics({"evaluations": 3})
    assert read_metrics(folder.path)["evaluations"] == [1, 3]


def test_unfinished_last_line_is_left_out_and_a_broken_one_reported(folder: RunFolder) -> None:
    folder.metrics({"evaluations": 1})
    csv = folder.path / "metrics.csv"
    csv.write_text(csv.read_text() + "2,0.1,0.")
    assert read_metrics(folder.path)["evaluations"] == [1]
    csv.write_text(csv.read_text() + "5,\n")
    with pytest.raises(RunFolderError, match=r"cannot read .*metrics.csv: zip\(\) argument"):
        read_metrics(folder.path)


def test_vanished_folder_is_one_line(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    folder.path.rename(tmp_path / "moved")
    actions: list[Callable[[], None]] = [
        lambda: folder.metrics({"evaluations": 1}),
        lambda: folder.status("running"),
        lambda: folder.checkpoint({"k": 1}),
        lambda: folder.log.info("hello"),
        folder.close,
    ]
    for action in actions:
        with pytest.raises(RunFolderError, match=r"^cannot write .*: No such file or directory$"):
            action()
    for read in (read_metrics, read_status, read_config, read_checkpoint):
        with pytest.raises(RunFolderError, match=r"(No such file or directory|there is no such folder)$"):
            read(folder.path)
    assert not folder.path.exists()


# --- status


@pytest.mark.parametrize("state", STATES)
def test_status_reads_back(folder: RunFolder, state: str) -> None:
    fields = {
        "reason": "größe\n2",
        "test_error": 0.1 + 0.2,
        "train_loss": math.nan,
        "objective": math.inf,
        "values": [-math.inf, 1, None, True, {"a": 1e-300}],
        "tensor": torch.tensor(0.5, dtype=torch.float64),
    }
    folder.status(state, **fields)
    text = folder.path.joinpath("status.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    read = read_status(folder.path)
    assert math.isnan(read.pop("train_loss"))
    assert {name: read[name] for name in ("state", "reason", "test_error", "objective", "values", "tensor")} == {
        "state": state,
        "reason": "größe\n2",
        "test_error": 0.1 + 0.2,
        "objective": math.inf,
        "values": [-math.inf, 1, None, True, {"a": 1e-300}],
        "tensor": 0.5,
    }


def test_status_refuses_unknown_states_and_objects(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"state is 'done'; allowed are running, completed"):
        folder.status("done")
    with pytest.raises(TypeError, match="not Module"):
        folder.status("completed", model=torch.nn.Module())
    assert read_status(folder.path)["state"] == "running"


def test_garbled_status_is_one_line(folder: RunFolder) -> None:
    folder.path.joinpath("status.json").write_bytes(b'{"state": ')
    with pytest.raises(RunFolderError, match=r"cannot read .*status.json: Input data was truncated"):
        read_status(folder.path)
    folder.path.joinpath("status.json").write_bytes(b"\xff")
    with pytest.raises(RunFolderError, match=r"cannot read .*status.json: JSON is malformed"):
        read_status(folder.path)


# --- checkpoint


def test_checkpoint_reads_back_bit_for_bit(folder: RunFolder) -> None:
    state: dict[str, Any] = {
        "x": torch.tensor([0.1, -0.0, math.inf, math.nan], dtype=torch.float64),
        "half": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "empty": torch.zeros(0, 3),
        "step": torch.tensor([2**40]),
        "nested": {"list": [1, 0.1 + 0.2, "text", None, True, {3: torch.arange(3)}]},
    }
    folder.checkpoint(state)
    read = read_checkpoint(folder.path)
    for name in ("x", "half", "empty", "step"):
        assert read[name].dtype == state[name].dtype
        assert read[name].shape == state[name].shape
        assert torch.equal(read[name].view(torch.uint8), state[name].view(torch.uint8))  # nan and -0.0 too
    assert read["nested"]["list"][:5] == state["nested"]["list"][:5]
    assert torch.equal(read["nested"]["list"][5][3], torch.arange(3))


def test_checkpoint_of_one_lane_does_not_carry_the_fleet(folder: RunFolder) -> None:
    fleet = torch.randn(1000, 100)
    folder.checkpoint({"x": fleet[7]})
    assert folder.path.joinpath("checkpoint.pt").stat().st_size < 10_000  # all of the fleet would be 400,000
    assert torch.equal(read_checkpoint(folder.path)["x"], fleet[7])


def test_tensors_that_shared_memory_are_independent_when_read_back(folder: RunFolder) -> None:
    x = torch.ones(3)
    folder.checkpoint({"x": x, "y": x, "tail": x[1:], "row": torch.ones(1).expand(3), "grad": x.requires_grad_()})
    read = read_checkpoint(folder.path)
    read["x"].zero_()
    read["row"][0] = 5
    assert read["y"].tolist() == [1, 1, 1]
    assert read["tail"].tolist() == [1, 1]
    assert read["row"].tolist() == [5, 1, 1]
    assert not read["grad"].requires_grad


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"f": print}, r"checkpoint\['f'\] is a builtin_function_or_method; a checkpoint holds tensors, numbers"),
        ({"a": {"b": [0, (1, 2)]}}, r"checkpoint\['a'\]\['b'\]\[1\] is a tuple"),
        ({"p": torch.nn.Parameter(torch.ones(1))}, r"checkpoint\['p'\] is a Parameter"),
        ({"path": Path("x")}, r"checkpoint\['path'\] is a PosixPath"),
        ({(1, 2): 3}, "checkpoint has a key of type tuple; allowed are str and int"),
    ],
)
def test_checkpoint_refuses_everything_but_data(folder: RunFolder, state: dict[Any, Any], message: str) -> None:
    folder.checkpoint({"k": 1})
    with pytest.raises(TypeError, match=message):
        folder.checkpoint(state)
    assert read_checkpoint(folder.path) == {"k": 1}


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("executed",)


def test_malicious_checkpoint_is_refused_and_not_executed(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Malicious()}, folder.path / "checkpoint.pt")
    with pytest.raises(RunFolderError, match=r"cannot read .*checkpoint.pt: UnpicklingError") as caught:
        read_checkpoint(folder.path)
    assert "\n" not in str(caught.value)
    assert not tmp_path.joinpath("executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"not a checkpoint"])
def test_broken_checkpoint_is_one_line(folder: RunFolder, content: bytes) -> None:
    folder.path.joinpath("checkpoint.pt").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"cannot read .*checkpoint.pt: ") as caught:
        read_checkpoint(folder.path)
    assert "\n" not in str(caught.value)


# --- atomicity


def crash(*_: object) -> None:
    raise Crash


@pytest.mark.parametrize("moment", [(os, "replace"), (run_folder, "make_lasting")])
def test_crash_while_writing_keeps_the_old_files(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, moment: tuple[Any, str]
) -> None:
    folder.status("running", evaluations=1)
    folder.checkpoint({"k": 1})
    before = names(folder.path)
    with monkeypatch.context() as patch:
        patch.setattr(*moment, crash)
        with pytest.raises(Crash):
            folder.status("completed", evaluations=2)
        with pytest.raises(Crash):
            folder.checkpoint({"k": 2})
    assert read_status(folder.path)["evaluations"] == 1
    assert folder.state == "running"
    assert read_checkpoint(folder.path) == {"k": 1}
    view = {path.name for path in folder.path.glob("events.out.tfevents.*")}  # which comes first, and is written anew
    assert names(folder.path) - view - {"checkpoint.next.pt", ".status.json.tmp"} == before  # staged, not valid
    folder.status("running", evaluations=3)
    assert ".status.json.tmp" not in names(folder.path)


def test_full_disk_keeps_the_old_checkpoint_and_says_so(folder: RunFolder) -> None:
    folder.checkpoint({"k": 1})
    with full_disk(20_000), pytest.raises(RunFolderError, match=r"^cannot write .*checkpoint.next.pt: File too large$"):
        folder.checkpoint({"x": torch.zeros(1_000_000)})
    assert read_checkpoint(folder.path) == {"k": 1}
    assert not list(folder.path.glob(".*.tmp"))


def test_what_a_name_promises_is_on_the_disk_before_it(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    replace, synced = os.replace, run_folder.make_lasting

    def recording_replace(old: Path, new: Path) -> None:
        calls.append(Path(new).name)
        replace(old, new)

    def recording_sync(folders: list[Path]) -> None:
        calls.append("disk")
        synced(folders)

    monkeypatch.setattr(os, "replace", recording_replace)
    monkeypatch.setattr(run_folder, "make_lasting", recording_sync)
    folder.checkpoint({"k": 1})
    assert calls == ["checkpoint.next.pt", "disk", "checkpoint.pt", "disk"]
    calls.clear()
    folder.status("running")
    folder.status("completed")
    assert calls == ["status.json", "disk", "status.json"]


def test_the_ends_of_a_fleet_are_on_the_disk_before_the_first_of_them_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noting(module: Any, name: str, note: Callable[..., str]) -> None:
        function = getattr(module, name)

        def noted(*args: Any) -> Any:
            calls.append(note(*args))
            return function(*args)

        monkeypatch.setattr(module, name, noted)

    noting(run_folder, "stage", lambda path, _: f"staged {path.name}")
    noting(run_record, "make_lasting", lambda _: "disk")
    noting(os, "replace", lambda _, path: Path(path).name)
    train_fleet([small_config(seed, output_root=str(tmp_path)) for seed in (3, 4)], progress=False)
    assert calls[-5:] == ["staged status.json"] * 2 + ["disk"] + ["status.json"] * 2


def test_a_file_is_on_the_disk_whole_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fsync = os.fsync

    def measured(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", measured)
    with files.replacing(tmp_path / "file") as stream:
        stream.write(b"x" * 100)
        assert not (tmp_path / "file").exists()
    assert sizes[0] == 100
    assert len(sizes) == 2  # the file, and its name
    with files.replacing(tmp_path / "other", lasting=False) as stream:
        stream.write(b"x" * 100)
    assert len(sizes) == 2


def test_no_checkpoint_counts_whose_claim_was_lost(folder: RunFolder) -> None:
    folder.checkpoint({"k": 1})
    folder.stage_checkpoint({"k": 2})
    lock, kept = folder.path.parent / LOCK, folder.path.parent / "kept"
    lock.rename(kept)
    with pytest.raises(RunFolderError, match=r"\.lock was removed or replaced, so another process may train"):
        folder.commit_checkpoint()
    assert read_checkpoint(folder.path) == {"k": 1}
    kept.rename(lock)
    folder.commit_checkpoint()
    assert read_checkpoint(folder.path) == {"k": 2}


@pytest.mark.parametrize("one_call", [True, False])
def test_everything_in_the_folder_and_its_entries_are_made_lasting(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, one_call: bool
) -> None:
    synced: set[Path] = set()
    fsync = os.fsync

    def recording_fsync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    if not one_call:  # another system
        monkeypatch.setattr(files, "_syncfs", lambda: None)
    files.make_lasting([folder.path])
    if one_call:
        assert synced == set()
    else:
        assert synced >= {folder.path, *folder.path.rglob("*"), folder.path.parent, folder.path.parent.parent}


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"state": "running", "updated": "2026-11-27T10:00:00+00:00", "evaluations": "x"}, Status, "evaluations: "),
        ({"fleets": [["a"], [3]], "rates": {}}, Plan, r"fleets\[1\]\[0\]: "),
        (3, Plan, ""),
    ],
)
def test_what_is_wrong_in_a_file_is_named_by_its_keys(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(RunFolderError, match=rf"^file: {message}Expected [^`:]+, got [^`:]+$"):
        checked(value, kind, "file")


def test_an_engine_has_a_name_of_at_most_40_letters(folder: RunFolder) -> None:
    folder.status("completed", engine="e" * 40)
    assert read_status(folder.path)["engine"] == "e" * 40
    text = (folder.path / "status.json").read_text()
    for name in ("e" * 41, "", "E", "2e", "e;"):
        (folder.path / "status.json").write_text(text.replace("e" * 40, name))
        with pytest.raises(RunFolderError, match=r"engine"):
            read_status(folder.path)


def test_a_run_whose_folder_a_crash_left_incomplete_starts_again_if_its_configuration_is_complete(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    with RunFolder.create(path, CONFIG) as folder:
        config = (path / ".hydra" / "config.yaml").read_bytes()
        folder.status("completed")
    for file in (*path.glob("events*"), path / "environment.json", path / "metrics.csv", path / "log.txt"):
        file.unlink(missing_ok=True)
    (path / "status.json").write_bytes(b"")
    (path / ".hydra" / "config.yaml").write_bytes(config.removesuffix(b"...\n"))
    with pytest.raises(RunFolderError, match=r"a crash left the folder incomplete; repeat the command that trains it"):
        RunFolder.reopen(path)
    (path / ".hydra" / "config.yaml").write_bytes(config)
    with RunFolder.reopen(path) as folder:
        assert folder.rewind(None) == []
        assert read_metrics(path)["evaluations"] == []
        assert read_status(path)["state"] == "running"
        assert "incomplete: starting the run again" in (path / "log.txt").read_text()
        folder.status("completed")


# --- log and context


def test_each_folder_has_its_own_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (RunFolder.create(tmp_path / name, {}) for name in ("first", "second"))
    first.log.info("größe %d", 1)
    second.log.warning("other")
    first.log.debug("too fine")
    assert first.path.joinpath("log.txt").read_text(encoding="utf-8").endswith(" INFO größe 1\n")
    assert second.path.joinpath("log.txt").read_text(encoding="utf-8").count("\n") == 1
    assert caplog.records == []  # neither the root logger's business
    assert "burgersgd.api" not in logging.Logger.manager.loggerDict  # nor kept for the life of the process


def test_exception_is_recorded_as_failed_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="two"), RunFolder.create(tmp_path / "run", {}):
        raise RuntimeError("out of memory:\n  two   lines")
    status = read_status(tmp_path / "run")
    assert (status["state"], status["reason"]) == ("failed", "RuntimeError: out of memory: two lines")
    assert "Traceback" in tmp_path.joinpath("run", "log.txt").read_text()


def test_ctrl_c_is_recorded_as_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path / "run", {}):
        raise KeyboardInterrupt
    status = read_status(tmp_path / "run")
    assert (status["state"], status["reason"]) == ("interrupted", "KeyboardInterrupt")


@pytest.mark.parametrize("state", STATES[1:])
def test_final_status_survives_a_later_exception(tmp_path: Path, state: str) -> None:
    def run() -> None:
        with RunFolder.create(tmp_path / "run", {}) as folder:
            folder.status(state, test_error=0.5)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    status = read_status(tmp_path / "run")
    assert (status["state"], status["test_error"]) == (state, 0.5)


def test_leaving_without_a_final_status_is_a_failure(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", {}):
        pass
    status = read_status(tmp_path / "run")
    assert (status["state"], status["reason"]) == ("failed", "the run ended without a result")


def test_first_cause_is_kept_when_its_end_cannot_be_recorded(tmp_path: Path) -> None:
    def run() -> None:
        with RunFolder.create(tmp_path / "run", {}) as folder:
            folder.path.rename(tmp_path / "moved")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        run()
    assert "its end could not be recorded: cannot write" in caught.value.__notes__[0]


def test_hundreds_of_open_folders_need_no_handle_and_no_thread(tmp_path: Path) -> None:
    handles, threads = len(os.listdir("/dev/fd")), threading.active_count()
    folders = [RunFolder.create(tmp_path / str(index), {}) for index in range(100)]
    for folder in folders:
        folder.metrics({"evaluations": 1, "train_loss": 0.1})
        folder.log.info("hello")
        folder.close()
    assert len(os.listdir("/dev/fd")) <= handles  # fewer: something of an earlier test has gone meanwhile
    assert threading.active_count() <= threads


def test_folder_stays_the_same_when_the_process_changes_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create(Path("run"), {})
    tmp_path.joinpath("elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.metrics({"evaluations": 1})
    assert read_metrics(tmp_path / "run")["evaluations"] == [1]
