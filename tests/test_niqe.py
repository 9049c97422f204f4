"""NIQE: monotone in damage, defined for every size."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from calibration.studies.niqe_fit import fit, main
from runtime.errors import ImageError
from training.metrics.luma import rounded_luma
from training.metrics.niqe import BLOCK, FEATURES, block_features, fit_aggd, niqe, pristine_model

Pixels = Callable[..., np.ndarray]
SECONDS = 0.15  # for 512x512 on one core; measured 0.025


def load(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def test_bicubic_scores_far_worse_than_photos(shared_data: Callable[[str], Path]) -> None:
    names = sorted(path.name for path in shared_data("realsr/HR").glob("*.png"))[::10]
    root = shared_data("realsr")
    photos = np.mean([niqe(load(root / "HR" / name)) for name in names])
    small = [Image.open(root / "LR" / name).convert("RGB") for name in names]
    large = [image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC) for image in small]
    assert np.mean([niqe(np.array(image)) for image in large]) > photos + 2


def test_blur_and_noise_raise_the_score(shared_data: Callable[[str], Path]) -> None:
    path = sorted(shared_data("hr").glob("*.jpg"))[100]
    image = Image.open(path).convert("RGB")
    clean = niqe(np.array(image))
    noise = np.random.default_rng(0).normal(0, 25, (image.height, image.width, 3))
    assert niqe(np.array(image.filter(ImageFilter.GaussianBlur(2)))) > clean + 1
    assert niqe(np.clip(np.array(image) + noise, 0, 255).astype(np.uint8)) > clean + 1


def test_the_shipped_model_is_sound() -> None:
    model = pristine_model()
    assert model.mean.shape == (FEATURES,)
    assert model.covariance.shape == (FEATURES, FEATURES)
    assert np.linalg.eigvalsh(model.covariance).min() > 0


def test_the_same_picture_in_every_type_scores_the_same(make_pixels: Pixels) -> None:
    gray = make_pixels(200, 220, 1)
    score = niqe(gray)
    assert niqe(gray[..., 0]) == score
    assert niqe(np.repeat(gray, 3, axis=2)) == pytest.approx(score, abs=1e-9)
    assert niqe(gray.astype(np.uint16) * 257) == pytest.approx(score, abs=1e-9)
    assert niqe(gray.astype(np.float32) / 255) == pytest.approx(score, abs=1e-9)
    assert niqe(np.concatenate([gray, gray], axis=2)) == score


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (40, 40), (95, 96), (96, 96), (97, 191)])
def test_small_pictures_have_a_score(make_pixels: Pixels, size: tuple[int, int]) -> None:
    score = niqe(make_pixels(*size))
    assert score > 0
    assert not np.isnan(score)


@pytest.mark.parametrize("size", [(60, 80), (300, 300)])
def test_a_flat_picture_has_nothing_to_judge(size: tuple[int, int]) -> None:
    assert niqe(np.full((*size, 3), 77, np.uint8)) == float("inf")


def test_flat_parts_are_left_out(make_pixels: Pixels) -> None:
    textured = make_pixels(2 * BLOCK, 2 * BLOCK)
    both = np.concatenate([textured, np.zeros_like(textured)], axis=1)
    both[:, 2 * BLOCK :] = 255
    assert np.isfinite(niqe(both))


def test_wrong_shapes_are_named() -> None:
    for shape in ((2, 9, 9, 3), (9,), (0, 9, 3), (9, 9, 5)):
        with pytest.raises(ImageError, match="NIQE needs an image"):
            niqe(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("alpha", [0.7, 1.0, 2.0, 4.0])
def test_the_fit_finds_the_parameters_of_samples(alpha: float) -> None:
    """|x| of a generalised Gaussian of shape a and scale b is b * Gamma(1/a)^(1/a); left and right differ by a factor of 2."""
    rng = np.random.default_rng(0)
    magnitude = rng.gamma(1 / alpha, 1, (1, 400_000)) ** (1 / alpha)
    side = rng.random(magnitude.shape) < 2 / 3
    shape, left, right, mean = fit_aggd(np.where(side, 2 * magnitude, -magnitude))
    assert shape[0] == pytest.approx(alpha, rel=0.03)
    assert left[0] == pytest.approx(1, rel=0.03)
    assert right[0] == pytest.approx(2, rel=0.03)
    assert mean[0] > 0


def test_blocks_are_independent_of_their_neighbours_order(make_pixels: Pixels) -> None:
    features, sharpness = block_features(rounded_luma(make_pixels(2 * BLOCK + 30, 3 * BLOCK + 50)))
    assert features.shape == (6, FEATURES)
    assert sharpness.shape == (6,)
    assert np.isfinite(features).all()


def test_it_is_fast(make_pixels: Pixels) -> None:
    picture = make_pixels(512, 512)
    niqe(picture)
    times = []
    for _ in range(5):
        begin = time.thread_time()
        niqe(picture)
        times.append(time.thread_time() - begin)
    assert min(times) < SECONDS


def test_fitting_needs_enough_sharp_blocks(
    make_photo: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [make_photo(f"p/{seed}.png", 500, 500, seed=seed) for seed in range(12)]
    with pytest.raises(ImageError, match="lower --sharpness"):
        fit(paths[:1])
    model, blocks = fit(paths, sharpness=0.5)
    assert blocks == 12 * 25
    assert model.covariance.shape == (FEATURES, FEATURES)
    out = tmp_path / "model.npz"
    assert (
        main(["--photos", str(tmp_path / "p"), "--pattern", "*", "--sharpness", "0.5", "--out", str(out)])
        == 0
    )
    assert "300 blocks of 12 photos" in capsys.readouterr().out
    assert main(["--photos", str(tmp_path / "p"), "--out", str(out)]) == 1
