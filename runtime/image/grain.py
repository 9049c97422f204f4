"""The no-reference score that picks one of several samples (`--select best`): the least grain. Lower is better.

The samples of a picture differ in drawn texture. Without the original one can measure how much was drawn, but not whether it is true.
The score was chosen by measurement among about ninety candidates (`python -m calibration.studies.selection` prints the main
ones), by how well it ranks samples as SQF to the ground truth does. Measured on the 100 RealSR pairs with an earlier bundle (2b090b2a)
in INT8, seed 0, within the samples of a picture: Kendall's tau with its 95 % bootstrap interval over pictures; chance is 0:

    samples               0-7                      8-15                     16-23 (looked at after the choice)
    grain                 +0.094 [+0.036, +0.153]  +0.086 [+0.039, +0.134]  +0.074 [+0.024, +0.125]
    its two halves        +0.107, +0.081           +0.067, +0.106           +0.046, +0.101
    pick beats another    56.7 %                   59.1 %                   52.3 %
    NIQE, less is better  -0.048 [-0.102, +0.007]  -0.041 [-0.097, +0.013]  -0.025 [-0.084, +0.034]

So it is only a little better than chance. Its pick gains 11, 13 and 2 % of the gain of choosing by SQF itself, which is 0.6 % of
SQF with 8 samples. For a model with larger differences between samples it should be measured again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from .arrays import LEVELS
from .bands import Floats, Strips, spans

NAME: Final = "grain"
# Weights of red, green and blue (BT.601, full range).
LUMA: Final = (0.299, 0.587, 0.114)
# Pixels. Of larger pictures only the middle is judged, to bound the time.
SIDE: Final = 2048
# Passes of the 3x3 binomial filter. The texture that they remove counts as fine.
FINE: Final = 1
# Passes of the same filter. The texture that the second number removes and the first keeps counts as coarse: about 3 to 5 pixels.
COARSE: Final = (3, 9)
# Variance of rounding to whole levels, in 1/255^2. Less texture than this counts as none.
ROUNDING: Final = 1 / 12
# Rows filtered at a time, so that a large picture takes little memory.
_ROWS: Final = 64


def score(picture: NDArray[Any] | Strips) -> float:
    """Root mean square of the fine texture of luma, divided by that of the coarse texture. 0 for a flat picture, always finite.

    picture: (H, W) or (H, W, 1..4) uint8, uint16 or float32 in [0, 1], of any size. Pixels are weighted by alpha. Of `Strips`, no band
    is kept, and none is taken below the rows that are judged. Scores compare samples of one picture, not different pictures.
    """
    _check(picture.shape, picture.dtype)
    height, width = picture.shape[:2]
    top, left = max(0, (height - SIDE) // 2), max(0, (width - SIDE) // 2)
    rows = _rows(picture, top, min(height, top + SIDE))
    planes = (_luma_and_alpha(block[:, left : left + SIDE]) for block in rows)
    fine = coarse = weight = 0.0
    for luma, alpha in _windows(planes):
        above = binomial(luma, FINE)
        low, lowest = (binomial(luma, passes) for passes in COARSE)
        fine += _energy(luma, above, alpha)
        coarse += _energy(low, lowest, alpha)
        weight += float(alpha.sum(dtype=np.float64))
    if weight == 0.0:
        return 0.0
    return float(np.sqrt(fine / (coarse + weight * ROUNDING)))


def binomial(plane: Floats, passes: int) -> Floats:
    """(h, w) float32 -> (h - 2 passes, w - 2 passes): kernel [1 2 1]/4 along both axes, `passes` times, where it fits."""
    for _ in range(passes):
        pairs = plane[:-1] + plane[1:]
        plane = pairs[:-1] + pairs[1:]
        pairs = plane[:, :-1] + plane[:, 1:]
        plane = pairs[:, :-1] + pairs[:, 1:]
        plane *= np.float32(1 / 16)
    return plane


def _energy(plane: Floats, smoother: Floats, alpha: Floats) -> float:
    """Sum of the squared difference over the core of alpha's size (h, w), weighted by alpha."""
    sides = [(a.shape[0] - alpha.shape[0]) // 2 for a in (plane, smoother)]
    inner = [a[s : a.shape[0] - s, s : a.shape[1] - s] for a, s in zip((plane, smoother), sides, strict=True)]
    difference = inner[0] - inner[1]
    difference *= difference
    difference *= alpha
    return float(difference.sum(dtype=np.float64))


def _windows(planes: Iterator[tuple[Floats, Floats]]) -> Iterator[tuple[Floats, Floats]]:
    """Blocks of rows -> windows of luma with the widest filter's halo around them, the picture's edge repeated, and their alpha."""
    halo = COARSE[1]
    held: Floats | None = None  # the last rows of luma, not all of which have their halo yet
    waiting: Floats | None = None  # alpha of those that have not been given out
    for luma, alpha in planes:
        wide = np.pad(luma, ((halo if held is None else 0, 0), (halo, halo)), mode="edge")
        held = wide if held is None else np.concatenate([held, wide])
        waiting = alpha if waiting is None else np.concatenate([waiting, alpha])
        ready = len(held) - 2 * halo
        if ready > 0:
            yield held, waiting[:ready]
            held, waiting = held[ready:], waiting[ready:]
    assert held is not None
    assert waiting is not None
    yield np.pad(held, ((0, halo), (0, 0)), mode="edge"), waiting


def _rows(picture: NDArray[Any] | Strips, top: int, bottom: int) -> Iterator[NDArray[Any]]:
    """Rows top to bottom, in blocks of at most `_ROWS`."""
    first = 0
    for band in picture.bands if isinstance(picture, Strips) else (picture,):
        wanted = band[max(0, top - first) : bottom - first]
        yield from (wanted[start:end] for start, end in spans(len(wanted), _ROWS))
        first += len(band)
        if first >= bottom:
            return


def _luma_and_alpha(block: NDArray[Any]) -> tuple[Floats, Floats]:
    """Luma of BT.601 in 0..255, not rounded, and alpha in 0..1, both (n, W); 1 where there is none."""
    pixels = block if block.ndim == 3 else block[..., None]
    level = np.float32(LEVELS[block.dtype.name])
    channels = pixels.shape[2]
    parts = LUMA if channels >= 3 else (1.0,)
    luma = np.zeros(pixels.shape[:2], np.float32)
    for channel, part in enumerate(parts):
        luma += pixels[..., channel] * np.float32(part * 255 / level)
    if channels in (2, 4):
        return luma, pixels[..., -1].astype(np.float32) / level
    return luma, np.ones_like(luma)


def _check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) not in (2, 3) or 0 in shape or (len(shape) == 3 and shape[2] > 4):
        raise ImageError(
            f"the score needs one picture (H, W) or (H, W, 1..4), got shape {shape}: pass one at a time"
        )
    if dtype.name not in LEVELS:
        raise ImageError(f"the score needs uint8, uint16 or float32, got {dtype}: convert the picture")
