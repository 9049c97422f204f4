"""Losses of the student's stages, as pure functions of pictures (n, 3, h, w), RGB in [0, 1]. All are scalars, but for weights.

What `export.student.objectives` says of two samples stacked in one batch is said here of pictures one by one.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from export.student.objectives import chroma, low_pass, periodic_pattern


def gradient_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 between the differences of pixels that are one and two apart, along rows and columns: the contrast of edges, which an L1 of
    pixels hardly sees."""
    apart = image - target
    terms = [
        (apart[..., step:, :] - apart[..., :-step, :]).abs().mean()
        + (apart[..., :, step:] - apart[..., :, :-step]).abs().mean()
        for step in (1, 2)
    ]
    return torch.stack(terms).mean()


def low_pass_loss(image: Tensor, target: Tensor, cell: int = 8) -> Tensor:
    """L1 between means over cells of `cell` pixels: the structure and the colours."""
    return low_pass(image - target, cell).abs().mean()


def with_colours_of(picture: Tensor, lr: Tensor, cell: int = 16) -> Tensor:
    """The picture with the mean colours of its LR picture, over cells of about `cell` LR pixels, smoothly from one to the next:
    (n, 3, 4h, 4w), (n, 3, h, w) -> (n, 3, 4h, 4w) in [0, 1].

    realesr-general-x4v3 darkens whole pictures by up to 8 of 255, and textures in them: nothing that a student ought to copy. Means of
    smaller parts are not to be kept: those of a JPEG's blocks are what it takes away."""
    cells = [max(1, side // cell) for side in lr.shape[-2:]]
    apart = F.adaptive_avg_pool2d(lr, cells) - F.adaptive_avg_pool2d(picture, cells)
    return (picture + F.interpolate(apart, picture.shape[-2:], mode="bilinear", align_corners=False)).clamp(
        0, 1
    )


def fine_part(image: Tensor, cell: int = 4) -> Tensor:
    """Detail that an LR picture cannot hold: (n, 3, h, w), multiples of `cell` a side -> the same, minus the bicubic enlargement of its
    means over cells of `cell` pixels."""
    coarse = F.interpolate(low_pass(image, cell), scale_factor=cell, mode="bicubic", align_corners=False)
    return image - coarse


def with_coarse_part_of(picture: Tensor, photo: Tensor, share: float | Tensor = 1.0) -> Tensor:
    """The picture's detail on what an LR picture can hold of the photo: (n, 3, h, w) twice -> same, in [0, 1].

    One step of back-projection (Irani & Peleg 1991), to the photo instead of its LR picture. A teacher of crisp edges also blackens
    lines, bleaches skin and wipes grass away, which shows in means over 4x4 pixels; those are the photo's to tell. share: of the photo
    in them, the rest is the picture's own; one for all, or (n, 1, 1, 1)."""
    coarse = (photo - fine_part(photo)) - (picture - fine_part(picture))
    return (picture + share * coarse).clamp(0, 1)


def told_by(lr: Tensor, photo: Tensor, error: float) -> Tensor:
    """How far an input tells the photo's means over 4x4 pixels: (n, 3, h, w), (n, 3, 4h, 4w) -> (n, 1, 1, 1) in (0, 1], 1/2 where it is
    `error` away from them (root mean square, in [0, 1]).

    A clean reduction is 1 to 4 levels away, a JPEG of quality 40 some 10, blur and noise up to 30. Of what an input does not tell,
    an L1 learns the median, which is dull and soft: there a teacher's picture, a function of the input, is the better target."""
    apart = (F.avg_pool2d(photo, 4) - lr).square().mean((1, 2, 3), keepdim=True)
    return error**2 / (error**2 + apart)


WINDOW = 8  # pixels a side of the squares of the local cosine transform
STRIDE = 3  # pixels between them; odd, so that every phase of a mesh of 2, 4 or 8 pixels is visited


def cosine_bands(image: Tensor) -> Tensor:
    """Local cosine transform: orthonormal DCT-II of squares of 8x8 pixels at every third place, without the mean.

    (n, 1, h, w) -> (n, 63, h', w'), the squares that fit. Of white noise each band has the noise's deviation."""
    return F.conv2d(image, _cosines(WINDOW).to(image), stride=STRIDE)


@cache
def _cosines(side: int) -> Tensor:
    """Filters of the transform but for the mean, (side^2 - 1, 1, side, side)."""
    places = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi / side * (places + 0.5) * places[:, None]) * (2 / side) ** 0.5
    waves[0] /= 2**0.5
    return torch.einsum("ai,bj->abij", waves, waves).reshape(side * side, 1, side, side)[1:].float()


def energy_score(samples: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Energy score of the brightness of the fine parts, band by band and place by place (Gneiting & Raftery 2007, Eq. 21):
    mean |x_i - y| - 1/2 mean |x_i - x_j|.

    samples: (m, n, 3, h, w), m >= 2 samples of each picture; truth: (n, 3, h, w), multiples of 4 a side; weight: (n, 1, h, w), how much
    a place counts, None for all alike. x and y are coefficients of `cosine_bands`. Proper: its expectation is smallest where
    the coefficients are distributed as the truth's are given the input, so it pays neither to agree nor to add grain. What a pattern
    looks like is as fine as the bands are: over whole patches as vectors the score sees only strength, over Haar's octaves a weave of
    four to five pixels passes. Scalar."""
    m = len(samples)
    if m < 2 or samples.shape[1:] != truth.shape:
        raise ValueError(
            f"expected two or more samples (m, n, 3, h, w) of truth {tuple(truth.shape)}, got {tuple(samples.shape)}"
        )
    y = cosine_bands(_fine_brightness(truth))
    x = cosine_bands(_fine_brightness(samples.flatten(0, 1))).unflatten(0, (m, -1))
    counts = None if weight is None else F.avg_pool2d(weight, WINDOW, STRIDE)
    near = torch.stack([_distance(x[i] - y, counts) for i in range(m)]).mean()
    apart = torch.stack([_distance(x[i] - x[j], counts) for i in range(m) for j in range(i)]).mean()
    return near - apart / 2


def _fine_brightness(image: Tensor) -> Tensor:
    """Mean over RGB of the fine part, (n, 3, h, w) -> (n, 1, h, w)."""
    return fine_part(image).mean(1, keepdim=True)


def _distance(apart: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean of |apart|, with a gradient of zero at zero: (n, bands, h, w), (n, 1, h, w) -> scalar."""
    length = (apart.square() + 1e-8).sqrt()
    return length.mean() if weight is None else (length * weight).mean()


def without_grain(photo: Tensor, core: Tensor, level: float = 3 / 255) -> Tensor:
    """The photo where it has texture, the core's picture where it is flat and has only a camera's grain: (n, 3, h, w) twice -> same.

    level: mean |fine part| over 17x17 pixels at which it is half of each."""
    strength = _strength(photo).square()
    return core + strength / (strength + level**2) * (photo - core)


def texture_weight(picture: Tensor, edge: float = 0.15) -> Tensor:
    """Where a picture has no strong edge within four pixels: (n, 3, h, w) -> (n, 1, h, w) in (0, 1]. edge: difference of neighbouring
    pixels' mean over RGB at which the weight is 1/2."""
    gray = picture.mean(1, keepdim=True)
    across = F.pad((gray[..., :, 1:] - gray[..., :, :-1]).abs(), (0, 1, 0, 0))
    down = F.pad((gray[..., 1:, :] - gray[..., :-1, :]).abs(), (0, 0, 0, 1))
    strongest = F.max_pool2d(torch.maximum(across, down), 9, 1, 4)
    return 1 / (1 + (strongest / edge).square())


def _strength(picture: Tensor) -> Tensor:
    """Mean |fine part| over 17x17 pixels, (n, 3, h, w) -> (n, 1, h, w)."""
    return F.avg_pool2d(fine_part(picture).abs().mean(1, keepdim=True), 17, 1, 8, count_include_pad=False)


def grid_loss(image: Tensor, target: Tensor, period: int = 8, cells: int = 10) -> Tensor:
    """L1 between the `periodic_pattern` of fine parts, over at most the whole picture: a mesh of the noise's cells and of the pixel
    shuffles is one, grain is none. Sizes are multiples of period."""
    cells = min(cells, *(side // period for side in image.shape[-2:]))
    pattern, wanted = (periodic_pattern(fine_part(x), period, cells) for x in (image, target))
    return (pattern - wanted).abs().mean()


def chroma_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 between colours without brightness: each channel's distance from the mean of the three."""
    return chroma(image - target).abs().mean()


def distances(policy: Tensor, reference: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """How far the policy's pictures (B, 3, H, W) are from the reference's, in units of the group's variance (B,) or of its root:
    anchor, structure and colour, means over B."""
    apart = policy - reference
    deviation = variance.sqrt()
    relative = apart / deviation[:, None, None, None]
    against_green = (apart[:, ::2] - apart[:, 1:2]).mean((2, 3))  # red and blue, (B, 2)
    return {
        "anchor": (apart.square().mean((1, 2, 3)) / variance).mean(),
        "structure": low_pass_loss(relative, torch.zeros_like(relative)),
        "colour": (against_green.abs().mean(1) / deviation).mean(),
    }
