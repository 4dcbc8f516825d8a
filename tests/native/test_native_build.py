"""Compiling kernels at first use: cached, atomic, and never in the way."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from burgersgd import native

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
    native.compiled.cache_clear()
    native._unavailable.cache_clear()


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
        patch.setattr(native, "_WISHES", [])
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


def test_the_reason_is_said_once_for_all_libraries(
    sources: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (sources / "other.c").write_text(SOURCE)
    monkeypatch.setenv("BURGERSGD_NATIVE", "0")
    with caplog.at_level(logging.WARNING, "burgersgd"):
        assert native.library("kernel") is None
        assert native.library("other") is None
    assert len(caplog.records) == 1


def test_flags_the_compiler_does_not_know_are_left_out(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_WISHES", [["-fno-such-flag"], []])
    assert answer() == 42


def test_a_cache_that_cannot_be_written_is_replaced_by_a_private_folder(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BURGERSGD_CACHE", str(sources / "kernel.c" / "cache"))  # below a file: also root cannot write
    assert answer() == 42


def test_a_damaged_file_in_the_cache_is_not_used(sources: Path) -> None:
    assert answer() == 42
    (path,) = (sources.parent / "cache").iterdir()
    path.unlink()  # writing into the loaded library would crash
    path.write_bytes(b"not a library")
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
