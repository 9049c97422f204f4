"""A picture as bands of rows, so that one larger than memory can flow from the model to its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Strips:
    """Bands of rows from top to bottom, each (n, W) or (n, W, C) of dtype, made while they are taken; they can be taken once."""

    shape: tuple[int, ...]  # (H, W) or (H, W, C)
    dtype: np.dtype[Any]
    bands: Iterator[NDArray[Any]]

    def array(self) -> NDArray[Any]:
        """The whole picture."""
        whole = np.empty(self.shape, self.dtype)
        top = 0
        for band in self.bands:
            whole[top : top + len(band)] = band
            top += len(band)
        assert top == self.shape[0]
        return whole
