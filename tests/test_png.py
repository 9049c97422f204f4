"""PNG and TIFF written block by block: exact values, every filter, threads and bands that change nothing, threads' errors."""

import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import runtime.image.bands
from runtime.errors import GdposrError, ImageError
from runtime.image.bands import Strips, block_rows, in_order, row_blocks
from runtime.image.photo import Photo
from runtime.image.png_chunks import png_chunks
from runtime.image.read.decode import read_photo
from runtime.image.write.encode import check_output, write_photo
from runtime.image.write.png import filtered_rows, write_png

Pixels = Callable[..., np.ndarray]
KINDS = list(itertools.product((1, 2, 3, 4), (np.uint8, np.uint16)))
SUFFIXES = (".png", ".tif")


def strips(pixels: np.ndarray, heights: tuple[int, ...] = (1, 7, 2, 30)) -> Strips:
    """The picture in bands of uneven heights."""

    def bands() -> Iterator[np.ndarray]:
        top = 0
        for height in itertools.cycle(heights):
            if top >= len(pixels):
                return
            yield pixels[top : top + height]
            top += height

    return Strips(pixels.shape, pixels.dtype, bands())


def unfiltered(filtered: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """PNG's filters undone byte by byte, as the specification writes them."""
    rows = []
    for number, *packed in filtered.tolist():
        row: list[int] = []
        for i, value in enumerate(packed):
            a, b = (row[i - step] if i >= step else 0), int(above[i])
            c = int(above[i - step]) if i >= step else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            row.append((value + (0, a, b, (a + b) // 2, paeth)[number]) % 256)
        rows.append(row)
        above = np.array(row)
    return np.array(rows, np.uint8)


def high_bytes(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


# ---- values


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("channels", "dtype"), KINDS)
def test_what_is_written_is_read_back_by_us_and_by_pillow(
    tmp_path: Path, make_pixels: Pixels, channels: int, dtype: Any, suffix: str
) -> None:
    pixels = make_pixels(23, 37, channels, dtype=dtype)
    path = tmp_path / f"a{suffix}"
    write_photo(path, Photo(pixels))
    ours = read_photo(path).pixels
    wide = suffix == ".tif" and channels == 2 and dtype == np.uint16  # stored as RGBA, which Pillow can read
    expected = pixels[..., [0, 0, 0, 1]] if wide else pixels
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, expected)
    with Image.open(path) as image:
        theirs = np.array(image)
    if dtype == np.uint16 and channels == 1:
        np.testing.assert_array_equal(theirs, pixels[..., 0])
    elif dtype == np.uint16 and channels == 2 and suffix == ".png":  # Pillow hands it out as RGBA
        np.testing.assert_array_equal(theirs[..., 2:], high_bytes(pixels))
    else:
        np.testing.assert_array_equal(theirs.reshape(expected.shape), high_bytes(expected))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("size", [(1, 1), (1, 70_001), (70_001, 1), (3, 2)])
def test_odd_sizes(tmp_path: Path, make_pixels: Pixels, size: tuple[int, int], suffix: str) -> None:
    for channels, dtype in KINDS:
        pixels = make_pixels(*size, channels, dtype=dtype)
        write_photo(tmp_path / f"a{suffix}", Photo(pixels))
        again = read_photo(tmp_path / f"a{suffix}").pixels
        np.testing.assert_array_equal(again[..., [0, -1]], pixels[..., [0, -1]])


def test_every_filter_is_undone_by_the_specifications_own_words() -> None:
    generator = np.random.default_rng(1)
    y, x = np.mgrid[:40, :20]
    planes = [x * 9, y * 13, (x + y) * 5, np.where(x < y, 250, 3)]
    picture = np.stack(planes, axis=2).astype(np.uint8)
    picture[30:] = generator.integers(0, 256, (10, 20, 4))
    picture[20:24] = 0
    used: set[int] = set()
    for channels in (1, 2, 3, 4):
        for rows in (
            picture[..., :channels],
            (picture[..., :channels] // 2 + generator.integers(0, 8, (40, 20, 1))),
        ):
            flat = np.ascontiguousarray(rows, np.uint8).reshape(40, -1)
            above = generator.integers(0, 256, flat.shape[1]).astype(np.uint8)
            filtered = filtered_rows(flat, above, channels)
            used |= set(filtered[:, 0].tolist())
            np.testing.assert_array_equal(unfiltered(filtered, above, channels), flat)
    assert used == {0, 1, 2, 3, 4}


def test_the_filter_with_the_least_sum_is_taken() -> None:
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (4, 1))
    above = np.zeros(100, np.uint8)
    filtered = filtered_rows(ramp, above, 1)
    assert filtered[1:, 0].tolist() == [2, 2, 2], "equal rows: Up gives zeros"
    assert not filtered[1:, 1:].any()
    assert filtered[0, 0] == 1, "a ramp below nothing: Sub"


def test_photos_are_hardly_larger_than_pillows(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    coarse = Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8))
    smooth = np.asarray(coarse.resize((500, 400), Image.Resampling.BICUBIC), np.float64)
    pixels = np.clip(smooth + generator.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)
    reference = io.BytesIO()
    Image.fromarray(pixels).save(reference, "PNG")
    write_photo(tmp_path / "a.png", Photo(pixels))
    assert (tmp_path / "a.png").stat().st_size <= 1.05 * len(reference.getvalue())


def test_a_png_is_built_as_the_specification_asks(make_pixels: Pixels) -> None:
    stream = io.BytesIO()
    write_png(
        stream, make_pixels(600, 700), dpi=(72, 144), text={"key": "värde", "snow": "雪"}, icc=b"profile"
    )
    found = list(png_chunks(stream.getvalue()))
    assert all(chunk.sound for chunk in found)
    chunks = [(chunk.kind, chunk.content) for chunk in found]
    kinds = [kind for kind, _ in chunks]
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert kinds.index(b"iCCP") < kinds.index(b"IDAT")
    assert kinds.count(b"IDAT") > 2
    contents = dict(chunks)
    assert struct.unpack(">IIB", contents[b"pHYs"]) == (2835, 5669, 1)
    assert contents[b"tEXt"] == b"key\0v\xe4rde"
    assert contents[b"iTXt"].endswith("雪".encode())
    assert zlib.decompress(contents[b"iCCP"].split(b"\0\0", 1)[1]) == b"profile"
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    assert len(zlib.decompress(packed)) == 600 * (1 + 3 * 700), "one zlib stream with a right checksum"


# ---- blocks


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_and_threads_change_no_byte(
    tmp_path: Path, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch, suffix: str, dtype: Any
) -> None:
    monkeypatch.setattr(runtime.image.bands, "BLOCK_BYTES", 4096)
    pixels = make_pixels(211, 60, 3, dtype=dtype)
    files = []
    for workers, heights in ((1, None), (4, None), (3, (1, 7, 2, 30)), (2, (211,)), (2, (64,))):
        monkeypatch.setattr(runtime.image.bands, "MAX_WORKERS", workers)
        path = tmp_path / f"{len(files)}{suffix}"
        write_photo(path, Photo(pixels if heights is None else strips(pixels, heights)))
        files.append(path.read_bytes())
    assert len(set(files)) == 1
    np.testing.assert_array_equal(read_photo(path).pixels, pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", ".bmp"])
def test_strips_are_written_as_the_array_is(tmp_path: Path, make_pixels: Pixels, suffix: str) -> None:
    pixels = make_pixels(90, 40)
    write_photo(tmp_path / f"array{suffix}", Photo(pixels))
    write_photo(tmp_path / f"strips{suffix}", Photo(strips(pixels)))
    assert (tmp_path / f"array{suffix}").read_bytes() == (tmp_path / f"strips{suffix}").read_bytes()


def test_gray_strips_without_a_channel_axis(tmp_path: Path, make_pixels: Pixels) -> None:
    gray = make_pixels(40, 30, 1)[..., 0]
    for suffix in (".png", ".tif", ".bmp"):
        write_photo(tmp_path / f"a{suffix}", Photo(strips(gray)))
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / f"a{suffix}")), gray)


def test_blocks_do_not_share_memory_with_bands_that_are_used_again() -> None:
    def bands() -> Iterator[np.ndarray]:
        band = np.empty((3, 5, 1), np.uint8)
        for value in range(4):
            band[:] = value
            yield band

    blocks = list(row_blocks(Strips((12, 5, 1), np.dtype(np.uint8), bands()), 5))
    assert [len(block) for block in blocks] == [5, 5, 2]
    assert np.concatenate(blocks)[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert block_rows(10**9, 4) == 1


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize(
    "error", [GdposrError("the device is gone"), RuntimeError("a bug"), ValueError("another")]
)
def test_an_error_while_the_rows_are_made_comes_out_as_it_is(
    tmp_path: Path, suffix: str, error: Exception
) -> None:
    def bands() -> Iterator[np.ndarray]:
        yield np.zeros((400, 1000, 3), np.uint8)
        raise error

    picture = Strips((4000, 1000, 3), np.dtype(np.uint8), bands())
    with pytest.raises(type(error), match=str(error)):
        write_photo(tmp_path / f"a{suffix}", Photo(picture))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_few_items_are_taken_ahead(threads: int) -> None:
    taken: list[int] = []
    items = (taken.append(k) or k for k in range(50))  # type: ignore[func-returns-value]
    for expected, result in enumerate(in_order(lambda k: k * k, items, threads)):
        assert result == expected**2
        assert len(taken) <= expected + threads + 2
    assert len(taken) == 50


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_error_comes_out(threads: int) -> None:
    def inverse(value: int) -> float:
        return 1 / value

    with pytest.raises(ZeroDivisionError):
        list(in_order(inverse, range(3, -3, -1), threads))


# ---- limits


def never() -> Iterator[np.ndarray]:
    raise AssertionError("no row may be asked for")
    yield


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("a.tif", (40_000, 40_000, 3), np.uint8, r"TIFF cannot hold 4\.8 GB of pixels, its limit is 4\.2 GB"),
        ("a.tif", (24_000, 24_000, 2), np.uint16, "TIFF cannot hold"),
        ("a.bmp", (40_000, 40_000, 3), np.uint8, "BMP cannot hold"),
        ("a.jpg", (10, 65_501, 3), np.uint8, "JPEG cannot hold 65501x10 pixels, its limit is 65500"),
        ("a.webp", (16_384, 10, 3), np.uint8, "WEBP cannot hold"),
        ("a.avif", (40_000, 10, 3), np.uint8, "AVIF"),  # its size, or that Pillow has no AVIF
    ],
)
def test_what_cannot_be_held_is_known_before_any_row_is_made(
    tmp_path: Path, name: str, shape: tuple[int, ...], dtype: Any, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        write_photo(tmp_path / name, Photo(Strips(shape, np.dtype(dtype), never())))
    with pytest.raises(ImageError, match=message):
        check_output(tmp_path / name, shape, np.dtype(dtype))
    assert check_output(tmp_path / "a.png", shape, np.dtype(dtype)) == "PNG"
    assert list(tmp_path.iterdir()) == []
