"""TIFF files, written strip by strip, with 8 or 16 bits per channel: deflate, horizontal predictor, classic TIFF.

An EXIF block is a TIFF file without a picture. The file begins with it, so that all its offsets stay right, also those inside maker
notes. The strips follow, and at the end a directory that names both (TIFF 6.0, Sec. 2 and 14; Adobe's deflate is compression 8).

Not tifffile 2026.3: it writes no Exif directory. Not Pillow: it writes no 16-bit colour, and no picture strip by strip.
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
    BYTE,
    EXIF_HEADER,
    IPTC,
    LONG,
    ORIENTATION,
    RATIONAL,
    RESOLUTION_UNIT,
    SHORT,
    TIFF_TAGS,
    TYPE_BYTES,
    UNDEFINED,
    X_RESOLUTION,
    XMP,
    Y_RESOLUTION,
    Entry,
    byte_order,
    directory,
    is_sound,
    packed_directory,
)

# Most bytes of a file. Offsets have 32 bits.
LARGEST_FILE: Final = 2**32 - 1
# Level of deflate: zlib's default.
LEVEL: Final = 6
# Tag of the colour profile (ICC.1, annex B).
ICC_PROFILE: Final = 0x8773
# Title, comment, author, keywords and subject, as Windows writes them.
XP_TAGS: Final = range(0x9C9B, 0x9CA0)
# The last three: rating, Exif and GPS directories.
KEPT_TAGS: Final = frozenset({*TIFF_TAGS, *XP_TAGS, 0x4746, 0x8769, 0x8825})
_EMPTY_HEADER: Final = b"II*\0\0\0\0\0"


def write_tiff(
    stream: IO[bytes],
    pixels: NDArray[Any] | Strips,
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    xmp: bytes | None = None,
    iptc: bytes | None = None,
) -> None:
    """Write a TIFF to a stream.

    stream: at its beginning, and seekable.
    pixels: (H, W) or (H, W, 1..4) uint8 or uint16. 16-bit gray with alpha is written as RGBA with three equal channels, because Pillow
        and others read no other kind.
    icc: a colour profile.
    exif: an EXIF block.
    dpi: horizontal and vertical resolution.
    xmp: an XMP packet.
    iptc: IPTC-IIM records.

    The file must stay below LARGEST_FILE, which `raw_bytes` tells beforehand.
    """
    # shape: as it is stored
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if len(pixels.shape) == 3 else 1
    deep = pixels.dtype == np.uint16
    stored = 4 if deep and channels == 2 else channels
    # header: the EXIF block itself, so that nothing in it moves
    body, described = _EMPTY_HEADER, list[Entry]()
    order: Literal["<", ">"] = "<"
    if exif is not None and is_sound(exif):
        body = exif.removeprefix(EXIF_HEADER)
        order = "<" if byte_order(body) == "<" else ">"
        entries = directory(body, struct.unpack_from(order + "I", body, 4)[0])[0]
        described = [entry for entry in entries if entry.tag in KEPT_TAGS]
    stream.write(body)
    # pixels: blocks of rows, deflated side by side
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

    # tags: the kind of pixels
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
    # metadata: resolution, alpha, XMP, IPTC, profile
    if dpi is not None:
        for tag, value in ((X_RESOLUTION, dpi[0]), (Y_RESOLUTION, dpi[1])):
            tags.numbers(tag, RATIONAL, Fraction(value).limit_denominator(1000).as_integer_ratio())
        tags.numbers(RESOLUTION_UNIT, SHORT, [2])  # per inch
    if stored in (2, 4):
        tags.numbers(0x0152, SHORT, [2])  # alpha that the colours are not multiplied by
    for tag, kind, block in ((XMP, BYTE, xmp), (IPTC, UNDEFINED, iptc), (ICC_PROFILE, UNDEFINED, icc)):
        if block is not None:
            tags.bytes(tag, kind, block)
    # directory: at the end, with its offset in the header
    _align(stream)
    start = stream.tell()
    stream.write(packed_directory(order, [*tags.entries, *described]))
    stream.seek(4)
    stream.write(struct.pack(order + "I", start))
    stream.seek(0, os.SEEK_END)


def raw_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """The most bytes that the pixels of a picture may take in a file. Deflate adds less than 1 in 1000."""
    channels = shape[2] if len(shape) == 3 else 1
    stored = 4 if dtype == np.uint16 and channels == 2 else channels
    size = shape[0] * shape[1] * stored * dtype.itemsize
    return size + size // 1000 + 32 * shape[0]


def _differences(block: NDArray[Any], order: Literal["<", ">"]) -> bytes:
    """(n, W, C) -> each value minus the one to its left, modulo 2**bits, in the byte order of the file."""
    result = block.astype(block.dtype.newbyteorder(order))
    np.subtract(block[:, 1:], block[:, :-1], out=result[:, 1:])
    return result.tobytes()


def _align(stream: IO[bytes]) -> None:
    """Move to an even offset, which TIFF demands for values and directories."""
    if stream.tell() % 2:
        stream.write(b"\0")


class _Tags:
    """Entries of the directory to be written. A value too long for its entry goes to the stream at once."""

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
