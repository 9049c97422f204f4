"""Chooses the crops of a study and the side of A: pure functions of the scenes and a random generator."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from calibration.blind.scenes import Scene
from calibration.measure.pairs import read_rgb
from runtime.errors import ImageError
from training.metrics.luma import FULL_RANGE

# Positions that are drawn for one crop.
CANDIDATES = 8
# Side in pixels of the squares whose variance tells content from sky.
WINDOW = 8


@dataclass(frozen=True)
class Pair:
    """One question to a voter."""

    scene: Scene
    """The input and its two enlargements."""
    y: int
    """Top of the crop in pixels of the input."""
    x: int
    """Left of the crop in pixels of the input."""
    a_left: bool
    """Whether A is on the left."""


def choose_pairs(scenes: Sequence[Scene], count: int, crop: int, random: Generator) -> list[Pair]:
    """`count` pairs in random order, spread evenly over kinds and photos. A is on the left in half of them, also within each kind.

    scenes: to choose from.
    count: of pairs.
    crop: side in pixels of the input.
    random: draws positions, order and sides.

    A photo is taken again only after every other photo of its kind. The position is one of `CANDIDATES` random ones: among the half
    with more content, the one that overlaps earlier crops of the photo least.
    """
    for scene in scenes:
        if min(scene.size) < crop:
            raise ImageError(
                f"{scene.lr}: expected an input of at least {crop}x{crop} pixels, got {scene.size[1]}x{scene.size[0]}: "
                f"lower --crop to {min(scene.size)} or remove it"
            )
    taken: dict[str, list[tuple[int, int]]] = {}
    chosen = []
    for scene in _spread(scenes, count, random):
        boxes = taken.setdefault(scene.photo, [])
        boxes.append(_position(read_rgb(scene.lr), crop, boxes, random))
        chosen.append((scene, *boxes[-1]))
    sides = _sides([scene.kind for scene, _, _ in chosen], random)
    pairs = [Pair(*place, side) for place, side in zip(chosen, sides, strict=True)]
    return [pairs[index] for index in random.permutation(count)]


def content(pixels: np.ndarray) -> float:
    """Median variance of luma over squares of `WINDOW` pixels. pixels: (H, W, 3) uint8, H and W at least 1.

    It is the median so that one strong edge in an empty sky does not count as content.
    """
    luma = pixels.astype(np.float64) @ np.array(FULL_RANGE)  # (H, W)
    height, width = luma.shape
    side = min(WINDOW, height, width)
    rows, columns = height // side, width // side
    squares = luma[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return float(np.median(squares.var(axis=(1, 3))))


def _spread(scenes: Sequence[Scene], count: int, random: Generator) -> list[Scene]:
    """One scene of each kind in turn: the scene taken least often, among those the photo taken least often, else a random one."""
    kinds = sorted({scene.kind for scene in scenes})
    turn = [kinds[index] for index in random.permutation(len(kinds))]
    uses: Counter[str] = Counter()
    photos: Counter[str] = Counter()
    result = []
    for index in range(count):
        own = [scene for scene in scenes if scene.kind == turn[index % len(turn)]]
        order = random.permutation(len(own))
        scene = min((own[k] for k in order), key=lambda each: (uses[each.name], photos[each.photo]))
        uses[scene.name] += 1
        photos[scene.photo] += 1
        result.append(scene)
    return result


def _position(
    pixels: np.ndarray, crop: int, earlier: Sequence[tuple[int, int]], random: Generator
) -> tuple[int, int]:
    """(y, x) of a crop with some content."""
    height, width = pixels.shape[:2]
    places = [
        (int(random.integers(height - crop + 1)), int(random.integers(width - crop + 1)))
        for _ in range(CANDIDATES)
    ]
    amounts = [content(pixels[y : y + crop, x : x + crop]) for y, x in places]
    middle = float(np.median(amounts))
    upper = [place for place, amount in zip(places, amounts, strict=True) if amount >= middle]

    def overlap(place: tuple[int, int]) -> int:
        """Pixels shared with earlier crops."""
        return sum(max(0, crop - abs(place[0] - y)) * max(0, crop - abs(place[1] - x)) for y, x in earlier)

    # of equal ones the first, which is a random one
    return min(upper, key=overlap)


def _sides(kinds: Sequence[str], random: Generator) -> list[bool]:
    """Whether A is on the left, for each pair: in half of each kind, and in half of the odd pairs left over."""
    sides = [False] * len(kinds)
    start = bool(random.integers(2))
    for kind in sorted(set(kinds)):
        own = [index for index, each in enumerate(kinds) if each == kind]
        for rank, index in enumerate(random.permutation(own)):
            sides[index] = start ^ bool(rank % 2)
        if len(own) % 2:  # the extra pair alternates sides from one odd kind to the next
            start = not start
    return sides
