"""Scores against the published log, scikit-image, known values and each other."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.errors import ImageError
from training.metrics.artefacts import colour_shift, diversity
from training.metrics.fidelity import psnr_y, ssim_y
from training.metrics.luma import gray_levels, luma, luma_y, rounded_luma, whole_y
from training.metrics.niqe import niqe
from training.metrics.sqf import scorer, sqf, unavailable

PSNR_TOLERANCE, SSIM_TOLERANCE = 1e-3, 1e-5
SQF_BICUBIC, SQF_OSEDIFF = 0.53029, 0.46731  # means of every tenth pair
Pixels = Callable[..., np.ndarray]


def load(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def test_forms_of_luma_agree_with_scikit_image_and_each_other(
    make_pixels: Pixels, need: Callable[..., None]
) -> None:
    need("skimage", "torch")
    import torch
    from skimage.color import rgb2ycbcr

    pixels = np.concatenate(
        [make_pixels(64, 48), np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)]
    )
    pixels[0, :8] = [[int(bit) * 255 for bit in f"{corner:03b}"] for corner in range(8)]  # of the RGB cube
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    # limited range, 16 to 235
    expected = rgb2ycbcr(pixels)[..., 0]
    np.testing.assert_allclose(luma_y(pixels), expected, atol=1e-9)
    whole = whole_y(*np.moveaxis(pixels.astype(np.int64), 2, 0))
    assert np.abs(whole - expected).max() <= 0.5
    assert np.array_equal(whole_y(*(images[0] * 255).round().long()).numpy(), whole)
    assert (whole.min(), whole.max()) == (16, 235)
    # full range, 0 to 255: the same weights, which scikit-image scales to 219 levels above 16
    full = (expected - 16) * 255 / 219
    np.testing.assert_allclose(luma(images)[0, 0].numpy(), full, atol=2e-3)
    for rounded in (rounded_luma(pixels), gray_levels(images)[0].numpy()):
        assert np.abs(rounded - full).max() <= 0.502
        assert (rounded.min(), rounded.max()) == (0, 255)


def noisy(picture: np.ndarray, levels: int) -> np.ndarray:
    noise = np.random.default_rng(levels).integers(-levels, levels + 1, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def bicubic4(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    return np.array(image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC))


@pytest.mark.slow
def test_scores_reproduce_the_published_log(shared_data: Callable[[str], Path]) -> None:
    """OSEDiff's own log of 100 pictures. NIQE has the same features and other pristine photos: values differ, ranks and level agree.
    Measured: mean 5.461 against 5.648, correlation 0.964, mean absolute difference 0.373; `niqe_fit` chose the model on this log.
    """
    log = shared_data("realsr/osediff_metrics.log").read_text()
    lines = re.findall(r"results_osediff/(\S+) \| PSNR: ([\d.]+); SSIM: ([\d.]+);.*?NIQE: ([\d.]+)", log)
    assert len(lines) == 100
    sr_dir, hr_dir = shared_data("realsr/osediff_SR"), shared_data("realsr/HR")
    found = []
    for name, *_ in lines:
        sr, hr = load(sr_dir / name), load(hr_dir / name)
        found.append((psnr_y(sr, hr), ssim_y(sr, hr), niqe(sr)))
    ours, theirs = np.array(found).T, np.array([line[1:] for line in lines], float).T
    worst_psnr, worst_ssim, _ = np.abs(ours - theirs).max(axis=1)
    assert worst_psnr < PSNR_TOLERANCE, f"PSNR is off by up to {worst_psnr:.2e} dB"
    assert worst_ssim < SSIM_TOLERANCE, f"SSIM is off by up to {worst_ssim:.2e}"
    assert np.corrcoef(ours[2], theirs[2])[0, 1] > 0.95
    assert np.abs(ours[2] - theirs[2]).mean() < 0.42
    assert abs(ours[2].mean() - theirs[2].mean()) < 0.25


def test_torch_forms_are_those_of_numpy(
    need: Callable[..., None], make_pixels: Pixels, request: pytest.FixtureRequest
) -> None:
    need("torch", "safetensors")
    import torch

    from training.metrics.registry import create_metrics

    squeezenet = request.getfixturevalue("weights")  # made with torch
    rng = np.random.default_rng(0)
    hr = np.stack([make_pixels(100, 96, seed=seed) for seed in (0, 1, 2, 0)])
    sr = np.stack(
        [noisy(hr[0], 3), noisy(hr[1], 21), rng.integers(0, 256, hr[0].shape, np.uint8), noisy(hr[0], 1)]
    )
    x, y = (torch.from_numpy(side.transpose(0, 3, 1, 2).astype(np.float32) / 255) for side in (sr, hr))
    forms = {
        "psnr": psnr_y,
        "ssim": ssim_y,
        "sqf": scorer(squeezenet),
        "niqe": lambda sample, _: niqe(sample),
    }
    for metric, form in zip(create_metrics(list(forms), "cpu", squeezenet), forms.values(), strict=True):
        found = metric(x, y if metric.reference else None)
        assert (found.dtype, found.shape) == (torch.float32, (4,))
        wanted = [form(*pair) for pair in zip(sr, hr, strict=True)]
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4, rtol=1e-6, err_msg=metric.name)
        assert metric.reference == (metric.name != "niqe")
        assert metric.higher_is_better == (metric.name in ("psnr", "ssim"))


@pytest.mark.slow
def test_sqf_gives_the_known_values_on_realsr(
    shared_data: Callable[[str], Path], need: Callable[..., None]
) -> None:
    """On every tenth pair; the whole set gives bicubic 0.5632 and OSEDiff 0.4881."""
    need("torch", "safetensors")
    score = scorer(shared_data("peers/squeezenet1_1.safetensors"))
    names = sorted(path.name for path in shared_data("realsr/HR").glob("*.png"))[::10]
    root = shared_data("realsr")
    bicubic = np.mean([score(bicubic4(root / "LR" / name), load(root / "HR" / name)) for name in names])
    osediff = np.mean([score(load(root / "osediff_SR" / name), load(root / "HR" / name)) for name in names])
    assert bicubic == pytest.approx(SQF_BICUBIC, abs=2e-4)
    assert osediff == pytest.approx(SQF_OSEDIFF, abs=2e-4)


def test_sqf_of_equal_pictures_is_zero(
    shared_data: Callable[[str], Path], need: Callable[..., None], make_pixels: Pixels
) -> None:
    need("torch", "safetensors")
    weights = shared_data("peers/squeezenet1_1.safetensors")
    picture = make_pixels(64, 80)
    assert sqf(picture, picture, weights) == 0
    assert sqf(make_pixels(64, 80, seed=3), picture, weights) > 0.01
    with pytest.raises(ImageError, match="at least 35"):
        sqf(picture[:20], picture[:20], weights)


def test_sqf_says_why_it_is_missing(tmp_path: Path, need: Callable[..., None]) -> None:
    assert unavailable(None) == "no SqueezeNet weights given"
    need("torch", "safetensors")
    assert unavailable(tmp_path / "w.safetensors") is None
    with pytest.raises(ImageError, match=r"w\.safetensors"):
        scorer(tmp_path / "w.safetensors")


def test_luma_has_the_limited_range() -> None:
    assert luma_y(np.zeros((1, 1, 3), np.uint8))[0, 0] == 16
    assert luma_y(np.full((1, 1, 3), 255, np.uint8))[0, 0] == pytest.approx(235)


def test_psnr_of_a_known_difference(make_pixels: Pixels) -> None:
    hr = make_pixels(32, 32).clip(0, 200)
    sr = hr + np.uint8(10)
    assert psnr_y(sr, hr) == pytest.approx(20 * np.log10(255 / (10 * 219 / 255)), abs=1e-9)
    assert psnr_y(sr, hr) == psnr_y(hr, sr)


def test_psnr_of_equal_pictures_is_infinite_by_rule(make_pixels: Pixels) -> None:
    assert psnr_y(make_pixels(8, 8), make_pixels(8, 8)) == float("inf")


def test_psnr_agrees_with_scikit_image(need: Callable[..., None], make_pixels: Pixels) -> None:
    need("skimage")
    from skimage.metrics import peak_signal_noise_ratio

    sr, hr = make_pixels(60, 50, seed=2), make_pixels(60, 50)
    assert psnr_y(sr, hr) == pytest.approx(peak_signal_noise_ratio(luma_y(hr), luma_y(sr), data_range=255))


def test_ssim_agrees_with_scikit_image_on_photos(
    shared_data: Callable[[str], Path], need: Callable[..., None]
) -> None:
    """Its mean over the same windows; photos have a few with reversed structure, which ours does not count as negative."""
    need("skimage")
    from skimage.metrics import structural_similarity

    for path in sorted(shared_data("realsr/HR").glob("*.png"))[::25]:
        hr, sr = load(path), bicubic4(shared_data("realsr/LR") / path.name)
        _, full = structural_similarity(
            np.round(luma_y(sr)), np.round(luma_y(hr)), data_range=255, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert ssim_y(sr, hr) == pytest.approx(full[5:-5, 5:-5].clip(0).mean(), abs=1e-4)


def test_ssim_agrees_with_scikit_image(need: Callable[..., None], make_pixels: Pixels) -> None:
    """Where no local structure is reversed, the two definitions are one."""
    need("skimage")
    from skimage.metrics import structural_similarity

    hr = make_pixels(90, 70)
    grain = np.random.default_rng(1).integers(-4, 5, hr.shape[:2])[..., None]
    sr = np.clip(hr.astype(int) + grain, 0, 255).astype(np.uint8)
    x, y = np.round(luma_y(sr)), np.round(luma_y(hr))
    _, full = structural_similarity(
        x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert full.min() > 0
    assert ssim_y(sr, hr) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)


def test_ssim_bounds(make_pixels: Pixels) -> None:
    hr = make_pixels(40, 40)
    assert ssim_y(hr, hr) == pytest.approx(1)
    assert 0 <= ssim_y(255 - hr, hr) < 0.5
    with pytest.raises(ImageError, match="at least 11"):
        ssim_y(hr[:8], hr[:8])


def test_wrong_pictures_are_named(make_pixels: Pixels) -> None:
    with pytest.raises(ImageError, match="one size"):
        psnr_y(make_pixels(8, 8), make_pixels(8, 9))
    with pytest.raises(ImageError, match="uint8"):
        psnr_y(make_pixels(8, 8).astype(np.float32), make_pixels(8, 8).astype(np.float32))


def test_colour_shift_and_diversity(make_pixels: Pixels) -> None:
    base = make_pixels(16, 16).clip(10, 200)
    assert colour_shift(base + np.array([3, 0, 5], np.uint8), base) == pytest.approx((3, 0, 5))
    assert diversity([base, base + np.uint8(2), base + np.uint8(4)]) == pytest.approx((2 + 2 + 4) / 3)
    with pytest.raises(ImageError, match="two samples"):
        diversity([base])
