"""The interface between trainer and stage, and the settings that all stages share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from training.data.batches import Batch
from training.loop.validation import Validation

PRECISIONS = ("auto", "no", "bf16", "fp16")
DEGRADE = ("auto", "loader", "device")
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")

# Scalars by name. "loss" is minimised, the others are only logged.
Losses = dict[str, Tensor]
# Tensors without gradient that a phase passes to the next one.
Carry = dict[str, Tensor]


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that do not depend on the stage. A step trains on batch x accumulate x processes pairs."""

    batch: int = 4
    """Pairs that each process computes at once. Memory grows with it."""
    accumulate: int = 1
    """Batches per step, whose gradients are averaged. A larger value saves memory compared to a larger batch."""
    crop: int = 192
    """Side of a training crop in HR pixels."""
    zoom_min: float = 0.5
    """Photos are shrunk by a random factor from this to 1 before they are cropped."""
    mild_share: float = 0.0
    """Share of the pairs, 0 to 1, with the mild degradation (`training.data.degradation.MILD`)."""
    plain_share: float = 0.0
    """Share of the pairs, 0 to 1, that are only downscaled (`training.data.degradation.reduce_plainly`)."""
    lr: float = 1e-4
    """Peak learning rate."""
    final_lr: float = 1e-6
    """Learning rate at the end of the cosine schedule."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    beta2: float = 0.999
    """Decay of AdamW's mean squared gradients."""
    clip: float = 1.0
    """Upper limit of the gradient's norm, per phase. Larger gradients are scaled down to it."""
    ema: float = 0.0
    """Decay per step of the moving average of the weights, below 1. Validation and the saved model use the average. A
    larger value averages over more steps; 0 uses the weights themselves."""
    precision: str = "no"
    """Autocast type of accelerate: "no" (or "fp32"), "bf16", "fp16", or "auto" (bf16 if the device supports it, else no)."""
    tf32: bool = True
    """On a GPU: multiply float32 in TF32, several times as fast, with float16's mantissa."""
    memory_format: str = "auto"
    """Memory format of pictures and kernels: "channels_last", "contiguous", or "auto" (channels_last on a GPU). On one
    thread of a CPU with AVX2 the pocket VAE took a quarter more time in channels_last (`gdposr train bench`)."""
    degrade: str = "auto"
    """Where LR pictures are made: "loader", one by one in the processes of --workers; "device", in batches beside the
    model, from the same distributions; or "auto" (device on a GPU, else loader)."""
    held_out: int = 16
    """Number of photos reserved for validation."""
    seed: int = 0
    """Selects crops, degradations, noise and initial weights."""
    snapshots: bool = False
    """Whether the model is saved at every validation, in snapshots/."""
    validate_steps: int = 0
    """Steps between validations, in addition to those by time (--validate-minutes); 0 for none."""
    best: str = ""
    """Name of a value of the validation, such as margin, or -NAME if lower is better, such as -policy/niqe. The model
    of the best validation is kept in best/; empty keeps none."""
    patience: int = 0
    """Validations in a row without a new best after which the run ends; 0 for never."""
    prompt: str = ""
    """Prompt for all photos. Empty: the base's own if it was trained with one, else the captions beside the photos, else the
    default prompt."""

    def __post_init__(self) -> None:
        if self.precision == "fp32":
            object.__setattr__(self, "precision", "no")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name, known in (("degrade", DEGRADE), ("memory_format", MEMORY_FORMATS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("batch", "accumulate", "crop", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("final_lr", "weight_decay", "held_out", "seed", "validate_steps", "patience"):
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
        if self.patience > 0 and not self.best:
            raise ValueError(
                f"patience={self.patience} needs a value to wait for: set best, for example best=margin"
            )
        if self.best and not self.held_out:
            raise ValueError(f"best={self.best} needs photos to validate on: set held_out above 0")
        if not 0 < self.zoom_min <= 1:
            raise ValueError(f"zoom_min must be above 0 and at most 1, got {self.zoom_min}")


class Stage(nn.Module):
    """One stage of training. A step runs its phases in turn: forward, backward, and an update by the phase's own optimizer.

    Everything trained must be used through `forward`, so that accelerate can wrap the stage for several processes."""

    model_folder = "model"
    """Subfolder of the run folder for the finished model."""
    step = 0
    """Number of the current step. The trainer sets it before it asks for the phases."""

    def phases(self, progress: float) -> tuple[str, ...]:
        """Names of the phases of a step. progress: of the run, 0 to 1."""
        raise NotImplementedError

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """For each possible phase, the parameters that it trains and their peak learning rate."""
        raise NotImplementedError

    def averaged(self) -> tuple[str, ...]:
        """Phases whose weights get a moving average: those that are part of the model."""
        return tuple(self.groups())

    def muon(self) -> tuple[str, ...]:
        """Phases whose kernels are trained with Muon instead of AdamW."""
        return ()

    def phase_progress(self, phase: str, progress: float) -> float:
        """Progress, 0 to 1, of a phase's own learning-rate schedule. progress: of the run."""
        return progress

    def prepare(self, batch: Batch) -> Batch:
        """Complete a batch on the device before the phases see it, for example with a prior's pictures."""
        return batch

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        """Losses of one phase on a batch, and the tensors that the next phase of the same batch needs."""
        raise NotImplementedError

    def sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        """A sample of LR pictures for validation, (n, 3, 4h, 4w).

        lr: (n, 3, h, w) in [0, 1].
        hr: the matching photos, for stages without an SR output.
        k: number of the sample.
        prompts: of the photos; none for models without text."""
        raise NotImplementedError

    def measure(self, validation: Validation) -> dict[str, float]:
        """Further values to record at each validation, by name, such as "policy/psnr"."""
        return {}

    def pictures(self, validation: Validation) -> dict[str, np.ndarray]:
        """Pictures to show in TensorBoard at each validation, by name, (h, w, 3) uint8."""
        return {}

    def check(self, measured: Mapping[str, Any]) -> None:
        """Raise FloatingPointError if a validation shows that further training is useless. measured: the validation's values."""

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Write the finished model."""
        raise NotImplementedError
