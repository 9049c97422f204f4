"""JPEG in batches on a device: what `training.data.degradation.jpeg` does through libjpeg, with a quality for each picture.

YCbCr of full range, chroma at half the resolution (4:2:0), 8x8 cosine transforms, the standard's tables scaled by the quality, and
libjpeg's smooth ("fancy") upsampling of chroma. No bits are written: entropy coding loses nothing. libjpeg's transforms are in whole
numbers and these in float32: many a pixel is a level off, and now and then a frequency between two steps falls to the other one.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from training.metrics.luma import FULL_RANGE

BLOCK = 8  # pixels of a cosine transform
UNIT = 16  # pixels of a block of chroma at half the resolution; pictures are continued to a multiple of it
HALF = 0.5 + 1e-4  # halves go away from zero, and in flat places many are halves; float32 may lie just below
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # ITU-T T.81, table K.1, by vertical and horizontal frequency
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)  # table K.2
TO_YCBCR = (
    FULL_RANGE,
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)  # ITU-T T.871 (JFIF)
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(images: Tensor, qualities: Tensor) -> Tensor:
    """Encode and decode. images: (n, 3, h, w) float32 in [0, 1], rounded to 8 bits first; qualities: (n,) whole numbers, 1-100
    -> (n, 3, h, w) in multiples of 1/255."""
    height, width = images.shape[-2:]
    quality = qualities.to(images.device)
    levels = (images.clamp(0, 1) * 255).round()
    # continue the last column and row to whole units
    levels = F.pad(levels, (0, -width % UNIT, 0, -height % UNIT), mode="replicate")
    ycc = _mixed(levels, TO_YCBCR)
    ycc[:, 1:] += 128
    ycc = ycc.round().clamp_(0, 255)
    luma = _quantized(ycc[:, :1], tables(LUMA_TABLE, quality))
    # a mean of four is cut to whole levels after 1/4 and 1/2 in turn, so that it is right on average
    bias = 0.25 + 0.25 * (torch.arange(ycc.shape[-1] // 2, device=ycc.device) % 2)
    small = (F.avg_pool2d(ycc[:, 1:], 2) + bias).floor()
    chroma = _quantized(small, tables(CHROMA_TABLE, quality))
    # the picture ends before its last unit does: chroma beyond it is not looked at
    chroma = chroma[..., : (height + 1) // 2, : (width + 1) // 2]
    # 3/4 of the nearer sample and 1/4 of the other in each direction, as libjpeg has it
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).round()
    decoded = torch.cat([luma[..., :height, :width], chroma[..., :height, :width] - 128], dim=1)
    return _mixed(decoded, TO_RGB).round_().clamp_(0, 255) / 255


def tables(base: tuple[tuple[int, ...], ...], qualities: Tensor) -> Tensor:
    """(n,) -> (n, 8, 8) steps of quantization, 1-255, as libjpeg scales a table of the standard."""
    percent = torch.where(qualities < 50, 5000 // qualities.clamp_min(1), 200 - 2 * qualities)
    table = torch.tensor(base, device=qualities.device)
    return ((table * percent[:, None, None] + 50) // 100).clamp(1, 255).float()


def _quantized(planes: Tensor, steps: Tensor) -> Tensor:
    """(n, c, h, w) in levels, sides multiples of 8 -> what is left of it after a rounding to steps (n, 8, 8) of its frequencies."""
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
    """(8, 8) orthonormal DCT-II, frequency by place."""
    rows = [
        [
            math.cos((2 * x + 1) * u * math.pi / (2 * BLOCK)) * math.sqrt((2 if u else 1) / BLOCK)
            for x in range(BLOCK)
        ]
        for u in range(BLOCK)
    ]
    return torch.tensor(rows)


def _mixed(images: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """(n, 3, h, w) with its channels mixed."""
    return torch.einsum("dc,nchw->ndhw", torch.tensor(matrix, device=images.device), images)
