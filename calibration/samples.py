"""Pictures and noise for calibration and parity checks: photos through the real degradation, at fixed seeds.

Without a folder, the openly licensed photographs that come inside scikit-image are used, so an export gives the same bytes on every
machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from runtime.noise import noise_field
from training.data import CropParams, PhotoSet, find_images, random_crop
from training.degradation import degrade

OPEN_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "grass", "brick", "camera")


@dataclass(frozen=True)
class Sample:
    """lr: (3, h, w) float32 in [0, 1]; noise: (c, h/2, w/2) float32; hr: (3, 4h, 4w) float32 in [0, 1]."""

    lr: np.ndarray
    noise: np.ndarray
    hr: np.ndarray


def open_photo_paths() -> list[Path]:
    """Paths of the photographs inside scikit-image."""
    try:
        import skimage
    except ImportError as error:
        raise ModuleNotFoundError(
            "no photo folder given and scikit-image, whose photographs would be used, is not installed; "
            'give a folder or `pip install "gdposr[export]"`'
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    paths = [p for name in OPEN_PHOTOS for p in sorted(folder.glob(f"{name}.*"))]
    if len(paths) < len(OPEN_PHOTOS):
        raise FileNotFoundError(
            f"scikit-image below {folder} lacks some of its photographs {OPEN_PHOTOS}; give a folder"
        )
    return paths


def draw_samples(
    folder: Path | None, count: int, *, size: int = 64, channels: int = 4, downscale: int = 2, seed: int = 0
) -> list[Sample]:
    """count samples of size x size LR pixels, cycling over the photos in sorted order; sample k has its own crop and noise."""
    photos = PhotoSet(open_photo_paths() if folder is None else find_images(folder))
    crop = CropParams(4 * size, zoom_range=(1.0, 1.0), augment=False)
    samples = []
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        pixels = random_crop(photos[k % len(photos)], rng, crop)
        hr = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0
        noise = noise_field(seed, k, size // downscale, size // downscale, channels=channels)
        samples.append(Sample(degrade(hr, rng).numpy(), noise, hr.numpy()))
    return samples
