"""Validation of a student on held-out photos: distances, the effect of the noise, and a sheet to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from export.objectives import low_pass, squared_feature_distance
from export.student import Student
from runtime.niqe import niqe
from training.data import CropParams, PhotoSet, random_crop
from training.degradation import degrade
from training.perceptual import SqueezeFeatures


class Validation:
    """One fixed crop of each held-out photo, degraded with a fixed seed. Calling it measures two samples of every picture."""

    def __init__(self, photos: PhotoSet, features: SqueezeFeatures, folder: Path, size: int = 256) -> None:
        self.features, self.folder = features, folder
        pairs = []
        for k in range(len(photos)):
            rng = np.random.default_rng([1, k])
            crop = random_crop(photos[k], rng, CropParams(size, zoom_range=(1.0, 1.0), augment=False))
            hr = torch.from_numpy(crop).permute(2, 0, 1).float() / 255.0
            pairs.append((degrade(hr, rng), hr))
        self.lr, self.hr = (torch.stack(side) for side in zip(*pairs, strict=True))

    @torch.no_grad()
    def __call__(self, student: Student, step: int) -> dict[str, float]:
        """PSNR (RGB, dB), SQF and NIQE of a sample; rms of the learned residual, of the difference between two samples, and of
        that difference's low-pass part, in 1/255."""
        draw = torch.Generator().manual_seed(0)
        config = student.config
        shape = (
            len(self.lr),
            config.noise_channels,
            self.lr.shape[2] // config.fold,
            self.lr.shape[3] // config.fold,
        )
        first, second = (student(self.lr, torch.randn(shape, generator=draw)) for _ in range(2))
        base = F.pixel_shuffle(student.encoder(self.lr)[1], config.scale)
        sqf = torch.stack(
            [
                squared_feature_distance(self.features(a[None]), self.features(b[None]))
                for a, b in zip(first, self.hr, strict=True)
            ]
        )
        self._sheet(base, first, second, step)
        return {
            "psnr": float((-10 * (first - self.hr).square().mean((1, 2, 3)).log10()).mean()),
            "sqf": float(sqf.mean()),
            "niqe": float(np.mean([niqe(_pixels(x)) for x in first])),
            "residual": 255 * _rms(first - base),
            "samples_differ": 255 * _rms(first - second),
            "structure_differs": 255 * _rms(low_pass(first - second)),
        }

    def _sheet(self, base: Tensor, first: Tensor, second: Tensor, step: int, rows: int = 6) -> None:
        """Rows of bicubic, sample 1, sample 2, photo."""
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = (base, first, second, self.hr)
        grid = np.concatenate(
            [np.concatenate([_pixels(c[k]) for c in columns], axis=1) for k in range(min(rows, len(first)))]
        )
        Image.fromarray(grid).save(self.folder / f"{step:07d}.png")


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _pixels(image: Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
