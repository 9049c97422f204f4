"""Fixed interpolation kernels: weights of convolutions at LR resolution, in groups of one colour, before a pixel shuffle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bicubic_weight(scale: int) -> Tensor:
    """Weights (3 * scale^2, 1, 5, 5) such that pixel_shuffle(conv(x, padding=2, groups=3), scale) is the bicubic upscale of x.

    Keys' kernel with a = -0.5, half-pixel centres."""
    return _of_each_colour(_bicubic_taps(scale))


def spreading_weight(scale: int) -> Tensor:
    """Weights as of `bicubic_weight`, for an upscale whose means over scale x scale pixels are x, but for 12 % of the finest detail.

    Of the bicubic upscale they lack up to 36 %. These are two steps of back-projection along each axis, cut to five taps."""
    once = _bicubic_taps(scale)
    twice = 2 * once - F.conv1d(once[:, None], once.mean(dim=0)[None, None], padding=2)[:, 0]
    return _of_each_colour(twice / twice.sum(dim=1, keepdim=True))


def _bicubic_taps(scale: int) -> Tensor:
    """Weights of the five nearest LR pixels of an axis, for each place inside the middle one: (scale, 5)."""

    def keys(t: float) -> float:
        t = abs(t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    taps = torch.zeros(scale, 5)
    for phase in range(scale):
        centre = (phase + 0.5) / scale - 0.5  # the output pixel's place in LR pixels from the middle tap
        for k in range(5):
            taps[phase, k] = keys(k - 2 - centre)
    return taps / taps.sum(dim=1, keepdim=True)


def _of_each_colour(taps: Tensor) -> Tensor:
    """The kernels of both axes as a convolution of three groups: (scale, 5) -> (3 * scale^2, 1, 5, 5)."""
    plane = torch.einsum("ai,bj->abij", taps, taps).reshape(-1, 1, 5, 5)
    return plane.repeat(3, 1, 1, 1)
