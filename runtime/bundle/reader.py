"""Reading a bundle: a folder NAME.gdposr/, or the same as one .zip.

Only the files that the manifest names are read. Nothing is extracted, and every byte handed out has been checked against its hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..checks import check_json
from ..errors import BundleError
from .archive import Archive
from .entries import MANIFEST_NAME, Graph, GraphFile, check_size, open_plain
from .external_data import check_external
from .manifest import Manifest

DEFAULT_BUNDLE: Final = Path(__file__).parents[1] / "bundles" / "pocket.gdposr"
# The most LR pixels a side that the smallest picture of a model may have. At scale 4 its output is 192 MB of float32.
MAX_LEAST_SIDE: Final = 1024
# The most context, in sides of a tile. With that, up to 81 times the pixels of the photo are computed.
MAX_CONTEXT: Final = 4
# Reads a file by its name and its size in bytes. None: at most that of a manifest.
_Reader = Callable[[str, int | None], bytes]


class Bundle:
    """An opened bundle. Keeps no file open: every read opens, checks and closes one."""

    def __init__(self, path: Path, read: _Reader) -> None:
        self.path: Path = path
        self._read = read
        content = read(MANIFEST_NAME, None)
        # As they were read, for passing the bundle on.
        self.manifest_bytes: bytes = content
        self.manifest: Manifest = Manifest.from_dict(_parse(content, path))
        _check_demand(path, self.manifest)
        # Names this bundle in reports.
        self.digest: str = hashlib.sha256(content).hexdigest()[:16]

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Bundle:
        """Open a bundle folder or .zip. None: the model that ships with the package."""
        place = DEFAULT_BUNDLE if path is None else Path(path)
        if place.is_dir():
            return cls(place, _folder_reader(place))
        if place.is_file():
            return cls(place, Archive(place, MANIFEST_NAME).read)
        remedy = "install the package again" if path is None else "check the path"
        got = "a pipe or device" if place.exists() else "nothing"
        raise BundleError(f"{place}: expected a bundle folder or .zip, got {got}; {remedy}")

    def read(self, graph_file: GraphFile) -> bytes:
        """The content of a file the manifest names, with size and SHA-256 checked."""
        content = self._read(graph_file.file, graph_file.bytes)
        check_size(f"{self.path}: {graph_file.file}", graph_file.bytes, len(content))
        digest = hashlib.sha256(content).hexdigest()
        if digest != graph_file.sha256:
            raise BundleError(
                f"{self.path}: {graph_file.file}: expected sha256 {graph_file.sha256[:16]}..., got {digest[:16]}...; "
                "the file was altered: get the bundle again"
            )
        return content

    def graph_bytes(self, graph: Graph) -> bytes:
        """The content of an ONNX graph, checked as by `read`. It names no other file than the manifest gives it for its weights."""
        content = self.read(graph)
        check_external(f"{self.path}: {graph.file}", content, graph.data)
        return content

    def verify(self) -> None:
        """Check every file that the manifest names. BundleError at the first that was altered or names another file."""
        graphs = {graph for pair in self.manifest.graphs.values() for graph in pair.values()}
        for graph in sorted(graphs, key=lambda graph: graph.file):
            self.graph_bytes(graph)
        seen = {graph.files[0] for graph in graphs}
        for file in self.manifest.files:
            if file not in seen:
                self.read(file)

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, name={self.manifest.name!r}, digest={self.digest!r})"


def _parse(content: bytes, path: Path) -> object:
    """The manifest's JSON. Repeated keys and NaN are refused, because JSON readers differ on them. So is what `check_json` refuses."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            raise ValueError("a key is repeated")
        return result

    def constant(name: str) -> object:
        raise ValueError(f"{name} is not a number")

    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
        check_json(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{path}: {MANIFEST_NAME}: expected UTF-8 JSON, got something else ({error}); export it again"
        ) from error
    return data


def _check_demand(path: Path, manifest: Manifest) -> None:
    """BundleError if, because of its minimum or context, the model would compute far more pixels than a picture has."""
    rule = manifest.size
    least = -(-rule.minimum // rule.multiple_of) * rule.multiple_of
    if least > MAX_LEAST_SIDE:
        raise BundleError(
            f"{path}: expected a model that takes pictures of {MAX_LEAST_SIDE} pixels a side, got one that takes none below "
            f"{least}; export the bundle again with a smaller minimum"
        )
    if rule.context > MAX_CONTEXT * rule.tile:
        raise BundleError(
            f"{path}: expected a context of at most {MAX_CONTEXT} times the tile of {rule.tile}, got {rule.context}; "
            "export the bundle again with a larger tile"
        )


def _folder_reader(folder: Path) -> _Reader:
    def read(name: str, expected: int | None) -> bytes:
        path = folder / name
        try:
            if path.resolve(strict=True).parent != (folder.resolve(strict=True) / name).parent:
                raise BundleError(
                    f"{path}: expected a file of this folder, got a link out of it; copy the file here"
                )
            with open_plain(path) as file:
                size = os.fstat(file.fileno()).st_size
                check_size(str(path), expected, size)
                # One byte more, to notice a file that grows.
                return io.BufferedReader(file).read(size + 1)
        except FileNotFoundError:
            remedy = "is this a bundle folder?" if name == MANIFEST_NAME else "get the bundle again"
            raise BundleError(f"{folder}: expected the file {name}, got none; {remedy}") from None
        except MemoryError:
            raise BundleError(
                f"{path}: expected a file that fits into memory, got a larger one; use a machine with more"
            ) from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, on Python 3.11 and 3.12
            raise BundleError(f"{path}: expected a readable file, got: {error}; check it") from error

    return read
