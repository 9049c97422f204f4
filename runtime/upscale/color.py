"""Colour fixes: give an upscaled picture the colours of the picture it came from, band by band or at once.

Both work on the whole image, never per tile, so that tiles cannot differ in tint (StableSR, arXiv 2305.07015, Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from PIL import Image

from ..bundle.manifest import COLOR_FIXES
from ..errors import ImageError
from ..image.bands import BAND, Floats, RowSource, spans
from .rows import Statistics, channel_statistics, resized

STD_FLOOR: Final = 1e-5  # a flat channel has no contrast to rescale
WAVELET_LEVELS: Final = 5
WAVELET_BAND: Final = 128  # rows; more than elsewhere, because each band also computes a halo
WAVELET_BLOCK: Final = 1024  # columns, so that a block stays in the processor's cache


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
    if method == "none":
        return sr
    of_sr, of_lr = (_row_source(image) for image in (sr, lr))
    if method == "adain":
        second, first = (channel_statistics(_row_source(image), *image.shape[:2]) for image in (sr, lr))
        fixed = adain_rows(of_sr, sr.shape[0], second, first)
    else:
        fixed = wavelet_rows(of_sr, sr.shape[:2], of_lr, lr.shape[:2])
    return np.concatenate(list(fixed), axis=1).transpose(1, 2, 0)


def _row_source(image: np.ndarray) -> RowSource:
    planes = image.transpose(2, 0, 1)
    return lambda first, end: planes[:, first:end]


def adain_rows(source: RowSource, height: int, of_sr: Statistics, of_lr: Statistics) -> Iterator[Floats]:
    """Adaptive instance normalisation: each channel gets the mean and deviation of LR."""
    (mean_sr, std_sr), (mean_lr, std_lr) = of_sr, of_lr
    gain = np.where(std_sr < STD_FLOOR, 1.0, std_lr / np.maximum(std_sr, STD_FLOOR))
    offset = (mean_lr - mean_sr * gain).astype(np.float32)
    for top, bottom in spans(height, BAND):
        fixed = source(top, bottom) * gain.astype(np.float32)[:, None, None]
        fixed += offset[:, None, None]
        yield np.clip(fixed, 0.0, 1.0, out=fixed)


def wavelet_rows(
    source: RowSource, size: tuple[int, int], lr: RowSource, lr_size: tuple[int, int]
) -> Iterator[Floats]:
    """Swap of the a-trous low-pass band: what is coarser than about 32 pixels is taken from LR. size, lr_size: (height, width).

    The low-pass is linear, so low(LR) - low(SR) = low(LR - SR): one pass instead of two."""
    halo = 2**WAVELET_LEVELS - 1  # radius of the low-pass
    height, width = size
    for top, bottom in spans(height, WAVELET_BAND):
        above, below = max(0, top - halo), min(height, bottom + halo)
        sr = source(above, below)
        difference = resized(lr, lr_size, size, above, below, Image.Resampling.BICUBIC)
        difference -= sr
        fixed = sr[:, top - above : bottom - above].copy()
        for left, right in spans(width, WAVELET_BLOCK):
            window = slice(max(0, left - halo), min(width, right + halo))
            borders = (top < halo, bottom + halo > height, left < halo, right + halo > width)
            for channel, plane in enumerate(difference[..., window]):
                low = low_pass(plane, borders)
                y, x = (top - above if borders[0] else 0), (left - window.start if borders[2] else 0)
                fixed[channel, :, left:right] += low[y : y + bottom - top, x : x + right - left]
        yield np.clip(fixed, 0.0, 1.0, out=fixed)


def low_pass(
    plane: Floats,
    borders: tuple[bool, bool, bool, bool] = (True, True, True, True),
    levels: int = WAVELET_LEVELS,
) -> Floats:
    """(H, W) float32 through the kernel [1 2 1]/4 per axis, dilated by 1, 2, 4, ...

    borders: whether the plane ends at the picture's top, bottom, left, right. There the edge is replicated and the plane keeps its
    extent; at its other ends it loses the halo of 2 ** levels - 1 pixels, which cannot be computed.
    """
    for level in range(levels):
        step = 2**level
        plane = _sums(_sums(plane, step, borders[:2]).T, step, borders[2:]).T
    return plane * np.float32(0.25 ** (2 * levels))  # a power of two: exact


def _sums(plane: Floats, step: int, ends: tuple[bool, ...]) -> Floats:
    """[1 2 1] over rows `step` apart, as [1 1] twice: (n, W) -> (n - 2 step, W), and step more rows for each
    end that is a border.
    """
    top = [np.broadcast_to(plane[:1], (step, plane.shape[1]))] if ends[0] else []
    bottom = [np.broadcast_to(plane[-1:], (step, plane.shape[1]))] if ends[1] else []
    wide: Any = np.concatenate([*top, plane, *bottom]) if top or bottom else plane
    pairs = wide[:-step] + wide[step:]
    return pairs[:-step] + pairs[step:]
