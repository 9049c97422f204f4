"""Losses of the student's stages, as pure functions of pictures (n, 3, h, w), RGB in [0, 1], and the adversary's network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def gradient_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 between the differences of neighbours, along rows and columns, a pixel and two pixels apart: the contrast of edges, which an
    L1 of pixels hardly sees."""
    apart = image - target
    terms = [
        (apart[..., step:, :] - apart[..., :-step, :]).abs().mean()
        + (apart[..., :, step:] - apart[..., :, :-step]).abs().mean()
        for step in (1, 2)
    ]
    return torch.stack(terms).mean()


def low_pass_loss(image: Tensor, target: Tensor, cell: int = 8) -> Tensor:
    """L1 between means over cells of `cell` pixels: the structure and the colours."""
    return F.avg_pool2d(image - target, cell).abs().mean()


def fine_part(image: Tensor, cell: int = 4) -> Tensor:
    """What a smooth enlargement of the means over `cell` pixels takes away: detail that an LR picture cannot hold."""
    coarse = F.interpolate(F.avg_pool2d(image, cell), scale_factor=cell, mode="bicubic", align_corners=False)
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
    """L1 between the patterns of this period: fine parts averaged, phase by phase, over windows of cells x cells periods, or over a
    smaller picture. Texture averages out, a mesh of the noise's cells or of the pixel shuffles does not. Sizes: multiples of period."""

    cells = min(cells, *(side // period for side in image.shape[-2:]))

    def pattern(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pixel_unshuffle(fine_part(x), period), cells, stride=max(1, cells // 2))

    return (pattern(image) - pattern(target)).abs().mean()


def chroma_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 between colours without brightness: each channel's distance from the mean of the three."""
    apart = image - target
    return (apart - apart.mean(1, keepdim=True)).abs().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017)."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


class Discriminator(nn.Module):
    """Judges patches of a picture beside the input's enlargement: two (n, 3, h, w) in [0, 1], h and w multiples of 8
    -> logits (n, 1, h/8, w/8). Spectrally normalised (Miyato et al. 2018)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride, 1))

        self.layers = nn.ModuleList(
            [
                conv(24, width, 1),
                conv(width, 2 * width, 2),
                conv(2 * width, 2 * width, 1),
                conv(2 * width, 4 * width, 2),
                conv(4 * width, 4 * width, 1),
            ]
        )
        self.logits = spectral_norm(nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, image: Tensor, enlarged: Tensor) -> Tensor:
        x = F.pixel_unshuffle(torch.cat([image, enlarged], dim=1) * 2 - 1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.logits(x)
