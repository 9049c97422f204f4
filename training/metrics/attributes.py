"""Attribute-aware reward weights (GDPO-SR): the shares of detail and of smooth areas in a photo.

A patch is detailed if the histogram of its Sobel magnitudes has a high entropy: texture has many gradients of
different strength, a flat area or a soft ramp only few. Gray levels and gradients are integers, so the share does not
depend on the device or the batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.metrics.luma import gray_levels

# Side of a patch in pixels.
PATCH = 10
# Bins of the histogram, 8 gray levels wide, so that camera noise stays in the lowest ones.
BINS = 128
# Upper end of the histogram: Sobel magnitude for gray levels 0..255. The rare stronger gradients count in the last bin.
TOP = 1024.0
# Least entropy of a detailed patch in bits. White noise reaches it at a standard deviation of about 11 gray levels.
THRESHOLD = 3.5


def detail_share(hr: Tensor, patch: int = PATCH, threshold: float = THRESHOLD, bins: int = BINS) -> Tensor:
    """rho_d, the share of pixels in detailed patches: (B, 3, H, W) RGB in [0, 1] -> (B,) float32 in [0, 1]. rho_s is 1 - rho_d.

    hr: the pictures.
    patch: side of a patch in pixels.
    threshold: least entropy of a detailed patch in bits.
    bins: of the histogram.

    The paper does not publish its threshold. With ours, half of a typical training photo is detailed: over random
    crops of 192 to 512 pixels from 370 openly licensed photos the median share is 0.48, the quartiles 0.28 and 0.72."""
    return detail_map(hr, patch, threshold, bins).flatten(1).sum(1) / float(hr.shape[2] * hr.shape[3])


@torch.no_grad()
def detail_map(hr: Tensor, patch: int = PATCH, threshold: float = THRESHOLD, bins: int = BINS) -> Tensor:
    """Detailed pixels: (B, 3, H, W) RGB in [0, 1] -> (B, H, W) bool.

    hr: the pictures.
    patch: side of a patch in pixels.
    threshold: least entropy of a detailed patch in bits.
    bins: of the histogram."""
    if not threshold > 0:
        raise ValueError(f"the entropy threshold must be above 0 bits (a flat patch has 0), got {threshold}")
    detailed = patch_entropy(hr, patch, bins) >= threshold
    height, width = hr.shape[2:]
    return detailed.repeat_interleave(patch, 1)[:, :height].repeat_interleave(patch, 2)[:, :, :width]


@torch.no_grad()
def patch_entropy(hr: Tensor, patch: int = PATCH, bins: int = BINS) -> Tensor:
    """Shannon entropy of each patch's Sobel histogram: (B, 3, H, W) RGB in [0, 1] -> (B, rows, columns) float32, bits.

    A patch cut by the right or lower border is completed by mirroring the magnitudes, so that all patches have as many."""
    check_pictures(hr, "the HR pictures")
    if patch < 1 or bins < 2:
        raise ValueError(f"expected a patch of at least 1 pixel and at least 2 bins, got {patch} and {bins}")
    with torch.autocast(hr.device.type, enabled=False):
        magnitude = sobel_magnitude(gray_levels(hr))
        batch, height, width = magnitude.shape
        rows, columns = -(-height // patch), -(-width // patch)
        y = _mirrored(height, rows * patch, hr.device)
        x = _mirrored(width, columns * patch, hr.device)
        level = (magnitude * (bins / TOP)).long().clamp(max=bins - 1)[:, y[:, None], x]
        level = level.view(batch, rows, patch, columns, patch).transpose(2, 3).reshape(-1, patch * patch)
        first = torch.arange(len(level), device=hr.device)[:, None] * bins
        counts = torch.bincount((first + level).flatten(), minlength=len(level) * bins)
        share = counts.view(batch, rows, columns, bins).float() / (patch * patch)
        return -torch.xlogy(share, share).sum(-1) / math.log(2.0)


def sobel_magnitude(gray: Tensor) -> Tensor:
    """Length of the 3x3 Sobel gradient with replicated borders: (B, H, W) -> (B, H, W). A step of one gray level gives 4."""
    padded = F.pad(gray[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:]
    columns = padded[:, :, :-2] + 2.0 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    return (across * across + down * down).sqrt()


def check_pictures(images: Tensor, what: str) -> None:
    """Raise ValueError unless images is (B, 3, H, W) float, not empty, within [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or images.numel() == 0:
        raise ValueError(f"{what} must be (B, 3, H, W) float, got {tuple(images.shape)} of {images.dtype}")
    low, high = (bound.item() for bound in torch.aminmax(images.detach()))
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"{what} must be within [0, 1], got {low:.4g} to {high:.4g}; rescale or clamp them")


def _mirrored(size: int, padded: int, device: torch.device) -> Tensor:
    """Pixel index for each place 0..padded-1 when a line of `size` pixels is mirrored repeatedly."""
    place = torch.arange(padded, device=device) % (2 * size)
    return torch.where(place < size, place, 2 * size - 1 - place)
