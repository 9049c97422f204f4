"""Pictures of 16 bits per channel that Pillow would reduce to 8 in silence, read exactly: PNG, TIFF, PPM.

For PNG, Pillow's own decoder is asked twice, once for the high and once for the low byte of every value.
"""

import contextlib
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .bands import spans

_BAND_BYTES: Final = 1 << 22  # of pixels handled at a time, so that a conversion takes little memory
_LIMIT_LOCK: Final = threading.Lock()
_RAW_MODES: Final = {2: "RGB", 6: "RGBA"}  # PNG colour type -> Pillow's mode


@contextlib.contextmanager
def without_limit() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, a global that a program may have set low for others; ours is an argument."""
    with _LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def to_array(image: Image.Image) -> NDArray[Any]:
    """A decoded Pillow image -> (H, W, C) uint8, or uint16 where it holds more than 8 bits, band by band."""
    width, height = image.size
    channels = len(image.getbands())
    eight = image.mode in ("L", "LA", "RGB", "RGBA")
    result = np.empty((height, width, channels), np.uint8 if eight else np.uint16)
    for top, bottom in spans(height, _band_rows(width)):
        band = _rows(image, top, bottom).reshape(bottom - top, width, channels)
        result[top:bottom] = band if eight else np.clip(band, 0, 65535)
    return result


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
    for top, bottom in spans(height, _band_rows(width)):
        result[top:bottom] = _rows(high, top, bottom)
        result[top:bottom] <<= 8
        result[top:bottom] |= _rows(low, top, bottom)
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


def hidden_depth(data: bytes, image: Image.Image, tiff_bits: Callable[[], int]) -> int:
    """Bits per channel of the file where Pillow hands out 8 and nothing here reads more; else 8."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK", "L"):
        return 8
    if image.format == "TIFF":
        return tiff_bits()
    if image.format == "PPM":
        return 16 if _maxval(data) > 255 else 8
    if image.format == "AVIF":
        place = data.find(
            b"av1C"
        )  # AV1 in ISO media, Sec. 2.3: the third byte holds high_bitdepth and twelve_bit
        flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    if image.format == "HEIF":
        place = data.find(b"hvcC")  # ISO 14496-15, Sec. 8.3.3: byte 17 ends in the luma depth less 8
        return 8 + (data[place + 21] & 7) if 0 <= place < len(data) - 21 else 8
    return 8


def _maxval(data: bytes) -> int:
    """Largest value stated in a PPM header (comments left out); 255 where it cannot be found."""
    words = b" ".join(line.split(b"#")[0] for line in data[:512].splitlines()).split()
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else 255


def _joined_pairs(image: Image.Image) -> NDArray[np.uint16]:
    """RGBA bytes as high and low byte of gray and of alpha -> (H, W, 2)."""
    width, height = image.size
    result = np.empty((height, width, 2), np.uint16)
    for top, bottom in spans(height, _band_rows(width)):
        result[top:bottom] = _rows(image, top, bottom).view(">u2")
    return result


def _rows(image: Image.Image, top: int, bottom: int) -> NDArray[Any]:
    """Rows of a decoded image; older Pillow checks its limit even here."""
    with without_limit():
        return np.asarray(image.crop((0, top, image.width, bottom)))


def _band_rows(width: int) -> int:
    return max(1, _BAND_BYTES // (4 * width))
