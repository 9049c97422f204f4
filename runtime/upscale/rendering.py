"""The enlargement of one photo: from its pixels, through the model, to the rows of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..backends.devices import Backend
from ..bundle.manifest import Manifest
from ..checks import setting
from ..errors import DeviceError, OutOfMemory
from ..image.arrays import Picture
from ..image.bands import BAND, Floats, Rows, Strips, spans
from ..noise import noise_field
from .color import adain_rows, channel_statistics, resized, wavelet_rows
from .engine import Engine, Gate, Progress, Row, StartAgain, Tiles
from .memory import WHOLE_BUDGET, Plan, choose, demand_of
from .tiling import Tile, pad_edge, paste, ramp

# The model's output for the core of a tile: (3, h, w) float32, neither clipped nor checked to be finite.
Core = Callable[[Tile, Backend, Gate], Floats]


@dataclass(frozen=True)
class Request:
    """What one call asks for."""

    seed: int
    """Which texture is drawn, in [0, 2**64)."""
    scale: float
    """Size of the result over that of the picture."""
    samples: int
    """How many will be asked for. From two on the encoder's features are kept, if they fit."""
    color_fix: str
    """One of `COLOR_FIXES`."""
    tile: int | None
    """LR pixels of a tile's core, before rounding to a size that the model takes. None: the fastest."""
    max_memory: int | None
    """Bytes this process may take. None: no limit."""
    temperature: float = 1.0
    """Standard deviation of the noise, 0 to `upscaler.HOTTEST`."""


class Rendering:
    """The enlargement of one photo, with its seed and size. Made by `Upscaler.picture`.

    engine: runs the model.
    manifest: the model's.
    picture: the LR pixels.
    request: seed, scale and the other settings of the call.
    progress: called with (tiles done, tiles of all samples).
    """

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        picture: Picture,
        request: Request,
        progress: Progress | None,
    ) -> None:
        self._engine, self._manifest = engine, manifest
        self._picture, self._request = picture, request
        self._lr_size = (picture.height, picture.width)
        self._sr_size = (picture.height * manifest.scale, picture.width * manifest.scale)
        self.size: tuple[int, int] = (
            max(1, round(picture.height * request.scale)),
            max(1, round(picture.width * request.scale)),
        )
        # Whether each tile's result is rounded into its place. Else float32 rows go through colour and scaling.
        self._placed = (
            self.size == self._sr_size
            and request.color_fix == "none"
            and picture.alpha is None
            and manifest.size.overlap == 0
        )
        self._whole = True  # whether the next sample is one array
        # A backend of fixed size computes all of it anyway, so a smaller window at an edge takes in more of the picture.
        self._rule, largest = manifest.size, engine.backend.largest
        if largest is not None:
            self._rule = replace(self._rule, minimum=max(self._rule.minimum, largest))
        passes = request.samples * self._passes
        self._tiles = Tiles(engine, self._rule, self._lr_size, passes, self._choose, progress)

    def prepare(self, whole: bool) -> Plan:
        """Choose the tiles. whole: for a sample in one array. SettingError if `max_memory` is too little for this picture."""
        self._whole = whole
        return self._tiles.prepare()

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
        """`_enlarged` in the shape that the caller wants. It starts again if that is needed and possible."""
        given = False
        while True:
            try:
                for band in self._enlarged(sample, result):
                    given = True
                    yield band[..., 0] if self._picture.flat else band
                return
            except StartAgain as again:
                if given and result is None:
                    raise OutOfMemory(
                        f"{again}; rows already given cannot be taken back: take the sample again, with smaller tiles now"
                    ) from again
                given = False

    def _enlarged(self, sample: int, result: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
        """One sample, from the photo's pixels to bands (n, W, C). The bands are rows of result, or new arrays if it is None."""
        picture, request, scale = self._picture, self._request, self._manifest.scale
        noise, tiles = self._manifest.noise, self._tiles

        def core_of(tile: Tile, backend: Backend, gate: Gate) -> Floats:
            core, padded = tile.core, tile.padded
            features = tiles.features(tile)
            if features is None:
                # read: the tile with context around it, as float32
                (height, width), (bottom, right) = self._lr_size, (padded.y1, padded.x1)
                window = picture.rgb(padded.y0, min(bottom, height), padded.x0, min(right, width))
                # pad: beyond the picture, its last row and column again
                window = pad_edge(window, padded.height, padded.width)
                # encode: once for all samples, if there is memory to keep the features
                with gate:
                    features = backend.encode(window[None])
                tiles.keep(tile, features)
            # sample: with the noise of these pixels, which does not depend on the tiles
            lengths = (padded.height, padded.width, padded.y0, padded.x0)  # in LR pixels
            rows, columns, y0, x0 = (length // noise.downscale for length in lengths)
            field = noise_field(request.seed, sample, rows, columns, channels=noise.channels, y0=y0, x0=x0)
            field *= np.float32(request.temperature)
            with gate:
                output = backend.generate(features, field[None])
            wanted = (1, 3, padded.height * scale, padded.width * scale)
            if output.shape != wanted:
                raise self._engine.fault(f"values of shape {wanted}", f"shape {output.shape}")
            # crop: the core without its context
            top, left = (core.y0 - padded.y0) * scale, (core.x0 - padded.x0) * scale
            return output[0, :, top : top + core.height * scale, left : left + core.width * scale]

        # write, if neither colours nor size change: each core is rounded into its place
        if self._placed:
            yield from self._placed_bands(core_of, result)
            return
        # colour: of the picture as a whole, never of single tiles
        rows = self._blended(core_of)
        if request.color_fix == "wavelet":
            rows = wavelet_rows(Rows(rows), self._sr_size, picture.rgb, self._lr_size)
        elif request.color_fix == "adain":
            kept = list(rows) if self._passes == 1 else None
            of_sr = channel_statistics(Rows(kept or rows), *self._sr_size)
            of_lr = channel_statistics(picture.rgb, *self._lr_size)
            rows = adain_rows(Rows(kept or self._blended(core_of)), self._sr_size[0], of_sr, of_lr)
        # write: bands of fixed height, scaled and rounded
        yield from self._scaled_bands(Rows(rows), result)

    def _placed_bands(self, core_of: Core, result: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
        """A band for each row of tiles."""
        scale, picture = self._manifest.scale, self._picture

        def canvas(row: Row) -> NDArray[Any]:
            core = row[0][0].core
            if result is not None:
                return result[core.y0 * scale : core.y1 * scale]
            return picture.empty(core.height * scale, self.size[1])

        def fill(band: NDArray[Any], tile: Tile, backend: Backend, gate: Gate) -> None:
            columns = slice(tile.core.x0 * scale, tile.core.x1 * scale)
            if not picture.store(band[:, columns], core_of(tile, backend, gate), None):
                raise self._not_finite()

        return (band for _, band in self._tiles.rows(canvas, fill))

    def _blended(self, core_of: Core) -> Iterator[Floats]:
        """(3, n, W) float32 in [0, 1] for each row of tiles, blended where cores overlap."""
        scale, shared = self._manifest.scale, self._manifest.size.overlap * self._manifest.scale

        def canvas(row: Row) -> Floats:
            return np.empty((3, row[0][0].core.height * scale, self._sr_size[1]), np.float32)

        def fill(strip: Floats, tile: Tile, backend: Backend, gate: Gate) -> None:
            start, output = tile.core.x0 * scale, core_of(tile, backend, gate)
            low, high = float(output.min()), float(output.max())  # one of them is NaN if any value is
            if not math.isfinite(low + high):
                raise self._not_finite()
            clipped = output if low >= 0.0 and high <= 1.0 else np.clip(output, 0.0, 1.0)
            paste(strip, clipped, start, min(shared, start))

        pending: Floats | None = None  # rows that the next row of tiles also computes
        for (row, below), strip in self._tiles.rows(canvas, fill):
            if pending is not None:
                upper = strip[:, : pending.shape[1]]
                upper[:] = pending + ramp(pending.shape[1])[:, None] * (upper - pending)
            end = strip.shape[1] if below is None else (below[0].core.y0 - row[0].core.y0) * scale
            pending = strip[:, end:].copy() if end < strip.shape[1] else None
            yield strip[:, :end]

    def _scaled_bands(self, rows: Rows, result: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
        """Bands of fixed height, in the size of the result, with alpha."""
        picture = self._picture
        ratio = math.ceil(self._sr_size[0] / self.size[0])  # source rows behind one row of the result
        for top, bottom in spans(self.size[0], max(1, BAND // ratio)):
            band = picture.empty(bottom - top, self.size[1]) if result is None else result[top:bottom]
            rgb = resized(rows, self._sr_size, self.size, top, bottom, Image.Resampling.LANCZOS)
            alpha = None
            if picture.alpha is not None:
                alpha = resized(
                    picture.alpha_rows, self._lr_size, self.size, top, bottom, Image.Resampling.BICUBIC
                )
            picture.store(band, rgb, alpha)
            yield band

    def _choose(self) -> Plan:
        """The plan for a sample, by the memory at hand."""
        engine, request, rule = self._engine, self._request, self._rule
        sides = [side for side in (request.tile, engine.tile_limit) if side is not None]
        held = request.color_fix == "adain" and self._passes == 1
        needs = demand_of(
            self._picture, self.size, self._manifest.scale, whole=self._whole, placed=self._placed, held=held
        )
        return choose(
            needs, engine.costs, rule,
            tile=min(sides, default=None),
            lanes=engine.lanes if rule.overlap == 0 else 1,  # blending needs the tiles one after the other
            largest=engine.backend.largest, further=self._tiles.may_keep and request.samples > 1, limit=request.max_memory,
        )  # fmt: skip

    @property
    def _passes(self) -> int:
        """How often the model computes a sample: twice if adain needs statistics of more rows than can be held."""
        limit = self._request.max_memory
        budget = WHOLE_BUDGET if limit is None else min(WHOLE_BUDGET, limit // 8)
        large = self._sr_size[0] * self._sr_size[1] * 12 > budget
        return 2 if large and self._request.color_fix == "adain" else 1

    def _not_finite(self) -> DeviceError:
        return self._engine.fault("finite values", "values that are not numbers")
