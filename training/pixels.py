"""Pictures of 8 bits as tensors and back. Values are rounded to the nearest of the 256 levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def from_pixels(pixels: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 -> (3, h, w) float32 in [0, 1], laid out as the pixels are."""
    return from_bytes(torch.from_numpy(pixels).permute(2, 0, 1))


def to_pixels(image: Tensor) -> np.ndarray:
    """(3, h, w), clamped to [0, 1] -> (h, w, 3) uint8, laid out as the image is."""
    return to_bytes(image).permute(1, 2, 0).cpu().numpy()


def from_bytes(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return image.float() / 255


def to_bytes(image: Tensor) -> Tensor:
    """Any float, clamped to [0, 1] -> uint8."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def rounded(image: Tensor) -> Tensor:
    """Clamped to [0, 1] and rounded to the levels that a picture file can hold."""
    return (image.clamp(0, 1) * 255).round() / 255
