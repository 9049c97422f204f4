"""Cutting an image into tiles and putting the results together. Pure functions; all boxes are in LR pixels.

A tile has a core, which is its own part of the image, and a padded box, which is what the model is shown: the core with context
around it, clipped at the image border. Cores with overlap 0 meet without sharing a pixel and their results are placed; with
overlap > 0 neighbouring cores share exactly that many pixels, and their results are blended over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import SizeRule

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Box:
    """Rows y0 to y1 and columns x0 to x1, ends not included."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0


@dataclass(frozen=True)
class Tile:
    """core: inside the image. padded: inside the image as enlarged to `padded_size`, at multiples of `multiple_of`."""

    core: Box
    padded: Box


def padded_size(length: int, rule: SizeRule) -> int:
    """The smallest size the model takes that holds length."""
    return _up(max(length, rule.minimum), rule.multiple_of)


def tile_size(tile: int, rule: SizeRule) -> int:
    """The core size nearest above tile that the rule allows."""
    return _up(max(tile, 2 * rule.overlap), rule.multiple_of)


def plan_tiles(
    height: int, width: int, tile: int | tuple[int, int], rule: SizeRule, top: int = 0
) -> list[Tile]:
    """Tiles of an image in reading order. tile: core size, or (height, width) of it; rounded up to what the rule allows.

    top: the first row of the first cores, a multiple of `multiple_of`; where overlap is 0, a plan may so be left for another.
    """
    rows, columns = (tile, tile) if isinstance(tile, int) else tile
    across = _spans(width, tile_size(columns, rule), rule)
    return [
        Tile(Box(y0, y1, x0, x1), Box(py0, py1, px0, px1))
        for y0, y1, py0, py1 in _spans(height, tile_size(rows, rule), rule, top)
        for x0, x1, px0, px1 in across
    ]


def tile_rows(tiles: list[Tile]) -> list[list[Tile]]:
    """The tiles of a plan, row by row."""
    return [list(row) for _, row in groupby(tiles, key=lambda tile: tile.core.y0)]


def pad_edge(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(C, h, w) -> (C, height, width), the last row and column repeated at the bottom and the right."""
    below, right = height - image.shape[1], width - image.shape[2]
    if below == right == 0:
        return image
    return np.pad(image, ((0, 0), (0, below), (0, right)), mode="edge")


def ramp(length: int) -> Floats:
    """Blend weights of the second of two neighbours: (length,) float32, smooth, rising within (0, 1)."""
    t = (np.arange(length, dtype=np.float64) + 0.5) / max(1, length)
    return (t * t * (3.0 - 2.0 * t)).astype(np.float32)


def paste(canvas: Floats, piece: Floats, start: int, shared: int) -> None:
    """Put piece (C, H, w) into canvas (C, H, W) at column start; its first `shared` columns are blended with what is there.

    The blend a + w (b - a) leaves a pixel exactly as it is where both agree.
    """
    if shared:
        there = canvas[..., start : start + shared]
        there += ramp(shared) * (piece[..., :shared] - there)
    canvas[..., start + shared : start + piece.shape[-1]] = piece[..., shared:]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _spans(length: int, tile: int, rule: SizeRule, begin: int = 0) -> list[tuple[int, int, int, int]]:
    """(core start, core end, padded start, padded end) along one axis."""
    whole, least = padded_size(length, rule), padded_size(1, rule)
    spans = []
    for start in range(begin, max(begin + 1, length - rule.overlap), tile - rule.overlap):
        end = min(start + tile, length)
        last = min(whole, _up(end, rule.multiple_of) + rule.context)
        first = max(0, min(start - rule.context, last - least))  # at least the minimum, towards the start
        spans.append((start, end, first, max(last, first + least)))
    return spans
