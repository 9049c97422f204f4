"""The model that ships invents no nonsense: text, patterns, skies, sharp photos, colours and seeds, each judged by a measurement.

`pytest -s tests/test_shipped_model.py` prints every figure beside its limit. The limits are what a user needs; the worst figure of
bundle `KNOWN` stands beside each. For any other bundle all cases run, for that one a part of them: after a
change of how bundles are run, `PYTEST_ARGS=` runs all.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import cards
import edges
import numpy as np
import pytest
from PIL import Image

from calibration.measure.methods import bicubic
from calibration.measure.pairs import Pair, find_pairs, read_rgb
from calibration.studies.ranking import best_gain, measure
from runtime.bundle.reader import Bundle
from runtime.upscale.probe import psnr_db
from runtime.upscale.upscaler import Upscaler
from training.metrics.artefacts import colour_shift

# Digest of the bundle that has passed all cases: another one's maker runs them all, reads the figures and writes its digest here.
KNOWN: Final = "7abe0f92926bb012"
PRECISIONS: Final = ("int8", "fp32")
SHARP_PHOTOS: Final = (
    "astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "camera", "hubble_deep_field",
)  # fmt: skip
GRAY_PHOTOS: Final = ("camera", "coins", "moon", "page")
REALSR_PHOTOS: Final = tuple(range(0, 100, 10))
CROP: Final = 48  # LR pixels
TEXT_SIZES: Final = (5, 6, 7, 8, 10)  # LR pixels of an em: bicubic reads 0.77 of the first, all of the last

# Limits; in brackets the worst figure of INT8.
TEXT_LOSS: Final = 0.06  # share of glyphs to be read by bicubic and not by the model (none)
FOREIGN_DB: Final = -15.0  # a frequency not the pattern's own, to the pattern's: a fifth of its amplitude
FOREIGN_GAIN_DB: Final = 3.0  # or, where bicubic lets through more than that, at most so much above bicubic
WOBBLE: Final = 0.2  # HR pixels; RMS, of a straight edge, clean (0.16)
WOBBLE_JPEG: Final = 0.5  # the same, JPEG 60 (0.45)
TEXTURE: Final = 0.8  # levels, below the finest step of an 8-bit picture (0.61)
SEEDS_APART: Final = 1.1  # levels between two seeds of a sky: two such textures with nothing in common (0.60)
KEPT_DB: Final = (
    31.5  # reduced again, a sharp photo is as it was: RMS of 6.8 levels; faint stars go with the noise (31.7)
)
CLEAN_LOSS_DB: Final = 1.5  # PSNR that sharpness may cost; OSEDiff pays 2.0 dB on RealSR (1.31)
SHIFT: Final = 0.8  # levels (0.56)
GRAY_TINT: Final = 2.0  # levels; colour in a gray photo (0.73)
PATTERN_TINT: Final = 4.0  # levels; colour in a gray pattern of up to 204 levels of contrast (1.1)
WORTH: Final = 0.002  # SQF that the best of 8 samples wins over the mean one (0.0022; of four pairs 0.0056)
LOW_PASS_APART: Final = 1.0  # levels between two samples, coarser than about 8 pixels (0.47)


@dataclass(frozen=True)
class Figure:
    """A measured value and the limits it must keep."""

    name: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def held(self) -> bool:
        return self.low <= self.value <= self.high  # not so for NaN

    def __str__(self) -> str:
        limits = [
            f"{word} {limit:g}"
            for word, limit in (("at least", self.low), ("at most", self.high))
            if math.isfinite(limit)
        ]
        return f"{self.name}: {self.value:.4f}, expected {' and '.join(limits)}{'' if self.held else '  <-- BROKEN'}"


def check(figures: Iterable[Figure]) -> None:
    """Prints all figures, then fails with those beyond their limits."""
    figures = list(figures)
    print("", *figures, sep="\n  ")
    broken = [str(figure) for figure in figures if not figure.held]
    assert not broken, "; ".join(broken)


def cases(*names: object, precisions: tuple[str, ...] = PRECISIONS) -> pytest.MarkDecorator:
    """The test once for each precision and name. Of a known bundle all but every third name in INT8, the default on a CPU, are slow."""
    known = Bundle.open(None).digest == KNOWN
    return pytest.mark.parametrize(
        ("precision", "name"),
        [
            pytest.param(
                precision,
                name,
                id=f"{name} {precision}",
                marks=[pytest.mark.slow] if known and (precision != "int8" or index % 3) else [],
            )
            for precision in precisions
            for index, name in enumerate(names)
        ],
    )


@pytest.fixture(scope="module")
def upscaler() -> Callable[[str], Upscaler]:
    """upscaler("int8"): the built-in bundle on the CPU."""
    return cache(lambda precision: Upscaler(device="cpu", precision=precision))


@pytest.fixture(scope="module")
def photo() -> Callable[[str, int], np.ndarray]:
    """photo("coffee", side): the middle of one of scikit-image's photographs."""
    skimage = pytest.importorskip(
        "skimage", reason="needs the extra `demo`, whose scikit-image holds the photos"
    )
    folder = Path(skimage.__file__).parent / "data"

    def find(name: str, side: int) -> np.ndarray:
        paths = sorted(folder.glob(f"{name}.*"))
        if not paths:
            pytest.skip(f"needs {name} inside scikit-image, which this release has not")
        return cards.middle(paths[0], side)

    return find


@pytest.fixture(scope="module")
def realsr(shared_data: Callable[[str], Path]) -> list[Pair]:
    return find_pairs(shared_data("realsr/LR"), shared_data("realsr/HR"))


@cases(*(f"{size} px, {ink}" for size in TEXT_SIZES for ink in ("dark on light", "light on dark")))
def test_text_stays_readable(upscaler: Callable[[str], Upscaler], precision: str, name: str) -> None:
    """A reader who compares shapes finds no fewer letters than in a bicubic enlargement, and no less true ones. Means of 4 samples."""
    card, light = cards.page(int(name.split()[0]) * cards.SCALE), name.endswith("light on dark")
    hr, figures = card.picture(light), []
    assert cards.read(hr, card, light)[0] == 1.0, "the reader reads the original"
    for jpeg in (None, 90):
        lr = cards.reduced(hr, jpeg, Image.Resampling.BICUBIC)
        share, likeness = np.mean(
            [cards.read(sr, card, light) for sr in upscaler(precision).up(lr, samples=4)], axis=0
        )
        plain, plain_likeness = cards.read(bicubic(lr, cards.SCALE), card, light)
        where = f"{name}, {precision}, {'clean' if jpeg is None else f'JPEG {jpeg}'}"
        figures += [
            Figure(f"{where}: share read (bicubic {plain:.3f})", share, low=plain - TEXT_LOSS),
            Figure(f"{where}: likeness", likeness, low=plain_likeness),
        ]
    check(figures)


@cases(*cards.patterns())
def test_patterns_keep_their_frequency(
    upscaler: Callable[[str], Upscaler], precision: str, name: str
) -> None:
    pattern = cards.patterns()[name]()
    lr = cards.reduced(pattern.hr, filter=Image.Resampling.BICUBIC)
    own, foreign = cards.foreign_peak(upscaler(precision).up(lr)[0], pattern)
    _, plain = cards.foreign_peak(bicubic(lr, cards.SCALE), pattern)
    limit = max(FOREIGN_DB, plain + FOREIGN_GAIN_DB)
    check([Figure(f"{name}, {precision}: foreign peak, dB (bicubic {plain:.1f})", foreign, high=limit)])
    assert own, "the strongest frequency is the pattern's"


@pytest.mark.parametrize("name", cards.patterns())
def test_a_foreign_peak_is_seen(name: str) -> None:
    """The measure itself: a second wave is seen at its strength, one that is stronger takes the lead, and most frequencies are open to
    such waves: they would be found."""
    pattern = cards.patterns()[name]()
    own = cards.own_bins(pattern)
    assert own.mean() < 0.2
    rough = name in (
        "bricks 30.5 x 14.3",
        "bricks 43 x 19",
        "bricks 71 x 31",
    )  # their edges lie between the points drawn
    assert cards.foreign_peak(pattern.hr, pattern)[1] < (FOREIGN_DB - 3 if rough else -40)
    side, size = len(own), len(pattern.hr)
    free = np.argwhere(~own[: side // 4, : side // 4])  # half of LR's band
    row, column = free[len(free) // 2] / side
    y, x = np.ogrid[:size, :size]
    wave = np.cos(2 * np.pi * (row * y + column * x))[..., None]
    strongest = cards.strongest_amplitude(pattern.hr)
    share = 0.3 if rough else 0.1
    seen, level = cards.foreign_peak(pattern.hr + share * strongest * wave, pattern)
    assert seen
    assert level == pytest.approx(20 * np.log10(share), abs=1)
    assert not cards.foreign_peak(pattern.hr + 3 * strongest * wave, pattern)[0]


@cases(*edges.EDGES)
def test_straight_edges_stay_straight(upscaler: Callable[[str], Upscaler], precision: str, name: str) -> None:
    hr, figures = edges.edge(name), []
    for jpeg, limit in ((None, WOBBLE), (60, WOBBLE_JPEG)):
        lr = cards.reduced(hr, jpeg)
        plain, found = (
            edges.wobble(sr, name) for sr in (bicubic(lr, cards.SCALE), upscaler(precision).up(lr)[0])
        )
        where = f"{name}, {precision}, {'clean' if jpeg is None else f'JPEG {jpeg}'}"
        figures.append(Figure(f"{where}: wobble, HR pixels (bicubic {plain:.3f})", found, high=limit))
    check(figures)


@cases(*cards.SKIES)
def test_a_sky_gets_no_texture(upscaler: Callable[[str], Upscaler], precision: str, name: str) -> None:
    """Neither a clean gradient nor one with the slight noise of a camera, and no seed gives another sky."""
    figures = []
    for sigma in (0.0, 1.0):
        lr = cards.sky(name, sigma)
        first, second = (upscaler(precision).up(lr, seed=seed)[0] for seed in (0, 1))
        where = f"{name}, {precision}, noise of {sigma:g} levels"
        figures += [
            Figure(f"{where}: texture", cards.texture(first - cards.enlarged(lr)), high=TEXTURE),
            Figure(f"{where}: between two seeds", 255 * cards.rms(first - second), high=SEEDS_APART),
        ]
    check(figures)


@cases(*SHARP_PHOTOS)
def test_a_sharp_photo_is_not_harmed(
    upscaler: Callable[[str], Upscaler], photo: Callable[[str, int], np.ndarray], precision: str, name: str
) -> None:
    """Given as it is and reduced again it is the same; reduced first, it comes back about as near to the original as by bicubic."""
    sharp, hr = photo(name, 128), photo(name, 384)
    lr = cards.reduced(hr)
    kept = psnr_db(cards.reduced(upscaler(precision).up(sharp)[0]), sharp)
    plain = psnr_db(bicubic(lr, cards.SCALE), hr)
    clean = psnr_db(upscaler(precision).up(lr)[0], hr)
    check(
        [
            Figure(f"{name}, {precision}: enlarged and reduced again, dB", kept, low=KEPT_DB),
            Figure(
                f"{name}, {precision}: to HR, dB over bicubic's {plain:.2f}",
                clean - plain,
                low=-CLEAN_LOSS_DB,
            ),
        ]
    )


@cases(*SHARP_PHOTOS, *GRAY_PHOTOS[1:])
def test_photos_keep_their_colour(
    upscaler: Callable[[str], Upscaler], photo: Callable[[str, int], np.ndarray], precision: str, name: str
) -> None:
    figures = []
    for kind, lr in (("as it is", photo(name, 128)), ("reduced", cards.reduced(photo(name, 384)))):
        shift = colour_shift(upscaler(precision).up(lr)[0], bicubic(lr, cards.SCALE))
        figures.append(
            Figure(f"{name}, {precision}, {kind}: largest shift", max(map(abs, shift)), high=SHIFT)
        )
    check(figures)


@cases("colours", "grays")
def test_flat_colours_stay(upscaler: Callable[[str], Upscaler], precision: str, name: str) -> None:
    shifts = cards.patch_shifts(upscaler(precision).up(cards.chart())[0])
    patches = cards.COLOURS if name == "colours" else cards.GRAYS
    check(
        Figure(f"{patch}, {precision}: largest shift", float(np.abs(shifts[patch]).max()), high=SHIFT)
        for patch in patches
    )


@cases(*GRAY_PHOTOS)
def test_a_gray_photo_gets_no_colour(
    upscaler: Callable[[str], Upscaler], photo: Callable[[str, int], np.ndarray], precision: str, name: str
) -> None:
    """Stored as RGB, as cameras store black and white."""
    value = cards.tint(upscaler(precision).up(photo(name, 128))[0])
    check([Figure(f"{name}, {precision}: tint", value, high=GRAY_TINT)])


@cases("stripes", "checks", "bricks", "grid", precisions=("int8",))
def test_gray_patterns_get_no_colour(upscaler: Callable[[str], Upscaler], precision: str, name: str) -> None:
    figures = []
    for kind, draw in cards.patterns().items():
        if kind.startswith(name):
            lr = cards.reduced(draw().hr, filter=Image.Resampling.BICUBIC)
            value = cards.tint(upscaler(precision).up(lr)[0])
            figures.append(Figure(f"{kind}, {precision}: tint", value, high=PATTERN_TINT))
    check(figures)


@cases(*REALSR_PHOTOS, precisions=("int8",))
def test_realsr_keeps_its_colour(
    upscaler: Callable[[str], Upscaler], realsr: list[Pair], precision: str, name: int
) -> None:
    pair = realsr[name]
    lr = read_rgb(pair.lr)
    shift = colour_shift(upscaler(precision).up(lr)[0], bicubic(lr, cards.SCALE))
    check([Figure(f"{pair.name}, {precision}: largest shift", max(map(abs, shift)), high=SHIFT)])


def test_seeds_are_worth_having(
    upscaler: Callable[[str], Upscaler],
    realsr: list[Pair],
    shared_data: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """On the middle of every twenty-fifth RealSR pair, 48x48 LR pixels."""
    pairs = [_middle_of(pair, tmp_path) for pair in realsr[::25]]
    check(_worth(upscaler("int8"), pairs, shared_data("peers/squeezenet1_1.safetensors")))


@pytest.mark.slow
def test_seeds_are_worth_having_on_whole_photos(
    upscaler: Callable[[str], Upscaler], realsr: list[Pair], shared_data: Callable[[str], Path]
) -> None:
    """On every fifth RealSR pair."""
    check(_worth(upscaler("int8"), realsr[::5], shared_data("peers/squeezenet1_1.safetensors")))


def _middle_of(pair: Pair, folder: Path) -> Pair:
    """A pair of the middles of both photos, written as PNG files."""
    lr, hr = (folder / f"{pair.name}-{kind}.png" for kind in ("lr", "hr"))
    Image.fromarray(cards.middle(pair.lr, CROP)).save(lr)
    Image.fromarray(cards.middle(pair.hr, CROP * cards.SCALE)).save(hr)
    return Pair(pair.name, lr, hr)


def _worth(upscaler: Upscaler, pairs: list[Pair], weights: Path) -> list[Figure]:
    """What the best of 8 samples wins over the mean one by SQF, and how far samples differ in what is no detail."""
    pytest.importorskip("torch", reason="needs the extra `export`")
    pytest.importorskip("safetensors", reason="needs the extra `export`")
    measured = measure(upscaler, pairs, weights, candidates={})
    gain, low = float(best_gain(measured).mean()), float(measured.low.max())
    return [
        Figure(
            f"{len(pairs)} pairs: SQF gained by the best of 8 (mean sample {measured.sqf.mean():.4f})",
            gain,
            low=WORTH,
        ),
        Figure(f"{len(pairs)} pairs: two samples after a low-pass, worst picture", low, high=LOW_PASS_APART),
    ]
