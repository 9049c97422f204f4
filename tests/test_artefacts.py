"""Measures of artefacts: seams between tiles, and the checkerboard of a pixel shuffle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError
from training.metrics.artefacts import checkerboard_db, seam

Pixels = Callable[..., np.ndarray]


def load(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


# ---- seams


def ramp(height: int = 160, width: int = 192) -> np.ndarray:
    """Rises by half a level a pixel to the right and downwards, (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    return np.repeat(((x + y) // 2).astype(np.uint8)[..., None], 3, axis=2)


ROWS, COLUMNS = (64, 128), (64, 128)


def checkered(picture: np.ndarray, step: int) -> np.ndarray:
    """Every other tile of 64 pixels brighter by step."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] // 64
    return picture + (((x + y) % 2) * step).astype(np.uint8)[..., None]


def test_a_picture_without_seams_has_the_measure_one() -> None:
    assert seam(ramp(), ROWS, COLUMNS) == pytest.approx(1)
    assert 0.8 < seam(natural(256), (64, 128, 192), (64, 128, 192)) < 1.25


def test_tiles_that_differ_by_a_level_show_and_more_the_more_they_differ() -> None:
    clean = natural(256).clip(0, 240)
    borders = (64, 128, 192)
    found = [seam(checkered(clean, step), borders, borders) for step in (0, 2, 8)]
    assert found[0] < found[1] < found[2]
    assert found[2] > 2


def test_the_measure_is_the_stated_ratio_on_a_ramp() -> None:
    """One border where the picture rises by 5 levels instead of 1."""
    picture = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(40, axis=0)
    picture[:, 32:] += 4
    assert seam(picture, (), (32,)) == pytest.approx(5)
    assert seam(picture.transpose(1, 0, 2), (32,), ()) == pytest.approx(5)


def test_a_pattern_of_the_pixel_shuffle_is_no_seam() -> None:
    """Every eighth line brighter: its steps lie at all multiples of 8, at borders and beside them."""
    picture = natural(256).clip(0, 200)
    picture[:, ::8] += 20
    assert 0.9 < seam(picture, (), (64, 128, 192)) < 1.1


def test_neighbouring_borders_are_not_compared_with_each_other() -> None:
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:, 24:] = 50
    picture[:, 32:] = 100
    picture[:, 40:] = 101  # the one step beside the borders
    assert seam(picture, (), (24, 32)) == pytest.approx(50 / (1 / 4))  # lines 8, 16, 40 and 48


def test_the_seam_of_nothing_is_not_a_number(make_pixels: Pixels) -> None:
    assert np.isnan(seam(make_pixels(64, 64), (), ()))
    assert np.isnan(seam(np.full((64, 64, 3), 7, np.uint8), (32,), (32,)))


def test_borders_outside_the_picture_are_named(make_pixels: Pixels) -> None:
    for rows, columns in (((64,), ()), ((), (0,)), ((-4,), ())):
        with pytest.raises(ImageError, match="tile borders between 1 and 63"):
            seam(make_pixels(64, 64), rows, columns)
    with pytest.raises(ImageError, match="uint8"):
        seam(make_pixels(64, 64).astype(np.float32), (32,), ())


# ---- the checkerboard


def natural(size: int = 512, seed: int = 0) -> np.ndarray:
    """A picture with a falling spectrum like a slightly soft photo, (size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    spectrum = np.fft.fft2(rng.normal(size=(size, size))) / np.maximum(frequency, 1 / size) ** 1.6
    plane = np.fft.ifft2(spectrum).real
    plane = 128 + 40 * (plane - plane.mean()) / plane.std()
    return np.repeat(np.clip(np.round(plane), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def patterned(amplitude: float, period: int, size: int = 512) -> np.ndarray:
    """The same with a fixed tile of that period added, of that root mean square in gray levels."""
    tile = np.random.default_rng(5).normal(size=(period, period))
    tile = (tile - tile.mean()) / tile.std() * amplitude
    pattern = np.tile(tile, (size // period, size // period))
    return np.clip(np.round(natural(size) + pattern[..., None]), 0, 255).astype(np.uint8)


def test_a_picture_without_a_pattern_has_none() -> None:
    assert abs(checkerboard_db(natural())) < 1
    assert abs(checkerboard_db(np.random.default_rng(0).integers(0, 256, (300, 260, 3), np.uint8))) < 1


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_checkerboard_of_one_gray_level_is_found_and_grows_with_its_strength(period: int) -> None:
    weak, strong = checkerboard_db(patterned(1, period)), checkerboard_db(patterned(4, period))
    assert weak > 5
    assert strong > weak + 8


@pytest.mark.parametrize("period", [3, 5, 7])
def test_other_textures_are_no_checkerboard(period: int) -> None:
    size = 512 // period * period
    assert checkerboard_db(patterned(4, period, size)) < 1


def test_the_checkerboard_of_small_and_flat_pictures_is_not_a_number() -> None:
    assert np.isnan(checkerboard_db(natural(128)[:100]))
    assert np.isnan(checkerboard_db(np.full((200, 200, 3), 90, np.uint8)))


def test_photos_have_none_and_half_a_gray_level_shows_on_them(shared_data: Callable[[str], Path]) -> None:
    photos = [load(path) for path in sorted(shared_data("realsr/HR").glob("*.png"))[::10]]
    assert np.mean([checkerboard_db(photo) for photo in photos]) < 1
    y, x = np.mgrid[:512, :512]
    board = np.where((x + y) % 2, 1, 0).astype(np.uint8)[..., None]
    assert min(checkerboard_db(photo.clip(0, 254) + board) for photo in photos) > 8
