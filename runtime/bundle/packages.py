"""The Core ML packages of a bundle as its manifest names them: a package for each graph, or chunks that run one after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from ..checks import Plain, arguments, check_real, check_text, check_whole, fail
from .entries import DEVICE_NAME, MAX_WEIGHT_BYTES, GraphFile

# Files of an .mlpackage. No others are read or written.
PACKAGE_FILES: Final = (
    "Manifest.json",
    "Data/com.apple.CoreML/model.mlmodel",
    "Data/com.apple.CoreML/weights/weight.bin",
)
# LR pixels of a side of a package.
MAX_SIDE: Final = 65536
# Chunks of a graph.
MAX_CHUNKS: Final = 64
# Values that a chunk takes or gives.
MAX_VALUES: Final = 256
# Keys that only some packages have. They are left out of the manifest if empty.
PACKAGE_EXTRAS: Final = frozenset(("sizes", "inputs", "outputs"))
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,116}\.mlpackage")


@dataclass(frozen=True)
class PackageFile(GraphFile):
    """A file of a Core ML package, PACKAGE.mlpackage/PATH with one of the paths in `PACKAGE_FILES`."""

    MAX_BYTES: ClassVar[int] = MAX_WEIGHT_BYTES

    def _check_name(self) -> None:
        name, _, path = self.file.partition("/") if isinstance(self.file, str) else ("", "", "")
        if not _PACKAGE_NAME.fullmatch(name) or DEVICE_NAME.fullmatch(name) or path not in PACKAGE_FILES:
            raise fail("file", "NAME.mlpackage/ and one of " + ", ".join(PACKAGE_FILES), self.file)

    @property
    def package(self) -> str:
        return self.file.partition("/")[0]


@dataclass(frozen=True)
class Package(Plain):
    """A Core ML package: a folder inside the bundle, for fixed sizes of the LR image."""

    files: tuple[PackageFile, ...]
    """The files it has of `PACKAGE_FILES`. Only the weights may be missing."""
    height: int
    """Height of the LR image, in pixels."""
    width: int
    """Width of the LR image, in pixels."""
    target: str
    """The oldest system that runs it, such as iOS17."""
    floor_db: float
    """The least PSNR against torch."""
    images: bool = False
    """Whether it takes and gives pixel buffers instead of arrays."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Further heights and widths that it takes."""
    inputs: tuple[str, ...] = ()
    """Names of its inputs, if it is one of several chunks of a graph."""
    outputs: tuple[str, ...] = ()
    """Names of its outputs, if it is one of several chunks of a graph."""

    def __post_init__(self) -> None:
        files = self.files
        if not isinstance(files, tuple) or not files or not all(isinstance(f, PackageFile) for f in files):
            raise fail("package.files", "one or more files", files)
        if len({file.package for file in files}) > 1 or len({file.file for file in files}) < len(files):
            raise fail("package.files", "different files of one package", [file.file for file in files])
        missing = {f"{self.name}/{path}" for path in PACKAGE_FILES[:2]} - {file.file for file in files}
        if missing:
            raise fail("package.files", f"also {min(missing)}", [file.file for file in files])
        for size in self.every_size:
            if not isinstance(size, tuple) or len(size) != 2:
                raise fail(f"{self.name}: sizes", "pairs of height and width", size)
            for name, side in zip(("height", "width"), size, strict=True):
                check_whole(f"{self.name}: {name}", side, 1, MAX_SIDE)
        for name in ("inputs", "outputs"):
            names = getattr(self, name)
            if not isinstance(names, tuple) or len(names) > MAX_VALUES or len(set(names)) < len(names):
                raise fail(f"{self.name}: {name}", f"at most {MAX_VALUES} different names", names)
            for text in names:
                check_text(f"{self.name}: {name}", text)
        check_real(f"{self.name}: floor_db", self.floor_db)
        if not isinstance(self.images, bool):
            raise fail(f"{self.name}: images", "true or false", self.images)
        if not isinstance(self.target, str) or not re.fullmatch(r"(iOS|macOS)\d{2}", self.target):
            raise fail(f"{self.name}: target", "a system such as iOS17", self.target)

    @property
    def name(self) -> str:
        return self.files[0].package

    @property
    def every_size(self) -> tuple[tuple[int, int], ...]:
        """All heights and widths of the LR image that it takes."""
        return ((self.height, self.width), *self.sizes)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return {key: value for key, value in values.items() if value or key not in PACKAGE_EXTRAS}

    @classmethod
    def from_dict(cls, data: object, where: str = "package") -> Self:
        values = arguments(cls, where, data)
        for key in PACKAGE_EXTRAS & values.keys():
            if not isinstance(values[key], list):
                raise fail(f"{where}.{key}", "a list", values[key])
            values[key] = tuple(tuple(x) if isinstance(x, list) else x for x in values[key])
        if not isinstance(values["files"], list):
            raise fail(f"{where}.files", "a list of files", values["files"])
        values["files"] = tuple(
            PackageFile.from_dict(file, f"{where}.files[{i}]") for i, file in enumerate(values["files"])
        )
        return cls(**values)


@dataclass(frozen=True)
class PackageList:
    """The Core ML packages of one graph: one, or chunks that run one after the other.

    A chunk takes inputs of the graph and outputs of the chunks before it; the last gives the graph's outputs."""

    packages: tuple[Package, ...]
    """The packages in the order in which they run, at most `MAX_CHUNKS`."""

    def __post_init__(self) -> None:
        found = self.packages
        if not isinstance(found, tuple) or not 1 <= len(found) <= MAX_CHUNKS:
            raise fail("packages", f"1 to {MAX_CHUNKS} packages", found)
        if not all(isinstance(package, Package) for package in found):
            raise fail("packages", "packages", found)
        names = [package.name for package in found]
        if len(set(names)) < len(names):
            raise fail("packages", "different packages", names)
        if len({(p.every_size, p.target, p.images) for p in found}) > 1:
            raise fail(f"{self.name}", "the same sizes, system and kind in every chunk", names)
        for package in found:
            if bool(package.inputs and package.outputs) != (len(found) > 1):
                raise fail(package.name, "inputs and outputs in chunks, and in nothing else", package.inputs)

    def check_flow(self, where: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """BundleError unless every chunk's inputs are available, and the graph's outputs are available at the end."""
        known = set(inputs)
        for package in self.packages if len(self.packages) > 1 else ():
            if not known.issuperset(package.inputs):
                raise fail(f"{where}: {package.name}: inputs", f"some of {sorted(known)}", package.inputs)
            known |= set(package.outputs)
        if len(self.packages) > 1 and not known.issuperset(outputs):
            raise fail(
                f"{where}: {self.packages[-1].name}: outputs", f"also {sorted(outputs)}", sorted(known)
            )

    # Properties that all chunks share.
    @property
    def name(self) -> str:
        return self.packages[0].name

    @property
    def height(self) -> int:
        return self.packages[0].height

    @property
    def width(self) -> int:
        return self.packages[0].width

    @property
    def every_size(self) -> tuple[tuple[int, int], ...]:
        return self.packages[0].every_size

    @property
    def target(self) -> str:
        return self.packages[0].target

    @property
    def images(self) -> bool:
        return self.packages[0].images

    @property
    def floor_db(self) -> float:
        return min(package.floor_db for package in self.packages)

    @property
    def files(self) -> tuple[PackageFile, ...]:
        return tuple(file for package in self.packages for file in package.files)

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def needs_newest(self) -> bool:
        """Whether readers of format 1 do not know it: several chunks, or several sizes."""
        return len(self.packages) > 1 or len(self.every_size) > 1

    def to_json(self) -> dict[str, Any] | list[dict[str, Any]]:
        """An object for one package, a list for chunks."""
        found = [package.to_dict() for package in self.packages]
        return found[0] if len(found) == 1 else found

    @classmethod
    def from_dict(cls, data: object, where: str = "package") -> Self:
        if not isinstance(data, list):
            return cls((Package.from_dict(data, where),))
        return cls(tuple(Package.from_dict(item, f"{where}[{i}]") for i, item in enumerate(data)))
