"""Tiles that cannot be seen: no seam, blends that hide disagreement, the size rule kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upscaling import Pixels, Smooth, altered, assert_same

from runtime.bundle.reader import Bundle
from runtime.upscale import memory
from runtime.upscale import upscaler as module
from runtime.upscale.upscaler import Upscaler


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.open(toy_bundle)


@pytest.fixture
def overlapping(toy_copy: Path) -> Bundle:
    """The toy with too little context, blended over 8 LR pixels as a model with global attention would be."""
    return altered(toy_copy, context=2, overlap=8)


@pytest.fixture
def with_model(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Upscaler]:
    """with_model(bundle, model, ...) is an Upscaler that runs `model` in place of the graphs."""

    def build(bundle: Bundle, model: Any, **options: Any) -> Upscaler:
        monkeypatch.setattr(module, "open_backend", lambda *_: model)
        return Upscaler(bundle, check=False, threads=1, **options)

    return build


@pytest.fixture
def ramp() -> np.ndarray:
    """A smooth diagonal ramp, on which every seam shows."""
    y, x = np.mgrid[:64, :96]
    return np.repeat(((x + y) / 320 + 0.25).astype(np.float32)[..., None], 3, axis=2)


def seam(picture: np.ndarray, columns: list[int]) -> float:
    """Mean step across tile borders over the mean step across their neighbours: 1 where nothing shows."""
    steps = np.abs(np.diff(picture.astype(np.float64), axis=1)).mean(axis=(0, 2))
    return float(steps[[c - 1 for c in columns]].mean() / np.delete(steps, [c - 1 for c in columns]).mean())


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


@pytest.mark.parametrize(("fix", "bytes_per_value"), [("none", 1), ("wavelet", 4)])
def test_tall_strips_are_cut(
    bundle: Bundle, make_pixels: Pixels, monkeypatch: pytest.MonkeyPatch, fix: str, bytes_per_value: int
) -> None:
    """A row of tiles never holds more output than its budget, and that does not change a byte."""
    image = make_pixels(60, 40)
    model = Upscaler(bundle, tile=64, color_fix=fix)
    usual = model.up(image)[0]
    monkeypatch.setattr(memory, "STRIP_BUDGET", 40 * 16 * 3 * bytes_per_value * 11)
    totals: list[int] = []
    result = model.strips(image, progress=lambda done, total: totals.append(total)).array()
    assert totals == [6] * 6  # cores of 10 rows
    assert_same(result, usual)
