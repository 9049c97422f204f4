"""Large pictures in little memory: float32 rows flow from the model through colour fix and scaling to the caller's array.

Every stage works on bands of a fixed height at fixed rows, however the rows arrived, and a row's value depends on nothing
outside the window named in its stage. So the result is the same for every tile size, bit for bit, and the same as on the whole
picture at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .color import STD_FLOOR, WAVELET_LEVELS, low_pass

Floats = NDArray[np.float32]
RowSource = Callable[[int, int], Floats]  # (first row, end row) -> (rows, W, C)
BAND: Final = 64  # rows
_SUPPORT: Final = {Image.Resampling.BICUBIC: 2.0, Image.Resampling.LANCZOS: 3.0}  # radius in source pixels


class Rows:
    """A window that slides down a stream of row blocks (n, W, C). Rows before the last window asked for are forgotten."""

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
            self._end += len(block)
        while self._held and self._first + len(self._held[0]) <= first:
            self._first += len(self._held.pop(0))
        parts, top = [], self._first
        for block in self._held:
            part = block[max(0, first - top) : max(0, end - top)]
            if len(part):
                parts.append(part)
            top += len(block)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def bands(height: int, band: int = BAND) -> Iterator[tuple[int, int]]:
    """(first row, end row) of the bands of a picture."""
    for top in range(0, height, band):
        yield top, min(height, top + band)


def resized(source: RowSource, size: tuple[int, int], target: tuple[int, int], first: int, end: int,
            resample: Image.Resampling) -> Floats:  # fmt: skip
    """Rows first to end of a picture resized from size to target, both (height, width) -> (end - first, W, C).

    Antialiased: when reducing, the filter widens, so that it averages over the area a result pixel covers.
    """
    ratio = size[0] / target[0]
    radius = math.ceil(_SUPPORT[resample] * max(ratio, 1.0)) + 1
    top, bottom = first * ratio, end * ratio  # edges of the rows wanted, in source rows
    above, below = max(0, math.floor(top) - radius), min(size[0], math.ceil(bottom) + radius)
    rows = source(above, below)
    if size == target:
        return rows[first - above : end - above]
    box = (0.0, top - above, float(size[1]), min(bottom - above, float(below - above)))
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(rows[..., c])).resize(
                (target[1], end - first), resample, box
            )
        )
        for c in range(rows.shape[2])
    ]
    return np.stack(planes, axis=-1)


def channel_statistics(source: RowSource, height: int, width: int) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each channel over a whole picture, summed in float64: (C,) float64 each."""
    first = source(0, min(height, BAND))
    pivot = first[0, 0].astype(np.float64)  # near the mean of a flat picture, so that squares do not cancel
    total = np.zeros_like(pivot)
    squares = np.zeros_like(pivot)
    for top, bottom in bands(height):
        values = source(top, bottom) - pivot
        total += values.sum(axis=(0, 1))
        squares += np.square(values).sum(axis=(0, 1))
    count = height * width
    mean = total / count
    return pivot + mean, np.sqrt(np.maximum(squares / count - mean * mean, 0.0))


def adain_rows(
    source: RowSource, height: int, of_sr: tuple[Floats, Floats], of_lr: tuple[Floats, Floats]
) -> Iterator[Floats]:
    """`color.adain` on a stream: each channel gets the mean and deviation of LR."""
    (mean_sr, std_sr), (mean_lr, std_lr) = of_sr, of_lr
    gain = np.where(std_sr < STD_FLOOR, 1.0, std_lr / np.maximum(std_sr, STD_FLOOR))
    offset = (mean_lr - mean_sr * gain).astype(np.float32)
    for top, bottom in bands(height):
        fixed = source(top, bottom) * gain.astype(np.float32)
        fixed += offset
        yield np.clip(fixed, 0.0, 1.0, out=fixed)


def wavelet_rows(
    source: RowSource, size: tuple[int, int], lr: RowSource, lr_size: tuple[int, int]
) -> Iterator[Floats]:
    """`color.wavelet` on a stream: what is coarser than about 32 pixels is taken from LR. size: (H, W) of the stream."""
    halo = 2**WAVELET_LEVELS - 1  # radius of the low-pass
    for top, bottom in bands(size[0]):
        above, below = max(0, top - halo), min(size[0], bottom + halo)
        sr = source(above, below)
        difference = resized(lr, lr_size, size, above, below, Image.Resampling.BICUBIC) - sr
        fixed = np.empty((bottom - top, *sr.shape[1:]), np.float32)
        for c in range(sr.shape[2]):
            fixed[..., c] = low_pass(difference[..., c])[top - above : bottom - above]
        fixed += sr[top - above : bottom - above]
        yield np.clip(fixed, 0.0, 1.0, out=fixed)
