"""Losses of the student and its discriminator, as pure functions.

Two samples are drawn for each LR picture; they come stacked as (2n, 3, h, w), the first n and the last n being samples of the same
pictures. A teacher's samples stand in the same order and come from the same noise. All images RGB in [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def low_pass(image: Tensor, cell: int = 8) -> Tensor:
    """Mean over cells of `cell` pixels: the structure that samples must agree on."""
    return F.avg_pool2d(image, cell)


def structure_loss(samples: Tensor, target: Tensor, teacher: Tensor | None = None) -> Tensor:
    """L1 of the low-pass parts to the photo's, and of the two samples' to each other; with a teacher's samples, of their difference
    to that of the teacher's."""
    first, second = low_pass(samples).chunk(2)
    photo = low_pass(target)
    apart = first - second
    if teacher is not None:
        apart = apart - _difference(low_pass(teacher))
    return ((first - photo).abs().mean() + (second - photo).abs().mean()) / 2 + apart.abs().mean()


def colour_loss(samples: Tensor, target: Tensor) -> Tensor:
    """L1 between the mean colours of whole pictures. Losses of single pixels leave a small tint, as most places are wrong by more."""
    photo = target.mean((2, 3)).repeat(2, 1)
    return (samples.mean((2, 3)) - photo).abs().mean()


def chroma(image: Tensor) -> Tensor:
    """Each channel's distance from the mean of the three: colour without brightness, zero where a picture is gray."""
    return image - image.mean(1, keepdim=True)


def chroma_loss(samples: Tensor, target: Tensor) -> Tensor:
    """L1 between colours without brightness. An L1 on RGB weighs a fringe of colour no more than the same error in brightness, which
    is larger nearly everywhere."""
    return (chroma(samples) - chroma(target).repeat(2, 1, 1, 1)).abs().mean()


def high_pass(image: Tensor) -> Tensor:
    """What a 5x5 mean takes away: the texture that samples may differ in."""
    return image - F.avg_pool2d(image, 5, 1, 2, count_include_pad=False)


def diversity_loss(samples: Tensor, target: Tensor, share: float) -> Tensor:
    """How far the texture of two samples falls short of differing by `share` of the photo's own texture, place by place.

    Texture strength is the mean absolute high-pass over 17x17 pixels, so flat places ask for nothing and the term cannot be driven
    below zero by inventing patterns (which an unbounded distance between samples invites)."""
    apart = _difference(high_pass(samples))
    return F.relu(share * _strength(high_pass(target)) - _strength(apart)).mean()


def difference_loss(samples: Tensor, teacher: Tensor) -> Tensor:
    """L1 between the textures of what changes from one sample to the other, the student's and the teacher's: amplitude and pattern."""
    return (_difference(high_pass(samples)) - _difference(high_pass(teacher))).abs().mean()


def spread_loss(samples: Tensor, teacher: Tensor) -> Tensor:
    """How far two samples fall short of differing as much as the teacher's do, place by place, as a whole and in their texture.

    An L1 answers what it cannot predict with the median, so samples that follow the teacher by L1 alone differ too little."""
    ours, theirs = _difference(samples), _difference(teacher)
    short = [
        F.relu(_strength(t) - _strength(s)).mean()
        for s, t in ((ours, theirs), (high_pass(ours), high_pass(theirs)))
    ]
    return torch.stack(short).mean()


def _difference(samples: Tensor) -> Tensor:
    first, second = samples.chunk(2)
    return first - second


def _strength(x: Tensor) -> Tensor:
    """Mean absolute value over 17x17 pixels."""
    return F.avg_pool2d(x.abs().mean(1, keepdim=True), 17, 4)


def periodic_pattern(fine: Tensor, period: int, cells: int) -> Tensor:
    """Means of a fine part (n, c, h, w), sides multiples of period, over windows of cells x cells periods, phase by phase
    -> (n, c * period^2, h', w'). Texture averages out, a mesh of this period stays."""
    return F.avg_pool2d(F.pixel_unshuffle(fine, period), cells, stride=max(1, cells // 2))


def grid_loss(samples: Tensor, target: Tensor, period: int = 8, cells: int = 6) -> Tensor:
    """L1 between the `periodic_pattern` of samples and photo: a checkerboard of the pixel shuffles is one."""
    pattern, photo = (periodic_pattern(high_pass(x), period, cells) for x in (samples, target))
    return (pattern - photo.repeat(2, 1, 1, 1)).abs().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017) of the logits of real and of generated patches, of any shape. Scalar."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's side of the hinge loss: minus the mean logit of its pictures."""
    return -fake.mean()


class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches of a picture, or of several seen beside each other: `images` times (n, 3, h, w) in [0, 1], h and w
    multiples of 8 -> (n, 1, h/8, w/8). Spectrally normalised (Miyato et al. 2018)."""

    def __init__(self, width: int = 32, images: int = 1) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Module:
            return spectral_norm(nn.Conv2d(inputs, outputs, 4 if stride == 2 else 3, stride, 1))

        self.layers = nn.ModuleList(
            [
                conv(12 * images, width, 1),
                conv(width, 2 * width, 2),
                conv(2 * width, 2 * width, 1),
                conv(2 * width, 4 * width, 2),
                conv(4 * width, 4 * width, 1),
            ]
        )
        self.logits = spectral_norm(nn.Conv2d(4 * width, 1, 3, 1, 1))

    def train(self, mode: bool = True) -> PatchDiscriminator:
        """Always in training: elsewhere the spectral norms would not follow the weights."""
        return super().train(True)

    def forward(self, *images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(torch.cat(images, dim=1) * 2 - 1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.logits(x)
