"""Kernels are compiled at first use: cached, written atomically, and never the cause of a failure."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from burgersgd import native
from burgersgd.training.engines import compiled

pytestmark = pytest.mark.skipif(native._compiler() is None, reason="no C compiler here")

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of C sources in place of burgersgd/native, and an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "kernel.c").write_text(SOURCE)
    monkeypatch.setattr(native, "__file__", str(folder / "__init__.py"))
    monkeypatch.setenv("BURGERSGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BURGERSGD_NATIVE", raising=False)
    forget()
    yield folder
    forget()


def forget() -> None:
    for cache in (native.compiled, native._warn_unavailable, native._warn_of_folder):
        cache.cache_clear()


def answer() -> int:
    library = native.library("kernel")
    assert library is not None
    return library.answer()


def cached(sources: Path) -> list[str]:
    return sorted(path.name for path in (sources.parent / "cache").iterdir())


def test_a_library_is_compiled_once(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer() == 42
    assert len(cached(sources)) == 1
    forget()
    monkeypatch.setattr(subprocess, "run", None)  # a second compilation would fail
    assert answer() == 42


def test_the_file_name_depends_on_source_compiler_flags_and_processor(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = native._compiler()
    assert compiler is not None
    keys = [
        native._key((sources / "kernel.c").read_text(), compiler),
        native._key((sources / "kernel.c").read_text(), [*compiler, "-O1"]),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(native, "_processor", lambda: "another")
        keys.append(native._key((sources / "kernel.c").read_text(), compiler))
    with monkeypatch.context() as patch:
        patch.setattr(native, "_OPTIONAL_FLAGS", [])
        keys.append(native._key((sources / "kernel.c").read_text(), compiler))
    (sources / "kernel.c").write_text(SOURCE + "int more;\n")
    keys.append(native._key((sources / "kernel.c").read_text(), compiler))
    assert len(set(keys)) == 5


def test_a_failing_compilation_is_reported_once_and_leaves_nothing(
    sources: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (sources / "kernel.c").write_text("int answer(void) { return }\n")
    with caplog.at_level(logging.WARNING, "burgersgd"):
        assert native.library("kernel") is None
        assert native.library("kernel") is None
    assert ["error: expected expression" in record.message for record in caplog.records] == [True]
    assert cached(sources) == []


def test_the_reason_is_reported_once_for_all_libraries(
    sources: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (sources / "other.c").write_text(SOURCE)
    monkeypatch.setenv("BURGERSGD_NATIVE", "0")
    with caplog.at_level(logging.WARNING, "burgersgd"):
        assert native.library("kernel") is None
        assert native.library("other") is None
    assert len(caplog.records) == 1


def test_flags_the_compiler_does_not_know_are_left_out(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_OPTIONAL_FLAGS", [["-fno-such-flag"], []])
    assert answer() == 42


def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_folder(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURGERSGD_CACHE", str(sources / "kernel.c" / "cache"))  # below a file: also root cannot write
    assert answer() == 42


def _cut(content: bytes, share: float) -> bytes:
    return content[: round(share * len(content))]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not a library",
        lambda content: _cut(content, 0.3),  # loading it would be a bus error
        lambda content: _cut(content, 0.99),
        lambda content: bytes(len(content)),  # the length alone came to the disk
        lambda content: content[:-100] + bytes(100),
        lambda content: content + b"more",
    ],
)
def test_a_damaged_file_in_the_cache_is_replaced_before_it_is_loaded(
    damage: Callable[[bytes], bytes], sources: Path
) -> None:
    assert answer() == 42
    (path,) = (sources.parent / "cache").iterdir()
    content = path.read_bytes()
    path.unlink()  # writing into the loaded library would crash
    path.write_bytes(damage(content))
    forget()
    assert answer() == 42
    (path,) = (sources.parent / "cache").iterdir()
    assert native.is_whole(path)


def test_a_file_gets_its_name_once_it_is_on_the_disk(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def noted_replace(a: Path, b: Path) -> None:
        done.append("name")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    assert answer() == 42
    assert done == ["content", "name", "folder"]


def test_what_a_killed_compilation_left_is_removed_once_it_is_old(sources: Path) -> None:
    cache = sources.parent / "cache"
    cache.mkdir(mode=0o700)
    for name, age in (("old.tmp", 3600), ("young.tmp", 0)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - age, time.time() - age))
    assert answer() == 42
    assert [name for name in cached(sources) if name.endswith(".tmp")] == ["young.tmp"]


# --- other users of the machine

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes")


def planted(sources: Path) -> Path:
    """Return a library under the very name that is looked for, by somebody who knows how names are made."""
    evil = sources.parent / "evil"
    evil.mkdir(mode=0o700)
    compiler = native._compiler()
    assert compiler is not None
    path = native._compile(
        compiler, "int answer(void) { return 666; }", evil, f"kernel-{native._key(SOURCE, compiler)}-"
    )
    assert native.is_whole(path)
    return path


@posix
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702, 0o720])
def test_a_folder_in_which_others_can_write_is_refused_and_named(
    mode: int, sources: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_is_own_group", lambda gid: False)
    library, cache = planted(sources), sources.parent / "cache"
    cache.mkdir()
    shutil.move(library, cache / library.name)
    cache.chmod(mode)
    assert answer() == 42
    assert native.library("kernel") is not None
    (record,) = caplog.records
    assert f"others can write in {cache} (mode {mode:o}): compiled kernels are not kept there" in record.getMessage()
    assert cached(sources) == [library.name]
    cache.chmod(0o700)
    forget()
    assert answer() == 666  # the planted one would have been taken


@posix
def test_a_folder_below_one_where_others_can_exchange_it_is_refused(
    sources: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources.parent.chmod(0o777)
    assert answer() == 42
    assert f"others can write in {sources.parent} (mode 777)" in caplog.text
    assert cached(sources) == []
    sources.parent.chmod(0o1777)  # as /tmp
    forget()
    assert answer() == 42
    assert len(cached(sources)) == 1


@posix
def test_a_folder_or_a_file_of_another_user_is_refused(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, cache = planted(sources), sources.parent / "cache"
    cache.mkdir(mode=0o700)
    us = os.geteuid() or 1
    for place, owner in ((cache, us + 1), (cache / "file", us)):
        original = Path.stat

        def stat_(path: Path, place: Path = place, owner: int = owner, original: Any = original) -> os.stat_result:
            fields = list(original(path))
            fields[stat.ST_UID] = owner if path == place else 0
            return os.stat_result(fields)

        with monkeypatch.context() as patch:
            patch.setattr(os, "geteuid", lambda: us)
            patch.setattr(Path, "stat", stat_)
            danger = native.danger_of(cache)
        assert (danger is None) == (place != cache)
        assert danger is None or danger == f"{cache} belongs to another user (uid {us + 1})"
    if os.geteuid() == 0:  # root can give a file away
        os.chown(library, us, -1)
        assert not native.is_whole(library)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: us + 1)
        assert not native.is_whole(library)


@posix
def test_torchs_own_cache_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch").chmod(0o777)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    compiled.why_not_compiled.cache_clear()
    try:
        reason = compiled.why_not_compiled("cpu")
    finally:
        compiled.why_not_compiled.cache_clear()
    assert (reason or "").startswith(f"others can write in {tmp_path / 'torch'} (mode 777); TORCHINDUCTOR_CACHE_DIR")


@posix
def test_files_can_be_written_by_their_owner_alone_whatever_the_umask(sources: Path) -> None:
    before = os.umask(0)
    try:
        assert answer() == 42
    finally:
        os.umask(before)
    (path,) = (sources.parent / "cache").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o777)
    assert not native.is_whole(path)


@posix
def test_a_link_is_followed_once_and_a_relative_folder_is_found(
    sources: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("BURGERSGD_CACHE", "link")
    assert answer() == 42
    assert [path.suffix for path in (tmp_path / "real").iterdir()] == [".so"]
    assert next(iter(native.folders())) == tmp_path / "real"
    monkeypatch.setenv("BURGERSGD_CACHE", ".")  # a library without a slash would be looked for elsewhere
    forget()
    assert answer() == 42


def test_two_processes_compile_at_once(sources: Path) -> None:
    code = f"from burgersgd import native; native.__file__ = {str(sources / '__init__.py')!r}; " + (
        "raise SystemExit(native.library('kernel').answer() != 42)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(240) for process in processes] == [0, 0]
    assert len(cached(sources)) == 1


def test_a_library_does_not_flush_subnormal_numbers_to_zero(sources: Path) -> None:
    assert answer() == 42
    assert sys.float_info.min / 2 > 0


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"BURGERSGD_CACHE": "/here"}, "/here"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/burgersgd"),
        ({"HOME": "/home/me"}, "/home/me/.cache/burgersgd"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="POSIX paths")
def test_the_cache_folder_follows_the_environment(
    environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BURGERSGD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert native.cache_folder() == Path(folder)
