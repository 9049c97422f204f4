"""Files on the disk: photos found in folders, and files that appear complete or not at all."""

import contextlib
import glob
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from .errors import ImageError

# Of the formats that can be read, see `image/read/decode.py`.
SUFFIXES: Final = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def find_photos(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    recursive: bool = True,
    exclude: Sequence[str | os.PathLike[str]] = (),
) -> list[Path]:
    """Files, folders and glob patterns -> sorted list of files without duplicates.

    inputs: a folder gives its files with a known suffix, except hidden ones. A file is kept whatever its suffix. So is a name that
        matches nothing, so that reading it reports the mistake.
    exclude: folders to leave out, such as the output folder.
    """
    excluded = [Path(folder).resolve() for folder in exclude]
    found: dict[Path, Path] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            matches = list(_photos_in(path, recursive, excluded))
        elif path.exists():
            matches = [path]
        else:
            hits = (
                [Path(name) for name in glob.glob(str(item), recursive=True)]
                if glob.has_magic(str(item))
                else []
            )
            matches = [hit for hit in hits if hit.is_file() and hit.suffix.lower() in SUFFIXES] or [path]
        for match in matches:
            found.setdefault(match.resolve(), match)
    return sorted(found.values())


def _photos_in(folder: Path, recursive: bool, excluded: list[Path]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if recursive and not name.startswith(".") and (here / name).resolve() not in excluded
        )
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield here / name


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream into a temporary file of the same folder, which is moved to `path` at the end and removed on failure."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be written ({error.strerror or error}): check folder, permissions and free space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
