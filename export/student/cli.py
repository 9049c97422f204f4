"""Commands that train the student, on the common trainer.

    gdposr train student-core --pictures CACHE --data DIR --out RUN --minutes M [--init STUDENT]
    gdposr train student-core --prior x4plus --data DIR --out RUN --minutes M    # GPU: the teacher runs during
    training
    gdposr train student-noise --init CORE --data DIR --out RUN --minutes M
    gdposr train critic --init STUDENT --data OTHER_PHOTOS --out CRITIC --steps N
    gdposr train student-gdpo --init STUDENT --data DIR --out RUN --steps N [--critic CRITIC]

`training.loop.trainer` describes the run folder. Its model/ and snapshots/ hold student checkpoints, or the critic."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from export.student import critic as critics
from export.student import preference
from export.student.core import CoreSettings, StudentCore, stages_before, started
from export.student.critic import CriticSettings
from export.student.network import StudentConfig, load_student
from export.student.noise import NoiseSettings, StudentNoise
from export.student.preference import StudentGdpoSettings
from export.student.prior.network import Prior
from export.student.prior.pictures import CachedPairs, PictureCache
from training.data.batches import Pairs
from training.data.cards import Variety
from training.data.device.pairs import DevicePreparation, hr_pairs
from training.data.everyday import degrade_everyday
from training.data.photos import CropParams, PairDataset, PhotoSet
from training.loop.budget import Budget
from training.loop.command import add_options, begin, exit_code
from training.loop.stage import RunSettings, Stage
from training.loop.trainer import Trainer
from training.loop.validation import Validation
from training.metrics.squeezenet import SqueezeFeatures
from training.settings import with_settings

# Default share of drawn cards and of recoloured photos among the training pairs.
VARIETY = Variety(0.1, 0.1)


@dataclass(frozen=True)
class Sources:
    """What a stage is built from, in addition to its settings."""

    init: Path | None
    """Student checkpoint to start from; None starts from random weights."""
    features: SqueezeFeatures | None
    """SqueezeNet features for the perceptual loss; None leaves that loss out."""
    pictures: tuple[Path, ...]
    """Folders of pictures made by a teacher (`gdposr train pictures`)."""
    photos: PhotoSet
    """The training photos."""
    perceptual_weights: Path | None = None
    """File that `features` was loaded from; the metric `sqf` needs it."""
    critic: Path | None = None
    """Trained critic for the metric `critic`."""
    device: torch.device | str = "cpu"
    """Device that computes the reward's metrics."""
    prior: Prior | None = None
    """Teacher that runs during training of the core, instead of `pictures`."""

    @property
    def degraded_on_device(self) -> bool:
        """Whether LR pictures are made in batches on the device instead of one by one in the loaders."""
        on_gpu = torch.device(self.device).type != "cpu"
        return not self.pictures and (self.prior is not None or on_gpu)


@dataclass(frozen=True)
class Kind:
    """One of the student's stages: its presets and how to build it."""

    about: str
    """Ends the sentence "Train ..." in the command's help."""
    presets: dict[str, Any]
    """Settings by preset name."""
    build: Callable[[Any, Sources], Stage]
    """Makes the stage from settings and sources."""
    pairs: Callable[[Any, Sources], Pairs]
    """Makes the training pairs from settings and sources."""


TINY = StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8)


def photo_pairs(settings: RunSettings, sources: Sources, cards: float = VARIETY.graphics) -> Pairs:
    """Photos degraded as users' photos are; a tenth of them are recoloured. cards: share of drawn pairs, 0 to 1."""
    return PairDataset(
        sources.photos,
        CropParams(settings.crop, zoom_range=(settings.zoom_min, 1.0)),
        reduce=degrade_everyday,
        variety=replace(VARIETY, graphics=cards),
        seed=settings.seed,
    )


def undegraded_pairs(settings: RunSettings, sources: Sources, cards: float = VARIETY.graphics) -> Pairs:
    """The same photos without LR pictures, which the device then makes. cards: share of drawn pairs, 0 to 1."""
    crop = CropParams(settings.crop, zoom_range=(settings.zoom_min, 1.0))
    return hr_pairs(sources.photos, crop, replace(VARIETY, graphics=cards), settings.seed)


def preparation(settings: RunSettings, sources: Sources) -> DevicePreparation | None:
    """Makes the LR pictures for `undegraded_pairs`; None if the loaders make them."""
    return DevicePreparation(settings.seed, sources.prior) if sources.degraded_on_device else None


def cached_pairs(settings: RunSettings, sources: Sources, cards: float = VARIETY.graphics) -> Pairs:
    """Pairs from a teacher's stored pictures, and drawn cards. cards: share of drawn pairs, 0 to 1."""
    caches = [PictureCache(folder) for folder in sources.pictures]
    return CachedPairs(caches, settings.crop, settings.seed, cards=cards)


def core_pairs(settings: CoreSettings, sources: Sources) -> Pairs:
    if sources.prior is not None and not sources.pictures:
        return undegraded_pairs(settings, sources, settings.cards)
    if not sources.pictures:
        raise ValueError(
            "the core needs a teacher's pictures: give --pictures DIR, made by gdposr train pictures, or --prior"
        )
    return cached_pairs(settings, sources, settings.cards)


def any_pairs(settings: RunSettings, sources: Sources) -> Pairs:
    """Pairs from a teacher's stored pictures if there are any, else photos that the loaders degrade."""
    return cached_pairs(settings, sources) if sources.pictures else photo_pairs(settings, sources)


def noise_pairs(settings: NoiseSettings, sources: Sources) -> Pairs:
    if sources.degraded_on_device:
        return undegraded_pairs(settings, sources, settings.cards)
    if sources.pictures:
        return cached_pairs(settings, sources, settings.cards)
    return photo_pairs(settings, sources, settings.cards)


def build_core(settings: CoreSettings, sources: Sources) -> Stage:
    student, origin = started(settings.student, sources.init, settings.seed)
    return StudentCore(
        student, settings, sources.features, preparation(settings, sources), history=stages_before(origin)
    )


def build_noise(settings: NoiseSettings, sources: Sources) -> Stage:
    if sources.init is None:
        raise ValueError("this stage needs a trained core to start from: give --init CORE")
    student, origin = load_student(sources.init)
    return StudentNoise(student, settings, preparation(settings, sources), history=stages_before(origin))


def build_gdpo(settings: StudentGdpoSettings, sources: Sources) -> Stage:
    return preference.build(
        settings,
        sources.init,
        critic=sources.critic,
        perceptual_weights=sources.perceptual_weights,
        device=sources.device,
    )


def build_critic(settings: CriticSettings, sources: Sources) -> Stage:
    return critics.build(settings, sources.init)


CORE = Kind(
    "the student without noise, on the pictures of a published network",
    {
        "pocket": CoreSettings(),
        "tiny": CoreSettings(
            student=TINY, batch=2, crop=64, warmup_steps=1, held_out=1, discriminator_width=8
        ),
    },
    build_core,
    core_pairs,
)
NOISE = Kind(
    "the student's response to noise, starting from a finished core",
    {"pocket": NoiseSettings(), "tiny": NoiseSettings(batch=2, crop=64, warmup_steps=1, held_out=1)},
    build_noise,
    noise_pairs,
)
GDPO = Kind(
    "a finished student by preference optimization on its own samples",
    {
        "pocket": StudentGdpoSettings(),
        "tiny": StudentGdpoSettings(batch=2, crop=64, group=6, warmup_steps=1, held_out=1),
    },
    build_gdpo,
    any_pairs,
)
CRITIC = Kind(
    "a critic that tells photos from reconstructions of them",
    {
        "pocket": CriticSettings(),
        "tiny": CriticSettings(batch=2, crop=64, width=8, warmup_steps=1, held_out=1),
    },
    build_critic,
    any_pairs,
)
KINDS: dict[str, Kind] = {
    "student-core": CORE,
    "student-noise": NOISE,
    "student-gdpo": GDPO,
    "critic": CRITIC,
}


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
    pictures: folders of a teacher's stored pictures.
    perceptual_weights: SqueezeNet 1.1 weights for the perceptual loss and for the metric `sqf`.
    critic: trained critic for the metric `critic`.
    prior: .param file or "x4plus", a teacher that runs during training.
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
        help="a teacher's pictures, made by gdposr train pictures; may be repeated",
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
            help="instead of --pictures: teacher to run during training on a GPU, an ncnn .param file or x4plus",
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
