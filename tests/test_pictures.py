"""Every kind of picture: depths, gray, alpha, Pillow images, and what is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from upscaling import Pixels, assert_same, resized

from runtime.bundle.reader import Bundle
from runtime.errors import ImageError
from runtime.image.arrays import as_picture, fill_transparent
from runtime.upscale.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="module")
def upscaler(bundle: Bundle) -> Upscaler:
    return Upscaler(bundle, precision="fp32")


@pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 2), (33, 35)])
def test_shape_and_type_are_kept(
    upscaler: Upscaler, make_pixels: Pixels, channels: int, dtype: type, size: Any
) -> None:
    image = make_pixels(*size, max(channels, 1), dtype=np.uint16 if dtype is np.float32 else dtype)
    if dtype is np.float32:
        image = image.astype(np.float32) / np.float32(65535)
    if channels == 0:
        image = image[..., 0]
    result = upscaler.up(image)[0]
    assert result.dtype == dtype
    assert result.shape == (size[0] * 4, size[1] * 4, *image.shape[2:])


def test_depths_agree(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(20, 24)
    eight = upscaler.up(image)[0].astype(np.float64)
    sixteen = upscaler.up(image.astype(np.uint16) * 257)[0].astype(np.float64)
    real = upscaler.up(image.astype(np.float32) / np.float32(255))[0].astype(np.float64)
    assert np.abs(sixteen / 257 - eight).max() <= 0.51
    assert np.abs(real * 65535 - sixteen).max() <= 0.51
    assert len(np.unique(sixteen % 257)) > 200, "16-bit results use their depth"


def test_gray_is_the_mean_of_its_rgb(upscaler: Upscaler, make_pixels: Pixels) -> None:
    gray = make_pixels(21, 18, 1).astype(np.float32) / np.float32(255)
    rgb = upscaler.up(np.repeat(gray, 3, axis=2))[0]
    np.testing.assert_allclose(upscaler.up(gray)[0][..., 0], rgb.mean(axis=2), atol=1e-6)
    assert_same(upscaler.up(gray)[0][..., 0], upscaler.up(gray[..., 0])[0])


def test_opaque_alpha_changes_nothing(upscaler: Upscaler, make_pixels: Pixels) -> None:
    rgb = make_pixels(30, 22)
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    result = upscaler.up(rgba)[0]
    assert_same(result[..., :3], upscaler.up(rgb)[0])
    assert (result[..., 3] == 255).all()


def test_alpha_is_bicubic(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(39, 31, 4).astype(np.float32) / np.float32(255)
    for scale, size in ((None, (156, 124)), (2, (78, 62)), (0.5, (20, 16))):
        alpha = upscaler.up(image, scale=scale)[0][..., 3:]
        np.testing.assert_allclose(alpha, resized(image[..., 3:], *size, Image.Resampling.BICUBIC), atol=1e-5)


def test_hidden_colours_do_not_bleed(upscaler: Upscaler) -> None:
    """Black or green under full transparency: what is visible stays the same."""
    image = np.full((32, 32, 4), 180, np.uint8)
    y, x = np.mgrid[:32, :32]
    image[..., 3] = np.where(np.hypot(y - 16, x - 16) < 9, 255, 0)
    results = []
    for hidden in ((0, 0, 0), (0, 255, 0), (180, 180, 180)):
        image[..., :3][image[..., 3] == 0] = hidden
        results.append(upscaler.up(image)[0])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_fill_transparent() -> None:
    color = np.zeros((13, 22, 3), np.uint8)
    alpha = np.zeros((13, 22), np.uint8)
    assert fill_transparent(color, alpha) is color, "nothing is visible"
    color[3:5, 4:6], alpha[3:5, 4:6] = (10, 20, 30), 255
    color[9:, 18:], alpha[9:, 18:] = (200, 100, 50), 1
    filled = fill_transparent(color, alpha)
    assert_same(filled[alpha > 0], color[alpha > 0])
    np.testing.assert_array_equal(filled[2, 4], (10, 20, 30))
    np.testing.assert_array_equal(filled[8, 19], (200, 100, 50))
    assert (filled.max(axis=2) > 0).all(), "no hole is left"
    one = np.zeros((1, 3, 1), np.float32)
    one[0, 0] = 0.7
    np.testing.assert_allclose(fill_transparent(one, np.array([[1, 0, 0]], np.float32)), 0.7)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_pillow_images(upscaler: Upscaler, make_pixels: Pixels, mode: str) -> None:
    rgb = Image.fromarray(make_pixels(11, 14))
    image = (
        Image.fromarray(make_pixels(11, 14, 1, dtype=np.uint16)[..., 0])
        if mode == "I;16"
        else rgb.convert(mode)
    )
    result = upscaler.up(image)[0]
    assert result.shape[:2] == (44, 56)
    shape = {"1": (), "L": (), "LA": (2,), "RGBA": (4,), "I;16": ()}.get(mode, (3,))
    assert result.shape[2:] == shape
    assert result.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    if mode in ("L", "LA", "RGB", "RGBA"):
        assert_same(result, upscaler.up(np.array(image))[0])


def test_pillow_palette_with_transparency(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = Image.fromarray(make_pixels(9, 9)).quantize(16)
    image.info["transparency"] = 0
    assert upscaler.up(image)[0].shape == (36, 36, 4)


def test_pillow_orientation_is_applied(upscaler: Upscaler, make_pixels: Pixels) -> None:
    upright = make_pixels(10, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    file = io.BytesIO()
    Image.fromarray(np.rot90(upright).copy()).save(file, "PNG", exif=exif)
    with Image.open(file) as image:
        assert_same(upscaler.up(image)[0], upscaler.up(upright)[0])


def test_truncated_pillow_image(upscaler: Upscaler, make_pixels: Pixels) -> None:
    file = io.BytesIO()
    Image.fromarray(make_pixels(64, 64)).save(file, "JPEG")
    with (
        Image.open(io.BytesIO(file.getvalue()[:800])) as image,
        pytest.raises(ImageError, match="readable picture"),
    ):
        upscaler.up(image)


@pytest.mark.parametrize(
    "image",
    [
        "photo.png",
        None,
        [[0, 1], [2, 3]],
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 0), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((1, 3, 4, 4), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((4, 4, 3), np.int32),
        np.zeros((4, 4, 3), np.float64),
        np.zeros((4, 4, 3), bool),
        np.full((4, 4, 3), 200, np.float32),
        np.full((4, 4, 3), -1, np.float32),
        np.full((4, 4, 3), np.nan, np.float32),
        np.full((4, 4, 3), np.inf, np.float32),
        Image.new("F", (4, 4)),
        Image.new("I", (4, 4)),
    ],
)
def test_what_is_no_image(upscaler: Upscaler, image: Any) -> None:
    with pytest.raises(ImageError, match=r"expected .*got .*; "):
        upscaler.up(image)


def test_overshoot_of_resamplers_is_clipped(upscaler: Upscaler) -> None:
    image = np.linspace(-0.05, 1.05, 300, dtype=np.float32).reshape(10, 10, 3)
    assert_same(upscaler.up(image)[0], upscaler.up(np.clip(image, 0, 1))[0])


def test_byte_order_and_strides(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(16, 12, dtype=np.uint16)
    expected = upscaler.up(image)[0]
    assert_same(upscaler.up(image.astype(">u2"))[0], expected)
    assert_same(upscaler.up(np.asfortranarray(image))[0], expected)
    assert_same(upscaler.up(image[::-1][::-1])[0], expected)


def test_picture_rows() -> None:
    picture = as_picture(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    np.testing.assert_array_equal(
        np.rint(picture.rgb(1, 2, 2, 4) * 255)[:, 0], [[18, 21], [19, 22], [20, 23]]
    )
