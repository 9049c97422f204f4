"""EXIF and colour profiles: notes stand in EXIF, what was there and is still true stays, what is damaged never stops a photo."""

from pathlib import Path

import numpy as np
import pytest
from picture_files import AVIF, SRGB, Pixels, exif_block, png16, silent_read, tags_of
from PIL import Image

from runtime.image.exif import EXIF_HEADER, exif_dpi, is_sound, revised_exif
from runtime.image.photo import Photo
from runtime.image.read.decode import read_photo
from runtime.image.write.encode import write_photo

TEXT = {"Software": "gdposr 9.9", "gdposr-seed": "7", "gdposr-bundle": "0123456789abcdef"}
IN_EXIF = (".jpg", ".tif", ".webp", AVIF)


def profile(space: bytes) -> bytes:
    """A profile of another colour space, by its header."""
    return SRGB[:16] + space + SRGB[20:]


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
