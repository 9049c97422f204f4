"""Places for the labels of a plot, which matplotlib does not find by itself. Lengths in SVG units, y downwards."""

from __future__ import annotations

from collections.abc import Sequence

# Left, top, right, bottom.
Box = tuple[float, float, float, float]
# x, y of the baseline, text anchor.
Spot = tuple[float, float, str]

# Width of a character over the font size, a little above the mean of common sans-serif fonts.
GLYPH = 0.62


def text_box(x: float, y: float, text: str, size: float, anchor: str = "start") -> Box:
    """Estimate of the area of a line of text.

    x, y: a point of its baseline, in SVG units.
    text: the line.
    size: of the font, in SVG units.
    anchor: which point x is: start, middle or end.
    """
    width = len(text) * size * GLYPH
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - 0.8 * size, left + width, y + 0.25 * size


def spots_around(x: float, y: float) -> list[Spot]:
    """Possible places for the label of a point, the nearest first."""
    near = [(x + 10, y + 4, "start"), (x - 10, y + 4, "end"), (x, y - 11, "middle"), (x, y + 19, "middle")]
    far = [
        (x + shift, y + 4 + rise * way, anchor)
        for rise in range(14, 113, 14)
        for way in (-1, 1)
        for shift, anchor in ((7, "start"), (-7, "end"), (22, "start"), (-22, "end"))
    ]
    return [*near, *far]


def spots_along(left: float, right: float, y: float) -> list[Spot]:
    """Possible places for the label of a level line: first at its ends, then between; above it, below it, then further away."""
    shares = ((1.0, "end"), (0.0, "start"), (0.5, "middle"), (0.75, "middle"), (0.25, "middle"))
    return [
        (left + 5 + (right - left - 10) * share, y + rise, anchor)
        for rise in (-5, 14, -19, 28)
        for share, anchor in shares
    ]


def place(text: str, size: float, spots: Sequence[Spot], taken: list[Box], area: Box) -> Spot:
    """The first spot at which a text is inside the area and covers no taken box, else the one that covers least. It becomes taken.

    text: one line.
    size: of the font, in SVG units.
    spots: to choose from, the best first.
    taken: boxes of other texts and marks; the chosen one is appended.
    area: that the text should not leave.
    """

    def cost(box: Box) -> float:
        whole = (box[2] - box[0]) * (box[3] - box[1])
        covered = 4 * (whole - overlap(box, area)) + sum(overlap(box, other) for other in taken)
        return round(covered, 3)

    boxes = [text_box(x, y, text, size, anchor) for x, y, anchor in spots]
    best = min(boxes, key=cost)
    taken.append(best)
    return spots[boxes.index(best)]


def overlap(first: Box, second: Box) -> float:
    """Area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def shorten(text: str, most: int, *, front: bool = False) -> str:
    """At most so many characters, with an ellipsis for the part left out of the middle. front: leave out the beginning instead."""
    if len(text) <= most:
        return text
    head = 0 if front else (most - 1) * 2 // 3
    return text[:head] + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - (most - 1 - head) :]
