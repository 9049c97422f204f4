"""Files on the disk: which suffixes photos have, and files that appear complete or not at all."""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from .errors import ImageError

# Of the formats that can be read, see `image/read/decode.py`.
SUFFIXES: Final = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# As `temporary_beside` makes them: a mark of the final name, and a number of the attempt.
TEMPORARY: Final = re.compile(r"\.(?P<mark>[0-9a-f]{16})\.[0-9a-f]{8}\.tmp")


def name_mark(name: str) -> str:
    """A 16-digit hex hash of a file name, used to name its temporary files."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_beside(path: Path) -> Path:
    """A hidden name in the same folder. It is short, so that the final name may be as long as the file system allows."""
    return path.parent / f".{name_mark(path.name)}.{secrets.token_hex(4)}.tmp"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a temporary file of the same folder, which is moved to `path` at the end and removed on failure."""
    temporary = temporary_beside(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # fails now if the name is too long, before anything is computed
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it must not hide the first error
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder with its parents. ImageError if that is impossible, or if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ImageError(
            f"{folder}: nothing can be written into this folder: check its permissions, or name another one"
        )


def cannot_write(path: Path, error: OSError) -> ImageError:
    """The message for a file or folder that the system refuses."""
    remedy = "check folder, permissions and free space"
    if "too long" in str(error.strerror):
        remedy = f"its name takes {len(os.fsencode(path.name))} bytes: give the photo a shorter one"
    return ImageError(f"{path}: cannot be written ({error.strerror or error}): {remedy}")
