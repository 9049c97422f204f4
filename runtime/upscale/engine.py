"""The model at work on the tiles of a picture: several at once, results in order, smaller tiles after memory ran out."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from numpy.typing import NDArray

from ..backends.devices import Backend, Features
from ..bundle.manifest import SizeRule
from ..errors import DeviceError, OutOfMemory
from ..image.bands import in_order
from .memory import Costs, Plan
from .tiling import Tile, least_tile, plan_tiles, tile_rows, tile_size

# Two model calls at once, each on one thread, are faster than one call on two threads: 1000x1000 pixels in tiles of 256 with an earlier
# built-in bundle on two cores of an AMD EPYC, alternating, beside a training run, median of 7: INT8 1.01 s against 1.50 s, fp32 1.84 s
# against 2.25 s; tiles of 128 in INT8 0.90 s against 1.07 s. Two calls at once with two threads each are in between (1.07 s, 2.11 s),
# and two tiles in one batch gain nothing (1.45 s, 2.42 s). Processor time agrees: 1.00 s a megapixel in INT8 on one thread, 1.58 s on
# two.
# An accelerator gets two lanes: one tile is prepared or rounded while the other is in the model.
OVERLAPPED: Final = 2

# Called with (tiles done, tiles in all).
Progress = Callable[[int, int], None]
# A row of tiles, and the row below it.
Row = tuple[list[Tile], list[Tile] | None]
# Held during a call of the model.
Gate = AbstractContextManager[Any]
# Makes the array on which the results of a row are placed.
Canvas = Callable[[Row], NDArray[Any]]
# Computes a tile and places the result on the canvas of its row.
Fill = Callable[[NDArray[Any], Tile, Backend, Gate], None]


class StartAgain(OutOfMemory):
    """A sample of blended tiles must begin again, with smaller tiles."""


class Engine:
    """A loaded backend, the memory it takes, its lanes, and the largest tile that fits. Safe to use from several threads.

    backend: the loaded one.
    costs: the memory that its calls take.
    threads: processors that the calls may use together.
    open_backend: makes a further backend, given the number of threads of one call.
    note: called with messages for the user.
    """

    def __init__(
        self,
        backend: Backend,
        costs: Costs,
        threads: int,
        open_backend: Callable[[int], Backend],
        note: Callable[[str], None],
    ) -> None:
        self.backend: Backend = backend
        self.costs: Costs = costs
        self.threads: int = threads
        # Side of the largest core that has not run out of memory. None: memory has not run out.
        self.tile_limit: int | None = None
        self._open_backend, self._note = open_backend, note
        self._lock = threading.Lock()
        self._shared: dict[int, Backend] = {}  # by the threads of one call

    @property
    def lanes(self) -> int:
        """The best number of tiles to compute at once, if memory allows."""
        if self.threads == 1:
            return 1
        return self.threads if self.backend.device == "cpu" else OVERLAPPED

    def for_lanes(self, lanes: int) -> tuple[Backend, Gate]:
        """The backend for so many lanes, and the lock to hold during its calls. An accelerator computes one tile at a time."""
        if lanes == 1:
            return self.backend, nullcontext()
        if self.backend.device != "cpu":
            return self.backend, threading.Lock()
        threads = -(-self.threads // lanes)
        with self._lock:
            if threads not in self._shared:
                own = threads == self.threads
                self._shared[threads] = self.backend if own else self._open_backend(threads)
            return self._shared[threads], nullcontext()

    def shrink(self, tile: int, half: int) -> None:
        """Use cores of at most `half` from now on, because one of `tile` ran out of memory. The user is told once."""
        with self._lock:
            if self.tile_limit is not None and self.tile_limit <= half:
                return
            self.tile_limit = half
        self._note(
            f"{self.backend.device} ran out of memory with tiles of {tile} pixels; going on with tiles of {half}, more slowly"
        )

    def fault(self, expected: str, got: str) -> DeviceError:
        """The error of a device that computes something else than it should."""
        return DeviceError(
            f"{self.backend.device} {self.backend.precision}: expected {expected}, got {got}; "
            "use another device or precision"
        )


class Tiles:
    """The tiles of one picture. Each pass computes them row by row, from top to bottom.

    After a call runs out of memory, the tiles are halved and the pass goes on with the next row. Cores that only meet agree exactly
    whatever their size, so the rows already given stay valid. Blended cores depend on the plan, so there the sample starts again.

    engine: runs the model.
    rule: the sizes that the model takes.
    size: height and width of the picture.
    passes: how many will be asked for, to estimate the progress.
    choose: makes a plan, and another one after memory ran out.
    progress: called with (tiles done, tiles of all passes).
    """

    def __init__(
        self,
        engine: Engine,
        rule: SizeRule,
        size: tuple[int, int],
        passes: int,
        choose: Callable[[], Plan],
        progress: Progress | None,
    ) -> None:
        self._engine, self._rule, self._size = engine, rule, size
        self._choose, self._progress = choose, progress
        self._plan: Plan | None = None
        self._done = self._total = 0
        self._left = passes  # not yet begun
        self.may_keep = True  # features for further samples, until memory runs out
        self._features: dict[Tile, Features] = {}

    def prepare(self) -> Plan:
        """Choose a plan for the next pass. Features stay if the tiles do."""
        plan = self._choose()
        if self._plan is None or plan.tile != self._plan.tile:
            self._features.clear()
        self._plan = plan
        return plan

    def features(self, tile: Tile) -> Features | None:
        """The features that `keep` has stored for a tile. None: there are none."""
        return self._features.get(tile)

    def keep(self, tile: Tile, features: Features) -> None:
        """Store a tile's features for further samples, if the plan has memory for them."""
        if self._plan is not None and self._plan.keep:
            self._features[tile] = features

    def rows(self, canvas: Canvas, fill: Fill) -> Iterator[tuple[Row, NDArray[Any]]]:
        """One pass: each row of tiles with the canvas that `fill` has placed its results on."""
        top = 0
        self._left = max(0, self._left - 1)
        while top < self._size[0]:
            plan = self._plan
            assert plan is not None
            rows = tile_rows(plan_tiles(*self._size, plan.tile, self._rule, top))
            try:
                for row, target in self._attempt(plan, rows, canvas, fill):
                    yield row, target
                    top = row[0][0].core.y1
                return
            except (OutOfMemory, MemoryError) as error:
                self._shrink(rows, error)
                if self._rule.overlap:
                    self._left += 1
                    raise StartAgain(str(error)) from error

    def _attempt(
        self, plan: Plan, rows: list[list[Tile]], canvas: Canvas, fill: Fill
    ) -> Iterator[tuple[Row, NDArray[Any]]]:
        count = sum(map(len, rows))
        self._total = self._done + count + self._left * len(plan_tiles(*self._size, plan.tile, self._rule))
        lanes = min(plan.lanes, count)
        backend, gate = self._engine.for_lanes(lanes)

        def items() -> Iterator[tuple[Row, Tile, NDArray[Any]]]:
            for row in itertools.zip_longest(rows, rows[1:]):
                target = canvas(row)
                yield from ((row, tile, target) for tile in row[0])

        def work(item: tuple[Row, Tile, NDArray[Any]]) -> tuple[Row, Tile, NDArray[Any]]:
            _, tile, target = item
            fill(target, tile, backend, gate)
            return item

        for row, tile, target in in_order(work, items(), lanes):
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
            if tile is row[0][-1]:
                yield row, target

    def _shrink(self, rows: list[list[Tile]], error: Exception) -> None:
        """Plan again with tiles of half the side. If these are the smallest already, the error is raised."""
        side = max(max(tile.core.height, tile.core.width) for row in rows for tile in row)
        half = tile_size(max(least_tile(self._rule), side // 2), self._rule)
        if half >= side:
            if isinstance(error, OutOfMemory):
                raise error
            raise OutOfMemory(
                f"expected memory for a tile of {side} pixels, got none; close other programs or use a smaller picture"
            ) from error
        self._engine.shrink(side, half)
        self.may_keep = False
        self._features.clear()
        self.prepare()
