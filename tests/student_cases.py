"""What the tests of the student's stages share: a small student and a batch of a prior's pictures. Needs the extra `train`."""

from pathlib import Path

import torch

from export.prior.pictures import CachedPairs, PictureCache
from export.student.model.network import Student, StudentConfig
from training.data.batches import Batch, batches

SHAPE = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)


def a_batch(pictures: Path, count: int = 2) -> Batch:
    pairs = CachedPairs([PictureCache(pictures)], crop=64, seed=3)
    return next(batches(pairs, None, count, workers=0))


def a_student(seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student(SHAPE)
