"""Standard streams that may be missing or closed: the work goes on, and output that cannot be written is dropped.

A program without a console (pythonw, a frozen app) has None for stderr and stdout. A reader such as `head` leaves in the middle. A
locale such as cp1252 cannot encode every name.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# Errors of a stream whose reader has left, and of one that is closed.
_GONE = (errno.EPIPE, errno.EBADF)


class Lenient:
    """A text stream whose `write` and `flush` raise nothing. Other attributes are the stream's own.

    lost: the first error of a stream that still has a reader, such as a full disk behind stdout. None: no output was lost that a
    reader expected.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self.lost = stream, cast(OSError | None, None)

    def write(self, text: str) -> int:
        with self._failing():
            if self._stream is not None:
                self._stream.write(self._encodable(text))
        return len(text)

    def flush(self) -> None:
        with self._failing():
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(ValueError, OSError):
            return self._stream is not None and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _encodable(self, text: str) -> str:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            return text.encode(encoding, "backslashreplace").decode(encoding)
        return text

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except ValueError:  # closed
            self._stream = None
        except OSError as error:
            if error.errno not in _GONE:
                self.lost = self.lost or error
            self._silence()

    def _silence(self) -> None:
        """Discard the buffer, because Python would fail on it at exit."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number = cast(TextIO, self._stream).fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
        self._stream = None


@contextmanager
def lenient_streams() -> Iterator[Lenient]:
    """stdout and stderr as `Lenient` streams. The value is stdout's."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _occupy_descriptors()
    out, err = sys.stdout, sys.stderr
    mine = Lenient(out), Lenient(err)
    sys.stdout, sys.stderr = cast(TextIO, mine[0]), cast(TextIO, mine[1])
    try:
        yield mine[0]
    finally:
        for stream in mine:
            stream.flush()
        sys.stdout, sys.stderr = out, err


def _occupy_descriptors() -> None:
    """Open closed descriptors 0 to 2 as the null device. Else a photo's file would get such a number, and a C library's warnings."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_RDWR)
                if nowhere != number:
                    os.dup2(nowhere, number)
                    os.close(nowhere)
