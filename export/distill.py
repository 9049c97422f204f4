"""Train the student. Here from ground truth alone: pixels, SqueezeNet features, structure and an adversary.

    python -m export.distill --data DIR --perceptual-weights FILE --out RUN --minutes 120

A run folder holds config.json (the resolved settings, written first), log.jsonl, samples/ and state/ (for --resume), and at the end
student/ (the averaged weights as safetensors + JSON). The stream of pictures and noise is a pure function of the seed and the step.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from export.distiller import Distiller
from export.recipe import PRESETS, DistillConfig
from export.student import save_student
from training.budget import Budget, Interrupt
from training.checkpoint import has_state, load_state, save_state
from training.data import CropParams, PairDataset, PhotoSet, find_images, split_photos
from training.perceptual import SqueezeFeatures
from training.settings import to_dict, with_settings
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
    resume: bool = False,
    init: Path | None = None,
    workers: int = 1,
    validate_minutes: float = 5.0,
    on_progress: Callable[[int, float, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Run until the budget is spent; returns the last validation. FloatingPointError when a loss is not finite (state saved)."""
    if has_state(out / "state") and not resume:
        raise FileExistsError(
            f"{out} holds an unfinished or finished run; go on with --resume or choose another --out"
        )
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
    (out / "config.json").write_text(json.dumps(to_dict(config) | {"data": str(data)}, indent=2) + "\n")
    pairs = PairDataset(
        PhotoSet(training),
        CropParams(config.crop),
        mild_share=config.mild_share,
        seed=config.seed,
        start=step * config.batch,
    )
    validation = Validation(PhotoSet(held_out), out / "samples", distiller.features)
    budget.start(budget.spent)

    def save(name: str = "state") -> None:
        save_state(
            out / name,
            distiller.modules,
            distiller.optimizers,
            {"step": step, "seconds": budget.seconds(), "history": history},
        )

    def measure() -> dict[str, Any]:
        row = {"step": step, "seconds": round(budget.seconds(), 1), **distiller.validate(validation, step)}
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
        for lr, hr in _batches(pairs, config.batch, workers):
            progress = budget.progress(step)
            if progress >= 1.0 or interrupt.asked:
                break
            losses = distiller.step(lr, hr, step, progress)
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
    }
    save_student(distiller.average, out / "student", provenance)
    return last


def _batches(pairs: PairDataset, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from DataLoader(
        pairs, batch_size=batch, num_workers=workers, prefetch_factor=8 if workers else None
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gdposr train student", description="Train the student from a folder of photos."
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="pocket")
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
    parser.add_argument("--resume", action="store_true", help="go on from RUN/state")
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


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when an argument is wrong or the run cannot start."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = with_settings(PRESETS[args.preset], args.set)
        budget = Budget(steps=args.steps, minutes=args.minutes)
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
            resume=args.resume,
            init=args.init,
            workers=args.workers,
            validate_minutes=args.validate_minutes,
            on_progress=show,
        )
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log.info("student written to %s", args.out / "student")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
