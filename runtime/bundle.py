"""Reading a bundle: a folder NAME.gdposr/, or the same as one .zip. Nothing is trusted that its hash does not cover.

Files are read by the names of the manifest only, never extracted, and every byte handed out has been checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .errors import BundleError
from .files import MANIFEST_NAME, GraphFile
from .manifest import Manifest

DEFAULT_BUNDLE: Final = Path(__file__).parent / "bundles" / "pocket.gdposr"
MAX_MANIFEST_BYTES: Final = 1 << 20
_Reader = Callable[
    [str, int | None], bytes
]  # (name, expected size, None: up to MAX_MANIFEST_BYTES) -> content


class Bundle:
    """An opened bundle. Holds no open file: every read opens, checks and closes."""

    def __init__(self, path: Path, read: _Reader) -> None:
        self.path = path
        self._read = read
        content = read(MANIFEST_NAME, None)
        self.manifest = Manifest.from_dict(_parse(content, path))
        self.digest = hashlib.sha256(content).hexdigest()[:16]  # names this bundle in reports

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Bundle:
        """Open a bundle folder or .zip. None: the model that ships with the package."""
        place = DEFAULT_BUNDLE if path is None else Path(path)
        if place.is_dir():
            return cls(place, _folder_reader(place))
        if place.is_file():
            return cls(place, _zip_reader(place))
        remedy = "install the package again" if path is None else "check the path"
        raise BundleError(f"{place}: expected a bundle folder or .zip, came nothing; {remedy}")

    def read(self, graph_file: GraphFile) -> bytes:
        """The content of a file the manifest names, with size and SHA-256 checked."""
        content = self._read(graph_file.file, graph_file.bytes)
        if len(content) != graph_file.bytes:
            raise _wrong_size(graph_file.file, graph_file.bytes, len(content))
        digest = hashlib.sha256(content).hexdigest()
        if digest != graph_file.sha256:
            raise BundleError(
                f"{self.path}: {graph_file.file}: expected sha256 {graph_file.sha256[:16]}..., came {digest[:16]}...; "
                "the file was altered: get the bundle again"
            )
        return content

    def verify(self) -> None:
        """Check every file the manifest names; BundleError at the first that differs."""
        for file in self.manifest.files:
            self.read(file)

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, name={self.manifest.name!r}, digest={self.digest!r})"


def _parse(content: bytes, path: Path) -> object:
    """The manifest's JSON; repeated keys and NaN, which JSON readers treat differently, are refused."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            raise ValueError("a key is repeated")
        return result

    def constant(name: str) -> object:
        raise ValueError(f"{name} is not a number")

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path}: {MANIFEST_NAME}: expected UTF-8 JSON, came something else ({error}); export it again"
        ) from error


def _wrong_size(name: str, expected: int | None, came: int) -> BundleError:
    wanted = f"at most {MAX_MANIFEST_BYTES}" if expected is None else str(expected)
    return BundleError(f"{name}: expected {wanted} bytes, came {came}; get the bundle again")


def _check_size(name: str, expected: int | None, came: int) -> None:
    if came > MAX_MANIFEST_BYTES if expected is None else came != expected:
        raise _wrong_size(name, expected, came)


def _folder_reader(folder: Path) -> _Reader:
    def read(name: str, expected: int | None) -> bytes:
        path = folder / name
        try:
            if path.resolve(strict=True).parent != (folder.resolve(strict=True) / name).parent:
                raise BundleError(
                    f"{path}: expected a file of this folder, came a link out of it; copy the file here"
                )
            if not stat.S_ISREG(path.stat().st_mode):
                raise BundleError(
                    f"{path}: expected a plain file, came a folder or device; get the bundle again"
                )
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                _check_size(str(path), expected, size)
                return file.read(size + 1)  # one more, so that a file that grows meanwhile is noticed
        except FileNotFoundError:
            remedy = "is this a bundle folder?" if name == MANIFEST_NAME else "get the bundle again"
            raise BundleError(f"{folder}: expected the file {name}, came none; {remedy}") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, on Python 3.11 and 3.12
            raise BundleError(f"{path}: expected a readable file, came: {error}; check it") from error

    return read


def _zip_reader(archive: Path) -> _Reader:
    def read(name: str, expected: int | None) -> bytes:
        try:
            with zipfile.ZipFile(archive) as bundle:
                entry = _find(bundle, name)
                _check_size(f"{archive}: {entry.filename}", expected, entry.file_size)
                with bundle.open(entry) as file:
                    content = file.read(entry.file_size + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
        ) as error:
            # RuntimeError: an encrypted entry; NotImplementedError: an unknown compression
            raise BundleError(
                f"{archive}: expected a bundle as .zip, came something else ({error}); get the bundle again"
            ) from error
        _check_size(f"{archive}: {name}", expected, len(content))
        return content

    def _find(bundle: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
        """The entry of a plain name, at the top or in the one folder that holds the manifest."""
        manifests = [e for e in bundle.infolist() if _at(e.filename, MANIFEST_NAME)]
        if len(manifests) != 1:
            raise BundleError(
                f"{archive}: expected one {MANIFEST_NAME} at the top or in one folder, came {len(manifests)}; "
                "zip one bundle folder"
            )
        wanted = manifests[0].filename.removesuffix(MANIFEST_NAME) + name
        entries = [e for e in bundle.infolist() if e.filename == wanted]
        if len(entries) != 1:
            raise BundleError(
                f"{archive}: expected one entry {wanted}, came {len(entries)}; get the bundle again"
            )
        return entries[0]

    return read


def _at(path: str, name: str) -> bool:
    """Whether a zip path is name itself or name inside one folder."""
    parts = path.split("/")
    return parts[-1] == name and len(parts) <= 2 and ".." not in parts
