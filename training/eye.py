"""Two scores of what an eye looks for: clean smooth parts, and on detailed parts texture of the right kind and amount.

Both compare with the HR picture, and both are 0 at best. Pictures are (n, 3, H, W), RGB in [0, 1]; distances are in levels of 1/255.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.metrics.detail import BLUR, LUMA, flat_mask, texture_mask

WINDOW = 16  # pixels; within it a texture's energy is taken
SCALES = 3  # octaves of wavelet bands: details of 2, 4 and 8 pixels
QUIET = 1.0  # squared levels that are added to every energy: what is below one level nobody sees


def smoothness(sr: Tensor, hr: Tensor) -> Tensor:
    """Fidelity on smooth parts: minus the mean distance of high-pass luma and of chroma there, in levels -> (n,).

    Mesh, ripples, grain, ringing beside an edge and coloured blotches all cost. 0 where the photo has no smooth part."""
    _check(sr, hr)
    luma, chroma = _luma_chroma(torch.stack([sr, hr]))  # (2, n, 1, H, W), (2, n, 2, H, W)
    flat = luma.flatten(0, 1)
    fine = (flat - _mean_around(flat, BLUR)).unflatten(0, (2, -1))
    cost = (fine[0] - fine[1]).abs() + (chroma[0] - chroma[1]).abs().mean(1, keepdim=True)
    return -_weighted_mean(cost, flat_mask(hr).float())


def texture_likeness(sr: Tensor, hr: Tensor) -> Tensor:
    """Texture as statistics, not as pixels: minus the mean distance of the logarithms of local energy in wavelet bands on detailed
    parts -> (n,).

    Bands are Haar's, horizontal, vertical and diagonal in `SCALES` octaves; energies are means over windows of `WINDOW` pixels. Too
    little and too much cost alike: 0.7 is a factor of 2 in energy. 0 where the photo has no detailed part."""
    _check(sr, hr)
    height, width = (side // WINDOW * WINDOW for side in hr.shape[2:])
    luma, _ = _luma_chroma(torch.stack([sr, hr])[..., :height, :width])
    energies = band_energies(luma.flatten(0, 1)).add(QUIET).log().unflatten(0, (2, -1))
    apart = (energies[0] - energies[1]).abs().mean(1, keepdim=True)  # (n, 1, H / 16, W / 16)
    detailed = F.avg_pool2d(texture_mask(hr)[..., :height, :width].float(), WINDOW)  # share of each window
    return -_weighted_mean(apart, detailed)


def band_energies(plane: Tensor) -> Tensor:
    """Mean squares of Haar bands in windows: (n, 1, H, W), multiples of `WINDOW` a side -> (n, 3 * SCALES, H / 16, W / 16)."""
    energies = []
    for octave in range(SCALES):
        a, b, c, d = F.pixel_unshuffle(plane, 2).unbind(1)  # the pixels of each 2x2 cell, row by row
        bands = torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2
        energies.append(F.avg_pool2d(bands.square(), WINDOW >> (octave + 1)))
        plane = ((a + b + c + d) / 2)[:, None]  # orthonormal: white noise has one energy in every band
    return torch.cat(energies, dim=1)


def _check(sr: Tensor, hr: Tensor) -> None:
    if sr.shape != hr.shape or sr.ndim != 4 or min(sr.shape[2:]) < WINDOW:
        raise ValueError(
            f"expected two pictures (n, 3, H, W) of one size, at least {WINDOW} pixels a side, got {tuple(sr.shape)} and "
            f"{tuple(hr.shape)}: use larger crops"
        )


def _luma_chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 3, H, W) in [0, 1] -> luma (..., 1, H, W), and blue and red minus luma (..., 2, H, W), in levels."""
    levels = images.float() * 255
    red, green, blue = levels.unbind(-3)
    luma = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
    return luma.unsqueeze(-3), torch.stack([0.564 * (blue - luma), 0.713 * (red - luma)], dim=-3)


def _mean_around(plane: Tensor, side: int) -> Tensor:
    """Mean over a square around each place, borders mirrored: (n, 1, H, W) -> the same."""
    pad = side // 2
    return F.avg_pool2d(F.pad(plane, (pad, pad, pad, pad), mode="reflect"), side, 1)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """(n, 1, H, W) each -> (n,), 0 where all weights are."""
    total = weights.flatten(1).sum(1)
    return torch.where(total > 0, (values * weights).flatten(1).sum(1) / total, 0.0)
