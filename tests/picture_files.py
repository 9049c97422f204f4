"""What the tests of picture files share: 16-bit PNG and TIFF made by hand, 8-bit pixels, an EXIF block, reading without a warning."""

import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from runtime.image.exif import EXIF_HEADER
from runtime.image.photo import Photo
from runtime.image.read.decode import read_photo

Pixels = Callable[..., np.ndarray]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HAS_AVIF = "AVIF" in Image.registered_extensions().values()
needs_avif = pytest.mark.skipif(not HAS_AVIF, reason="needs Pillow 11.3 or newer, with AVIF")
AVIF = pytest.param(".avif", marks=needs_avif)
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # Adam7: x, y, steps
RNG = np.random.default_rng(0)


def pixels(channels: int, dtype: Any = np.uint8, height: int = 12, width: int = 17) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def smooth(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 6 * y, 3 * (x + y)], axis=2).astype(np.uint8)


def silent_read(path: Path) -> Photo:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_photo(path)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(pixels: np.ndarray, *, key: tuple[int, ...] = (), interlaced: bool = False) -> bytes:
    """A 16-bit PNG, its rows with the filters Up and Sub in turn."""
    height, width, channels = pixels.shape
    header = struct.pack(
        ">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, int(interlaced)
    )
    packed = b""
    for x, y, dx, dy in PASSES if interlaced else ((0, 0, 1, 1),):
        part = np.ascontiguousarray(pixels[y::dy, x::dx].astype(">u2"))
        if part.size:
            rows = part.view(np.uint8).reshape(len(part), -1)
            above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
            left = np.hstack([np.zeros((len(rows), 2 * channels), np.uint8), rows[:, : -2 * channels]])
            for k, row in enumerate(rows):
                packed += bytes([2 - k % 2]) + (row - (above, left)[k % 2][k]).tobytes()
    keys = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + keys
        + b"".join(chunk(b"IDAT", zlib.compress(packed)[at : at + 500]) for at in range(0, len(zlib.compress(packed)), 500))
        + chunk(b"eXIf", exif_block().removeprefix(EXIF_HEADER))  # behind the pixels, as is allowed
        + chunk(b"IEND", b"")
    )  # fmt: skip


def tiff16(
    pixels: np.ndarray,
    order: str = "<",
    *,
    planar: bool = False,
    tile: int = 0,
    compression: int = 1,
    predictor: int = 1,
    big: bool = False,
    extra: tuple[int, ...] | None = None,
    photometric: int | None = None,
    orientation: int = 1,
) -> bytes:
    """A 16-bit TIFF of 7 rows a strip, or of square tiles."""
    height, width, channels = pixels.shape
    extra = (2,) * (channels in (2, 4)) if extra is None else extra
    across, down = (tile, tile) if tile else (width, 7)
    pieces = []
    for plane in range(channels) if planar else (slice(None),):
        for top, left in itertools.product(range(0, height, down), range(0, width, across)):
            piece = pixels[top : top + down, left : left + across, plane].astype(np.uint16)
            piece = piece[..., None] if planar else piece
            if tile:
                piece = np.pad(piece, ((0, tile - len(piece)), (0, tile - piece.shape[1]), (0, 0)))
            if predictor == 2:
                piece = np.concatenate([piece[:, :1], piece[:, 1:] - piece[:, :-1]], axis=1)
            pieces.append(packed(piece.astype(f"{order}u2").tobytes(), len(piece), compression))
    word = "Q" if big else "I"
    body = bytearray(struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0))
    body[:0] = b"II" if order == "<" else b"MM"
    places = []
    for piece in pieces:
        places.append(len(body))
        body += piece + bytes(len(piece) % 2)
    rows = [(256, 3, [width]), (257, 3, [height]), (258, 3, [16] * channels), (259, 3, [compression]),
            (262, 3, [(2 if channels > 2 else 1) if photometric is None else photometric]), (277, 3, [channels]),
            (284, 3, [1 + planar]), (317, 3, [predictor]), (274, 3, [orientation])]  # fmt: skip
    lengths = [len(piece) for piece in pieces]
    rows += [(322, 3, [tile]), (323, 3, [tile]), (324, 4, places), (325, 4, lengths)] if tile else [
        (273, 4, places), (278, 3, [down]), (279, 4, lengths)]  # fmt: skip
    rows += [(338, 3, list(extra))] if extra else []
    cells = b""
    for tag, kind, values in sorted(rows):
        value = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        size = struct.calcsize(order + word)
        if len(value) > size:
            places_of, value = len(body), value
            body += value + bytes(len(value) % 2)
            value = struct.pack(order + word, places_of)
        cells += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + value.ljust(size, b"\0")
    start = len(body)
    body += struct.pack(order + ("Q" if big else "H"), len(rows)) + cells + bytes(8)
    struct.pack_into(order + word, body, 8 if big else 4, start)
    return bytes(body)


def packed(plain: bytes, rows: int, compression: int) -> bytes:
    """The bytes of a strip, compressed as TIFF does; by Pillow where it is not deflate."""
    if compression in (1, 99):
        return plain
    if compression in (8, 32946):
        return zlib.compress(plain)
    stream = io.BytesIO()
    name = {5: "tiff_lzw", 32773: "packbits", 34925: "lzma", 50000: "zstd"}[compression]
    picture = Image.frombytes("L", (len(plain) // rows, rows), plain)
    picture.save(stream, "TIFF", compression=name, tiffinfo={278: rows})
    with Image.open(stream) as image:
        (place,), (length,) = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
    return stream.getvalue()[place : place + length]


def exif_block(thumbnail: bytes = b"", comment: bytes = b"", order: str = "<") -> bytes:
    """Camera, orientation 6, a maker note at a known offset, and a second directory with a thumbnail."""
    note = b"MAKER" * 5
    body = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    spots = {}
    for name, content in (("note", note), ("camera", b"Camera\0"), ("comment", comment)):
        spots[name] = len(body)
        body += content + bytes(len(content) % 2)

    def table(entries: list[tuple[int, int, int, bytes]], following: int) -> int:
        place = len(body)
        body.extend(struct.pack(order + "H", len(entries)))
        for tag, kind, count, value in entries:
            body.extend(struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0"))
        body.extend(struct.pack(order + "I", following))
        return place

    def long(value: int) -> bytes:
        return struct.pack(order + "I", value)

    short = struct.Struct(order + "H").pack
    details = [(0x927C, 7, len(note), long(spots["note"]))]
    details += [(0x9286, 7, len(comment), long(spots["comment"]))] if comment else []
    inner = table([*details, (0xA002, 3, 1, short(640)), (0xA003, 3, 1, short(480))], 0)
    second = 0
    if thumbnail:
        place = len(body) + 2 + 2 * 12 + 4
        second = table([(0x0201, 4, 1, long(place)), (0x0202, 4, 1, long(len(thumbnail)))], 0)
        body += thumbnail + bytes(len(thumbnail) % 2)
    first = table(
        [(0x0110, 2, 7, long(spots["camera"])), (0x0112, 3, 1, short(6)), (0x8769, 4, 1, long(inner))], second
    )
    struct.pack_into(order + "I", body, 4, first)
    return EXIF_HEADER + bytes(body)


def tags_of(exif: bytes) -> tuple[Image.Exif, dict[int, Any]]:
    tags = Image.Exif()
    tags.load(exif)
    return tags, tags.get_ifd(0x8769)
