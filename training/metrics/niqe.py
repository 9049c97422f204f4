"""NIQE, the no-reference naturalness score (Mittal, Soundararajan and Bovik, 2013). Lower is better.

The picture is normalised by its local mean and contrast (MSCN coefficients). Each 96x96 block is described, at full
and half size, by the parameters of generalised Gaussians. The score is the distance between the Gaussian over these
36 features and the one fitted on pristine photos (`niqe_pristine.npz`, written by `python -m
calibration.studies.niqe_fit`)."""

from dataclasses import dataclass
from functools import cache
from math import lgamma
from pathlib import Path

import numpy as np
from PIL import Image

from training.metrics.luma import rounded_luma

# Side in pixels of the blocks that give features.
BLOCK = 96
# Features per block: 18 at each of two scales.
FEATURES = 36
MODEL_FILE = Path(__file__).parent / "niqe_pristine.npz"
# Offsets of the neighbours: right, below, both diagonals.
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
# Mean square of the MSCN coefficients below which a block is flat.
MIN_CONTRAST = 1e-6


@dataclass(frozen=True, eq=False)
class NiqeModel:
    """Gaussian over the features of pristine photos."""

    mean: np.ndarray
    """(36,) float64"""
    covariance: np.ndarray
    """(36, 36) float64"""


@cache
def pristine_model() -> NiqeModel:
    """The model in `MODEL_FILE`."""
    with np.load(MODEL_FILE, allow_pickle=False) as data:
        return NiqeModel(data["mean"], data["covariance"])


def niqe(image: np.ndarray, model: NiqeModel | None = None) -> float:
    """NIQE of an image.

    image: (H, W) gray, or (H, W, 1..4) uint8, uint16 or float in [0, 1]. Alpha is ignored.
    model: None for the shipped one.

    An image below 96 pixels in a direction is mirrored up to one block; its score is only comparable between images
    of the same size. The score is infinite for an image without any textured block."""
    model = model or pristine_model()
    features, _ = block_features(rounded_luma(image))
    features = features[np.isfinite(features).all(axis=1)]
    if not len(features):
        return float("inf")
    mean = features.mean(axis=0)
    covariance = np.cov(features, rowvar=False) if len(features) > 1 else np.zeros((FEATURES, FEATURES))
    difference = model.mean - mean
    inverse = np.linalg.pinv((model.covariance + covariance) / 2)
    return float(np.sqrt(max(0.0, difference @ inverse @ difference)))


def block_features(gray: np.ndarray, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """gray: (H, W) float64 in 0..255 -> features (blocks, 36) and sharpness (blocks,), float64.

    Flat blocks have NaN features. Sharpness is the mean local deviation of a block at full size."""
    height, width = gray.shape
    if min(height, width) < block:
        gray = np.pad(gray, ((0, max(0, block - height)), (0, max(0, block - width))), mode="symmetric")
    rows, columns = gray.shape[0] // block, gray.shape[1] // block
    gray = gray[: rows * block, : columns * block]
    half = Image.fromarray(gray.astype(np.float32))
    half = half.resize((columns * block // 2, rows * block // 2), Image.Resampling.BICUBIC)
    parts = []
    sharpness = np.zeros(0)
    for scale, plane in ((1, gray), (2, np.asarray(half, np.float64))):
        mscn, deviation = normalise(plane)
        if scale == 1:
            sharpness = _blocks(deviation, block).mean(axis=(1, 2))
        parts.append(_aggd_features(_blocks(mscn, block // scale)))
    return np.concatenate(parts, axis=1), sharpness


def normalise(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean-subtracted, contrast-normalised coefficients and the local deviation, both (H, W) float64, with a 7x7 Gaussian window."""
    mean = _gaussian(plane)
    deviation = np.sqrt(np.abs(_gaussian(plane * plane) - mean * mean))
    return (plane - mean) / (deviation + 1.0), deviation


def _gaussian(plane: np.ndarray) -> np.ndarray:
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        padding = [(3, 3) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(plane, padding, mode="edge")
        length = plane.shape[axis]
        taps = [padded[k : k + length] if axis == 0 else padded[:, k : k + length] for k in range(7)]
        plane = kernel[3] * taps[3]
        for k in range(3):
            plane += kernel[k] * (taps[k] + taps[6 - k])
    return plane


def _blocks(plane: np.ndarray, size: int) -> np.ndarray:
    """(H, W) -> (blocks, size, size). H and W are multiples of size."""
    rows, columns = plane.shape[0] // size, plane.shape[1] // size
    return plane.reshape(rows, size, columns, size).swapaxes(1, 2).reshape(-1, size, size)


def _aggd_features(blocks: np.ndarray) -> np.ndarray:
    """(n, b, b) MSCN blocks -> (n, 18): shape and scale of the coefficients, and four numbers for each of the four products."""
    alpha, left, right, _ = fit_aggd(blocks)
    columns = [alpha, (left + right) / 2]
    for shift in SHIFTS:
        alpha, left, right, mean = fit_aggd(blocks * np.roll(blocks, shift, axis=(1, 2)))
        columns += [alpha, mean, left, right]
    return np.stack(columns, axis=1)


def fit_aggd(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fit an asymmetric generalised Gaussian to each row of (n, ...) by moment matching: shape, left and right scale, mean, each (n,).

    Rows without contrast or with one sign only give NaN."""
    values = values.reshape(len(values), -1)
    square = values * values
    total, negative = square.sum(axis=1), values < 0
    left_sum = np.einsum("ij,ij->i", square, negative)
    left_count, right_count = negative.sum(axis=1), (values > 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt(left_sum / left_count)
        right = np.sqrt((total - left_sum) / right_count)
        ratio = left / right
        power = total / values.shape[1]
        r_hat = np.abs(values).mean(axis=1) ** 2 / np.where(power > MIN_CONTRAST, power, np.nan)
        r_norm = r_hat * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alphas, table, to_scale, to_mean = _aggd_tables()
    above = np.clip(np.searchsorted(table, r_norm), 1, len(table) - 1)
    nearest = np.where(np.abs(table[above - 1] - r_norm) <= np.abs(table[above] - r_norm), above - 1, above)
    left, right = left * to_scale[nearest], right * to_scale[nearest]
    alpha = np.where(np.isfinite(r_norm), alphas[nearest], np.nan)
    return alpha, left, right, (right - left) * to_mean[nearest]


@cache
def _aggd_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shape parameters 0.2, 0.201, ..., 10 with, for each, the moment ratio (ascending), the factor to the scale and
    the factor to the mean."""
    alphas = np.arange(200, 10001) / 1000
    log1, log2, log3 = (np.array([lgamma(k / alpha) for alpha in alphas]) for k in (1, 2, 3))
    return alphas, np.exp(2 * log2 - log1 - log3), np.exp((log1 - log3) / 2), np.exp(log2 - log1)
