"""A model at work on several tiles side by side, and what it learns about memory.

Two threads with a model call each, every call on one thread, are faster than one call on two: 1000x1000 pixels in tiles of 256 with
the built-in bundle on two cores of an AMD EPYC, alternating with a training run beside, median of 7: INT8 1.01 s against 1.50 s,
fp32 1.84 s against 2.25 s; tiles of 128 in INT8 0.90 s against 1.07 s. Two calls at once that each use two threads lie between
(1.07 s, 2.11 s), and two tiles in one batch gain nothing (1.45 s, 2.42 s). The processor time tells the same: 1.00 s a megapixel in
INT8 on one thread, 1.58 s on two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from ..backends.base import Backend

OVERLAPPED: Final = (
    2  # lanes on an accelerator: one tile is prepared or rounded while the other is in the model
)


class Engine:
    """A loaded backend, with others of its kind where calls share the threads. open: makes one whose calls use so many threads.

    Safe to use from several threads. note: called with what the user should know.
    """

    def __init__(
        self, backend: Backend, threads: int, open: Callable[[int], Backend], note: Callable[[str], None]
    ) -> None:
        self.backend, self.threads = backend, threads
        self._open, self._note = open, note
        self._lock = threading.Lock()
        self._shared: dict[int, Backend] = {}  # by the threads of one call
        self.tile_limit: int | None = None  # the largest core that has not run out of memory; None: none has

    @property
    def lanes(self) -> int:
        """Tiles worth having under way at once, if memory allows."""
        if self.threads == 1:
            return 1
        return self.threads if self.backend.device == "cpu" else OVERLAPPED

    def for_lanes(self, lanes: int) -> tuple[Backend, AbstractContextManager[Any]]:
        """The backend for so many lanes and what to hold during its calls: an accelerator computes one tile at a time."""
        if lanes == 1:
            return self.backend, nullcontext()
        if self.backend.device != "cpu":
            return self.backend, threading.Lock()
        threads = -(-self.threads // lanes)
        with self._lock:
            if threads not in self._shared:
                self._shared[threads] = self.backend if threads == self.threads else self._open(threads)
            return self._shared[threads], nullcontext()

    def shrink(self, tile: int, half: int) -> None:
        """Use cores of at most `half` after one of `tile` ran out of memory, and say so."""
        with self._lock:
            if self.tile_limit is not None and self.tile_limit <= half:
                return
            self.tile_limit = half
        self._note(
            f"{self.backend.device} ran out of memory with tiles of {tile} pixels; going on with tiles of {half}, more slowly"
        )
