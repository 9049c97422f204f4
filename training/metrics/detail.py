"""What the eye sees and PSNR does not: grain and colour on flat parts, edges, detail by size, and how far two samples differ.

Pure functions of pictures (n, 3, h, w), RGB float in [0, 1] (clamp a model's output first), with one value per picture, (n,) float32.
Distances and deviations are in levels of 1/255. A value over no pixel at all, such as grain in a picture without flat parts, is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.metrics.attributes import check_pictures
from training.metrics.luma import luma

WINDOW = 9  # pixels a side of the window in which a place is flat or textured
FLAT_BELOW = 4.0  # levels; camera noise stays below: a third of a typical photo is flat
TEXTURED_FROM = 8.0  # levels; half of a typical photo
BLUR = 5  # pixels a side of the mean that a high-pass takes away
OCTAVES = 3  # of wavelet bands: differences 1, 2 and 4 pixels apart
CELL = 8  # pixels a side of the means that a low-pass keeps
GMSD_CONSTANT = 170.0  # squared levels; of the paper


@dataclass(frozen=True, eq=False)
class Fine:
    """Strength of what is finer than about `BLUR` pixels on the truth's flat parts, (n,) each; NaN where the truth has none."""

    value: Tensor
    """Of SR, RMS in levels."""
    truth: Tensor
    """Of HR, RMS in levels."""

    @property
    def ratio(self) -> Tensor:
        """SR's over the truth's: 1 is right, more is added noise, less is plastic. Infinite where only the truth's is 0; 1 where both
        are."""
        return torch.where(self.value == self.truth, torch.ones_like(self.value), self.value / self.truth)

    @property
    def distance(self) -> Tensor:
        """Of SR's strength from the truth's, in levels; 0 is right."""
        return (self.value - self.truth).abs()


@dataclass(frozen=True, eq=False)
class SeedDiversity:
    """RMS difference of two samples over R, G and B in levels, (n,) each; NaN where the truth has no such part."""

    texture: Tensor
    """Where the truth has texture or edges: the room for choice."""
    flat: Tensor
    """Where the truth is flat: any difference is noise."""
    low: Tensor
    """Of means over 8x8 pixels, everywhere: any difference is another picture."""


def flat_mask(hr: Tensor) -> Tensor:
    """Where the truth is flat: (n, 3, h, w) -> (n, 1, h, w) bool. The standard deviation of its luma in the `WINDOW` pixels square
    around the place, borders mirrored, is below `FLAT_BELOW` levels of 1/255."""
    return _deviation(_checked(WINDOW, hr)[0]) < FLAT_BELOW


def texture_mask(hr: Tensor) -> Tensor:
    """Where the truth has texture or edges: as `flat_mask`, a standard deviation of at least `TEXTURED_FROM` levels."""
    return _deviation(_checked(WINDOW, hr)[0]) >= TEXTURED_FROM


def fine_grain(sr: Tensor, hr: Tensor) -> Fine:
    """Grain, mesh and ringing on flat parts: RMS there of luma without its 5x5 mean. White noise of deviation s measures .98 s."""
    sr, hr = _checked(WINDOW, sr, hr)
    return _fine(luma(sr), luma(hr), _deviation(hr) < FLAT_BELOW)


def fine_chroma(sr: Tensor, hr: Tensor) -> Fine:
    """Coloured noise and fine ripples on flat parts: as `fine_grain`, RMS over the planes Cb and Cr of BT.601. Gray grain: 0."""
    sr, hr = _checked(WINDOW, sr, hr)
    return _fine(chroma(sr), chroma(hr), _deviation(hr) < FLAT_BELOW)


def gradient_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Edges that are soft, doubled, shifted or invented: mean |difference of SR's and HR's luma gradients| in levels per pixel -> (n,).

    Gradients are differences of neighbours along rows and along columns, their distances averaged."""
    apart = _luma_difference(*_checked(2, sr, hr))
    across, down = apart.diff(dim=3).abs(), apart.diff(dim=2).abs()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)) / 2


def wavelet_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Detail that is not the truth's, at sizes of 1, 2 and 4 pixels alike: L1 between luma's wavelet bands in levels -> (n,).

    Bands are Haar's without decimation (stationary wavelet transform, Nason & Silverman 1995), where they fit: half the difference
    across columns, across rows and across both in `OCTAVES` octaves; the mean over places, bands and octaves. Constant shifts and
    wide ramps hardly count."""
    low = _luma_difference(
        *_checked(1 << OCTAVES, sr, hr)
    )  # the bands are linear, so those of the difference
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
    """Gradient magnitude similarity deviation (Xue et al. 2014, arXiv 1308.3052), lower is better, 0 is equal -> (n,).

    Luma is halved by 2x2 means; the Prewitt gradients' similarity, where they fit, has this standard deviation over the picture."""
    first, second = (_prewitt(F.avg_pool2d(luma(image), 2)) for image in _checked(8, sr, hr))
    similarity = (2 * first * second + GMSD_CONSTANT) / (first.square() + second.square() + GMSD_CONSTANT)
    return similarity.flatten(1).std(1, correction=0)


def seed_diversity(a: Tensor, b: Tensor, hr: Tensor) -> SeedDiversity:
    """How far two samples of one picture differ, by the kind of place. Worth having are at least 3 levels on texture, at most 0.7 on
    flat parts and at most 1 after the low-pass. Rows and columns beyond the last whole cell of 8 do not count in the low-pass."""
    a, b, hr = _checked(WINDOW, a, b, hr)
    apart, deviation = 255 * (a - b), _deviation(hr)
    return SeedDiversity(
        texture=_rms(apart, deviation >= TEXTURED_FROM),
        flat=_rms(apart, deviation < FLAT_BELOW),
        low=F.avg_pool2d(apart, CELL).square().flatten(1).mean(1).sqrt(),
    )


def _checked(least: int, *pictures: Tensor) -> list[Tensor]:
    """The pictures as float32. ValueError unless they are (n, 3, h, w) in [0, 1] of one size and of at least `least` pixels a side."""
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
    """(n, 1, h, w) in levels; of the difference, so that nothing is rounded away."""
    return luma(sr - hr)


def mean_around(planes: Tensor, side: int) -> Tensor:
    """Mean over the square of `side` pixels around each place, borders mirrored: (n, c, h, w) -> the same."""
    return F.avg_pool2d(F.pad(planes, (side // 2,) * 4, mode="reflect"), side, 1)


def _deviation(hr: Tensor) -> Tensor:
    """Standard deviation of luma in the window around each place, (n, 1, h, w) in levels."""
    gray = luma(hr)
    # a variance is a small difference of large squares: without the picture's mean float32 keeps .1 level
    gray = gray - gray.mean((2, 3), keepdim=True)
    return (mean_around(gray.square(), WINDOW) - mean_around(gray, WINDOW).square()).clamp(min=0).sqrt()


def _fine(sr: Tensor, hr: Tensor, flat: Tensor) -> Fine:
    value, truth = (_rms(planes - mean_around(planes, BLUR), flat) for planes in (sr, hr))
    return Fine(value, truth)


def _rms(planes: Tensor, mask: Tensor) -> Tensor:
    """Over the places of the mask, and the planes: (n, c, h, w), (n, 1, h, w) -> (n,); NaN where the mask is empty."""
    total = (planes.square().mean(1, keepdim=True) * mask).flatten(1).sum(1)
    return (total / mask.flatten(1).sum(1)).sqrt()


def _prewitt(gray: Tensor) -> Tensor:
    """Gradient magnitude, (n, 1, h, w) -> (n, 1, h - 2, w - 2)."""
    rows = gray[..., :-2, :] + gray[..., 1:-1, :] + gray[..., 2:, :]
    columns = gray[..., :-2] + gray[..., 1:-1] + gray[..., 2:]
    across, down = rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]
    return (across.square() + down.square()).sqrt() / 3
