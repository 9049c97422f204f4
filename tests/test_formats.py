"""What the many kinds of picture files become: 16 bits kept, profiles, alpha, HEIC, notes in EXIF, nothing lost in silence."""

import io
import itertools
import os
import struct
import sys
import types
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from runtime.errors import ImageError
from runtime.folders import find_photos
from runtime.image.arrays import fill_transparent
from runtime.image.exif import EXIF_HEADER, exif_dpi, is_sound, revised_exif
from runtime.image.photo import Photo
from runtime.image.read.decode import media_family, read_photo
from runtime.image.read.sixteen_bit import hidden_depth
from runtime.image.write.encode import write_photo
from runtime.upscale.upscaler import Upscaler

Pixels = Callable[..., np.ndarray]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TEXT = {"Software": "gdposr 9.9", "gdposr-seed": "7", "gdposr-bundle": "0123456789abcdef"}
HAS_AVIF = "AVIF" in Image.registered_extensions().values()
needs_avif = pytest.mark.skipif(not HAS_AVIF, reason="needs Pillow 11.3 or newer, with AVIF")
AVIF = pytest.param(".avif", marks=needs_avif)
IN_EXIF = (".jpg", ".tif", ".webp", AVIF)
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # Adam7: x, y, steps


def profile(space: bytes) -> bytes:
    """A profile of another colour space, by its header."""
    return SRGB[:16] + space + SRGB[20:]


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


# ---- 16 bits in


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_read_exactly(
    tmp_path: Path, make_pixels: Pixels, channels: int, interlaced: bool
) -> None:
    pixels = make_pixels(21, 33, channels, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(pixels, interlaced=interlaced))
    photo = silent_read(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, np.rot90(pixels, -1))  # orientation 6, applied to 16 bits too
    assert len(np.unique(photo.pixels)) > 256
    assert photo.exif is not None
    assert tags_of(photo.exif)[0][0x0112] == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_key_of_16_bits_becomes_alpha(tmp_path: Path, make_pixels: Pixels, channels: int) -> None:
    pixels = make_pixels(12, 15, channels, dtype=np.uint16)
    key = tuple(int(value) for value in pixels[4, 7])
    pixels[0, 0] = pixels[4, 7] ^ 1  # differs in the low byte alone
    (tmp_path / "a.png").write_bytes(png16(pixels, key=key))
    result = np.rot90(silent_read(tmp_path / "a.png").pixels)
    np.testing.assert_array_equal(result[..., :-1], pixels)
    np.testing.assert_array_equal(result[..., -1], np.where((pixels == key).all(axis=2), 0, 65535))
    assert (result[4, 7, -1], result[0, 0, -1]) == (0, 65535)


def test_a_damaged_16_bit_png_is_an_error(tmp_path: Path, make_pixels: Pixels) -> None:
    data = png16(make_pixels(30, 30, 3, dtype=np.uint16))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x10
    for damaged in (bytes(flipped), data[: len(data) // 2]):
        (tmp_path / "a.png").write_bytes(damaged)
        with pytest.raises(ImageError, match="damaged or cut off"):
            read_photo(tmp_path / "a.png")


LAYOUTS = (
    {}, {"planar": True}, {"tile": 16}, {"tile": 16, "planar": True, "compression": 8, "predictor": 2},
    {"compression": 8}, {"compression": 32946, "predictor": 2}, {"compression": 5, "predictor": 2},
    {"compression": 5, "tile": 16}, {"compression": 32773}, {"big": True}, {"compression": 8, "predictor": 2, "big": True},
)  # fmt: skip
# Pillow opens BigTIFF in one byte order, without alpha in gray; the others are refused, see below.
TIFFS = [
    (layout, channels, order)
    for layout in LAYOUTS
    for channels in (1, 2, 3, 4)
    for order in "<>"
    if not (layout.get("big") and (channels == 2 or order == ">"))
]


@pytest.mark.parametrize(("layout", "channels", "order"), TIFFS)
def test_16_bit_tiff_is_read_exactly(
    tmp_path: Path, make_pixels: Pixels, order: str, channels: int, layout: dict[str, Any]
) -> None:
    pixels = make_pixels(25, 35, channels, dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff16(pixels, order, **layout))
    photo = silent_read(tmp_path / "a.tif")
    assert photo.pixels.dtype == np.uint16
    np.testing.assert_array_equal(photo.pixels, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_turned_as_pillow_turns_8_bits(
    tmp_path: Path, make_pixels: Pixels, orientation: int
) -> None:
    pixels = make_pixels(20, 30, 3, dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff16(pixels, orientation=orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(high_bytes := (pixels >> 8).astype(np.uint8)).save(tmp_path / "b.tif", exif=exif)
    turned = silent_read(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(turned >> 8, silent_read(tmp_path / "b.tif").pixels)
    assert np.array_equal(turned >> 8, high_bytes) == (orientation == 1)


def test_16_bit_tiff_of_other_programs(tmp_path: Path, make_pixels: Pixels) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile, which comes with scikit-image")
    pixels = make_pixels(50, 60, 3, dtype=np.uint16)
    for k, options in enumerate(
        ({}, {"byteorder": ">"}, {"tile": (16, 32)}, {"bigtiff": True}, {"rowsperstrip": 3})
    ):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
        np.testing.assert_array_equal(silent_read(tmp_path / "a.tif").pixels, pixels, err_msg=str(k))
    write_photo(tmp_path / "ours.tif", Photo(pixels, exif_block(order=">"), SRGB, (300, 300)))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "ours.tif"), pixels)


def test_premultiplied_colours_are_divided_by_alpha(tmp_path: Path) -> None:
    alpha = np.array([65535, 32768, 1000, 1, 0], np.uint32)
    colour = np.array([50000, 12345, 65535], np.uint32)
    pixels = np.concatenate([(colour * alpha[:, None] + 32767) // 65535, alpha[:, None]], axis=1)[None]
    (tmp_path / "a.tif").write_bytes(tiff16(pixels.astype(np.uint16), extra=(1,)))
    result = silent_read(tmp_path / "a.tif").pixels[0].astype(int)
    np.testing.assert_allclose(result[:3, :3], np.tile(colour, (3, 1)), atol=33)
    assert result[:, 3].tolist() == alpha.tolist()
    np.testing.assert_allclose(result[:2, :3], np.tile(colour, (2, 1)), atol=1)


def test_white_is_zero_and_extra_channels(tmp_path: Path, make_pixels: Pixels) -> None:
    gray, five = make_pixels(9, 8, 1, dtype=np.uint16), make_pixels(9, 8, 4, dtype=np.uint16)
    (tmp_path / "white.tif").write_bytes(tiff16(gray, photometric=0))
    np.testing.assert_array_equal(silent_read(tmp_path / "white.tif").pixels, 65535 - gray)
    (tmp_path / "extra.tif").write_bytes(tiff16(five, extra=(0,)))
    np.testing.assert_array_equal(silent_read(tmp_path / "extra.tif").pixels, five[..., :3])


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_16_bit_tiff_is_an_error(
    tmp_path: Path, make_pixels: Pixels, cut: float, compression: int
) -> None:
    data = tiff16(make_pixels(40, 30, 3, dtype=np.uint16), compression=compression)
    start = struct.unpack_from("<I", data, 4)[0]
    (tmp_path / "cut.tif").write_bytes(data[: int(len(data) * cut)])
    moved = bytearray(data)
    place = data.index(struct.pack("<HH", 273, 4), start)
    offsets = struct.unpack_from("<I", data, place + 8)[0]
    struct.pack_into("<I", moved, offsets, len(data) - int(10 / cut))  # a strip that ends behind the file
    (tmp_path / "moved.tif").write_bytes(moved)
    for name in ("cut.tif", "moved.tif"):
        with pytest.raises(ImageError, match=name):
            read_photo(tmp_path / name)


def test_a_strip_that_unpacks_to_more_than_its_size_is_cut_there(tmp_path: Path, make_pixels: Pixels) -> None:
    """A bomb in a strip costs no memory: what is beyond the rows is never unpacked."""
    pixels = make_pixels(7, 9, 3, dtype=np.uint16)
    data = tiff16(pixels, compression=8)
    bomb = zlib.compress(pixels.tobytes() + bytes(10_000_000), 9)
    original = zlib.compress(pixels.tobytes())
    start = struct.unpack_from("<I", data, 4)[0]
    grown = bytearray(data)
    struct.pack_into("<I", grown, data.index(struct.pack("<HHI", 273, 4, 1), start) + 8, len(data))
    struct.pack_into("<I", grown, data.index(struct.pack("<HHI", 279, 4, 1), start) + 8, len(bomb))
    assert original in data
    (tmp_path / "a.tif").write_bytes(bytes(grown) + bomb)
    np.testing.assert_array_equal(silent_read(tmp_path / "a.tif").pixels, pixels)


@pytest.mark.parametrize("top", [1023, 4095, 65535])
def test_16_bit_ppm_is_read_exactly(tmp_path: Path, top: int) -> None:
    values = np.random.default_rng(3).integers(0, top, (6, 7, 3), np.uint16, endpoint=True)
    (tmp_path / "a.ppm").write_bytes(b"P6 # made by hand\n7 6\n%d\n" % top + values.astype(">u2").tobytes())
    expected = np.floor(values.astype(np.float64) * 65535 / top + 0.5)
    np.testing.assert_array_equal(silent_read(tmp_path / "a.ppm").pixels, expected)
    (tmp_path / "a.ppm").write_bytes((tmp_path / "a.ppm").read_bytes()[:-1])
    with pytest.raises(ImageError, match="damaged"):
        read_photo(tmp_path / "a.ppm")


def test_what_is_read_at_8_bits_only_is_announced(tmp_path: Path, make_pixels: Pixels) -> None:
    ascii_ppm = b"P3 2 1 65535 " + b" ".join(b"%d" % value for value in (0, 300, 65535, 9, 99, 40000))
    (tmp_path / "a.ppm").write_bytes(ascii_ppm)
    cmyk = make_pixels(8, 9, 4, dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff16(cmyk, photometric=5, extra=()))
    for name in ("a.ppm", "a.tif"):
        notes: list[str] = []
        assert read_photo(tmp_path / name, notify=notes.append).pixels.dtype == np.uint8
        assert len(notes) == 1
        assert "16 bits per channel are read as 8" in notes[0]


@needs_avif
@pytest.mark.parametrize(("flags", "bits"), [(0x00, 8), (0x40, 10), (0x60, 12)])
def test_the_depth_of_an_avif_is_seen(tmp_path: Path, make_pixels: Pixels, flags: int, bits: int) -> None:
    Image.fromarray(make_pixels(16, 16)).save(tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    place = data.index(b"av1C") + 6
    changed = data[:place] + bytes([data[place] & 0x9F | flags]) + data[place + 1 :]
    with Image.open(tmp_path / "a.avif") as image:
        assert hidden_depth(changed, image, lambda: 8) == bits


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own word on the last one
def test_an_unknown_16_bit_tiff_is_refused(tmp_path: Path, make_pixels: Pixels) -> None:
    (tmp_path / "a.tif").write_bytes(tiff16(make_pixels(9, 8, 3, dtype=np.uint16), compression=99))
    (tmp_path / "b.tif").write_bytes(tiff16(make_pixels(9, 8, 2, dtype=np.uint16), compression=99))
    (tmp_path / "c.tif").write_bytes(tiff16(make_pixels(9, 8, 2, dtype=np.uint16), big=True))
    (tmp_path / "d.tif").write_bytes(tiff16(make_pixels(9, 8, 2, dtype=np.uint16), predictor=3))
    (tmp_path / "e.tif").write_bytes(tiff16(make_pixels(9, 8, 3, dtype=np.uint16), ">", big=True))
    for name in ("a.tif", "b.tif", "c.tif", "d.tif", "e.tif"):
        with pytest.raises(ImageError, match=name):
            read_photo(tmp_path / name, notify=lambda message: None)


def test_12_bit_gray_is_stretched_to_16(tmp_path: Path) -> None:
    body = struct.pack("<HHIHHH", 0, 0, 0, 0, 0, 0)[:0]
    values = np.array([0x000, 0x800, 0xFFF, 0x123])
    body = bytes([0x00, 0x08, 0x00, 0xFF, 0xF1, 0x23])  # four values of 12 bits
    rows = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    table = (
        struct.pack("<H", len(rows)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in rows) + bytes(4)
    )
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 14) + body + table)
    result = silent_read(tmp_path / "a.tif").pixels[0, :, 0]
    np.testing.assert_array_equal(result, np.floor(values * 65535 / 4095 + 0.5))


# ---- 16 bits out


@pytest.mark.parametrize("suffix", [".jpg", ".webp", AVIF, ".bmp"])
def test_16_bits_are_rounded_where_a_format_has_8_and_it_is_said(
    tmp_path: Path, make_pixels: Pixels, suffix: str
) -> None:
    pixels = make_pixels(40, 50, 3, dtype=np.uint16)
    notes: list[str] = []
    write_photo(tmp_path / f"a{suffix}", Photo(pixels), notify=notes.append)
    assert len(notes) == 1
    assert "8 bits per channel, the picture has 16" in notes[0]
    again = np.array(Image.open(tmp_path / f"a{suffix}"))
    rounded = np.floor(pixels / 257 + 0.5)
    assert np.abs(again - rounded).mean() < (0.001 if suffix == ".bmp" else 6)
    with pytest.warns(UserWarning, match="8 bits per channel"):
        write_photo(tmp_path / f"a{suffix}", Photo(pixels))


def test_16_bit_colour_passes_through_the_upscaler(
    tmp_path: Path, toy_bundle: Path, make_pixels: Pixels
) -> None:
    pixels = make_pixels(16, 12, 3, dtype=np.uint16)
    (tmp_path / "in.png").write_bytes(png16(pixels))
    with Upscaler(toy_bundle, check=False) as upscaler:
        result = next(iter(upscaler.up_photo(silent_read(tmp_path / "in.png"))))
    for suffix in (".png", ".tif"):
        write_photo(tmp_path / f"out{suffix}", result)
        again = silent_read(tmp_path / f"out{suffix}").pixels
        assert again.dtype == np.uint16
        assert len(np.unique(again)) > 256
        np.testing.assert_array_equal(again, result.pixels)


# ---- alpha


@pytest.mark.parametrize("scale", [4, 3, 2.5, 1, 0.5])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_white_disc_on_transparent_black_has_no_dark_fringe(
    toy_bundle: Path, scale: float, channels: int, dtype: Any
) -> None:
    y, x = np.mgrid[:40, :40]
    coverage = np.clip(12.5 - np.hypot(y - 19.5, x - 19.5), 0, 1)  # an edge one pixel wide
    top = np.iinfo(dtype).max
    image = np.zeros((40, 40, channels), dtype)
    image[..., -1] = np.rint(coverage * top)
    image[..., :-1][image[..., -1] > 0] = top
    opaque = np.full((40, 40, channels - 1), top, dtype)
    with Upscaler(toy_bundle, check=False, precision="fp32") as upscaler:
        result = upscaler.up(image, scale=scale)[0].astype(np.float64) / top
        white = upscaler.up(opaque, scale=scale)[0].astype(np.float64) / top
    colour, alpha = result[..., :-1], result[..., -1:]
    over_white = alpha * colour + (1 - alpha)
    expected = alpha * white + (1 - alpha)  # what the model makes of plain white, seen through the same alpha
    np.testing.assert_allclose(over_white, expected, atol=2 / 255)
    assert alpha.min() == 0
    assert alpha.max() > 0.99


def test_filling_gaps_band_by_band_is_filling_them_at_once(make_pixels: Pixels) -> None:
    colour = make_pixels(531, 21, 3)
    alpha = np.where(make_pixels(531, 21, 1)[..., 0] > 150, 200, 0).astype(np.uint8)
    filled = fill_transparent(colour, alpha)
    np.testing.assert_array_equal(filled[alpha > 0], colour[alpha > 0])
    changed = colour.copy()
    changed[alpha == 0] = 77
    np.testing.assert_array_equal(fill_transparent(changed, alpha), filled)
    part = fill_transparent(colour[:300], alpha[:300])
    near = slice(0, 200)  # what lies far from the cut does not feel it
    assert np.abs(part[near].astype(int) - filled[near]).mean() < 0.5


# ---- colour profiles


@pytest.mark.parametrize(("channels", "space"), [(1, b"GRAY"), (2, b"GRAY"), (3, b"RGB "), (4, b"RGB ")])
def test_a_profile_that_fits_is_kept_and_values_stay(
    tmp_path: Path, make_pixels: Pixels, channels: int, space: bytes
) -> None:
    photo = Photo(make_pixels(8, 9, channels, dtype=np.uint16), icc=profile(space))
    write_photo(tmp_path / "a.png", photo)
    again = silent_read(tmp_path / "a.png")
    assert again.icc == profile(space)
    np.testing.assert_array_equal(again.pixels, photo.pixels)


@pytest.mark.parametrize(
    ("channels", "icc", "reason"),
    [
        (3, b"not a profile", "is damaged"),
        (3, SRGB[:200], "is damaged"),
        (3, profile(b"GRAY"), "is for GRAY and the pixels are RGB"),
        (1, SRGB, "is for RGB and the pixels are GRAY"),
        (3, profile(b"CMYK"), "is for CMYK and the pixels are RGB"),
    ],
)
def test_a_profile_that_cannot_be_right_is_dropped_with_a_note(
    tmp_path: Path, make_pixels: Pixels, channels: int, icc: bytes, reason: str
) -> None:
    write_photo(tmp_path / "a.png", Photo(make_pixels(8, 9, channels), icc=icc))
    notes: list[str] = []
    assert read_photo(tmp_path / "a.png", notify=notes.append).icc is None
    assert len(notes) == 1
    assert reason in notes[0]


# ---- EXIF, resolution, notes


@pytest.mark.parametrize("suffix", IN_EXIF)
@pytest.mark.parametrize("with_exif", [False, True])
def test_notes_stand_in_exif_and_what_was_there_stays(
    tmp_path: Path, make_pixels: Pixels, suffix: str, with_exif: bool
) -> None:
    exif = exif_block(comment=b"ASCII\0\0\0by the sea\0\0") if with_exif else None
    write_photo(tmp_path / f"a{suffix}", Photo(make_pixels(24, 32), exif), text=TEXT)
    tags = Image.open(tmp_path / f"a{suffix}").getexif()
    details = tags.get_ifd(0x8769)
    assert tags[0x0131] == "gdposr 9.9"
    lines = ["by the sea"] if with_exif else []
    lines += ["gdposr-seed=7", "gdposr-bundle=0123456789abcdef"]
    assert details[0x9286] == b"ASCII\0\0\0" + "\n".join(lines).encode()
    if with_exif:
        assert tags[0x0110] == "Camera"
        assert details[0x927C] == b"MAKER" * 5
        assert (details[0xA002], details[0xA003]) == (32, 24)
    again = silent_read(tmp_path / f"a{suffix}")
    write_photo(tmp_path / "b.jpg", again, text=TEXT | {"gdposr-seed": "8"})
    comment = Image.open(tmp_path / "b.jpg").getexif().get_ifd(0x8769)[0x9286]
    assert comment.count(b"gdposr-seed=") == 1, "notes of the same keys are replaced"
    assert b"gdposr-seed=8" in comment


@pytest.mark.parametrize("order", ["<", ">"])
def test_comments_in_other_alphabets_stay_readable(order: str) -> None:
    wide = "utf-16-le" if order == "<" else "utf-16-be"
    block = revised_exif(exif_block(comment=b"UNICODE\0" + "Düne 砂丘".encode(wide), order=order), 4, 4, TEXT)
    assert block is not None
    comment = tags_of(block)[1][0x9286]
    assert comment[8:].decode(wide).split("\n")[:2] == ["Düne 砂丘", "gdposr-seed=7"]
    block = revised_exif(exif_block(comment=bytes(8) + b"plain words", order=order), 4, 4, {"key": "ü"})
    assert block is not None
    assert tags_of(block)[1][0x9286] == bytes(8) + b"plain words\nkey=\\xfc"


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_revised_block_keeps_offsets_and_loses_its_thumbnail(order: str) -> None:
    thumbnail = b"\xff\xd8" + b"OLD PICTURE" * 20
    block = exif_block(thumbnail, order=order)
    revised = revised_exif(block, 100_000, 50, {})
    assert revised is not None
    assert b"OLD PICTURE" not in revised
    assert revised.index(b"MAKER") == block.index(b"MAKER"), "maker notes hold offsets: they may not move"
    tags, details = tags_of(revised)
    assert tags[0x0110] == "Camera"
    assert (details[0xA002], details[0xA003]) == (100_000, 50), "a number too large for SHORT becomes LONG"
    assert not tags.get_ifd(1)


def test_damaged_exif_never_stops_a_photo(tmp_path: Path, make_pixels: Pixels) -> None:
    block = exif_block(b"\xff\xd8THUMB", comment=b"ASCII\0\0\0hello")
    rest = np.random.default_rng(5)
    for trial in range(300):
        damaged = bytearray(block)
        for _ in range(3):
            damaged[rest.integers(6, len(block))] = rest.integers(256)
        cut = bytes(damaged[: rest.integers(0, len(block))] if trial % 3 == 0 else damaged)
        result = revised_exif(cut, 10, 20, TEXT)
        assert result is not None
        assert is_sound(result)
        exif_dpi(result)
    write_photo(tmp_path / "a.png", Photo(make_pixels(8, 8), EXIF_HEADER + b"rubbish, more rubbish"))
    assert read_photo(tmp_path / "a.png").exif is None or pytest.fail("rubbish was kept")
    (tmp_path / "b.png").write_bytes(png16(make_pixels(8, 8, 3, dtype=np.uint16)).replace(b"II*\0", b"IX*\0"))


def test_exif_too_long_for_jpeg_is_left_out_with_a_note(tmp_path: Path, make_pixels: Pixels) -> None:
    block = exif_block() + bytes(70_000)
    notes: list[str] = []
    write_photo(tmp_path / "a.jpg", Photo(make_pixels(8, 8), block), text=TEXT, notify=notes.append)
    assert "too long for JPEG" in notes[0]
    assert Image.open(tmp_path / "a.jpg").getexif()[0x0131] == "gdposr 9.9"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", AVIF])
@pytest.mark.parametrize("dpi", [(300.0, 300.0), (72.0, 144.0)])
def test_resolution_is_kept(
    tmp_path: Path, make_pixels: Pixels, suffix: str, dpi: tuple[float, float]
) -> None:
    write_photo(tmp_path / f"a{suffix}", Photo(make_pixels(8, 8), dpi=dpi))
    assert silent_read(tmp_path / f"a{suffix}").dpi == pytest.approx(dpi, rel=1e-3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_begins_with_the_exif_block(
    tmp_path: Path, make_pixels: Pixels, order: str, channels: int
) -> None:
    pixels = make_pixels(30, 20, channels, dtype=np.uint16 if channels != 2 else np.uint8)
    write_photo(
        tmp_path / "a.tif", Photo(pixels, exif_block(b"THUMB", order=order), None, (240, 240)), text=TEXT
    )
    assert (tmp_path / "a.tif").read_bytes()[:2] == (b"II" if order == "<" else b"MM")
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 1  # type: ignore[attr-defined]
        assert image.getexif().get_ifd(0x8769)[0x927C] == b"MAKER" * 5
    again = silent_read(tmp_path / "a.tif")
    np.testing.assert_array_equal(again.pixels, pixels)
    assert again.exif is not None
    assert tags_of(again.exif)[0][0x0110] == "Camera"
    assert again.dpi == (240, 240)


@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png", ".webp"])
def test_names_in_any_alphabet_survive(tmp_path: Path, make_pixels: Pixels, suffix: str) -> None:
    tags, name = Image.Exif(), "Düne 砂丘".encode()
    for tag in (0x010E, 0x010F, 0x0110, 0x013B, 0x8298):  # description, maker, model, author, copyright
        tags[tag] = name
    write_photo(tmp_path / f"a{suffix}", Photo(make_pixels(8, 8), tags.tobytes()))
    again = silent_read(tmp_path / f"a{suffix}").exif
    assert again is not None
    assert again.count(name + b"\0") == 5
    assert all(
        tags_of(again)[0][tag].encode("latin-1") == name for tag in (0x010E, 0x010F, 0x0110, 0x013B, 0x8298)
    )


# ---- HEIC and AVIF


def heic(width: int, height: int) -> bytes:
    box = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic")
    return box + struct.pack(">II", width, height) + b"hvcC" + bytes(17) + b"\xfa" + bytes(30)


class HeifFile(ImageFile.ImageFile):
    """What a HEIF reader looks like to Pillow: the size, and red pixels."""

    format = "HEIF"

    def _open(self) -> None:
        assert self.fp is not None
        self._size = struct.unpack(">II", self.fp.read(32)[24:])
        self._mode = "RGB"
        self.n_frames = 3  # the photo and two others of a burst

    def load(self) -> Any:
        self.im = Image.new("RGB", self.size, (200, 10, 20)).im
        return super(ImageFile.ImageFile, self).load()


def test_heic_without_its_reader_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {name: entry for name, entry in Image.OPEN.items() if name != "HEIF"})
    (tmp_path / "a.heic").write_bytes(heic(4, 3))
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        read_photo(tmp_path / "a.heic")
    assert find_photos([tmp_path]) == [tmp_path / "a.heic"]


def test_heic_is_read_where_its_reader_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader: Any = types.ModuleType("pillow_heif")
    reader.register_heif_opener = lambda: Image.register_open(
        "HEIF", HeifFile, lambda start: start[4:12] == b"ftypheic"
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", reader)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    (tmp_path / "a.heic").write_bytes(heic(4, 3))
    notes: list[str] = []
    photo = read_photo(tmp_path / "a.heic", notify=notes.append)
    assert photo.pixels.shape == (3, 4, 3)
    assert photo.pixels[0, 0].tolist() == [200, 10, 20]
    assert "10 bits per channel are read as 8" in notes[0]


@needs_avif
def test_iso_media_files_are_told_apart(tmp_path: Path, make_pixels: Pixels) -> None:
    assert media_family(heic(4, 4)) == "HEIF"
    Image.fromarray(make_pixels(8, 8)).save(tmp_path / "a.avif")
    assert media_family((tmp_path / "a.avif").read_bytes()) == "AVIF"
    movie = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)
    for other in (b"", b"ftyp", bytes(100), movie):
        assert media_family(other) is None


@needs_avif
@pytest.mark.parametrize("channels", [3, 4])
def test_avif_is_written_and_read(tmp_path: Path, make_pixels: Pixels, channels: int) -> None:
    pixels = make_pixels(32, 40, channels)
    write_photo(tmp_path / "a.avif", Photo(pixels, exif_block(), SRGB))
    again = silent_read(tmp_path / "a.avif")
    assert again.pixels.shape == pixels.shape
    assert np.abs(again.pixels.astype(int) - pixels).mean() < 4
    assert again.icc == SRGB
    assert again.exif is not None
    stored = Image.fromarray(pixels)
    stored.save(tmp_path / "turned.avif", exif=exif_block())  # orientation 6
    turned = silent_read(tmp_path / "turned.avif").pixels
    assert np.abs(turned.astype(int) - np.rot90(pixels, -1)).mean() < 9


@needs_avif
def test_avif_without_support_is_refused(
    tmp_path: Path, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photo(tmp_path / "a.avif", Photo(make_pixels(8, 8)))
    for registry in ("OPEN", "SAVE"):
        entries = {name: entry for name, entry in getattr(Image, registry).items() if name != "AVIF"}
        monkeypatch.setattr(Image, registry, entries)
    with pytest.raises(ImageError, match=r"reads no AVIF: install Pillow 11\.3"):
        read_photo(tmp_path / "a.avif")
    with pytest.raises(ImageError, match="writes no AVIF"):
        write_photo(tmp_path / "b.avif", Photo(make_pixels(8, 8)))


# ---- limits


def test_the_limit_names_the_option(tmp_path: Path, make_pixels: Pixels) -> None:
    write_photo(tmp_path / "a.png", Photo(make_pixels(20, 30)))
    with pytest.raises(ImageError, match=r"30x20 is more than .*--max-pixels 1, in Python max_pixels=600"):
        read_photo(tmp_path / "a.png", max_pixels=599)


def test_a_file_larger_than_any_picture_is_not_even_read(tmp_path: Path) -> None:
    with open(tmp_path / "a.png", "wb") as stream:
        stream.truncate(3 << 30)  # a file of holes
    with pytest.raises(
        ImageError, match=r"3221 MB are more than a picture of 100 megapixels takes.*--max-pixels"
    ):
        read_photo(tmp_path / "a.png")


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a device or a pipe"):
        read_photo(tmp_path / "a.png")
