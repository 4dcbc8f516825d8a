"""Standard output and standard error to which writing never fails: text that cannot be written is dropped.

A closed terminal, a full disk, a reader that has exited (`| head -2`), a stream that is closed or None, and a terminal
that cannot show the characters of a folder's name must neither end a run nor hide how it ended.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Unfailing:
    """A text stream whose methods to write never raise; other attributes are the stream's. None drops all text."""

    def __init__(self, stream: TextIO | Unfailing | None) -> None:
        self._stream: TextIO | None = stream._stream if isinstance(stream, Unfailing) else stream
        self.error: Exception | None = None
        """The last error of writing; None if there was none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        """The encoding of the stream, utf-8 if it has none."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write text; characters that the stream cannot encode are written as escapes."""
        if self._stream is None:
            return len(text)
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._write_escaped(self._stream, text)
        except Exception as error:  # OSError, ValueError of a closed stream, anything from a class of a user
            self.error = error
        return len(text)

    def _write_escaped(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except Exception as error:
            self.error = error

    def flush(self) -> None:
        """Flush the stream."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except Exception as error:
            self.error = error

    def isatty(self) -> bool:
        """Whether the stream is a terminal; False if it cannot tell."""
        with contextlib.suppress(Exception):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """Return the descriptor. Raises OSError where there is none."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def is_full(self) -> bool:
        """Whether text was lost for another reason than a closed stream or a reader that has exited."""
        return isinstance(self.error, OSError) and self.error.errno not in (errno.EPIPE, errno.EBADF)


@contextlib.contextmanager
def unfailing() -> Iterator[Unfailing]:
    """Make standard output and standard error unfailing streams while the context lasts; yield standard output."""
    before = sys.stdout, sys.stderr
    ours = Unfailing(sys.stdout), Unfailing(sys.stderr)
    sys.stdout, sys.stderr = ours  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield ours[0]
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before


def open_descriptors() -> None:
    """Open those of the descriptors 0, 1 and 2 that are closed on os.devnull.

    Otherwise the next file that is opened could become standard error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which has the lowest free number, this one


def flush_or_discard() -> None:
    """Flush standard output and standard error; on failure redirect them to os.devnull.

    Otherwise the interpreter's own flush at exit would fail and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
