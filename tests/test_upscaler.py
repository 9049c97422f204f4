"""The upscaler: same seed, same bytes; tiles that cannot be seen; every kind of picture; arguments that are checked."""

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import stream
from runtime import upscaler as module
from runtime.backend import OnnxBackend
from runtime.bundle import Bundle
from runtime.color import COLOR_FIXES, color_fix
from runtime.errors import DeviceError, GdposrError, ImageError, SettingError
from runtime.image import Photo
from runtime.manifest import PRECISIONS
from runtime.pixels import as_picture, fill_transparent
from runtime.upscaler import Upscaler

Pixels = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="module")
def upscaler(bundle: Bundle) -> Upscaler:
    return Upscaler(bundle, precision="fp32")


@pytest.fixture
def overlapping(toy_copy: Path) -> Bundle:
    """The toy with too little context, blended over 8 LR pixels as a model with global attention would be."""
    return altered(toy_copy, context=2, overlap=8)


def altered(folder: Path, **size: int) -> Bundle:
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["size"] |= size
    path.write_text(json.dumps(data), encoding="utf-8")
    return Bundle.open(folder)


def difference(a: np.ndarray, b: np.ndarray) -> str:
    d = np.abs(a.astype(np.float64) - b)
    return f"max {d.max():.6g}, mean {d.mean():.6g}, {np.count_nonzero(d)} of {d.size} differ"


def assert_same(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.array_equal(a, b), difference(a, b)


def resized(image: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """The whole picture at once, in floating point: (h, w, C) float32 -> (height, width, C), clipped."""
    planes = [
        np.array(Image.fromarray(plane).resize((width, height), resample))
        for plane in np.moveaxis(image, 2, 0).copy()
    ]
    return np.clip(np.stack(planes, axis=2), 0, 1)


# Same seed, same bytes


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("fix", COLOR_FIXES)
def test_same_bytes_for_any_tile_size_and_thread_count(
    bundle: Bundle, make_pixels: Pixels, precision: str, fix: str
) -> None:
    image = make_pixels(41, 53)
    whole = Upscaler(bundle, precision=precision, tile=4096, threads=1, color_fix=fix).up(image, seed=5)[0]
    for tile, threads in [(4096, 2), (4, 1), (7, 2), (16, 3), (30, 1), (None, None)]:
        tiled = Upscaler(bundle, precision=precision, tile=tile, threads=threads, color_fix=fix, check=False)
        assert_same(tiled.up(image, seed=5)[0], whole)


def test_tiled_floats_equal_untiled_ones(bundle: Bundle, make_pixels: Pixels) -> None:
    """Before rounding, too: the context covers the receptive field and every pixel is computed alike."""
    image = make_pixels(50, 67).astype(np.float32) / np.float32(255)
    whole, tiled = (Upscaler(bundle, precision="fp32", tile=tile).up(image)[0] for tile in (4096, 16))
    assert_same(tiled, whole)


def test_same_bytes_with_scale_and_alpha(bundle: Bundle, make_pixels: Pixels) -> None:
    image = make_pixels(45, 38, 4)
    a, b = (Upscaler(bundle, tile=tile, color_fix="wavelet").up(image, scale=2.3)[0] for tile in (8, 999))
    assert_same(a, b)


def test_seed_and_sample_change_the_picture(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(32, 32)
    pictures = [
        *upscaler.up(image, seed=0, samples=3),
        *upscaler.up(image, seed=1),
        *upscaler.up(image, seed=2**63),
    ]
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            rms = float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))
            assert rms > 3, f"two of them are alike: {rms:.2f} levels apart"
    assert_same(upscaler.up(image, seed=0)[0], pictures[0])


def test_sample_alone_equals_sample_of_a_batch(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(40, 33)
    batch = upscaler.up(image, seed=3, samples=4)
    for k, picture in enumerate(batch):
        assert_same(upscaler.up(image, seed=3, first=k)[0], picture)
    later = upscaler.up(image, seed=3, samples=2, first=2)
    assert_same(later[1], batch[3])


def test_threads_of_the_caller(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(37, 41)
    alone = [upscaler.up(image, seed=k)[0] for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: upscaler.up(image, seed=k)[0], range(8)))
    for a, b in zip(alone, together, strict=True):
        assert_same(a, b)


def test_input_is_left_alone(upscaler: Upscaler, make_pixels: Pixels) -> None:
    image = make_pixels(12, 13, 4)
    image[:4, :, 3] = 0
    before = image.copy()
    image.flags.writeable = False
    upscaler.up(image)
    assert_same(image, before)


# Tiles


@pytest.fixture
def ramp() -> np.ndarray:
    """A smooth diagonal ramp, on which every seam shows."""
    y, x = np.mgrid[:64, :96]
    return np.repeat(((x + y) / 320 + 0.25).astype(np.float32)[..., None], 3, axis=2)


def seam(picture: np.ndarray, columns: list[int]) -> float:
    """Mean step across tile borders over the mean step across their neighbours: 1 where nothing shows."""
    steps = np.abs(np.diff(picture.astype(np.float64), axis=1)).mean(axis=(0, 2))
    return float(steps[[c - 1 for c in columns]].mean() / np.delete(steps, [c - 1 for c in columns]).mean())


class Smooth:
    """A stand-in model on the toy's contract: nearest enlargement plus a brightness that depends on the window it is shown."""

    device, precision = "cpu", "fp32"

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.encoded = 0
        self.sizes: list[tuple[int, int]] = []

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        self.encoded += 1
        self.sizes.append(image.shape[2:])
        brightness = np.float32(self.error * (-1) ** self.encoded)
        n, _, h, w = image.shape
        return {"features": np.full((n, 4, h // 2, w // 2), brightness), "base": image}

    def generate(self, features: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        assert noise.shape == features["features"].shape
        large = features["base"].repeat(4, axis=2).repeat(4, axis=3)
        return large + features["features"][:, :1, :1, :1]


@pytest.fixture
def with_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Upscaler]:
    """with_model(bundle, model, ...) is an Upscaler that runs `model` in place of the graphs."""

    def build(bundle: Bundle, model: Any, **options: Any) -> Upscaler:
        monkeypatch.setattr(module, "OnnxBackend", lambda *_: model)
        return Upscaler(bundle, check=False, **options)

    return build


def test_no_seam_on_a_ramp(bundle: Bundle, ramp: np.ndarray) -> None:
    columns = list(range(64, 384, 64))
    tiled = Upscaler(bundle, precision="fp32", tile=16).up(ramp)[0]
    whole = Upscaler(bundle, precision="fp32", tile=4096).up(ramp)[0]
    assert seam(tiled, columns) == seam(whole, columns)
    assert 0.5 < seam(whole, columns) < 1.5  # borders are no different from the rest


def test_blending_hides_tiles_that_disagree(
    overlapping: Bundle, bundle: Bundle, ramp: np.ndarray, with_model: Callable[..., Upscaler]
) -> None:
    """Tiles that differ by 8 levels show as steps when placed and not when blended."""
    placed = with_model(bundle, Smooth(4 / 255), tile=32).up(ramp)[0]
    blended = with_model(overlapping, Smooth(4 / 255), tile=32).up(ramp)[0]
    assert np.abs(np.diff(placed[:, 126:130], axis=1)).max() > 7 / 255
    pixels = 4 / 320  # the ramp's own step, in columns that are multiples of 4
    steps = [np.abs(np.diff(blended, axis=axis)).max() for axis in (0, 1)]
    assert max(steps) < pixels + 1 / 255, f"steps {steps}"


def test_blending_leaves_agreement_exact(
    overlapping: Bundle, bundle: Bundle, make_pixels: Pixels, with_model: Callable[..., Upscaler]
) -> None:
    image = make_pixels(75, 90).astype(np.float32) / np.float32(255)
    for tile in (16, 32, 50):
        assert_same(
            with_model(overlapping, Smooth(), tile=tile).up(image)[0],
            np.asarray(image.repeat(4, axis=0).repeat(4, axis=1)),
        )


def test_context_is_needed(toy_copy: Path, make_pixels: Pixels) -> None:
    """The toy's receptive field is real: with less context its tiles differ, so the tests above do see it."""
    bundle = altered(toy_copy, context=2)
    tiled, whole = (Upscaler(bundle, precision="fp32", tile=t).up(make_pixels(40, 40))[0] for t in (16, 64))
    assert not np.array_equal(tiled, whole)


def test_overlap_within_a_level_of_untiled(toy_copy: Path, make_pixels: Pixels) -> None:
    bundle = altered(toy_copy, context=6, overlap=8)
    image = make_pixels(70, 60)
    tiled, whole = (Upscaler(bundle, precision="fp32", tile=tile).up(image)[0] for tile in (24, 4096))
    assert_same(tiled, whole)


def test_windows_keep_the_size_rule(
    bundle: Bundle, with_model: Callable[..., Upscaler], make_pixels: Pixels
) -> None:
    model = Smooth()
    up = with_model(bundle, model, tile=9)
    for height, width in [(1, 1), (3, 50), (23, 8)]:
        up.up(make_pixels(height, width))
    assert all(h >= 8 and w >= 8 and h % 2 == w % 2 == 0 for h, w in model.sizes)
    assert max(max(size) for size in model.sizes) <= 10 + 2 * 6


def test_tall_strips_are_cut(bundle: Bundle, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of tiles never holds more output than its budget, and that does not change a byte."""
    image = make_pixels(60, 40)
    usual = Upscaler(bundle, tile=64).up(image)[0]
    monkeypatch.setattr(module, "STRIP_BUDGET", 40 * 16 * 3 * 4 * 11)
    heights = []
    model = Upscaler(bundle, tile=64)
    result = model.up(image, progress=lambda done, total: heights.append(total))[0]
    assert heights[-1] == 6  # cores of 10 rows
    assert_same(result, usual)


# Samples are lazy, and the encoder runs once


def test_encodes_once_for_all_samples(
    bundle: Bundle, with_model: Callable[..., Upscaler], make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Smooth()
    up = with_model(bundle, model, tile=32)
    up.up(make_pixels(40, 40), samples=5)
    assert model.encoded == 4  # tiles
    monkeypatch.setattr(module, "FEATURE_BUDGET", 1000)
    up.up(make_pixels(40, 40), samples=3)
    assert model.encoded == 4 + 3 * 4  # too large to keep: encoded again


def test_encoding_again_changes_nothing(
    upscaler: Upscaler, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_pixels(40, 70)
    kept = upscaler.up(image, samples=2)
    monkeypatch.setattr(module, "FEATURE_BUDGET", 0)
    for a, b in zip(kept, upscaler.up(image, samples=2), strict=True):
        assert_same(a, b)


def test_samples_are_lazy(bundle: Bundle, with_model: Callable[..., Upscaler], make_pixels: Pixels) -> None:
    model = Smooth()
    results = with_model(bundle, model).samples(make_pixels(8, 8), samples=2**32)
    assert isinstance(results, Iterator)
    assert model.encoded == 0
    assert next(results).shape == next(results).shape == (32, 32, 3)
    assert model.encoded == 1


def test_arguments_are_checked_at_the_call(upscaler: Upscaler) -> None:
    """Not when the first sample is asked for."""
    with pytest.raises(SettingError):
        upscaler.samples(np.zeros((4, 4, 3), np.uint8), seed=-1)
    with pytest.raises(ImageError):
        upscaler.samples(np.zeros((4, 4, 5), np.uint8))


def test_progress(bundle: Bundle, make_pixels: Pixels) -> None:
    seen: list[tuple[int, int]] = []
    Upscaler(bundle, tile=16).up(make_pixels(32, 40), samples=2, progress=lambda *v: seen.append(v))
    assert seen == [(k, 12) for k in range(1, 13)]


# Every kind of picture


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
    with pytest.raises(ImageError, match=r"expected .*came .*; "):
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


# Scale and colour


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
    monkeypatch.setattr(module, "WHOLE_BUDGET", budget)
    monkeypatch.setattr(stream, "WAVELET_BLOCK", 100)
    image = make_pixels(131, 87).astype(np.float32) / np.float32(255)
    plain = Upscaler(bundle, tile=16, color_fix="none").up(image, samples=2)
    fixed = Upscaler(bundle, tile=16, color_fix=fix).up(image, samples=2)
    for a, b in zip(plain, fixed, strict=True):
        np.testing.assert_allclose(b, color_fix(a, image, fix), atol=2e-6)


def test_color_fix_of_the_bundle_is_the_default(bundle: Bundle) -> None:
    assert Upscaler(bundle).color_fix == bundle.manifest.color_fix
    with pytest.raises(SettingError, match="color_fix: expected one of none, adain, wavelet"):
        Upscaler(bundle, color_fix="sepia")


# Photos, arguments, lifetime


def test_photo_keeps_its_metadata(upscaler: Upscaler, make_pixels: Pixels) -> None:
    photo = Photo(make_pixels(8, 9), exif=b"Exif\0\0rest", icc=b"profile", dpi=(300.0, 300.0))
    results = list(upscaler.up_photo(photo, seed=1, samples=2, scale=2))
    assert len(results) == 2
    for result, pixels in zip(results, upscaler.up(photo.pixels, seed=1, samples=2, scale=2), strict=True):
        assert_same(result.pixels, pixels)
        assert dataclasses.replace(result, pixels=photo.pixels).__dict__ == photo.__dict__


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 0.5},
        {"samples": 0},
        {"samples": 1.5},
        {"first": -1},
        {"first": 2**32},
    ],
)
def test_bad_arguments(upscaler: Upscaler, options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        upscaler.up(np.zeros((4, 4, 3), np.uint8), **options)


@pytest.mark.parametrize("tile", [0, -8, 1.5, "8"])
def test_bad_tile(bundle: Bundle, tile: Any) -> None:
    with pytest.raises(SettingError, match="tile"):
        Upscaler(bundle, tile=tile)


def test_facts(toy_bundle: Path) -> None:
    with Upscaler(str(toy_bundle)) as upscaler:
        assert (upscaler.device, upscaler.precision, upscaler.scale) == ("cpu", "int8", 4)
        assert upscaler.manifest.name == "toy"
        assert upscaler.tile == 32
    with pytest.raises(GdposrError, match="closed"):
        upscaler.up(np.zeros((4, 4, 3), np.uint8))
    upscaler.close()


def test_samples_outlive_close(bundle: Bundle, make_pixels: Pixels) -> None:
    upscaler = Upscaler(bundle)
    results = upscaler.samples(make_pixels(8, 8), samples=2)
    upscaler.close()
    assert len(list(results)) == 2


def test_values_that_are_no_numbers(bundle: Bundle, with_model: Callable[..., Upscaler]) -> None:
    with pytest.raises(DeviceError, match="not numbers"):
        with_model(bundle, Smooth(float("nan"))).up(np.zeros((8, 8, 3), np.uint8))


def test_picture_rows() -> None:
    picture = as_picture(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    np.testing.assert_array_equal(
        np.rint(picture.rgb(1, 2, 2, 4) * 255)[:, 0], [[18, 21], [19, 22], [20, 23]]
    )


def test_precisions_agree(bundle: Bundle, make_pixels: Pixels) -> None:
    image = make_pixels(40, 40)
    a, b = (Upscaler(bundle, precision=p).up(image)[0].astype(float) for p in ("fp32", "int8"))
    psnr = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    assert 35 < psnr < 80, f"{psnr:.1f} dB: switching precision changes a little, and something"
    assert OnnxBackend(bundle, "cpu", "int8").precision == "int8"


@pytest.mark.parametrize("size", [(1, 1), (2, 70), (33, 31), (130, 9)])
def test_wavelet_of_any_size(bundle: Bundle, make_pixels: Pixels, size: tuple[int, int]) -> None:
    """Small pictures, where the low-pass is wider than the picture."""
    image = make_pixels(*size).astype(np.float32) / np.float32(255)
    plain = Upscaler(bundle, color_fix="none").up(image)[0]
    fixed = Upscaler(bundle, color_fix="wavelet").up(image)[0]
    np.testing.assert_allclose(fixed, color_fix(plain, image, "wavelet"), atol=2e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_shipped_model_gives_same_bytes(make_pixels: Pixels, precision: str) -> None:
    """The promise holds for the real graphs, too: its context covers its receptive field on this processor."""
    bundle = Bundle.open()
    image = make_pixels(75, 102)
    whole, *tiled = (
        Upscaler(bundle, device="cpu", precision=precision, tile=tile, threads=threads, check=False).up(
            image, seed=3
        )[0]
        for tile, threads in ((4096, 1), (4096, 2), (32, 1), (50, 2))
    )
    for picture in tiled:
        assert_same(picture, whole)


MEMORY = """
import resource, sys
import numpy as np
from runtime.upscaler import Upscaler

image = np.random.default_rng(0).integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
result = next(Upscaler(sys.argv[1], color_fix=sys.argv[2], tile=256).samples(image))
unit = 1 if sys.platform == "darwin" else 1024
print(result.nbytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fix", COLOR_FIXES)
def test_memory_of_a_large_photo(run_python: Callable[..., Any], toy_bundle: Path, fix: str) -> None:
    """12 megapixels enlarged 4 times: peak RSS at most 1.3 times the result plus 400 MB."""
    pytest.importorskip("resource", reason="needs a system that counts resident memory")
    result = run_python("-c", MEMORY, toy_bundle, fix, timeout=900)
    assert result.returncode == 0, result.stderr
    size, peak = map(int, result.stdout.split())
    assert peak <= 1.3 * size + 400e6, f"peak {peak / 1e6:.0f} MB for a result of {size / 1e6:.0f} MB"
