"""JPEG in batches on a device, with a quality per picture. It computes what `training.data.degradation.jpeg` does through libjpeg.

Full-range YCbCr, chroma at half the resolution (4:2:0), 8x8 cosine transforms, the standard's tables scaled by
quality, and libjpeg's smooth ("fancy") upsampling of chroma. Entropy coding is lossless and therefore left out.
libjpeg's transforms use integers and these float32: many pixels differ by a level, and sometimes a frequency between two
quantization steps is rounded to the other one."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from training.metrics.luma import FULL_RANGE

# Side in pixels of a cosine transform.
BLOCK = 8
# Side in pixels of a chroma block at half the resolution. Pictures are extended to a multiple of it.
UNIT = 16
# Rounds halves away from zero. Flat places have many exact halves, which float32 may put slightly below.
HALF = 0.5 + 1e-4
# ITU-T T.81, table K.1, by vertical and horizontal frequency.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
# ITU-T T.81, table K.2.
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# ITU-T T.871 (JFIF).
TO_YCBCR = (
    FULL_RANGE,
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
# Inverse of the JFIF conversion: rows R, G, B; columns Y, Cb, Cr, the last two about 0.
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(images: Tensor, qualities: Tensor) -> Tensor:
    """Encode and decode: (n, 3, h, w) -> the same in multiples of 1/255.

    images: (n, 3, h, w) float32 in [0, 1], rounded to 8 bits first.
    qualities: (n,) integers, 1 to 100."""
    height, width = images.shape[-2:]
    quality = qualities.to(images.device)
    levels = (images.clamp(0, 1) * 255).round()
    # repeat the last column and row to fill whole units
    levels = F.pad(levels, (0, -width % UNIT, 0, -height % UNIT), mode="replicate")
    ycc = _mixed(levels, TO_YCBCR)
    ycc[:, 1:] += 128
    ycc = ycc.round().clamp_(0, 255)
    luma = _quantized(ycc[:, :1], tables(LUMA_TABLE, quality))
    # means of four are truncated after adding 1/4 and 1/2 alternately, so that they are right on average
    bias = 0.25 + 0.25 * (torch.arange(ycc.shape[-1] // 2, device=ycc.device) % 2)
    small = (F.avg_pool2d(ycc[:, 1:], 2) + bias).floor()
    chroma = _quantized(small, tables(CHROMA_TABLE, quality))
    # drop chroma beyond the end of the picture
    chroma = chroma[..., : (height + 1) // 2, : (width + 1) // 2]
    # 3/4 of the nearer sample and 1/4 of the other in each direction, as in libjpeg
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round()
    decoded = torch.cat([luma[..., :height, :width], chroma[..., :height, :width] - 128], dim=1)
    return _mixed(decoded, TO_RGB).round_().clamp_(0, 255) / 255


def tables(base: tuple[tuple[int, ...], ...], qualities: Tensor) -> Tensor:
    """Quantization steps (n, 8, 8), 1 to 255, for qualities (n,), scaled as in libjpeg. base: a table of the standard."""
    percent = torch.where(qualities < 50, 5000 // qualities.clamp_min(1), 200 - 2 * qualities)
    table = torch.tensor(base, device=qualities.device)
    return ((table * percent[:, None, None] + 50) // 100).clamp(1, 255).float()


def _quantized(planes: Tensor, steps: Tensor) -> Tensor:
    """Planes after rounding their frequencies to steps.

    planes: (n, c, h, w) in levels; h and w are multiples of 8. steps: (n, 8, 8)."""
    n, c, height, width = planes.shape
    basis = _cosines().to(planes.device)
    blocks = planes.reshape(n, c, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
    step = steps[:, None, None, None]
    frequencies = basis @ (blocks - 128) @ basis.T  # (n, c, rows, columns, 8, 8)
    ratio = frequencies / step
    kept = (ratio.abs() + HALF).floor() * ratio.sign() * step
    levels = (basis.T @ kept @ basis + 128).round().clamp(0, 255)
    return levels.transpose(3, 4).reshape(n, c, height, width)


@lru_cache(maxsize=1)
def _cosines() -> Tensor:
    """Orthonormal DCT-II, (8, 8), frequency by place."""
    rows = [
        [
            math.cos((2 * x + 1) * u * math.pi / (2 * BLOCK)) * math.sqrt((2 if u else 1) / BLOCK)
            for x in range(BLOCK)
        ]
        for u in range(BLOCK)
    ]
    return torch.tensor(rows)


def _mixed(images: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """(n, 3, h, w) with channels multiplied by a matrix."""
    return torch.einsum("dc,nchw->ndhw", torch.tensor(matrix, device=images.device), images)
