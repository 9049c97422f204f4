"""A run of the student's training: from photos alone or from a teacher as well, a tuned one-step model, on the same noise.

A run folder holds config.json (the resolved settings, written first), log.jsonl, samples/, snapshots/ (the averaged weights at each
validation), state/ (to resume; failed/ where a loss was not finite) and, when the budget is spent, student/ (the averaged weights as
safetensors + JSON). The stream of pictures and noise is a pure function of the seed and the step;
the teacher runs at every step, or its samples of the first items are made once and kept (a cache).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from export.distill.pairs import lessons_of
from export.distill.fidelity import Comparison
from export.distill.recipe import DistillConfig
from export.distill.stage import Distiller
from export.distill.teacher import Teacher
from export.student.network import save_student
from training.checkpoint import has_state, load_state, read_json, read_values, save_state
from training.data.photos import PhotoSet, find_images, split_photos
from training.loop.budget import Budget, Interrupt
from training.loop.validation import Validation
from training.metrics.squeezenet import SqueezeFeatures
from training.settings import differences, to_dict

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
    device: str = "cpu",
    workers: int = 1,
    validate_minutes: float = 5.0,
    on_progress: Callable[[int, float, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Run until the budget is spent or the user asks for a stop; returns the last validation, with `step` and `finished`, which is
    False after a stop: the state is saved, and no student is written. FloatingPointError when a loss is not finite (state saved).

    cache: folder and number of items of the teacher's samples; it is filled before the budget begins to count, and Ctrl-C while it is
    filled raises KeyboardInterrupt."""
    if has_state(out / "state") and not resume:
        raise FileExistsError(
            f"{out} holds an unfinished or finished run; go on with --resume or choose another --out"
        )
    config = config.on(torch.device(device).type)
    _check_teacher(config, teacher, cache, out if resume else None)
    about = _about(config, data, teacher, cache)
    if resume:
        _check_settings(about, out)
    training, held_out = split_photos(find_images(data), config.held_out)
    distiller = Distiller(config, SqueezeFeatures(perceptual_weights), device)
    step, history = 0, []
    if init is not None:
        earlier = distiller.start_from(init)
        history = [*earlier.pop("history", []), earlier]
    if resume:
        values = load_state(out / "state", distiller.modules, distiller.optimizers)
        step, budget.spent, history = values["step"], values["seconds"], values["history"]
    out.mkdir(parents=True, exist_ok=True)
    origin = {} if teacher is None else {"teacher": teacher.describe()}
    if not resume:  # else it is there, and says the same
        (out / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    validation = Validation(PhotoSet(held_out), out / "samples", distiller.features)
    comparison = None if teacher is None else Comparison(teacher, config.student, validation.lr)
    log.info("on %s, precision %s", device, config.precision)
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

    def provenance(last: dict[str, Any]) -> dict[str, Any]:
        return {
            "steps": step,
            "minutes": round(budget.seconds() / 60, 1),
            "photos": len(training),
            "config": to_dict(config),
            "validation": last,
            "history": history,  # earlier runs whose weights this one began with
            **origin,
        }

    def measure() -> dict[str, Any]:
        found = distiller.validate(validation, step, comparison)
        row = {"step": step, "seconds": round(budget.seconds(), 1), **found}
        with (out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        log.info("validation %s", " ".join(f"{k}={v:.4g}" for k, v in row.items()))
        save_student(distiller.average, out / "snapshots" / f"{step:07d}", provenance(row))
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
            if interrupt.asked:
                save()
                return {**last, "step": step, "finished": False}
            progress = budget.progress(step)
            if progress >= 1.0:
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
        save_student(distiller.average, out / "student", provenance(last))
    return {**last, "finished": True}


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
                "the settings give the teacher no weight: choose a preset whose name ends in -teacher or -texture, or --set teacher=2"
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
