"""Batches of training pairs: item numbers dealt out to processes, with file names and prompts in the order of the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from training.data import PairDataset
from training.prompts import PromptSource


@dataclass(frozen=True)
class Batch:
    """items: their numbers in the run; lr: (B, 3, h, w), hr: (B, 3, 4h, 4w) in [0, 1]; prompts and names in the same order."""

    items: tuple[int, ...]
    lr: Tensor
    hr: Tensor
    prompts: tuple[str, ...]
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """The pictures on a device, in the memory order that convolutions are fastest in."""
        lr, hr = (x.to(device, memory_format=torch.channels_last) for x in (self.lr, self.hr))
        return replace(self, lr=lr, hr=hr)


class ItemSampler(Sampler[list[int]]):
    """Endless lists of item numbers. Micro-step m of process r of P takes items (m P + r) B to (m P + r + 1) B - 1, so a step of P
    processes uses the very items of one process with P times the batch."""

    def __init__(self, batch: int, start: int = 0, process: int = 0, processes: int = 1) -> None:
        self.batch, self.start, self.process, self.processes = batch, start, process, processes

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.start
        while True:
            first = (micro * self.processes + self.process) * self.batch
            yield list(range(first, first + self.batch))
            micro += 1


class _Items(torch.utils.data.Dataset[tuple[int, Tensor, Tensor, str]]):
    """The pairs together with their numbers and the photos they come from."""

    def __init__(self, pairs: PairDataset) -> None:
        self.pairs = pairs

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor, str]:
        pair = self.pairs.item(index)
        return index, pair.lr, pair.hr, str(pair.photo)


def batches(
    pairs: PairDataset,
    prompts: PromptSource | None,
    batch: int,
    *,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 1,
) -> Iterator[Batch]:
    """Endless batches from micro-step `start` on. prompts: None for models without text."""
    loader = DataLoader(
        _Items(pairs),
        batch_sampler=ItemSampler(batch, start, process, processes),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    for items, lr, hr, names in loader:
        texts = tuple(prompts.prompt_for(name) for name in names) if prompts else ("",) * len(names)
        yield Batch(tuple(items.tolist()), lr, hr, texts, tuple(names))
