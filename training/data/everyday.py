"""Degradations of everyday pictures, in equal parts: the kinds found in a phone's photo folder.

`PAPER` in `training.data.degradation` is the benchmark's. Here each kind stands alone, so that a student also sees
clean pictures. Images are float32 tensors (3, h, w), RGB in [0, 1]. Every choice is drawn from the generator that is passed in."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.data.degradation import (
    FILTERS,
    MILD,
    PAPER,
    blur,
    degrade,
    from_picture,
    jpeg,
    sharpen,
    to_picture,
)
from training.data.kernels import gaussian_kernel
from training.pixels import rounded

KINDS = ("clean", "jpeg", "blur", "sensor", "raw", "camera", "screenshot", "heavy")
# JPEG quality, inclusive.
JPEG_RANGE = (30, 95)
# Probability of a second compression, on another grid of blocks.
TWICE_PROB = 0.35
# Sigma of the blur in LR pixels.
BLUR_SIGMA = (0.4, 1.6)
# Variance of the shot noise at full brightness, for brightness in [0, 1].
SHOT_RANGE = (0.0, 0.0025)
# Standard deviation of the read noise in levels of 1/255. Its square root is drawn evenly, so that weak noise is more frequent.
READ_RANGE = (0.5, 25.0)
# Standard deviation of noise that nothing has smoothed, in levels of 1/255: a raw conversion at high ISO, a scan.
RAW_RANGE = (1.0, 25.0)
# Share of the noise that remains in the colours.
CHROMA_SHARE = (0.2, 1.0)
# Sigma of the noise's blur in LR pixels. Demosaicking and denoising make noise coarse.
GRAIN_SIGMA = (0.0, 0.9)
# Size of a picture on a screen relative to its file.
SCREEN_RANGE = (0.5, 1.5)


def degrade_everyday(hr: Tensor, rng: np.random.Generator, kind: str | None = None) -> Tensor:
    """Degrade (3, H, W) to (3, H/4, W/4) in multiples of 1/255. H and W are multiples of 4.

    kind: one of `KINDS`; None draws one."""
    kind = kind or KINDS[int(rng.integers(len(KINDS)))]
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if hr.shape[1] % 4 or hr.shape[2] % 4:
        raise ValueError(f"HR size must be a multiple of 4, got {tuple(hr.shape[1:])}")
    if kind == "heavy":
        return degrade(hr, rng, PAPER)
    if kind == "camera":
        return degrade(hr, rng, MILD)
    if kind == "screenshot":
        return screenshot(hr, rng)
    lr = reduced(hr, rng)
    if kind == "blur":
        lr = soft(lr, rng)
    if kind == "sensor":
        lr = sensor_noise(lr, rng)
    if kind == "raw":
        lr = raw_noise(lr, rng)
    if kind == "jpeg" or (kind in ("blur", "sensor") and rng.random() < 0.6):
        lr = compressed(lr, rng)
    return rounded(lr)


def reduced(hr: Tensor, rng: np.random.Generator) -> Tensor:
    """Downscale by 4 with one of Pillow's antialiased filters."""
    chosen = FILTERS[int(rng.integers(len(FILTERS)))]
    return from_picture(to_picture(hr).resize((hr.shape[2] // 4, hr.shape[1] // 4), chosen))


def soft(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """Defocus or camera shake: a Gaussian blur, often longer in one direction."""
    first = rng.uniform(*BLUR_SIGMA)
    second = first if rng.random() < 0.5 else rng.uniform(0.3, first)
    return blur(lr, gaussian_kernel(11, first, second, rng.uniform(0, np.pi)))


def compressed(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """JPEG once, or twice with another grid of blocks for the first compression."""
    low, high = JPEG_RANGE
    if rng.random() < TWICE_PROB:
        dy, dx = (int(k) for k in rng.integers(0, 8, 2))
        first = jpeg(torch.roll(lr, (dy, dx), (1, 2)), int(rng.integers(low, high + 1)))
        lr = torch.roll(first, (-dy, -dx), (1, 2))
    return jpeg(lr, int(rng.integers(low, high + 1)))


def noise_strength(rng: np.random.Generator) -> tuple[float, float]:
    """Variance of the shot noise at full brightness and standard deviation of the read noise, for brightness in [0, 1]."""
    low, high = READ_RANGE
    return rng.uniform(*SHOT_RANGE), rng.uniform(low**0.5, high**0.5) ** 2 / 255


def sensor_noise(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """Shot and read noise after a camera's processing: coarser than a pixel, weaker in colour, sometimes sharpened."""
    shot, read = noise_strength(rng)
    deviation = (shot * lr.clamp(0, 1) + read**2).sqrt()
    noise = torch.from_numpy(rng.standard_normal(tuple(lr.shape), dtype=np.float32))
    sigma = rng.uniform(*GRAIN_SIGMA)
    if sigma > 0.3:
        noise = blur(noise, gaussian_kernel(5, sigma))
        noise = noise / noise.std().clamp_min(1e-6)
    gray = noise.mean(0, keepdim=True) * 3**0.5
    share = rng.uniform(*CHROMA_SHARE)
    noisy = lr + deviation * (gray + share * (noise - noise.mean(0, keepdim=True)))
    return sharpen(noisy.clamp(0, 1), 0.8, rng.uniform(0.2, 1.0)) if rng.random() < 0.3 else noisy


def raw_noise(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """White noise, independent in each channel, of a deviation in `RAW_RANGE`: (3, h, w) in [0, 1] -> the same shape and range."""
    deviation = rng.uniform(*RAW_RANGE) / 255
    noise = torch.from_numpy(rng.standard_normal(tuple(lr.shape), dtype=np.float32))
    return (lr + deviation * noise).clamp(0, 1)


def screenshot(hr: Tensor, rng: np.random.Generator) -> Tensor:
    """A screenshot of a picture shown larger or smaller than its file, sometimes compressed."""
    _, height, width = (side // 4 for side in hr.shape)
    factor = rng.uniform(*SCREEN_RANGE)
    small = to_picture(hr).resize(
        (max(8, round(width * factor)), max(8, round(height * factor))), Image.Resampling.LANCZOS
    )
    way = Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC
    lr = from_picture(small.resize((width, height), way))
    return compressed(lr, rng) if rng.random() < 0.5 else lr
