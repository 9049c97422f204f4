"""Test cards of which the truth is known, and how a model's enlargement of each is measured.

Every card is drawn at HR without aliasing and reduced `SCALE` times, so a model sees what a camera of that few pixels would. Measures
take (H, W, 3) pictures and return plain numbers; none of them knows which model made the picture.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from runtime.upscale.color import low_pass

SCALE: Final = 4
ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
COPIES, COLUMNS = (
    4,
    24,
)  # each glyph stands so often on a page of so many columns, each time beside others and at another phase
PAPER, INK = 235, 30  # levels of a page; the other way round for light on dark
PATTERN_SIDE, WALL_SIDE = (
    384,
    1152,
)  # HR pixels drawn; walls and grids have many frequencies, which a wide picture tells apart
MEASURED = 2 / 3  # of a side, in the middle
NEAR: Final = 3  # bins of the spectrum around a frequency that a Hann window fills
TEXTURE_LEVELS: Final = 3  # of the a-trous filter: what is finer than about 8 HR pixels is texture
SKIES: Final = {  # top left and bottom right of a gradient
    "noon": ((70, 130, 200), (150, 190, 235)),
    "haze": ((185, 200, 215), (225, 230, 235)),
    "dusk": ((40, 45, 90), (240, 150, 90)),
    "night": ((6, 8, 20), (25, 30, 50)),
    "overcast": ((140, 145, 150), (160, 163, 166)),
}
COLOURS: Final = {
    "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "cyan": (0, 255, 255), "magenta": (255, 0, 255),
    "yellow": (255, 255, 0), "brick": (200, 30, 30), "leaf": (30, 160, 60), "sea": (40, 60, 190), "gold": (230, 180, 40),
    "skin": (240, 200, 170), "wood": (90, 60, 40),
}  # fmt: skip
GRAYS: Final = {f"gray {level}": (level, level, level) for level in (0, 32, 64, 128, 192, 224, 255)}
PATCH: Final = 40  # LR pixels of a patch of the colour chart; its inner half is measured


@dataclass(frozen=True, eq=False)
class Page:
    """Glyphs at a fixed pitch. ink: (H, W) float64, 1 where a glyph covers the pixel. corners: row and column of each glyph's cell."""

    size: int  # HR pixels of an em
    ink: np.ndarray
    text: str
    corners: tuple[tuple[int, int], ...]
    cell: tuple[int, int]  # height, width

    def picture(self, light_on_dark: bool = False) -> np.ndarray:
        """(H, W, 3) uint8."""
        paper, ink = (INK, PAPER) if light_on_dark else (PAPER, INK)
        return _gray(paper + (ink - paper) * self.ink)


@dataclass(frozen=True, eq=False)
class Pattern:
    """A periodic picture. hr: (S, S, 3) uint8. waves: (1 or 2, 2) cycles per pixel along y and x, of which all its frequencies are
    whole multiples and their sums."""

    hr: np.ndarray
    waves: np.ndarray


def page(size: int) -> Page:
    """The alphabet four times in a shuffled order, in Pillow's own font. The pitch is odd: glyphs meet the LR grid at every phase."""
    text = "".join(np.random.default_rng(0).permutation(list(ALPHABET * COPIES)).tolist())
    cell = (int(size * 1.25) | 1, int(size * 0.78) | 1)
    rows = -(-len(text) // COLUMNS)
    height, width = (-(-length // SCALE) * SCALE for length in (rows * cell[0] + 16, COLUMNS * cell[1] + 16))
    corners = tuple((8 + k // COLUMNS * cell[0], 8 + k % COLUMNS * cell[1]) for k in range(len(text)))
    ink = np.zeros((height, width))
    for glyph, (y, x) in zip(text, corners, strict=True):
        ink[y : y + cell[0], x : x + cell[1]] = _glyph(glyph, size, cell)
    return Page(size, ink, text, corners, cell)


def read(picture: np.ndarray, card: Page, light_on_dark: bool = False) -> tuple[float, float]:
    """Share of a page's glyphs whose nearest template is the right one, and mean likeness to that one.

    Nearest by normalised correlation with each glyph of the alphabet, drawn at HR; likeness: that correlation, 1 = the same.
    """
    templates = _normalised(np.stack([_glyph(glyph, card.size, card.cell).ravel() for glyph in ALPHABET]))
    plane = picture.mean(axis=2) * (1 if light_on_dark else -1)
    cells = [plane[y : y + card.cell[0], x : x + card.cell[1]].ravel() for y, x in card.corners]
    scores = _normalised(np.stack(cells)) @ templates.T  # (glyphs, alphabet)
    truth = np.array([ALPHABET.index(glyph) for glyph in card.text])
    right = scores.argmax(axis=1) == truth
    return float(right.mean()), float(scores[np.arange(len(truth)), truth].mean())


def patterns() -> dict[str, Callable[[], Pattern]]:
    """Stripes, checks, brick walls and grids by name, each drawn when called. LR can hold their first frequencies: all periods are
    above 2 LR pixels. Sides, periods and widths in HR pixels, angles in degrees."""
    found: dict[str, Callable[[], Pattern]] = {}
    for period, angle in product((10, 11, 13, 16, 24), (0, 20, 45, 90)):
        found[f"stripes {period} at {angle}"] = partial(_stripes, period, angle)
    for period, angle in product((14, 17, 20), (0, 30, 45)):
        found[f"checks {period} at {angle}"] = partial(_checks, period, angle)
    for width, height, gap in ((26, 12, 3), (30.5, 14.3, 3), (43, 19, 3.5), (71, 31, 5)):
        found[f"bricks {width} x {height}"] = partial(_bricks, width, height, gap)
    for width, height, bar in ((13, 13, 3), (21, 17, 4)):
        found[f"grid {width} x {height}"] = partial(_grid, width, height, bar)
    return found


def foreign_peak(picture: np.ndarray, pattern: Pattern) -> tuple[bool, float]:
    """Whether the strongest frequency is one of the pattern's strongest, and the strongest that is not its own, in dB of the former."""
    power, truth, own = _power(picture), _power(pattern.hr), own_bins(pattern)
    strongest = (
        truth.flat[power.argmax()] >= truth.max() / 4
    )  # a neighbouring bin of the right one still has a quarter
    return bool(strongest), float(10 * np.log10(power[~own].max() / power.max()))


def strongest_amplitude(picture: np.ndarray) -> float:
    """Amplitude in levels of the strongest frequency."""
    side = _measured(len(picture))
    return float(np.sqrt(_power(picture).max()) * 2 / np.hanning(side).sum() ** 2)


def own_bins(pattern: Pattern) -> np.ndarray:
    """(s, s) bool: the bins of the measured spectrum that the pattern's own frequencies fill."""
    side = _measured(len(pattern.hr))
    own = np.zeros((side, side), bool)
    most = int(1 / np.abs(pattern.waves).max(axis=1).min()) + 1
    steps = np.arange(-most, most + 1)
    counts = np.stack(np.meshgrid(*[steps] * len(pattern.waves)), axis=-1).reshape(-1, len(pattern.waves))
    frequencies = counts @ pattern.waves
    inside = np.abs(frequencies).max(axis=1) <= 0.5
    offsets = np.mgrid[-NEAR : NEAR + 1, -NEAR : NEAR + 1].reshape(2, -1).T
    bins = np.rint(frequencies[inside] * side).astype(int)[:, None] + offsets  # (N, 49, 2)
    own[bins[..., 0] % side, bins[..., 1] % side] = True
    return own


def sky(name: str, sigma: float = 0.0, side: int = 64) -> np.ndarray:
    """(side, side, 3) float32 in [0, 1] LR gradient in whole levels of 1/255, as a photo has them. sigma: of noise, in levels."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    first, last = (np.array(colour, float) for colour in SKIES[name])
    levels = first + (last - first) * (0.7 * y + 0.3 * x)[..., None]
    noise = sigma * np.random.default_rng(0).normal(size=levels.shape)
    return (np.clip(np.rint(levels + noise), 0, 255) / 255).astype(np.float32)


def texture(picture: np.ndarray) -> float:
    """Root mean square of what is finer than about 8 pixels, in levels of 1/255. picture: float32 in [0, 1], or a difference of two."""
    planes = [np.ascontiguousarray(plane, np.float32) for plane in np.moveaxis(picture, 2, 0)]
    return 255 * rms(np.stack([plane - low_pass(plane, levels=TEXTURE_LEVELS) for plane in planes]))


def chart() -> np.ndarray:
    """(h, w, 3) uint8 LR: `COLOURS` and `GRAYS` in one row of patches each."""
    rows = [list(COLOURS.values()), [*GRAYS.values(), *[(128, 128, 128)] * (len(COLOURS) - len(GRAYS))]]
    return np.array(rows, np.uint8).repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def patch_shifts(sr: np.ndarray) -> dict[str, np.ndarray]:
    """Mean of each patch of the enlarged chart minus its colour: (3,) in levels."""
    side, found = PATCH * SCALE, {}
    for row, names in enumerate((COLOURS, GRAYS)):
        for column, (name, colour) in enumerate(names.items()):
            y, x = row * side + side // 4, column * side + side // 4
            found[name] = sr[y : y + side // 2, x : x + side // 2].mean(axis=(0, 1)) - colour
    return found


def tint(picture: np.ndarray) -> float:
    """How coloured a picture is that should be gray: root mean square of each channel's distance from their mean, in levels."""
    return rms(picture - picture.mean(axis=2, keepdims=True))


def middle(path: Path, side: int) -> np.ndarray:
    """The middle of a photo, at most side x side and a multiple of `SCALE`, (h, w, 3) uint8."""
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    height, width = (min(length, side) // SCALE * SCALE for length in pixels.shape[:2])
    y, x = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[y : y + height, x : x + width]


def reduced(
    hr: np.ndarray, jpeg: int | None = None, filter: Image.Resampling = Image.Resampling.BOX
) -> np.ndarray:
    """(H, W, 3) uint8 -> (H / 4, W / 4, 3) uint8, antialiased. jpeg: quality, None = not compressed."""
    image = Image.fromarray(hr).resize((hr.shape[1] // SCALE, hr.shape[0] // SCALE), filter)
    if jpeg is not None:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=jpeg)
        image = Image.open(file)
    return np.array(image)


def enlarged(lr: np.ndarray) -> np.ndarray:
    """(h, w, 3) float32 -> (4h, 4w, 3) float32, bicubic without rounding."""
    size = (lr.shape[1] * SCALE, lr.shape[0] * SCALE)
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(lr, 2, 0)]
    return np.stack([np.array(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], axis=2)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _stripes(period: float, angle: float) -> Pattern:
    wave = _wave(period, angle)
    return Pattern(_gray(127.5 + 102 * _cosine(wave)), wave[None])


def _checks(period: float, angle: float) -> Pattern:
    first, second = _wave(period, angle), _wave(period, angle + 90)
    plane = _gray(127.5 + 102 * _cosine(first) * _cosine(second))
    return Pattern(plane, np.stack([first + second, first - second]))


def _bricks(width: float, height: float, gap: float) -> Pattern:
    """Running bond: every other row is moved by half a brick."""
    y, x = _fine()
    mortar = ((x + np.floor(y / height) % 2 * width / 2) % width < gap) | (y % height < gap)
    waves = np.array([[0.5 / height, 1 / width], [0.5 / height, -1 / width]])
    return Pattern(_gray(102 + 102 * _coarse(mortar)), waves)


def _grid(width: float, height: float, bar: float) -> Pattern:
    y, x = _fine()
    bars = (x % width < bar) | (y % height < bar)
    waves = np.array([[1 / height, 0], [0, 1 / width]])
    return Pattern(_gray(191 - 140 * _coarse(bars)), waves)


def _wave(period: float, angle: float) -> np.ndarray:
    return np.array([np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))]) / period


def _cosine(wave: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:PATTERN_SIDE, :PATTERN_SIDE]
    return np.asarray(np.cos(2 * np.pi * (wave[0] * y + wave[1] * x)))


def _fine() -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 1) and columns (1, N) in HR pixels of four by four points in each pixel of a wall."""
    line = (np.arange(4 * WALL_SIDE) + 0.5) / 4
    return line[:, None], line[None]


def _coarse(points: np.ndarray) -> np.ndarray:
    """The share of each pixel's points that are True."""
    return points.reshape(WALL_SIDE, 4, WALL_SIDE, 4).mean(axis=(1, 3))


def _measured(side: int) -> int:
    return round(side * MEASURED)


def _power(picture: np.ndarray) -> np.ndarray:
    """Power spectrum of the middle under a Hann window, its mean removed."""
    side = _measured(len(picture))
    edge = (len(picture) - side) // 2
    plane = picture.mean(axis=2)[edge : edge + side, edge : edge + side]
    hann = np.hanning(side)
    return np.asarray(np.abs(np.fft.fft2((plane - plane.mean()) * np.outer(hann, hann))) ** 2)


def _glyph(glyph: str, size: int, cell: tuple[int, int]) -> np.ndarray:
    """(height, width) in [0, 1], the glyph in the middle of its cell on one baseline."""
    image = Image.new("L", (cell[1], cell[0]))
    place = (cell[1] / 2, cell[0] * 0.72)
    ImageDraw.Draw(image).text(place, glyph, fill=255, font=ImageFont.load_default(size=size), anchor="ms")
    return np.asarray(image, np.float64) / 255


def _normalised(rows: np.ndarray) -> np.ndarray:
    """Each row with zero mean and unit length; a flat one stays zero."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))


def _gray(plane: np.ndarray) -> np.ndarray:
    """(H, W) levels -> (H, W, 3) uint8."""
    return np.rint(plane).astype(np.uint8)[..., None].repeat(3, axis=2)
