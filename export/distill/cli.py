"""The command that trains the student, from photos alone or also from a teacher.

    python -m export.distill.cli --teacher RUN --data DIR --perceptual-weights FILE --out RUN --minutes 120

`gdposr distill` and `gdposr train student` run the same command. `training.loop.trainer` describes the run folder.
student/ holds the student with averaged weights, and snapshots/ one for each validation."""

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
from export.distill.pairs import TaughtPairs, fill
from export.distill.recipe import PRESETS, DistillConfig
from export.distill.stage import StudentDistill
from export.distill.teacher import PRECISIONS, Teacher, fitted
from training.data.batches import Pairs
from training.data.photos import PhotoSet
from training.devices import torch_device
from training.loop.accelerator import make_accelerator
from training.loop.budget import Budget
from training.loop.command import add_options, begin, device_preparation, exit_code, photo_pairs
from training.loop.trainer import Trainer
from training.loop.validation import Validation
from training.metrics.squeezenet import SqueezeFeatures
from training.model.text import PromptSource
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
    caption: Callable[[Path], str] | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train the student; returns what `Trainer.run` returns.

    config: recipe of the training.
    data: folder of photos, searched recursively.
    perceptual_weights: SqueezeNet 1.1 weights.
    out: run folder.
    budget: when to end.
    teacher: one-step model to follow; None trains on photos alone.
    cache: folder and number of items of the teacher's samples. It is filled before the budget starts to count; Ctrl-C
        meanwhile raises KeyboardInterrupt.
    resume: continue from out/state.
    init: student checkpoint to start from.
    workers: processes that prepare pictures.
    validate_minutes: minutes between validations and saved states.
    caption: gives captions to photos that have none in a file, for a teacher with text; see `PromptSource`.
    on_step: called with the step number and the losses after every step."""
    # data: photos for training, and those held out
    _check_teacher(config, teacher, cache)
    if cache is not None:
        config = replace(config, degrade="loader")
    config, accelerator, training, held_out = begin(config, data, out, resume=resume)
    # validation: with captions for a teacher with text
    features = SqueezeFeatures(perceptual_weights)
    prompts = None
    if teacher is not None and teacher.takes_prompts:
        prompts = PromptSource(data, config.prompt or teacher.model.prompt, caption=caption)
        log.info("%s", prompts.describe([*training, *held_out]))
    validation = Validation(PhotoSet(held_out), out / "samples", features, prompts=prompts)
    about: dict[str, Any] = {
        "stage": "student",
        "init": None if init is None else str(init.resolve()),
        "data": str(data.resolve()),
    }
    # pairs: of photos, for training without a teacher
    photos = photo_pairs(PhotoSet(training), config, config.variety)
    pairs: Pairs = photos
    notes, comparison, before = {}, None, None
    # teacher: its samples join the pairs, from the cache or as they are needed
    if teacher is not None:
        about["teacher"], notes["teacher_source"] = teacher.describe(), teacher.source
        if accelerator.is_main_process:
            comparison = Comparison(teacher, config.student, validation.lr, validation.prompts)
        kept = None
        if cache is not None:
            about["cache"] = [str(cache[0].resolve()), cache[1]]
            kept = TeacherCache(*cache, cache_facts(teacher, config, training, data, prompts))
        step = config.batch * config.accumulate * accelerator.num_processes
        pairs = TaughtPairs(photos, config, teacher.noise_channels, kept, step)
        if kept is not None:
            before = partial(fill, kept, pairs, teacher, workers, prompts, main=accelerator.is_main_process)
            prompts = None  # the cache has the samples, and its pairs have no photo
    # train
    trainer = Trainer(
        StudentDistill(config, features, teacher, comparison, init),
        config,
        pairs,
        out,
        budget,
        prepare=device_preparation(config),
        prompts=prompts,
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
    """Raise ValueError if settings, teacher and cache do not fit together."""
    if teacher is None:
        if config.taught:
            raise ValueError(
                "the settings give weight to a teacher, but there is none: give --teacher RUN, or a preset for photos alone"
            )
        if cache is not None:
            raise ValueError("--cache stores a teacher's samples: give --teacher RUN as well")
    elif cache is not None and config.degrade == "device":
        raise ValueError("a cache holds LR pictures that the loaders make, got degrade=device: leave it out")
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
        "`gdposr train student` runs the same command.",
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
        help="source of the teacher's text encoder and scheduler, if it has none",
    )
    parser.add_argument("--teacher-precision", choices=sorted(PRECISIONS), default="fp32")
    parser.add_argument("--teacher-device", help="cpu, cuda, ... (default: the student's)")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="store the teacher's samples in this folder"
    )
    parser.add_argument(
        "--cache-items",
        type=int,
        metavar="N",
        help="with --cache: number of items to store and to train on repeatedly",
    )
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        required=True,
        help="SqueezeNet 1.1 weights (safetensors, Caffe layout)",
    )
    parser.add_argument(
        "--init", type=Path, metavar="STUDENT", help="start from the weights of a finished student"
    )
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda")
    return parser


def _fitted(config: DistillConfig, teacher: Teacher, changes: list[str]) -> DistillConfig:
    """Set the student's noise to the teacher's, except for settings that the user has changed."""
    found = fitted(config.student, teacher, [change.partition("=")[0] for change in changes])
    for name, value in found.items():
        log.info("student.%s=%d, as in the teacher", name, value)
    return replace(config, student=replace(config.student, **found))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if (args.cache is None) != (args.cache_items is None):
        raise ValueError("--cache and --cache-items need each other: give both or neither")
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
    """Exit code 0 on success, 2 on a wrong argument or a failed run, 130 when the user stopped it."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args), f"student written to {args.out / 'student'}")


if __name__ == "__main__":
    raise SystemExit(main())
