"""Recipe of a student's training: every setting that decides a run besides its data, and the presets."""

from __future__ import annotations

from dataclasses import dataclass, field

from export.student import StudentConfig


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides a run besides its data. Weights of the losses multiply terms of order 0.01 to 1."""

    student: StudentConfig = field(default_factory=StudentConfig)
    crop: int = 192  # HR pixels
    mild_share: float = 0.4  # part of the pairs with the mild degradation, see training.degradation.MILD
    batch: int = 4  # LR pictures in a step; each gets two samples
    lr: float = 2.5e-4
    final_lr: float = 1e-5
    warmup_steps: int = 200
    discriminator_lr: float = 1e-4
    discriminator_width: int = 32
    discriminator_every: int = 2  # steps between updates of the discriminator
    adversary_from: float = 0.2  # part of the run after which the adversary joins
    pixel: float = 2.0
    feature: float = 1.0
    feature_layers: tuple[float, ...] = (1.0,) * 5  # weights of conv1, fire3, fire5, fire7, fire9
    structure: float = 2.0
    grid: float = 20.0  # against patterns at the period of the pixel shuffles
    diversity: float = 0.5
    texture_share: float = 0.3  # see objectives.diversity_loss
    adversary: float = 0.15  # its gradient at the pixels, relative to that of pixel and structure together
    ema: float = 0.999
    clip: float = 0.5  # largest norm of the gradient
    held_out: int = 16  # photos kept for validation
    seed: int = 0
    precision: str = "bf16"  # autocast type: bf16 or fp32
    compile: bool = True  # compile the perceptual loss (half its time; needs a C++ compiler)

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, got {self.precision!r}")
        if self.crop % 8 or self.crop < 64:
            raise ValueError(f"crop must be a multiple of 8 of at least 64 HR pixels, got {self.crop}")


PRESETS = {
    "pocket": DistillConfig(),
    "tiny": DistillConfig(  # for tests: seconds on a CPU
        student=StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8),
        crop=64,
        mild_share=0.0,
        batch=2,
        warmup_steps=2,
        discriminator_width=8,
        held_out=1,
        precision="fp32",
        compile=False,
    ),
}
