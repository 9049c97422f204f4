"""The public interface to enlarge pictures. A bundle is loaded and checked once. Each picture is then a `Rendering`.

The same picture, seed, bundle, device and precision give the same bytes, for every tile size and number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..backends.choice import choices, open_backend, placement_note, resolve
from ..backends.devices import Backend, usable_processors
from ..bundle.manifest import COLOR_FIXES, Manifest
from ..bundle.reader import Bundle
from ..checks import setting
from ..errors import DeviceError, GdposrError, SettingError
from ..image.arrays import as_picture
from ..image.bands import Strips
from ..image.photo import Levels
from .engine import Engine, Progress
from .memory import Costs
from .probe import run_probe
from .rendering import Rendering, Request

if TYPE_CHECKING:
    from ..image.photo import Photo

# The highest temperature. Two samples of an earlier built-in bundle then differed by 5.9 levels in fp32 and 5.5 in INT8, whose scale of
# noise ends there; at 3 by 8.6 and 7.3, and specks were seen all over. On six photos of docs/blind.md.
HOTTEST: Final = 2.0
# The dtype of an array and of its result.
PixelT = TypeVar("PixelT", bound=np.uint8 | np.uint16 | np.float32)


class Upscaler:
    """A loaded bundle on a device. Safe to use from several threads.

    bundle: a folder or .zip. None: the built-in model.
    device, precision: a name, or "auto".
    threads: processors to use. None: all.
    tile: LR pixels of a tile's core. None: the fastest that memory allows; if tiles are blended, the bundle's.
    max_memory: bytes that this process may take, with the picture, the result and the program. None: no limit.
    color_fix: "none", "adain" or "wavelet". None: the bundle's.
    temperature: standard deviation of the noise, from 0 to `HOTTEST`. 0: no texture is drawn, and all seeds give one picture. 1: what
        the model was trained with. 2: twice as strongly, with rougher edges.
    check: run the bundle's probe first. A device that fails it is refused, or replaced if "auto" leaves a choice.
    notify: called with each note, such as a fallback. They are also in `notes`.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        tile: int | None = None,
        max_memory: int | None = None,
        color_fix: str | None = None,
        temperature: float = 1.0,
        check: bool = True,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.bundle: Bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.manifest: Manifest = self.bundle.manifest
        self.scale: int = self.manifest.scale
        self.color_fix: str = self.manifest.color_fix if color_fix is None else color_fix
        if self.color_fix not in COLOR_FIXES:
            raise SettingError(f"color_fix: expected one of {', '.join(COLOR_FIXES)}, got {self.color_fix!r}")
        self.temperature: float = _temperature(temperature)
        self.tile: int | None = None if tile is None else setting("tile", tile, 1)
        self.max_memory: int | None = None if max_memory is None else setting("max_memory", max_memory, 1)
        self.threads: int = usable_processors() if threads is None else setting("threads", threads, 1)
        self._notes: list[str] = []
        self._notify = notify
        backend = self._load(device, precision, check)
        self.device: str = backend.device
        self.precision: str = backend.precision
        # graph nodes by provider, or None if not known
        self.placement: dict[str, int] | None = backend.placement
        costs = Costs.of(self.manifest, self.precision)
        self._engine: Engine | None = Engine(backend, costs, self.threads, self._open, self._note)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the choice of device and precision."""
        return tuple(self._notes)

    @overload
    def up(
        self, image: NDArray[PixelT], seed: int = 0, samples: int = 1, scale: float | None = None,
        *, first: int = 0, progress: Progress | None = None,
    ) -> list[NDArray[PixelT]]: ...  # fmt: skip

    @overload
    def up(
        self, image: Image.Image, seed: int = 0, samples: int = 1, scale: float | None = None,
        *, first: int = 0, progress: Progress | None = None,
    ) -> list[Levels]: ...  # fmt: skip

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
        """Samples `first` to `first + samples - 1` of an image, in a list.

        image, seed, samples, scale, first, progress: as for `samples` below.
        """
        return list(self.samples(image, seed, samples, scale, first=first, progress=progress))

    @overload
    def samples(
        self, image: NDArray[PixelT], seed: int = 0, samples: int = 1, scale: float | None = None,
        *, first: int = 0, progress: Progress | None = None,
    ) -> Iterator[NDArray[PixelT]]: ...  # fmt: skip

    @overload
    def samples(
        self, image: Image.Image, seed: int = 0, samples: int = 1, scale: float | None = None,
        *, first: int = 0, progress: Progress | None = None,
    ) -> Iterator[Levels]: ...  # fmt: skip

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
        """Enlarged versions of an image, each computed when it is asked for.

        image: (h, w) or (h, w, 1..4) uint8, uint16 or float32 in [0, 1], or a Pillow image, which is turned upright by its EXIF.
        seed: in [0, 2**64).
        samples: how many versions.
        scale: in (0, the model's scale]. None: the model's. A smaller one reduces its output by an antialiased Lanczos filter.
        first: number of the first sample. Sample k is the same picture whatever `first` and `samples` are.
        progress: called with (tiles done, tiles of all samples).

        Each result has the same dtype and channels as the image and round(h * scale) x round(w * scale) pixels, at least 1x1.
        """
        count = setting("samples", samples, 1)
        first = setting("first", first, 0, 2**32 - count)
        rendering = self.picture(image, seed, scale, count, progress)
        rendering.prepare(whole=True)
        return (rendering.sample(k) for k in range(first, first + count))

    def strips(
        self,
        image: NDArray[Any] | Image.Image,
        seed: int = 0,
        sample: int = 0,
        scale: float | None = None,
        *,
        progress: Progress | None = None,
    ) -> Strips:
        """One sample as bands of rows, computed while they are taken, for results larger than memory. The same bytes as `up`.

        image, seed, scale, progress: as for `samples`.
        sample: its number.
        """
        return self.picture(image, seed, scale, 1, progress).strips(sample)

    def picture(
        self,
        image: NDArray[Any] | Image.Image,
        seed: int = 0,
        scale: float | None = None,
        samples: int = 1,
        progress: Progress | None = None,
        *,
        temperature: float | None = None,
    ) -> Rendering:
        """An image ready to be enlarged by `.strips(sample)` or `.sample(sample)`.

        image, seed, scale, progress: as for `samples`.
        samples: how many will be asked for. From two on the encoder's features are kept, if they fit.
        temperature: of this picture, from 0 to `HOTTEST`. None: the upscaler's.
        """
        engine = self._engine
        if engine is None:
            raise GdposrError("expected an open Upscaler, got a closed one; make a new one")
        seed, samples = setting("seed", seed, 0, 2**64 - 1), setting("samples", samples, 1, 2**32)
        factor = float(self.scale if scale is None else scale)
        if not 0.0 < factor <= self.scale:  # NaN fails too
            raise SettingError(
                f"scale: expected above 0 and at most {self.scale}, got {scale!r}; choose one in that range"
            )
        heat = self.temperature if temperature is None else _temperature(temperature)
        request = Request(seed, factor, samples, self.color_fix, self.tile, self.max_memory, heat)
        return Rendering(engine, self.manifest, as_picture(image), request, progress)

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
        """As `samples`, from a photo to photos with its metadata.

        photo: as `read_photo` gives it.
        seed, samples, scale, first, progress: as for `samples`.
        """
        results = self.samples(photo.pixels, seed, samples, scale, first=first, progress=progress)
        return (photo.with_pixels(pixels) for pixels in results)

    def close(self) -> None:
        """Release the model. Samples that are already begun can still be finished."""
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, threads: int) -> Backend:
        """Another backend of the same kind, with so many threads for each call."""
        return open_backend(self.bundle, self.device, self.precision, threads)

    def _load(self, device: str, precision: str, check: bool) -> Backend:
        """The first choice of device and precision that loads and passes the probe."""
        options = choices(self.bundle, device, precision)
        for note in resolve(self.bundle, device, precision)[2]:
            self._note(note)
        for i, (name, kind) in enumerate(options):
            try:
                backend = open_backend(self.bundle, name, kind, self.threads)
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
                f"{result.floor_db:.1f} dB on the bundle's probe, got {result.psnr_db:.1f} dB; "
                "use another device or precision, or update the driver"
            )

    def _note(self, note: str) -> None:
        self._notes.append(note)
        if self._notify is not None:
            self._notify(note)


def _temperature(value: float) -> float:
    heat = float(value)
    if not 0.0 <= heat <= HOTTEST:  # NaN fails too
        raise SettingError(
            f"temperature: expected 0 to {HOTTEST:g}, got {value!r}; 1 is what the model was trained with"
        )
    return heat
