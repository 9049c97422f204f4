"""Runs of the diffusion model's stages on a miniature Stable Diffusion 2.1, for the tests of each stage. Needs the extra `train`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from training.data.batches import Batch, batches
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images
from training.loop.budget import Budget
from training.loop.stage import RunSettings
from training.main import run
from training.stages.presets import GDPO, NAOSD

SD_NAOSD = replace(NAOSD["tiny"], cfg=7.5)  # the miniature has text
SD_GDPO = GDPO["tiny"]


def two_steps(
    stage: str, settings: RunSettings, photos: Path, out: Path, *, steps: int = 2, **more: Any
) -> list[dict[str, float]]:
    seen: list[dict[str, float]] = []
    run(
        stage,
        settings,
        photos,
        out,
        Budget(steps=steps),
        workers=0,
        on_step=lambda step, losses: seen.append(losses),
        **more,
    )
    return seen


def a_batch(photos: Path, size: int = 2) -> Batch:
    pairs = PairDataset(PhotoSet(find_images(photos)), CropParams(64), seed=3)
    return next(batches(pairs, None, size, workers=0))
