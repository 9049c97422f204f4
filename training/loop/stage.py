"""What the trainer asks of a stage, and the settings that all stages share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from training.data.batches import Batch
from training.loop.validation import Validation

PRECISIONS = ("auto", "no", "bf16", "fp16")

Losses = dict[str, Tensor]  # scalars; "loss" is the one to minimise
Carry = dict[str, Tensor]  # what a phase hands on to the next, without gradient


@dataclass(frozen=True)
class RunSettings:
    """Everything about a run that is not the stage's own. The size of a step is batch x accumulate x processes."""

    batch: int = 4  # pairs per process at once
    accumulate: int = 1  # micro-steps per step
    crop: int = 192  # HR pixels
    zoom_min: float = 0.5  # photos are shrunk by a random factor from here to 1 before the crop is cut
    mild_share: float = 0.0  # part of the pairs with the mild degradation
    plain_share: float = 0.0  # part that is made smaller and no more
    lr: float = 1e-4
    final_lr: float = 1e-6  # at the end of a cosine
    warmup_steps: int = 50
    weight_decay: float = 0.0
    beta2: float = 0.999  # decay of AdamW's mean squares
    clip: float = 1.0  # largest norm of a phase's gradient
    ema: float = 0.0  # decay of the averaged weights that are validated and saved; 0: the weights themselves
    precision: str = "no"  # autocast type of accelerate: no (or fp32), bf16, fp16, or auto (bf16 where the device has it, else no)
    held_out: int = 16  # photos kept for validation
    seed: int = 0
    snapshots: bool = False  # keep the averaged weights of each validation, in snapshots/
    prompt: str = ""  # a fixed prompt; empty: captions beside the photos, else the default prompt

    def __post_init__(self) -> None:
        if self.precision == "fp32":
            object.__setattr__(self, "precision", "no")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("batch", "accumulate", "crop", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("final_lr", "weight_decay", "held_out", "seed"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("ema", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {getattr(self, name)}")
        for name in ("mild_share", "plain_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.mild_share + self.plain_share > 1:
            raise ValueError(
                f"mild_share and plain_share must be at most 1 together, got {self.mild_share} and {self.plain_share}"
            )
        if not 0 < self.zoom_min <= 1:
            raise ValueError(f"zoom_min must be above 0 and at most 1, got {self.zoom_min}")


class Stage(nn.Module):
    """One stage of training. A step runs its phases in turn, each with an optimizer of its own: forward, backward, update.

    All that is trained is reached through `forward`, so that accelerate can wrap the stage for several processes.
    """

    model_folder = "model"
    """Where the finished model is written, below the run folder."""
    step = 0
    """Number of the step that is under way; the trainer sets it before it asks for the phases."""

    def phases(self, progress: float) -> tuple[str, ...]:
        """Names of the phases of a step at this progress, 0-1, of the run."""
        raise NotImplementedError

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """For each phase that may occur: the parameters it trains, and their peak learning rate."""
        raise NotImplementedError

    def averaged(self) -> tuple[str, ...]:
        """Phases whose weights are worth a moving average: those that end up in the model."""
        return tuple(self.groups())

    def phase_progress(self, phase: str, progress: float) -> float:
        """Progress, 0-1, of the phase's own learning-rate schedule."""
        return progress

    def prepare(self, batch: Batch) -> Batch:
        """A batch on the device, as the phases want it: the place for what is best computed there, such as a teacher's pictures."""
        return batch

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        """Losses of one phase on a batch, and what the next phase of the same batch needs."""
        raise NotImplementedError

    def sample(self, lr: Tensor, hr: Tensor, k: int) -> Tensor:
        """Sample number k of LR pictures (n, 3, h, w) for validation -> (n, 3, 4h, 4w). hr is for stages without an SR output."""
        raise NotImplementedError

    def measure(self, validation: Validation) -> dict[str, float]:
        """What the stage itself wants to know of the held-out photos at each validation, by name: "policy/psnr"."""
        return {}

    def check(self, measured: Mapping[str, Any]) -> None:
        """FloatingPointError where what validation measured shows that training on is of no use."""

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Write the finished model."""
        raise NotImplementedError
