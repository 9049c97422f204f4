"""What further kinds of picture files become: alpha, HEIC and AVIF, and the limits of what is read at all."""

import os
import struct
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import SRGB, Pixels, exif_block, needs_avif, silent_read
from PIL import Image, ImageFile

from runtime.errors import ImageError
from runtime.folders import find_photos
from runtime.image.arrays import fill_transparent
from runtime.image.photo import Photo
from runtime.image.read.decode import media_family, read_photo
from runtime.image.write.encode import write_photo
from runtime.upscale.upscaler import Upscaler

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
