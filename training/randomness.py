"""Random numbers of training as a pure function of (seed, item, stream).

Item k of a run gets the same numbers whichever process, batch or device handles it, so two processes equal one with twice the
batch, and a resumed run needs no random state but its step.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, item: int, stream: str) -> np.random.Generator:
    """Independent generator for each (seed, item, stream); the stream's name tells draws for different purposes apart."""
    return np.random.default_rng([seed, item, zlib.crc32(stream.encode())])


def normal(seed: int, items: Sequence[int], shape: Sequence[int], stream: str) -> Tensor:
    """Standard normal deviates (len(items), *shape), float32 on the CPU."""
    rows = [generator(seed, k, stream).standard_normal(tuple(shape), np.float32) for k in items]
    return torch.from_numpy(np.stack(rows))


def integers(seed: int, items: Sequence[int], low: int, high: int, stream: str) -> Tensor:
    """One whole number in [low, high) per item, (len(items),) int64 on the CPU."""
    return torch.tensor([int(generator(seed, k, stream).integers(low, high)) for k in items])


@contextmanager
def fixed_random_state(device: torch.device) -> Iterator[None]:
    """Seed 0 inside, the caller's state afterwards, for code that is not ours: some metrics draw random crops, others reseed everything
    when they load."""
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
