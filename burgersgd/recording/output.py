"""Standard output and standard error to which writing never fails: what cannot be shown is lost, and nothing else.

A terminal that is gone, a full disk, a reader that has seen enough (`| head -2`), a stream that is closed or None, and
a terminal that lacks the letters of a folder's name must neither end a run nor hide how it ended.
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
    """A text stream that never raises; the rest is the stream's own. None is a stream that shows nothing."""

    def __init__(self, stream: TextIO | Unfailing | None) -> None:
        self._stream: TextIO | None = stream._stream if isinstance(stream, Unfailing) else stream
        self.error: Exception | None = None
        """Why something could not be written, the last time."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write text; letters that the stream lacks are written as escapes."""
        if self._stream is None:
            return len(text)
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._write_escaped(self._stream, text)
        except Exception as error:  # OSError, ValueError of a closed one, anything of one that is not Python's own
            self.error = error
        return len(text)

    def _write_escaped(self, stream: TextIO, text: str) -> None:
        try:
            stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except Exception as error:
            self.error = error

    def flush(self) -> None:
        """Write out what is pending."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except Exception as error:
            self.error = error

    def isatty(self) -> bool:
        """Whether the stream is a terminal, as far as it can tell."""
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
        """Whether something was lost that its reader did not do without."""
        return isinstance(self.error, OSError) and self.error.errno not in (errno.EPIPE, errno.EBADF)


@contextlib.contextmanager
def unfailing() -> Iterator[Unfailing]:
    """Let writing to standard output and standard error never fail meanwhile; yield standard output."""
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
    """Let what is closed of the descriptors 0, 1 and 2 lead nowhere: the next file would become standard error."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if nowhere == descriptor:
                os.set_inheritable(nowhere, True)
            else:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def let_go() -> None:
    """Write out what is pending, or drop it: the interpreter's own attempt at its end would change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
