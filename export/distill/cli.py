"""The command that trains the student, from photos alone or from a teacher as well.

    python -m export.distill.cli --teacher RUN --data DIR --perceptual-weights FILE --out RUN --minutes 120

`gdposr distill` and `gdposr train student` are the same; `export.distill.run` tells what a run folder holds.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

from export.distill.recipe import PRESETS, DistillConfig
from export.distill.run import train
from export.distill.teacher import PRECISIONS, Teacher, fitted
from training.devices import torch_device
from training.loop.budget import Budget
from training.settings import with_settings

log = logging.getLogger("distill")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdposr distill",
        description="Train the student from a folder of photos and, with --teacher, from a tuned one-step model. "
        "`gdposr train student` is the same command.",
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="default: pocket-teacher with --teacher, else pocket"
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
    parser.add_argument("--data", type=Path, required=True, help="folder of photos, searched recursively")
    parser.add_argument(
        "--perceptual-weights",
        type=Path,
        required=True,
        help="SqueezeNet 1.1 weights (safetensors, Caffe layout)",
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--minutes", type=float, help="time budget")
    parser.add_argument("--steps", type=int, help="step budget")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/state, with the same settings")
    parser.add_argument(
        "--init", type=Path, metavar="STUDENT", help="begin with the weights of a finished student"
    )
    parser.add_argument(
        "--device", default="auto", help="auto (default: a GPU where there is one), cpu, cuda"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--validate-minutes", type=float, default=5.0, help="minutes between validations and saved states"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the preset"
    )
    return parser


def _teacher(args: argparse.Namespace) -> Teacher | None:
    if args.teacher is None:
        return None
    return Teacher.load(
        args.teacher,
        args.teacher_base,
        precision=args.teacher_precision,
        device=torch_device(args.teacher_device or args.device, "--teacher-device"),
    )


def _fitted(config: DistillConfig, teacher: Teacher, changes: list[str]) -> DistillConfig:
    """The student takes noise as the teacher does, but for what the user has set himself."""
    found = fitted(config.student, teacher, [change.partition("=")[0] for change in changes])
    for name, value in found.items():
        log.info("student.%s=%d, as the teacher has it", name, value)
    return replace(config, student=replace(config.student, **found))


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 when an argument is wrong or the run cannot start, 130 when it was stopped by the user."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if (args.cache is None) != (args.cache_items is None):
            raise ValueError("--cache and --cache-items belong together: give both or none")
        args.device = torch_device(args.device, "--device")
        name = args.preset or ("pocket-teacher" if args.teacher else "pocket")
        config = with_settings(PRESETS[name], args.set)
        budget = Budget(steps=args.steps, minutes=args.minutes)
        teacher = _teacher(args)
        if teacher is not None:
            config = _fitted(config, teacher, args.set)
        last = time.monotonic()

        def show(step: int, progress: float, losses: dict[str, float]) -> None:
            nonlocal last
            if step % 100 == 0:
                now = time.monotonic()
                terms = " ".join(f"{k}={v:.4g}" for k, v in losses.items())
                log.info("step %d (%.0f %%, %.2f s/step) %s", step, 100 * progress, (now - last) / 100, terms)
                last = now

        result = train(
            config,
            args.data,
            args.perceptual_weights,
            args.out,
            budget,
            teacher=teacher,
            cache=None if args.cache is None else (args.cache, args.cache_items),
            resume=args.resume,
            init=args.init,
            device=args.device,
            workers=args.workers,
            validate_minutes=args.validate_minutes,
            on_progress=show,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}" if str(stop) else "interrupted", file=sys.stderr)
        return 130
    if not result["finished"]:
        log.info("stopped at step %d; go on with --resume", result["step"])
        return 130
    log.info("student written to %s", args.out / "student")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
