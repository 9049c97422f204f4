"""Pairs of small and large photos of the same scene, matched by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import ImageError
from runtime.folders import find_photos
from runtime.image.read.decode import read_photo

# Names listed in an error.
SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """One scene."""

    name: str
    """Path of the photo below its folder, without suffix; the same for LR and HR."""
    lr: Path
    """File of the small photo."""
    hr: Path
    """File of the large one."""


def find_pairs(lr_dir: str | Path, hr_dir: str | Path, limit: int | None = None) -> list[Pair]:
    """All pairs, sorted by name. limit: number of pairs, the first by name; None: all. ImageError for a photo without partner."""
    small, large = named_photos(lr_dir), named_photos(hr_dir)
    lonely = sorted(small.keys() ^ large.keys())
    if lonely:
        missing = ", ".join(
            f"{name} (only in {lr_dir if name in small else hr_dir})" for name in lonely[:SHOWN]
        )
        raise ImageError(
            f"LR and HR photos must have the same names; {len(lonely)} have no partner: {missing}"
            f"{', ...' if len(lonely) > SHOWN else ''}: rename or remove them"
        )
    return [Pair(name, small[name], large[name]) for name in sorted(small)][:limit]


def named_photos(folder: str | Path) -> dict[str, Path]:
    """Photos below a folder by their relative path without suffix."""
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(f"{root}: expected a folder of photos, there is none: check the path")
    found: dict[str, Path] = {}
    for path in find_photos([root]):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise ImageError(f"{path} and {found[name]} have the same name: keep one of them")
        found[name] = path
    if not found:
        raise ImageError(f"{root}: expected photos, got none: check the folder")
    return found


def complete(name: str, folder: Path, found: dict[str, Path], pairs: Sequence[Pair]) -> dict[str, Path]:
    """`found` itself; ImageError if the picture of a pair is missing.

    name: of the method.
    folder: of its pictures.
    found: pictures by the name of their pair.
    pairs: of which each needs a picture.
    """
    missing = [pair.name for pair in pairs if pair.name not in found]
    if missing:
        raise ImageError(
            f"{name}: {len(missing)} pictures are missing in {folder}, the first is {missing[0]}: add them"
        )
    return found


def read_rgb(path: Path) -> np.ndarray:
    """A photo as (H, W, 3) uint8, gray repeated. ImageError for transparency and more than 8 bits: they would distort the figures."""
    pixels = read_photo(path).pixels
    if pixels.dtype != np.uint8 or pixels.shape[2] in (2, 4):
        raise ImageError(
            f"{path}: accuracy is measured on 8-bit photos without transparency: convert it first"
        )
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
