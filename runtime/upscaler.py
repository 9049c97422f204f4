"""The public way to enlarge a picture: check, cut into tiles, run the two graphs, fix colours, scale, round.

The same picture, seed, bundle, device and precision give the same bytes, for every tile size and number of threads.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .backend import Backend, Features, open_backend, placement_note
from .bundle import Bundle
from .checks import setting
from .color import COLOR_FIXES
from .devices import choices, resolve
from .errors import DeviceError, GdposrError, SettingError
from .manifest import Manifest
from .noise import noise_field
from .pixels import Picture, as_picture
from .probe import run_probe
from .stream import BAND, Rows, adain_rows, bands, channel_statistics, resized, wavelet_rows
from .tiling import Tile, pad_edge, paste, plan_tiles, ramp, tile_rows

if TYPE_CHECKING:
    from .image import Photo

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]  # (tiles done, tiles in all)
FEATURE_BUDGET: Final = 512 << 20  # bytes of encoder features kept for further samples of a picture
STRIP_BUDGET: Final = 64 << 20  # bytes of float32 output held while a row of tiles is computed
WHOLE_BUDGET: Final = 64 << 20  # bytes of float32 output held between the two passes of adain


class Upscaler:
    """A loaded bundle on a device. Safe to use from several threads.

    device, precision: "auto" or one by name. threads: None = all processors. tile: LR pixels of a tile's core, None = the
    bundle's best. color_fix: None = the bundle's. check: run the bundle's probe first; a device that fails it is refused, or
    replaced where "auto" leaves a choice. notify: called with each note, such as a fallback; they also stand in `notes`.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        tile: int | None = None,
        color_fix: str | None = None,
        check: bool = True,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.manifest: Manifest = self.bundle.manifest
        self.scale = self.manifest.scale
        self.color_fix = self.manifest.color_fix if color_fix is None else color_fix
        if self.color_fix not in COLOR_FIXES:
            raise SettingError(
                f"color_fix: expected one of {', '.join(COLOR_FIXES)}, came {self.color_fix!r}"
            )
        self.tile = self.manifest.size.tile if tile is None else setting("tile", tile, 1)
        self._notes: list[str] = []
        self._notify = notify
        self._backend: Backend | None = self._load(device, precision, threads, check)
        self.device, self.precision = self._backend.device, self._backend.precision
        self.placement = self._backend.placement  # graph nodes by provider; None: not known

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the choice of device and precision."""
        return tuple(self._notes)

    def up(
        self,
        image: NDArray[Any] | Image.Image,
        seed: int = 0,
        samples: int = 1,
        scale: float | None = None,
        *,
        first: int = 0,
        progress: Progress | None = None,
    ) -> list[NDArray[Any]]:
        """Samples first to first + samples of an image, as `samples` below, in a list."""
        return list(self.samples(image, seed, samples, scale, first=first, progress=progress))

    def samples(
        self,
        image: NDArray[Any] | Image.Image,
        seed: int = 0,
        samples: int = 1,
        scale: float | None = None,
        *,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Enlarged versions of an image, one by one as they are asked for.

        image: (h, w) or (h, w, 1..4) uint8, uint16 or float32 in [0, 1], or a Pillow image (turned upright by its EXIF
        orientation). Each result: the same dtype and channels, round(h * scale) x round(w * scale), at least 1x1.
        seed in [0, 2**64); sample k is the same picture whatever `first` and `samples` are. scale in (0, the model's scale],
        None = the model's: the model's output is reduced by an antialiased Lanczos filter.
        """
        backend = self._backend
        if backend is None:
            raise GdposrError("expected an open Upscaler, came a closed one; make a new one")
        seed, samples = setting("seed", seed, 0, 2**64 - 1), setting("samples", samples, 1)
        first = setting("first", first, 0, 2**32 - samples)
        factor = float(self.scale if scale is None else scale)
        if not 0.0 < factor <= self.scale:  # NaN fails too
            raise SettingError(
                f"scale: expected above 0 and at most {self.scale}, came {scale!r}; choose one in that range"
            )
        job = _Job(self, backend, as_picture(image), seed, factor, samples, progress)
        return (job.sample(k) for k in range(first, first + samples))

    def up_photo(
        self,
        photo: Photo,
        seed: int = 0,
        samples: int = 1,
        scale: float | None = None,
        *,
        first: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[Photo]:
        """As `samples`, from a photo to photos with its metadata."""
        results = self.samples(photo.pixels, seed, samples, scale, first=first, progress=progress)
        return (dataclasses.replace(photo, pixels=pixels) for pixels in results)

    def close(self) -> None:
        """Let go of the model; samples already being computed still finish."""
        self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, device: str, precision: str, threads: int | None, check: bool) -> Backend:
        """The first choice of device and precision that loads and passes the probe."""
        options = choices(self.bundle, device, precision)
        for note in resolve(self.bundle, device, precision)[2]:
            self._note(note)
        for i, (name, kind) in enumerate(options):
            try:
                backend = open_backend(self.bundle, name, kind, threads)
                if check:
                    self._check(backend)
            except DeviceError as error:
                if i + 1 == len(options):
                    raise
                self._note(f"{error}; using {' '.join(options[i + 1])} instead")
            else:
                warning = placement_note(backend)
                if warning is not None:
                    self._note(warning)
                return backend
        raise AssertionError("choices returns at least one pair")

    def _check(self, backend: Backend) -> None:
        result = run_probe(self.bundle, backend)
        if not result.ok:
            raise DeviceError(
                f"{backend.device} {backend.precision} does not compute the model rightly: expected at least "
                f"{result.floor_db:.1f} dB on the bundle's probe, came {result.psnr_db:.1f} dB; "
                "use another device or precision, or update the driver"
            )

    def _note(self, note: str) -> None:
        self._notes.append(note)
        if self._notify is not None:
            self._notify(note)


class _Job:
    """One picture on its way through one Upscaler; keeps features between samples where they fit the budget."""

    def __init__(
        self, upscaler: Upscaler, backend: Backend, picture: Picture, seed: int, factor: float, samples: int,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.manifest, self.backend, self.picture, self.seed = upscaler.manifest, backend, picture, seed
        self.color_fix, self.progress = upscaler.color_fix, progress
        rule, scale = self.manifest.size, self.manifest.scale
        self.lr_size = (picture.height, picture.width)
        self.sr_size = (picture.height * scale, picture.width * scale)
        self.size = (max(1, round(picture.height * factor)), max(1, round(picture.width * factor)))
        row_bytes = self.sr_size[1] * scale * 3 * 4  # of float32 output for one LR row
        tallest = max(rule.multiple_of, STRIP_BUDGET // row_bytes // rule.multiple_of * rule.multiple_of)
        self.tiles = plan_tiles(*self.lr_size, (min(upscaler.tile, tallest), upscaler.tile), rule)
        large = picture.height * row_bytes > WHOLE_BUDGET
        self.passes = 2 if large and self.color_fix == "adain" else 1
        self.done, self.total = 0, len(self.tiles) * samples * self.passes
        per_lr_pixel = sum(4 * t.channels * t.scale**2 for t in self.manifest.encoder.outputs)
        fits = sum(t.padded.height * t.padded.width for t in self.tiles) * per_lr_pixel <= FEATURE_BUDGET
        keep = fits and samples > 1
        self.features: dict[Tile, Features] | None = {} if keep else None

    def sample(self, sample: int) -> NDArray[Any]:
        """Sample number `sample`, finished."""
        fixed = Rows(self._fixed(sample))
        result = self.picture.empty(*self.size)
        ratio = math.ceil(self.sr_size[0] / self.size[0])  # source rows behind one row of the result
        for top, bottom in bands(self.size[0], max(1, BAND // ratio)):
            rgb = resized(fixed, self.sr_size, self.size, top, bottom, Image.Resampling.LANCZOS)
            alpha = None
            if self.picture.alpha is not None:
                rows = self.picture.alpha_rows
                alpha = resized(rows, self.lr_size, self.size, top, bottom, Image.Resampling.BICUBIC)
            self.picture.store(result[top:bottom], rgb, alpha)
        return result[..., 0] if self.picture.flat else result

    def _fixed(self, sample: int) -> Iterator[Floats]:
        """The model's output with its colours fixed, as blocks of rows."""
        if self.color_fix == "wavelet":
            return wavelet_rows(Rows(self._strips(sample)), self.sr_size, self.picture.rgb, self.lr_size)
        if self.color_fix == "adain":
            kept = list(self._strips(sample)) if self.passes == 1 else None
            first, second = (Rows(kept or self._strips(sample)) for _ in range(2))
            of_sr = channel_statistics(first, *self.sr_size)
            return adain_rows(
                second, self.sr_size[0], of_sr, channel_statistics(self.picture.rgb, *self.lr_size)
            )
        return self._strips(sample)

    def _strips(self, sample: int) -> Iterator[Floats]:
        """The model's output, (3, n, W) float32 in [0, 1] for each row of tiles, blended where tiles overlap."""
        scale, width = self.manifest.scale, self.sr_size[1]
        rows = tile_rows(self.tiles)
        pending: Floats | None = None  # rows that the next row of tiles also computes
        for row, below in itertools.zip_longest(rows, rows[1:]):
            core = row[0].core
            strip = np.empty((3, core.height * scale, width), np.float32)
            filled = 0
            for tile in row:
                start = tile.core.x0 * scale
                paste(strip, self._core(tile, sample), start, filled - start)
                filled = tile.core.x1 * scale
            if pending is not None:
                shared = strip[:, : pending.shape[1]]
                shared[:] = pending + ramp(pending.shape[1])[:, None] * (shared - pending)
            ready = strip.shape[1] if below is None else (below[0].core.y0 - core.y0) * scale
            pending = strip[:, ready:].copy() if ready < strip.shape[1] else None
            yield strip[:, :ready]

    def _core(self, tile: Tile, sample: int) -> Floats:
        """The model's output for a tile's core: (3, h, w) float32 in [0, 1]."""
        noise, scale = self.manifest.noise, self.manifest.scale
        features = None if self.features is None else self.features.get(tile)
        if features is None:
            features = self.backend.encode(self._window(tile))
            if self.features is not None:
                self.features[tile] = features
        padded, core = tile.padded, tile.core
        cells = [v // noise.downscale for v in (padded.height, padded.width, padded.y0, padded.x0)]
        field = noise_field(
            self.seed, sample, cells[0], cells[1], channels=noise.channels, y0=cells[2], x0=cells[3]
        )
        output = self.backend.generate(features, field[None])
        wanted = (1, 3, padded.height * scale, padded.width * scale)
        if output.shape != wanted or not math.isfinite(float(output.sum())):
            raise DeviceError(
                f"{self.backend.device} {self.backend.precision}: expected finite values of shape {wanted}, came "
                f"shape {output.shape} or values that are not numbers; use another device or precision"
            )
        top, left = (core.y0 - padded.y0) * scale, (core.x0 - padded.x0) * scale
        cut = output[0, :, top : top + core.height * scale, left : left + core.width * scale]
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        return np.clip(cut, 0.0, 1.0)

    def _window(self, tile: Tile) -> Floats:
        """What the encoder sees of a tile: (1, 3, h, w) float32, the picture's edge repeated beyond it."""
        box = tile.padded
        window = self.picture.rgb(box.y0, min(box.y1, self.lr_size[0]), box.x0, min(box.x1, self.lr_size[1]))
        return pad_edge(window, box.height, box.width)[None]
