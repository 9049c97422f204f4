"""Writing photos: what cannot be written says so, and a file is whole or not there, whatever fails."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import pixels, smooth
from PIL import Image

import runtime.files
import runtime.image.write.encode
from runtime.errors import ImageError
from runtime.image.photo import Photo
from runtime.image.write.encode import write_photo


@pytest.mark.parametrize(
    ("name", "photo", "message"),
    [
        ("a.xyz", Photo(smooth()), r"cannot write \.xyz"),
        ("a", Photo(smooth()), "without suffix"),
        ("a.gif", Photo(smooth()), "cannot write"),
        ("a.jpg", Photo(pixels(4)), "transparency"),
        ("a.bmp", Photo(pixels(2)), "transparency"),
        ("a.jpg", Photo(np.zeros((1, 70000, 3), np.uint8)), "JPEG cannot hold"),
        ("a.webp", Photo(np.zeros((1, 20000, 3), np.uint8)), "WEBP cannot hold"),
        ("none/a.png", Photo(smooth()), "No such file or directory"),
    ],
)
def test_what_cannot_be_written_says_so_and_leaves_nothing(
    tmp_path: Path, name: str, photo: Photo, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        write_photo(tmp_path / name, photo)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_opaque_alpha_needs_no_place_in_the_file(
    tmp_path: Path, suffix: str, channels: int, dtype: type
) -> None:
    opaque = np.full((300, 9, channels), 77, dtype)
    opaque[..., -1] = np.iinfo(dtype).max
    write_photo(tmp_path / f"a{suffix}", Photo(opaque), notify=lambda note: None)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.mode == ("L" if channels == 2 else "RGB")
    opaque[299, 8, -1] -= 1
    with pytest.raises(ImageError, match="transparency"):
        write_photo(tmp_path / f"b{suffix}", Photo(opaque), notify=lambda note: None)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_failure_in_the_middle_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    write_photo(path, Photo(smooth()))
    before = path.read_bytes()

    def half_way(stream: Any, *args: Any, **kwargs: Any) -> None:
        (stream if suffix != ".jpg" else args[0]).write(before[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime.image.write.encode, "write_png", half_way)
    monkeypatch.setattr(runtime.image.write.encode, "write_tiff", half_way)
    monkeypatch.setattr(Image.Image, "save", half_way)
    with pytest.raises(ImageError, match="No space left on device"):
        write_photo(path, Photo(255 - smooth()))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_at_the_end_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "a.png"
    write_photo(path, Photo(smooth()))
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(runtime.files.os, failing, fail)
    with pytest.raises(ImageError, match="Input/output error"):
        write_photo(path, Photo(255 - smooth()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == before


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime.image.write.encode, "write_png", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_photo(tmp_path / "a.png", Photo(smooth()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permission bits")
def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", Photo(smooth()))
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_photo_checks_its_pixels() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ImageError, match="a photo needs pixels"):
            Photo(wrong)
