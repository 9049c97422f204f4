"""Losses of the student and its discriminator, as pure functions.

Two samples are drawn for each LR picture. `energy_score` rewards both for being near the photo and for being apart from each other
as far as the data allow: a proper scoring rule (Gneiting & Raftery 2007), so the noise is used without an ad-hoc diversity term.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Maps = Sequence[Tensor]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a/|a| - b/|b||^2 over channels = 2 - 2 cos: (n, c, h, w) twice -> (n, h, w), from 0 to 4, in fp32."""
    a, b = a.float(), b.float()
    norms = (a.square().sum(1) * b.square().sum(1) + 1e-12).rsqrt()
    return (2.0 - 2.0 * (a * b).sum(1) * norms).clamp_min(0.0)


def feature_distance(a: Maps, b: Maps) -> Tensor:
    """Euclidean distance of the channel-normalised vectors, mean over places, summed over layers."""
    return torch.stack([(squared_distances(x, y) + 1e-4).sqrt().mean() for x, y in zip(a, b, strict=True)]).sum()


def squared_feature_distance(a: Maps, b: Maps) -> Tensor:
    """Squared distance of the channel-normalised vectors, mean over places, summed over layers: SQF when the maps are SqueezeNet's."""
    return torch.stack([squared_distances(x, y).mean() for x, y in zip(a, b, strict=True)]).sum()


def energy_score(samples: Maps, target: Maps, spread: float) -> Tensor:
    """(d(x1, y) + d(x2, y)) / 2 - spread * d(x1, x2). samples: maps (2n, c, h, w), the first n and the last n being two samples of the
    same pictures; target: maps (n, c, h, w). spread = 1/2 is the proper energy score; less keeps samples closer together, 0 is plain
    regression, under which the noise dies out."""
    first, second = zip(*(m.chunk(2) for m in samples), strict=True)
    near = (feature_distance(first, target) + feature_distance(second, target)) / 2
    return near - spread * feature_distance(first, second)


def low_pass(image: Tensor, cell: int = 8) -> Tensor:
    """Mean over cells of `cell` pixels: the structure that samples must agree on."""
    return F.avg_pool2d(image, cell)


def pixel_score(samples: Tensor, target: Tensor, spread: float) -> Tensor:
    """`energy_score` of the pixels themselves, in L1 (the continuous ranked probability score of each value when spread = 1/2)."""
    first, second = samples.chunk(2)
    near = ((first - target).abs().mean() + (second - target).abs().mean()) / 2
    return near - spread * (first - second).abs().mean()


def structure_loss(samples: Tensor, target: Tensor) -> Tensor:
    """L1 of the low-pass parts to the photo's, and of the two samples' to each other."""
    first, second = low_pass(samples).chunk(2)
    photo = low_pass(target)
    return ((first - photo).abs().mean() + (second - photo).abs().mean()) / 2 + (first - second).abs().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017)."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    return -fake.mean()


class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches. (n, 3, h, w) in [0, 1], h and w multiples of 8 -> (n, 1, h/8, w/8). Spectrally normalised."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride, 1))

        self.layers = nn.ModuleList(
            [
                conv(12, width, 1),
                conv(width, 2 * width, 2),
                conv(2 * width, 2 * width, 1),
                conv(2 * width, 4 * width, 2),
                conv(4 * width, 4 * width, 1),
            ]
        )
        self.logits = spectral_norm(nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = F.pixel_unshuffle(image * 2 - 1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.logits(x)
