"""How a picture is cut into tiles, and how their results are put together.

All boxes and lengths are in LR pixels.

A tile has a core, which is its own part of the picture, and a padded box, which the model is shown: the core with context around it,
clipped at the border of the picture. With overlap 0, cores meet without sharing a pixel and their results are placed side by side.
With an overlap, neighbouring cores share exactly that many pixels, and their results are blended over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import SizeRule
from ..image.bands import Floats


@dataclass(frozen=True)
class Box:
    """A rectangle of pixels."""

    y0: int
    """First row."""
    y1: int
    """The row after the last."""
    x0: int
    """First column."""
    x1: int
    """The column after the last."""

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0


@dataclass(frozen=True)
class Tile:
    """A part of the picture that one call of the model computes."""

    core: Box
    """Its own part, inside the picture."""
    padded: Box
    """The core with context, inside the picture as enlarged to `padded_size`, at multiples of `multiple_of`."""


def padded_size(length: int, rule: SizeRule) -> int:
    """The smallest size the model takes that holds length."""
    return round_up(max(length, rule.minimum), rule.multiple_of)


def tile_size(tile: int, rule: SizeRule) -> int:
    """The core size nearest above tile that the rule allows."""
    return round_up(max(tile, 2 * rule.overlap), rule.multiple_of)


def least_tile(rule: SizeRule) -> int:
    """The smallest core that is chosen: as long as the context. With less, the model would compute more than nine times its pixels."""
    return tile_size(max(rule.context, rule.multiple_of), rule)


def plan_tiles(
    height: int, width: int, tile: int | tuple[int, int], rule: SizeRule, top: int = 0
) -> list[Tile]:
    """Tiles of a picture in reading order.

    height, width: of the picture.
    tile: core size, or (height, width) of it, rounded up to what the rule allows.
    rule: the sizes that the model takes.
    top: the first row of the first cores, a multiple of `multiple_of`. With overlap 0, one plan may end there and another go on.
    """
    rows, columns = (tile, tile) if isinstance(tile, int) else tile
    across = tile_spans(width, tile_size(columns, rule), rule)
    return [
        Tile(Box(y0, y1, x0, x1), Box(py0, py1, px0, px1))
        for y0, y1, py0, py1 in tile_spans(height, tile_size(rows, rule), rule, top)
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
    """Put a piece of a strip into its place.

    canvas: (C, H, W), written to.
    piece: (C, H, w).
    start: column of the canvas at which it begins.
    shared: its first columns, which are blended with those of the canvas.

    The blend a + w (b - a) changes nothing if a and b are equal.
    """
    if shared:
        there = canvas[..., start : start + shared]
        there += ramp(shared) * (piece[..., :shared] - there)
    canvas[..., start + shared : start + piece.shape[-1]] = piece[..., shared:]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below value."""
    return -(-value // multiple) * multiple


def tile_spans(length: int, tile: int, rule: SizeRule, begin: int = 0) -> list[tuple[int, int, int, int]]:
    """(core start, core end, padded start, padded end) of each tile along one axis.

    length: of the picture along the axis.
    tile: core size along the axis, as `tile_size` gives it.
    rule: the sizes that the model takes.
    begin: where the first core starts.
    """
    whole, least = padded_size(length, rule), padded_size(1, rule)
    found = []
    for start in range(begin, max(begin + 1, length - rule.overlap), tile - rule.overlap):
        end = min(start + tile, length)
        last = min(whole, round_up(end, rule.multiple_of) + rule.context)
        first = max(0, min(start - rule.context, last - least))  # at least the minimum, towards the start
        found.append((start, end, first, max(last, first + least)))
    return found
