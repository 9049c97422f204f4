"""Recipe of a student's training: every setting that decides a run besides its data, the presets, and the budget that ends it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from export.student import StudentConfig


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides a run besides its data. Weights of the losses multiply terms of order 0.01 to 1."""

    student: StudentConfig = field(default_factory=StudentConfig)
    crop: int = 192  # HR pixels
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DistillConfig:
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown setting {', '.join(unknown)}; known: {', '.join(f.name for f in fields(cls))}"
            )
        student = StudentConfig.from_dict(values.get("student", {}))
        layers = tuple(values.get("feature_layers", cls.feature_layers))
        return cls(**{**values, "student": student, "feature_layers": layers})

    def with_settings(self, settings: list[str]) -> DistillConfig:
        """Apply key=value settings; `student.width=64` reaches inside. Values are JSON (or plain text)."""
        values = self.to_dict()
        for setting in settings:
            key, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set expects key=value, got {setting!r}")
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = text
            place = values["student"] if key.startswith("student.") else values
            place[key.removeprefix("student.")] = value
        return DistillConfig.from_dict(values)


PRESETS = {
    "pocket": DistillConfig(),
    "tiny": DistillConfig(  # for tests: seconds on a CPU
        student=StudentConfig(width=8, encoder_blocks=1, generator_blocks=1, detail=8),
        crop=64,
        batch=2,
        warmup_steps=2,
        discriminator_width=8,
        held_out=1,
        precision="fp32",
        compile=False,
    ),
}


@dataclass
class Budget:
    """End of the run: a number of steps, or minutes of training (summed over resumed parts)."""

    steps: int | None = None
    minutes: float | None = None
    spent: float = 0.0  # seconds of earlier parts
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """From 0 at the start to 1 at the end; it drives the learning rate and the adversary."""
        parts = [step / self.steps] if self.steps else []
        parts += [self.seconds() / (60 * self.minutes)] if self.minutes else []
        return min(1.0, max(parts))
