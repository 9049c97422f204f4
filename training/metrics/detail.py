"""Metrics of visible faults that PSNR misses: grain and colour noise on flat parts, edges, detail by size, diversity.

Pure functions of pictures (n, 3, h, w), RGB float in [0, 1] (clamp a model's output first), with one value per
picture, (n,) float32. Distances and deviations are in levels of 1/255. A value over no pixels, such as grain in a
picture without flat parts, is NaN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.metrics.attributes import check_pictures
from training.metrics.luma import luma

# Side in pixels of the window that decides whether a place is flat or textured.
WINDOW = 9
# Standard deviation in levels below which a place is flat. Camera noise stays below; a third of a typical photo is flat.
FLAT_BELOW = 4.0
# Standard deviation in levels from which a place is textured; half of a typical photo is.
TEXTURED_FROM = 8.0
# Side in pixels of the mean that a high-pass subtracts.
BLUR = 5
# Octaves of wavelet bands: differences of pixels 1, 2 and 4 apart.
OCTAVES = 3
# Side in pixels of the means that a low-pass keeps.
CELL = 8
# Constant of the paper, in squared levels.
GMSD_CONSTANT = 170.0


@dataclass(frozen=True, eq=False)
class Fine:
    """Strength of detail finer than about `BLUR` pixels on flat parts of the HR picture, (n,) each; NaN without flat parts."""

    value: Tensor
    """RMS of SR in levels."""
    truth: Tensor
    """RMS of HR in levels."""

    @property
    def ratio(self) -> Tensor:
        """SR's strength over HR's: 1 is ideal, more is added noise, less is over-smoothing. Infinite if only HR's is
        0; 1 if both are."""
        return torch.where(self.value == self.truth, torch.ones_like(self.value), self.value / self.truth)

    @property
    def distance(self) -> Tensor:
        """Absolute difference of the strengths in levels; 0 is ideal."""
        return (self.value - self.truth).abs()


@dataclass(frozen=True, eq=False)
class SeedDiversity:
    """RMS difference of two samples over R, G and B in levels, (n,) each; NaN if HR has no such part."""

    texture: Tensor
    """Difference on texture and edges of HR, where samples may differ."""
    flat: Tensor
    """Difference on flat parts of HR, where any difference is noise."""
    low: Tensor
    """Difference of means over 8x8 pixels everywhere, where any difference changes the content."""


def flat_mask(hr: Tensor) -> Tensor:
    """Flat parts of HR: (n, 3, h, w) -> (n, 1, h, w) bool.

    A place is flat if the standard deviation of luma in the square of `WINDOW` pixels around it, with mirrored
    borders, is below `FLAT_BELOW` levels."""
    return _deviation(_checked(WINDOW, hr)[0]) < FLAT_BELOW


def texture_mask(hr: Tensor) -> Tensor:
    """Texture and edges of HR: as `flat_mask`, for a standard deviation of at least `TEXTURED_FROM` levels."""
    return _deviation(_checked(WINDOW, hr)[0]) >= TEXTURED_FROM


def fine_grain(sr: Tensor, hr: Tensor) -> Fine:
    """Grain, mesh and ringing: RMS of luma minus its 5x5 mean on flat parts. White noise of deviation s measures .98 s."""
    sr, hr = _checked(WINDOW, sr, hr)
    return _fine(luma(sr), luma(hr), _deviation(hr) < FLAT_BELOW)


def fine_chroma(sr: Tensor, hr: Tensor) -> Fine:
    """Coloured noise and fine ripples: as `fine_grain`, RMS over the planes Cb and Cr of BT.601. Gray grain gives 0."""
    sr, hr = _checked(WINDOW, sr, hr)
    return _fine(chroma(sr), chroma(hr), _deviation(hr) < FLAT_BELOW)


def gradient_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Soft, doubled, shifted or invented edges: mean absolute difference of luma gradients in levels per pixel -> (n,).

    Gradients are differences of neighbours along rows and columns; their distances are averaged."""
    apart = _luma_difference(*_checked(2, sr, hr))
    across, down = apart.diff(dim=3).abs(), apart.diff(dim=2).abs()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2


def wavelet_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Wrong detail at sizes of 1, 2 and 4 pixels: L1 between luma's wavelet bands in levels -> (n,).

    The bands are Haar's without decimation (stationary wavelet transform, Nason & Silverman 1995), at the places
    where they fit: half the difference across columns, across rows and across both, in `OCTAVES` octaves. The result
    is the mean over places, bands and octaves. Constant shifts and wide ramps hardly count."""
    # the bands are linear, so the bands of the difference suffice
    low = _luma_difference(*_checked(1 << OCTAVES, sr, hr))
    bands = []
    for octave in range(OCTAVES):
        step = 1 << octave
        left, right = low[..., :-step], low[..., step:]
        for part, keeps_low in (((left + right) / 2, True), ((left - right) / 2, False)):
            above, below = part[..., :-step, :], part[..., step:, :]
            bands.append((above - below).abs().flatten(1).mean(1) / 2)
            smooth = (above + below) / 2
            if keeps_low:
                low = smooth
            else:
                bands.append(smooth.abs().flatten(1).mean(1))
    return torch.stack(bands).mean(0)


def gmsd(sr: Tensor, hr: Tensor) -> Tensor:
    """Gradient magnitude similarity deviation (Xue et al. 2014, arXiv 1308.3052) -> (n,). Lower is better, 0 for equal pictures.

    Luma is halved by 2x2 means. The result is the standard deviation over the picture of the similarity of Prewitt gradients."""
    first, second = (_prewitt(F.avg_pool2d(luma(image), 2)) for image in _checked(8, sr, hr))
    similarity = (2 * first * second + GMSD_CONSTANT) / (first.square() + second.square() + GMSD_CONSTANT)
    return similarity.flatten(1).std(1, correction=0)


def seed_diversity(a: Tensor, b: Tensor, hr: Tensor) -> SeedDiversity:
    """The difference of two samples of one picture, by kind of place.

    Good values are at least 3 levels on texture, at most 0.7 on flat parts and at most 1 after the low-pass. Rows and
    columns beyond the last whole cell of 8 are ignored in the low-pass."""
    a, b, hr = _checked(WINDOW, a, b, hr)
    apart, deviation = 255 * (a - b), _deviation(hr)
    return SeedDiversity(
        texture=_rms(apart, deviation >= TEXTURED_FROM),
        flat=_rms(apart, deviation < FLAT_BELOW),
        low=F.avg_pool2d(apart, CELL).square().flatten(1).mean(1).sqrt(),
    )


def _checked(least: int, *pictures: Tensor) -> list[Tensor]:
    """The pictures as float32. Raises ValueError unless all are (n, 3, h, w) in [0, 1], of one size, and at least
    `least` pixels a side."""
    for picture in pictures:
        check_pictures(picture, "the pictures")
        if picture.shape != pictures[0].shape:
            raise ValueError(
                f"expected pictures of one size, got {tuple(pictures[0].shape)} and {tuple(picture.shape)}: check pairing and scale"
            )
    if min(pictures[0].shape[2:]) < least:
        height, width = pictures[0].shape[2:]
        raise ValueError(
            f"expected at least {least} pixels a side, got {width}x{height}: use larger pictures or crops"
        )
    return [picture.float() for picture in pictures]


def chroma(images: Tensor) -> Tensor:
    """(n, 3, h, w) in [0, 1] -> Cb and Cr without their offset, (n, 2, h, w) in levels."""
    gray = luma(images)
    return torch.cat([0.564 * (255 * images[:, 2:] - gray), 0.713 * (255 * images[:, :1] - gray)], dim=1)


def _luma_difference(sr: Tensor, hr: Tensor) -> Tensor:
    """Luma of the difference, (n, 1, h, w) in levels. This order avoids rounding errors."""
    return luma(sr - hr)


def mean_around(planes: Tensor, side: int) -> Tensor:
    """Mean over the square of `side` pixels around each place, with mirrored borders: (n, c, h, w) -> the same."""
    return F.avg_pool2d(F.pad(planes, (side // 2,) * 4, mode="reflect"), side, 1)


def _deviation(hr: Tensor) -> Tensor:
    """Standard deviation of luma in the window around each place, (n, 1, h, w) in levels."""
    gray = luma(hr)
    # a variance is a small difference of large squares: without subtracting the mean, float32 is exact to .1 level only
    gray = gray - gray.mean((2, 3), keepdim=True)
    return (mean_around(gray.square(), WINDOW) - mean_around(gray, WINDOW).square()).clamp(min=0).sqrt()


def _fine(sr: Tensor, hr: Tensor, flat: Tensor) -> Fine:
    value, truth = (_rms(planes - mean_around(planes, BLUR), flat) for planes in (sr, hr))
    return Fine(value, truth)


def _rms(planes: Tensor, mask: Tensor) -> Tensor:
    """RMS over the places of the mask and the planes: (n, c, h, w), (n, 1, h, w) -> (n,); NaN for an empty mask."""
    total = (planes.square().mean(1, keepdim=True) * mask).flatten(1).sum(1)
    return (total / mask.flatten(1).sum(1)).sqrt()


def _prewitt(gray: Tensor) -> Tensor:
    """Gradient magnitude, (n, 1, h, w) -> (n, 1, h - 2, w - 2)."""
    rows = gray[..., :-2, :] + gray[..., 1:-1, :] + gray[..., 2:, :]
    columns = gray[..., :-2] + gray[..., 1:-1] + gray[..., 2:]
    across, down = rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]
    return (across.square() + down.square()).sqrt() / 3
