"""Weight files of Core ML packages (`weight.bin`), memory-mapped: data is read only when it is used.

A file starts with 64 bytes: the number of blobs and the version 2, as uint32. An offset in the program points at 64
bytes of metadata: the mark 0xDEADBEEF and the element type as uint32; then the size in bytes, the position of the
data and the bits of padding at its end as uint64. Everything is little-endian and aligned to 64 bytes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np

from export.mil.package.tensor import DTYPES, PackageError, TensorType, packed_bytes, unpack

_HEADER: Final = struct.Struct("<II")
_METADATA: Final = struct.Struct("<IIQQQ")
# Mark at the start of a blob's metadata.
_MARK: Final = 0xDEADBEEF
# Version of the layout, from the file's header.
_VERSION: Final = 2
# Bytes of the header with its filling, the least of a file.
_LEAST_BYTES: Final = 64


class WeightFile:
    """An open weight file. Reading a blob copies it only if it must be unpacked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise PackageError(
                f"{path}: expected the weights of the program, got nothing; copy the whole package"
            )
        if path.stat().st_size < _LEAST_BYTES:
            raise PackageError(
                f"{path}: expected a weight file, got {path.stat().st_size} bytes; convert again"
            )
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        _, version = _HEADER.unpack(self._bytes[: _HEADER.size].tobytes())
        if version != _VERSION:
            raise PackageError(
                f"{path}: expected a weight file of version {_VERSION}, got {version}; convert again"
            )

    def check(self, offset: int, type: TensorType) -> int:
        """Size in bytes of the blob whose metadata is at offset. Raises PackageError if it is not what the program declares."""
        return self._locate(offset, type)[1]

    def read(self, offset: int, type: TensorType) -> np.ndarray:
        """The blob as an array of its declared shape. It is read-only if it refers to the file's own bytes."""
        start, size = self._locate(offset, type)
        content = np.asarray(self._bytes[start : start + size])
        return unpack(content, DTYPES[type.dtype], type.count).reshape(type.known)

    def _locate(self, offset: int, type: TensorType) -> tuple[int, int]:
        if not 0 <= offset <= len(self._bytes) - _METADATA.size:
            raise self._damaged(
                offset, f"metadata of {type} inside the file's {len(self._bytes)} bytes", "nothing"
            )
        mark, code, size, start, _ = _METADATA.unpack(self._bytes[offset : offset + _METADATA.size].tobytes())
        if mark != _MARK:
            raise self._damaged(offset, f"the mark {_MARK:#x}", f"{mark:#x}")
        dtype = DTYPES[type.dtype]
        if code != dtype.blob_code:
            raise self._damaged(offset, f"element type {dtype.blob_code} ({type.dtype})", str(code))
        if size != packed_bytes(dtype, type.count):
            raise self._damaged(offset, f"{packed_bytes(dtype, type.count)} bytes for {type}", str(size))
        if start + size > len(self._bytes):
            raise self._damaged(
                offset, f"data up to byte {start + size}", f"a file of {len(self._bytes)} bytes"
            )
        return start, size

    def _damaged(self, offset: int, expected: str, got: str) -> PackageError:
        return PackageError(
            f"{self.path}: blob at {offset}: expected {expected}, got {got}; the file is damaged or belongs to another "
            "package: convert again"
        )
