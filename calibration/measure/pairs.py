"""Pairs of small and large photos of the same scene, matched by name."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import ImageError
from runtime.files import find_photos
from runtime.image.read.decode import read_photo

SHOWN = 3  # names listed in an error


@dataclass(frozen=True)
class Pair:
    """One scene. name: path below its folder without suffix, the same for both files."""

    name: str
    lr: Path
    hr: Path


def find_pairs(lr_dir: str | Path, hr_dir: str | Path, limit: int | None = None) -> list[Pair]:
    """All pairs, sorted by name; limit: only the first of them. Every photo must have its partner."""
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
        raise ImageError(f"{root}: expected photos, found none: check the folder")
    return found


def read_rgb(path: Path) -> np.ndarray:
    """A photo as (H, W, 3) uint8. Gray is repeated; what 8-bit RGB cannot hold is refused, as it would
    distort the figures.
    """
    pixels = read_photo(path).pixels
    if pixels.dtype != np.uint8 or pixels.shape[2] in (2, 4):
        raise ImageError(
            f"{path}: accuracy is measured on 8-bit photos without transparency: convert it first"
        )
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
