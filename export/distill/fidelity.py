"""How faithfully a student follows its teacher on the same noise, measured during training and afterwards.

python -m export.distill.fidelity --student DIR --teacher RUN --lr LR --hr HR [--every 5] [--seeds 4] [--json] [--check]"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.measure.diversity import DIVERSITY_FLOOR, agreement
from calibration.measure.onestep import restore
from calibration.measure.pairs import Pair, find_pairs, read_rgb
from export.distill.teacher import SAMPLES, Teacher
from export.student.model.checkpoint import load_student
from export.student.model.network import Student, StudentConfig
from export.student.sample import student_sample
from runtime.errors import GdposrError
from runtime.text import print_error
from training.metrics.fidelity import psnr_y
from training.model.text import PromptSource
from training.pixels import from_pixels, to_pixels

# Pictures that are sampled at once.
PICTURES = 4
LOGGED = ("teacher_psnr", "diversity", "texture_diversity", "follows")


def validation_noise(lr: Tensor, k: int, channels: int, fold: int) -> Tensor:
    """Noise of one sample of validation pictures.

    lr: (n, 3, h, w).
    k: number of the sample.
    channels: noise channels.
    fold: LR pixels per noise cell."""
    shape = (len(lr), channels, lr.shape[2] // fold, lr.shape[3] // fold)
    return torch.randn(shape, generator=torch.Generator().manual_seed(k))


class Comparison:
    """Compares a student with its teacher on the validation pictures, with the same noise. The teacher's samples are made once.

    teacher: to compare with.
    config: shape of the student.
    lr: the pictures, (n, 3, h, w).
    prompts: theirs, for the teacher; none for its default.

    Raises ValueError if the teacher's samples do not differ from each other."""

    def __init__(
        self, teacher: Teacher, config: StudentConfig, lr: Tensor, prompts: Sequence[str] = ()
    ) -> None:
        self.lr = lr
        self.noise = [validation_noise(lr, k, teacher.noise_channels, teacher.fold) for k in range(SAMPLES)]
        texts = [prompts[k : k + PICTURES] for k in range(0, len(lr), PICTURES)]
        self._teacher = self._pictures(teacher, texts)
        self.noise = [noise[:, : config.noise_channels] for noise in self.noise]
        agreement(zip(self._teacher, self._teacher, strict=True))

    @torch.no_grad()
    def __call__(self, student: Callable[[Tensor, Tensor], Tensor]) -> dict[str, float]:
        """Compare a student.

        student: (lr, noise) -> samples, on any device.

        Returns teacher_psnr, diversity, texture_diversity and follows, see `calibration.measure.diversity.Agreement`."""
        found = agreement(zip(self._pictures(student), self._teacher, strict=True)).to_dict()
        return {name: found[name] for name in LOGGED}

    def _pictures(
        self, model: Callable[..., Tensor], texts: Sequence[Sequence[str]] = ()
    ) -> list[list[np.ndarray]]:
        """The samples of each picture, (H, W, 3) float32 in [0, 255].

        model: (lr, noise) -> samples, or (lr, noise, prompts) -> samples.
        texts: prompts of each part of the pictures, if the model takes any."""
        more = [texts] if texts else []
        parts = [
            zip(self.lr.split(PICTURES), noise.split(PICTURES), *more, strict=True) for noise in self.noise
        ]
        by_sample = [torch.cat([model(*part) for part in each]) for each in parts]
        levels = [(255 * sr).permute(0, 2, 3, 1).cpu().numpy() for sr in by_sample]
        return [list(samples) for samples in zip(*levels, strict=True)]


@dataclass(frozen=True)
class Report:
    """Means over pictures and seeds."""

    pictures: int
    """Number of pictures."""
    seeds: int
    """Samples per picture."""
    student_psnr: float
    """PSNR in dB on Y, against HR."""
    teacher_psnr: float
    """PSNR in dB on Y, against HR."""
    agreement: dict[str, float]
    """Values of `calibration.measure.diversity.Agreement`."""

    @property
    def ok(self) -> bool:
        """Whether the student kept the required diversity."""
        return self.agreement["diversity"] >= DIVERSITY_FLOOR

    def to_dict(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures,
            "seeds": self.seeds,
            "psnr_y_student": self.student_psnr,
            "psnr_y_teacher": self.teacher_psnr,
            **self.agreement,
            "ok": self.ok,
        }

    def __str__(self) -> str:
        a = self.agreement
        rows = [
            ("PSNR (Y) to HR, student", f"{self.student_psnr:.2f} dB"),
            ("PSNR (Y) to HR, teacher", f"{self.teacher_psnr:.2f} dB"),
            ("PSNR (RGB) student to teacher, same noise", f"{a['teacher_psnr']:.2f} dB"),
            ("distance between seeds, student", f"{a['distance']:.2f} / 255"),
            ("distance between seeds, teacher", f"{a['teacher_distance']:.2f} / 255"),
            ("diversity kept", f"{a['diversity']:.1%} (at least {DIVERSITY_FLOOR:.0%} required)"),
            ("diversity kept, texture alone", f"{a['texture_diversity']:.1%}"),
            ("follows the teacher's seeds", f"{a['follows']:.3f}"),
            ("follows the teacher's seeds, texture alone", f"{a['texture_follows']:.3f}"),
        ]
        lines = [f"{name:44}{value}" for name, value in rows]
        return "\n".join([f"{self.pictures} pictures, {self.seeds} seeds", *lines])


def sample(student: Student, lr: np.ndarray, seed: int) -> np.ndarray:
    """One sample of an LR picture (h, w, 3) uint8 -> (4h, 4w, 3) uint8, with the runtime's noise.

    The same as `calibration.measure.onestep.restore` does for a one-step model."""
    sr = student_sample(student, from_pixels(lr), seed)
    return np.ascontiguousarray(to_pixels(sr))


def measure(
    student: Student,
    teacher: Teacher,
    pairs: Sequence[Pair],
    seeds: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
    prompts: PromptSource | None = None,
) -> Report:
    """Sample every pair's LR picture with both models and compare.

    student, teacher: the models.
    pairs: LR and HR files.
    seeds: samples per picture, at least 2; seeds 0, 1, ... are used.
    on_progress: called with the pictures done and their total number.
    prompts: of the LR pictures, for a teacher that takes any."""
    if seeds < 2:
        raise ValueError(f"diversity needs at least 2 seeds, got --seeds {seeds}")
    teacher.check(student.config, teacher.model.size_multiple)
    psnr: dict[str, list[float]] = {"student": [], "teacher": []}

    def pictures() -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        for k, pair in enumerate(pairs):
            lr, hr = read_rgb(pair.lr), read_rgb(pair.hr)
            text = None if prompts is None else prompts.prompt_for(pair.lr)
            made = {
                "student": [sample(student, lr, seed) for seed in range(seeds)],
                "teacher": [restore(teacher.model, lr, seed, prompt=text) for seed in range(seeds)],
            }
            for name, samples in made.items():
                psnr[name] += [psnr_y(sr, hr) for sr in samples]
            if on_progress:
                on_progress(k + 1, len(pairs))
            yield made["student"], made["teacher"]

    found = agreement(pictures()).to_dict()
    return Report(
        pictures=len(pairs),
        seeds=seeds,
        student_psnr=float(np.mean(psnr["student"])),
        teacher_psnr=float(np.mean(psnr["teacher"])),
        agreement=found,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export.distill.fidelity",
        description="Compare a student's samples with its teacher's from the same noise.",
    )
    parser.add_argument("--student", type=Path, required=True, help="student checkpoint")
    parser.add_argument("--teacher", required=True, help="training run, model folder or hub name")
    parser.add_argument(
        "--teacher-base", help="source of the teacher's text encoder and scheduler, if it has none"
    )
    parser.add_argument("--lr", type=Path, required=True, help="folder of LR pictures")
    parser.add_argument("--hr", type=Path, required=True, help="folder of HR pictures with the same names")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every Nth pair only")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"exit with code 1 if less than {DIVERSITY_FLOOR:.0%}% of the diversity is kept",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 on success, 1 if --check fails, 2 if nothing could be measured."""
    args = _parser().parse_args(argv)

    def show(done: int, total: int) -> None:
        print(f"\r{done} of {total} pictures", end="\n" if done == total else "", file=sys.stderr, flush=True)

    try:
        if args.every < 1:
            raise ValueError(f"--every must be at least 1, got {args.every}")
        student, _ = load_student(args.student)
        teacher = Teacher.load(args.teacher, args.teacher_base)
        prompts = PromptSource(args.lr, teacher.model.prompt) if teacher.takes_prompts else None
        pairs = find_pairs(args.lr, args.hr)[:: args.every]
        report = measure(student, teacher, pairs, args.seeds, show, prompts)
    except (ValueError, OSError, GdposrError) as error:
        print_error(error)
        return 2
    print(json.dumps(report.to_dict(), indent=2) if args.json else report)
    return 1 if args.check and not report.ok else 0


if __name__ == "__main__":
    raise SystemExit(main())
