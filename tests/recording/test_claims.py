"""Claims: one process at a time works on a run, inspecting a run claims nothing, and a dead process holds no claim."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from burgersgd.recording import claims
from tests.forked import forked

HOLDER = """
import sys
from pathlib import Path
from burgersgd.recording import claims
from tests.forked import forked
print(claims.claim(Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_a_claim_excludes_other_processes_until_its_own_dies(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert claims.is_claimed(run)
        assert not claims.claim(run)
        assert not claims.is_claimed(other)
        assert claims.claim(other)
        claims.release(other)
        assert claims.is_claimed(run)
        holder.kill()
    assert not claims.is_claimed(run)
    assert claims.claim(run)
    claims.release(run)


def test_within_a_process_a_claim_is_taken_once_and_looking_does_not_lose_it(tmp_path: Path) -> None:
    runs = [tmp_path / str(i) for i in range(300)]  # one open file for all
    assert all(map(claims.claim, runs))
    assert not claims.claim(runs[7])
    assert claims.is_claimed(runs[7])
    assert not claims.is_claimed(tmp_path / "another")
    command = [sys.executable, "-c", HOLDER, str(runs[8])]
    assert subprocess.run(command, input="", capture_output=True, text=True, check=True).stdout == "False\n"
    for run in runs:
        claims.release(run)
    claims.release(runs[0])  # nothing happens
    assert not claims.is_claimed(runs[7])
    assert not claims._open
    assert not claims._claims


@pytest.mark.parametrize("name", ["run", "größe", "a b"])
def test_names_stand_for_bytes_that_every_file_system_has(name: str) -> None:
    assert 0 <= claims._byte(Path(name)) < 2**40


def other(run: Path) -> str:
    """Return what another process gets that claims a run and ends: this one's fork, which holds nothing."""
    return str(bool(forked(lambda: int(claims.claim(run)))))


def test_the_process_that_holds_a_claim_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert claims.claim(tmp_path / "another")  # the same file
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert claims.whose(run) == f"process {holder.pid}"
        claims.release(tmp_path / "another")
        assert claims.whose(run) == f"process {holder.pid}"
        holder.kill()
    assert claims.whose(run) == "another process"
    assert not claims._open


def test_a_link_to_the_same_folder_is_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert claims.claim(tmp_path / "real" / "a")
    assert claims.claim(tmp_path / "link" / "b")
    assert not claims.claim(tmp_path / "link" / "a")
    assert claims.is_claimed(tmp_path / "link" / "a")
    claims.release(tmp_path / "link" / "b")
    assert other(tmp_path / "real" / "a") == "False"  # the end of one dropped the lock of the other
    (tmp_path / "run").symlink_to("real/a")
    assert not claims.claim(tmp_path / "run")
    claims.release(tmp_path / "run")
    assert other(tmp_path / "real" / "a") == "True"


def test_a_hard_link_of_the_lock_file_is_the_same_file(tmp_path: Path) -> None:
    """As a folder that is mounted twice: one file by two paths."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert claims.claim(tmp_path / "one" / "a")
    os.link(tmp_path / "one" / claims.LOCK, tmp_path / "two" / claims.LOCK)
    assert not claims.claim(tmp_path / "two" / "a")
    assert claims.claim(tmp_path / "two" / "b")
    claims.release(tmp_path / "two" / "b")
    assert not claims.is_claimed(tmp_path / "two" / "b")
    assert other(tmp_path / "one" / "a") == "False"
    claims.release(tmp_path / "one" / "a")
    assert not claims._open


def test_a_claim_whose_lock_file_was_removed_or_replaced_is_noticed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not claims.still_holds(run)
    assert claims.claim(run)
    assert claims.still_holds(run)
    (tmp_path / claims.LOCK).unlink()
    assert not claims.still_holds(run)
    assert other(run) == "True"  # has made another file
    assert not claims.still_holds(run)
    claims.release(run)
    assert claims.claim(run)
    assert claims.still_holds(run)
    claims.release(run)


def test_the_lock_file_is_removed_only_where_nobody_holds_a_claim(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claims.remove_lock_file(tmp_path)  # there is none
    assert claims.claim(run)
    claims.remove_lock_file(tmp_path)
    assert claims.still_holds(run)
    claims.release(run)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        claims.remove_lock_file(tmp_path)
        assert (tmp_path / claims.LOCK).exists()
        holder.kill()
    claims.remove_lock_file(tmp_path)
    assert not (tmp_path / claims.LOCK).exists()
    assert not claims._open


def test_a_lock_on_a_file_that_was_removed_before_it_was_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, opened = tmp_path / "run", []
    lock_file = claims._lock_file

    def slow(path: Path) -> claims._LockFile:
        lock = lock_file(path)
        opened.append(lock.key)
        if len(opened) == 1:  # another process removes it, and a third one makes its own
            path.unlink()
            path.touch()
        return lock

    monkeypatch.setattr(claims, "_lock_file", slow)
    assert claims.claim(run)
    assert len(set(opened)) == 2
    assert claims.still_holds(run)
    assert other(run) == "False"
    claims.release(run)
    assert not claims._open


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_claim_holds_within_the_process(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    run = tmp_path / "run"
    monkeypatch.setattr(claims.fcntl, "lockf", no_locks)
    assert claims.claim(run)
    assert claims.still_holds(run)
    assert not claims.claim(run)
    claims.release(run)
    assert not claims._open
    assert claims.claim(run)
    claims.release(run)


def test_a_forked_child_holds_nothing_and_drops_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert claims.claim(run)

    def child() -> int:
        return int(claims.still_holds(run) or claims.claim(run) or claims.whose(run) != f"process {os.getppid()}")

    assert forked(child) == 0
    assert other(run) == "False"
    claims.release(run)


@pytest.mark.parametrize("by", ["its own path", "a link to its folder", "a link to it"])
def test_a_claim_ends_with_its_lock_file_by_whatever_path_it_was_taken(tmp_path: Path, by: str) -> None:
    run = tmp_path / "sweep" / "run"
    run.mkdir(parents=True)
    (tmp_path / "folder").symlink_to(run.parent)
    (tmp_path / "link").symlink_to(run)
    name = {
        "its own path": run,
        "a link to its folder": tmp_path / "folder" / "run",
        "a link to it": tmp_path / "link",
    }[by]
    assert claims.claim(name)
    assert claims.still_holds(name)
    assert claims.still_holds(run)
    (run.parent / claims.LOCK).rename(run.parent / "elsewhere")
    assert not claims.still_holds(name)
    (run.parent / claims.LOCK).touch()
    assert not claims.still_holds(name), "another file of that name"
    claims.release(name)
    assert not claims._claims
    assert not claims.still_holds(name)
