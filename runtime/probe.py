"""The probe: run a bundle's small test picture on a device and compare with the result that the exporter stored.

Accelerators sometimes compute something else without an error; a device that fails the probe must not be used in silence.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .backend import Backend
from .bundle import Bundle
from .errors import BundleError
from .files import GraphFile
from .noise import noise_field
from .pixels import as_picture
from .tiling import pad_edge, padded_size

IDENTICAL_DB: Final = 99.0  # reported where not one 8-bit value differs, so that reports stay valid JSON


@dataclass(frozen=True)
class ProbeResult:
    """psnr_db: of the 8-bit result against the stored one, all channels. ok: it reaches the floor of this precision."""

    psnr_db: float
    floor_db: float
    ok: bool


def run_probe(bundle: Bundle, backend: Backend) -> ProbeResult:
    """Run the probe picture as one tile, without colour fix."""
    probe = bundle.manifest.probe
    expected = read_rgb(bundle, probe.output)
    result = probe_output(bundle, backend, read_rgb(bundle, probe.input), probe.seed)
    if expected.shape != result.shape:
        raise BundleError(
            f"{bundle.path}: {probe.output.file}: expected a picture of shape {result.shape}, came {expected.shape}; "
            "export the bundle again"
        )
    psnr, floor = psnr_db(result, expected), probe.floor_db[backend.precision]
    return ProbeResult(psnr, floor, psnr >= floor)


def probe_output(bundle: Bundle, backend: Backend, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """What a backend makes of a picture: (h, w, 3) uint8 -> (scale h, scale w, 3) uint8, sample 0, one tile.

    The exporter writes the probe's expected output with this very function.
    """
    rule, noise, scale = bundle.manifest.size, bundle.manifest.noise, bundle.manifest.scale
    height, width = image.shape[:2]
    rows, columns = padded_size(height, rule), padded_size(width, rule)
    features = backend.encode(pad_edge(as_picture(image).rgb(0, height), rows, columns)[None])
    cells = (rows // noise.downscale, columns // noise.downscale)
    output = backend.generate(features, noise_field(seed, 0, *cells, channels=noise.channels)[None])
    crop = np.nan_to_num(output[0, :, : height * scale, : width * scale], nan=0.0)
    return (np.clip(crop, 0.0, 1.0).transpose(1, 2, 0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def psnr_db(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """PSNR of two 8-bit pictures over all channels; IDENTICAL_DB where they are equal."""
    mse = float(np.mean(np.square(a.astype(np.float64) - b)))
    return IDENTICAL_DB if mse == 0.0 else 10.0 * math.log10(255.0**2 / mse)


def read_rgb(bundle: Bundle, file: GraphFile) -> NDArray[np.uint8]:
    """A picture of the bundle as (h, w, 3) uint8."""
    try:
        with Image.open(io.BytesIO(bundle.read(file)), formats=["PNG"]) as image:
            if image.mode != "RGB" or image.width * image.height > 1 << 24:
                raise BundleError(
                    f"{bundle.path}: {file.file}: expected a small 8-bit RGB PNG, came {image.mode} {image.size}; "
                    "export the bundle again"
                )
            return np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BundleError(
            f"{bundle.path}: {file.file}: expected a PNG, came something else ({error}); export the bundle again"
        ) from error
