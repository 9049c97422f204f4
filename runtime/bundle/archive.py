"""Reading the files of a bundle out of a .zip that a stranger may have made. Nothing is extracted to the disk.

The whole archive is refused if one of its entries cannot come from zipping a bundle folder: a name that leads out of the folder, a
link, a repeated name, a password, an unusual compression, or a size that is implausible for its packed bytes.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Final

from ..checks import shortened
from ..errors import BundleError
from .entries import check_size, open_plain

# Entries, folders included. The built-in bundle has fewer than 50.
MAX_ENTRIES: Final = 1000
# Bytes of the list of entries, which is read whole before an entry can be checked.
MAX_DIRECTORY_BYTES: Final = 1 << 20
# Unpacked over packed bytes of an entry. Weights reach about 2, descriptions of Core ML programs about 10.
MAX_RATIO: Final = 100
# Bytes that an entry may unpack to whatever its ratio.
SMALL_BYTES: Final = 16 << 20
# Other methods are refused: unpacking LZMA may take 4 GB.
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Kinds of files. 0: packed on a system without Unix modes.
_KINDS: Final = (0, stat.S_IFREG, stat.S_IFDIR)
# A bit of an entry's flags.
_ENCRYPTED: Final = 0x1
# Exceptions of Python's zipfile on a damaged archive.
_FAULTS: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError,
    LookupError, OverflowError, MemoryError,
)  # fmt: skip


class Archive:
    """A .zip with one bundle, at its top or in one folder. marker: the file that shows which. Keeps no file open."""

    def __init__(self, path: Path, marker: str) -> None:
        self.path: Path = path
        self.marker: str = marker

    def read(self, name: str, expected: int | None) -> bytes:
        """The file of that name in the bundle. expected: its size in bytes. None: at most that of a manifest."""
        try:
            with _ListedFile(open_plain(self.path)) as file, zipfile.ZipFile(file) as archive:
                file.listed = True
                entry = self._find(archive, name, file.seek(0, io.SEEK_END))
                check_size(f"{self.path}: {name}", expected, entry.file_size)
                with archive.open(entry) as stream:
                    content = stream.read(entry.file_size + 1)
        except _FAULTS as error:
            raise BundleError(
                f"{self.path}: expected a bundle as .zip, got something else ({shortened(str(error))}); get the bundle again"
            ) from error
        check_size(f"{self.path}: {name}", expected, len(content))
        return content

    def _find(self, archive: zipfile.ZipFile, name: str, size: int) -> zipfile.ZipInfo:
        """The entry of a plain name, after all entries were checked. size: of the whole archive."""
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise self._error(f"at most {MAX_ENTRIES} entries", str(len(entries)))
        for entry in entries:
            self._check(entry, size)
        for path, count in Counter(entry.filename for entry in entries).items():
            if count > 1:
                raise self._error(f"one entry {shortened(path)}", str(count))
        found = {entry.filename: entry for entry in entries}
        tops = [path.removesuffix(self.marker) for path in found if _holds(path, self.marker)]
        if len(tops) != 1:
            raise BundleError(
                f"{self.path}: expected one {self.marker} at the top or in one folder, got {len(tops)}; zip one bundle folder"
            )
        if tops[0] + name not in found:
            raise self._error(f"the entry {shortened(tops[0] + name)}", "none")
        return found[tops[0] + name]

    def _check(self, entry: zipfile.ZipInfo, size: int) -> None:
        shown = shortened(entry.orig_filename)
        if _climbs(entry.orig_filename):
            raise self._error("names inside the bundle", f"the entry {shown}")
        if stat.S_IFMT(entry.external_attr >> 16) not in _KINDS:
            raise self._error("plain files and folders", f"the entry {shown}, a link or a device")
        if entry.flag_bits & _ENCRYPTED:
            raise self._error("files without a password", f"the entry {shown} with one")
        if entry.compress_type not in _METHODS:
            raise self._error(
                "entries stored or deflated", f"{shown} with compression method {entry.compress_type}"
            )
        packed = min(entry.compress_size, size)
        if entry.file_size > max(SMALL_BYTES, MAX_RATIO * packed):
            raise self._error(
                f"at most {MAX_RATIO} times the packed size",
                f"{shown} of {entry.file_size} bytes from {packed}",
            )

    def _error(self, expected: str, got: str) -> BundleError:
        return BundleError(f"{self.path}: expected {expected}, got {got}; get the bundle again")


class _ListedFile(io.BufferedReader):
    """An open file that gives only small pieces until `listed` is set, so that the list of entries cannot fill the memory."""

    listed = False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.listed:
            here = self.tell()
            rest = self.seek(0, io.SEEK_END) - here
            self.seek(here)
            if (rest if size is None or size < 0 else min(size, rest)) > MAX_DIRECTORY_BYTES:
                raise zipfile.BadZipFile(f"a list of entries of more than {MAX_DIRECTORY_BYTES} bytes")
        return super().read(size)


def _climbs(path: str) -> bool:
    """Whether a zip path may lead out of its folder on some system."""
    parts = path.removesuffix("/").split("/")
    return "\\" in path or "\0" in path or path[1:2] == ":" or ".." in parts or "" in parts


def _holds(path: str, name: str) -> bool:
    """Whether a zip path is name itself or name inside one folder."""
    parts = path.split("/")
    return parts[-1] == name and len(parts) <= 2
