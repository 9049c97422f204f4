"""Axes of a plot: where a value lies, which ticks stand there, and where a label has room. Lengths in SVG units, y downwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom
Spot = tuple[float, float, str]  # x, y of the baseline, text anchor

GLYPH = 0.62  # width of a character over the font size, a little above the mean of common sans-serif fonts


@dataclass(frozen=True)
class Axis:
    """Values from low to high lie on the line from start to end; start may be beyond end. log: equal ratios, equal lengths."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an axis needs two rising finite ends, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic axis needs a positive lower end, got {self.low}")

    def at(self, value: float) -> float:
        """Where a value lies; a value beyond the ends lies on the nearer one."""
        value = min(max(value, self.low), self.high)
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """At most so many round values between the ends, rising."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 5), (1, 3), (1,)):
                marks = [digit * 10.0**power for power in decades for digit in digits]
                inside = [mark for mark in marks if self.low <= mark <= self.high]
                if 2 <= len(inside) <= most:
                    return inside
            if len(inside) > most:
                return inside[:: math.ceil(len(inside) / most)]
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def axis_over(
    values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.07
) -> Axis:
    """The axis that holds all finite values with a margin on both sides; a single value gets room around it."""
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    if not known:
        return Axis(1.0 if log else 0.0, 10.0 if log else 1.0, start, end, log)
    low, high = min(known), max(known)
    if log:
        ratio = max((high / low) ** margin, 1.25 if high / low > 1.5 else 2.0)
        return Axis(low / ratio, high * ratio, start, end, True)
    room = (high - low) * margin or max(abs(high) * 0.02, 1e-3)
    return Axis(low - room, high + room, start, end)


def tick_text(value: float, step: float) -> str:
    """A tick's number with just the digits that its distance to the next one needs."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    text = f"{value:.{min(digits, 8)}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("-")


def text_box(x: float, y: float, text: str, size: float, anchor: str = "start") -> Box:
    """What a line of text on the baseline (x, y) covers, by estimate. anchor: start, middle or end."""
    width = len(text) * size * GLYPH
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - 0.8 * size, left + width, y + 0.25 * size


def best_box(candidates: Sequence[Box], taken: Sequence[Box], area: Box) -> int:
    """Index of the first candidate that lies in the area and on nothing taken, else of the one that covers least."""

    def cost(box: Box) -> float:
        whole = (box[2] - box[0]) * (box[3] - box[1])
        return 4 * (whole - overlap(box, area)) + sum(overlap(box, other) for other in taken)

    costs = [round(cost(box), 3) for box in candidates]
    return costs.index(min(costs))


def spots_around(x: float, y: float) -> list[Spot]:
    """Where a point's label may stand, the nearest places first."""
    near = [(x + 10, y + 4, "start"), (x - 10, y + 4, "end"), (x, y - 11, "middle"), (x, y + 19, "middle")]
    far = [
        (x + shift, y + 4 + rise * way, anchor)
        for rise in range(14, 113, 14)
        for way in (-1, 1)
        for shift, anchor in ((7, "start"), (-7, "end"), (22, "start"), (-22, "end"))
    ]
    return [*near, *far]


def spots_along(left: float, right: float, y: float) -> list[Spot]:
    """Where the label of a level line may stand: at its ends, then between, above it before below it, then further off."""
    shares = ((1.0, "end"), (0.0, "start"), (0.5, "middle"), (0.75, "middle"), (0.25, "middle"))
    return [
        (left + 5 + (right - left - 10) * share, y + rise, anchor)
        for rise in (-5, 14, -19, 28)
        for share, anchor in shares
    ]


def place(text: str, size: float, spots: Sequence[Spot], taken: list[Box], area: Box) -> Spot:
    """The first spot where the text lies in the area and on nothing taken, else where it covers least; then it is taken too."""
    boxes = [text_box(x, y, text, size, anchor) for x, y, anchor in spots]
    index = best_box(boxes, taken, area)
    taken.append(boxes[index])
    return spots[index]


def overlap(first: Box, second: Box) -> float:
    """Area that two boxes share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0.0) * max(height, 0.0)


def shorten(text: str, most: int, *, front: bool = False) -> str:
    """At most so many characters. An ellipsis stands for what is left out of the middle, or at the front where the end tells most."""
    if len(text) <= most:
        return text
    head = 0 if front else (most - 1) * 2 // 3
    return text[:head] + "\N{HORIZONTAL ELLIPSIS}" + text[len(text) - (most - 1 - head) :]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
