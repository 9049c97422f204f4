"""The cases on which packages are compared: photos with noise, and the reference's results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from calibration.samples import draw_samples
from runtime.backends.onnx import OnnxBackend
from runtime.bundle.manifest import Manifest
from runtime.noise import noise_field

# Selects photos, crops and noise.
SEED: Final = 11
# Side in LR pixels of the photos. For a larger tile they are repeated, mirrored.
PHOTO_SIDE: Final = 64

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """Inputs of one comparison and the reference's results."""

    image: np.ndarray
    """(1, 3, h, w) in [0, 1]."""
    noise: np.ndarray
    """(1, c, h', w')"""
    features: Arrays
    """The encoder's outputs by name."""
    sr: np.ndarray
    """(1, 3, scale h, scale w)"""


def draw_cases(manifest: Manifest, backend: OnnxBackend, size: tuple[int, int], count: int) -> list[Case]:
    """Photos and noise for LR tiles of one size, with the reference's results; always the same.

    manifest: of the reference bundle.
    backend: runs its graphs.
    size: height and width in LR pixels.
    count: number of photos."""
    rule = manifest.noise
    drawn = draw_samples(count, size=PHOTO_SIDE, channels=rule.channels, downscale=rule.downscale, seed=SEED)
    cases = []
    for k, sample in enumerate(drawn):
        margins = [(0, max(0, side - PHOTO_SIDE)) for side in size]
        photo = np.pad(sample.lr, [(0, 0), *margins], mode="symmetric")[:, : size[0], : size[1]]
        image = np.ascontiguousarray(photo[None])
        cells = (size[0] // rule.downscale, size[1] // rule.downscale)
        noise = noise_field(SEED, k, *cells, channels=rule.channels)[None]
        features = backend.encode(image)
        cases.append(Case(image, noise, features, backend.generate(features, noise)))
    return cases
