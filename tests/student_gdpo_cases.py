"""What the tests of the student's preference tuning share: a tiny student, its stage, a judge of brightness. Needs `train`."""

from dataclasses import replace
from typing import Any

import torch

from export.student.gdpo import StudentGdpo, StudentGdpoSettings
from export.student.model.network import TINY_STUDENT, Student
from training.metrics.registry import Metric, create_metrics

SETTINGS = StudentGdpoSettings(
    batch=2, crop=64, group=6, lr=1e-3, warmup_steps=1, held_out=1, metrics=("psnr",)
)


def student(seed: int = 0) -> Student:
    """A tiny one whose samples differ by a few levels."""
    torch.manual_seed(seed)
    made = Student(TINY_STUDENT)
    with torch.no_grad():
        made.generator.last.weight.mul_(2.0)
    return made.eval()


def brightness() -> Metric:
    return Metric("brightness", False, True, lambda sr: sr.mean((1, 2, 3)))


def stage(judge: Metric | None = None, **changes: Any) -> StudentGdpo:
    (psnr,) = create_metrics(["psnr"], "cpu")
    judge = judge or psnr
    return StudentGdpo(student(), replace(SETTINGS, metrics=(judge.name,), **changes), [judge])
