"""Proof that a converted model computes what its source does: PSNR against torch over sizes, photos and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from calibration.samples import Sample, draw_samples
from export.source import Source, psnr
from runtime.errors import GdposrError
from runtime.noise import noise_field

Floats = np.ndarray
Run = Callable[[Floats, Floats], Floats]  # image (1, 3, h, w), noise (1, c, h', w') -> sr (1, 3, 4h, 4w)

PARITY_SIZES = ((64, 64), (48, 80), (34, 22))  # LR pixels, rounded up to what a model takes
PHOTOS, SEED = 2, 1  # of every size
OTHER_PHOTOS = 2  # the first photo for choices that parity is to judge: it looks at those before


class ParityError(GdposrError):
    """A converted model differs from torch by more than its floor allows."""


def samples(source: Source, count: int, seed: int, size: int = 64, first: int = 0) -> list[Sample]:
    """Open photos through the real degradation with noise that fits the source, from the one of number first on."""
    noise = source.noise
    return draw_samples(
        count,
        size=_multiple(size, source),
        channels=noise.channels,
        downscale=noise.downscale,
        seed=seed,
        first=first,
    )


def check_parity(
    source: Source,
    run: Run,
    what: str,
    floor: float,
    *,
    sizes: Sequence[tuple[int, int]] = PARITY_SIZES,
    remedy: str,
) -> float:
    """Worst PSNR in dB (peak 1) of run against the source; ParityError below floor, or where run gives NaN or infinity."""
    worst = np.inf
    for height, width in ((_multiple(h, source), _multiple(w, source)) for h, w in sizes):
        for k, sample in enumerate(samples(source, PHOTOS, SEED, max(64, height, width))):
            image = np.ascontiguousarray(sample.lr[None, :, :height, :width])
            noise = noise_for(source, height, width, seed=k)
            expected = source(torch.from_numpy(image), torch.from_numpy(noise)).numpy()
            came = run(image, noise)
            if not np.isfinite(came).all():
                raise ParityError(
                    f"{what}: expected finite numbers, came NaN or infinity at {height}x{width}; nothing was written. {remedy}"
                )
            worst = min(worst, psnr(came, expected))
    if worst < floor:
        raise ParityError(
            f"{what}: expected at least {floor:g} dB PSNR against torch, came {worst:.1f} dB; nothing was written. {remedy}"
        )
    return worst


def noise_for(source: Source, height: int, width: int, seed: int, sample: int = 0) -> Floats:
    """The runtime's noise for an LR image of that size, (1, c, h', w') float32."""
    cell = source.noise.downscale
    return noise_field(seed, sample, height // cell, width // cell, channels=source.noise.channels)[None]


def _multiple(side: int, source: Source) -> int:
    return -(-side // source.size.multiple_of) * source.size.multiple_of
