"""The content of the gallery: open pictures, crops of them, and verdicts by a person who looked at the results.

The photographs are read from two installed packages and never downloaded. The test card is drawn here, so its letters are known.
After a new model: run `make gallery`, look at the pictures, then rewrite `JUDGED`, `FAILURES` and `VERDICTS`.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gdposr.console import UsageError

# Digest of the bundle that was judged. The page has no verdicts if another bundle made its pictures.
JUDGED: Final = "7abe0f92926bb012"
# Subjects under "Where it fails".
FAILURES: Final = ("face", "leaves", "building", "lights", "small-print", "fur", "petals", "grass")
# What somebody who looked at the pictures of JUDGED wrote, by subject.
VERDICTS: Final[dict[str, str]] = {
    "face":
        "The smile and the shape of the head are there, but she is hardly the same person: the eyes are dark slots, the teeth a pale "
        "sliver under a dark line, hard creases run across a cheek and down the nose, and the hair is a smooth cap with a dark rim. "
        "PSNR is 2.1 dB below bicubic's. The peer has the same faults with blacker edges but no crease down the nose; by SQF it is "
        "nearest.",
    "handwriting":
        "By both figures ours is nearest: most strokes and the ruled lines are sharp and about as dark as they were, PSNR is 2.3 dB "
        "above bicubic's. The open loop is filled, crosses lose an arm, and the two dashes at the top are joined into a flat loop "
        "with a tail that was never there. The peer is crisper but too black, with the same loop lost; neither has the paper's grain.",
    "print":
        "From 56 to 32 pixels the letters are crisp and right but for the a of Wax, which is smeared; the paper is nearly even where "
        "the peer's is white with pink halos. At 24 and 20 strokes break and the S of Sphinx is like a 5, though most words can be "
        "read; in the last line a, e, s, 3, 8, B and 6 are blots. Ours leads by PSNR; by SQF the peer, though it makes up the small "
        "letters.",
    "leaves":
        "Ours turns the tree into dark rags with white holes, like paper burnt through, and the bushes into crumpled cloth with pale "
        "wrinkles; SQF is the worst of the three, PSNR 0.2 dB below bicubic's. The peer's bushes are more believable, its tree a "
        "black net. Neither has leaves or twigs; of the boats ours keeps faint specks.",
    "cloth":
        "By both figures ours is nearest, PSNR 0.4 dB above bicubic's: straps and rims are clean, with truer colour than the peer's, "
        "but some folds are drawn as hard dark lines. The badge is violet as it was, but its ring of letters becomes a pale band and "
        "its shapes a blot, harder and bluer in the peer's; letters, seams and the weave are lost in all.",
    "building":
        "Eaves and roof edges are dark and firm, but posts waver and melt into the windows; under the top roof all is one black mass, "
        "the brackets below are a garland, the lattice windows dark hollows or pale streaks, the railings a red blur, and the rows of "
        "tiles are gone, as in the peer's. By SQF ours is between bicubic and the peer; PSNR is 1.4 dB below bicubic's and hardly "
        "above the peer's, whose lines are straighter.",
    "wall":
        "By both figures ours is by far the nearest, PSNR 4.0 dB above bicubic's: joints gray, sharp and about as wide as they were, "
        "where the peer paints them thin and white. The long ones are slightly bent, and faint streaks lie on the bricks. The rough "
        "edge of the joints is mostly lost in both.",
    "lights":
        "Both masts lose their lattice: the left one keeps a thick, slightly wavy black rail and smears, the far one a post with some "
        "rungs and a wavy edge. The sky is clean but for a faint rim along the mast; the lamps are swollen, with short rays or none. "
        "By both figures the peer is nearer, its masts are straighter and finer; PSNR is the worst of the three, 1.75 dB below "
        "bicubic's.",
    "stars":
        "Firm points on a clean black, but some run together into hooks and arcs, one is a small gray wedge, the red one is a flat "
        "slab, and most of the faint points and nearly all the blue are gone. By both figures the peer is nearer, with much the same "
        "faults but redder reds. Ours is 0.1 dB above bicubic by PSNR and little nearer by SQF.",
    "small-print":
        "The first line can just be read, of the next two most words with effort, of the fourth a few; the last three are ragged "
        "bars. PSNR is 0.2 dB below bicubic's, which is blurred but no harder to read. The peer invents bold black shapes throughout, "
        "which are nearer by SQF but no longer read as text.",
    "fur":
        "Eyes and nose are sharp, but the eyes get black rims and a dark smudge above the pupil, and the hair is wiped off: the face "
        "is like painted clay, with thin cracks on brow and cheek, black bars for stripes and dark dashes where whiskers were. By "
        "both figures ours is the worst of the three, PSNR 2.0 dB below bicubic's. The peer is nearly as smooth, with some strands "
        "and whiskers.",
    "petals":
        "The outer petals are clean and rounded, but the upper ones run together into one orange slope, and the heart is a red blot "
        "with some dark hollows around it and none of its rolled petals. By both figures the peer is nearer: crisper petals and more "
        "of the hollows. PSNR is 0.7 dB below bicubic's, which shows more of the heart.",
    "grass":
        "By SQF ours is the last of the three, and PSNR is 0.3 dB below bicubic's: it draws smooth scraps like torn leaves or "
        "crumpled foil where there are blades; only the larger leaves and a few stalks are in place. The peer, barely further off by "
        "PSNR, draws bluish bark full of holes.",
    "gravel":
        "By SQF ours is nearest, but PSNR is 0.2 dB below bicubic's: most stones have one outline and the right gray, but are smooth "
        "and rounded like pebbles where they were angular, without faces or veins, and some run together. The peer, furthest off by "
        "PSNR, draws cracked mud, tinted blue, with deep black cracks.",
}  # fmt: skip

# Side of a crop in HR pixels, 72 in LR: three crops side by side fit a page pixel by pixel.
CROP: Final = 288
# Height and width of the test card in HR pixels, and its lines: font size and text.
CARD: Final = (576, 288)
CARD_LINES: Final = ((56, "Harbour"), (40, "Quay 1874"), (32, "Fjord & Wax"), (24, "Sphinx, 30 % off?"),
                     (20, "Black quartz: judge my vow"), (18, "a e o c s 3 8 B 6 0 D O Q"))  # fmt: skip
# Lines of its lower half, one below the other in small print: font size and text.
SMALL_LINES: Final = (
    (16, "The lamp is lit at half past six"), (14, "and put out when the last boat is in."),
    (13, "Boats longer than 12 m pay 40 a day,"), (12, "those of 8 to 12 m 25; oars go free."),
    (11, "Nets may dry on the north wall until noon."), (10, "Ask for the key at number 36, second floor,"),
    (9, "or ring twice and wait for the keeper's dog."),
)  # fmt: skip

# Package -> how to get it.
INSTALL: Final = {
    "skimage": 'scikit-image: pip install "gdposr[demo]"',
    "sklearn": 'scikit-learn: pip install scikit-learn, or "gdposr[export]", which brings it',
}


@dataclass(frozen=True)
class Source:
    """An open picture."""

    credit: str
    """Author and licence."""
    path: str | None = None
    """Path below the installed packages, beginning with the package; None: the test card."""


# The open pictures that crops are taken from.
ASTRONAUT = Source("Eileen Collins, NASA, public domain", "skimage/data/astronaut.png")
BRICK = Source("CC0Textures, Bricks25, CC0", "skimage/data/brick.png")
CAT = Source("Chelsea, Stefan van der Walt, CC0", "skimage/data/chelsea.png")
GRASS = Source("linolafett, CC0", "skimage/data/grass.png")
GRAVEL = Source("CC0Textures, Gravel04, CC0", "skimage/data/gravel.png")
HANDWRITING = Source("Wikipedia, Corner.png, public domain", "skimage/data/text.png")
HUBBLE = Source("Hubble eXtreme Deep Field, NASA, public domain", "skimage/data/hubble_deep_field.jpg")
ROCKET = Source("SpaceX, public domain", "skimage/data/rocket.jpg")
_CC_BY = "[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/), cropped, reduced and enlarged"
CHINA = Source(
    f"[danielbuechele](https://www.flickr.com/photos/danielbuechele/6061409035/), {_CC_BY}",
    "sklearn/datasets/images/china.jpg",
)
FLOWER = Source(
    f"[vultilion](https://www.flickr.com/photos/vultilion/6056698931/), {_CC_BY}",
    "sklearn/datasets/images/flower.jpg",
)
TEST_CARD = Source("drawn by the command with Pillow's own font")


@dataclass(frozen=True)
class Subject:
    """A crop of a picture and a remark on it. Lengths in HR pixels."""

    name: str
    """Name of its file."""
    title: str
    """Heading on the page."""
    source: Source
    """The picture that it is a crop of."""
    top: int
    """First row."""
    left: int
    """First column."""
    jpeg: int | None
    """Quality with which LR is compressed; None: not compressed."""
    remark: str
    """What to look at."""
    height: int = CROP
    """Height of the crop in HR pixels."""
    width: int = CROP
    """Width of the crop in HR pixels."""


# The crops, in the page's order.
SUBJECTS: Final = (
    Subject("face", "A face", ASTRONAUT, 0, 80, 90,
            "A portrait; the face is 20 LR pixels wide. Look at the eyes and the teeth, and whether it is still the same person."),
    Subject("handwriting", "Handwriting", HANDWRITING, 0, 100, None,
            "Ink on paper, photographed at a slant. Look at thin strokes and at the paper's grain.", height=168),
    Subject("print", "Print", TEST_CARD, 0, 0, 90,
            "A test card: letters of 56 to 18 HR pixels, so the last line has 4 LR pixels. Look at the holes of a, e and 8, and at the "
            "paper between the letters."),
    Subject("leaves", "Leaves", CHINA, 136, 352, None,
            "Trees by a lake, finer than LR can hold. Look at whether leaves have a direction of their own or one common grain."),
    Subject("cloth", "Cloth", ASTRONAUT, 220, 60, None,
            "Folds of a space suit, a strap, an embroidered badge. Look at the badge's rim and letters, and at the seams."),
    Subject("building", "A building", CHINA, 40, 152, 90,
            "A pavilion of the Summer Palace. Look at the railings, the rows of tiles and the edge against the sky."),
    Subject("wall", "A brick wall", BRICK, 100, 100, None,
            "Long straight joints, gray. Look at whether they stay as wide and as bright as they are."),
    Subject("lights", "Lights at dusk", ROCKET, 136, 28, 90,
            "The nearest to a night photo among these: a launch pad at dusk. Look at the lamps' rays, the lattice mast, and the sky, "
            "which should be smooth."),
    Subject("stars", "The night sky", HUBBLE, 272, 592, 90,
            "Galaxies in Hubble's deep field. Look at which of the faint points survive, and at the black between them."),
    Subject("small-print", "Small print", TEST_CARD, 288, 0, 90,
            "The same card: letters of 16 to 9 HR pixels, 2 to 4 of LR. The last lines nobody can read in LR: look for "
            "letters made up."),
    Subject("fur", "Fur", CAT, 8, 60, 90,
            "A cat's face. Look at the whiskers, the hair between eye and nose, and the pupil's edge."),
    Subject("petals", "Petals", FLOWER, 96, 152, 90,
            "A dahlia. Look at the petals' rims near the centre."),
    Subject("grass", "Grass", GRASS, 100, 100, None,
            "Blades thinner than one LR pixel, gray: LR does not say which way they run."),
    Subject("gravel", "Gravel", GRAVEL, 100, 100, 90,
            "Stones of 2 to 6 LR pixels, gray. Look at whether stones have one outline and faces."),
)  # fmt: skip


def open_picture(source: Source) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8, cropped to multiples of 8 pixels."""
    pixels = draw_card() if source.path is None else np.asarray(Image.open(_locate(source.path)))
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    return pixels[:height, :width]


def draw_card() -> np.ndarray:
    """The test card, (576, 288) uint8: dark lines of falling size on light, the small ones in the lower half."""
    height, width = CARD
    card = Image.new("L", (width, height), 240)
    pen = ImageDraw.Draw(card)
    for top, lines in ((8, CARD_LINES), (height // 2 + 12, SMALL_LINES)):
        for size, text in lines:
            pen.text((12, top), text, fill=25, font=ImageFont.load_default(size))
            top += round(1.3 * size) + 6 if lines is CARD_LINES else 38
    return np.asarray(card)


def _locate(path: str) -> Path:
    """A file inside an installed package, found without importing it."""
    package = path.partition("/")[0]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"the gallery's {path} needs {INSTALL[package]}")
    file = Path(spec.submodule_search_locations[0]).parent / path
    if not file.is_file():
        raise UsageError(f"expected {path} among the installed packages, there is none: get another version of "
                         f"{INSTALL[package]}")  # fmt: skip
    return file
