"""Losses of the distillation, as pure functions.

Each LR picture gets two samples, stacked as (2n, 3, h, w): the first n and the last n belong to the same pictures in
the same order. A teacher's samples come in the same order, from the same noise. All images are RGB in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from export.student.losses import chroma, low_pass, periodic_pattern


def structure_loss(samples: Tensor, target: Tensor, teacher: Tensor | None = None) -> Tensor:
    """L1 of the samples' low-pass parts to the photo's, plus L1 between the two samples' low-pass parts.

    With a teacher's samples, the second term compares the difference between the two samples with the teacher's difference."""
    first, second = low_pass(samples).chunk(2)
    photo = low_pass(target)
    apart = first - second
    if teacher is not None:
        apart = apart - _difference(low_pass(teacher))
    return ((first - photo).abs().mean() + (second - photo).abs().mean()) / 2 + apart.abs().mean()


def with_mean_of(target: Tensor, teacher: Tensor, share: Tensor) -> Tensor:
    """The photo moved to the mean of the teacher's two samples: (n, 3, h, w), (2n, 3, h, w) -> (n, 3, h, w).

    share: (n, 1, 1, 1) in [0, 1], how far.

    A tuned teacher's change that all its samples share cancels in their difference. It reaches the student through this target
    of the photo's losses, which outweigh the distance to a sample."""
    first, second = teacher.chunk(2)
    return torch.lerp(target, (first + second) / 2, share)


def colour_loss(samples: Tensor, target: Tensor) -> Tensor:
    """L1 between the mean colours of whole pictures. Pixel losses leave a small tint, as larger errors dominate them."""
    photo = target.mean((2, 3)).repeat(2, 1)
    return (samples.mean((2, 3)) - photo).abs().mean()


def samples_chroma_loss(samples: Tensor, target: Tensor) -> Tensor:
    """L1 between colours without brightness, see `chroma`.

    An L1 on RGB weighs a colour fringe no more than an equal error of brightness, and errors of brightness are mostly larger."""
    return (chroma(samples) - chroma(target).repeat(2, 1, 1, 1)).abs().mean()


def high_pass(image: Tensor) -> Tensor:
    """The image minus its 5x5 mean: the texture that samples may differ in."""
    return image - F.avg_pool2d(image, 5, 1, 2, count_include_pad=False)


def diversity_loss(samples: Tensor, target: Tensor, share: float) -> Tensor:
    """How far the difference between two samples falls short of `share` of the photo's own texture, place by place.

    Texture strength is the mean absolute high-pass over 17x17 pixels. Flat places therefore ask for no difference,
    and the loss cannot fall below zero by inventing patterns, as an unbounded distance between samples could."""
    apart = _difference(high_pass(samples))
    return F.relu(share * _local_amplitude(high_pass(target)) - _local_amplitude(apart)).mean()


def difference_loss(samples: Tensor, teacher: Tensor) -> Tensor:
    """L1 between the texture of the samples' difference, the student's and the teacher's. It compares amplitude and pattern."""
    return (_difference(high_pass(samples)) - _difference(high_pass(teacher))).abs().mean()


def spread_loss(samples: Tensor, teacher: Tensor) -> Tensor:
    """How far two samples differ less than the teacher's do, place by place, as a whole and in their texture.

    An L1 loss learns the median of anything unpredictable, so samples that follow the teacher by L1 alone differ too little."""
    ours, theirs = _difference(samples), _difference(teacher)
    short = [
        F.relu(_local_amplitude(t) - _local_amplitude(s)).mean()
        for s, t in ((ours, theirs), (high_pass(ours), high_pass(theirs)))
    ]
    return torch.stack(short).mean()


def _difference(samples: Tensor) -> Tensor:
    first, second = samples.chunk(2)
    return first - second


def _local_amplitude(x: Tensor) -> Tensor:
    """Mean absolute value over 17x17 pixels."""
    return F.avg_pool2d(x.abs().mean(1, keepdim=True), 17, 4)


def samples_grid_loss(samples: Tensor, target: Tensor, period: int = 8, cells: int = 6) -> Tensor:
    """L1 between the `periodic_pattern` of samples and photo. It penalises the checkerboard that pixel shuffles can leave.

    samples: (2n, 3, h, w), h and w multiples of period.
    target: (n, 3, h, w).
    period: of the pattern, in pixels.
    cells: side of the averaging windows in periods.
    """
    pattern, photo = (periodic_pattern(high_pass(x), period, cells) for x in (samples, target))
    return (pattern - photo.repeat(2, 1, 1, 1)).abs().mean()
