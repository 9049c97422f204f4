"""Colour fixes and scaling of an enlarged picture, on bands of rows that come from the model.

A colour fix gives the enlarged picture the colours of the picture it came from. It works on the whole picture and never per tile,
so that tiles cannot differ in tint (StableSR, arXiv 2305.07015, Sec. 3.3).

Each stage computes bands of a fixed height at fixed rows, however the rows arrive. The value of a row depends only on the window
that the stage names. So the result is the same for every tile size, bit for bit. Bands are planar: (C, n, W).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle.manifest import COLOR_FIXES
from ..errors import ImageError
from ..image.bands import BAND, Floats, RowSource, spans

# Mean and standard deviation of each channel.
Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]
# Below this deviation a channel counts as flat: it has no contrast to rescale.
STD_FLOOR: Final = 1e-5
# Levels of the a-trous filter, as in StableSR: the last one smooths over about 32 pixels.
WAVELET_LEVELS: Final = 5
# Rows of a band: more than elsewhere, because each band also computes a halo.
WAVELET_BAND: Final = 128
# Columns of a block, so that it stays in the processor's cache.
WAVELET_BLOCK: Final = 1024
# Radius of a filter in source pixels.
_SUPPORT: Final = {Image.Resampling.BICUBIC: 2.0, Image.Resampling.LANCZOS: 3.0}


def color_fix(sr: np.ndarray, lr: np.ndarray, method: str) -> np.ndarray:
    """sr: (H, W, 3) float32 in [0, 1], lr: (h, w, 3) float32 in [0, 1] -> (H, W, 3) float32 in [0, 1].

    method: "none" returns sr itself. "adain" gives each channel the mean and standard deviation that it has in lr. "wavelet" keeps the
    detail of sr and takes everything coarser than about 32 pixels from lr.
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
    """Adaptive instance normalisation: each channel gets the mean and deviation of LR.

    source: the rows of SR.
    height: their number.
    of_sr: mean and deviation of each channel of SR.
    of_lr: mean and deviation of each channel of LR.
    """
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
    """Swap of the a-trous low-pass band: everything coarser than about 32 pixels is taken from LR.

    source, size: rows of SR, and its height and width.
    lr, lr_size: rows of LR, and its height and width.

    The low-pass is linear, so low(LR) - low(SR) = low(LR - SR): one pass instead of two.
    """
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


def resized(
    source: RowSource,
    size: tuple[int, int],
    target: tuple[int, int],
    first: int,
    end: int,
    resample: Image.Resampling,
) -> Floats:
    """Rows of a resized picture: (C, end - first, W) float32.

    source: rows of the picture.
    size, target: height and width before and after.
    first, end: the rows wanted, counted after resizing.
    resample: a filter of Pillow. When reducing, it widens to the area that a result pixel covers (antialiasing).
    """
    if size == target:
        return source(first, end)
    ratio = size[0] / target[0]
    radius = math.ceil(_SUPPORT[resample] * max(ratio, 1.0)) + 1
    top, bottom = first * ratio, end * ratio  # edges of the rows wanted, in source rows
    above, below = max(0, math.floor(top) - radius), min(size[0], math.ceil(bottom) + radius)
    box = (0.0, top - above, float(size[1]), min(bottom, size[0]) - above)
    planes = source(above, below)
    result = np.empty((len(planes), end - first, target[1]), np.float32)
    for plane, rows in zip(planes, result, strict=True):
        image = Image.fromarray(np.ascontiguousarray(plane))
        rows[:] = np.asarray(image.resize((target[1], end - first), resample, box))
    return result


def channel_statistics(source: RowSource, height: int, width: int) -> Statistics:
    """Mean and standard deviation of each channel over a whole picture, summed in float64."""
    # subtracted first, so that the squares of a flat picture do not cancel
    pivot = source(0, min(height, BAND))[:, :1, :1].astype(np.float64)
    total = np.zeros(len(pivot))
    squares = np.zeros(len(pivot))
    for top, bottom in spans(height, BAND):
        values = source(top, bottom) - pivot
        total += values.sum(axis=(1, 2))
        squares += np.square(values, out=values).sum(axis=(1, 2))
    mean = total / (height * width)
    return pivot[:, 0, 0] + mean, np.sqrt(np.maximum(squares / (height * width) - mean * mean, 0.0))


def low_pass(
    plane: Floats,
    borders: tuple[bool, bool, bool, bool] = (True, True, True, True),
    levels: int = WAVELET_LEVELS,
) -> Floats:
    """(H, W) float32 through the kernel [1 2 1]/4 per axis, dilated by 1, 2, 4, ...

    borders: whether the plane ends at the picture's top, bottom, left, right. There the edge is replicated and the plane keeps its
    extent. At its other ends it loses the halo of 2 ** levels - 1 pixels, which cannot be computed.
    """
    for level in range(levels):
        step = 2**level
        plane = _sums(_sums(plane, step, borders[:2]).T, step, borders[2:]).T
    return plane * np.float32(0.25 ** (2 * levels))  # a power of two: exact


def _sums(plane: Floats, step: int, ends: tuple[bool, ...]) -> Floats:
    """[1 2 1] over rows `step` apart, as [1 1] twice: (n, W) -> (n - 2 step, W), and step more rows for each end that is a border."""
    top = [np.broadcast_to(plane[:1], (step, plane.shape[1]))] if ends[0] else []
    bottom = [np.broadcast_to(plane[-1:], (step, plane.shape[1]))] if ends[1] else []
    wide: Any = np.concatenate([*top, plane, *bottom]) if top or bottom else plane
    pairs = wide[:-step] + wide[step:]
    return pairs[:-step] + pairs[step:]
