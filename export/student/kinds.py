"""The student's stages by name: their presets, and how each is built from the command's arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from export.prior.network import Prior
from export.prior.pictures import CachedPairs, PictureCache
from export.student import critic_stage as critics
from export.student.core import CoreSettings, StudentCore, stages_before
from export.student.critic_stage import CriticSettings
from export.student.gdpo import StudentGdpo, StudentGdpoSettings
from export.student.model.checkpoint import load_student
from export.student.model.growing import started
from export.student.model.network import TINY_STUDENT
from export.student.noise import NoiseSettings, StudentNoise
from training.data.batches import Pairs
from training.data.cards import Variety
from training.data.device.pairs import DevicePreparation, unreduced
from training.data.everyday import degrade_everyday
from training.data.photos import CropParams, PairDataset, PhotoSet
from training.loop.stage import RunSettings, Stage
from training.metrics.registry import create_metrics
from training.metrics.squeezenet import SqueezeFeatures

# Default share of drawn cards and of recoloured photos among the training pairs.
VARIETY = Variety(0.1, 0.1)


@dataclass(frozen=True)
class Sources:
    """The inputs of a stage in addition to its settings."""

    init: Path | None
    """Student checkpoint to start from; None starts from random weights."""
    features: SqueezeFeatures | None
    """SqueezeNet features for the perceptual loss; None leaves that loss out."""
    pictures: tuple[Path, ...]
    """Folders of pictures made by a prior (`gdposr train pictures`)."""
    photos: PhotoSet
    """The training photos."""
    perceptual_weights: Path | None = None
    """File that `features` was loaded from; the metric `sqf` needs it."""
    critic: Path | None = None
    """Trained critic for the metric `critic`."""
    device: torch.device | str = "cpu"
    """Device that computes the reward's metrics."""
    prior: Prior | None = None
    """Prior that runs during training of the core, instead of `pictures`."""

    def on_device(self, settings: RunSettings) -> bool:
        """Whether LR pictures are made in batches on the device instead of one by one in the loaders."""
        return not self.pictures and (self.prior is not None or settings.degrade == "device")


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


def photo_pairs(
    settings: RunSettings, sources: Sources, cards: float = VARIETY.cards, shapes: float = 0.0
) -> Pairs:
    """Photos degraded as users' photos are, here or on the device; a tenth of them are recoloured.

    cards, shapes: share of drawn pairs, 0 to 1, and of shapes among these."""
    return PairDataset(
        sources.photos,
        CropParams(settings.crop, zoom_range=(settings.zoom_min, 1.0)),
        reduce=unreduced if sources.on_device(settings) else degrade_everyday,
        variety=replace(VARIETY, cards=cards, shapes=shapes),
        seed=settings.seed,
    )


def preparation(settings: RunSettings, sources: Sources) -> DevicePreparation | None:
    """Makes the LR pictures of `photo_pairs` on the device; None if they have them already."""
    return DevicePreparation(settings.seed, sources.prior) if sources.on_device(settings) else None


def cached_pairs(
    settings: RunSettings, sources: Sources, cards: float = VARIETY.cards, shapes: float = 0.0
) -> Pairs:
    """Pairs from a prior's stored pictures, and drawn cards.

    cards, shapes: share of drawn pairs, 0 to 1, and of shapes among these."""
    caches = [PictureCache(folder) for folder in sources.pictures]
    return CachedPairs(caches, settings.crop, settings.seed, cards=cards, shapes=shapes)


def core_pairs(settings: CoreSettings, sources: Sources) -> Pairs:
    if sources.prior is not None and not sources.pictures:
        return photo_pairs(settings, sources, settings.cards, settings.shapes)
    if not sources.pictures:
        raise ValueError(
            "the core needs a prior's pictures: give --pictures DIR, made by gdposr train pictures, or --prior"
        )
    return cached_pairs(settings, sources, settings.cards, settings.shapes)


def any_pairs(settings: RunSettings, sources: Sources) -> Pairs:
    """Pairs from a prior's stored pictures if there are any, else degraded photos."""
    return cached_pairs(settings, sources) if sources.pictures else photo_pairs(settings, sources)


def noise_pairs(settings: NoiseSettings, sources: Sources) -> Pairs:
    if sources.pictures:
        return cached_pairs(settings, sources, settings.cards)
    return photo_pairs(settings, sources, settings.cards)


def build_core(settings: CoreSettings, sources: Sources) -> Stage:
    student, origin = started(settings.student, sources.init, settings.seed)
    return StudentCore(student, settings, sources.features, history=stages_before(origin))


def build_noise(settings: NoiseSettings, sources: Sources) -> Stage:
    if sources.init is None:
        raise ValueError("this stage needs a trained core to start from: give --init CORE")
    student, origin = load_student(sources.init)
    return StudentNoise(student, settings, history=stages_before(origin))


def build_gdpo(settings: StudentGdpoSettings, sources: Sources) -> Stage:
    if sources.init is None:
        raise ValueError("preference tuning needs a finished student to start from: give --init STUDENT")
    if sources.critic is not None and "critic" not in settings.metrics:
        names = ",".join((*settings.metrics, "critic"))
        raise ValueError(
            f"--critic is given but no metric uses it: --set metrics={names}, or leave --critic out"
        )
    student, origin = load_student(sources.init)
    metrics = create_metrics(settings.metrics, sources.device, sources.perceptual_weights, sources.critic)
    return StudentGdpo(student, settings, metrics, stages_before(origin))


def build_critic(settings: CriticSettings, sources: Sources) -> Stage:
    return critics.build(settings, sources.init)


CORE = Kind(
    "the student without noise, on the pictures of a published network",
    {
        "pocket": CoreSettings(),
        "tiny": CoreSettings(
            student=TINY_STUDENT, batch=2, crop=64, warmup_steps=1, held_out=1, discriminator_width=8
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
