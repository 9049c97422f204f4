"""Colour fixes: what each takes from LR and what it leaves alone."""

import numpy as np
import pytest
from PIL import Image

from runtime.bundle.manifest import COLOR_FIXES
from runtime.errors import ImageError
from runtime.upscale.color import color_fix, low_pass


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with some texture, well inside [0, 1]."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.35, 0.65, (4, 5, 3)).astype(np.float32)
    planes = [
        np.array(Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return (
        (np.stack(planes, axis=2) + rng.normal(0, 0.02, (height, width, 3))).clip(0.1, 0.9).astype(np.float32)
    )


def enlarge(lr: np.ndarray, factor: int = 4) -> np.ndarray:
    size = (lr.shape[1] * factor, lr.shape[0] * factor)
    return np.stack(
        [
            np.array(Image.fromarray(lr[..., c].copy()).resize(size, Image.Resampling.BICUBIC))
            for c in range(3)
        ],
        axis=2,
    )


def test_adain_gives_the_statistics_of_lr() -> None:
    lr, sr = picture(32, 40, 1), picture(128, 160, 2) * 0.5 + 0.2
    fixed = color_fix(sr, lr, "adain")
    assert fixed.dtype == np.float32
    assert fixed.shape == sr.shape
    np.testing.assert_allclose(fixed.mean((0, 1)), lr.mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(fixed.std((0, 1)), lr.std((0, 1)), atol=1e-4)


def test_adain_of_a_flat_channel_moves_the_mean_only() -> None:
    sr = np.full((16, 16, 3), 0.3, np.float32)
    lr = np.full((4, 4, 3), 0.6, np.float32)
    np.testing.assert_allclose(color_fix(sr, lr, "adain"), 0.6, atol=1e-6)


def test_wavelet_takes_a_tint_away_and_keeps_the_detail() -> None:
    lr = picture(48, 48, 3)
    detail = np.random.default_rng(4).normal(0, 0.05, (192, 192, 1)).astype(np.float32)
    detail -= low_pass(detail[..., 0])[..., None]
    sr = enlarge(lr) + detail
    tinted = sr + np.array([0.08, -0.05, 0.03], np.float32)
    fixed = color_fix(tinted, lr, "wavelet")
    assert np.abs(fixed - sr).max() < 0.01
    np.testing.assert_allclose(fixed.mean((0, 1)), lr.mean((0, 1)), atol=0.005)


def plain_low_pass(plane: np.ndarray) -> np.ndarray:
    """The a-trous filter by its definition: [1 2 1]/4 over rows and over columns, dilated by 1, 2, 4, 8, 16, edges replicated."""
    for step in (1, 2, 4, 8, 16):
        for axis in (0, 1):
            wide = np.pad(plane, [(step, step) if axis == a else (0, 0) for a in (0, 1)], mode="edge")
            before, middle, after = (
                wide.take(np.arange(plane.shape[axis]) + shift, axis) for shift in (0, step, 2 * step)
            )
            plane = (before + 2 * middle + after) / 4
    return plane


@pytest.mark.parametrize(
    "size", [(40, 36), (1, 7), (70, 270)]
)  # LR; the last result is larger than a block of the filter
def test_wavelet_splits_exactly(size: tuple[int, int]) -> None:
    lr, sr = picture(*size, 5), picture(4 * size[0], 4 * size[1], 6)
    fixed = color_fix(sr, lr, "wavelet")
    for channel in range(3):
        high = sr[..., channel] - plain_low_pass(sr[..., channel])
        low = plain_low_pass(enlarge(lr)[..., channel])
        np.testing.assert_allclose(fixed[..., channel], high + low, atol=1e-5)
        np.testing.assert_allclose(low_pass(sr[..., channel]), plain_low_pass(sr[..., channel]), atol=1e-6)


def test_low_pass_keeps_a_constant_and_removes_a_checkerboard() -> None:
    y, x = np.mgrid[:128, :128]
    board = (0.5 + 0.25 * (-1.0) ** (x + y)).astype(np.float32)
    np.testing.assert_allclose(low_pass(np.full((128, 128), 0.5, np.float32)), 0.5, atol=1e-6)
    np.testing.assert_allclose(low_pass(board)[40:-40, 40:-40], 0.5, atol=1e-6)


def test_a_matching_picture_stays_as_it_is() -> None:
    lr = picture(32, 32, 7)
    sr = enlarge(lr)
    np.testing.assert_allclose(color_fix(sr, lr, "wavelet"), sr, atol=1e-6)
    np.testing.assert_allclose(color_fix(sr, sr, "adain"), sr, atol=1e-6)


def test_none_returns_the_picture_itself() -> None:
    sr = picture(16, 16)
    assert color_fix(sr, picture(4, 4), "none") is sr


@pytest.mark.parametrize("method", COLOR_FIXES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3)])
def test_tiny_pictures(method: str, size: tuple[int, int]) -> None:
    lr = picture(*size)
    fixed = color_fix(enlarge(lr), lr, method)
    assert fixed.shape == (size[0] * 4, size[1] * 4, 3)
    assert np.isfinite(fixed).all()


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_the_result_stays_in_range_and_the_input_untouched(method: str) -> None:
    rng = np.random.default_rng(8)
    lr, sr = rng.random((16, 16, 3), np.float32), rng.random((64, 64, 3), np.float32)
    before = sr.copy()
    fixed = color_fix(sr, lr, method)
    assert fixed.min() >= 0
    assert fixed.max() <= 1
    np.testing.assert_array_equal(sr, before)


def test_an_unknown_method_and_a_wrong_shape_are_named() -> None:
    with pytest.raises(ImageError, match=r"sepia.*none, adain, wavelet"):
        color_fix(picture(8, 8), picture(2, 2), "sepia")
    with pytest.raises(ImageError, match="lr as"):
        color_fix(picture(8, 8), picture(2, 2)[..., 0], "adain")
