"""The probe: run a bundle's small test picture on a device, and compare the result with the one that the exporter stored.

Accelerators sometimes compute wrong values without an error. A device that fails the probe must not be used silently.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..backends.devices import Backend, core_ml_packages
from ..bundle.entries import GraphFile
from ..bundle.reader import Bundle
from ..errors import BundleError
from ..noise import noise_field
from .tiling import pad_edge, padded_size

# Reported if all 8-bit values are equal. Not infinite, so that reports stay valid JSON.
IDENTICAL_DB: Final = 99.0
# dB below a package's own floor, which covers the rounding of its weights and values. A device also sums in half precision.
PACKAGE_MARGIN_DB: Final = 3.0
# The highest floor of a package, well below the 56 dB of two results that differ by rounding to 8 bits alone.
PACKAGE_FLOOR_DB: Final = 45.0
# The highest floor if the whole result depends on the filling of a tile.
FILLED_FLOOR_DB: Final = 25.0


@dataclass(frozen=True)
class ProbeResult:
    """The result of `run_probe`."""

    psnr_db: float
    """PSNR of the 8-bit result against the stored one, over all channels."""
    floor_db: float
    """The least PSNR that this precision must reach."""
    ok: bool
    """Whether the PSNR reaches the floor."""


def run_probe(bundle: Bundle, backend: Backend) -> ProbeResult:
    """Run the probe picture as one tile, without colour fix.

    For a backend of fixed size, the picture is cut or filled up to it, which changes the result near the right and lower edge. Pixels
    within the model's context of these edges are not compared.
    """
    probe, scale = bundle.manifest.probe, bundle.manifest.scale
    image, expected = read_rgb(bundle, probe.input), read_rgb(bundle, probe.output)
    height, width = image.shape[:2]
    if expected.shape != (height * scale, width * scale, 3):
        raise BundleError(
            f"{bundle.path}: {probe.output.file}: expected a picture of shape {(height * scale, width * scale, 3)}, got "
            f"{expected.shape}; export the bundle again"
        )
    image = image[: backend.largest, : backend.largest]
    rows, columns, floor = *image.shape[:2], floor_db(bundle, backend)
    if backend.largest is not None:
        rows, columns = (_reliable(bundle, side) for side in (rows, columns))
        if not rows or not columns:
            rows, columns, floor = *image.shape[:2], min(floor, FILLED_FLOOR_DB)
    result = probe_output(bundle, backend, image, probe.seed)
    part = np.s_[: rows * scale, : columns * scale]
    psnr = psnr_db(result[part], expected[part])
    return ProbeResult(psnr, floor, psnr >= floor)


def floor_db(bundle: Bundle, backend: Backend) -> float:
    """The PSNR that a backend must reach on the probe."""
    packages = core_ml_packages(bundle, backend.device, backend.precision)
    if packages is None:
        return bundle.manifest.probe.floor_db[backend.precision]
    return min(PACKAGE_FLOOR_DB, min(package.floor_db for package in packages.values()) - PACKAGE_MARGIN_DB)


def _reliable(bundle: Bundle, side: int) -> int:
    """LR pixels from the top or left that do not depend on anything beyond side. 0 if tiles of the model never agree exactly."""
    rule = bundle.manifest.size
    return 0 if rule.overlap else max(0, side - rule.context)


def probe_output(bundle: Bundle, backend: Backend, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A picture enlarged by a backend as one tile, sample 0: (h, w, 3) uint8 -> (scale h, scale w, 3) uint8.

    bundle: with size rule and noise rule.
    backend: runs its graphs.
    image: the LR picture.
    seed: of the noise.

    The exporter writes the probe's expected output with this function too.
    """
    rule, noise, scale = bundle.manifest.size, bundle.manifest.noise, bundle.manifest.scale
    height, width = image.shape[:2]
    rows, columns = padded_size(height, rule), padded_size(width, rule)
    planes = np.divide(image.transpose(2, 0, 1), np.float32(255), dtype=np.float32)
    features = backend.encode(pad_edge(planes, rows, columns)[None])
    cells = (rows // noise.downscale, columns // noise.downscale)
    output = backend.generate(features, noise_field(seed, 0, *cells, channels=noise.channels)[None])
    crop = np.nan_to_num(output[0, :, : height * scale, : width * scale], nan=0.0)
    return (np.clip(crop, 0.0, 1.0).transpose(1, 2, 0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def psnr_db(a: NDArray[Any], b: NDArray[Any], peak: float = 255.0, equal: float = IDENTICAL_DB) -> float:
    """PSNR in dB of two arrays over all values. Minus infinity if a value is not finite.

    a, b: of one shape.
    peak: the largest value that is possible.
    equal: the result for equal arrays.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -math.inf
    mse = float(np.mean(np.square(a.astype(np.float64) - b)))
    return equal if mse == 0.0 else 10.0 * math.log10(peak**2 / mse)


def read_rgb(bundle: Bundle, file: GraphFile) -> NDArray[np.uint8]:
    """A picture of the bundle as (h, w, 3) uint8."""
    try:
        with Image.open(io.BytesIO(bundle.read(file)), formats=["PNG"]) as image:
            if image.mode != "RGB" or image.width * image.height > 1 << 24:
                raise BundleError(
                    f"{bundle.path}: {file.file}: expected a small 8-bit RGB PNG, got {image.mode} {image.size}; "
                    "export the bundle again"
                )
            return np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BundleError(
            f"{bundle.path}: {file.file}: expected a PNG, got something else ({error}); export the bundle again"
        ) from error
