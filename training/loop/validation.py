"""Validation on held-out photos: scores, the effect of the noise, and a sheet of sample pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training.data.degradation import degrade
from training.data.photos import CropParams, PhotoSet, random_crop
from training.metrics.fidelity import psnr_rgb
from training.metrics.niqe import niqe
from training.metrics.squeezenet import SqueezeFeatures, sqf
from training.model.one_step import enlarge
from training.model.text import PromptSource
from training.pixels import from_pixels, to_pixels

# Side in pixels of the cells over which samples are averaged. The means differ in structure, not in texture.
CELL = 8


def bicubic(lr: Tensor) -> Tensor:
    """Bicubic upscale (n, 3, h, w) -> (n, 3, 4h, 4w), clamped to [0, 1]."""
    return enlarge(lr, 4)


class Sampler(Protocol):
    """Gives a sample of some pictures, (n, 3, 4h, 4w).

    lr: (n, 3, h, w) in [0, 1].
    hr: the matching photos, (n, 3, 4h, 4w).
    k: number of the sample.
    prompts: of the pictures; none for models without text."""

    def __call__(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor: ...


class Validation:
    """One fixed crop of each held-out photo, with a fixed degradation. A call measures two samples of every picture.

    photos: the held-out photos.
    folder: for the sheets of sample pictures.
    features: SqueezeNet features for SQF; None leaves SQF out.
    size: side of a crop in HR pixels.
    batch: pictures that are sampled at once.
    reduce: makes the LR picture from an HR picture.
    prompts: finds the prompts of the photos; None for models without text."""

    def __init__(
        self,
        photos: PhotoSet,
        folder: Path,
        features: SqueezeFeatures | None = None,
        size: int = 256,
        batch: int = 16,
        reduce: Callable[[Tensor, np.random.Generator], Tensor] = degrade,
        prompts: PromptSource | None = None,
    ) -> None:
        self.features, self.folder, self.batch = features, folder, batch
        pairs = []
        for k in range(len(photos)):
            rng = np.random.default_rng([1, k])
            crop = random_crop(photos[k], rng, CropParams(size, zoom_range=(1.0, 1.0), augment=False))
            hr = from_pixels(crop)
            pairs.append((reduce(hr, rng), hr))
        self.lr, self.hr = (torch.stack(side) for side in zip(*pairs, strict=True))
        self.paths = photos.paths
        self.prompts = tuple(prompts.prompt_for(path) for path in self.paths) if prompts else ()
        self.sheet = np.zeros((0, 0, 3), np.uint8)  # the last sheet, (h, w, 3)

    @torch.no_grad()
    def __call__(
        self,
        sample: Sampler,
        step: int,
        plain: Callable[[Tensor], Tensor] = bicubic,
    ) -> dict[str, float]:
        """Measure a model and write a sheet of sample pictures.

        sample: gives sample number k of some pictures.
        step: number of the step, which names the sheet.
        plain: a plain upscale to compare with.

        Returns psnr (RGB, dB), sqf and niqe of the first sample; and in 1/255, the RMS of sample - plain (residual),
        of the difference between two samples, and of that difference's low-pass part."""
        first, second = (self._all(partial(sample, k=k)) for k in range(2))
        base = self._all(lambda lr, hr, prompts: plain(lr))
        values = {"psnr": float(psnr_rgb(first, self.hr).mean())}
        if self.features is not None:
            device = self.features.mean.device
            pairs = zip(first.to(device).split(1), self.hr.to(device).split(1), strict=True)
            values["sqf"] = float(np.mean([float(sqf(self.features, *pair)) for pair in pairs]))
        values |= {
            "niqe": float(np.mean([niqe(to_pixels(x)) for x in first])),
            "residual": 255 * _rms(first - base),
            "samples_differ": 255 * _rms(first - second),
            "structure_differs": 255 * _rms(F.avg_pool2d(first - second, CELL)),
        }
        self._sheet(base, first, second, step)
        return values

    def prompts_of(self, numbers: range) -> tuple[str, ...]:
        """Prompts of the pictures with these numbers; none for models without text."""
        return self.prompts[numbers.start : numbers.stop]

    def _all(self, function: Callable[..., Tensor]) -> Tensor:
        """Results of function(lr, hr, prompts=...) for all pictures, (n, 3, H, W)."""
        made = []
        for first in range(0, len(self.lr), self.batch):
            part = range(first, min(first + self.batch, len(self.lr)))
            lr, hr = (side[part.start : part.stop] for side in (self.lr, self.hr))
            made.append(function(lr, hr, prompts=self.prompts_of(part)).float().cpu())
        return torch.cat(made).clamp(0, 1)

    def _sheet(self, base: Tensor, first: Tensor, second: Tensor, step: int, rows: int = 6) -> None:
        """Write and keep the sheet: one row per picture with plain, sample 1, sample 2 and photo, (n, 3, H, W) each.

        base: plain upscales.
        first, second: samples.
        step: names the file.
        rows: most rows on the sheet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        columns = (base, first, second, self.hr)
        grid = np.concatenate(
            [np.concatenate([to_pixels(c[k]) for c in columns], axis=1) for k in range(min(rows, len(first)))]
        )
        self.sheet = grid
        Image.fromarray(grid).save(self.folder / f"{step:07d}.png")


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
