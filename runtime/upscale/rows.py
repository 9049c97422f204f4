"""Large pictures in little memory: float32 rows flow from the model through colour fix and scaling to the caller's array.

Every stage works on bands of a fixed height at fixed rows, however the rows arrived, and a row's value depends on nothing
outside the window named in its stage. So the result is the same for every tile size, bit for bit. Blocks of rows are planar: (C, n, W).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..image.bands import BAND, Floats, RowSource, spans

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]  # mean and standard deviation of each channel
_SUPPORT: Final = {Image.Resampling.BICUBIC: 2.0, Image.Resampling.LANCZOS: 3.0}  # radius in source pixels


def resized(
    source: RowSource,
    size: tuple[int, int],
    target: tuple[int, int],
    first: int,
    end: int,
    resample: Image.Resampling,
) -> Floats:
    """Rows first to end of a picture resized from size to target, both (height, width) -> (C, end - first, W).

    Antialiased: when reducing, the filter widens, so that it averages over the area a result pixel covers.
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
    pivot = source(0, min(height, BAND))[:, :1, :1].astype(
        np.float64
    )  # so that squares of a flat picture do not cancel
    total = np.zeros(len(pivot))
    squares = np.zeros(len(pivot))
    for top, bottom in spans(height, BAND):
        values = source(top, bottom) - pivot
        total += values.sum(axis=(1, 2))
        squares += np.square(values, out=values).sum(axis=(1, 2))
    mean = total / (height * width)
    return pivot[:, 0, 0] + mean, np.sqrt(np.maximum(squares / (height * width) - mean * mean, 0.0))
