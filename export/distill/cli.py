"""The command that trains the student, from photos alone or from a teacher as well.

    python -m export.distill.cli --teacher RUN --data DIR --perceptual-weights FILE --out RUN --minutes 120

`gdposr distill` and `gdposr train student` are the same. A run folder is what `training.loop.trainer` writes, with the student, the
averaged weights, in student/ and in snapshots/, one for each validation.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from export.distill.cache import TeacherCache, cache_facts
from export.distill.fidelity import Comparison
from export.distill.pairs import TaughtPairs, fill, photo_pairs
from export.distill.recipe import PRESETS, DistillConfig
from export.distill.stage import StudentDistill
from export.distill.teacher import PRECISIONS, Teacher, fitted
from training.data.batches import Pairs
from training.data.photos import PhotoSet
from training.devices import torch_device
from training.loop.accelerator import make_accelerator
from training.loop.budget import Budget
from training.loop.command import add_options, begin, exit_code
from training.loop.trainer import Trainer
from training.loop.validation import Validation
from training.metrics.squeezenet import SqueezeFeatures
from training.settings import with_settings

log = logging.getLogger("train")


def run(
    config: DistillConfig,
    data: Path,
    perceptual_weights: Path,
    out: Path,
    budget: Budget,
    *,
    teacher: Teacher | None = None,
    cache: tuple[Path, int] | None = None,
    resume: bool = False,
    init: Path | None = None,
    workers: int = 1,
    validate_minutes: float = 5.0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train the student; returns what `Trainer.run` returns.

    cache: folder and number of items of the teacher's samples; it is filled before the budget begins to count, and Ctrl-C while it is
    filled raises KeyboardInterrupt."""
    _check_teacher(config, teacher, cache)
    config, accelerator, training, held_out = begin(config, data, out, resume=resume)
    features = SqueezeFeatures(perceptual_weights)
    validation = Validation(PhotoSet(held_out), out / "samples", features)
    about: dict[str, Any] = {
        "stage": "student",
        "init": None if init is None else str(init.resolve()),
        "data": str(data.resolve()),
    }
    photos = PhotoSet(training)
    pairs: Pairs = photo_pairs(photos, config)
    notes, comparison, before = {}, None, None
    if teacher is not None:
        about["teacher"], notes["teacher_source"] = teacher.describe(), teacher.source
        if accelerator.is_main_process:
            comparison = Comparison(teacher, config.student, validation.lr)
        kept = None
        if cache is not None:
            about["cache"] = [str(cache[0].resolve()), cache[1]]
            kept = TeacherCache(*cache, cache_facts(teacher, config, training, data))
        step = config.batch * config.accumulate * accelerator.num_processes
        pairs = TaughtPairs(photo_pairs(photos, config), config, teacher.noise_channels, kept, step)
        if kept is not None:
            before = partial(fill, kept, pairs, teacher, workers, main=accelerator.is_main_process)
    trainer = Trainer(
        StudentDistill(config, features, teacher, comparison, init),
        config,
        pairs,
        out,
        budget,
        validation=validation,
        save_minutes=validate_minutes,
        workers=workers,
        about=about,
        notes=notes,
        before=before,
        on_step=on_step,
    )
    return trainer.run(resume=resume)


def _check_teacher(config: DistillConfig, teacher: Teacher | None, cache: tuple[Path, int] | None) -> None:
    """ValueError where settings, teacher and cache do not belong together."""
    if teacher is None:
        if config.taught:
            raise ValueError(
                "the settings give a teacher weight, but there is none: give --teacher RUN, or a preset for photos alone"
            )
        if cache is not None:
            raise ValueError("--cache keeps a teacher's samples: give --teacher RUN as well")
    else:
        if not config.taught:
            raise ValueError(
                "the settings give the teacher no weight: choose a preset whose name ends in -teacher or -texture, or --set teacher=2"
            )
        teacher.check(config.student, config.crop // config.student.scale)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdposr distill",
        description="Train the student from a folder of photos and, with --teacher, from a tuned one-step model. "
        "`gdposr train student` is the same command.",
    )
    add_options(
        parser,
        PRESETS,
        preset=None,
        preset_help="default: pocket-teacher with --teacher, else pocket",
    )
    parser.add_argument("--teacher", metavar="RUN", help="one-step model: training run, folder or hub name")
    parser.add_argument(
        "--teacher-base",
        metavar="BASE",
        help="where its text encoder and scheduler come from, if it has none",
    )
    parser.add_argument("--teacher-precision", choices=sorted(PRECISIONS), default="fp32")
    parser.add_argument("--teacher-device", help="cpu, cuda, ... (default: the student's)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the teacher's samples here")
    parser.add_argument(
        "--cache-items",
        type=int,
        metavar="N",
        help="with --cache: train on the first N items, again and again",
    )
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        required=True,
        help="SqueezeNet 1.1 weights (safetensors, Caffe layout)",
    )
    parser.add_argument(
        "--init", type=Path, metavar="STUDENT", help="begin with the weights of a finished student"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda"
    )
    return parser


def _fitted(config: DistillConfig, teacher: Teacher, changes: list[str]) -> DistillConfig:
    """The student takes noise as the teacher does, but for what the user has set himself."""
    found = fitted(config.student, teacher, [change.partition("=")[0] for change in changes])
    for name, value in found.items():
        log.info("student.%s=%d, as the teacher has it", name, value)
    return replace(config, student=replace(config.student, **found))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if (args.cache is None) != (args.cache_items is None):
        raise ValueError("--cache and --cache-items belong together: give both or none")
    config = with_settings(PRESETS[args.preset or ("pocket-teacher" if args.teacher else "pocket")], args.set)
    budget = Budget(steps=args.steps, minutes=args.minutes)
    device = make_accelerator(config.precision, device=torch_device(args.device)).device
    teacher = None
    if args.teacher is not None:
        where = torch_device(args.teacher_device, "--teacher-device") if args.teacher_device else device
        teacher = Teacher.load(
            args.teacher, args.teacher_base, precision=args.teacher_precision, device=where
        )
        config = _fitted(config, teacher, args.set)
    return run(
        config,
        args.data,
        args.perceptual_weights,
        args.out,
        budget,
        teacher=teacher,
        cache=None if args.cache is None else (args.cache, args.cache_items),
        resume=args.resume,
        init=args.init,
        workers=args.workers,
        validate_minutes=args.validate_minutes,
    )


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 when an argument is wrong or the run fails, 130 when it was stopped by the user."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args), f"student written to {args.out / 'student'}")


if __name__ == "__main__":
    raise SystemExit(main())
