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


def energy_score(samples: Tensor, truth: Tensor, patch: int = 8) -> Tensor:
    """Energy score of the fine parts, patch by patch (Gneiting & Raftery 2007, Eq. 21): mean |x_i - y| - 1/2 mean |x_i - x_j|.

    samples: (m, n, 3, h, w), m >= 2 samples of each picture; truth: (n, 3, h, w); a multiple of patch a side. Euclidean norms of
    patches as vectors, divided by the root of their length, so the unit is that of a pixel. Strictly proper: the expectation is
    smallest where samples are drawn from the distribution of the truth given the input, so it pays neither to agree nor to add
    grain. Taken over patches of single pixels' size and of pictures reduced by two, averaged. Scalar."""
    m = len(samples)
    if m < 2 or samples.shape[1:] != truth.shape:
        raise ValueError(
            f"expected two or more samples (m, n, 3, h, w) of truth {tuple(truth.shape)}, got {tuple(samples.shape)}"
        )
    flat, scores = samples.flatten(0, 1), []
    fine = fine_part(flat).unflatten(0, (m, -1)), fine_part(truth)
    for reduced in (1, 2):
        x, y = (
            F.avg_pool2d(part.flatten(0, -4), reduced) if reduced > 1 else part.flatten(0, -4)
            for part in fine
        )
        x = x.unflatten(0, (m, -1))
        near = torch.stack([_patch_norm(x[i] - y, patch) for i in range(m)]).mean()
        pairs = [_patch_norm(x[i] - x[j], patch) for i in range(m) for j in range(i)]
        scores.append(near - torch.stack(pairs).mean() / 2)
    return torch.stack(scores).mean()


def _patch_norm(x: Tensor, patch: int) -> Tensor:
    """Mean over overlapping patches of their root mean square, scalar."""
    power = F.avg_pool2d(x.square().mean(1, keepdim=True), patch, max(1, patch // 2))
    return (power + 1e-8).sqrt().mean()


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
