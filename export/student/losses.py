"""Losses of the student's stages, as pure functions of pictures (n, 3, h, w), RGB in [0, 1].

All losses are scalars. `export.distill.losses` has those for two samples stacked in one batch."""

from __future__ import annotations

import math
from functools import cache, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from training.stages.preference import anchor_distance


def gradient_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 between image gradients: differences of pixels one and two apart, along rows and columns.

    It penalises a loss of contrast at edges, which the L1 of pixels hardly sees."""
    apart = image - target
    terms = [
        (apart[..., step:, :] - apart[..., :-step, :]).abs().mean()
        + (apart[..., :, step:] - apart[..., :, :-step]).abs().mean()
        for step in (1, 2)
    ]
    return torch.stack(terms).mean()


def low_pass(image: Tensor, cell: int = 8) -> Tensor:
    """Means over cells of `cell` x `cell` pixels: structure and colours, without texture."""
    return F.avg_pool2d(image, cell)


def low_pass_loss(image: Tensor, target: Tensor, cell: int = 8) -> Tensor:
    """L1 between means over cells of `cell` x `cell` pixels: structure and colours."""
    return low_pass(image - target, cell).abs().mean()


def with_colours_of(picture: Tensor, lr: Tensor, cell: int = 16) -> Tensor:
    """The picture with the local mean colours of its LR picture: (n, 3, 4h, 4w), (n, 3, h, w) -> (n, 3, 4h, 4w) in [0, 1].

    Means are taken over cells of about `cell` LR pixels and interpolated between them. The correction is needed
    because realesr-general-x4v3 darkens whole pictures by up to 8 of 255, and textures in them. Smaller cells would
    restore the block means of a JPEG, which the prior is meant to remove."""
    cells = [max(1, side // cell) for side in lr.shape[-2:]]
    apart = F.adaptive_avg_pool2d(lr, cells) - F.adaptive_avg_pool2d(picture, cells)
    return (picture + F.interpolate(apart, picture.shape[-2:], mode="bilinear", align_corners=False)).clamp(
        0, 1
    )


def fine_part(image: Tensor, cell: int = 4) -> Tensor:
    """The detail that an LR picture cannot hold: the image minus the bicubic upscale of its means over `cell` x `cell` pixels.

    (n, 3, h, w) -> same; h and w are multiples of cell."""
    coarse = F.interpolate(low_pass(image, cell), scale_factor=cell, mode="bicubic", align_corners=False)
    return image - coarse


def with_coarse_part_of(picture: Tensor, photo: Tensor, share: float | Tensor = 1.0) -> Tensor:
    """The picture with the photo's coarse part, as an LR picture can hold it: (n, 3, h, w) twice -> same, in [0, 1].

    One step of back-projection (Irani & Peleg 1991), onto the photo instead of its LR picture. Priors of crisp
    edges also darken lines, bleach skin and erase grass. This shows in means over 4x4 pixels, which are taken from the photo here.

    share: of the photo in the coarse part, 0 to 1; a number, or a tensor (n, 1, 1, 1)."""
    coarse = (photo - fine_part(photo)) - (picture - fine_part(picture))
    return (picture + share * coarse).clamp(0, 1)


def local_range(image: Tensor, side: int = 5) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value in a square around each pixel: (n, c, h, w) -> the same twice. side: odd."""
    low = high = F.pad(image, [side // 2] * 4, mode="replicate")
    for axis in (-2, -1):  # by shifts: on a CPU `max_pool2d` takes 30 times as long
        size = image.shape[axis]
        low = reduce(torch.minimum, [low.narrow(axis, shift, size) for shift in range(side)])
        high = reduce(torch.maximum, [high.narrow(axis, shift, size) for shift in range(side)])
    return low, high


def plain(low: Tensor, high: Tensor, level: float = 4 / 255) -> Tensor:
    """How plain a picture is at each pixel, from its `local_range`: (n, c, h, w) twice -> (n, 1, h, w) in (0, 1].

    level: mean range over channels at which the result is 1/2."""
    return 1 / (1 + ((high - low).mean(1, keepdim=True) / level).square())


def plain_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 on the target's `plain` places, of pixels and of their differences over 1, 2 and 4 pixels: (n, c, h, w) twice -> scalar."""
    apart, weight = image - target, plain(*local_range(target))
    steps = [
        ((apart[..., k:, :] - apart[..., :-k, :]).abs() * weight[..., k:, :]).mean()
        + ((apart[..., k:] - apart[..., :-k]).abs() * weight[..., k:]).mean()
        for k in (1, 2, 4)
    ]
    return (apart.abs() * weight).mean() + torch.stack(steps).mean()


def limited(image: Tensor, low: Tensor, high: Tensor, margin: float | Tensor) -> Tensor:
    """The image in [low, high], or beyond it by less than `margin`: an excess of x becomes margin tanh(x / margin).

    image, low, high: (n, c, h, w) each -> same.
    margin: above 0, a number or a tensor like them."""
    inside = torch.minimum(torch.maximum(image, low), high)
    return inside + margin * torch.tanh((image - inside) / margin)


def told_by(lr: Tensor, photo: Tensor, error: float) -> Tensor:
    """How well an input determines the photo's means over 4x4 pixels: (n, 3, h, w), (n, 3, 4h, 4w) -> (n, 1, 1, 1) in (0, 1].

    error: RMS distance between the two, in [0, 1], at which the result is 1/2.

    Typical distances in levels of 1/255: 1 to 4 for a clean reduction, 10 for a JPEG of quality 40, up to 30 for blur
    and noise. If an input does not determine the photo, an L1 loss learns the median, which is dull and soft. A prior's
    picture, a function of the input, is then the better target."""
    apart = (F.avg_pool2d(photo, 4) - lr).square().mean((1, 2, 3), keepdim=True)
    return error**2 / (error**2 + apart)


# Sides in LR pixels: of the windows over which an input's trust is judged, and of those whose mean separates texture from the rest.
ERROR_WINDOW = 17
TEXTURE_WINDOW = 5
# Strength of texture, in [0, 1], that counts as none.
NO_TEXTURE = 1.5 / 255


def trusted(lr: Tensor, photo: Tensor, ratio: float) -> Tensor:
    """How far an input can be trusted, place by place, to hold the photo's means over 4x4 pixels.

    (n, 3, h, w), (n, 3, 4h, 4w) -> (n, 1, h, w) in (0, 1].

    ratio: energy of the error, relative to that of the texture around it, at which the result is 1/2.

    Texture hides an error, so the same error weighs less there. Typical ratios: 0.01 to 0.04 for a clean reduction, 0.2 to
    0.9 for JPEG, 0.3 to 0.5 for blur, 1 and more for noise on smooth places."""
    means = F.avg_pool2d(photo, 4)
    error = _window_mean((lr - means).square().mean(1, keepdim=True), ERROR_WINDOW)
    texture = _window_mean(
        (means - _window_mean(means, TEXTURE_WINDOW)).square().mean(1, keepdim=True), ERROR_WINDOW
    )
    return 1 / (1 + (error / (texture + NO_TEXTURE**2) / ratio).square())


def _window_mean(image: Tensor, side: int) -> Tensor:
    """Mean over a square around each pixel, of what of it lies inside the picture. side: odd."""
    return F.avg_pool2d(image, side, 1, side // 2, count_include_pad=False)


# Side in pixels of the squares of the local cosine transform.
WINDOW = 8
# Pixels between two squares. It is odd so that every phase of a grid of 2, 4 or 8 pixels is covered.
STRIDE = 3


def cosine_bands(image: Tensor) -> Tensor:
    """Local cosine transform: orthonormal DCT-II of 8x8 squares, one every third pixel, without the mean.

    (n, 1, h, w) -> (n, 63, h', w'), one place per square that fits. For white noise, each band has the noise's standard deviation."""
    return F.conv2d(image, _cosines(WINDOW).to(image), stride=STRIDE)


@cache
def _cosines(side: int) -> Tensor:
    """Filters of the transform without the mean, (side^2 - 1, 1, side, side)."""
    places = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi / side * (places + 0.5) * places[:, None]) * (2 / side) ** 0.5
    waves[0] /= 2**0.5
    return torch.einsum("ai,bj->abij", waves, waves).reshape(side * side, 1, side, side)[1:].float()


def energy_score(samples: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Energy score of the brightness of the fine parts, per band and place (Gneiting & Raftery 2007, Eq. 21): mean
    |x_i - y| - 1/2 mean |x_i - x_j|.

    samples: (m, n, 3, h, w), m >= 2 samples of each picture.
    truth: (n, 3, h, w); h and w are multiples of 4.
    weight: (n, 1, h, w), weight of each place; None weights all alike.

    x and y are coefficients of `cosine_bands`. The score is proper: its expectation is smallest if the samples'
    coefficients are distributed as the truth's are given the input. Neither agreeing samples nor added grain lower
    it. The bands fix how well patterns are resolved: on whole patches as vectors the score sees only their strength,
    and on Haar's octaves it misses a weave of four to five pixels."""
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
    """Weighted mean of |apart|, whose gradient is zero at zero: (n, bands, h, w), (n, 1, h, w) -> scalar."""
    length = (apart.square() + 1e-8).sqrt()
    return length.mean() if weight is None else (length * weight).mean()


def without_grain(photo: Tensor, core: Tensor, level: float = 3 / 255) -> Tensor:
    """The photo without camera grain: its textured places from the photo, its flat places from the core: (n, 3, h, w) twice -> same.

    level: mean |fine part| over 17x17 pixels at which both contribute one half."""
    strength = _texture_strength(photo).square()
    return core + strength / (strength + level**2) * (photo - core)


def texture_weight(picture: Tensor, edge: float = 0.15) -> Tensor:
    """Weight of places away from strong edges: (n, 3, h, w) -> (n, 1, h, w) in (0, 1].

    edge: difference between neighbouring pixels (mean over RGB) at which the weight is 1/2. The strongest edge within
        four pixels counts."""
    gray = picture.mean(1, keepdim=True)
    across = F.pad((gray[..., :, 1:] - gray[..., :, :-1]).abs(), (0, 1, 0, 0))
    down = F.pad((gray[..., 1:, :] - gray[..., :-1, :]).abs(), (0, 0, 0, 1))
    strongest = F.max_pool2d(torch.maximum(across, down), 9, 1, 4)
    return 1 / (1 + (strongest / edge).square())


def _texture_strength(picture: Tensor) -> Tensor:
    """Mean |fine part| over 17x17 pixels, (n, 3, h, w) -> (n, 1, h, w)."""
    return F.avg_pool2d(fine_part(picture).abs().mean(1, keepdim=True), 17, 1, 8, count_include_pad=False)


def periodic_pattern(fine: Tensor, period: int, cells: int) -> Tensor:
    """Mean over windows of cells x cells periods, separately for each phase of the period.

    fine: (n, c, h, w), a fine part; h and w are multiples of period.
    Returns (n, c * period^2, h', w'). Texture averages out; a grid of this period remains."""
    return F.avg_pool2d(F.pixel_unshuffle(fine, period), cells, stride=max(1, cells // 2))


def grid_loss(image: Tensor, target: Tensor, period: int = 8, cells: int = 10) -> Tensor:
    """L1 between the `periodic_pattern` of the fine parts of image and target. h and w are multiples of period.

    It penalises a grid from the noise's cells or from pixel shuffles, but not grain.

    image, target: (n, 3, h, w).
    period: of the grid, in pixels.
    cells: side in periods of the windows that the pattern is averaged over; at most the picture's own."""
    cells = min(cells, *(side // period for side in image.shape[-2:]))
    pattern, wanted = (periodic_pattern(fine_part(x), period, cells) for x in (image, target))
    return (pattern - wanted).abs().mean()


def chroma(image: Tensor) -> Tensor:
    """Colour without brightness: each channel minus the mean of the three. It is zero for gray pixels."""
    return image - image.mean(1, keepdim=True)


def chroma_loss(image: Tensor, target: Tensor) -> Tensor:
    """L1 between colours without brightness, i.e. each channel minus the mean of the three."""
    return chroma(image - target).abs().mean()


def distances(policy: Tensor, reference: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """How far the policy's pictures (B, 3, H, W) are from the reference's, relative to the group's variance (B,).

    anchor: see `anchor_distance`.
    structure: L1 of means over 8x8 pixels, over the standard deviation.
    colour: L1 of the mean red-green and blue-green differences, over the standard deviation.
    Each is a mean over B."""
    apart = policy - reference
    deviation = variance.sqrt()
    relative = apart / deviation[:, None, None, None]
    against_green = (apart[:, ::2] - apart[:, 1:2]).mean((2, 3))  # red and blue, (B, 2)
    return {
        "anchor": anchor_distance(policy, reference, variance),
        "structure": low_pass_loss(relative, torch.zeros_like(relative)),
        "colour": (against_green.abs().mean(1) / deviation).mean(),
    }
