"""Random numbers of training as a pure function of (seed, item, stream).

Item k of a run gets the same numbers in every process, batch and device. Two processes therefore equal one process
with twice the batch, and a resumed run needs only the step."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, item: int, stream: str) -> np.random.Generator:
    """An independent generator for each (seed, item, stream). The stream's name separates draws for different purposes."""
    return np.random.default_rng([seed, item, zlib.crc32(stream.encode())])


def normal(seed: int, items: Sequence[int], shape: Sequence[int], stream: str) -> Tensor:
    """Standard normal deviates (len(items), *shape), float32 on the CPU.

    seed: of the run.
    items: numbers of the pairs.
    shape: per item.
    stream: name of the purpose."""
    rows = [generator(seed, k, stream).standard_normal(tuple(shape), np.float32) for k in items]
    return torch.from_numpy(np.stack(rows))


def integers(seed: int, items: Sequence[int], low: int, high: int, stream: str) -> Tensor:
    """One integer in [low, high) per item, (len(items),) int64 on the CPU.

    seed: of the run.
    items: numbers of the pairs.
    low, high: bounds.
    stream: name of the purpose."""
    return torch.tensor([int(generator(seed, k, stream).integers(low, high)) for k in items])


@contextmanager
def fixed_random_state(device: torch.device) -> Iterator[None]:
    """Use seed 0 for global random state inside the block and restore the caller's state afterwards.

    For third-party code: some metrics draw random crops, others reseed everything when they are loaded."""
    python, legacy_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
