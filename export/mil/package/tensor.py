"""The tensor types of MIL, Core ML's model language, and their layout in memory and files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from runtime.errors import GdposrError


class PackageError(GdposrError):
    """A Core ML package is missing, damaged, or not supported."""


class EvaluationError(GdposrError):
    """An operation cannot be evaluated, or its result differs from the program's declaration."""


@dataclass(frozen=True)
class Dtype:
    """An element type."""

    name: str
    """Our name, such as "fp16" or "uint4"."""
    bits: int
    """Width in files. Types narrower than a byte are unpacked to one byte per element."""
    array: np.dtype
    """numpy type after unpacking."""
    compute: torch.dtype
    """torch type in the evaluator: wide enough for every value; for floats the precision of the arithmetic."""
    blob_code: int | None = None
    """Code in the metadata of a weight file; None if never stored there."""

    @property
    def is_float(self) -> bool:
        return self.compute is torch.float32

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type."""
        if self.name.startswith("int"):
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1


_TABLE: Final = (
    Dtype("fp16", 16, np.dtype("<f2"), torch.float32, 1),
    Dtype("fp32", 32, np.dtype("<f4"), torch.float32, 2),
    Dtype("fp64", 64, np.dtype("<f8"), torch.float32),
    Dtype("bool", 8, np.dtype("?"), torch.bool),
    Dtype("int4", 4, np.dtype("i1"), torch.int8, 8),
    Dtype("int8", 8, np.dtype("i1"), torch.int8, 4),
    Dtype("int16", 16, np.dtype("<i2"), torch.int16, 6),
    Dtype("int32", 32, np.dtype("<i4"), torch.int32, 14),
    Dtype("int64", 64, np.dtype("<i8"), torch.int64),
    Dtype("uint1", 1, np.dtype("u1"), torch.uint8, 9),
    Dtype("uint2", 2, np.dtype("u1"), torch.uint8, 10),
    Dtype("uint3", 3, np.dtype("u1"), torch.uint8, 12),
    Dtype("uint4", 4, np.dtype("u1"), torch.uint8, 11),
    Dtype("uint6", 6, np.dtype("u1"), torch.uint8, 13),
    Dtype("uint8", 8, np.dtype("u1"), torch.uint8, 3),
    Dtype("uint16", 16, np.dtype("<u2"), torch.int32, 7),
    Dtype("uint32", 32, np.dtype("<u4"), torch.int64, 15),
)
DTYPES: Final = {dtype.name: dtype for dtype in _TABLE}
STRING: Final = "string"
# Names in the MIL protobuf that differ from ours only in the spelling of float.
_SPELLING: Final = {"FLOAT16": "fp16", "FLOAT32": "fp32", "FLOAT64": "fp64", "STRING": STRING}


def dtype_name(proto_name: str) -> str:
    """Our name of a MIL DataType: FLOAT16 -> fp16, UINT4 -> uint4. Raises PackageError for an unsupported type."""
    name = _SPELLING.get(proto_name, proto_name.lower())
    if name != STRING and name not in DTYPES:
        raise PackageError(
            f"element type {proto_name}: expected one of {', '.join(DTYPES)}; convert with another precision"
        )
    return name


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a value."""

    dtype: str
    """Key of `DTYPES`, or "string"."""
    shape: tuple[int | None, ...]
    """Size of each dimension; None if it is known at run time only."""

    @property
    def count(self) -> int:
        """Number of elements. The shape must be fully known."""
        return math.prod(self.known)

    @property
    def known(self) -> tuple[int, ...]:
        """The shape if every dimension is known, else PackageError."""
        if None in self.shape:
            raise PackageError(f"expected a constant of known shape, got {self}; convert the model again")
        return tuple(size for size in self.shape if size is not None)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a concrete shape matches this type."""
        pairs = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(a in (None, b) for a, b in pairs)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"


def packed_bytes(dtype: Dtype, count: int) -> int:
    """Bytes of `count` elements in a file."""
    return -(-dtype.bits * count // 8)


def unpack(content: np.ndarray, dtype: Dtype, count: int) -> np.ndarray:
    """Elements from their bytes: (packed_bytes,) uint8 -> (count,) of the type's array.

    Elements narrower than a byte are packed from the least significant bit on, across byte borders."""
    if dtype.bits >= 8:
        return content.view(dtype.array)
    if dtype.bits == 4:  # the common case, without expanding each bit to a byte
        halves = np.empty((content.size, 2), np.uint8)
        np.bitwise_and(content, 15, out=halves[:, 0])
        np.right_shift(content, 4, out=halves[:, 1])
        values = halves.reshape(-1)[:count]
    else:
        bits = np.unpackbits(content, count=count * dtype.bits, bitorder="little").reshape(count, dtype.bits)
        values = (bits << np.arange(dtype.bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not dtype.name.startswith("int"):
        return values
    signed = values.view(np.int8)
    return np.where(signed >= 1 << (dtype.bits - 1), signed - np.int8(1 << dtype.bits), signed)


def compute_tensor(array: np.ndarray, dtype: Dtype) -> torch.Tensor:
    """An array as the evaluator's tensor, in its own memory."""
    if array.dtype == np.uint16 or array.dtype == np.uint32:
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, order="C")).to(dtype.compute)


def round_to(value: torch.Tensor, dtype: Dtype) -> torch.Tensor:
    """A result as the type can hold it.

    Floats round to nearest, and beyond the range to infinity. Integers are truncated. Raises EvaluationError for an
    integer outside the range, on which devices disagree."""
    if dtype.is_float:
        value = value.float()
        return value.half().float() if dtype.name == "fp16" else value
    if dtype.name == "bool":
        return value.bool()
    low, high = dtype.limits
    if value.dtype not in (dtype.compute, torch.bool) and value.numel():
        least, most = (float(edge) for edge in torch.aminmax(value))
        if not (low - 1 < least and most < high + 1):  # in this form, NaN fails too
            raise EvaluationError(
                f"expected values of {dtype.name} in [{low}, {high}], got [{least:g}, {most:g}]"
            )
    return value.to(dtype.compute)
