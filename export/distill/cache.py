"""A cache on disk of a teacher's samples for the first items of a training stream: made once, used many times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from export.distill.recipe import DistillConfig
from export.distill.teacher import SAMPLES, Teacher, by_picture, by_sample
from training.checkpoint import write_complete
from training.data.batches import Items, Pairs
from training.data.photos import photos_digest
from training.loop.budget import Interrupt
from training.model.text import PromptSource
from training.pixels import to_bytes
from training.settings import differences

# Version of cache.json and what it describes.
FORMAT_VERSION = 2
CACHE_FILE = "cache.json"
# Items per file.
SHARD = 64
# Items that the teacher computes at once. A shard consists of whole batches, so that a resumed fill computes the same batches.
BATCH = 4


def cache_facts(
    teacher: Teacher,
    config: DistillConfig,
    photos: Sequence[Path],
    root: Path,
    prompts: PromptSource | None = None,
) -> dict[str, Any]:
    """Everything that the items of a cache depend on.

    teacher: makes the samples.
    config: recipe of the training stream.
    photos: training photos, identified by path below root and file size.
    root: their folder.
    prompts: of the photos; None if the teacher takes none."""
    captions = None if prompts is None else prompts.digest(photos)
    return {
        "teacher": teacher.digest,
        "precision": teacher.precision,
        "photos": photos_digest(photos, root),
        "crop": config.crop,
        "mild_share": config.mild_share,
        "plain_share": config.plain_share,
        "graphics_share": config.graphics_share,
        "recolour_share": config.recolour_share,
        "seed": config.seed,
        **({} if config.zoom_min == DistillConfig.zoom_min else {"zoom_min": config.zoom_min}),
        **({} if captions is None else {"captions": captions}),
        "noise": {"channels": teacher.noise_channels, "fold": teacher.fold, "samples": SAMPLES},
    }


class TeacherCache:
    """The first `items` items of a training stream with the teacher's samples, in a folder.

    Each file holds 64 items: lr (n, 3, h, w), hr (n, 3, 4h, 4w) and samples (n, 2, 3, 4h, 4w), all uint8, and drawn
    (n,) bool. cache.json describes what they depend on. An item of 192 pixels takes about 340 kB. A larger cache of
    the same stream extends a smaller one."""

    def __init__(self, folder: Path, items: int, made_for: Mapping[str, Any]) -> None:
        if items < 1:
            raise ValueError(f"a cache must hold at least 1 item, got --cache-items {items}")
        self.folder, self.items = folder, items
        self._document = {"format_version": FORMAT_VERSION, "made_for": dict(made_for)}
        path = folder / CACHE_FILE
        if path.is_file():
            try:
                found = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}): give another --cache") from None
            changed = differences(found, self._document)
            if changed:
                raise ValueError(
                    f"{folder} holds samples that were made for something else ({'; '.join(changed)}): give another --cache, or the "
                    "same settings, photos and teacher"
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} holds other files, expected a cache or a new folder: give another --cache"
            )

    def read(self, item: int) -> dict[str, Tensor]:
        """lr, hr and samples of an item, uint8, and drawn, bool."""
        try:
            with safe_open(self._path(item // SHARD), "pt") as file:
                return {name: file.get_slice(name)[item % SHARD] for name in ("lr", "hr", "samples", "drawn")}
        except (SafetensorError, OSError) as error:
            raise self._damaged(item // SHARD, error) from error

    def rows(self, shard: int) -> int:
        """Number of finished items in a shard."""
        if not self._path(shard).is_file():
            return 0
        try:
            with safe_open(self._path(shard), "pt") as file:
                return int(file.get_slice("samples").get_shape()[0])
        except SafetensorError as error:
            raise self._damaged(shard, error) from error

    def missing(self) -> list[list[int]]:
        """Items still to be made, in the batches that the teacher computes."""
        batches = []
        for first in range(0, self.items, SHARD):
            have, want = self.rows(first // SHARD), min(SHARD, self.items - first)
            begin = have - have % BATCH if have < want else want
            batches += [
                [first + k for k in range(b, min(b + BATCH, want))] for b in range(begin, want, BATCH)
            ]
        return batches

    def fill(
        self,
        pairs: Pairs,
        teacher: Teacher,
        *,
        prompts: PromptSource | None = None,
        workers: int = 1,
        on_progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Make the missing items.

        pairs: the training stream, with the teacher's noise.
        teacher: makes the samples.
        prompts: of the photos; None if the teacher takes none.
        workers: processes that prepare pairs.
        on_progress: called with the items done, their total number, and items per second.

        Raises KeyboardInterrupt after Ctrl-C and OSError if the disk is full. Finished items are kept and not made again."""
        batches = self.missing()
        done, begun = self.items - sum(map(len, batches)), time.monotonic()
        before, pending = done, []
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._document, indent=2) + "\n"
        write_complete(self.folder / CACHE_FILE, lambda fresh: fresh.write_text(text))
        loader = DataLoader(
            Items(pairs),
            batch_sampler=batches,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
        )
        with Interrupt() as interrupt:
            try:
                for items, found in zip(batches, loader, strict=True):
                    texts = prompts.prompts_for(found["names"], found["drawn"].tolist()) if prompts else ()
                    samples = teacher.samples(found["lr"], by_sample(found["noise"]), items, texts)
                    made = {
                        "lr": to_bytes(found["lr"]),
                        "hr": to_bytes(found["hr"]),
                        "samples": by_picture(samples),
                        "drawn": found["drawn"],
                    }
                    pending.append((items, made))
                    done += len(items)
                    if on_progress:
                        on_progress(done, self.items, (done - before) / (time.monotonic() - begun))
                    if (items[-1] + 1) % SHARD == 0 or items[-1] + 1 == self.items:
                        finished, pending = pending, []
                        self._append(finished)
                    if interrupt.asked:
                        raise KeyboardInterrupt(
                            f"{done} of {self.items} items are in {self.folder}; repeat the same command to resume"
                        )
            finally:
                if pending:
                    self._append(pending)

    def _append(self, parts: Sequence[tuple[list[int], dict[str, Tensor]]]) -> None:
        """Write batches of one shard, after the earlier batches that it already holds."""
        shard, begin = divmod(parts[0][0][0], SHARD)
        columns = [values for _, values in parts]
        if begin:
            columns.insert(0, {k: v[:begin] for k, v in load_file(self._path(shard)).items()})
        tensors = {name: torch.cat([values[name] for values in columns]) for name in columns[0]}
        try:
            write_complete(self._path(shard), lambda fresh: save_file(tensors, fresh))
        except (OSError, SafetensorError) as error:
            whole = sum(self.rows(k) for k in range(-(-self.items // SHARD)))
            raise OSError(
                f"could not write to the cache {self.folder} ({error}); the {whole} items there stay usable. Free some space and "
                f"repeat the command, or ask for fewer: --cache-items {max(1, whole)}"
            ) from error

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"

    def _damaged(self, shard: int, error: Exception) -> ValueError:
        return ValueError(
            f"{self._path(shard)} is damaged or missing ({error}): delete it and repeat the command, which makes it again"
        )
