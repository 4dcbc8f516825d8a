"""Output that cannot be written: it never fails a run and never hides how a command ended."""

from __future__ import annotations

import errno
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from burgersgd.api import train
from burgersgd.cli import main
from burgersgd.recording.output import Unfailing
from burgersgd.recording.run_folder import read_status
from tests.conftest import small_config
from tests.forked import command, forked

SHORT = ["trainer.budget=40", "model.width=8", "trainer.compile=off"]


def full() -> None:
    point(1, os.open("/dev/full", os.O_WRONLY))
    point(2, os.open("/dev/full", os.O_WRONLY))


def gone() -> None:
    """A terminal whose window was closed: writing is EIO."""
    master, slave = pty.openpty()
    os.close(master)
    point(1, slave)
    point(2, slave)


def unread() -> None:
    """A pipe whose reader has seen enough."""
    reader, writer = os.pipe()
    os.close(reader)
    point(1, writer)
    point(2, writer)


def closed() -> None:
    os.close(1)
    os.close(2)


def point(descriptor: int, to: int) -> None:
    os.dup2(to, descriptor)


@pytest.mark.slow
@pytest.mark.parametrize("state", [full, closed, *(pytest.param(s, marks=pytest.mark.slow) for s in (gone, unread))])
def test_output_that_cannot_be_written_leaves_runs_and_exit_codes_as_they_are(
    state: Callable[[], None], tmp_path: Path
) -> None:
    def told(*arguments: str) -> int:
        def action() -> int:
            state()
            return command("train", *arguments)

        return forked(action)

    assert told(*SHORT, "run_name=run") == 0
    assert read_status(tmp_path / "outputs/run")["state"] == "completed"
    diverging = ["optimizer=sgd", "optimizer.lr=1e30"]
    assert told("--multirun", *SHORT, *diverging, "seed=1,2", "sweep.name=s") == 3
    states = [read_status(path.parent)["state"] for path in (tmp_path / "outputs/multirun/s").glob("*/status.json")]
    assert states == ["diverged"] * 2
    if state is full:
        assert told(*SHORT, *diverging) == 3
        assert told(*SHORT, "run_name=run") == 2
    assert not (tmp_path / "crash.txt").exists()


@pytest.mark.slow
def test_the_end_of_the_interpreter_does_not_change_the_exit_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as nowhere:
        arguments = [sys.executable, "-m", "burgersgd", "train", *SHORT, "run_name=run"]
        assert subprocess.run(arguments, stdout=nowhere, stderr=nowhere, check=False).returncode == 0
    assert read_status(tmp_path / "outputs/run")["state"] == "completed"


@pytest.mark.parametrize(("state", "code"), [(full, 1), (gone, 1), (unread, 0), (closed, 0)])
def test_a_command_that_only_shows_something_fails_where_it_could_not(
    state: Callable[[], None], code: int, tmp_path: Path
) -> None:
    train(small_config(), progress=False)
    (folder,) = (path for path in (tmp_path / "outputs").iterdir() if path.is_dir())

    def action() -> int:
        state()
        return command("evaluate", str(folder))

    assert forked(action) == code


@pytest.mark.parametrize("arguments", [["train", "--help"], ["--help"], ["train", "--cfg", "job"]])
def test_the_first_lines_of_a_page_are_enough(arguments: list[str]) -> None:
    def action() -> int:
        unread()
        return command(*arguments)

    assert forked(action) == 0


def test_no_file_becomes_standard_error(tmp_path: Path) -> None:
    """A closed descriptor would be that of the next file, in which a library's own messages would be found."""

    def action() -> int:
        os.close(2)
        os.close(0)
        code = command("train", *SHORT, "run_name=run")
        assert os.readlink("/proc/self/fd/2") == os.readlink("/proc/self/fd/0") == os.devnull
        assert os.get_inheritable(2)
        os.write(2, b"said by a library\n")
        return code

    assert forked(action) == 0, Path("crash.txt").read_text()


class Raising(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error_ = error

    def write(self, text: str) -> int:
        raise self.error_

    def flush(self) -> None:
        raise self.error_

    def isatty(self) -> bool:
        raise self.error_


STREAMS = {
    "none": lambda: None,
    "gone": lambda: Raising(OSError(errno.EIO, "Input/output error")),
    "foreign": lambda: Raising(RuntimeError("no display")),
    "closed": lambda: Raising(ValueError("I/O operation on closed file")),
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("command_line", [False, True])
def test_streams_that_are_none_or_raise_or_lack_letters(
    kind: str, command_line: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    root = tmp_path / "größe"
    before = sys.stdout, sys.stderr
    if not command_line:
        config = small_config()
        config.output_root = str(root)
        config.run_name = "run"
        assert train(config, progress=True).state == "completed"
    else:
        assert main(["train", *SHORT, f"output_root='{root}'", "run_name=run"]) == 0
    if kind == "ascii" and command_line:
        assert main(["train", *SHORT, f"output_root='{root}'", "run_name=run"]) == 2
        stdout, stderr = (stream.buffer.getvalue().decode() for stream in before)  # pyright: ignore
        assert "gr\\xf6\\xdfe/run" in stdout
        assert "the folder" in stderr
        assert "gr\\xf6\\xdfe" in stderr
    assert read_status(root / "run")["state"] == "completed"
    assert (sys.stdout, sys.stderr) == before


def test_a_stream_that_fails_for_a_while_is_written_to_again() -> None:
    class Sometimes(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(text)

    stream = Sometimes()
    ours = Unfailing(stream)
    assert ours.write("lost") == 4
    assert ours.is_full
    stream.full = False
    print("kept", file=ours, flush=True)  # pyright: ignore[reportArgumentType]
    assert stream.getvalue() == "kept\n"
    assert Unfailing(ours).getvalue() == "kept\n"


def test_a_stream_that_cannot_tell_is_no_terminal() -> None:
    assert not Unfailing(Raising(OSError(errno.EIO, "Input/output error"))).isatty()
    assert not Unfailing(None).isatty()
    assert not Unfailing(io.StringIO()).isatty()
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        assert Unfailing(terminal).isatty()
    os.close(master)
