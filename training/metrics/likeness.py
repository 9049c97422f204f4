"""Two scores of visible quality: clean smooth parts, and texture of the right kind and amount on detailed parts.

Both compare with the HR picture and are 0 at best. Pictures are (n, 3, H, W), RGB in [0, 1]; distances are in levels of 1/255."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.metrics.detail import BLUR, chroma, flat_mask, mean_around, texture_mask
from training.metrics.luma import luma

# Side in pixels of the window over which texture energy is averaged.
ENERGY_WINDOW = 16
# Octaves of wavelet bands, for details of 2, 4 and 8 pixels.
SCALES = 3
# Squared levels added to every energy, since differences below one level are invisible.
QUIET = 1.0


def smoothness(sr: Tensor, hr: Tensor) -> Tensor:
    """Fidelity on smooth parts: minus the mean distance there of high-pass luma and of chroma, in levels -> (n,).

    It penalises mesh, ripples, grain, ringing beside edges and coloured blotches. 0 if the photo has no smooth part."""
    _check(sr, hr)
    gray = luma(sr.float()) - luma(hr.float())  # the high-pass is linear, so the difference suffices
    colour = chroma(sr.float()) - chroma(hr.float())  # (n, 2, H, W)
    cost = (gray - mean_around(gray, BLUR)).abs() + colour.abs().mean(1, keepdim=True)
    return -_weighted_mean(cost, flat_mask(hr).float())


def texture_likeness(sr: Tensor, hr: Tensor) -> Tensor:
    """Similarity of texture statistics: minus the mean distance of log local energies in wavelet bands on detailed parts -> (n,).

    Bands are Haar's, horizontal, vertical and diagonal in `SCALES` octaves. Energies are means over windows of
    `ENERGY_WINDOW` pixels. Too little and too much energy cost the same: a factor of 2 costs 0.7. 0 if the photo has
    no detailed part."""
    _check(sr, hr)
    height, width = (side // ENERGY_WINDOW * ENERGY_WINDOW for side in hr.shape[2:])
    ours, theirs = (
        band_energies(luma(image[..., :height, :width].float())).add(QUIET).log() for image in (sr, hr)
    )
    apart = (ours - theirs).abs().mean(1, keepdim=True)  # (n, 1, H / 16, W / 16)
    # share of detail in each window
    detailed = F.avg_pool2d(texture_mask(hr)[..., :height, :width].float(), ENERGY_WINDOW)
    return -_weighted_mean(apart, detailed)


def band_energies(plane: Tensor) -> Tensor:
    """Mean squares of Haar bands in windows: (n, 1, H, W) -> (n, 3 * SCALES, H / 16, W / 16). H and W are multiples
    of `ENERGY_WINDOW`."""
    energies = []
    for octave in range(SCALES):
        a, b, c, d = F.pixel_unshuffle(plane, 2).unbind(1)  # the pixels of each 2x2 cell, row by row
        bands = torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2
        energies.append(F.avg_pool2d(bands.square(), ENERGY_WINDOW >> (octave + 1)))
        plane = ((a + b + c + d) / 2)[:, None]  # orthonormal: white noise has equal energy in all bands
    return torch.cat(energies, dim=1)


def _check(sr: Tensor, hr: Tensor) -> None:
    if sr.shape != hr.shape or sr.ndim != 4 or min(sr.shape[2:]) < ENERGY_WINDOW:
        raise ValueError(
            f"expected two pictures (n, 3, H, W) of one size, at least {ENERGY_WINDOW} pixels a side, got {tuple(sr.shape)} and "
            f"{tuple(hr.shape)}: use larger crops"
        )


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """(n, 1, H, W) each -> (n,); 0 if all weights are 0."""
    total = weights.flatten(1).sum(1)
    return torch.where(total > 0, (values * weights).flatten(1).sum(1) / total, 0.0)
