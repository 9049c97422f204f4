"""TIFF pictures of 16 bits per channel, read exactly. Pillow reads 16-bit gray, but of colours only the high bytes.

Supported: strips and tiles, channels side by side or in planes, both byte orders, the horizontal predictor, TIFF and BigTIFF.
Deflate and plain data are unpacked here. Pillow unpacks LZW, PackBits, LZMA and Zstandard: it is given the packed bytes of a strip
as a gray 8-bit picture of as many bytes, which it cannot reduce. Pillow also reads the directory of tags.

Not tifffile 2026.3: without imagecodecs (79 MB) it reads no LZW and unpacks a deflate bomb whole, and it turns a missing strip into
zeros without an error.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ..arrays import band_rows
from ..bands import spans
from ..exif import SHORT

# Maps a tag to a number, or to a tuple if TIFF allows several.
Tags = ImageFileDirectory_v2
# The first four bytes of a TIFF or BigTIFF.
SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Values of PhotometricInterpretation.
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
# A value of ExtraSamples: the colours are multiplied by this alpha.
PREMULTIPLIED: Final = 1
# Values of Compression. The last four: LZW, PackBits, LZMA, Zstandard.
_NONE, _DEFLATE = (1,), (8, 32946)
_BY_PILLOW: Final = (5, 32773, 34925, 50000)


class _Unknown(ValueError):
    """A kind of TIFF that is not read at 16 bits."""


def tiff_tags(data: bytes) -> Tags:
    """The first directory of a TIFF or BigTIFF. SyntaxError or struct.error if there is none."""
    tags = ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])
    stream = io.BytesIO(data)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def tags_if_sound(data: bytes) -> Tags | None:
    """`tiff_tags`, or None for a damaged file. Pillow then reports the damage."""
    try:
        return tiff_tags(data)
    except (struct.error, SyntaxError):
        return None


def is_deep_tiff(tags: Tags) -> bool:
    """Whether each channel is an unsigned 16-bit integer, and the colours are gray or RGB."""
    return (
        set(tags.get(258, (1,))) == {16}
        and set(tags.get(339, (1,))) == {1}
        and tags.get(262) in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB)
    )


def opened_as_8_bit(data: bytes, tags: Tags) -> bytes:
    """The same TIFF with BitsPerSample (16, 16) changed to (8, 8), because Pillow opens no 16-bit gray with alpha.

    Pillow then gives the right tags, but wrong pixels.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    if tags.get(258) != (16, 16) or data[2:4] != struct.pack(order + "H", 42):
        return data
    place = data.find(struct.pack(order + "HHIHH", 258, SHORT, 2, 16, 16))
    return data if place < 0 else data[: place + 8] + struct.pack(order + "HH", 8, 8) + data[place + 12 :]


def read_deep_tiff(
    data: bytes, tags: Tags, opened: Callable[[bytes], Image.Image]
) -> tuple[NDArray[np.uint16] | None, str]:
    """(H, W, 1..4) uint16, or None and the property that cannot be read here. opened: opens a TIFF with Pillow.

    A damaged file raises. Colours multiplied by alpha are divided by it. Channels beyond colour and alpha are left out.
    """
    try:
        planes = _samples(data, tags, opened)
    except _Unknown as unknown:
        return None, str(unknown)
    colours = 3 if tags[262] == RGB else 1
    extra = tags.get(338, (2,) * (planes.shape[2] - colours))
    if tags[262] == WHITE_IS_ZERO:
        planes[..., 0] = 65535 - planes[..., 0]
    alpha = [index for index, kind in enumerate(extra) if kind in (1, 2)][:1]
    if alpha and extra[alpha[0]] == PREMULTIPLIED:
        _divide(planes[..., :colours], planes[..., colours + alpha[0]])
    keep = [*range(colours), *(colours + index for index in alpha)]
    return (planes if keep == list(range(planes.shape[2])) else planes[..., keep]), ""


def _samples(data: bytes, tags: Tags, opened: Callable[[bytes], Image.Image]) -> NDArray[np.uint16]:
    """All channels (H, W, C) as they are stored."""
    width, height, channels = tags[256], tags[257], tags.get(277, 1)
    predictor, fill_order = tags.get(317, 1), tags.get(266, 1)
    if predictor not in (1, 2) or fill_order != 1:
        raise _Unknown(f"predictor {predictor}, fill order {fill_order}")
    tiled, planar = 322 in tags, tags.get(284, 1) == 2 and channels > 1
    across, down = (tags[322], tags[323]) if tiled else (width, min(tags.get(278, height), height))
    offsets, lengths = (tags.get(tag, ()) for tag in ((324, 325) if tiled else (273, 279)))
    most = 2**16 if tiled else 2**31  # a tile has its full size even in a small picture
    if channels < (3 if tags[262] == RGB else 1) or not 0 < across < most or not 0 < down < most:
        raise ValueError("TIFF tags contradict each other")
    planes = channels if planar else 1
    pieces = -(-width // across) * -(-height // down) * planes
    if not len(offsets) == len(lengths) == pieces:
        found = f"{len(offsets)} offsets and {len(lengths)} lengths"
        raise ValueError(f"expected {pieces} pieces of the picture, got {found}")
    boxes = itertools.product(range(planes), range(0, height, down), range(0, width, across))
    result = np.empty((height, width, channels), np.uint16)
    depth = 1 if planar else channels
    stored = np.dtype({b"II": "<u2", b"MM": ">u2"}[data[:2]])
    for (plane, top, left), offset, length in zip(boxes, offsets, lengths, strict=True):
        rows = down if tiled else min(down, height - top)
        packed = data[offset : offset + length]
        plain = _unpacked(packed, tags.get(259, 1), rows, across * depth * 2, opened)
        values = np.frombuffer(plain, stored).reshape(rows, across, depth)
        # band by band, because one strip may be the whole picture
        for first, end in spans(min(rows, height - top), band_rows(across)):
            band = values[first:end].astype(np.uint16)
            if predictor == 2:
                np.cumsum(band, axis=1, dtype=np.uint16, out=band)
            part = band[:, : width - left]
            target = result[top + first : top + end, left : left + part.shape[1]]
            target[..., plane : plane + depth] = part
    return result


def _unpacked(
    packed: bytes, compression: int, rows: int, row: int, opened: Callable[[bytes], Image.Image]
) -> bytes:
    """A strip or tile of `rows` rows of `row` bytes. Never unpacks more than that, so a deflate bomb does no harm."""
    size = rows * row
    if compression in _NONE:
        plain = packed[:size]
    elif compression in _DEFLATE:
        plain = zlib.decompressobj().decompress(packed, size)
    elif compression in _BY_PILLOW:
        with opened(_gray_tiff(packed, compression, rows, row)) as image:
            image.load()
            plain = image.tobytes()
    else:
        raise _Unknown(f"compression {compression}")
    if len(plain) != size:
        raise ValueError(f"a strip has {len(plain)} bytes instead of {size}")
    return plain


def _gray_tiff(packed: bytes, compression: int, height: int, width: int) -> bytes:
    """A TIFF of 8-bit gray around packed bytes."""
    tags = ImageFileDirectory_v2()
    for tag, value in (
        (256, width), (257, height), (258, 8), (259, compression), (262, BLACK_IS_ZERO), (273, 0), (277, 1), (278, height),
        (279, len(packed)),
    ):  # fmt: skip
        tags[tag] = value
    return b"II*\0\x08\0\0\0" + tags.tobytes(8) + packed  # Pillow counts tag 273 from the end of the tags


def _divide(colours: NDArray[Any], alpha: NDArray[Any]) -> None:
    """Colours multiplied by alpha -> plain colours, in place. Row by row, to take little memory."""
    for row, weight in zip(colours, alpha, strict=True):
        plain = row * (65535.0 / np.maximum(weight, 1))[:, None] + 0.5
        row[:] = np.minimum(plain, 65535.0)
