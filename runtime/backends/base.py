"""What runs the two graphs of a bundle, whatever library stands behind it, and the one place that chooses the library."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.reader import Bundle
from .devices import core_ml_packages, device_spec

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
