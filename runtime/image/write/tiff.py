"""TIFF files written strip by strip, with 8 or 16 bits per channel: deflate, horizontal predictor, classic TIFF.

An EXIF block is a TIFF file without a picture, so the file begins with it: every offset in it, those inside maker
notes included, stays right. The strips follow, and at the end one directory that names both (TIFF 6.0, Sec. 2
and 14; Adobe's deflate is compression 8).

Not tifffile 2026.3: it writes no Exif directory. Not Pillow: it writes no 16-bit colour and no picture strip by strip.
"""

import os
import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..bands import Strips, block_rows, row_blocks, side_by_side
from ..exif import (
    EXIF_HEADER,
    LONG,
    ORIENTATION,
    RATIONAL,
    RESOLUTION_UNIT,
    SHORT,
    TIFF_TAGS,
    TYPE_BYTES,
    UNDEFINED,
    X_RESOLUTION,
    Y_RESOLUTION,
    Entry,
    byte_order,
    directory,
    is_sound,
    packed_directory,
)

LARGEST_FILE: Final = 2**32 - 1  # bytes; offsets have 32 bits
LEVEL: Final = 6
ICC_PROFILE: Final = 0x8773
XP_TAGS: Final = range(0x9C9B, 0x9CA0)  # title, comment, author, keywords, subject as Windows writes them
KEPT_TAGS: Final = frozenset(
    {*TIFF_TAGS, *XP_TAGS, 0x4746, 0x8769, 0x8825}
)  # also rating, Exif and GPS directories
_EMPTY_HEADER: Final = b"II*\0\0\0\0\0"


def write_tiff(
    stream: IO[bytes],
    pixels: NDArray[Any] | Strips,
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """pixels: (H, W) or (H, W, 1..4) uint8 or uint16. stream: at its beginning, and seekable.

    16-bit gray with alpha is written as RGBA with three equal channels: Pillow, for one, reads no other kind. The
    file must stay below LARGEST_FILE; `raw_bytes` tells beforehand.
    """
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if len(pixels.shape) == 3 else 1
    deep = pixels.dtype == np.uint16
    stored = 4 if deep and channels == 2 else channels
    body, described = _EMPTY_HEADER, list[Entry]()
    order: Literal["<", ">"] = "<"
    if exif is not None and is_sound(exif):
        body = exif.removeprefix(EXIF_HEADER)
        order = "<" if byte_order(body) == "<" else ">"
        entries = directory(body, struct.unpack_from(order + "I", body, 4)[0])[0]
        described = [entry for entry in entries if entry.tag in KEPT_TAGS]
    stream.write(body)
    rows = block_rows(width, stored * pixels.dtype.itemsize)

    def deflated(block: NDArray[Any]) -> bytes:
        picture = block[..., [0, 0, 0, 1]] if stored > channels else block
        return zlib.compress(_differences(picture, order), LEVEL)

    offsets: list[int] = []
    lengths: list[int] = []
    for strip in side_by_side(deflated, row_blocks(pixels, rows)):
        _align(stream)
        offsets.append(stream.tell())
        lengths.append(len(strip))
        stream.write(strip)

    tags = _Tags(stream, order)
    tags.numbers(0x0100, LONG, [width])
    tags.numbers(0x0101, LONG, [height])
    tags.numbers(0x0102, SHORT, [8 * pixels.dtype.itemsize] * stored)
    tags.numbers(0x0103, SHORT, [8])  # deflate
    tags.numbers(0x0106, SHORT, [2 if stored > 2 else 1])  # RGB, or gray with 0 as black
    tags.numbers(0x0111, LONG, offsets)
    tags.numbers(ORIENTATION, SHORT, [1])
    tags.numbers(0x0115, SHORT, [stored])
    tags.numbers(0x0116, LONG, [rows])
    tags.numbers(0x0117, LONG, lengths)
    tags.numbers(0x011C, SHORT, [1])  # channels side by side
    tags.numbers(0x013D, SHORT, [2])  # horizontal predictor
    if dpi is not None:
        for tag, value in ((X_RESOLUTION, dpi[0]), (Y_RESOLUTION, dpi[1])):
            tags.numbers(tag, RATIONAL, Fraction(value).limit_denominator(1000).as_integer_ratio())
        tags.numbers(RESOLUTION_UNIT, SHORT, [2])  # per inch
    if stored in (2, 4):
        tags.numbers(0x0152, SHORT, [2])  # alpha that the colours are not multiplied by
    if icc is not None:
        tags.bytes(ICC_PROFILE, UNDEFINED, icc)
    _align(stream)
    start = stream.tell()
    stream.write(packed_directory(order, [*tags.entries, *described]))
    stream.seek(4)
    stream.write(struct.pack(order + "I", start))
    stream.seek(0, os.SEEK_END)


def raw_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Most bytes that a file of such a picture may need for its pixels: deflate adds less than 1 in 1000."""
    channels = shape[2] if len(shape) == 3 else 1
    stored = 4 if dtype == np.uint16 and channels == 2 else channels
    size = shape[0] * shape[1] * stored * dtype.itemsize
    return size + size // 1000 + 32 * shape[0]


def _differences(block: NDArray[Any], order: Literal["<", ">"]) -> bytes:
    """(n, W, C) -> each value less the one to its left, modulo 2**bits, in the byte order of the file."""
    result = block.astype(block.dtype.newbyteorder(order))
    np.subtract(block[:, 1:], block[:, :-1], out=result[:, 1:])
    return result.tobytes()


def _align(stream: IO[bytes]) -> None:
    """TIFF wants values and directories on even offsets."""
    if stream.tell() % 2:
        stream.write(b"\0")


class _Tags:
    """Entries of the directory that is to be written; values too long for their entry go to the stream at once."""

    def __init__(self, stream: IO[bytes], order: str) -> None:
        self.entries: list[Entry] = []
        self._stream, self._order = stream, order

    def numbers(self, tag: int, kind: int, values: Iterable[int]) -> None:
        """SHORT, LONG, or RATIONAL as a numerator and a denominator."""
        numbers = list(values)
        self.bytes(
            tag, kind, struct.pack(f"{self._order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        )

    def bytes(self, tag: int, kind: int, value: bytes) -> None:
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            _align(self._stream)
            field = struct.pack(self._order + "I", self._stream.tell())
            self._stream.write(value)
        self.entries.append(Entry(tag, kind, len(value) // TYPE_BYTES[kind], field))
