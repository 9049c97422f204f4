"""Degradations that users have, in equal parts: what lies in a phone's folder of photos to be enlarged.

`PAPER` in `training.data.degradation` is the benchmark's; here each kind stands alone, so that a student sees clean pictures too.
Images are float32 tensors (3, h, w), RGB in [0, 1]; every choice is drawn from the generator that is passed in.
"""

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

KINDS = ("clean", "jpeg", "blur", "sensor", "camera", "screenshot", "heavy")
JPEG_RANGE = (30, 95)  # quality, inclusive
TWICE_PROB = 0.35  # of a second compression, on another grid of blocks
BLUR_SIGMA = (0.4, 1.6)  # LR pixels
SHOT_RANGE = (0.0, 0.0025)  # variance of the shot noise at full brightness, as part of the brightness
READ_RANGE = (0.5, 6.0)  # standard deviation of the read noise, 8-bit levels
CHROMA_SHARE = (0.2, 1.0)  # of the noise that is left in the colours
GRAIN_SIGMA = (0.0, 0.9)  # LR pixels: demosaicking and denoising make noise coarse
SCREEN_RANGE = (0.5, 1.5)  # factor of a picture on a screen against its file


def degrade_everyday(hr: Tensor, rng: np.random.Generator, kind: str | None = None) -> Tensor:
    """(3, H, W), H and W multiples of 4 -> (3, H/4, W/4) in multiples of 1/255. kind: one of `KINDS`; None draws one."""
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
    if kind == "jpeg" or (kind in ("blur", "sensor") and rng.random() < 0.6):
        lr = compressed(lr, rng)
    return (lr.clamp(0, 1) * 255).round() / 255


def reduced(hr: Tensor, rng: np.random.Generator) -> Tensor:
    """Made four times smaller by one of Pillow's antialiased filters."""
    chosen = FILTERS[int(rng.integers(len(FILTERS)))]
    return from_picture(to_picture(hr).resize((hr.shape[2] // 4, hr.shape[1] // 4), chosen))


def soft(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """Out of focus or shaken: a Gaussian, often longer in one direction."""
    first = rng.uniform(*BLUR_SIGMA)
    second = first if rng.random() < 0.5 else rng.uniform(0.3, first)
    return blur(lr, gaussian_kernel(11, first, second, rng.uniform(0, np.pi)))


def compressed(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """As JPEG once, or twice with the blocks of the first compression elsewhere."""
    low, high = JPEG_RANGE
    if rng.random() < TWICE_PROB:
        dy, dx = (int(k) for k in rng.integers(0, 8, 2))
        first = jpeg(torch.roll(lr, (dy, dx), (1, 2)), int(rng.integers(low, high + 1)))
        lr = torch.roll(first, (-dy, -dx), (1, 2))
    return jpeg(lr, int(rng.integers(low, high + 1)))


def sensor_noise(lr: Tensor, rng: np.random.Generator) -> Tensor:
    """Shot and read noise, coarser than a pixel and weaker in colour than in brightness, as a camera's own processing leaves it; at
    times sharpened after that."""
    shot, read = rng.uniform(*SHOT_RANGE), rng.uniform(*READ_RANGE) / 255
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


def screenshot(hr: Tensor, rng: np.random.Generator) -> Tensor:
    """A screenshot of a picture that is shown larger or smaller than its file is, at times compressed when it is sent on."""
    _, height, width = (side // 4 for side in hr.shape)
    factor = rng.uniform(*SCREEN_RANGE)
    small = to_picture(hr).resize(
        (max(8, round(width * factor)), max(8, round(height * factor))), Image.Resampling.LANCZOS
    )
    way = Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC
    lr = from_picture(small.resize((width, height), way))
    return compressed(lr, rng) if rng.random() < 0.5 else lr
