"""What every backend offers, whatever library runs the graphs of a bundle."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# What `encode` gives for `generate`, by name: arrays, or tensors in a device's memory.
Features = dict[str, Any]


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


def shapes_of(values: Features) -> dict[str, tuple[int, ...]]:
    """Shapes by name, for messages. A tensor of ONNX Runtime has a method where an array has an attribute."""
    return {
        name: tuple(value.shape() if callable(value.shape) else value.shape) for name, value in values.items()
    }
