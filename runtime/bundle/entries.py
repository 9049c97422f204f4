"""The files of a bundle as its manifest names them: plain files, graphs with weights beside them, and the probe's pictures."""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from ..checks import Plain, arguments, check_mapping, check_real, check_whole, fail
from ..errors import BundleError

MANIFEST_NAME: Final = "manifest.json"
# Bytes. That of the built-in bundle has 60 kB.
MAX_MANIFEST_BYTES: Final = 1 << 20
# Bytes. Every file is read whole into memory, and its hash is computed there.
MAX_WEIGHT_BYTES: Final = 1 << 34
ROLES: Final = ("encoder", "generator")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Names that mean a device on Windows, in every folder.
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class GraphFile(Plain):
    """One file of the bundle."""

    file: str
    """Plain name, without folders."""
    bytes: int
    """Size of the file."""
    sha256: str
    """64 lower-case hex digits."""

    MAX_BYTES: ClassVar[int] = 2**31 - 1
    """The limit of a protobuf."""

    def __post_init__(self) -> None:
        self._check_name()
        check_whole(f"{self.file}: bytes", self.bytes, 1, self.MAX_BYTES)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise fail(f"{self.file}: sha256", "64 lower-case hex digits", self.sha256)

    def _check_name(self) -> None:
        plain = isinstance(self.file, str) and _PLAIN_NAME.fullmatch(self.file)
        # Windows ends a name before its last dots, and macOS takes MANIFEST.JSON for manifest.json.
        if not plain or self.file.endswith(".") or self.file.lower() == MANIFEST_NAME:
            raise fail("file", "a plain file name without folders", self.file)
        if DEVICE_NAME.fullmatch(self.file):
            raise fail("file", "a name that is no device of Windows", self.file)

    @classmethod
    def from_dict(cls, data: object, where: str = "file") -> Self:
        return cls(**arguments(cls, where, data))


@dataclass(frozen=True)
class WeightFile(GraphFile):
    """The weights of a graph too large to hold them itself (ONNX external data)."""

    MAX_BYTES: ClassVar[int] = MAX_WEIGHT_BYTES


@dataclass(frozen=True)
class Graph(GraphFile):
    """An ONNX graph."""

    data: WeightFile | None = None
    """The file with its weights. None: they are inside the graph."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and not isinstance(self.data, WeightFile):
            raise fail(f"{self.file}: data", "a file or nothing", self.data)

    @property
    def total_bytes(self) -> int:
        return self.bytes + (self.data.bytes if self.data else 0)

    @property
    def files(self) -> tuple[GraphFile, ...]:
        """The graph without its data, and the data if there is any."""
        return (GraphFile(self.file, self.bytes, self.sha256), *((self.data,) if self.data else ()))

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        return values if self.data else {key: values[key] for key in values if key != "data"}

    @classmethod
    def from_dict(cls, data: object, where: str = "graph") -> Self:
        values = arguments(cls, where, data)
        if values.get("data") is not None:
            values["data"] = WeightFile.from_dict(values["data"], f"{where}.data")
        return cls(**values)


@dataclass(frozen=True)
class Probe(Plain):
    """A small test picture, to see whether a device computes the model rightly. Both pictures are 8-bit RGB PNG files."""

    input: GraphFile
    """The LR picture."""
    output: GraphFile
    """The fp32 model's output for the input."""
    seed: int
    """Seed of the noise, 0 to 2**64 - 1. The output is its sample 0."""
    floor_db: dict[str, float]
    """The least PSNR against the output, by precision."""

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            if not isinstance(getattr(self, name), GraphFile):
                raise fail(f"probe.{name}", "a file", getattr(self, name))
        check_whole("probe.seed", self.seed, 0, 2**64 - 1)
        for precision, floor in check_mapping("probe.floor_db", self.floor_db).items():
            check_real(f"probe.floor_db.{precision}", floor)

    @classmethod
    def from_dict(cls, data: object, where: str = "probe") -> Self:
        values = arguments(cls, where, data)
        for name in ("input", "output"):
            values[name] = GraphFile.from_dict(values[name], f"{where}.{name}")
        return cls(**values)


def open_plain(path: Path) -> io.FileIO:
    """A plain file, opened to read. BundleError for a folder, pipe or device. Never waits for one."""
    file = io.FileIO(path, opener=_opened) if _is_plain(os.stat(path)) else None
    if file is not None and _is_plain(os.fstat(file.fileno())):  # again, in case it was replaced in between
        return file
    if file is not None:
        file.close()
    raise BundleError(f"{path}: expected a plain file, got a folder, pipe or device; get the bundle again")


def check_size(what: str, expected: int | None, got: int) -> None:
    """BundleError unless a file has the expected size. None: at most MAX_MANIFEST_BYTES."""
    if got > MAX_MANIFEST_BYTES if expected is None else got != expected:
        wanted = f"at most {MAX_MANIFEST_BYTES}" if expected is None else str(expected)
        raise BundleError(f"{what}: expected {wanted} bytes, got {got}; get the bundle again")


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # else a pipe waits for its writer


def _is_plain(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def read_pairs(kind: Any, where: str, data: object) -> dict[str, dict[str, Any]]:
    """{precision or variant: {role: entry}} of a manifest. Each entry is read by kind.from_dict."""
    return {
        name: {
            role: kind.from_dict(entry, f"{where}.{name}.{role}")
            for role, entry in check_mapping(f"{where}.{name}", pair).items()
        }
        for name, pair in check_mapping(where, data).items()
    }


def check_pairs(kind: Any, where: str, data: object) -> dict[str, dict[str, Any]]:
    """The result of `read_pairs`. BundleError unless it has exactly both roles everywhere."""
    pairs = check_mapping(where, data)
    for name, pair in pairs.items():
        if set(check_mapping(f"{where}.{name}", pair)) != set(ROLES):
            raise fail(f"{where}.{name}", "exactly the keys encoder and generator", sorted(pair))
        if not all(isinstance(entry, kind) for entry in pair.values()):
            raise fail(f"{where}.{name}", "two files", pair)
    return pairs
