"""C kernels, compiled for this machine at first use and kept in a cache folder.

Everything written in C has a twin in plain torch, so a machine without a compiler computes the same numbers, slower.
``BURGERSGD_NATIVE=0`` switches the kernels off; ``BURGERSGD_CACHE`` names the folder they are kept in.

What is loaded runs as this user. A folder in which other users of the machine can write is therefore not used, and a
file is loaded only if its content has the digest that is part of its name: what a crash left half written is replaced.
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
# Not -ffast-math: linked into a library, it makes the whole process flush subnormal numbers to zero; NaN and inf must
# keep their meaning, and sums their order.
_OPTIONAL_FLAGS = [["-march=native", "-fopenmp"], ["-march=native"], []]  # Apple's clang knows no -fopenmp
_TIMEOUT = 120  # seconds; a compile takes up to two

_ahead: dict[str, threading.Thread] = {}


def library(name: str, define: str = "") -> ctypes.CDLL | None:
    """Return ``burgersgd/native/<name>.c`` as a loaded library, or None where it cannot be had (the log says why).

    define is a macro to define.

    OpenMP, where used, is torch's own pool of threads: torch loads its libgomp before this library asks for one.
    """
    return compiled(name + define, source_text(name, define))


def source_text(name: str, define: str = "", suffix: str = ".c") -> str:
    """Return the text of ``burgersgd/native/<name>.c``, with a macro defined before it."""
    text = Path(__file__).with_name(name + suffix).read_text(encoding="utf-8")
    return f"#define {define}\n{text}" if define else text


def compile_ahead(*names: str) -> None:
    """Begin to compile ``burgersgd/native/<name>.c`` in the background, where that is still to be done.

    For the command line: the compiler works on one core while Python imports torch on the other.
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
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):  # compiled() will say what is wrong
        _built(folder, compiler, name, source_text(name))


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
    reason = "no folder to keep them in"
    for folder in folders():  # the second one serves where the first cannot be written to, or not be executed from
        try:
            return ctypes.CDLL(str(_built(folder, compiler, name, source)))
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
    included = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.c"))]
    parts = [source, included, _REQUIRED, _OPTIONAL_FLAGS, compiler, program.st_size, program.st_mtime_ns, _processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return the name and the abilities of the processor; homes are shared by machines that differ in them."""
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read(8192).split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in first.splitlines() if line.startswith(("model name", "flags", "Features", "CPU")))


# --------------------------------------------------------------------------------------------------- where they are


def folders() -> Iterator[Path]:
    """Yield the folders that may hold kernels: they exist, and no other user can write in them."""
    try:
        folder = cache_folder().absolute()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve(strict=True)  # a link could be turned to another place later
        if (danger := danger_of(folder)) is None:
            yield folder
        else:
            _refused(danger)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        _log.debug("cannot keep compiled kernels: %s", error)
    with contextlib.suppress(OSError):
        folder = _private_folder()
        if (danger := danger_of(folder)) is None:
            yield folder
        else:
            _refused(danger)


def danger_of(folder: Path) -> str | None:
    """Return how another user (root aside) could plant a file in a folder or exchange it, None if none can."""
    if os.name != "posix":
        return None
    for place in (folder, *folder.parents):
        status = place.stat()
        if status.st_uid not in (os.geteuid(), 0):
            return f"{place} belongs to another user (uid {status.st_uid})"
        # In a folder like /tmp (sticky bit) others can make entries of their own, but not exchange ours.
        if _others_write(status) and (place == folder or not status.st_mode & stat.S_ISVTX):
            return f"others can write in {place} (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _others_write(status: os.stat_result) -> bool:
    """Whether users besides the owner can write; the group that some systems make for each user holds no others."""
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
def _refused(danger: str) -> None:
    """Say it once."""
    _log.warning("%s: compiled kernels are not kept there, each process compiles its own", danger)


@functools.cache
def _private_folder() -> Path:
    """Return a folder of this process alone, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="burgersgd-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# --------------------------------------------------------------------------------------------------------- the files


def _built(folder: Path, compiler: list[str], name: str, source: str) -> Path:
    """Return the library in a folder, compiled where it is not there as it was written."""
    stem = f"{name}-{_key(source, compiler)}-"
    for path in sorted(folder.glob(f"{stem}*.so")):
        if is_whole(path):
            return path
        path.unlink(missing_ok=True)  # a process that has loaded it keeps it
    return _compile(compiler, source, folder, stem)


def is_whole(path: Path) -> bool:
    """Whether a library is ours and its content has the digest, and so the length, that its name tells."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if os.name == "posix" and (status.st_uid not in (os.geteuid(), 0) or _others_write(status)):
            return False
        return _digest(file.read()) == path.stem.rpartition("-")[2]
    return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _compile(compiler: list[str], source: str, folder: Path, stem: str) -> Path:
    """Compile source with the first set of flags that works, and return the file, which appears whole or not at all."""
    _clean_up(folder)
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=stem, suffix=".tmp")
    os.close(handle)
    try:
        message = ""
        for optional in _OPTIONAL_FLAGS:
            flags = [*_REQUIRED, *optional, f"-I{Path(__file__).parent}"]
            command = [*compiler, *flags, "-x", "c", "-", "-o", unfinished, "-lm"]
            done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
            if done.returncode == 0:
                return kept(Path(unfinished), folder, stem)
            message = message or f"{shlex.join(command)} failed: {done.stderr.strip()[:500]}"
        raise OSError(message)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def kept(unfinished: Path, folder: Path, stem: str, suffix: str = ".so") -> Path:
    """Give a compiled file its name, once its content is on the disk."""
    with open(unfinished, "r+b") as file:
        os.chmod(unfinished, 0o700)  # whatever the umask
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
    """Remove what processes left that were killed while they compiled."""
    for path in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 10 * _TIMEOUT:
                path.unlink()
