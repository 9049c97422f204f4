"""Training pairs from any folder of photos: crop, augment, degrade. Item k of a seed is the same in every run.

Photos are decoded once and kept in memory as uint8, up to a budget."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from runtime.errors import ImageError
from runtime.folders import find_entries
from runtime.image.read.decode import check_photo, read_photo
from runtime.image.write.encode import to_8_bits
from runtime.text import printable
from training.data.cards import Variety, draw_card, recoloured
from training.data.degradation import MILD, PAPER, DegradationParams, degrade, reduce_plainly
from training.pixels import from_pixels

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


def find_images(folder: str | Path) -> list[Path]:
    """All images below folder, sorted by path. Linked folders are followed. Folders that cannot be read are logged and left out.

    Raises FileNotFoundError if there is no folder or no image in it."""
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of photos, got {root}, which is not a folder")
    paths = []
    for entry in find_entries(root):
        if entry.fault is not None:
            log.warning("skipping %s", printable(entry.fault))
        elif entry.path.suffix.lower() in IMAGE_SUFFIXES:
            paths.append(entry.path)
    if not paths:
        raise FileNotFoundError(
            f"no image below {root}; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
        )
    return paths


def load_rgb(path: Path) -> np.ndarray:
    """Decode a picture as uint8 (h, w, 3), upright. Gray is repeated, 16 bits are rounded, alpha is left out.

    Raises ImageError, which names the file, if it cannot be read."""
    pixels: np.ndarray = read_photo(path, notify=log.debug).pixels
    if pixels.dtype == np.uint16:
        pixels = to_8_bits(pixels)
    return np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., [0, 0, 0]])


class PhotoSet:
    """The readable photos of a list, decoded and cached. Broken files are logged and left out.

    paths: of the photos.
    cache_bytes: memory for decoded photos. Of the remaining photos only the header is checked; they are decoded at each use."""

    def __init__(self, paths: Sequence[Path], cache_bytes: int = 4 << 30) -> None:
        self.paths: list[Path] = []
        self._cache: dict[int, np.ndarray] = {}
        left = cache_bytes
        for path in paths:
            try:
                if left > 0:
                    pixels = load_rgb(path)
                    left -= pixels.nbytes
                    if left >= 0:
                        self._cache[len(self.paths)] = pixels
                else:
                    check_photo(path)
            except ImageError as error:
                log.warning("skipping %s", printable(error))
                continue
            self.paths.append(path)
        if not self.paths:
            raise ValueError(f"none of the {len(paths)} images could be read")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        """(h, w, 3) uint8, see `read`."""
        return self.read(index)[1]

    def read(self, index: int) -> tuple[Path, np.ndarray]:
        """A photo's path and pixels (h, w, 3) uint8. If the file has become unreadable, it is logged and the next photo is returned."""
        for k in range(len(self.paths)):
            place = (index + k) % len(self.paths)
            path = self.paths[place]
            if place in self._cache:
                return path, self._cache[place]
            try:
                return path, load_rgb(path)
            except ImageError as error:
                log.warning("can no longer be read: %s; using another photo instead", printable(error))
        raise OSError(
            f"none of the {len(self.paths)} photos can be read any more: is the disk still connected?"
        )


def photos_digest(paths: Sequence[Path], root: Path | None = None) -> str:
    """SHA-256 in hex that stands for photos: their names, or paths below root, and sizes in bytes, in this order."""
    names = [path.name if root is None else path.relative_to(root).as_posix() for path in paths]
    listing = [[name, path.stat().st_size] for name, path in zip(names, paths, strict=True)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def split_photos(paths: Sequence[Path], held_out: int) -> tuple[list[Path], list[Path]]:
    """(training, validation) paths. Every n-th photo of the sorted list is held out, so the split is not random."""
    if not 0 <= held_out < len(paths):
        raise ValueError(
            f"held_out must be from 0 to {len(paths) - 1} for {len(paths)} photos, got {held_out}"
        )
    chosen = {int((k + 0.5) * len(paths) / held_out) for k in range(held_out)}
    return [p for k, p in enumerate(paths) if k not in chosen], [
        p for k, p in enumerate(paths) if k in chosen
    ]


@dataclass(frozen=True)
class CropParams:
    """How crops are cut from photos."""

    size: int = 192
    """Side of the crop in HR pixels."""
    zoom_range: tuple[float, float] = (0.5, 1.0)
    """Photos are shrunk by a random factor in this range before the crop is cut."""
    augment: bool = True
    """Whether crops are flipped and rotated by quarter turns."""


def random_crop(photo: np.ndarray, rng: np.random.Generator, params: CropParams) -> np.ndarray:
    """A random crop of (h, w, 3) uint8 -> (size, size, 3). A photo smaller than the crop is mirrored at its border."""
    want = round(params.size / rng.uniform(*params.zoom_range))
    want = max(params.size, min(want, *photo.shape[:2]))
    short = [(0, max(0, want - side)) for side in photo.shape[:2]]
    if any(after for _, after in short):
        photo = np.pad(photo, (*short, (0, 0)), mode="symmetric")
    y, x = (int(rng.integers(0, side - want + 1)) for side in photo.shape[:2])
    crop = photo[y : y + want, x : x + want]
    if want != params.size:
        crop = np.asarray(Image.fromarray(crop).resize((params.size, params.size), Image.Resampling.LANCZOS))
    if params.augment:
        crop = np.rot90(crop, int(rng.integers(4)))
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return np.array(crop)


class Pair(NamedTuple):
    """A training pair."""

    lr: Tensor
    """(3, s/4, s/4) float32 in [0, 1]."""
    hr: Tensor
    """(3, s, s) float32 in [0, 1]."""
    photo: Path
    """File of the photo."""
    drawn: bool
    """Whether hr is a drawn card instead of the photo."""
    target: Tensor | None = None
    """A prior's picture of lr, (3, s, s); or a teacher's samples for `noise`, (S, 3, s, s) uint8. None if there are none yet."""
    noise: Tensor | None = None
    """Noise of a teacher's S samples, (S, C, h, w); None without a teacher."""


class PairDataset(Dataset[tuple[Tensor, Tensor]]):
    """Endless training pairs: item k -> (lr (3, s/4, s/4), hr (3, s, s)) float32 in [0, 1], a pure function of (seed, k).

    Any number of workers therefore gives the same stream, and a resumed run continues at a later k.

    photos: to cut from.
    crop: how to cut.
    degradation: makes LR pictures, except for the next two shares.
    mild_share: share of the pairs, 0 to 1, with the degradation `MILD`.
    plain_share: share of the pairs, 0 to 1, made by `reduce_plainly`.
    variety: shares of drawn and recoloured pictures.
    reduce: makes all LR pictures, instead of the four parameters above.
    seed: selects photos, crops and degradations.
    start: number of the first item.
    length: number of items that the dataset reports."""

    def __init__(
        self,
        photos: PhotoSet,
        crop: CropParams,
        degradation: DegradationParams = PAPER,
        *,
        mild_share: float = 0.0,
        plain_share: float = 0.0,
        variety: Variety = Variety(),  # noqa: B008  (frozen)
        reduce: Callable[[Tensor, np.random.Generator], Tensor] | None = None,
        seed: int = 0,
        start: int = 0,
        length: int = 1 << 40,
    ) -> None:
        self.photos, self.crop, self.degradation = photos, crop, degradation
        self.mild_share, self.plain_share = mild_share, plain_share
        self.variety, self.seed, self.start, self.length = variety, seed, start, length
        self.reduce = reduce

    def __len__(self) -> int:
        return self.length

    def item(self, index: int) -> Pair:
        """The pair and the photo it comes from."""
        rng = np.random.default_rng([self.seed, self.start + index])
        path, photo = self.photos.read(int(rng.integers(len(self.photos))))
        pixels, drawn = self._varied(random_crop(photo, rng, self.crop), rng)
        hr = from_pixels(pixels)
        return Pair(self._reduced(hr, rng), hr, path, drawn)

    def _reduced(self, hr: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        if self.reduce is not None:
            return self.reduce(hr, rng)
        draw = rng.random() if self.mild_share + self.plain_share > 0 else 1.0
        if draw < self.mild_share:
            return degrade(hr, rng, MILD)
        if draw < self.mild_share + self.plain_share:
            return reduce_plainly(hr, rng, self.degradation.scale)
        return degrade(hr, rng, self.degradation)

    def _varied(self, pixels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """The picture, and whether it is a drawn card."""
        if self.variety.cards > 0 and rng.random() < self.variety.cards:
            return draw_card(rng, self.crop.size, self.variety.shapes), True
        if self.variety.recolour > 0 and rng.random() < self.variety.recolour:
            return recoloured(pixels, rng), False
        return pixels, False

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.item(index)
        return pair.lr, pair.hr
