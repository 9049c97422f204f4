"""Attribute-aware reward weights (GDPO-SR): the shares of detail and of smooth areas in a photo.

A patch is detailed if the histogram of its Sobel magnitudes has a high entropy: texture has many gradients of
different strength, a flat area or a soft ramp only few. There are two measures of it:

- `detail_share`, ours: the gradients of the picture, and a threshold at which half of a typical photo is detailed. Gray
  levels and gradients are integers, so the share does not depend on the device or the batch.
- `published_share`, that of the public code: the gradients of each patch enlarged to 64x64 pixels, and half a bit. It calls
  two thirds of a typical photo detailed, so that no-reference metrics weigh more (figures in training/EXPERIMENTS.md)."""

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

# The public code's measure. Side to which a patch is enlarged before its gradients are taken:
PUBLISHED_SIDE = 64
# Bins of the histogram, and its upper end for gray 0..1. The code has 512 from -5.5 on, and a magnitude fills none below 0.
PUBLISHED_BINS = 256
PUBLISHED_TOP = 5.5
# A patch is detailed above this entropy in bits: the code compares the entropy times the patch's 100 pixels with 50.
PUBLISHED_THRESHOLD = 0.5
# Patches that are enlarged at once.
PUBLISHED_CHUNK = 512


def detail_share(hr: Tensor, patch: int = PATCH, threshold: float = THRESHOLD, bins: int = BINS) -> Tensor:
    """rho_d, the share of pixels in detailed patches: (B, 3, H, W) RGB in [0, 1] -> (B,) float32 in [0, 1]. rho_s is 1 - rho_d.

    hr: the pictures.
    patch: side of a patch in pixels.
    threshold: least entropy of a detailed patch in bits.
    bins: of the histogram.

    The threshold is not the published one (`published_share`). With it, half of a typical training photo is detailed: over random
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
        return _entropy(level, bins).view(batch, rows, columns)


@torch.no_grad()
def published_share(hr: Tensor) -> Tensor:
    """rho_d as in the public code of GDPO-SR: (B, 3, H, W) RGB in [0, 1] -> (B,) float32 in [0, 1].

    Two faults of the code are left out: it multiplies the entropy of a patch cut by the right or lower border by that
    patch's fewer pixels, so that most of these count as smooth, and it weights red as if it were blue."""
    check_pictures(hr, "the HR pictures")
    height, width = hr.shape[2:]
    with torch.autocast(hr.device.type, enabled=False):
        gray = gray_levels(hr)
        detailed = torch.zeros(len(hr), dtype=torch.float64, device=hr.device)  # pixels
        for y in _parts(height):
            for x in _parts(width):
                rows = gray[:, y].unflatten(1, (-1, min(PATCH, y.stop - y.start)))
                patches = rows[..., x].unflatten(3, (-1, min(PATCH, x.stop - x.start))).transpose(2, 3)
                entropy = _enlarged_entropy(patches.flatten(0, 2)).view(patches.shape[:3])
                pixels = patches.shape[3] * patches.shape[4]
                detailed += pixels * (entropy > PUBLISHED_THRESHOLD).sum((1, 2))
    return (detailed / (height * width)).float()


def _parts(size: int) -> list[slice]:
    """Whole patches along a side, and the rest at the border."""
    whole = size - size % PATCH
    return [part for part in (slice(0, whole), slice(whole, size)) if part.stop > part.start]


def _enlarged_entropy(patches: Tensor) -> Tensor:
    """Entropy of each patch's Sobel histogram after it was enlarged to 64x64: (n, h, w) gray levels -> (n,) float32, bits."""
    found = []
    for some in patches.double()[:, None].split(PUBLISHED_CHUNK):
        large = F.interpolate(some, (PUBLISHED_SIDE, PUBLISHED_SIDE), mode="bilinear", align_corners=False)
        magnitude = sobel_magnitude(large[:, 0]) / 255
        level = (magnitude * (PUBLISHED_BINS / PUBLISHED_TOP)).long().clamp(max=PUBLISHED_BINS - 1)
        found.append(_entropy(level.flatten(1), PUBLISHED_BINS))
    return torch.cat(found)


def _entropy(level: Tensor, bins: int) -> Tensor:
    """Shannon entropy of each row of bin numbers: (n, pixels) int64 -> (n,) float32, bits."""
    first = torch.arange(len(level), device=level.device)[:, None] * bins
    counts = torch.bincount((first + level).flatten(), minlength=len(level) * bins)
    share = counts.view(len(level), bins).float() / level.shape[1]
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
