"""Pictures of 16 bits per channel: PNG, TIFF and PPM are read exactly or refused, and no format rounds them in silence."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import AVIF, SRGB, Pixels, exif_block, needs_avif, png16, silent_read, tags_of, tiff16
from PIL import Image

from runtime.errors import ImageError
from runtime.image.photo import Photo
from runtime.image.read.decode import read_photo
from runtime.image.read.sixteen_bit import hidden_depth
from runtime.image.write.encode import write_photo
from runtime.upscale.upscaler import Upscaler

# ---- in


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


# ---- out


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
