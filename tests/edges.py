"""Straight edges between two grays, and how far from straight an enlargement of one is."""

import math
from typing import Final

import cards
import numpy as np

EDGE_SIDE: Final = 256  # HR pixels
EDGES: Final = {  # columns to a row, levels above and below
    f"1 in {columns}, {dark} to {light}": (columns, (dark, light))
    for columns in (3, 6, 10, 15, 25)
    for dark, light in ((60, 200), (100, 150))
}


def edge(name: str) -> np.ndarray:
    """(EDGE_SIDE, EDGE_SIDE, 3) uint8: a straight edge that rises by a row in so many columns, between two grays."""
    y, x = np.mgrid[:EDGE_SIDE, :EDGE_SIDE] - EDGE_SIDE // 2
    slope, (dark, light) = 1 / EDGES[name][0], EDGES[name][1]
    distance = (y - slope * x) / math.hypot(1, slope)
    levels = np.rint(dark + (light - dark) * np.clip(0.5 + distance, 0, 1)).astype(np.uint8)
    return levels[..., None].repeat(3, axis=2)


def wobble(picture: np.ndarray, name: str) -> float:
    """How far an enlarged `edge` is from straight: root mean square distance in HR pixels of its half level from a line.

    Measured in the middle, infinite if a column does not cross the half level near the edge. Columns are smoothed first: between
    two pixels of a sharp edge the half level's place is known to a tenth of a pixel only."""
    middle, reach = EDGE_SIDE // 2, 12
    columns = np.arange(-EDGE_SIDE // 3, EDGE_SIDE // 3)
    plane = picture.mean(axis=2) - np.mean(EDGES[name][1])
    above = np.apply_along_axis(np.convolve, 0, plane, np.array([1, 4, 6, 4, 1]) / 16, mode="same")
    rows = []
    for x in columns:
        top = middle + round(x / EDGES[name][0]) - reach
        column = above[top : top + 2 * reach, middle + x]
        crossings = np.flatnonzero((column[:-1] < 0) & (column[1:] >= 0))
        if not len(crossings):
            return math.inf
        k = crossings[np.abs(crossings - reach).argmin()]
        rows.append(top + k + column[k] / (column[k] - column[k + 1]))
    return cards.rms(np.polyval(np.polyfit(columns, rows, 1), columns) - rows)
