"""What the student learns from: photos and, with a teacher, noise and the teacher's samples of it.

The teacher either runs at every step, or its samples of the first N items of the stream are made once and kept on disk. Everything is
a pure function of the seed and the item's number, so a resumed run gets what it would have got, and so do several processes.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

from torch import Tensor

from export.distill.cache import TeacherCache
from export.distill.recipe import DistillConfig
from export.distill.teacher import Teacher, from_bytes, item_noise
from training.data.photos import CropParams, Pair, PairDataset, PhotoSet
from training.randomness import generator, integers

log = logging.getLogger("train")

FRESH_FROM = 1 << 32  # number of the first item that no teacher is asked about
TURNS = 8  # flips and quarter turns of a square
WAIT = 5.0  # seconds between looks at a cache that another process fills


def photo_pairs(photos: PhotoSet, config: DistillConfig) -> PairDataset:
    """Photos alone, degraded in the recipe's mixture."""
    return PairDataset(
        photos,
        CropParams(config.crop, zoom_range=(config.zoom_min, 1.0)),
        mild_share=config.mild_share,
        plain_share=config.plain_share,
        variety=config.variety,
        seed=config.seed,
    )


class TaughtPairs:
    """Pairs with a teacher's noise and, from a cache, its samples; the cache's items come over and over, in an order that is a pure
    function of (seed, epoch).

    channels: of the teacher's noise. step: pairs of a training step, over all processes. Of what the teacher has no say in, pairs that
    never come again teach more than the few of a cache: with config.fresh each of the teacher's steps is followed by so many of others,
    which bring no noise."""

    def __init__(
        self,
        pairs: PairDataset,
        config: DistillConfig,
        channels: int,
        cache: TeacherCache | None = None,
        step: int = 1,
    ) -> None:
        self.pairs, self.config, self.channels, self.cache, self.step = pairs, config, channels, cache, step
        self._order: tuple[int, Any] = (-1, None)  # of the epoch last asked for

    @property
    def photos(self) -> PhotoSet:
        return self.pairs.photos

    def item(self, index: int) -> Pair:
        step, place = divmod(index, self.step)
        before, fresh = divmod(step, self.config.fresh + 1)  # steps of the teacher before this cycle
        if fresh:
            return self.pairs.item(FRESH_FROM + (step - before - 1) * self.step + place)
        number = before * self.step + place
        return self._new(number) if self.cache is None else self._kept(self.cache, number)

    def _new(self, number: int) -> Pair:
        pair = self.pairs.item(number)
        return pair._replace(noise=self._noise(number, pair.lr))

    def _kept(self, cache: TeacherCache, position: int) -> Pair:
        c = self.config
        epoch, place = divmod(position, cache.items)
        if self._order[0] != epoch:
            self._order = epoch, generator(c.seed, epoch, "cache order").permutation(cache.items)
        number = int(self._order[1][place])
        kept = cache.read(number)
        lr, hr, noise = from_bytes(kept["lr"]), from_bytes(kept["hr"]), self._noise(number, kept["lr"])
        drawn = bool(kept["drawn"])
        pair = Pair(lr, hr, cache.folder / f"item {number}", drawn, kept["samples"], noise)
        return turned(pair, int(integers(c.seed, [position], 0, TURNS, "turn"))) if c.cache_turns else pair

    def _noise(self, number: int, lr: Tensor) -> Tensor:
        height, width = (side // self.config.student.fold for side in lr.shape[-2:])
        return item_noise(self.config.seed, number, (self.channels, height, width))


def turned(pair: Pair, turn: int) -> Pair:
    """A pair with pictures, samples and noise flipped alike. turn: bit 0 left-right, bit 1 up-down, bit 2 rows for columns.

    A teacher treats a flipped picture with flipped noise not quite as it treats the picture: its kernels have a left and a right.
    """

    def move(x: Tensor) -> Tensor:
        x = x.flip([axis for bit, axis in ((1, -1), (2, -2)) if turn & bit])
        return (x.transpose(-1, -2) if turn & 4 else x).contiguous()

    assert pair.target is not None
    assert pair.noise is not None
    return pair._replace(lr=move(pair.lr), hr=move(pair.hr), target=move(pair.target), noise=move(pair.noise))


def fill(cache: TeacherCache, pairs: TaughtPairs, teacher: Teacher, workers: int, *, main: bool) -> None:
    """The main process makes what a cache lacks and tells how far it is every ten seconds; the others wait for it."""
    if not main:
        while cache.missing():
            time.sleep(WAIT)
        return
    last = -math.inf

    def show(done: int, total: int, rate: float) -> None:
        nonlocal last
        if time.monotonic() - last > 10 or done == total:
            last = time.monotonic()
            log.info("cache %s: %d of %d items (%.2f items/s)", cache.folder, done, total, rate)

    if cache.missing():
        every = TaughtPairs(pairs.pairs, replace(pairs.config, fresh=0), pairs.channels)
        cache.fill(every, teacher, workers=workers, on_progress=show)
