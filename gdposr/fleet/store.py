"""Folders at an address, such as s3://bucket/photos, on any file system of pyarrow or of fsspec."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gdposr.console import UsageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from runtime.folders import Entry

# On these a file appears only when it is complete (S3: PutObject, CompleteMultipartUpload; Google: the end of a resumable upload).
# On others it is written under a temporary name and moved.
ATOMIC_PUT = ("s3", "gcs")
# Bytes that are copied at once.
CHUNK = 1 << 20


def is_address(text: object) -> bool:
    """Whether a text is an address with a scheme, such as s3://bucket/photos."""
    return "://" in str(text)


@dataclass(frozen=True)
class Found:
    """A file below a store's folder."""

    path: str
    """Path in the file system."""
    size: int
    """Size in bytes."""


class Store:
    """A folder, or one file, on a file system with an address. Its keys come from the environment of each node.

    address: scheme://bucket/path or fsspec+SCHEME://path; options of the file system follow after a "?", such as
        s3://bucket/photos?region=eu-west-1.

    UsageError for an address that cannot be understood.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.address = address
        self._files, root = _opened(address)
        self.root = root.rstrip("/") or root
        # the part of the address before the path, without password and options; a bucket belongs to the path
        apart = self.root.startswith("/") and not self._files.type_name.startswith("py::")
        host = parts.netloc.rpartition("@")[2] if apart else ""
        self._prefix = f"{parts.scheme}://{host}"

    def shown(self, path: str) -> str:
        """The address of a file, without passwords and options."""
        return f"{self._prefix}{path}"

    def below(self, relative: str) -> str:
        """The path of a file in the folder, from its relative path."""
        return "/".join(part for part in (self.root.rstrip("/"), relative) if part)

    def entries(self, outside: "Store | None" = None) -> "list[tuple[Entry, Found]]":
        """The photos, sorted. If the address is that of a file, it is `named`. outside: the results' folder, which is left out."""
        from pyarrow.fs import FileType

        from runtime.folders import Entry, is_photo_name

        info = self._files.get_file_info(self.root) if self.root else None
        if info is not None and info.type == FileType.File:
            entry = Entry(Path(self.root), Path(info.base_name), True)
            return [(entry, Found(self.root, info.size))]
        left_out = None if outside is None else outside.shown(outside.root).rstrip("/") + "/"
        found = []
        for file in self.files():
            relative = self._relative(file.path)
            hidden = any(part.startswith(".") for part in relative.split("/"))
            ours = left_out is not None and self.shown(file.path).startswith(left_out)
            if is_photo_name(relative) and not hidden and not ours:
                found.append((Entry(Path(file.path), Path(relative), False), file))
        return sorted(found, key=lambda pair: pair[1].path)

    def files(self, folder: str = "") -> list[Found]:
        """Every file below the folder, or below a sub-folder. Empty if there is no such folder."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.below(folder), recursive=True, allow_not_found=True)
        return [
            Found(info.path, info.size)
            for info in self._files.get_file_info(selector)
            if info.type == FileType.File
        ]

    def names(self) -> set[str]:
        """The relative paths of all files below the folder."""
        return {self._relative(file.path) for file in self.files()}

    @contextlib.contextmanager
    def opened(self, path: str) -> "Iterator[IO[bytes]]":
        """A seekable stream that reads a file."""
        with self._files.open_input_file(path) as stream:
            yield stream

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file to a local one."""
        with self._files.open_input_stream(path) as source, open(target, "xb") as copy:
            shutil.copyfileobj(source, copy, CHUNK)

    def put(self, source: Path, path: str) -> None:
        """Copy a local file into the store. It appears complete or not at all, and replaces a file of the same name."""
        if self._files.type_name in ATOMIC_PUT:
            self._copy(source, path)
            return
        from runtime.files import name_mark

        folder, _, name = path.rpartition("/")
        temporary = f"{folder}/.{name_mark(name)}.{secrets.token_hex(4)}.tmp"
        self._files.create_dir(folder, recursive=True)
        self._copy(source, temporary)
        try:
            self._files.move(temporary, path)
        except BaseException:
            self.remove(temporary)
            raise

    def _copy(self, source: Path, path: str) -> None:
        """Copy a local file. Closing the stream completes the file even after an error, so an incomplete one is removed."""
        try:
            with open(source, "rb") as file, self._files.open_output_stream(path) as stream:
                shutil.copyfileobj(file, stream, CHUNK)
        except BaseException:
            self.remove(path)
            raise

    def remove(self, path: str) -> None:
        """Remove a file. Failure is ignored."""
        with contextlib.suppress(OSError):  # it must not hide the first error
            self._files.delete_file(path)

    def _relative(self, path: str) -> str:
        return path[len(self.root.rstrip("/")) :].lstrip("/")


@cache
def store_at(address: str) -> Store:
    """The store at an address. Each process opens it once."""
    return Store(address)


def _opened(address: str) -> "tuple[FileSystem, str]":
    """The file system of an address, and the path in it."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    tried: list[Any] = []
    for text in (address, f"fsspec+{address}"):
        try:
            return FileSystem.from_uri(text)
        except (ArrowException, ImportError, OSError, ValueError) as error:
            tried.append(error)
    reason = " ".join(str(tried[0]).split())
    raise UsageError(
        f"{address}: expected an address such as s3://bucket/folder, got one that cannot be opened ({reason}); "
        "fsspec's file systems need their package, s3fs for example"
    )
