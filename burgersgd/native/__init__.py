"""Compiles C kernels for this machine at first use and stores them in a cache folder.

Every C kernel has an equivalent in plain torch, so a machine without a compiler computes the same numbers more slowly.
``BURGERSGD_NATIVE=0`` switches the kernels off; ``BURGERSGD_CACHE`` names the folder in which they are stored.

A loaded library runs with the rights of this user. Folders that other users of the machine can write to are therefore
not used, and a file is loaded only if its content has the digest in its name, so that incomplete files are replaced.
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
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_log = logging.getLogger("burgersgd")

_REQUIRED = ["-O3", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# Without -ffast-math: linked into a library, it makes the entire process flush subnormal numbers to zero; and NaN, inf
# and the order of sums must be preserved.
_OPTIONAL_FLAGS = [["-march=native", "-fopenmp"], ["-march=native"], []]  # Apple's clang does not support -fopenmp
_TIMEOUT = 120  # in seconds; a compilation takes up to two

_ahead: dict[str, threading.Thread] = {}


def library(name: str, define: str = "") -> ctypes.CDLL | None:
    """Return ``burgersgd/native/<name>.c`` as a loaded library, or None where that is impossible (the log says why).

    define is the name of a macro to define.

    Where OpenMP is used, it is torch's pool of threads: torch loads its libgomp before this library needs one.
    """
    return compiled(name + define, source_text(name, define))


def source_text(name: str, define: str = "", suffix: str = ".c") -> str:
    """Return the text of ``burgersgd/native/<name>.c``, with a macro defined before it."""
    text = Path(__file__).with_name(name + suffix).read_text(encoding="utf-8")
    return f"#define {define}\n{text}" if define else text


def compile_ahead(*names: str) -> None:
    """Start to compile ``burgersgd/native/<name>.c`` in the background, unless it is compiled already.

    The command line uses it: the compiler runs on one core while Python imports torch on another one.
    """
    compiler = _compiler()
    if os.environ.get("BURGERSGD_NATIVE") == "0" or compiler is None:
        return
    folder = next(folders(), None)
    if folder is None:
        return
    for name in names:
        _ahead[name] = threading.Thread(target=_compile_to_cache, args=(folder, compiler, name), daemon=True)
        _ahead[name].start()


def _compile_to_cache(folder: Path, compiler: list[str], name: str) -> None:
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):  # compiled() will report the error
        _built(folder, compiler, name, source_text(name))


@functools.cache
def compiled(name: str, source: str) -> ctypes.CDLL | None:
    """Return C source text as a loaded library, or None where that is impossible (the log says why)."""
    if name in _ahead:
        _ahead[name].join()
    if os.environ.get("BURGERSGD_NATIVE") == "0":
        return _warn_unavailable("BURGERSGD_NATIVE=0")
    compiler = _compiler()
    if compiler is None:
        return _warn_unavailable("no C compiler found ($CC, cc, gcc, clang)")
    reason = "there is no folder for compiled kernels"
    for folder in folders():  # the second is used where the first is read-only or forbids execution
        try:
            return ctypes.CDLL(str(_built(folder, compiler, name, source)))
        except (OSError, subprocess.SubprocessError) as error:
            reason = str(error)
    return _warn_unavailable(reason)


def cache_folder() -> Path:
    """Return the folder for compiled kernels: $BURGERSGD_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("BURGERSGD_CACHE"):
        return Path(chosen)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "burgersgd"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "burgersgd"


@functools.cache
def _warn_unavailable(reason: str) -> None:
    """Log a warning once per reason, not once per kernel."""
    _log.warning("the C kernels cannot be used (%s): PyTorch computes the same numbers more slowly", reason)


def _compiler() -> list[str] | None:
    """Return the command of the C compiler; None where there is none."""
    for command in (os.environ.get("CC"), "cc", "gcc", "clang"):
        words = shlex.split(command or "")
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    return None


def _key(source: str, compiler: list[str]) -> str:
    """Return a hash of everything that determines the binary, without starting the compiler.

    These are source, flags, compiler and processor.
    """
    program = os.stat(compiler[0])
    included = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.c"))]
    parts = [source, included, _REQUIRED, _OPTIONAL_FLAGS, compiler, program.st_size, program.st_mtime_ns, _processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return the name and the features of the processor, since different machines may share a home folder."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(8192).split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in first.splitlines() if line.startswith(("model name", "flags", "Features", "CPU")))


# --------------------------------------------------------------------------------------------------- where they are


def folders() -> Iterator[Path]:
    """Yield the folders for kernels, which exist and to which no other user can write."""
    try:
        folder = cache_folder().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve(strict=True)  # a link could be changed later
        if (danger := danger_of(folder)) is None:
            yield folder
        else:
            _warn_of_folder(danger)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _log.debug("cannot keep compiled kernels: %s", error)
    with contextlib.suppress(OSError):
        folder = _private_folder()
        if (danger := danger_of(folder)) is None:
            yield folder
        else:
            _warn_of_folder(danger)


def danger_of(folder: Path) -> str | None:
    """Return how another user, except root, could add or replace files in a folder; None if no other user can."""
    if os.name != "posix":
        return None
    for parent in (folder, *folder.parents):
        status = parent.stat()
        if status.st_uid not in (os.geteuid(), 0):
            return f"{parent} belongs to another user (uid {status.st_uid})"
        # In a folder with the sticky bit, such as /tmp, other users can add entries but not replace those of this user.
        if _others_write(status) and (parent == folder or not status.st_mode & stat.S_ISVTX):
            return f"others can write in {parent} (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _others_write(status: os.stat_result) -> bool:
    """Whether users other than the owner can write; the private group of the user (on some systems) does not count."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_own_group(status.st_gid)


def _is_own_group(gid: int) -> bool:
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


@functools.cache
def _warn_of_folder(danger: str) -> None:
    """Log a warning, once per reason."""
    _log.warning("%s: compiled kernels are not kept there, so each process compiles its own", danger)


@functools.cache
def _private_folder() -> Path:
    """Return a temporary folder for this process alone, which is removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="burgersgd-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# --------------------------------------------------------------------------------------------------------- the files


def _built(folder: Path, compiler: list[str], name: str, source: str) -> Path:
    """Return the library in a folder, compiling it if the file is missing or damaged."""
    stem = f"{name}-{_key(source, compiler)}-"
    for path in sorted(folder.glob(f"{stem}*.so")):
        if is_whole(path):
            return path
        path.unlink(missing_ok=True)  # processes that have loaded it can still use it
    return _compile(compiler, source, folder, stem)


def is_whole(path: Path) -> bool:
    """Whether a library belongs to this user or root and its content has the digest in its name."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if os.name == "posix" and (status.st_uid not in (os.geteuid(), 0) or _others_write(status)):
            return False
        return _digest(file.read()) == path.stem.rpartition("-")[2]
    return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _compile(compiler: list[str], source: str, folder: Path, stem: str) -> Path:
    """Compile source with the first flags that work, and return the file, which is created completely or not at all."""
    _clean_up(folder)
    started = time.monotonic()
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=stem, suffix=".tmp")
    os.close(handle)
    try:
        message = ""
        for optional in _OPTIONAL_FLAGS:
            flags = [*_REQUIRED, *optional, f"-I{Path(__file__).parent}"]
            command = [*compiler, *flags, "-x", "c", "-", "-o", unfinished, "-lm"]
            done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            if done.returncode == 0:
                _log.info("compiled %s in %.1f s", stem.partition("-")[0], time.monotonic() - started)
                return kept(Path(unfinished), folder, stem)
            message = message or f"{shlex.join(command)} failed: {done.stderr.strip()[:500]}"
        raise OSError(message)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def kept(unfinished: Path, folder: Path, stem: str, suffix: str = ".so") -> Path:
    """Rename a compiled file to its final name after its content is on the disk; return the new path."""
    with open(unfinished, "r+b") as file:
        os.chmod(unfinished, 0o700)  # independently of the umask
        path = folder / f"{stem}{_digest(file.read())}{suffix}"
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return path


def _clean_up(folder: Path) -> None:
    """Remove the temporary files of processes that were killed during a compilation."""
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 10 * _TIMEOUT:
                path.unlink()
