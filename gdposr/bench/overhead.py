"""The share of a picture's time that is spent outside the model. The model's calls are timed inside the timed picture."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from gdposr.console import say

if TYPE_CHECKING:
    import numpy as np

    from runtime.backends.devices import Backend, Features
    from runtime.bundle.reader import Bundle
    from runtime.image.bands import Floats

# Begin and end of a model call in seconds.
Span = tuple[float, float]


@dataclass(frozen=True)
class Overhead:
    """A possible result of a timed call: the share of its time outside model calls."""

    share: float
    """Share of the time outside the model, 0 to 1; see `overhead`."""


class TimedBackend:
    """A backend that notes when each call began and ended. spans: the list for the notes, shared by all backends of one picture."""

    def __init__(self, backend: "Backend", spans: list[Span]) -> None:
        self._backend, self._spans = backend, spans
        self.device, self.precision = backend.device, backend.precision
        self.placement, self.largest = backend.placement, backend.largest

    def encode(self, image: "Floats") -> "Features":
        with self._noted():
            return self._backend.encode(image)

    def generate(self, features: "Features", noise: "Floats") -> "Floats":
        with self._noted():
            return self._backend.generate(features, noise)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._spans.append((begin, time.perf_counter()))  # from several threads; append is atomic


class TimedPicture:
    """Enlarges a picture as `Upscaler.up` does, to the same bytes, and times every model call.

    bundle: the model.
    device, precision: as of a `Contender`.
    threads: for the model.
    pixels: (h, w, 3) uint8.

    A call does not include loading the model.
    """

    def __init__(
        self, bundle: "Bundle", device: str, precision: str, threads: int, pixels: "np.ndarray"
    ) -> None:
        from runtime.backends.choice import open_backend
        from runtime.upscale.engine import Engine
        from runtime.upscale.memory import Costs

        self._manifest, self._pixels = bundle.manifest, pixels
        self._spans: list[Span] = []

        def timed(threads: int) -> TimedBackend:
            return TimedBackend(open_backend(bundle, device, precision, threads), self._spans)

        costs = Costs.of(bundle.manifest, precision)
        self._engine = Engine(timed(threads), costs, threads, timed, say)

    def enlarge(self) -> "np.ndarray":
        """(scale h, scale w, 3) uint8."""
        from runtime.image.arrays import as_picture
        from runtime.upscale.rendering import Rendering, Request

        manifest = self._manifest
        request = Request(0, float(manifest.scale), 1, manifest.color_fix, manifest.size.tile, None)
        return Rendering(self._engine, manifest, as_picture(self._pixels), request, None).sample(0)

    def __call__(self) -> Overhead:
        self._spans.clear()
        begin = time.perf_counter()
        self.enlarge()
        return Overhead(overhead(self._spans, time.perf_counter() - begin))


def overhead(spans: Sequence[Span], whole: float) -> float:
    """1 - time inside model calls / (whole * most calls at once). Times in seconds.

    So the time of a thread that prepares, rounds or waits counts even while another thread is in the model.
    """
    if not spans or whole <= 0:
        return 1.0
    moments = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    at_once = max(accumulate(change for _, change in moments))
    return 1.0 - sum(end - begin for begin, end in spans) / (whole * at_once)
