"""Colour fixes: give an upscaled picture the colours of the picture it came from.

Both work on the whole image, never per tile, so that tiles cannot differ in tint (StableSR, arXiv 2305.07015,
Sec. 3.3).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from ..errors import ImageError

WAVELET_LEVELS = 5
STD_FLOOR = 1e-5  # a flat channel has no contrast to rescale


def color_fix(sr: np.ndarray, lr: np.ndarray, method: str) -> np.ndarray:
    """sr: (H, W, 3) float32 in [0, 1], lr: (h, w, 3) float32 in [0, 1] -> (H, W, 3) float32 in [0, 1].

    method: "none" returns sr itself; "adain" gives each channel LR's mean and standard deviation; "wavelet"
    keeps the detail of sr and takes everything coarser than about 32 pixels from LR.
    """
    if method not in COLOR_FIXES:
        raise ImageError(f"unknown colour fix {method!r}: use one of {', '.join(COLOR_FIXES)}")
    for name, image in (("sr", sr), ("lr", lr)):
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ImageError(
                f"the colour fix needs {name} as (H, W, 3), got {image.shape}: convert it to RGB first"
            )
    return _METHODS[method](sr, lr)


def adain(sr: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Adaptive instance normalisation: mean and deviation per channel, taken over the whole image."""
    axes = (0, 1)
    mean_sr, mean_lr = sr.mean(axes, dtype=np.float64), lr.mean(axes, dtype=np.float64)
    std_sr, std_lr = sr.std(axes, dtype=np.float64), lr.std(axes, dtype=np.float64)
    gain = np.where(std_sr < STD_FLOOR, 1.0, std_lr / np.maximum(std_sr, STD_FLOOR))
    fixed = sr * gain.astype(np.float32)
    fixed += (mean_lr - mean_sr * gain).astype(np.float32)
    return np.clip(fixed, 0.0, 1.0, out=fixed)


def wavelet(sr: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Swap of the a-trous low-pass band. The low-pass is linear, so low(LR) - low(SR) = low(LR - SR): one
    pass instead of two.
    """
    fixed = np.empty(sr.shape, np.float32)
    for channel in range(3):
        difference = _enlarge(lr[..., channel], sr.shape[0], sr.shape[1])
        difference -= sr[..., channel]
        fixed[..., channel] = low_pass(difference)
        fixed[..., channel] += sr[..., channel]
    return np.clip(fixed, 0.0, 1.0, out=fixed)


def low_pass(plane: np.ndarray, levels: int = WAVELET_LEVELS) -> np.ndarray:
    """(H, W) float32 -> (H, W): kernel [1 2 1]/4 per axis, dilated by 1, 2, 4, ...; edges replicated."""
    for level in range(levels):
        step = 2**level
        for axis in (0, 1):
            length = plane.shape[axis]
            index = np.arange(length)
            before = plane.take(np.maximum(index - step, 0), axis)
            before += plane.take(np.minimum(index + step, length - 1), axis)
            before *= np.float32(0.25)
            before += np.float32(0.5) * plane
            plane = before
    return plane


def _enlarge(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) float32 -> (height, width) float32, bicubic."""
    source = Image.fromarray(np.ascontiguousarray(plane, np.float32))
    return np.array(source.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _unchanged(sr: np.ndarray, lr: np.ndarray) -> np.ndarray:
    return sr


_METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "none": _unchanged,
    "adain": adain,
    "wavelet": wavelet,
}
COLOR_FIXES = tuple(_METHODS)
