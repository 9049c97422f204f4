"""Writes tests/data/golden.png: what the toy bundle makes of a small picture in fp32. Run from the repository root."""

from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from runtime.upscale.upscaler import Upscaler

DATA: Final = Path(__file__).parent / "data"
GOLDEN_SEED: Final = 11
GOLDEN_SAMPLE: Final = 2


def golden_input() -> np.ndarray:
    """A disc on a ramp with stripes: (25, 30, 3) uint8, of whole numbers alone, so that it is the same everywhere."""
    y, x = np.mgrid[:25, :30]
    disc = 160 * ((y - 11) ** 2 + (x - 14) ** 2 < 60)
    return np.stack([7 * x + 10, 60 + disc, 8 * y + 20 * (x // 3 % 2)], axis=2).astype(np.uint8)


if __name__ == "__main__":
    upscaler = Upscaler(DATA / "toy.gdposr", device="cpu", precision="fp32", threads=1)
    result = upscaler.up(golden_input(), GOLDEN_SEED, first=GOLDEN_SAMPLE)[0]
    Image.fromarray(result).save(DATA / "golden.png", optimize=True)
