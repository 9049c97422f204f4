"""Train the student, from photos alone or from a teacher as well: a tuned one-step model, on the same noise.

    python -m export.distill --teacher RUN --data DIR --perceptual-weights FILE --out RUN --minutes 120

A run folder holds config.json (the resolved settings, written first), log.jsonl, samples/ and state/ (for --resume), and at the end
student/ (the averaged weights as safetensors + JSON). The stream of pictures and noise is a pure function of the seed and the step;
the teacher runs at every step, or its samples of the first items are made once and kept (--cache).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.distiller import Distiller
from export.fidelity import Comparison
from export.lessons import lessons_of
from export.recipe import PRESETS, DistillConfig
from export.student import save_student
from export.teacher import PRECISIONS, Teacher, fitted
from training.budget import Budget, Interrupt
from training.checkpoint import has_state, load_state, read_values, save_state
from training.data import PhotoSet, find_images, split_photos
from training.loading import read_json
from training.perceptual import SqueezeFeatures
from training.settings import differences, to_dict, with_settings
from training.validation import Validation

log = logging.getLogger("distill")

DEAD_BELOW = 1e-3  # difference of two samples, 1/255 rms, under which the student counts as dead


def train(
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
    on_progress: Callable[[int, float, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Run until the budget is spent; returns the last validation. FloatingPointError when a loss is not finite (state saved).

    cache: folder and number of items of the teacher's samples; it is filled before the budget begins to count, and Ctrl-C while it is
    filled raises KeyboardInterrupt."""
    if has_state(out / "state") and not resume:
        raise FileExistsError(
            f"{out} holds an unfinished or finished run; go on with --resume or choose another --out"
        )
    _check_teacher(config, teacher, cache, out if resume else None)
    about = _about(config, data, teacher, cache)
    if resume:
        _check_settings(about, out)
    training, held_out = split_photos(find_images(data), config.held_out)
    distiller = Distiller(config, SqueezeFeatures(perceptual_weights))
    step, history = 0, []
    if init is not None:
        earlier = distiller.start_from(init)
        history = [*earlier.pop("history", []), earlier]
    if resume:
        values = load_state(out / "state", distiller.modules, distiller.optimizers)
        step, budget.spent, history = values["step"], values["seconds"], values["history"]
    out.mkdir(parents=True, exist_ok=True)
    origin = {} if teacher is None else {"teacher": teacher.describe()}
    (out / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    validation = Validation(PhotoSet(held_out), out / "samples", distiller.features)
    comparison = None if teacher is None else Comparison(teacher, config.student, validation.lr)
    lessons = lessons_of(config, data, training, teacher, cache, step * config.batch, workers)
    budget.start(budget.spent)

    def save(name: str = "state") -> None:
        save_state(
            out / name,
            distiller.modules,
            distiller.optimizers,
            {
                "step": step,
                "seconds": budget.seconds(),
                "history": history,
                "teacher": None if teacher is None else teacher.digest,
            },
        )

    def measure() -> dict[str, Any]:
        found = distiller.validate(validation, step, comparison)
        row = {"step": step, "seconds": round(budget.seconds(), 1), **found}
        with (out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        log.info("validation %s", " ".join(f"{k}={v:.4g}" for k, v in row.items()))
        save_student(distiller.average, out / "snapshots" / f"{step:07d}", row)
        if not row["samples_differ"] > DEAD_BELOW:
            raise FloatingPointError(
                f"step {step}: the noise has lost its effect (two samples differ by {row['samples_differ']:.2g}/255): the student "
                f"died. Go on from an earlier one in {out / 'snapshots'} with --init and a lower lr"
            )
        return row

    last: dict[str, Any] = {}
    next_measure = budget.seconds() + 60.0  # the first one early, to see at once whether the student lives
    with Interrupt() as interrupt:
        for lesson in lessons:
            progress = budget.progress(step)
            if progress >= 1.0 or interrupt.asked:
                break
            losses = distiller.step(lesson, step, progress)
            if not all(math.isfinite(v) for v in losses.values()):
                save("failed")
                raise FloatingPointError(
                    f"step {step}: loss is not finite ({losses}); what stood then is in {out / 'failed'}, the last regular "
                    f"state in {out / 'state'}. Lower lr or use fp32"
                )
            step += 1
            if on_progress:
                on_progress(step, progress, losses)
            if budget.seconds() >= next_measure:
                last = measure()
                save()
                next_measure = budget.seconds() + 60 * validate_minutes
    last = measure()
    save()
    provenance = {
        "steps": step,
        "minutes": round(budget.seconds() / 60, 1),
        "photos": len(training),
        "config": to_dict(config),
        "validation": last,
        "history": history,  # earlier runs whose weights this one began with
        **origin,
    }
    save_student(distiller.average, out / "student", provenance)
    return last


def _check_teacher(
    config: DistillConfig, teacher: Teacher | None, cache: tuple[Path, int] | None, resumed: Path | None
) -> None:
    """ValueError where settings, teacher, cache and the run that is resumed do not belong together."""
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
                "the settings give the teacher no weight: choose a preset whose name ends in -teacher, or --set teacher=2"
            )
        teacher.check(config.student, config.crop // config.student.scale)
    if resumed is not None and has_state(resumed / "state"):
        begun = read_values(resumed / "state").get("teacher")
        if begun != (None if teacher is None else teacher.digest):
            known = json.loads((resumed / "config.json").read_text()).get("teacher", {}).get("source")
            raise ValueError(
                f"{resumed} was begun {'without a teacher' if begun is None else f'with the teacher {known} as it was then'}: "
                "resume it so, or start a new run with another --out"
            )


def _about(
    config: DistillConfig, data: Path, teacher: Teacher | None, cache: tuple[Path, int] | None
) -> dict[str, Any]:
    """What config.json says of a run. With a teacher, its weight in the loss stands among the facts about it."""
    about = to_dict(config) | {"data": str(data)}
    if cache is not None:
        about["cache"] = [str(cache[0]), cache[1]]
    if teacher is not None:
        about["teacher"] = teacher.describe() | {"weight": config.teacher}
    return about


def _check_settings(about: Mapping[str, Any], out: Path) -> None:
    """ValueError where the run in out, if it has a state, was begun with other settings, data, teacher or cache."""
    if not has_state(out / "state"):
        return
    path = out / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, which tells what the run was begun with: put it back, or start a new run with another --out"
        )
    before, now = _comparable(read_json(path)), _comparable(about)
    if isinstance(before["teacher"], dict) and isinstance(now["teacher"], dict):
        before["teacher"].setdefault("weight", now["teacher"]["weight"])  # earlier runs did not note it
    changed = differences(before, now)
    if changed:
        raise ValueError(
            f"{out} was begun with other settings ({'; '.join(changed)}): resume with the same ones, or start a new run with another "
            "--out. Only the budget and the number of workers may change"
        )


def _comparable(about: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says, with whole paths; the teacher goes by its weights, wherever they lie."""
    found = {**about, "data": str(Path(about["data"]).resolve())}
    if "cache" in about:
        folder, items = about["cache"]
        found["cache"] = [str(Path(folder).resolve()), items]
    if isinstance(about["teacher"], Mapping):
        found["teacher"] = {name: value for name, value in about["teacher"].items() if name != "source"}
    return found


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
    parser.add_argument("--teacher-device", default="cpu", help="cpu (default), cuda, ...")
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
        args.teacher, args.teacher_base, precision=args.teacher_precision, device=args.teacher_device
    )


def _fitted(config: DistillConfig, teacher: Teacher, changes: list[str]) -> DistillConfig:
    """The student takes noise as the teacher does, but for what the user has set himself."""
    found = fitted(config.student, teacher, [change.partition("=")[0] for change in changes])
    for name, value in found.items():
        log.info("student.%s=%d, as the teacher has it", name, value)
    return replace(config, student=replace(config.student, **found))


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, 2 when an argument is wrong or the run cannot start, 130 when a cache was left unfinished by Ctrl-C."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if (args.cache is None) != (args.cache_items is None):
            raise ValueError("--cache and --cache-items belong together: give both or none")
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

        train(
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
            on_progress=show,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop}" if str(stop) else "interrupted", file=sys.stderr)
        return 130
    log.info("student written to %s", args.out / "student")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
