"""Scale and colour: reductions and colour fixes on a stream equal those of the whole picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upscaling import Pixels, resized

from runtime.bundle.manifest import COLOR_FIXES
from runtime.bundle.reader import Bundle
from runtime.errors import SettingError
from runtime.upscale import color, rendering
from runtime.upscale.color import color_fix
from runtime.upscale.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="module")
def upscaler(bundle: Bundle) -> Upscaler:
    return Upscaler(bundle, precision="fp32")


@pytest.mark.parametrize("scale", [4, 3, 2.5, 2, 1, 0.7, 0.01])
def test_scale_gives_the_size(upscaler: Upscaler, make_pixels: Pixels, scale: float) -> None:
    for height, width in [(1, 1), (13, 20), (40, 7)]:
        result = upscaler.up(make_pixels(height, width), scale=scale)[0]
        assert result.shape == (max(1, round(height * scale)), max(1, round(width * scale)), 3)


def test_scale_is_a_reduction_of_the_whole(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(60, 50).astype(np.float32) / np.float32(255)
    whole = upscaler.up(image)[0]
    for scale in (3, 2.2, 1, 0.9, 0.1):
        result = upscaler.up(image, scale=scale)[0]
        expected = resized(whole, *result.shape[:2], Image.Resampling.LANCZOS)
        np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("scale", [0, -1, 4.01, float("nan"), float("inf")])
def test_bad_scale(upscaler: Upscaler, scale: float) -> None:
    with pytest.raises(SettingError, match="scale: expected above 0 and at most 4"):
        upscaler.up(np.zeros((4, 4, 3), np.uint8), scale=scale)


@pytest.mark.parametrize("fix", COLOR_FIXES)
@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["in memory", "two passes"])
def test_color_fix_is_that_of_the_whole_image(
    bundle: Bundle, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch, fix: str, budget: int
) -> None:
    """However the rows stream by, the result is `color.color_fix` of the whole picture."""
    image = make_pixels(131, 87).astype(np.float32) / np.float32(255)
    plain = Upscaler(bundle, tile=16, color_fix="none").up(image, samples=2)
    monkeypatch.setattr(color, "WAVELET_BAND", 4096)  # the whole picture
    wanted = [color_fix(sample, image, fix) for sample in plain]
    monkeypatch.undo()
    monkeypatch.setattr(rendering, "WHOLE_BUDGET", budget)
    monkeypatch.setattr(color, "WAVELET_BLOCK", 100)
    fixed = Upscaler(bundle, tile=16, color_fix=fix).up(image, samples=2)
    for a, b in zip(wanted, fixed, strict=True):
        np.testing.assert_allclose(b, a, atol=2e-6)


def test_color_fix_of_the_bundle_is_the_default(bundle: Bundle) -> None:
    assert Upscaler(bundle).color_fix == bundle.manifest.color_fix
    with pytest.raises(SettingError, match="color_fix: expected one of none, adain, wavelet"):
        Upscaler(bundle, color_fix="sepia")


@pytest.mark.parametrize("size", [(1, 1), (2, 70), (33, 31), (130, 9)])
def test_wavelet_of_any_size(bundle: Bundle, make_pixels: Pixels, size: tuple[int, int]) -> None:
    """Small pictures, where the low-pass is wider than the picture."""
    image = make_pixels(*size).astype(np.float32) / np.float32(255)
    plain = Upscaler(bundle, color_fix="none").up(image)[0]
    fixed = Upscaler(bundle, color_fix="wavelet").up(image)[0]
    np.testing.assert_allclose(fixed, color_fix(plain, image, "wavelet"), atol=2e-6)
