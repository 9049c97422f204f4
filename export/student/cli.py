"""Commands that train the student, on the common trainer.

    gdposr train student-core --pictures CACHE --data DIR --out RUN --minutes M [--init STUDENT]
    gdposr train student-core --prior x4plus --data DIR --out RUN --minutes M    # GPU: the prior runs during
    training
    gdposr train student-noise --init CORE --data DIR --out RUN --minutes M
    gdposr train critic --init STUDENT --data OTHER_PHOTOS --out CRITIC --steps N
    gdposr train student-gdpo --init STUDENT --data DIR --out RUN --steps N [--critic CRITIC]

`training.loop.trainer` describes the run folder. Its model/ and snapshots/ hold student checkpoints, or the critic."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.prior.network import Prior
from export.student.kinds import KINDS, Sources, preparation
from training.data.everyday import degrade_everyday
from training.data.photos import PhotoSet
from training.loop.budget import Budget
from training.loop.command import add_options, begin, exit_code
from training.loop.stage import RunSettings
from training.loop.trainer import Trainer
from training.loop.validation import Validation
from training.metrics.squeezenet import SqueezeFeatures
from training.settings import with_settings


def run(
    kind: str,
    settings: RunSettings,
    data: Path,
    out: Path,
    budget: Budget,
    *,
    init: Path | None = None,
    pictures: Sequence[Path] = (),
    perceptual_weights: Path | None = None,
    critic: Path | None = None,
    prior: str | None = None,
    resume: bool = False,
    workers: int = 1,
    validate_minutes: float = 10.0,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Run one of the student's stages; returns what `Trainer.run` returns.

    kind: key of `KINDS`.
    settings: resolved settings of that stage.
    data: folder of photos, searched recursively.
    out: run folder.
    budget: when to end.
    init: student checkpoint to start from.
    pictures: folders of a prior's stored pictures.
    perceptual_weights: SqueezeNet 1.1 weights for the perceptual loss and for the metric `sqf`.
    critic: trained critic for the metric `critic`.
    prior: .param file or "x4plus", a prior that runs during training.
    resume: continue from out/state.
    workers: processes that prepare pictures.
    validate_minutes: minutes between validations and saved states.
    on_step: called with the step number and the losses after every step."""
    settings, accelerator, training, held_out = begin(settings, data, out, resume=resume)
    features = SqueezeFeatures(perceptual_weights) if perceptual_weights else None
    sources = Sources(
        init,
        features,
        tuple(pictures),
        PhotoSet(training),
        perceptual_weights,
        critic,
        accelerator.device,
        None if prior is None else Prior.load(prior),
    )
    trainer = Trainer(
        KINDS[kind].build(settings, sources),
        settings,
        KINDS[kind].pairs(settings, sources),
        out,
        budget,
        prepare=preparation(settings, sources),
        validation=Validation(PhotoSet(held_out), out / "samples", features, reduce=degrade_everyday)
        if held_out
        else None,
        save_minutes=validate_minutes,
        workers=workers,
        about={
            "stage": kind,
            "init": None if init is None else str(init),
            "data": str(data.resolve()),
            "pictures": [str(folder) for folder in pictures],
            "critic": None if critic is None else str(critic),
            "prior": None if sources.prior is None else sources.prior.name,
        },
        on_step=on_step,
    )
    return trainer.run(resume=resume)


def _parser(kind: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"gdposr train {kind}", description=f"Train {KINDS[kind].about}.")
    add_options(parser, KINDS[kind].presets, validate_minutes=10.0)
    parser.add_argument("--init", type=Path, metavar="STUDENT", help="student checkpoint to start from")
    parser.add_argument(
        "--pictures",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a prior's pictures, made by gdposr train pictures; may be repeated",
    )
    parser.add_argument(
        "--perceptual-weights", type=Path, metavar="FILE", help="SqueezeNet 1.1 (safetensors, Caffe layout)"
    )
    if kind == "student-gdpo":
        parser.add_argument(
            "--critic",
            type=Path,
            metavar="RUN",
            help="critic from gdposr train critic, for the metric critic",
        )
    if kind == "student-core":
        parser.add_argument(
            "--prior",
            help="instead of --pictures: prior to run during training on a GPU, an ncnn .param file or x4plus",
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """argv: the stage's name, then its options.

    Exit code 0 on success, 2 on a wrong argument or a failed run, 130 when the user stopped it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in KINDS:
        print(f"error: expected one of {', '.join(KINDS)}, then its options", file=sys.stderr)
        return 2
    kind, args = argv[0], _parser(argv[0]).parse_args(argv[1:])
    written = f"{'critic' if kind == 'critic' else 'student'} written to {args.out / 'model'}"
    return exit_code(
        lambda: run(
            kind,
            with_settings(KINDS[kind].presets[args.preset], args.set),
            args.data,
            args.out,
            Budget(steps=args.steps, minutes=args.minutes),
            init=args.init,
            pictures=args.pictures,
            perceptual_weights=args.perceptual_weights,
            critic=getattr(args, "critic", None),
            prior=getattr(args, "prior", None),
            resume=args.resume,
            workers=args.workers,
            validate_minutes=args.validate_minutes,
        ),
        written,
    )


if __name__ == "__main__":
    raise SystemExit(main())
