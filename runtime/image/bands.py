"""A picture as bands of rows, so that a picture larger than memory can pass from the model to its file.

`Rows` is a window on the model's float32 rows. `Strips` are the rows of the result, in bands of any height. A `Passage` hands them from
the thread that computes them to the thread that writes them.

Writers cut the rows into blocks of one height and work on several at once: deflate takes most of the time of writing a large PNG or
TIFF, and zlib runs outside Python's lock. The blocks, and so the bytes of a file, depend on the size of the picture only, not on the
number of threads or on how the rows arrive.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

# Rows of float32 that a stage computes at a time.
BAND: Final = 64
# Bytes of finished rows that may wait for the writer.
HELD: Final = 32 << 20
# Bytes of pixels in a block. A block has at least one row.
BLOCK_BYTES: Final = 1 << 20
# Threads that pack blocks. More would take processors from the model, which computes the next rows meanwhile.
MAX_WORKERS: Final = 4

Floats = NDArray[np.float32]
# (first row, end row) -> (C, rows, W)
RowSource = Callable[[int, int], Floats]
Item = TypeVar("Item")
Result = TypeVar("Result")


def spans(length: int, rows: int) -> Iterator[tuple[int, int]]:
    """(first, end) of consecutive bands. The last may be smaller."""
    for first in range(0, length, rows):
        yield first, min(length, first + rows)


@dataclass(frozen=True)
class Strips:
    """A picture as bands of rows from top to bottom, which are computed while they are taken. They can be taken once."""

    shape: tuple[int, ...]
    """Shape of the picture: (H, W) or (H, W, C)."""
    dtype: np.dtype[Any]
    """Type of the values of every band."""
    bands: Iterator[NDArray[Any]]
    """The bands, each (n, W) or (n, W, C)."""

    def array(self) -> NDArray[Any]:
        """The whole picture."""
        whole = np.empty(self.shape, self.dtype)
        top = 0
        for band in self.bands:
            whole[top : top + len(band)] = band
            top += len(band)
        assert top == self.shape[0]
        return whole


class Rows:
    """A window that moves down a stream of row blocks. Rows above the last window are dropped."""

    def __init__(self, blocks: Iterable[Floats]) -> None:
        self._blocks = iter(blocks)
        self._held: list[Floats] = []
        self._first = self._end = 0

    def __call__(self, first: int, end: int) -> Floats:
        """Rows first to end of the stream. first must not be less than in an earlier call."""
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


class Abandoned(Exception):
    """The rest of a picture will not come, because computing it failed or was interrupted."""


class Passage:
    """A picture's bands on their way from the thread that computes them to the one that writes them."""

    def __init__(self, limit: int = HELD) -> None:
        self._limit, self._held = limit, 0
        self._waiting: deque[NDArray[Any]] = deque()
        self._complete = self._stopped = False
        self._change = threading.Condition()

    def put(self, band: NDArray[Any]) -> bool:
        """Hand a band over. Waits while more bytes than the limit are on the way. False: the taker has stopped."""
        with self._change:
            while self._waiting and self._held + band.nbytes > self._limit and not self._stopped:
                self._change.wait()
            if self._stopped:
                return False
            self._waiting.append(band)
            self._held += band.nbytes
            self._change.notify_all()
            return True

    def end(self) -> None:
        """All bands have been put."""
        with self._change:
            self._complete = True
            self._change.notify_all()

    def stop(self) -> None:
        """Either side gives up. `put` returns False from now on, and the taker of an incomplete picture gets Abandoned."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def bands(self) -> Iterator[NDArray[Any]]:
        """The bands, for the writing thread."""
        while True:
            with self._change:
                while not (self._waiting or self._complete or self._stopped):
                    self._change.wait()
                if self._stopped and not self._complete:
                    raise Abandoned
                if not self._waiting:
                    return
                band = self._waiting.popleft()
                self._held -= band.nbytes
                self._change.notify_all()
            yield band


def block_rows(width: int, pixel_bytes: int) -> int:
    """Rows of a block of about BLOCK_BYTES."""
    return max(1, BLOCK_BYTES // (width * pixel_bytes))


def row_blocks(pixels: NDArray[Any] | Strips, rows: int) -> Iterator[NDArray[Any]]:
    """(H, W, C), or (H, W) as one channel -> blocks (rows, W, C) from top to bottom. The last may have fewer rows."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if len(pixels.shape) == 3 else 1
    if not isinstance(pixels, Strips):
        whole = pixels.reshape(height, width, channels)
        yield from (whole[top:end] for top, end in spans(height, rows))
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


def side_by_side(work: Callable[[Item], Result], blocks: Iterable[Item]) -> Iterator[Result]:
    """work(block) of each block, in order, by up to MAX_WORKERS threads."""
    return in_order(work, blocks, min(MAX_WORKERS, os.cpu_count() or 1))


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """work(item) of each item, in the order of the items, at most threads + 1 under way. One thread is the caller's own."""
    if threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="work") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # if the caller stops early, waiting items are not begun
            for future in waiting:
                future.cancel()
