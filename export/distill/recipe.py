"""Recipe of a student's training: every setting that decides a run besides its data, and the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from export.student.network import StudentConfig
from training.data.cards import Variety
from training.loop.stage import RunSettings
from training.metrics.squeezenet import LAYERS

WEIGHTS = (  # settings that multiply a term of the loss or, the texture share, what one asks for
    "pixel", "feature", "structure", "colour", "chroma", "grid", "diversity", "texture_share",
    "teacher", "teacher_feature", "teacher_difference", "adversary",
)  # fmt: skip


@dataclass(frozen=True)
class DistillConfig(RunSettings):
    """Settings of the student's training beside those of every run. Each LR picture of a batch gets two samples. Weights of the losses
    multiply terms of order 0.01 to 1."""

    student: StudentConfig = field(default_factory=StudentConfig)
    mild_share: float = (
        0.45  # part of the pairs with the mild degradation, see training.data.degradation.MILD
    )
    plain_share: float = (
        0.35  # part that is made smaller and no more, see training.data.degradation.reduce_plainly
    )
    graphics_share: float = (
        0.25  # part of the pictures that are drawn: text, patterns; see training.data.cards
    )
    recolour_share: float = 0.3  # part of the photos in gray or other colours
    lr: float = 2.5e-4
    final_lr: float = 1e-5
    warmup_steps: int = 200
    beta2: float = 0.99
    discriminator_lr: float = 1e-4
    discriminator_width: int = 32
    discriminator_every: int = 2  # steps between updates of the discriminator
    adversary_from: float = 0.2  # part of the run after which the adversary joins
    pixel: float = 1.0
    feature: float = 4.0
    drawn_feature: float = 0.1  # its share on drawn pictures: it makes up letters
    feature_layers: tuple[float, ...] = (1.0,) * len(LAYERS)  # weights of conv1, fire3, fire5, fire7, fire9
    structure: float = 2.0
    colour: float = 4.0  # mean colour of a picture
    chroma: float = 6.0  # colour of each pixel without its brightness
    grid: float = 40.0  # against patterns at the period of the pixel shuffles
    diversity: float = 0.5
    texture_share: float = (
        0.3  # see objectives.diversity_loss; where `teacher` is above 0, its diversity is the measure instead
    )
    teacher: float = (
        0.0  # L1 to the teacher's sample of the same noise; above 0 it needs --teacher, like the two below
    )
    teacher_feature: float = 0.0
    teacher_difference: float = 0.0  # L1 between what changes from sample to sample
    fresh: int = 0  # batches of other pairs, without the teacher, after each of the teacher's
    cache_turns: bool = False  # flips and quarter turns of cached items: more of them, but another teacher (see lessons.turned)
    adversary: float = (
        0.3  # its gradient at the pixels, relative to that of pixel, structure, colour and teacher together
    )
    ema: float = 0.999
    clip: float = 0.5
    snapshots: bool = True
    precision: str = "auto"
    compile: bool = True  # compile the perceptual loss (half its time; needs a C++ compiler)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % 8 or self.crop < 64:
            raise ValueError(f"crop must be a multiple of 8 of at least 64 HR pixels, got {self.crop}")
        if not 0 <= self.drawn_feature <= 1:
            raise ValueError(f"drawn_feature must be from 0 to 1, got {self.drawn_feature}")
        if self.fresh < 0:
            raise ValueError(f"fresh must be at least 0, got {self.fresh}")
        Variety(self.graphics_share, self.recolour_share)  # refuses what is no share
        for name in ("discriminator_every", "discriminator_width", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.discriminator_lr < math.inf:
            raise ValueError(f"discriminator_lr must be above 0, got {self.discriminator_lr}")
        for name in WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.adversary_from <= 1:
            raise ValueError(f"adversary_from must be from 0 to 1, got {self.adversary_from}")
        if len(self.feature_layers) != len(LAYERS):
            raise ValueError(f"feature_layers must be {len(LAYERS)} weights, got {len(self.feature_layers)}")

    @property
    def variety(self) -> Variety:
        return Variety(self.graphics_share, self.recolour_share)

    @property
    def taught(self) -> bool:
        """True when a teacher has a weight in the loss."""
        return max(self.teacher, self.teacher_feature, self.teacher_difference) > 0


def with_teacher(config: DistillConfig) -> DistillConfig:
    """The recipe of photos alone with the teacher in the lead: the photo's terms, which pull every sample to the same picture, step
    back, and the teacher says how much samples differ."""
    return replace(
        config,
        pixel=0.5,
        feature=0.5,
        structure=1.0,
        chroma=1.0,
        diversity=8.0,  # with 1.0 the student kept 77 % of the teacher's diversity, see EXPERIMENTS.md
        teacher=2.0,
        teacher_feature=0.5,
        teacher_difference=2.0,
    )


def with_texture_of_teacher(config: DistillConfig) -> DistillConfig:
    """The recipe of photos alone, and a teacher that leads only in what changes from sample to sample: its texture. For a teacher that
    is behind the student in everything else."""
    return replace(config, teacher_difference=15.0, diversity=4.0, texture_share=0.4, fresh=2)


POCKET = DistillConfig()
TINY = DistillConfig(  # for tests: seconds on a CPU
    student=StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8),
    crop=64,
    mild_share=0.0,
    plain_share=0.0,
    graphics_share=0.0,
    recolour_share=0.0,
    batch=2,
    warmup_steps=2,
    discriminator_width=8,
    held_out=1,
    precision="fp32",
    compile=False,
)
PRESETS = {
    "pocket": POCKET,
    "pocket-teacher": with_teacher(POCKET),
    "pocket-texture": with_texture_of_teacher(POCKET),
    "tiny": TINY,
    "tiny-teacher": with_teacher(TINY),
}
