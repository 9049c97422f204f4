"""Large pictures in little memory: float32 rows flow from the model through colour fix and scaling to the caller's array.

Every stage works on bands of a fixed height at fixed rows, however the rows arrived, and a row's value depends on nothing
outside the window named in its stage. So the result is the same for every tile size, bit for bit, and that of the functions
in `color.py`, which see the whole picture, up to rounding. Blocks of rows are planar: (C, n, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .color import STD_FLOOR, WAVELET_LEVELS

Floats = NDArray[np.float32]
Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]  # mean and standard deviation of each channel
RowSource = Callable[[int, int], Floats]  # (first row, end row) -> (C, rows, W)
BAND: Final = 64  # rows
WAVELET_BAND: Final = 128  # more, because each band also computes a halo
WAVELET_BLOCK: Final = 1024  # columns, so that a block stays in the processor's cache
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


def adain_rows(source: RowSource, height: int, of_sr: Statistics, of_lr: Statistics) -> Iterator[Floats]:
    """`color.adain` on a stream: each channel gets the mean and deviation of LR."""
    (mean_sr, std_sr), (mean_lr, std_lr) = of_sr, of_lr
    gain = np.where(std_sr < STD_FLOOR, 1.0, std_lr / np.maximum(std_sr, STD_FLOOR))
    offset = (mean_lr - mean_sr * gain).astype(np.float32)
    for top, bottom in bands(height):
        fixed = source(top, bottom) * gain.astype(np.float32)[:, None, None]
        fixed += offset[:, None, None]
        yield np.clip(fixed, 0.0, 1.0, out=fixed)


def wavelet_rows(
    source: RowSource, size: tuple[int, int], lr: RowSource, lr_size: tuple[int, int]
) -> Iterator[Floats]:
    """`color.wavelet` on a stream of (height, width) size: what is coarser than about 32 pixels is taken from LR."""
    halo = 2**WAVELET_LEVELS - 1  # radius of the low-pass
    height, width = size
    for top, bottom in bands(height, WAVELET_BAND):
        above, below = max(0, top - halo), min(height, bottom + halo)
        sr = source(above, below)
        difference = resized(lr, lr_size, size, above, below, Image.Resampling.BICUBIC)
        difference -= sr
        fixed = sr[:, top - above : bottom - above].copy()
        for left, right in bands(width, WAVELET_BLOCK):
            window = slice(max(0, left - halo), min(width, right + halo))
            borders = (top < halo, bottom + halo > height, left < halo, right + halo > width)
            for channel, plane in enumerate(difference[..., window]):
                low = low_pass(plane, borders)
                y, x = (top - above if borders[0] else 0), (left - window.start if borders[2] else 0)
                fixed[channel, :, left:right] += low[y : y + bottom - top, x : x + right - left]
        yield np.clip(fixed, 0.0, 1.0, out=fixed)


def low_pass(plane: Floats, borders: tuple[bool, bool, bool, bool]) -> Floats:
    """`color.low_pass` of a window of a picture: kernel [1 2 1]/4 per axis, dilated by 1, 2, 4, 8, 16.

    borders: whether the window ends at the picture's top, bottom, left, right. There the edge is replicated and the window
    keeps its extent; at its other ends it loses the halo of 31 pixels, which cannot be computed.
    """
    for level in range(WAVELET_LEVELS):
        step = 2**level
        plane = _sums(_sums(plane, step, borders[:2]).T, step, borders[2:]).T
    return plane * np.float32(0.25 ** (2 * WAVELET_LEVELS))  # a power of two: exact


def _sums(plane: Floats, step: int, ends: tuple[bool, ...]) -> Floats:
    """[1 2 1] over rows `step` apart, as [1 1] twice: (n, W) -> (n - 2 step, W), and step more rows for each
    end that is a border.
    """
    top = [np.broadcast_to(plane[:1], (step, plane.shape[1]))] if ends[0] else []
    bottom = [np.broadcast_to(plane[-1:], (step, plane.shape[1]))] if ends[1] else []
    wide: Any = np.concatenate([*top, plane, *bottom]) if top or bottom else plane
    pairs = wide[:-step] + wide[step:]
    return pairs[:-step] + pairs[step:]
