"""Pictures of 16 bits per channel that Pillow would reduce to 8 in silence, read exactly: PNG, TIFF, PPM.

For PNG, Pillow's own decoder is asked twice, once for the high and once for the low byte of every value.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..arrays import band_rows, image_rows
from ..bands import spans

_RAW_MODES: Final = {2: "RGB", 6: "RGBA"}  # PNG colour type -> Pillow's mode


def png_depth(data: bytes) -> tuple[int, int]:
    """(bits per value, colour type) of a PNG's header."""
    return data[24], data[25]


def read_deep_png(data: bytes, image: Image.Image) -> NDArray[np.uint16]:
    """A 16-bit PNG with colour or alpha -> (H, W, C) uint16. image: the same file, opened by Pillow, still open."""
    colour_type, interlaced = data[25], data[28]
    packed = b"".join(content for kind, content in png_chunks(data) if kind == b"IDAT")
    image.load()  # also reads the metadata that stand behind the pixels
    if colour_type == 4:  # four bytes a pixel: the halves of gray and alpha
        return _joined_pairs(Image.frombytes("RGBA", image.size, packed, "zip", "RGBA", interlaced))
    mode = _RAW_MODES[colour_type]
    high = image
    if image.mode != mode:
        high = Image.frombytes(mode, image.size, packed, "zip", f"{mode};16B", interlaced)
    low = Image.frombytes(mode, image.size, packed, "zip", f"{mode};16L", interlaced)
    width, height = image.size
    result = np.empty((height, width, len(mode)), np.uint16)
    for top, bottom in spans(height, band_rows(width)):
        result[top:bottom] = image_rows(high, top, bottom)
        result[top:bottom] <<= 8
        result[top:bottom] |= image_rows(low, top, bottom)
    return result


def keyed(pixels: NDArray[np.uint16], key: int | tuple[int, ...]) -> NDArray[np.uint16]:
    """(H, W, C) and the value that stands for transparency -> (H, W, C + 1) with alpha."""
    result = np.empty((*pixels.shape[:2], pixels.shape[2] + 1), np.uint16)
    result[..., :-1] = pixels
    for row, source in zip(result, pixels, strict=True):
        row[:, -1] = np.where((source == np.asarray(key)).all(axis=1), 0, 65535)
    return result


def read_deep_ppm(data: bytes) -> NDArray[np.uint16] | None:
    """A binary PPM with more than 255 levels -> (H, W, 3) uint16, scaled to 65535; None for another kind."""
    header = re.match(rb"P6(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s", data[:4096])
    if header is None:
        return None
    width, height, top = (int(number) for number in header.groups())
    if not 255 < top <= 65535:
        return None
    values = np.frombuffer(data, ">u2", width * height * 3, header.end())
    result = values.astype(np.uint16).reshape(height, width, 3)
    if top < 65535:
        result[:] = scaled(result, top)
    return result


def scaled(values: NDArray[Any], top: int) -> NDArray[np.uint16]:
    """Levels 0..top -> 0..65535, rounded."""
    wide = np.minimum(values, top).astype(np.uint32)
    return ((wide * 65535 + top // 2) // top).astype(np.uint16)


def to_8_bits(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Levels 0..65535 -> 0..255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of the chunks of a PNG; ValueError where one is cut off or its checksum is wrong."""
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        content = data[position + 8 : end]
        if (
            len(data) < end + 4
            or zlib.crc32(content, zlib.crc32(kind)) != struct.unpack_from(">I", data, end)[0]
        ):
            raise ValueError(f"the checksum of chunk {kind!r} is wrong")
        yield kind, content
        if kind == b"IEND":
            return
        position = end + 4
    raise ValueError("the file ends before its last chunk")


def _joined_pairs(image: Image.Image) -> NDArray[np.uint16]:
    """RGBA bytes as high and low byte of gray and of alpha -> (H, W, 2)."""
    width, height = image.size
    result = np.empty((height, width, 2), np.uint16)
    for top, bottom in spans(height, band_rows(width)):
        result[top:bottom] = image_rows(image, top, bottom).view(">u2")
    return result
