"""The upscaler: arguments that are checked, lazy samples, progress, lifetime."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upscaling import Pixels, Smooth, assert_same

from runtime.backends.onnx import OnnxBackend
from runtime.bundle.reader import Bundle
from runtime.errors import DeviceError, GdposrError, ImageError, SettingError
from runtime.image.photo import Photo
from runtime.upscale import memory, rendering
from runtime.upscale import upscaler as module
from runtime.upscale.probe import psnr_db
from runtime.upscale.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture(scope="module")
def upscaler(bundle: Bundle) -> Upscaler:
    return Upscaler(bundle, precision="fp32")


@pytest.fixture
def with_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Upscaler]:
    """with_model(bundle, model, ...) is an Upscaler that runs `model` in place of the graphs."""

    def build(bundle: Bundle, model: Any, **options: Any) -> Upscaler:
        monkeypatch.setattr(module, "open_backend", lambda *_: model)
        return Upscaler(bundle, check=False, threads=1, **options)

    return build


def test_encodes_once_for_all_samples(
    bundle: Bundle, with_model: Callable[..., Upscaler], make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Smooth()
    up = with_model(bundle, model, tile=32)
    up.up(make_pixels(40, 40), samples=5)
    assert model.encoded == 4  # tiles
    monkeypatch.setattr(memory, "FEATURE_BUDGET", 1000)
    up.up(make_pixels(40, 40), samples=3)
    assert model.encoded == 4 + 3 * 4  # too large to keep: encoded again


def test_encoding_again_changes_nothing(
    upscaler: Upscaler, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_pixels(40, 70)
    kept = upscaler.up(image, samples=2)
    monkeypatch.setattr(memory, "FEATURE_BUDGET", 0)
    for a, b in zip(kept, upscaler.up(image, samples=2), strict=True):
        assert_same(a, b)


def test_temperature_scales_the_noise(bundle: Bundle, make_pixels: Pixels) -> None:
    image = make_pixels(24, 32)

    def drawn(**temperature: float) -> list[np.ndarray]:
        with Upscaler(bundle, precision="fp32", **temperature) as up:
            return up.up(image, seed=3, samples=2)

    cold, usual, one, hot = drawn(temperature=0), drawn(), drawn(temperature=1.0), drawn(temperature=2.0)
    assert_same(cold[0], cold[1])
    for a, b in zip(usual, one, strict=True):
        assert_same(a, b)

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))

    assert apart(*hot) > 1.5 * apart(*usual) > 0
    assert apart(hot[0], cold[0]) > 1.5 * apart(usual[0], cold[0])


@pytest.mark.parametrize("temperature", [-0.1, 2.5, float("nan")])
def test_temperature_out_of_range_is_refused(bundle: Bundle, temperature: float) -> None:
    with pytest.raises(SettingError, match="temperature: expected 0 to 2, got"):
        Upscaler(bundle, temperature=temperature)


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
        assert upscaler.tile is None
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


def test_precisions_agree(bundle: Bundle, make_pixels: Pixels) -> None:
    image = make_pixels(40, 40)
    psnr = psnr_db(*(Upscaler(bundle, precision=p).up(image)[0] for p in ("fp32", "int8")))
    assert 35 < psnr < 80, f"{psnr:.1f} dB: switching precision changes a little, and something"
    assert OnnxBackend(bundle, "cpu", "int8").precision == "int8"


def test_a_picture_shares_its_features(
    bundle: Bundle, with_model: Callable[..., Upscaler], make_pixels: Pixels
) -> None:
    model = Smooth()
    picture = with_model(bundle, model, tile=32).picture(make_pixels(40, 40), samples=3)
    assert model.encoded == 0
    bands, whole = picture.strips(1), picture.sample(1)
    assert picture.size == (160, 160)
    assert (bands.shape, bands.dtype) == (whole.shape, whole.dtype)
    assert_same(bands.array(), whole)
    picture.sample(0)
    assert model.encoded == 4  # tiles


def test_progress_counts_both_passes_of_adain(
    bundle: Bundle, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "WHOLE_BUDGET", 0)
    seen: list[tuple[int, int]] = []
    upscaler = Upscaler(bundle, tile=16, color_fix="adain")
    upscaler.up(make_pixels(32, 40), samples=2, progress=lambda *v: seen.append(v))
    assert seen == [(k, 24) for k in range(1, 25)]


def test_an_iterator_left_early_stops_its_threads(bundle: Bundle, make_pixels: Pixels) -> None:
    before = threading.active_count()
    bands = Upscaler(bundle, tile=8, threads=3).strips(make_pixels(64, 64)).bands
    next(bands)
    assert threading.active_count() == before + 3
    bands.close()  # type: ignore[attr-defined]  # a generator
    assert threading.active_count() == before


@pytest.mark.parametrize("sample", [-1, 2**32, 0.5])
def test_bad_sample(upscaler: Upscaler, sample: Any) -> None:
    with pytest.raises(SettingError, match="sample"):
        upscaler.strips(np.zeros((4, 4, 3), np.uint8), sample=sample)
