"""The recipe of distillation: all settings of a run except its data, and the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from export.student.model.network import TINY_STUDENT, StudentConfig
from training.data.cards import Variety
from training.loop.stage import RunSettings
from training.metrics.squeezenet import LAYERS

# Settings that must not be negative: weights of the losses, and the texture share.
WEIGHTS = (
    "pixel", "feature", "structure", "colour", "chroma", "grid", "diversity", "texture_share",
    "teacher", "teacher_feature", "teacher_difference", "adversary",
)  # fmt: skip


@dataclass(frozen=True)
class DistillConfig(RunSettings):
    """Settings of distillation in addition to `RunSettings`. Each LR picture of a batch gets two samples.

    Losses are of the order 0.01 to 1 before their weights. Fields without a docstring override a default of `RunSettings`."""

    student: StudentConfig = field(default_factory=StudentConfig)
    """Shape of the network."""
    mild_share: float = 0.45
    """Share of the pairs, 0 to 1, with the mild degradation (`training.data.degradation.MILD`)."""
    plain_share: float = 0.35
    """Share of the pairs, 0 to 1, that are only downscaled (`training.data.degradation.reduce_plainly`)."""
    graphics_share: float = 0.25
    """Share of the pictures, 0 to 1, that are drawn cards: text and patterns (`training.data.cards`)."""
    recolour_share: float = 0.3
    """Share of the photos, 0 to 1, that become gray or get other colours."""
    lr: float = 2.5e-4
    final_lr: float = 1e-5
    warmup_steps: int = 200
    beta2: float = 0.99
    discriminator_lr: float = 1e-4
    """The discriminator's learning rate; constant after warm-up."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    discriminator_every: int = 2
    """Steps between updates of the discriminator."""
    adversary_from: float = 0.2
    """Progress of the run, 0 to 1, at which the adversary joins."""
    pixel: float = 1.0
    """Weight of the L1 distance to the photo."""
    feature: float = 4.0
    """Weight of the squared distance of SqueezeNet features to the photo's."""
    drawn_feature: float = 0.1
    """Factor on the feature losses, 0 to 1, for drawn cards. These losses make up letters."""
    feature_layers: tuple[float, ...] = (1.0,) * len(LAYERS)
    """Weights of the layers conv1, fire3, fire5, fire7 and fire9 in the feature losses."""
    structure: float = 2.0
    """Weight of the L1 distance of means over 8x8 pixels, to the photo's and between samples."""
    colour: float = 4.0
    """Weight of the L1 distance of the whole picture's mean colour."""
    chroma: float = 6.0
    """Weight of the L1 distance of colours without brightness."""
    grid: float = 40.0
    """Weight of the loss on patterns with the period of the pixel shuffles."""
    diversity: float = 0.5
    """Weight of the loss on too little difference between samples."""
    texture_share: float = 0.3
    """Required difference between samples as a share of the photo's texture (`losses.diversity_loss`). Not used
    if `teacher` is above 0: the teacher's own difference is then required."""
    teacher: float = 0.0
    """Weight of the L1 distance to the teacher's sample from the same noise. If this or one of the next three is above
    0, a teacher is needed."""
    teacher_feature: float = 0.0
    """Weight of the squared distance of SqueezeNet features to the teacher's sample."""
    teacher_difference: float = 0.0
    """Weight of the L1 distance between the student's and the teacher's difference of two samples, in texture."""
    teacher_mean: float = 0.0
    """Share, 0 to 1, of the mean of the teacher's samples in the target of pixel, structure, colour, chroma and grid. The rest is the
    photo. At 0 these losses compare with the photo only; the teacher's mean has no influence."""
    fresh: int = 0
    """Batches of new pairs without the teacher after each batch with it."""
    cache_turns: bool = False
    """Whether cached items are flipped and rotated. This gives more items, but differs from the teacher's own result
    (`pairs.turned`)."""
    adversary: float = 0.3
    """Norm of the adversarial loss's gradient at the samples, relative to that of pixel, structure, colour and
    teacher together. 0 turns the adversary off."""
    ema: float = 0.999
    clip: float = 0.5
    snapshots: bool = True
    precision: str = "auto"
    compile: bool = True
    """Whether the perceptual loss is compiled, which halves its time and needs a C++ compiler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % 8 or self.crop < 64:
            raise ValueError(f"crop must be a multiple of 8 of at least 64 HR pixels, got {self.crop}")
        if not 0 <= self.drawn_feature <= 1:
            raise ValueError(f"drawn_feature must be from 0 to 1, got {self.drawn_feature}")
        if self.fresh < 0:
            raise ValueError(f"fresh must be at least 0, got {self.fresh}")
        Variety(self.graphics_share, self.recolour_share)  # raises ValueError for values outside 0 to 1
        for name in ("discriminator_every", "discriminator_width", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.discriminator_lr < math.inf:
            raise ValueError(f"discriminator_lr must be above 0, got {self.discriminator_lr}")
        for name in WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("adversary_from", "teacher_mean"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.teacher_mean and self.fresh:
            raise ValueError(
                f"fresh must be 0 where teacher_mean is above 0, got {self.fresh}: batches without the teacher pull the mean "
                "back to the photo; --set fresh=0, or --set teacher_mean=0"
            )
        if len(self.feature_layers) != len(LAYERS):
            raise ValueError(f"feature_layers must be {len(LAYERS)} weights, got {len(self.feature_layers)}")

    @property
    def variety(self) -> Variety:
        return Variety(self.graphics_share, self.recolour_share)

    @property
    def taught(self) -> bool:
        """Whether the loss uses a teacher."""
        return max(self.teacher, self.teacher_feature, self.teacher_difference, self.teacher_mean) > 0


def with_teacher(config: DistillConfig) -> DistillConfig:
    """The recipe for photos alone, changed to follow a teacher.

    The photo's losses, which pull all samples to the same picture, get lower weights. The teacher determines how much
    samples differ."""
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
    """The recipe for photos alone, plus a teacher that only guides the texture that differs between samples.

    For a teacher that is worse than the student in everything else."""
    return replace(config, teacher_difference=15.0, diversity=4.0, texture_share=0.4, fresh=2)


POCKET = DistillConfig()
# For tests: takes seconds on a CPU.
TINY = DistillConfig(
    student=TINY_STUDENT,
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
