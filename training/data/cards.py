"""Training pictures besides plain photos: drawn cards (text, patterns, shapes in any colour), and recoloured or gray photos.

A student trained on plain photos alone tints black and white print and shifts saturated colours. Every choice is drawn from
the `numpy.random.Generator` that is passed in."""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.metrics.luma import FULL_RANGE

# A card is drawn larger by this factor and reduced, so that its edges are smooth.
FINE = 2
# Smallest em in HR pixels. Text that LR cannot hold would teach the model to invent letters.
SMALLEST_TEXT = 20
LETTERS = string.ascii_letters + string.digits + ".,:;-+/()%&!?"


@dataclass(frozen=True)
class Variety:
    """Shares of the training pictures that are not plain photos."""

    cards: float = 0.0
    """Share of drawn cards, 0 to 1."""
    shapes: float = 0.0
    """Share of these cards, 0 to 1, that are `draw_shapes` instead of print and patterns."""
    recolour: float = 0.0
    """Share of the photos, 0 to 1, that become gray or get other colours."""

    def __post_init__(self) -> None:
        shares = {"graphics_share": self.cards, "shapes": self.shapes, "recolour_share": self.recolour}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {share}")


def draw_card(rng: np.random.Generator, size: int, shapes: float = 0.0) -> np.ndarray:
    """A random card, (size, size, 3) uint8: lines of text or a pattern, in grays or two random colours, on a plain or graded ground.

    shapes: probability, 0 to 1, that it is `draw_shapes` instead."""
    if shapes > 0 and rng.random() < shapes:
        return draw_shapes(rng, size)
    paper, ink = _colours(rng)
    kind = rng.choice(
        ["text", "stripes", "checks", "bricks", "rings", "strokes"], p=[0.5, 0.15, 0.1, 0.15, 0.03, 0.07]
    )
    if kind == "text":
        coverage = _text(rng, size)
    elif kind == "strokes":
        coverage = _strokes(rng, size)
    else:
        coverage = _pattern(rng, size, str(kind))
    ground = paper + (_ramp(rng, size, gray=bool(np.ptp(paper) == 0)) if rng.random() < 0.3 else 0.0)
    mixed = ground + coverage[..., None] * (ink - ground)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def draw_shapes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Half planes, bands, discs and rings in gray or in random colours, (size, size, 3) uint8: long edges, straight and round.

    Their coverage is computed from the distance to the edge. Drawn on a fine grid and reduced, as cards are, a slightly sloping edge
    has steps, and a model taught by it wavering ones."""
    paper, _ = _colours(rng)
    gray = bool(np.ptp(paper) == 0)
    picture = np.broadcast_to(paper, (size, size, 3))
    if rng.random() < 0.3:
        picture = picture + _ramp(rng, size, gray=gray)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for _ in range(int(rng.integers(2, 9))):
        left, top = rng.uniform(0.1, 0.9, 2) * size
        if rng.random() < 0.3:
            distance = np.hypot(x - left, y - top) - rng.uniform(0.05, 1) * size
        else:  # half of the edges are nearly upright or level, which is hardest
            angle = (
                rng.uniform(0, np.pi)
                if rng.random() < 0.5
                else rng.integers(2) * np.pi / 2 + rng.normal(0, 0.12)
            )
            distance = (x - left) * np.sin(angle) - (y - top) * np.cos(angle)
        if rng.random() < 0.4:
            distance = np.abs(distance) - np.exp(rng.uniform(np.log(0.7), np.log(16)))
        wide = np.exp(rng.uniform(0, np.log(2 if rng.random() < 0.85 else 10)))  # width of the edge in pixels
        contrast = rng.choice([-1, 1]) * np.exp(rng.uniform(np.log(12), np.log(160)))
        colour = picture[int(top), int(left)] + contrast + (0.0 if gray else rng.normal(0, 25, 3))
        if rng.random() < 0.3:
            colour = colour + _ramp(rng, size, gray=gray)
        coverage = np.clip(0.5 - distance / wide, 0, 1)[..., None]
        picture = picture + coverage * (np.clip(colour, 0, 255) - picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def recoloured(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(h, w, 3) uint8 -> the same in gray, with permuted channels, or more saturated."""
    choice = rng.random()
    if choice < 0.4:
        gray = picture @ np.array(FULL_RANGE)
        return np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)
    if choice < 0.7:
        return np.ascontiguousarray(picture[..., rng.permutation(3)])
    mean = picture.mean(axis=2, keepdims=True)
    return np.clip(np.rint(mean + rng.uniform(1.2, 2.5) * (picture - mean)), 0, 255).astype(np.uint8)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours of ground and ink, float64 (3,), clearly different: half of them grays, half arbitrary."""
    gray = rng.random() < 0.5
    while True:
        pair = rng.uniform(0, 255, (2, 1)).repeat(3, axis=1) if gray else rng.uniform(0, 255, (2, 3))
        if np.abs(pair[0] - pair[1]).max() > 60:
            return pair[0], pair[1]


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text(rng: np.random.Generator, size: int) -> np.ndarray:
    """Lines of random letters in one size, slightly rotated or not."""
    side = 2 * FINE * size  # room to turn
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    # mostly small ones, which are harder
    em = int(FINE * SMALLEST_TEXT * (64 / SMALLEST_TEXT) ** (rng.uniform() ** 2))
    step = round(em * rng.uniform(1.0, 1.6))
    for top in range(0, side, step):
        letters = rng.choice(list(LETTERS + 12 * " "), size=4 * side // em)
        draw.text((-int(rng.integers(em)), top), "".join(letters), fill=255, font=_font(em))
    if rng.random() < 0.5:
        image = image.rotate(rng.uniform(-30, 30), Image.Resampling.BICUBIC)
    start = (side - FINE * size) // 2
    return _reduced(image.crop((start, start, start + FINE * size, start + FINE * size)), size)


def _pattern(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    y, x = np.mgrid[: FINE * size, : FINE * size].astype(np.float32)
    period = FINE * np.exp(rng.uniform(np.log(5), np.log(48)))
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 1, 2)
    if rng.random() < 0.3:
        angle = round(2 * angle / np.pi) * np.pi / 2  # upright, as in most buildings
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    duty = rng.uniform(0.2, 0.8)
    if kind == "rings":
        centre = rng.uniform(0, FINE * size, 2)
        along = np.hypot(x - centre[0], y - centre[1])
    if kind == "bricks":
        courses = along / period + phase[0]
        joints = (across / (period * rng.uniform(1.5, 3)) + phase[1] + 0.5 * (np.floor(courses) % 2)) % 1
        narrow = rng.uniform(0.08, 0.3)
        on = (courses % 1 < narrow) | (joints < narrow / 2)
    elif rng.random() < 0.3:  # a wave instead of hard edges
        wave = np.cos(2 * np.pi * (along / period + phase[0]))
        if kind == "checks":
            wave = wave * np.cos(2 * np.pi * (across / period + phase[1]))
        return _reduced(Image.fromarray(np.uint8(127.5 + 127.5 * wave)), size)
    else:
        on = (along / period + phase[0]) % 1 < duty
        if kind == "checks":
            other = (across / (period * rng.uniform(1, 3)) + phase[1]) % 1 < duty
            on = on ^ other if rng.random() < 0.5 else on | other
    return _reduced(Image.fromarray(255 * on.astype(np.uint8)), size)


def _strokes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Straight lines and ellipses of random widths, as in drawings and signs."""
    image = Image.new("L", (FINE * size, FINE * size))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 24))):
        x0, x1, y0, y1 = np.sort(rng.uniform(-0.2, 1.2, (2, 2)) * FINE * size, axis=1).ravel().tolist()
        width = int(FINE * rng.uniform(1, 8))
        if rng.random() < 0.6:
            ends = (x0, y0, x1, y1) if rng.random() < 0.5 else (x0, y1, x1, y0)
            draw.line(ends, fill=255, width=width)
        else:
            draw.ellipse((x0, y0, x1 + 1, y1 + 1), outline=255, width=width)
    return _reduced(image, size)


def _reduced(image: Image.Image, size: int) -> np.ndarray:
    """(size, size) float64 in [0, 1]."""
    return np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float64) / 255


def _ramp(rng: np.random.Generator, size: int, *, gray: bool) -> np.ndarray:
    """A linear gradient of up to 60 levels from edge to edge, (size, size, 3). gray: the same in all channels."""
    place = np.linspace(-0.5, 0.5, size)
    slope = rng.uniform(-60, 60, (2, 1)).repeat(3, axis=1) if gray else rng.uniform(-60, 60, (2, 3))
    return np.asarray(place[:, None, None] * slope[0] + place[None, :, None] * slope[1])
