"""PSNR and SSIM of Y (BT.601, limited range): `psnr_y` and `ssim_y` for 8-bit NumPy pictures, `psnr` and `ssim` for torch batches.

They reproduce pyiqa (`test_y_channel`, `ycbcr`), on which the field's published tables are based. On OSEDiff's RealSR
outputs, PSNR agrees with its log to 1e-4 dB and SSIM to 1e-5. Only the torch forms need torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import ImageError
from runtime.upscale.probe import psnr_db
from training.metrics.luma import LIMITED_RANGE, luma_y, whole_y

if TYPE_CHECKING:
    from torch import Tensor

# PSNR in dB of equal pictures in a batch, since rewards must be finite.
PSNR_CAP = 100.0
# Side and standard deviation in pixels of the Gaussian window of SSIM.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


class MetricError(ImageError, ValueError):
    """A metric is unknown, cannot be loaded, or cannot judge the given pictures."""


def psnr_y(sr: np.ndarray, hr: np.ndarray) -> float:
    """PSNR in dB of Y over the whole picture, (H, W, 3) uint8 each. Infinite for equal pictures."""
    _check_pair(sr, hr)
    return psnr_db(luma_y(sr), luma_y(hr), equal=float("inf"))


def ssim_y(sr: np.ndarray, hr: np.ndarray) -> float:
    """SSIM of Y rounded to whole levels, (H, W, 3) uint8 each, at least 11 pixels a side."""
    _check_pair(sr, hr)
    x, y = (whole_y(*np.moveaxis(picture.astype(np.int64), 2, 0)) for picture in (sr, hr))
    return float(_ssim(x.astype(np.float64), y.astype(np.float64)))


def psnr(sr: Tensor, hr: Tensor) -> Tensor:
    """PSNR in dB of Y over the whole picture: (N, 3, H, W) in [0, 1], rounded to 8 bits -> (N,), at most `PSNR_CAP`."""
    red, green, blue = (eight_bit(sr) - eight_bit(hr)).unbind(1)
    r, g, b = (weight / 255000 for weight in LIMITED_RANGE)
    error = (r * red + g * green + b * blue).square().flatten(1).mean(1)
    return (20 * (255 / error.sqrt()).log10()).clamp(max=PSNR_CAP)


def psnr_rgb(sr: Tensor, hr: Tensor) -> Tensor:
    """PSNR in dB of R, G and B, not rounded: (N, 3, H, W) in [0, 1] -> (N,), infinite for equal pictures."""
    return -10 * (sr - hr).square().mean((1, 2, 3)).log10()


def ssim(sr: Tensor, hr: Tensor) -> Tensor:
    """SSIM of Y rounded to whole levels: (N, 3, H, W) in [0, 1], at least 11 pixels a side -> (N,)."""
    x, y = (whole_y(*eight_bit(pictures).long().unbind(1)).float() for pictures in (sr, hr))
    return _ssim(x, y)


def eight_bit(images: Tensor) -> Tensor:
    """[0, 1] -> integer levels 0..255, of the same type."""
    return (images * 255).round()


def _ssim(x: Any, y: Any) -> Any:
    """Mean SSIM of planes (..., H, W) in integer levels -> (...), with an 11x11 Gaussian window of sigma 1.5, without padding.

    As in pyiqa, the contrast-structure term is clipped at zero, so that inverted texture counts as no similarity, not as negative."""
    height, width = x.shape[-2:]
    if min(height, width) < SSIM_WINDOW:
        raise MetricError(
            f"SSIM needs at least {SSIM_WINDOW} pixels a side, got {width}x{height}: use larger pictures or crops"
        )
    # Centred planes: a variance is a small difference of large squares, which float32 would round away.
    x, y = x - 126.0, y - 126.0
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _window(x), _window(y)
    variances = _window(x * x) - mean_x**2 + _window(y * y) - mean_y**2
    structure = ((2 * (_window(x * y) - mean_x * mean_y) + c2) / (variances + c2)).clip(min=0)
    mean_x, mean_y = mean_x + 126.0, mean_y + 126.0
    return (structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)).mean((-2, -1))


def _window(planes: Any) -> Any:
    """Gaussian mean without padding: (..., H, W) -> (..., H - 10, W - 10). Plain sums, since a convolution may run in TF32."""
    kernel = np.exp(-((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2))
    taps = (kernel / kernel.sum()).tolist()
    height, width = planes.shape[-2] - SSIM_WINDOW + 1, planes.shape[-1] - SSIM_WINDOW + 1
    down = sum(tap * planes[..., k : k + height, :] for k, tap in enumerate(taps))
    return sum(tap * down[..., k : k + width] for k, tap in enumerate(taps))


def _check_pair(sr: np.ndarray, hr: np.ndarray) -> None:
    if sr.shape != hr.shape:
        raise ImageError(
            f"both pictures must have one size, got {sr.shape} and {hr.shape}: check pairing and scale"
        )
