"""Losses of the student's stages, as pure functions of pictures (n, 3, h, w), RGB in [0, 1]. All are scalars, but for weights.

What `export.objectives` says of two samples stacked in one batch is said here of pictures one by one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export.objectives import chroma, low_pass, periodic_pattern


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


def with_colours_of(picture: Tensor, lr: Tensor, cell: int = 8) -> Tensor:
    """The picture with the colours of its LR picture, as means over cells of `cell` LR pixels: what remains is the picture's detail.

    picture: (n, 3, h, w); lr: (n, 3, h/4, w/4) of multiples of cell a side. realesr-general-x4v3 moves such means by 2.5 of 255, and whole
    pictures by up to 8: nothing that a student ought to copy."""
    scale = picture.shape[-1] // lr.shape[-1]
    missing = F.avg_pool2d(lr - low_pass(picture, scale), cell)
    return (
        picture + F.interpolate(missing, size=picture.shape[-2:], mode="bicubic", align_corners=False)
    ).clamp(0, 1)


def fine_part(image: Tensor, cell: int = 4) -> Tensor:
    """Detail that an LR picture cannot hold: (n, 3, h, w), multiples of `cell` a side -> the same, minus the bicubic enlargement of its
    means over cells of `cell` pixels."""
    coarse = F.interpolate(low_pass(image, cell), scale_factor=cell, mode="bicubic", align_corners=False)
    return image - coarse


def bands(image: Tensor) -> list[Tensor]:
    """Undecimated Haar details of three scales, along rows, columns and both: (..., 3, h, w) -> nine of (..., 3, h, w), circular at the
    border. Divided so that white noise of one deviation has that deviation in each band of the finest scale."""
    found, smooth = [], image
    for step in (1, 2, 4):
        down, right = smooth.roll(step, -2), smooth.roll(step, -1)
        both = down.roll(step, -1)
        found += [
            (smooth + down - right - both) / 2,
            (smooth - down + right - both) / 2,
            (smooth - down - right + both) / 2,
        ]
        smooth = (smooth + down + right + both) / 4
    return found


def energy_score(samples: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Energy score of the fine parts, band by band and place by place (Gneiting & Raftery 2007, Eq. 21): mean |x_i - y| - 1/2 mean
    |x_i - x_j|.

    samples: (m, n, 3, h, w), m >= 2 samples of each picture; truth: (n, 3, h, w), multiples of 4 a side; weight: (n, 1, h, w), how much
    a place counts, None for all alike. x and y are coefficients of `bands`, vectors of RGB. Proper: its expectation is smallest where
    the coefficients are distributed as the truth's are given the input, so it pays neither to agree nor to add grain. Taken over whole
    patches as vectors, the score hardly sees what a pattern looks like, only how strong it is; nine bands see its scale and direction.
    Scalar."""
    m = len(samples)
    if m < 2 or samples.shape[1:] != truth.shape:
        raise ValueError(
            f"expected two or more samples (m, n, 3, h, w) of truth {tuple(truth.shape)}, got {tuple(samples.shape)}"
        )
    drawn = bands(fine_part(samples.flatten(0, 1)).unflatten(0, (m, -1)))
    scores = []
    for x, y in zip(drawn, bands(fine_part(truth)), strict=True):
        near = torch.stack([_norm(x[i] - y, weight) for i in range(m)]).mean()
        apart = torch.stack([_norm(x[i] - x[j], weight) for i in range(m) for j in range(i)]).mean()
        scores.append(near - apart / 2)
    return torch.stack(scores).mean()


def _norm(x: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted mean over places of the root mean square over RGB: (n, 3, h, w) -> scalar."""
    length = (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    return length.mean() if weight is None else (length * weight).mean()


def texture_weight(picture: Tensor, edge: float = 0.15) -> Tensor:
    """Where a picture has no strong edge within four pixels: (n, 3, h, w) -> (n, 1, h, w) in (0, 1]. edge: difference of neighbouring
    pixels' mean over RGB at which the weight is 1/2."""
    gray = picture.mean(1, keepdim=True)
    across = F.pad((gray[..., :, 1:] - gray[..., :, :-1]).abs(), (0, 1, 0, 0))
    down = F.pad((gray[..., 1:, :] - gray[..., :-1, :]).abs(), (0, 0, 0, 1))
    strongest = F.max_pool2d(torch.maximum(across, down), 9, 1, 4)
    return 1 / (1 + (strongest / edge).square())


def flat_weight(picture: Tensor, level: float = 2 / 255) -> Tensor:
    """More where a picture is flat: level / (mean |fine part| over 17x17 pixels + level), (n, 3, h, w) -> (n, 1, h, w) in (0, 1]. A
    level of grain is seen there, and would else count as little as a level amid texture."""
    strength = F.avg_pool2d(fine_part(picture).abs().mean(1, keepdim=True), 17, 1, 8, count_include_pad=False)
    return level / (strength + level)


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
