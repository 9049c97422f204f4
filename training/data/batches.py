"""Batches of training pairs: distributes item numbers to processes and adds file names and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from training.data.photos import Pair
from training.model.text import PromptSource


@dataclass(frozen=True)
class Batch:
    """Pairs that are computed at once. Pictures are float32 RGB in [0, 1]; all fields have the same order."""

    items: tuple[int, ...]
    """Numbers of the pairs in the run."""
    lr: Tensor
    """(B, 3, h, w)"""
    hr: Tensor
    """(B, 3, 4h, 4w)"""
    prompts: tuple[str, ...]
    """Prompts of the photos; empty strings for models without text."""
    names: tuple[str, ...]
    """File names of the photos."""
    drawn: Tensor | None = None
    """(B,) bool, True for drawn cards."""
    target: Tensor | None = None
    """A prior's pictures of lr, (B, 3, 4h, 4w), or a teacher's samples for `noise`, (B, S, 3, 4h, 4w) uint8; None without either."""
    noise: Tensor | None = None
    """Noise of a teacher's samples, (B, S, C, h', w'); None if the stage draws its own."""

    def to(self, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Batch:
        """The batch on a device, its pictures in a memory format.

        Tensors in pinned memory are copied while the device computes."""

        def moved(x: Tensor) -> Tensor:
            x = x.to(device, non_blocking=x.is_pinned())
            return x.contiguous(memory_format=memory_format) if x.ndim == 4 else x

        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{name: moved(x) for name, x in tensors.items()})


class ItemSampler(Sampler[list[int]]):
    """Endless lists of item numbers.

    batch: B, items of a list.
    start: m of the first list.
    process: r, number of this process.
    processes: their number, P.

    Micro-step m of process r of P takes items (m P + r) B to (m P + r + 1) B - 1. A step of P processes therefore
    uses the same items as one process with P times the batch.
    """

    def __init__(self, batch: int, start: int = 0, process: int = 0, processes: int = 1) -> None:
        self.batch, self.start, self.process, self.processes = batch, start, process, processes

    def __iter__(self) -> Iterator[list[int]]:
        micro = self.start
        while True:
            first = (micro * self.processes + self.process) * self.batch
            yield list(range(first, first + self.batch))
            micro += 1


class Pairs(Protocol):
    """Endless numbered training pairs. Item k is a pure function of k."""

    @property
    def photos(self) -> Sized: ...

    def item(self, index: int) -> Pair: ...


class Items(torch.utils.data.Dataset[dict[str, Any]]):
    """The pairs with their numbers and the photos they come from."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs.item(index)
        found = {"items": index, "lr": pair.lr, "hr": pair.hr, "names": str(pair.photo), "drawn": pair.drawn}
        more = {"target": pair.target, "noise": pair.noise}
        return found | {name: value for name, value in more.items() if value is not None}


def batches(
    pairs: Pairs,
    prompts: PromptSource | None,
    batch: int,
    *,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 1,
    pin: bool = False,
) -> Iterator[Batch]:
    """Endless batches.

    pairs: the training pairs.
    prompts: prompts of the photos; None for models without text.
    batch: pairs per batch.
    start: first micro-step.
    process, processes: index of this process and their number.
    workers: processes that prepare pairs; 0 prepares them in this one.
    pin: put the pictures into pinned memory, from which a GPU copies by itself."""
    loader = DataLoader(
        Items(pairs),
        batch_sampler=ItemSampler(batch, start, process, processes),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
    )
    for found in loader:
        names = tuple(found.pop("names"))
        drawn = found["drawn"].tolist()
        texts = prompts.prompts_for(names, drawn) if prompts else ("",) * len(names)
        yield Batch(tuple(found.pop("items").tolist()), prompts=texts, names=names, **found)
