"""C kernels, compiled for this machine at first use and kept in a cache folder.

Everything written in C has a twin in plain torch, so a machine without a compiler computes the same numbers, slower.
``BURGERSGD_NATIVE=0`` switches the kernels off; ``BURGERSGD_CACHE`` names the folder they are kept in.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger("burgersgd")

_REQUIRED = ["-O3", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# Not -ffast-math: linked into a library, it makes the whole process flush subnormal numbers to zero; NaN and inf must
# keep their meaning, and sums their order.
_WISHES = [["-march=native", "-fopenmp"], ["-march=native"], []]  # Apple's clang knows no -fopenmp
_TIMEOUT = 120  # seconds; a compile takes up to two

_ahead: dict[str, threading.Thread] = {}


def library(name: str, define: str = "") -> ctypes.CDLL | None:
    """Return ``burgersgd/native/<name>.c`` as a loaded library, or None where it cannot be had (the log says why).

    define is a macro to define.

    OpenMP, where used, is torch's own pool of threads: torch loads its libgomp before this library asks for one.
    """
    return compiled(name + define, source_text(name, define))


def source_text(name: str, define: str = "") -> str:
    """Return the text of ``burgersgd/native/<name>.c``, with a macro defined before it."""
    text = Path(__file__).with_name(f"{name}.c").read_text(encoding="utf-8")
    return f"#define {define}\n{text}" if define else text


def compile_ahead(*names: str) -> None:
    """Begin to compile ``burgersgd/native/<name>.c`` in the background, where that is still to be done.

    For the command line: the compiler works on one core while Python imports torch on the other.
    """
    for name in names:
        _ahead[name] = threading.Thread(target=_compile_to_cache, args=(name,), daemon=True)
        _ahead[name].start()


def _compile_to_cache(name: str) -> None:
    compiler = _compiler()
    if os.environ.get("BURGERSGD_NATIVE") != "0" and compiler is not None:
        source = source_text(name)
        path = cache_folder() / f"{name}-{_key(source, compiler)}.so"
        with contextlib.suppress(
            OSError, RuntimeError, subprocess.SubprocessError
        ):  # compiled() will say what is wrong
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():
                _compile(compiler, source, path)


@functools.cache
def compiled(name: str, source: str) -> ctypes.CDLL | None:
    """Return C source text as a loaded library, or None where it cannot be had (the log says why)."""
    if name in _ahead:
        _ahead[name].join()
    if os.environ.get("BURGERSGD_NATIVE") == "0":
        return _unavailable("BURGERSGD_NATIVE=0")
    compiler = _compiler()
    if compiler is None:
        return _unavailable("no C compiler found ($CC, cc, gcc, clang)")
    file_name = f"{name}-{_key(source, compiler)}.so"
    reason = ""
    for folder in _folders():  # the second one serves where the first cannot be written to, or not be executed from
        path = folder / file_name
        try:
            if not path.exists():
                _compile(compiler, source, path)
            return ctypes.CDLL(str(path))
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(error)
    return _unavailable(reason)


def cache_folder() -> Path:
    """Return the folder where compiled kernels are kept: $BURGERSGD_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("BURGERSGD_CACHE"):
        return Path(chosen)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "burgersgd"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burgersgd"


@functools.cache
def _unavailable(reason: str) -> None:
    """Say once per reason, not once per kernel."""
    _log.warning("C kernels are not used, plain torch computes the same numbers more slowly: %s", reason)


def _compiler() -> list[str] | None:
    """Return the command of the C compiler."""
    for command in (os.environ.get("CC"), "cc", "gcc", "clang"):
        words = shlex.split(command or "")
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    return None


def _key(source: str, compiler: list[str]) -> str:
    """Hash what the binary depends on, without starting the compiler: source, flags, compiler, processor."""
    program = os.stat(compiler[0])
    parts = [source, _REQUIRED, _WISHES, compiler, program.st_size, program.st_mtime_ns, _processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return the name and the abilities of the processor; homes are shared by machines that differ in them."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(8192).split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in first.splitlines() if line.startswith(("model name", "flags", "Features", "CPU")))


def _folders() -> Iterator[Path]:
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield folder
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _log.debug("cannot keep compiled kernels: %s", error)
    yield _private_folder()


@functools.cache
def _private_folder() -> Path:
    """Return a folder of this process alone, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="burgersgd-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _compile(compiler: list[str], source: str, path: Path) -> None:
    """Compile source into path with the first set of flags that works; path appears whole or not at all."""
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    try:
        message = ""
        for wishes in _WISHES:
            command = [
                *compiler,
                *_REQUIRED,
                *wishes,
                f"-I{Path(__file__).parent}",
                "-x",
                "c",
                "-",
                "-o",
                unfinished,
                "-lm",
            ]
            done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            if done.returncode == 0:
                os.replace(unfinished, path)
                return
            message = message or f"{shlex.join(command)} failed: {done.stderr.strip()[:500]}"
        raise OSError(message)
    finally:
        Path(unfinished).unlink(missing_ok=True)
