"""Large pictures in little memory: float32 rows flow from the model through colour fix and scaling to the caller's array.

Every stage works on bands of a fixed height at fixed rows, however the rows arrived, and a row's value depends on nothing
outside the window named in its stage. So the result is the same for every tile size, bit for bit. Blocks of rows are planar: (C, n, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]  # mean and standard deviation of each channel
RowSource = Callable[[int, int], Floats]  # (first row, end row) -> (C, rows, W)
BAND: Final = 64  # rows
_SUPPORT: Final = {Image.Resampling.BICUBIC: 2.0, Image.Resampling.LANCZOS: 3.0}  # radius in source pixels


class Rows:
    """A window that slides down a stream of row blocks. Rows before the last window asked for are forgotten."""

    def __init__(self, blocks: Iterable[Floats]) -> None:
        self._blocks = iter(blocks)
        self._held: list[Floats] = []
        self._first = self._end = 0

    def __call__(self, first: int, end: int) -> Floats:
        """Rows first to end of the stream; first must not fall below that of an earlier call."""
        assert first >= self._first
        while self._end < end:
            block = next(self._blocks)
            self._held.append(block)
            self._end += block.shape[1]
        while self._held and self._first + self._held[0].shape[1] <= first:
            self._first += self._held.pop(0).shape[1]
        parts, top = [], self._first
        for block in self._held:
            part = block[:, max(0, first - top) : max(0, end - top)]
            if part.shape[1]:
                parts.append(part)
            top += block.shape[1]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def bands(length: int, band: int = BAND) -> Iterator[tuple[int, int]]:
    """(first, end) of consecutive bands; the last may be smaller."""
    for first in range(0, length, band):
        yield first, min(length, first + band)


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
    for top, bottom in bands(height):
        values = source(top, bottom) - pivot
        total += values.sum(axis=(1, 2))
        squares += np.square(values, out=values).sum(axis=(1, 2))
    mean = total / (height * width)
    return pivot[:, 0, 0] + mean, np.sqrt(np.maximum(squares / (height * width) - mean * mean, 0.0))
