"""Artefacts of 8-bit RGB pictures: colour shift, checkerboard, seams between tiles; and the difference between samples."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from runtime.errors import ImageError
from training.metrics.luma import luma_y

# Period in output pixels: a student at half the LR resolution unshuffles LR by 2 and shuffles up to 4x. One at LR resolution has a
# period of 4, whose frequencies are among those of 8.
SHUFFLE_PERIOD = 8
# Side in output pixels of the blocks whose spectra are averaged.
SPECTRUM_BLOCK = 128
# Output pixels from a tile border to the lines that it is compared with.
SEAM_DISTANCES = (SHUFFLE_PERIOD, 2 * SHUFFLE_PERIOD)


def colour_shift(sr: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Mean of sr minus mean of the reference (bicubic upscale) for R, G and B, in levels of 1/255."""
    red, green, blue = (sr.mean(axis=(0, 1)) - reference.mean(axis=(0, 1))).tolist()
    return red, green, blue


def diversity(samples: Sequence[np.ndarray]) -> float:
    """Mean RMS distance over all pairs of samples, in levels of 1/255. Needs at least two samples."""
    if len(samples) < 2:
        raise ImageError(f"diversity needs at least two samples, got {len(samples)}")
    distances = [
        np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
        for a, b in combinations(samples, 2)
    ]
    return float(np.mean(distances))


def checkerboard_db(image: np.ndarray, period: int = SHUFFLE_PERIOD) -> float:
    """How far the frequencies of a pixel-shuffle pattern stand out of the spectrum, in dB; near 0 without such a pattern.

    A pattern that repeats every `period` pixels only has energy at multiples of 1/period. The power spectrum of Y is
    averaged over Hann-windowed blocks. At each of these frequencies except zero it is divided by its mean at
    neighbours: 5 to 8 bins of 128 away, and for frequencies on an axis, whose spectrum is a ridge, along that axis.
    The result is the mean of these ratios.

    NaN for a picture smaller than one block or without contrast. On photos, a random 8x8 tile of 0.5 gray levels
    (RMS) gives 12 dB, one of 2 levels 23 dB."""
    size = SPECTRUM_BLOCK
    plane = luma_y(image)
    if min(plane.shape) < size or np.ptp(image) == 0:
        return float("nan")
    power = _mean_spectrum(plane, size)
    step, near, far = size // period, size * 5 // 128, size * 8 // 128
    ratios = []
    for u in range(0, size, step):
        for v in range(0, size // 2 + 1, step):  # a real picture's spectrum is symmetric
            if u == v == 0:
                continue
            offsets = range(near, far + 1)
            shifts = [(s * d, 0) for d in offsets for s in (-1, 1) if u] + [
                (0, s * d) for d in offsets for s in (-1, 1) if v
            ]
            around = np.mean([power[(u + du) % size, (v + dv) % size] for du, dv in shifts])
            ratios.append(power[u, v] / around if around > 0 else np.nan)
    return float(10 * np.log10(np.mean(ratios)))


def seam(picture: np.ndarray, rows: Sequence[int], columns: Sequence[int]) -> float:
    """How visible tile borders are: the mean absolute step across them over that across lines near them; 1 if they do not differ.

    picture: (H, W, 3) uint8.
    rows, columns: index of the first pixel of each tile after the first. The step from pixel k - 1 to k counts.

    The lines near a border are one and two periods of the pixel shuffle away on both sides, so that a pattern of that
    period affects both means equally. NaN without a border, or without any step near one."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ImageError(
            f"the seam measure needs (H, W, 3) uint8, got {picture.shape} of {picture.dtype}: convert it first"
        )
    across, beside = [], []
    for axis, borders in ((0, rows), (1, columns)):
        length = picture.shape[axis]
        outside = [border for border in borders if not 0 < border < length]
        if outside:
            raise ImageError(
                f"expected tile borders between 1 and {length - 1}, got {outside[0]}: take them from the tiles' plan"
            )
        steps = np.abs(np.diff(picture.astype(np.int16), axis=axis)).mean(axis=(1 - axis, 2))
        lines = {border + side * far for border in borders for far in SEAM_DISTANCES for side in (-1, 1)}
        across += [steps[border - 1] for border in borders]
        beside += [steps[line - 1] for line in sorted(lines - set(borders)) if 0 < line < length]
    if not across or not beside or not np.mean(beside) > 0:
        return float("nan")
    return float(np.mean(across) / np.mean(beside))


def _mean_spectrum(plane: np.ndarray, size: int) -> np.ndarray:
    """Welch's method in two dimensions with half-overlapping blocks: (H, W) -> (size, size) mean power."""
    hann = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    window = np.outer(hann, hann)
    windows = np.lib.stride_tricks.sliding_window_view(plane, (size, size))[:: size // 2, :: size // 2]
    total = np.zeros((size, size))
    for row in windows:
        blocks = row - row.mean(axis=(1, 2), keepdims=True)
        total += (np.abs(np.fft.fft2(blocks * window)) ** 2).sum(axis=0)
    return total / (windows.shape[0] * windows.shape[1])
