"""A picture as bands of rows, so that one larger than memory can flow from the model to its file.

`Strips` arrive in bands of any height. Writers cut them into blocks of one height, on which several threads work:
deflate takes most of the time of writing a large PNG or TIFF, and zlib works outside Python's lock. The blocks
depend on the picture's size alone, never on the number of threads or on how its rows arrived, so the bytes of a
file do not either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..threads import in_order

BLOCK_BYTES: Final = 1 << 20  # of pixels in a block, at least one row
MAX_WORKERS: Final = 4  # more would take the processors from the model, which makes the next rows meanwhile

Block = TypeVar("Block")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Strips:
    """Bands of rows from top to bottom, each (n, W) or (n, W, C) of dtype, made while they are taken; they can be taken once."""

    shape: tuple[int, ...]  # (H, W) or (H, W, C)
    dtype: np.dtype[Any]
    bands: Iterator[NDArray[Any]]

    def array(self) -> NDArray[Any]:
        """The whole picture."""
        whole = np.empty(self.shape, self.dtype)
        top = 0
        for band in self.bands:
            whole[top : top + len(band)] = band
            top += len(band)
        assert top == self.shape[0]
        return whole


def block_rows(width: int, pixel_bytes: int) -> int:
    """Rows of a block of about BLOCK_BYTES."""
    return max(1, BLOCK_BYTES // (width * pixel_bytes))


def row_blocks(pixels: NDArray[Any] | Strips, rows: int) -> Iterator[NDArray[Any]]:
    """(H, W, C), or (H, W) as one channel -> blocks (rows, W, C) from top to bottom; the last may be lower."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if len(pixels.shape) == 3 else 1
    if not isinstance(pixels, Strips):
        whole = pixels.reshape(height, width, channels)
        yield from (whole[top : top + rows] for top in range(0, height, rows))
        return
    block = np.empty((min(rows, height), width, channels), pixels.dtype)
    top = filled = 0  # first row of the block in the picture, and rows it has so far
    for band in pixels.bands:
        assert band.dtype == pixels.dtype
        band = band.reshape(-1, width, channels)
        while len(band):
            taken = band[: len(block) - filled]
            block[filled : filled + len(taken)] = taken
            filled, band = filled + len(taken), band[len(taken) :]
            if filled == len(block):
                yield block
                top += filled
                filled, block = 0, np.empty((min(rows, height - top), width, channels), pixels.dtype)
                assert top < height or not len(band)
    assert top == height


def side_by_side(work: Callable[[Block], Result], blocks: Iterable[Block]) -> Iterator[Result]:
    """work(block) of each block, in order, by up to MAX_WORKERS threads."""
    return in_order(work, blocks, min(MAX_WORKERS, os.cpu_count() or 1))
