"""What runs the two graphs of a bundle, whatever library stands behind it, and the one place that chooses the library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.reader import Bundle
from .devices import core_ml_packages, device_spec

# Two threads with a model call each, every call on one thread, are faster than one call on two: 1000x1000 pixels in tiles of 256 with
# the built-in bundle on two cores of an AMD EPYC, alternating with a training run beside, median of 7: INT8 1.01 s against 1.50 s,
# fp32 1.84 s against 2.25 s; tiles of 128 in INT8 0.90 s against 1.07 s. Two calls at once that each use two threads lie between
# (1.07 s, 2.11 s), and two tiles in one batch gain nothing (1.45 s, 2.42 s). The processor time tells the same: 1.00 s a megapixel in
# INT8 on one thread, 1.58 s on two.
OVERLAPPED: Final = (
    2  # lanes on an accelerator: one tile is prepared or rounded while the other is in the model
)

Floats = NDArray[np.float32]
Features = dict[str, Any]  # what `encode` gives for `generate`, by name: arrays, or tensors on a device


class Backend(Protocol):
    """Runs the two graphs of one bundle. Safe to call from several threads."""

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def placement(self) -> dict[str, int] | None:
        """Graph nodes by the provider or processor that runs them, both graphs together; None: the library does not tell."""
        ...

    @property
    def largest(self) -> int | None:
        """Longest side, in LR pixels with context, of what one call takes; None: any."""
        ...

    def encode(self, image: Floats) -> Features:
        """image: (n, 3, h, w) RGB in [0, 1], h and w multiples of `multiple_of` -> features by name."""
        ...

    def generate(self, features: Features, noise: Floats) -> Floats:
        """features of this backend's `encode`, noise (n, c, h', w') -> (n, 3, scale h, scale w), nominally in [0, 1]."""
        ...


class Engine:
    """A loaded backend at work on several tiles side by side, and what it learns about memory. Safe to use from several threads.

    open: makes a further backend whose calls use so many threads. note: called with what the user should know.
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


def open_backend(bundle: Bundle, device: str, precision: str, threads: int | None = None) -> Backend:
    """Load a bundle's graphs on a device, both by name. threads: None = all processors this process may use."""
    from .coreml import CoreMLBackend  # these modules import this one
    from .onnx import OnnxBackend
    from .openvino import OpenVinoBackend

    if core_ml_packages(bundle, device, precision) is not None:
        return CoreMLBackend(bundle, device, precision, threads)
    kind = OpenVinoBackend if device_spec(device).package == "openvino" else OnnxBackend
    return kind(bundle, device, precision, threads)


def placement_note(backend: Backend) -> str | None:
    """What the user should know where a device got less than half of the graphs' nodes; None: nothing."""
    placement = backend.placement
    if not placement:
        return None
    own = sum(placement.get(place, 0) for place in device_spec(backend.device).places)
    total = sum(placement.values())
    if 2 * own >= total:
        return None
    rest = ", ".join(f"{count} by {name}" for name, count in sorted(placement.items()))
    return (
        f"only {own} of {total} graph nodes of {backend.precision} run on {backend.device} ({rest}); "
        "the device cpu or another precision may be faster"
    )


def shapes_of(values: Features) -> dict[str, tuple[int, ...]]:
    """Shapes by name, for messages. A tensor of ONNX Runtime has a method where an array has an attribute."""
    return {
        name: tuple(value.shape() if callable(value.shape) else value.shape) for name, value in values.items()
    }
