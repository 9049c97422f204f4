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
        """Nodes of both graphs, counted by the provider or processor that runs them. None: the library does not tell."""
        ...

    @property
    def largest(self) -> int | None:
        """Longest side that one call takes, in LR pixels with context. None: any."""
        ...

    def encode(self, image: Floats) -> Features:
        """(n, 3, h, w) RGB in [0, 1] -> features by name. h and w are multiples of `multiple_of`."""
        ...

    def generate(self, features: Features, noise: Floats) -> Floats:
        """Features of this backend's `encode` and noise (n, c, h', w') -> (n, 3, scale h, scale w), nominally in [0, 1]."""
        ...


def shapes_of(values: Features) -> dict[str, tuple[int, ...]]:
    """Shapes by name, for messages. `shape` is a method of ONNX Runtime's tensors and an attribute of arrays."""
    return {
        name: tuple(value.shape() if callable(value.shape) else value.shape) for name, value in values.items()
    }
