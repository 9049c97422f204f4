"""Artificial flaws of reconstructions: grain, mesh, coloured ripples, ghost outlines, JPEG blocks.

Without them in training, a critic takes grain for detail. Images are float32 tensors (3, H, W), RGB in [0, 1]. Every choice
is drawn from the generator that is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.degradation import jpeg
from training.metrics.luma import FULL_RANGE

# Standard deviation of grain in levels of 1/255.
GRAIN_LEVELS = (1.5, 12.0)
# Amplitude of mesh in levels of 1/255.
MESH_LEVELS = (1.5, 10.0)
# Amplitude of coloured ripples in levels of 1/255.
RIPPLE_LEVELS = (2.0, 12.0)
# Amount of the unsharp mask.
OUTLINE_AMOUNT = (0.5, 2.5)
# JPEG quality, inclusive.
QUALITY = (15, 75)


def grain(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise with a grain of one or two pixels, gray or coloured."""
    noise = rng.standard_normal(tuple(image.shape), dtype=np.float32)
    if rng.random() < 0.5:
        noise[:] = noise[:1]
    if rng.random() < 0.5:  # coarser: means over 2x2 pixels, brought back to the same strength
        noise = 0.5 * (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, 1, (1, 2)))
    return image + _levels(rng, GRAIN_LEVELS) * torch.from_numpy(noise).to(image)


def mesh(image: Tensor, rng: np.random.Generator) -> Tensor:
    """A fine grating, single or crossed, over the whole picture or following its contrast."""
    wave = _wave(image, rng, (2.0, 8.0))
    if rng.random() < 0.5:
        wave = wave * _wave(image, rng, (2.0, 8.0))
    if rng.random() < 0.5:
        wave = wave * _contrast(image)
    return image + _levels(rng, MESH_LEVELS) * wave


def ripples(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Bands of colour that do not change the brightness."""
    colour = rng.standard_normal(3)
    colour -= colour @ np.array(FULL_RANGE)
    colour /= np.abs(colour).max() + 1e-6
    direction = torch.from_numpy(colour.astype(np.float32)).to(image)[:, None, None]
    return image + _levels(rng, RIPPLE_LEVELS) * direction * _wave(image, rng, (5.0, 40.0))


def outlines(image: Tensor, rng: np.random.Generator) -> Tensor:
    """An unsharp mask so strong that edges have ghosts."""
    side = 2 * int(rng.integers(1, 4)) + 1
    padded = F.pad(image[None], (side // 2,) * 4, mode="reflect")
    return image + float(rng.uniform(*OUTLINE_AMOUNT)) * (image - F.avg_pool2d(padded, side, 1)[0])


def blocks(image: Tensor, rng: np.random.Generator) -> Tensor:
    """JPEG of low quality."""
    return jpeg(image.cpu(), int(rng.integers(QUALITY[0], QUALITY[1] + 1))).to(image)


FLAWS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "grain": grain,
    "mesh": mesh,
    "ripples": ripples,
    "outlines": outlines,
    "blocks": blocks,
}


def spoil(image: Tensor, rng: np.random.Generator, flaw: str | None = None) -> Tensor:
    """An image (3, H, W) with one of `FLAWS`, clamped to [0, 1]. flaw: its name; None draws one."""
    name = flaw or list(FLAWS)[int(rng.integers(len(FLAWS)))]
    if name not in FLAWS:
        raise ValueError(f"flaw must be one of {', '.join(FLAWS)}, got {name!r}")
    return FLAWS[name](image, rng).clamp(0.0, 1.0)


def _levels(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(rng.uniform(*bounds)) / 255


def _wave(image: Tensor, rng: np.random.Generator, periods: tuple[float, float]) -> Tensor:
    """A sine in a random direction, (H, W) from -1 to 1. periods: bounds of the period in pixels."""
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    step = float(2 * np.pi / np.exp(rng.uniform(*np.log(periods))))
    y = torch.arange(image.shape[1], device=image.device)[:, None]
    x = torch.arange(image.shape[2], device=image.device)[None]
    return torch.sin(step * (math.sin(angle) * y + math.cos(angle) * x) + phase).to(image.dtype)


def _contrast(image: Tensor) -> Tensor:
    """Local contrast: (3, H, W) -> (H, W) from 0 to 1."""
    gray = image.mean(0, keepdim=True)[None]
    around = F.avg_pool2d(F.pad(gray, (4, 4, 4, 4), mode="reflect"), 9, 1)
    return ((gray - around).abs()[0, 0] * 20).clamp(0, 1)
