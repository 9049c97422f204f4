"""Reading photos: every pixel kind, metadata, bad files, finding files."""

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import SRGB, pixels, smooth
from PIL import Image

from runtime.errors import ImageError
from runtime.folders import find_photos
from runtime.image.exif import ORIENTATION, PIXEL_WIDTH, upright_exif
from runtime.image.photo import Photo
from runtime.image.read.decode import read_photo
from runtime.image.write.encode import write_photo

TRANSPOSES = {  # EXIF orientation -> the operation that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_block(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    exif[ORIENTATION] = orientation
    exif[0x8769] = {PIXEL_WIDTH: 32, 0xA003: 24, 0x829D: 2.8}
    return exif.tobytes()


def png(width: int, height: int, depth: int, kind: int, rows: bytes = b"") -> bytes:
    """A PNG from its parts: Pillow cannot write 16-bit colour or a false size."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# ---- what is read


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_plain_modes_are_read_exactly(tmp_path: Path, mode: str, channels: int) -> None:
    data = pixels(channels)
    Image.fromarray(data.squeeze()).save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, data)
    assert (photo.exif, photo.icc, photo.dpi) == (None, None, None)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(smooth()).quantize(16)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=3)
    np.testing.assert_array_equal(read_photo(tmp_path / "plain.png").pixels, np.array(image.convert("RGB")))
    clear = read_photo(tmp_path / "clear.png").pixels
    assert clear.shape[2] == 4
    np.testing.assert_array_equal(clear[..., 3] == 0, np.array(image) == 3)


def test_colour_keys_become_alpha(tmp_path: Path) -> None:
    gray, rgb = pixels(1), pixels(3)
    Image.fromarray(gray[..., 0]).save(tmp_path / "gray.png", transparency=int(gray[0, 0, 0]))
    Image.fromarray(rgb).save(tmp_path / "rgb.png", transparency=tuple(int(v) for v in rgb[2, 3]))
    assert read_photo(tmp_path / "gray.png").pixels[0, 0, 1] == 0
    keyed = read_photo(tmp_path / "rgb.png").pixels
    assert keyed[2, 3, 3] == 0
    assert keyed[..., 3].max() == 255


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(pixels(1)[..., 0] > 127).save(tmp_path / "a.png")
    assert set(np.unique(read_photo(tmp_path / "a.png").pixels)) == {0, 255}


@pytest.mark.parametrize("icc", [None, b"not a profile"])
def test_cmyk_becomes_rgb_and_loses_its_profile(tmp_path: Path, icc: bytes | None) -> None:
    image = Image.fromarray(smooth()).convert("CMYK")
    image.save(tmp_path / "a.tif", icc_profile=icc)
    notes: list[str] = []
    photo = read_photo(tmp_path / "a.tif", notify=notes.append)
    np.testing.assert_array_equal(photo.pixels, np.array(image.convert("RGB")))
    assert photo.icc is None
    assert len(notes) == (icc is not None)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_gray_keeps_its_depth_both_ways(tmp_path: Path, suffix: str) -> None:
    data = pixels(1, np.uint16)
    write_photo(tmp_path / f"a{suffix}", Photo(data))
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.pixels.dtype == np.uint16
    np.testing.assert_array_equal(photo.pixels, data)


def test_8_bit_files_are_read_without_a_word(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif", ".webp", ".bmp"):
        write_photo(tmp_path / f"a{suffix}", Photo(smooth()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_photo(tmp_path / f"a{suffix}")


# ---- metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_once_and_reset(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = Image.fromarray(smooth())
    options: dict[str, Any] = {"quality": 100} if suffix in (".jpg", ".webp") else {}
    stored.save(tmp_path / f"a{suffix}", exif=exif_block(orientation), **options)
    shown = np.array(stored.transpose(TRANSPOSES[orientation]) if orientation > 1 else stored)
    photo = read_photo(tmp_path / f"a{suffix}")
    assert photo.pixels.shape == shown.shape
    assert np.abs(photo.pixels.astype(int) - shown).mean() < 4
    assert photo.exif is not None
    assert upright_exif(photo.exif) == (photo.exif, 1)
    tags = Image.Exif()
    tags.load(photo.exif)
    assert tags.get(ORIENTATION, 1) == 1
    write_photo(tmp_path / "again.png", photo)
    np.testing.assert_array_equal(read_photo(tmp_path / "again.png").pixels, photo.pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_icc_and_dpi_survive(tmp_path: Path, suffix: str) -> None:
    photo = Photo(smooth(), exif_block(), SRGB, (300.0, 300.0))
    write_photo(tmp_path / f"a{suffix}", photo, text={"seed": "7"})
    again = read_photo(tmp_path / f"a{suffix}")
    assert again.icc == SRGB
    assert again.exif is not None
    for block in (photo.exif, again.exif):
        tags = Image.Exif()
        tags.load(block)
        assert tags[0x0110] == "Camera"
        assert float(tags.get_ifd(0x8769)[0x829D]) == pytest.approx(2.8)
    if suffix != ".webp":
        assert again.dpi == pytest.approx((300, 300), rel=1e-3)


def test_exif_names_the_new_size_and_keeps_the_rest(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.jpg", Photo(smooth(48, 64), exif_block()))
    details = Image.open(tmp_path / "a.jpg").getexif().get_ifd(0x8769)
    assert (details[PIXEL_WIDTH], details[0xA003]) == (64, 48)
    assert float(details[0x829D]) == pytest.approx(2.8)


def test_patching_exif_changes_nothing_else_and_survives_damage() -> None:
    block = exif_block(6)
    patched, orientation = upright_exif(block)
    assert orientation == 6
    assert upright_exif(patched) == (patched, 1)
    assert len(patched) == len(block)
    assert sum(a != b for a, b in zip(block, patched, strict=True)) == 1
    for end in range(len(block)):
        upright_exif(block[:end])


def test_notes_are_written_where_the_format_has_a_place(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        write_photo(
            tmp_path / f"a{suffix}", Photo(smooth()), text={"Software": "gdposr 1", "gdposr-seed": "7"}
        )
    assert Image.open(tmp_path / "a.png").info["gdposr-seed"] == "7"
    assert Image.open(tmp_path / "a.png").info["Software"] == "gdposr 1"
    for suffix in (".jpg", ".tif", ".webp"):
        tags = Image.open(tmp_path / f"a{suffix}").getexif()
        assert tags[0x0131] == "gdposr 1"
        assert tags.get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0gdposr-seed=7"


# ---- bad files


def test_missing_empty_folder_and_text(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is no picture\n" * 20)
    for name, message in (
        ("none.png", "no such file"), ("", "got a folder"), ("empty.png", "0 bytes"), ("text.png", "something else")
    ):  # fmt: skip
        with pytest.raises(ImageError, match=message) as caught:
            read_photo(tmp_path / name)
        assert ": " in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own word on a cut TIFF, before it fails
def test_a_truncated_file_is_an_error(tmp_path: Path, suffix: str, share: float) -> None:
    write_photo(tmp_path / f"a{suffix}", Photo(pixels(3, np.uint8, 90, 110)))
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=rf"a\{suffix}"):
        read_photo(tmp_path / f"a{suffix}")


def test_an_absurd_size_is_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 2))
    with pytest.raises(ImageError, match="60000x60000 is more than the limit of 100 megapixels"):
        read_photo(tmp_path / "bomb.png")
    write_photo(tmp_path / "a.png", Photo(smooth()))
    with pytest.raises(ImageError, match="raise the limit"):
        read_photo(tmp_path / "a.png", max_pixels=24 * 32 - 1)
    read_photo(tmp_path / "a.png", max_pixels=24 * 32)


def test_the_limit_is_ours_and_pillows_stays_in_place(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", Photo(smooth()))
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = 10
    try:
        read_photo(tmp_path / "a.png")
        assert Image.MAX_IMAGE_PIXELS == 10
    finally:
        Image.MAX_IMAGE_PIXELS = before


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_animations_and_several_pages_are_refused(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(smooth()), Image.fromarray(255 - smooth())]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"2 (frames|pages)"):
        read_photo(tmp_path / f"a{suffix}")


def test_a_float_tiff_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="not supported"):
        read_photo(tmp_path / "a.tif")


# ---- finding


def test_folders_globs_and_files_give_one_sorted_list(tmp_path: Path) -> None:
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        ".hidden.png",
        "sub/c.tif",
        ".git/d.png",
        "out/e.png",
        "odd[1].png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(*inputs: str, **options: Any) -> list[str]:
        found = find_photos([tmp_path / item for item in inputs], **options)
        return [path.relative_to(tmp_path).as_posix() for path in found]

    assert names("", exclude=[tmp_path / "out"]) == ["a.JPG", "b.png", "odd[1].png", "sub/c.tif"]
    assert names("", recursive=False) == ["a.JPG", "b.png", "odd[1].png"]
    assert names("**/*.tif", "b.png", "sub", "b.png") == ["b.png", "sub/c.tif"]
    assert names("odd[1].png") == ["odd[1].png"]
    assert names("notes.txt", "none.png", "*.gif") == ["*.gif", "none.png", "notes.txt"]


def test_a_link_to_a_photo_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert len(find_photos([tmp_path])) == 1
