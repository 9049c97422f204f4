"""One photo under way: tiles, the two graphs, colour fix, scaling, rounding. Made by `Upscaler.picture`.

Where a call runs out of memory its tile is halved and the work goes on: cores that only meet agree exactly, so rows already given
stay and nothing changes. Cores that are blended depend on the plan, so there the sample begins again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..backends.base import Backend, Engine, Features
from ..bundle.manifest import Manifest, SizeRule
from ..checks import setting
from ..errors import DeviceError, OutOfMemory
from ..image.arrays import Picture
from ..image.bands import BAND, Floats, Rows, Strips, in_order, spans
from ..noise import noise_field
from .color import adain_rows, wavelet_rows
from .memory import WHOLE_BUDGET, Costs, Plan, choose, demand_of, least_tile
from .rows import channel_statistics, resized
from .tiling import Tile, pad_edge, paste, ramp, tile_rows, tile_size

Progress = Callable[[int, int], None]  # (tiles done, tiles in all)
Row = tuple[list[Tile], list[Tile] | None]  # a row of tiles and the one below
Canvas = Callable[[Row], NDArray[Any]]  # makes what a row's results are placed on
Place = Callable[[NDArray[Any], Tile, Floats], None]  # (canvas, tile, the model's output for its core)


@dataclass(frozen=True)
class Request:
    """What one call wants of a picture."""

    seed: int
    """Which texture is drawn, in [0, 2**64)."""
    scale: float
    """Size of the result over that of the picture."""
    samples: int
    """How many will be asked for; from two on the encoder's features are kept where they fit."""
    color_fix: str
    """One of `COLOR_FIXES`."""
    tile: int
    """LR pixels of a tile's core, before rounding to what the model takes."""
    max_memory: int | None
    """Bytes this process may take; None: no limit."""


class _Again(OutOfMemory):
    """A sample of blended tiles must begin again, with smaller ones."""


class Rendering:
    """One photo under way, with its seed and size. Samples share the encoder's features where these fit."""

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        picture: Picture,
        request: Request,
        progress: Progress | None,
    ) -> None:
        self._engine, self._manifest, self._picture = engine, manifest, picture
        self._request, self._progress = request, progress
        scale = manifest.scale
        self._lr_size = (picture.height, picture.width)
        self._sr_size = (picture.height * scale, picture.width * scale)
        self.size = (
            max(1, round(picture.height * request.scale)),
            max(1, round(picture.width * request.scale)),
        )
        self._placed = (
            self.size == self._sr_size
            and self._request.color_fix == "none"
            and picture.alpha is None
            and self._manifest.size.overlap == 0
        )  # each tile's result is rounded into its place; else float rows go through the stages of `rows.py`
        self._features: dict[Tile, Features] = {}
        self._keep = True  # until memory runs out
        self._left = request.samples * self._passes  # passes over the picture, not yet begun
        self._done = self._total = 0
        self._plan: Plan | None = None

    def prepare(self, whole: bool) -> Plan:
        """Choose tiles. whole: for a sample in one array. SettingError where `max_memory` is too little for this picture."""
        engine, request, rule = self._engine, self._request, self._rule
        held = request.color_fix == "adain" and self._passes == 1
        needs = demand_of(
            self._picture, self.size, self._manifest.scale, whole=whole, placed=self._placed, held=held
        )
        plan = choose(
            needs, Costs.of(self._manifest, engine.backend.precision), rule,
            tile=request.tile if engine.tile_limit is None else min(request.tile, engine.tile_limit),
            lanes=engine.lanes if rule.overlap == 0 else 1,  # blending wants the tiles one after the other
            largest=engine.backend.largest, further=self._keep and request.samples > 1, limit=request.max_memory,
        )  # fmt: skip
        if self._plan is None or plan.tile != self._plan.tile:
            self._features.clear()
        self._plan, self._whole = plan, whole
        return plan

    @property
    def _rule(self) -> SizeRule:
        """The model's sizes. A backend of fixed size computes all of it anyway, so a window that would be smaller, at a picture's edge,
        takes in more of the picture instead of being filled up."""
        rule, largest = self._manifest.size, self._engine.backend.largest
        return rule if largest is None else replace(rule, minimum=max(rule.minimum, largest))

    def strips(self, sample: int) -> Strips:
        """Sample number `sample` as bands of rows, computed while they are taken."""
        sample = setting("sample", sample, 0, 2**32 - 1)
        self.prepare(whole=False)
        empty = self._picture.empty(0, 0)
        shape = self.size if self._picture.flat else (*self.size, empty.shape[2])
        return Strips(shape, empty.dtype, self._bands(sample, None))

    def sample(self, sample: int) -> NDArray[Any]:
        """Sample number `sample`, whole."""
        sample = setting("sample", sample, 0, 2**32 - 1)
        self.prepare(whole=True)
        result = self._picture.empty(*self.size)
        for _ in self._bands(sample, result):
            pass
        return result[..., 0] if self._picture.flat else result

    def _bands(self, sample: int, result: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
        """Bands of a sample: rows of `result`, or arrays of their own where it is None."""
        given = False
        while True:
            try:
                for band in (
                    self._placed_bands(sample, result) if self._placed else self._staged_bands(sample, result)
                ):
                    given = True
                    yield band[..., 0] if self._picture.flat else band
                return
            except _Again as again:
                if given and result is None:
                    raise OutOfMemory(
                        f"{again}; rows already given cannot be taken back: take the sample again, with smaller tiles now"
                    ) from again
                given = False

    def _placed_bands(self, sample: int, result: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
        """Bands of a row of tiles, where neither colours nor sizes change."""
        scale, picture = self._manifest.scale, self._picture

        def canvas(row: Row) -> NDArray[Any]:
            core = row[0][0].core
            if result is not None:
                return result[core.y0 * scale : core.y1 * scale]
            return picture.empty(core.height * scale, self.size[1])

        def place(band: NDArray[Any], tile: Tile, output: Floats) -> None:
            columns = slice(tile.core.x0 * scale, tile.core.x1 * scale)
            if not picture.store(band[:, columns], output, None):
                raise self._not_numbers()

        return (band for _, band in self._rows(sample, canvas, place))

    def _staged_bands(self, sample: int, result: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
        """Bands of fixed height, scaled from float rows with their colours fixed."""
        picture = self._picture
        # colour: by the picture as a whole, never by tiles
        rows = self._strips(sample)
        if self._request.color_fix == "wavelet":
            rows = wavelet_rows(Rows(rows), self._sr_size, picture.rgb, self._lr_size)
        elif self._request.color_fix == "adain":
            kept = list(rows) if self._passes == 1 else None
            of_sr = channel_statistics(Rows(kept or rows), *self._sr_size)
            of_lr = channel_statistics(picture.rgb, *self._lr_size)
            rows = adain_rows(Rows(kept or self._strips(sample)), self._sr_size[0], of_sr, of_lr)
        # scale and round
        fixed = Rows(rows)
        ratio = math.ceil(self._sr_size[0] / self.size[0])  # source rows behind one row of the result
        for top, bottom in spans(self.size[0], max(1, BAND // ratio)):
            band = picture.empty(bottom - top, self.size[1]) if result is None else result[top:bottom]
            rgb = resized(fixed, self._sr_size, self.size, top, bottom, Image.Resampling.LANCZOS)
            alpha = None
            if picture.alpha is not None:
                alpha = resized(
                    picture.alpha_rows, self._lr_size, self.size, top, bottom, Image.Resampling.BICUBIC
                )
            picture.store(band, rgb, alpha)
            yield band

    def _strips(self, sample: int) -> Iterator[Floats]:
        """The model's output, (3, n, W) float32 in [0, 1] for each row of tiles, blended where tiles overlap."""
        scale, shared = self._manifest.scale, self._manifest.size.overlap * self._manifest.scale

        def canvas(row: Row) -> Floats:
            return np.empty((3, row[0][0].core.height * scale, self._sr_size[1]), np.float32)

        def place(strip: Floats, tile: Tile, output: Floats) -> None:
            start = tile.core.x0 * scale
            low, high = float(output.min()), float(output.max())  # either is NaN where a value is
            if not math.isfinite(low + high):
                raise self._not_numbers()
            clipped = output if low >= 0.0 and high <= 1.0 else np.clip(output, 0.0, 1.0)
            paste(strip, clipped, start, min(shared, start))

        pending: Floats | None = None  # rows that the next row of tiles also computes
        for (row, below), strip in self._rows(sample, canvas, place):
            if pending is not None:
                upper = strip[:, : pending.shape[1]]
                upper[:] = pending + ramp(pending.shape[1])[:, None] * (upper - pending)
            end = strip.shape[1] if below is None else (below[0].core.y0 - row[0].core.y0) * scale
            pending = strip[:, end:].copy() if end < strip.shape[1] else None
            yield strip[:, :end]

    def _rows(self, sample: int, canvas: Canvas, place: Place) -> Iterator[tuple[Row, NDArray[Any]]]:
        """Rows of tiles from top to bottom, the output of each tile placed on the canvas of its row."""
        rule, top = self._rule, 0
        self._left = max(0, self._left - 1)
        while top < self._lr_size[0]:
            plan = self._plan
            assert plan is not None
            rows = tile_rows(plan.tiles(self._lr_size, rule, top))
            try:
                for row, target in self._attempt(sample, plan, rows, canvas, place):
                    yield row, target
                    top = row[0][0].core.y1
                return
            except (OutOfMemory, MemoryError) as error:
                self._shrink(rows, error)
                if rule.overlap:
                    self._left += 1
                    raise _Again(str(error)) from error

    def _attempt(
        self, sample: int, plan: Plan, rows: list[list[Tile]], canvas: Canvas, place: Place
    ) -> Iterator[tuple[Row, NDArray[Any]]]:
        count = sum(map(len, rows))
        self._total = self._done + count + self._left * len(plan.tiles(self._lr_size, self._manifest.size))
        lanes = min(plan.lanes, count)
        backend, gate = self._engine.for_lanes(lanes)

        def items() -> Iterator[tuple[Row, Tile, NDArray[Any]]]:
            for row in itertools.zip_longest(rows, rows[1:]):
                target = canvas(row)
                yield from ((row, tile, target) for tile in row[0])

        def work(item: tuple[Row, Tile, NDArray[Any]]) -> tuple[Row, Tile, NDArray[Any]]:
            _, tile, target = item
            place(target, tile, self._core(tile, sample, backend, gate))
            return item

        for row, tile, target in in_order(work, items(), lanes):
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, self._total)
            if tile is row[0][-1]:
                yield row, target

    def _core(self, tile: Tile, sample: int, backend: Backend, gate: AbstractContextManager[Any]) -> Floats:
        """The model's output for a tile's core: (3, h, w) float32, as it comes."""
        noise, scale, plan = self._manifest.noise, self._manifest.scale, self._plan
        padded, core = tile.padded, tile.core
        features = self._features.get(tile)
        if features is None:
            # pad: context around the core, beyond the picture its last row and column again
            (height, width), (bottom, right) = self._lr_size, (padded.y1, padded.x1)
            window = self._picture.rgb(padded.y0, min(bottom, height), padded.x0, min(right, width))
            window = pad_edge(window, padded.height, padded.width)
            # encode: once for all samples where the features are kept
            with gate:
                features = backend.encode(window[None])
            if plan is not None and plan.keep:
                self._features[tile] = features
        # sample: the noise of these very pixels, whatever the tiles are
        y0, x0, rows, columns = (
            v // noise.downscale for v in (padded.y0, padded.x0, padded.height, padded.width)
        )
        field = noise_field(self._request.seed, sample, rows, columns, channels=noise.channels, y0=y0, x0=x0)
        with gate:
            output = backend.generate(features, field[None])
        wanted = (1, 3, padded.height * scale, padded.width * scale)
        if output.shape != wanted:
            raise DeviceError(
                f"{backend.device} {backend.precision}: expected values of shape {wanted}, came shape {output.shape}; "
                "use another device or precision"
            )
        # crop: the core without its context
        top, left = (core.y0 - padded.y0) * scale, (core.x0 - padded.x0) * scale
        return output[0, :, top : top + core.height * scale, left : left + core.width * scale]

    def _not_numbers(self) -> DeviceError:
        backend = self._engine.backend
        return DeviceError(
            f"{backend.device} {backend.precision}: expected finite values, came values that are not numbers; "
            "use another device or precision"
        )

    def _shrink(self, rows: list[list[Tile]], error: Exception) -> None:
        """Plan again with tiles of half the side; where they are the smallest already, the error is raised."""
        rule = self._manifest.size
        side = max(max(tile.core.height, tile.core.width) for row in rows for tile in row)
        half = tile_size(max(least_tile(rule), side // 2), rule)
        if half >= side:
            if isinstance(error, OutOfMemory):
                raise error
            raise OutOfMemory(
                f"expected memory for a tile of {side} pixels, came none; close other programs or use a smaller picture"
            ) from error
        self._engine.shrink(side, half)
        self._keep = False
        self._features.clear()
        self.prepare(self._whole)

    @property
    def _passes(self) -> int:
        """How often the model computes a sample: twice where adain needs the statistics of more than can be held."""
        limit = self._request.max_memory
        budget = WHOLE_BUDGET if limit is None else min(WHOLE_BUDGET, limit // 8)
        large = self._sr_size[0] * self._sr_size[1] * 12 > budget
        return 2 if large and self._request.color_fix == "adain" else 1
