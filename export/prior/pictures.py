"""A cache of a prior's pictures on disk: made once, used for training many times.

realesrgan-x4plus needs ten seconds of a CPU core for an LR picture of 128x128 pixels, a thousand times the student's own time."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from export.prior.network import Prior
from training.checkpoint import read_json, write_complete
from training.data.cards import draw_card, recoloured
from training.data.everyday import degrade_everyday
from training.data.photos import CropParams, Pair, PhotoSet, photos_digest, random_crop
from training.loop.budget import Interrupt
from training.pixels import from_pixels, to_bytes
from training.settings import differences

log = logging.getLogger("train")

# Version 1 also contained drawn cards.
FORMAT_VERSION = 2
ABOUT = "pictures.json"


@dataclass(frozen=True)
class PictureParams:
    """How the pictures of a cache are made."""

    size: int = 384
    """Side of a picture in HR pixels, a multiple of 16."""
    seed: int = 0
    """Selects the photos, crops and degradations."""
    recolour_share: float = 0.1
    """Share of the photos, 0 to 1, that become gray or get other colours."""
    zoom_min: float = 0.5
    """Photos are shrunk by a random factor from this to 1 before they are cropped."""

    def __post_init__(self) -> None:
        if self.size % 16 or self.size < 64:
            raise ValueError(f"size must be a multiple of 16 of at least 64 HR pixels, got {self.size}")


class PictureCache:
    """A folder with one file per item: lr (3, s/4, s/4), target and hr (3, s, s), all uint8. target is the prior's picture of lr."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / ABOUT
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.folder} is not a folder of a prior's pictures ({ABOUT} is missing): make one with gdposr train pictures"
            )
        self.about: dict[str, Any] = read_json(path)
        version = self.about.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path}: expected a prior's pictures of format {FORMAT_VERSION}, got {version!r}: make them again with "
                "gdposr train pictures"
            )
        self.files = sorted(self.folder.glob("*.safetensors"))
        if not self.files:
            raise ValueError(f"{self.folder} holds no pictures: make some with gdposr train pictures")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, top: int, left: int, side: int) -> dict[str, Tensor]:
        """Windows of an item, uint8: lr (3, side, side) and, four times as large, target and hr.

        index: of the item.
        top, left: corner of the window in LR pixels.
        side: of the window in LR pixels."""
        path = self.files[index]
        try:
            with safe_open(path, "pt") as file:
                y, x = slice(top, top + side), slice(left, left + side)
                large = slice(4 * top, 4 * (top + side)), slice(4 * left, 4 * (left + side))
                found = {"lr": file.get_slice("lr")[:, y, x]}
                return found | {name: file.get_slice(name)[:, *large] for name in ("target", "hr")}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it and make it again with gdposr train pictures"
            ) from error

    def side(self) -> int:
        """Side of an item in LR pixels."""
        return int(self.about["made_for"]["pictures"]["size"]) // 4


class CachedPairs:
    """Endless training pairs cut from one or more caches, rotated and mirrored. Item k is a pure function of (seed, k).

    caches: folders of pictures.
    crop: side in HR pixels, at most that of the smallest picture.
    seed: selects places, rotations and cards.
    cards: share of the items, 0 to 1, that are drawn (`training.data.cards`) and are their own target. Priors get
        small letters and fine patterns wrong.
    shapes: share of these cards, 0 to 1, that are shapes with straight and round edges instead of print and patterns."""

    def __init__(
        self,
        caches: Sequence[PictureCache],
        crop: int,
        seed: int = 0,
        *,
        cards: float = 0.0,
        shapes: float = 0.0,
    ) -> None:
        for cache in caches:
            if crop // 4 > cache.side():
                raise ValueError(
                    f"crop={crop} is larger than the pictures of {cache.folder}: at most {4 * cache.side()}"
                )
        self.caches, self.crop, self.seed, self.cards, self.shapes = tuple(caches), crop, seed, cards, shapes
        self.places = [(cache, k) for cache in self.caches for k in range(len(cache))]

    @property
    def photos(self) -> list[tuple[PictureCache, int]]:
        return self.places

    def item(self, index: int) -> Pair:
        rng = np.random.default_rng([self.seed, index])
        cache, k = self.places[int(rng.integers(len(self.places)))]
        if rng.random() < self.cards:
            hr = from_pixels(draw_card(rng, self.crop, self.shapes))
            return Pair(degrade_everyday(hr, rng), hr, Path("card"), True, hr)
        side = self.crop // 4
        top, left = (int(x) for x in rng.integers(0, cache.side() - side + 1, 2))
        found = cache.read(k, top, left, side)
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        lr, hr, target = (_turned(found[name], turns, mirrored) for name in ("lr", "hr", "target"))
        return Pair(lr, hr, cache.files[k], False, target)


def _turned(x: Tensor, turns: int, mirrored: bool) -> Tensor:
    x = torch.rot90(x, turns, (1, 2))
    return (x.flip(2) if mirrored else x).contiguous().float() / 255


def make_pictures(
    photos: PhotoSet,
    prior: Prior,
    folder: Path,
    items: int,
    params: PictureParams,
    *,
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int, float], None] | None = None,
) -> int:
    """Make the missing items of a cache. Returns how many it then holds.

    photos: sources of the pictures.
    prior: the network.
    params: settings of the pictures.
    folder: of the cache.
    items: how many it should hold.
    device: that runs the prior.
    on_progress: called after each new item with its number, `items`, and items per second.

    Ctrl-C stops after the current item and keeps all finished ones. Raises ValueError if the folder holds pictures of
    another prior, other photos or other settings."""
    _open(folder, photos, prior, params)
    prior = prior.to(device=device, memory_format=torch.channels_last)
    begun, made = time.monotonic(), 0
    with Interrupt() as interrupt:
        for k in range(items):
            path = folder / f"{k:06d}.safetensors"
            if path.is_file():
                continue
            if interrupt.asked:
                break
            lr, hr = picture_pair(photos, params, k)
            target = prior(lr[None].to(device, memory_format=torch.channels_last))[0].cpu()
            tensors = {
                name: to_bytes(x).contiguous() for name, x in (("lr", lr), ("hr", hr), ("target", target))
            }
            write_complete(path, partial(save_file, tensors))
            made += 1
            if on_progress:
                on_progress(k + 1, items, made / (time.monotonic() - begun))
    return len(list(folder.glob("*.safetensors")))


def picture_pair(photos: PhotoSet, params: PictureParams, item: int) -> tuple[Tensor, Tensor]:
    """The item's lr (3, s/4, s/4) and hr (3, s, s), float32 in [0, 1]."""
    rng = np.random.default_rng([params.seed, item])
    photo = photos[int(rng.integers(len(photos)))]
    pixels = random_crop(photo, rng, CropParams(params.size, (params.zoom_min, 1.0)))
    if rng.random() < params.recolour_share:
        pixels = recoloured(pixels, rng)
    hr = from_pixels(pixels)
    return degrade_everyday(hr, rng), hr


def _open(folder: Path, photos: PhotoSet, prior: Prior, params: PictureParams) -> None:
    """Begin a cache, or check that it was begun for the same. Raises ValueError if not.

    folder: of the cache.
    photos: sources of the pictures.
    prior: the network.
    params: settings of the pictures."""
    made_for = {
        "prior": prior.name,
        "weights_sha256": prior.digest,
        "photos": photos_digest(photos.paths),
        "pictures": asdict(params),
    }
    document = {"format_version": FORMAT_VERSION, "made_for": made_for}
    path = folder / ABOUT
    if path.is_file():
        changed = differences(read_json(path), document)
        if changed:
            raise ValueError(
                f"{folder} holds pictures made for something else ({'; '.join(changed)}): choose another folder"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} holds other files, expected a new folder or one of a prior's pictures: choose another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_complete(path, lambda fresh: fresh.write_text(json.dumps(document, indent=2) + "\n"))
