"""Training pairs for distillation: photos and, with a teacher, noise and the teacher's samples.

The teacher either runs at every step, or its samples of the first N items of the stream are stored in a cache.
Everything is a pure function of the seed and the item's number, so resumed runs and several processes get the same pairs."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import Any

from torch import Tensor

from export.distill.cache import TeacherCache
from export.distill.recipe import DistillConfig
from export.distill.teacher import Teacher, item_noise
from training.data.photos import Pair, PairDataset, PhotoSet
from training.model.text import PromptSource
from training.pixels import from_bytes
from training.randomness import generator, integers

log = logging.getLogger("train")

# Number of the first item without a teacher's samples.
FRESH_FROM = 1 << 32
# Number of flips and quarter turns of a square.
TURNS = 8
# Seconds between checks of a cache that another process fills.
WAIT = 5.0


class TaughtPairs:
    """Pairs with a teacher's noise and, from a cache, its samples.

    pairs: photos alone.
    config: the recipe.
    channels: of the teacher's noise.
    cache: the teacher's samples; None if the teacher runs at every step. Its items repeat, in an order that is a pure
        function of (seed, epoch).
    step: pairs per training step over all processes.

    With config.fresh, each step with the teacher is followed by that many steps of new pairs without noise. The
    losses that do not use the teacher learn more from pairs that never repeat."""

    def __init__(
        self,
        pairs: PairDataset,
        config: DistillConfig,
        channels: int,
        cache: TeacherCache | None = None,
        step: int = 1,
    ) -> None:
        self.pairs, self.config, self.channels, self.cache, self.step = pairs, config, channels, cache, step
        self._order: tuple[int, Any] = (-1, None)  # the epoch last used, and its order

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
    """A pair with pictures, samples and noise flipped alike. turn: bit 0 flips left-right, bit 1 up-down, bit 2 transposes.

    A teacher's result for a flipped picture is not exactly the flipped result, since its kernels are not symmetric."""

    def move(x: Tensor) -> Tensor:
        x = x.flip([axis for bit, axis in ((1, -1), (2, -2)) if turn & bit])
        return (x.transpose(-1, -2) if turn & 4 else x).contiguous()

    assert pair.target is not None
    assert pair.noise is not None
    return pair._replace(lr=move(pair.lr), hr=move(pair.hr), target=move(pair.target), noise=move(pair.noise))


def fill(
    cache: TeacherCache,
    pairs: TaughtPairs,
    teacher: Teacher,
    workers: int,
    prompts: PromptSource | None = None,
    *,
    main: bool,
) -> None:
    """Fill a cache in the main process, with a progress line every ten seconds; the other processes wait.

    cache: to fill.
    pairs: the training stream.
    teacher: makes the samples.
    workers: processes that prepare pairs.
    prompts: of the photos; None if the teacher takes none.
    main: whether this is the main process."""
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
        cache.fill(every, teacher, prompts=prompts, workers=workers, on_progress=show)
