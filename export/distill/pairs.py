"""What the student learns from, batch by batch: pictures and, with a teacher, noise and the teacher's samples of it.

The teacher either runs at every step, or its samples of the first N items of the stream are made once and kept on disk. Everything is
a pure function of the seed and the position in the stream, so a resumed run gets what it would have got.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from export.distill.cache import Row, TeacherCache, by_sample, cache_facts, load_rows
from export.distill.recipe import DistillConfig
from export.distill.teacher import Teacher, from_bytes, item_noise
from training.data.photos import CropParams, PairDataset, PhotoSet
from training.randomness import generator, integers

log = logging.getLogger("distill")

FRESH_FROM = 1 << 32  # number of the first item that no teacher is asked about
TURNS = 8  # flips and quarter turns of a square


class Lesson(NamedTuple):
    """A batch. lr: (n, 3, h, w), hr: (n, 3, 4h, 4w), samples: the teacher's, (2n, 3, 4h, 4w), of noise whose first channels are the
    student's (2n, C, h/f, w/f); the first n are first samples. Images float32 in [0, 1]. drawn: (n,) bool, cards instead of photos."""

    lr: Tensor
    hr: Tensor
    drawn: Tensor
    noise: Tensor | None = None
    samples: Tensor | None = None


def photo_lessons(pairs: PairDataset, config: DistillConfig, workers: int) -> Iterator[Lesson]:
    """Pictures alone; `pairs` begins at the first picture wanted."""
    for lr, hr, drawn in load_rows(_Pictures(pairs), workers, batch_size=config.batch):
        yield Lesson(lr, hr, drawn)


class _Pictures(Dataset[tuple[Tensor, Tensor, bool]]):
    """The pairs, and whether each is drawn."""

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, bool]:
        pair = self.pairs.item(index)
        return pair.lr, pair.hr, pair.drawn


def taught_lessons(
    rows: Dataset[Row], teacher: Teacher, config: DistillConfig, workers: int
) -> Iterator[Lesson]:
    """The batches of `OnlineRows`, where the teacher runs now, or of `CachedRows`."""
    for row in load_rows(rows, workers, batch_size=config.batch):
        noise = by_sample(row.noise)
        made = row.samples.numel() > 0
        samples = by_sample(row.samples) if made else teacher.samples(row.lr, noise, row.item.tolist())
        own = noise[:, : config.student.noise_channels].contiguous()
        yield Lesson(row.lr, row.hr, row.drawn, own, from_bytes(samples))


class OnlineRows(Dataset[Row]):
    """Item k of the training pairs with its noise of so many channels, from `start` on."""

    def __init__(self, pairs: PairDataset, config: DistillConfig, channels: int, start: int = 0) -> None:
        self.pairs, self.config, self.channels, self.start = pairs, config, channels, start

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Row:
        item = self.start + index
        pair = self.pairs.item(item)
        noise = _noise(self.config, item, pair.lr, self.channels)
        return Row(item, pair.lr, pair.hr, pair.drawn, noise, torch.empty(0, dtype=torch.uint8))


def _noise(config: DistillConfig, item: int, lr: Tensor, channels: int) -> Tensor:
    height, width = (side // config.student.fold for side in lr.shape[-2:])
    return item_noise(config.seed, item, (channels, height, width))


class CachedRows(Dataset[Row]):
    """The cache's items over and over, in an order that is a pure function of (seed, epoch). channels: of the teacher's noise."""

    def __init__(self, cache: TeacherCache, config: DistillConfig, channels: int, start: int = 0) -> None:
        self.cache, self.config, self.channels, self.start = cache, config, channels, start
        self._order: tuple[int, Any] = (-1, None)  # of the epoch last asked for

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> Row:
        c, position = self.config, self.start + index
        epoch, place = divmod(position, self.cache.items)
        if self._order[0] != epoch:
            self._order = epoch, generator(c.seed, epoch, "cache order").permutation(self.cache.items)
        item = int(self._order[1][place])
        kept = self.cache.read(item)
        noise = _noise(c, item, kept["lr"], self.channels)
        drawn = bool(kept["drawn"])
        row = Row(item, from_bytes(kept["lr"]), from_bytes(kept["hr"]), drawn, noise, kept["samples"])
        return turned(row, int(integers(c.seed, [position], 0, TURNS, "turn"))) if c.cache_turns else row


def turned(row: Row, turn: int) -> Row:
    """A row with pictures, samples and noise flipped alike. turn: bit 0 left-right, bit 1 up-down, bit 2 rows for columns.

    A teacher treats a flipped picture with flipped noise not quite as it treats the picture: its kernels have a left and a right.
    """

    def move(x: Tensor) -> Tensor:
        axes = [axis for bit, axis in ((1, -1), (2, -2)) if turn & bit]
        x = x.flip(axes)
        return (x.transpose(-1, -2) if turn & 4 else x).contiguous()

    return row._replace(lr=move(row.lr), hr=move(row.hr), noise=move(row.noise), samples=move(row.samples))


def lessons_of(
    config: DistillConfig,
    data: Path,
    photos: list[Path],
    teacher: Teacher | None,
    cache: tuple[Path, int] | None,
    start: int,
    workers: int,
) -> Iterator[Lesson]:
    """The batches from item `start` of the stream on. A cache is filled now.

    Of what the teacher has no say in, pairs that never come again teach more than the few of a cache: with config.fresh each of the
    teacher's batches is followed by so many of others."""

    decoded = PhotoSet(photos)  # one for all streams

    def pairs(begin: int = 0) -> PairDataset:
        return PairDataset(
            decoded,
            CropParams(config.crop),
            mild_share=config.mild_share,
            plain_share=config.plain_share,
            variety=config.variety,
            seed=config.seed,
            start=begin,
        )

    if teacher is None:
        return photo_lessons(pairs(start), config, workers)
    step, cycle = start // config.batch, config.fresh + 1
    before = -(-step // cycle)  # of the teacher's batches among the steps so far
    rows: Dataset[Row]
    if cache is None:
        rows = OnlineRows(pairs(), config, teacher.noise_channels, before * config.batch)
    else:
        kept = TeacherCache(*cache, cache_facts(teacher, config, photos, data))
        if kept.missing():
            _fill(kept, OnlineRows(pairs(), config, teacher.noise_channels), teacher, workers)
        rows = CachedRows(kept, config, teacher.noise_channels, before * config.batch)
    taught = taught_lessons(rows, teacher, config, workers)
    if not config.fresh:
        return taught
    fresh = photo_lessons(pairs(FRESH_FROM + (step - before) * config.batch), config, workers)
    return (next(fresh if k % cycle else taught) for k in itertools.count(step))


def _fill(cache: TeacherCache, rows: OnlineRows, teacher: Teacher, workers: int) -> None:
    """Makes what a cache lacks; tells how far it is every ten seconds."""
    last = -math.inf

    def show(done: int, total: int, rate: float) -> None:
        nonlocal last
        if time.monotonic() - last > 10 or done == total:
            last = time.monotonic()
            log.info("cache %s: %d of %d items (%.2f items/s)", cache.folder, done, total, rate)

    cache.fill(rows, teacher, workers=workers, on_progress=show)
