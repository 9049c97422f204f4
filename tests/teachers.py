"""Distillation from a teacher of the tests: a small one, its samples of the tests' photos, and runs. Needs the extra `train`."""

from collections.abc import Callable
from pathlib import Path

import torch

from export.distill import cli as distill
from export.distill.cache import TeacherCache, cache_facts
from export.distill.pairs import TaughtPairs
from export.distill.recipe import PRESETS, DistillConfig
from export.distill.stage import StudentDistill
from export.distill.teacher import Teacher
from training.data.batches import Batch, batches
from training.data.photos import CropParams, PairDataset, PhotoSet, find_images, split_photos
from training.loop.budget import Budget
from training.metrics.squeezenet import SqueezeFeatures
from training.model.one_step import OneStepModel
from training.model.pocket import UnetShape, VaeShape, build_unet, build_vae
from training.model.schedule import NoiseSchedule

TINY = PRESETS["tiny-teacher"]


def tiny_model(channels: int = 4, seed: int = 0) -> OneStepModel:
    """Random weights, with a decoder loud enough that two samples differ by about 10/255."""
    vae = build_vae(
        VaeShape(width=8, latent_channels=channels, encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4), seed
    )
    unet = build_unet(UnetShape(widths=(16, 32), layers=1, norm_groups=8), channels, seed)
    last = [m for m in vae.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.mul_(8.0)
    return OneStepModel(vae, unet, None, NoiseSchedule.scaled_linear())


def pairs_of(photos: Path, config: DistillConfig = TINY, channels: int = 4) -> TaughtPairs:
    training, _ = split_photos(find_images(photos), config.held_out)
    pairs = PairDataset(PhotoSet(training), CropParams(config.crop), seed=config.seed)
    return TaughtPairs(pairs, config, channels)


def stage_of(weights: Path, teacher: Teacher, config: DistillConfig = TINY) -> StudentDistill:
    return StudentDistill(config, SqueezeFeatures(weights), teacher)


def first_batch(
    photos: Path, weights: Path, teacher: Teacher, config: DistillConfig = TINY, channels: int = 4
) -> Batch:
    """With the teacher's samples, drawn now."""
    found = next(batches(pairs_of(photos, config, channels), None, config.batch, workers=0))
    return stage_of(weights, teacher, config).prepare(found)


def cache_of(
    folder: Path,
    items: int,
    teacher: Teacher,
    photos: Path,
    config: DistillConfig = TINY,
    *,
    fill: bool = True,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> TeacherCache:
    training, _ = split_photos(find_images(photos), config.held_out)
    cache = TeacherCache(folder, items, cache_facts(teacher, config, training, photos))
    if fill:
        cache.fill(pairs_of(photos, config), teacher, workers=0, on_progress=on_progress)
    return cache


def run(
    out: Path,
    photos: Path,
    weights: Path,
    teacher: Teacher | None,
    *,
    steps: int = 2,
    config: DistillConfig = TINY,
    cache: tuple[Path, int] | None = None,
    resume: bool = False,
) -> dict:
    budget = Budget(steps=steps)
    return distill.run(
        config, photos, weights, out, budget, teacher=teacher, cache=cache, resume=resume, workers=0
    )
