"""Losses of the student and its discriminator, as pure functions.

Each LR picture gets two samples, stacked as (2n, 3, h, w): the first n and the last n belong to the same pictures in
the same order. A teacher's samples come in the same order, from the same noise. All images are RGB in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


def low_pass(image: Tensor, cell: int = 8) -> Tensor:
    """Means over cells of `cell` x `cell` pixels: the structure that both samples must share."""
    return F.avg_pool2d(image, cell)


def structure_loss(samples: Tensor, target: Tensor, teacher: Tensor | None = None) -> Tensor:
    """L1 of the samples' low-pass parts to the photo's, plus L1 between the two samples' low-pass parts.

    With a teacher's samples, the second term compares the difference between the two samples with the teacher's difference."""
    first, second = low_pass(samples).chunk(2)
    photo = low_pass(target)
    apart = first - second
    if teacher is not None:
        apart = apart - _difference(low_pass(teacher))
    return ((first - photo).abs().mean() + (second - photo).abs().mean()) / 2 + apart.abs().mean()


def colour_loss(samples: Tensor, target: Tensor) -> Tensor:
    """L1 between the mean colours of whole pictures. Pixel losses leave a small tint, as larger errors dominate them."""
    photo = target.mean((2, 3)).repeat(2, 1)
    return (samples.mean((2, 3)) - photo).abs().mean()


def chroma(image: Tensor) -> Tensor:
    """Colour without brightness: each channel minus the mean of the three. It is zero for gray pixels."""
    return image - image.mean(1, keepdim=True)


def chroma_loss(samples: Tensor, target: Tensor) -> Tensor:
    """L1 between colours without brightness.

    An L1 on RGB weighs a colour fringe no more than an equal error of brightness, and those are larger nearly everywhere."""
    return (chroma(samples) - chroma(target).repeat(2, 1, 1, 1)).abs().mean()


def high_pass(image: Tensor) -> Tensor:
    """The image minus its 5x5 mean: the texture that samples may differ in."""
    return image - F.avg_pool2d(image, 5, 1, 2, count_include_pad=False)


def diversity_loss(samples: Tensor, target: Tensor, share: float) -> Tensor:
    """How far the difference between two samples falls short of `share` of the photo's own texture, place by place.

    Texture strength is the mean absolute high-pass over 17x17 pixels. Flat places therefore ask for no difference,
    and the loss cannot fall below zero by inventing patterns, as an unbounded distance between samples could."""
    apart = _difference(high_pass(samples))
    return F.relu(share * _strength(high_pass(target)) - _strength(apart)).mean()


def difference_loss(samples: Tensor, teacher: Tensor) -> Tensor:
    """L1 between the texture of the samples' difference, the student's and the teacher's. It compares amplitude and pattern."""
    return (_difference(high_pass(samples)) - _difference(high_pass(teacher))).abs().mean()


def spread_loss(samples: Tensor, teacher: Tensor) -> Tensor:
    """How far two samples differ less than the teacher's do, place by place, as a whole and in their texture.

    An L1 loss learns the median of what it cannot predict, so samples that follow the teacher by L1 alone differ too little."""
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
    """Mean over windows of cells x cells periods, separately for each phase of the period.

    fine: (n, c, h, w), a fine part; h and w are multiples of period.
    Returns (n, c * period^2, h', w'). Texture averages out; a grid of this period remains."""
    return F.avg_pool2d(F.pixel_unshuffle(fine, period), cells, stride=max(1, cells // 2))


def grid_loss(samples: Tensor, target: Tensor, period: int = 8, cells: int = 6) -> Tensor:
    """L1 between the `periodic_pattern` of samples and photo. It penalises the checkerboard that pixel shuffles can leave.

    samples: (2n, 3, h, w). target: (n, 3, h, w). h and w are multiples of period.
    period: of the pattern, in pixels.
    cells: side of the averaging windows in periods."""
    pattern, photo = (periodic_pattern(high_pass(x), period, cells) for x in (samples, target))
    return (pattern - photo.repeat(2, 1, 1, 1)).abs().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss (Lim & Ye 2017) on the logits of real and generated patches, of any shape. Scalar."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The generator's side of the hinge loss: minus the mean logit of its pictures."""
    return -fake.mean()


class PatchDiscriminator(nn.Module):
    """Logits for overlapping patches of a picture, or of several pictures stacked by channel.

    Takes `images` tensors (n, 3, h, w) in [0, 1]; h and w are multiples of 8. Returns (n, 1, h/8, w/8). Spectrally
    normalised (Miyato et al. 2018)."""

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
        """Stay in training mode: in eval mode the spectral norms would not follow the weights."""
        return super().train(True)

    def forward(self, *images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(torch.cat(images, dim=1) * 2 - 1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return self.logits(x)
