"""What the tests of accuracy share: three pairs of pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Pixels = Callable[..., np.ndarray]
NAMES = ("a", "b", "c")


@pytest.fixture
def folders(tmp_path: Path, make_pixels: Pixels) -> tuple[Path, Path]:
    """Three pairs, LR 36x32 and HR 144x128."""
    lr_dir, hr_dir = tmp_path / "lr", tmp_path / "hr"
    lr_dir.mkdir()
    hr_dir.mkdir()
    for seed, name in enumerate(NAMES):
        hr = Image.fromarray(make_pixels(144, 128, seed=seed))
        hr.save(hr_dir / f"{name}.png")
        hr.resize((32, 36), Image.Resampling.BOX).save(lr_dir / f"{name}.png")
    return lr_dir, hr_dir
