"""The score behind `--select best`: it follows grain, not tone or form, and takes every kind of picture, whole or in bands."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from runtime.errors import ImageError
from runtime.image.bands import Strips
from runtime.image.grain import COARSE, NAME, SIDE, binomial, score

Pixels = Callable[..., np.ndarray]


def waves(height: int = 120, width: int = 150) -> np.ndarray:
    """Smooth texture of a 12-pixel period, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    plane = 128 + 50 * np.sin(2 * np.pi * x / 12) * np.cos(2 * np.pi * y / 12)
    return np.repeat(np.rint(plane)[..., None], 3, axis=2).astype(np.uint8)


def grainy(picture: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, strength, picture.shape[:2])
    return np.clip(picture + np.rint(noise)[..., None], 0, 255).astype(np.uint8)


def strips(picture: np.ndarray, band: int) -> Strips:
    rows = (picture[k : k + band] for k in range(0, len(picture), band))
    return Strips(picture.shape, picture.dtype, iter(rows))


def filtered(plane: np.ndarray, passes: int) -> np.ndarray:
    """The binomial filter as one convolution with an explicit kernel, where it fits."""
    kernel = np.ones(1)
    for _ in range(passes):
        kernel = np.convolve(kernel, [0.25, 0.5, 0.25])
    rows = np.lib.stride_tricks.sliding_window_view(plane, len(kernel), axis=0) @ kernel
    return np.lib.stride_tricks.sliding_window_view(rows, len(kernel), axis=1) @ kernel


def reference(gray: np.ndarray, alpha: np.ndarray) -> float:
    """The definition in float64, on the whole plane at once."""
    padded = np.pad(gray.astype(np.float64), COARSE[1], mode="edge")
    height, width = gray.shape

    def core(plane: np.ndarray) -> np.ndarray:
        edge = (plane.shape[0] - height) // 2
        return plane[edge : edge + height, edge : edge + width]

    fine = core(padded) - core(filtered(padded, 1))
    coarse = core(filtered(padded, COARSE[0])) - filtered(padded, COARSE[1])
    return float(np.sqrt((alpha * fine**2).sum() / ((alpha * coarse**2).sum() + alpha.sum() / 12)))


def test_score_is_the_stated_ratio(make_pixels: Pixels) -> None:
    gray = make_pixels(70, 50, 1)[..., 0]
    assert score(gray) == pytest.approx(reference(gray, np.ones(gray.shape)), rel=1e-5)


def test_alpha_weighs_pixels(make_pixels: Pixels) -> None:
    pixels = make_pixels(70, 50, 2)
    expected = reference(pixels[..., 0], pixels[..., 1] / 255)
    assert score(pixels) == pytest.approx(expected, rel=1e-5)
    assert abs(score(pixels) - score(pixels[..., 0])) > 1e-4


def test_more_grain_scores_higher() -> None:
    scores = [score(grainy(waves(), strength)) for strength in (0, 2, 4, 8, 16)]
    assert scores == sorted(scores)
    assert scores[-1] > 2 * scores[0]


def test_contrast_and_brightness_hardly_matter() -> None:
    picture = grainy(waves(), 6)
    paler = (picture.astype(np.float32) / 255 * 0.5 + 0.3).astype(np.float32)
    assert score(paler) == pytest.approx(score(picture), rel=5e-3)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 30), (30, 1, 3), (2, 3, 2), (9, 19, 4), (64, 64, 1), (65, 18, 3)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_kind_of_picture_has_a_finite_score(shape: tuple[int, ...], dtype: type) -> None:
    values = np.random.default_rng(1).random(shape)
    top = 1 if dtype is np.float32 else np.iinfo(dtype).max
    value = score((values * top).astype(dtype))
    assert isinstance(value, float)
    assert np.isfinite(value)
    assert value >= 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_depth_and_layout_do_not_matter(make_pixels: Pixels, channels: int) -> None:
    pixels = make_pixels(90, 80, channels)
    expected = score(pixels)
    assert score(pixels.astype(np.uint16) * 257) == pytest.approx(expected, rel=1e-5)
    assert score((pixels / 255).astype(np.float32)) == pytest.approx(expected, rel=1e-5)
    if channels == 1:
        assert score(pixels[..., 0]) == expected
        assert score(np.repeat(pixels, 3, axis=2)) == pytest.approx(expected, rel=1e-5)


def test_flat_and_invisible_pictures_have_no_grain() -> None:
    assert score(np.full((40, 40, 3), 77, np.uint8)) == 0.0
    hidden = np.random.default_rng(2).integers(0, 256, (40, 40, 4), np.uint8)
    hidden[..., 3] = 0
    assert score(hidden) == 0.0


def test_what_is_transparent_does_not_count() -> None:
    picture = np.dstack([waves(), np.full((120, 150), 255, np.uint8)])
    picture[:, 75:, 3] = 0
    edge = 75 + COARSE[1]  # the filters reach over the border of what is seen
    other = picture.copy()
    other[:, edge:, :3] = grainy(picture[:, edge:, :3], 40)
    assert score(other) == score(picture)


@pytest.mark.parametrize("band", [1, 7, 64, 1000])
def test_bands_score_like_the_whole(make_pixels: Pixels, band: int) -> None:
    pixels = make_pixels(150, 60, 4)
    assert score(strips(pixels, band)) == pytest.approx(score(pixels), rel=1e-9)


def test_only_the_middle_of_a_large_picture_is_judged_and_no_row_below_it_made() -> None:
    height, width, band = SIDE + 300, SIDE + 120, 100
    middle = grainy(np.full((SIDE, SIDE, 1), 128, np.uint8), 5)
    picture = grainy(np.zeros((height, width, 1), np.uint8), 60)
    picture[150 : 150 + SIDE, 60 : 60 + SIDE] = middle
    assert score(picture) == pytest.approx(score(middle), rel=1e-9)
    taken = []

    def bands() -> Iterator[np.ndarray]:
        for top in range(0, height, band):
            taken.append(top)
            yield picture[top : top + band]

    assert score(Strips(picture.shape, picture.dtype, bands())) == pytest.approx(score(middle), rel=1e-9)
    assert taken[-1] == (150 + SIDE - 1) // band * band


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 4, 5), np.uint8, "one at a time"),
        ((0, 4, 3), np.uint8, "one at a time"),
        ((2, 4, 4, 3), np.uint8, "one at a time"),
        ((4, 4, 3), np.int32, "convert the picture"),
    ],
)
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], dtype: type, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        score(np.zeros(shape, dtype))


def test_the_filter_is_a_binomial_mean(make_pixels: Pixels) -> None:
    plane = make_pixels(30, 20, 1)[..., 0].astype(np.float32)
    assert binomial(plane, 3).shape == (24, 14)
    np.testing.assert_allclose(binomial(plane, 3), filtered(plane, 3), rtol=1e-5)
    assert NAME == "grain"
