"""Pictures of 16 bits per channel that Pillow would reduce to 8 without a word, read exactly: PNG, PPM, and TIFF by `sixteen_bit_tiff`.

For PNG, Pillow's own decoder is asked twice, once for the high and once for the low byte of every value.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import ImageError
from ..arrays import band_rows, image_rows, to_array
from ..bands import spans
from ..png_chunks import png_chunks, png_depth
from .sixteen_bit_tiff import SIGNATURES, is_deep_tiff, read_deep_tiff, tags_if_sound, tiff_tags

# Formats with more than 8 bits per channel, as Pillow names them.
DEEP_READ: Final = ("PNG", "TIFF", "PPM", "AVIF", "HEIF")
# Pillow's mode by the colour type of a PNG.
_RAW_MODES: Final = {2: "RGB", 6: "RGBA"}


def deep_pixels(
    path: Path,
    data: bytes,
    image: Image.Image,
    tell: Callable[[str], None],
    opened: Callable[[bytes], Image.Image],
) -> NDArray[Any] | None:
    """Pixels of a 16-bit picture that Pillow would reduce to 8 bits. None: read it with Pillow.

    path: names the picture in messages.
    data: the content of the file.
    image: the same file, opened with Pillow.
    tell: called with a message if bits are lost.
    opened: opens further files with Pillow.
    """
    tags = tags_if_sound(data) if image.format == "TIFF" and data[:4] in SIGNATURES else None
    reason = ""
    if image.format == "PNG" and png_depth(data)[0] == 16 and png_depth(data)[1] != 0:
        pixels = read_deep_png(data, image)
        key = image.info.get("transparency")
        return pixels if key is None else keyed(pixels, key)
    if tags is not None and is_deep_tiff(tags):
        deep, reason = read_deep_tiff(data, tags, opened)
        if deep is not None:
            return deep
        if tags.get(258) == (16, 16):
            raise ImageError(f"{path}: a 16-bit TIFF with {reason} is not supported: convert it to PNG first")
    if image.format == "PPM":
        deep = read_deep_ppm(data)
        if deep is not None:
            return deep
    bits = hidden_depth(data, image, lambda: 8 if tags is None else max(tags.get(258, (8,))))
    if bits > 8:
        because = f" ({reason})" if reason else ""
        tell(
            f"{path}: {bits} bits per channel are read as 8{because}: convert it to a 16-bit PNG to keep them"
        )
    return None


def deep_gray(data: bytes, image: Image.Image) -> NDArray[Any]:
    """16-bit gray as Pillow reads it. With alpha if the file declares one gray value transparent."""
    pixels = to_array(image)
    if image.format == "TIFF" and tiff_tags(data).get(258) == (12,):
        return scaled(pixels, 4095)
    key = image.info.get("transparency")
    return pixels if key is None else keyed(pixels, key)


def hidden_depth(data: bytes, image: Image.Image, tiff_bits: Callable[[], int]) -> int:
    """Bits per channel of a file that Pillow reads as 8 bits and that is not read at 16 bits here. 8: nothing is lost."""
    if image.mode not in ("RGB", "RGBA", "LA", "CMYK", "L"):
        return 8
    if image.format == "TIFF":
        return tiff_bits()
    if image.format == "PPM":
        return 16 if _maxval(data) > 255 else 8
    if image.format == "AVIF":
        # AV1 in ISO media, Sec. 2.3: the third byte holds high_bitdepth and twelve_bit
        place = data.find(b"av1C")
        flags = data[place + 6] if 0 <= place < len(data) - 6 else 0
        return (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    if image.format == "HEIF":
        # ISO 14496-15, Sec. 8.3.3: byte 17 ends in the luma depth less 8
        place = data.find(b"hvcC")
        return 8 + (data[place + 21] & 7) if 0 <= place < len(data) - 21 else 8
    return 8


def _maxval(data: bytes) -> int:
    """Largest value stated in a PPM header (comments left out), or 255 if it cannot be found."""
    words = b" ".join(line.split(b"#")[0] for line in data[:512].splitlines()).split()
    return int(words[3]) if len(words) > 3 and words[3].isdigit() else 255


def read_deep_png(data: bytes, image: Image.Image) -> NDArray[np.uint16]:
    """A 16-bit PNG with colour or alpha -> (H, W, C) uint16. image: the same file, opened with Pillow."""
    colour_type, interlaced = data[25], data[28]
    packed = b"".join(chunk.content for chunk in png_chunks(data) if chunk.kind == b"IDAT")
    image.load()
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
    """(H, W, C) and the value that means transparent -> (H, W, C + 1) with alpha."""
    result = np.empty((*pixels.shape[:2], pixels.shape[2] + 1), np.uint16)
    result[..., :-1] = pixels
    for row, source in zip(result, pixels, strict=True):
        row[:, -1] = np.where((source == np.asarray(key)).all(axis=1), 0, 65535)
    return result


def read_deep_ppm(data: bytes) -> NDArray[np.uint16] | None:
    """A binary PPM with more than 255 levels -> (H, W, 3) uint16, scaled to 65535. None: another kind of file."""
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


def _joined_pairs(image: Image.Image) -> NDArray[np.uint16]:
    """RGBA bytes as high and low byte of gray and of alpha -> (H, W, 2)."""
    width, height = image.size
    result = np.empty((height, width, 2), np.uint16)
    for top, bottom in spans(height, band_rows(width)):
        result[top:bottom] = image_rows(image, top, bottom).view(">u2")
    return result
