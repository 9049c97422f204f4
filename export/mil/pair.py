"""An encoder package and a generator package as one model: image and noise in, picture out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from export.mil.device import REFERENCE, Open, open_runner
from export.mil.program import read_package
from runtime.bundle.manifest import GraphSpec

Floats = np.ndarray


class PackagePair:
    """Both packages on one device."""

    def __init__(
        self,
        paths: Mapping[str, Path],
        specs: Mapping[str, GraphSpec],
        device: str = REFERENCE,
        open: Open = open_runner,
    ) -> None:
        """paths: packages by role.
        specs: inputs and outputs by role.
        device: key of `export.mil.device.DEVICES`.
        open: loads a package on a device."""
        self._encoder = open(read_package(paths["encoder"]), device)
        self._generator = open(read_package(paths["generator"]), device)
        self._image = specs["encoder"].inputs[0].name
        self._features = [tensor.name for tensor in specs["encoder"].outputs]
        self._inputs = [tensor.name for tensor in specs["generator"].inputs]
        self._output = specs["generator"].outputs[0].name

    def __call__(self, image: Floats, noise: Floats) -> Floats:
        """image (1, 3, h, w) in [0, 1], noise (1, c, h', w') -> (1, 3, scale h, scale w), nominally in [0, 1]."""
        return self.generate(self.encode(image), noise)

    def encode(self, image: Floats) -> dict[str, Floats]:
        """Features by name."""
        found = self._encoder({self._image: image})
        return {name: found[name] for name in self._features}

    def generate(self, features: Mapping[str, Floats], noise: Floats) -> Floats:
        """One sample, (1, 3, scale h, scale w)."""
        (noise_name,) = [name for name in self._inputs if name not in features]
        given = {name: noise if name == noise_name else features[name] for name in self._inputs}
        return self._generator(given)[self._output]
