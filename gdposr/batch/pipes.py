"""A photo from stdin and a picture to stdout. Both pass through files, so that no incomplete picture goes down the pipe."""

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

from gdposr.console import UsageError

# The name of stdin and stdout on the command line.
STANDARD = "-"
# Bytes allowed besides the pixels, as in the reader of photos.
_MOST = 256 << 20


def from_stdin(folder: Path, max_pixels: int) -> Path:
    """Copy stdin to a file in a folder. UsageError if it is missing, a terminal, or too long."""
    stream = sys.stdin
    if stream is None or stream.closed or stream.isatty():
        raise UsageError(
            "expected a photo on stdin, got none: pipe one in, as in `cat photo.jpg | gdposr upscale - -o -`"
        )
    path, left = folder / "stdin", 8 * max_pixels + _MOST
    with open(path, "xb") as file:
        while part := stream.buffer.read(1 << 20):
            file.write(part)
            left -= len(part)
            if left < 0:
                raise UsageError(
                    f"stdin: expected a photo of at most {max_pixels / 1e6:g} megapixels, got more bytes than one takes: "
                    "pipe in a single photo, or raise --max-pixels"
                )
    return path


def check_stdout(stream: TextIO | None) -> None:
    """UsageError if a picture cannot go to stdout."""
    if stream is None or not hasattr(stream, "buffer") or stream.isatty():
        raise UsageError(
            "-o -: expected stdout to be a pipe or a file, got a terminal or none: redirect it, or name a file"
        )


def to_stdout(path: Path, stream: TextIO) -> str | None:
    """Copy a picture to stdout. Returns None, or the error as a sentence, for example if the reader has left."""
    try:
        stream.flush()
        with open(path, "rb") as file:
            shutil.copyfileobj(file, stream.buffer, 1 << 20)
        stream.buffer.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # for the rest of the buffer, which Python writes at exit
            os.close(nowhere)
        return f"failed: stdout did not take the whole picture ({error.strerror or error}): try again, or name a file"
    return None
