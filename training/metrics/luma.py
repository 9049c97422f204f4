"""Luma of ITU-R BT.601: full range for most scores, limited range (16..235) for PSNR and SSIM as in published tables.

The forms round differently on purpose: each follows the score that uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import ImageError
from runtime.image.grain import LUMA

if TYPE_CHECKING:
    from torch import Tensor

FULL_RANGE = LUMA
# Weights in thousandths of a level per unit of R, G and B.
LIMITED_RANGE = (65481, 128553, 24966)


def luma_y(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> Y in limited range, (H, W) float64, not rounded. Raises ImageError for other pictures."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(
            f"metrics need (H, W, 3) uint8, got {image.shape} of {image.dtype}: convert it first"
        )
    return image @ (np.array(LIMITED_RANGE) / 255000) + 16


def whole_y(red: Any, green: Any, blue: Any) -> Any:
    """Y in limited range, rounded to integer levels, for planes of 64-bit integers 0..255, in NumPy or torch.

    Integer arithmetic gives the same result on every device."""
    r, g, b = LIMITED_RANGE
    return (r * red + g * green + b * blue + 127500) // 255000 + 16


def rounded_luma(image: np.ndarray) -> np.ndarray:
    """Full-range luma (H, W) float64 in integer levels of 0..255, as in the published evaluation codes.

    image: (H, W) gray, or (H, W, 1..4) uint8, uint16 or float in [0, 1]. Alpha is ignored. Raises ImageError for other shapes."""
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] > 4):
        raise ImageError(
            f"NIQE needs an image (H, W) or (H, W, 1..4), got shape {image.shape}: pass one image at a time"
        )
    scale = {"uint8": 1 / 255, "uint16": 1 / 65535}.get(str(image.dtype), 1.0)
    pixels = image if image.ndim == 3 else image[..., None]
    weights = np.array(FULL_RANGE) * 255.0 * scale
    if pixels.shape[2] < 3:
        weights = weights.sum(keepdims=True)
    # float64 is stated, because NumPy 1 multiplies float32 by a float64 number in float32
    gray = sum(np.multiply(pixels[..., k], weight, dtype=np.float64) for k, weight in enumerate(weights))
    return np.round(gray)


def luma(images: Tensor) -> Tensor:
    """(n, 3, h, w) in [0, 1] -> full-range luma, (n, 1, h, w) in levels of 1/255, not rounded."""
    red, green, blue = images.split(1, dim=1)
    return 255 * (FULL_RANGE[0] * red + FULL_RANGE[1] * green + FULL_RANGE[2] * blue)


def gray_levels(images: Tensor) -> Tensor:
    """(n, 3, h, w) in [0, 1] -> full-range luma, (n, h, w) float32 in integer levels of 0..255, from pixels rounded to 8 bits."""
    red, green, blue = (images.float() * 255.0).round().unbind(1)
    return ((299 * red + 587 * green + 114 * blue) / 1000.0).round()
