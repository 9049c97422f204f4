"""Check that a converted model computes the same as its source: PSNR against torch over sizes, photos and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from calibration.samples import Sample, draw_samples
from export.source import Source, psnr
from runtime.errors import GdposrError
from runtime.noise import noise_field

Floats = np.ndarray
# image (1, 3, h, w), noise (1, c, h', w') -> sr (1, 3, 4h, 4w)
Run = Callable[[Floats, Floats], Floats]

# Height and width in LR pixels, rounded up to multiples that the model takes.
PARITY_SIZES = ((64, 64), (48, 80), (34, 22))
# Photos of every size, and their seed.
PHOTOS, SEED = 2, 1
# Index of the first photo for tuning choices. Parity is checked on the photos before it.
OTHER_PHOTOS = 2


class ParityError(GdposrError):
    """A converted model differs from torch by more than its floor allows."""


def samples(source: Source, count: int, seed: int, size: int = 64, first: int = 0) -> list[Sample]:
    """Openly licensed photos with the standard degradation and noise that fits the source.

    source: the model.
    count: number of samples.
    seed: of crops, degradation and noise.
    size: side in LR pixels, rounded up to a multiple that the model takes.
    first: index of the first photo."""
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
    """Worst PSNR in dB (peak 1) of a converted model against its source.

    source: the model in torch.
    run: the converted model.
    what: its name in messages.
    floor: least PSNR in dB.
    sizes: heights and widths in LR pixels to check.
    remedy: advice to append to error messages.

    Raises ParityError below the floor, and if run returns NaN or infinity."""
    worst = np.inf
    for height, width in ((_multiple(h, source), _multiple(w, source)) for h, w in sizes):
        for k, sample in enumerate(samples(source, PHOTOS, SEED, max(64, height, width))):
            image = np.ascontiguousarray(sample.lr[None, :, :height, :width])
            noise = noise_for(source, height, width, seed=k)
            expected = source(torch.from_numpy(image), torch.from_numpy(noise)).numpy()
            came = run(image, noise)
            if not np.isfinite(came).all():
                raise ParityError(
                    f"{what}: expected finite numbers, got NaN or infinity at {height}x{width}; nothing was written. {remedy}"
                )
            worst = min(worst, psnr(came, expected))
    if worst < floor:
        raise ParityError(
            f"{what}: expected at least {floor:g} dB PSNR against torch, got {worst:.1f} dB; nothing was written. {remedy}"
        )
    return worst


def noise_for(source: Source, height: int, width: int, seed: int, sample: int = 0) -> Floats:
    """The runtime's noise for an LR image, (1, c, h', w') float32.

    source: the model that takes the noise.
    height, width: of the LR image.
    seed, sample: select the noise."""
    cell = source.noise.downscale
    return noise_field(seed, sample, height // cell, width // cell, channels=source.noise.channels)[None]


def _multiple(side: int, source: Source) -> int:
    return -(-side // source.size.multiple_of) * source.size.multiple_of
