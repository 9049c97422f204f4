"""The teacher of a student: a frozen one-step model, called with the very noise that the student gets.

A sample of the student can follow a sample of the teacher only if both come from one noise field, so the student's noise has the
teacher's cells, and its channels or the first of them: of what the others decide the student can learn no more than the average. What
the teacher gives is an 8-bit picture, whether it is made at this moment or was kept on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.student.network import StudentConfig
from runtime.noise import noise_field
from training.model.loading import load_model
from training.model.one_step import OneStepModel, base_config

SAMPLES = 2  # of each training item
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def item_noise(seed: int, item: int, shape: Sequence[int]) -> Tensor:
    """Noise of a training item's two samples, (2, C, H, W) float32 for shape (C, H, W): fields 2 item and 2 item + 1 of the seed.

    By `runtime.noise`, whose values never change, so that it need not be kept beside samples that are."""
    channels, height, width = shape
    fields = [
        noise_field(seed, SAMPLES * item + which, height, width, channels=channels)
        for which in range(SAMPLES)
    ]
    return torch.from_numpy(np.stack(fields))


def to_bytes(image: Tensor) -> Tensor:
    """[0, 1] -> uint8, rounded."""
    return (image * 255).round().to(torch.uint8)


def from_bytes(image: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return image.float() / 255


def by_sample(x: Tensor) -> Tensor:
    """(n, 2, ...) -> (2n, ...), first samples first."""
    return x.transpose(0, 1).flatten(0, 1).contiguous()


def by_picture(x: Tensor) -> Tensor:
    """Inverse of `by_sample`: (2n, ...) -> (n, 2, ...)."""
    return x.unflatten(0, (SAMPLES, -1)).transpose(0, 1)


class Teacher:
    """A one-step model with the default prompt, frozen. Called with LR (n, 3, h, w) in [0, 1] and noise (k n, C, 4h/f, 4w/f), the
    first n for the first samples of all pictures, it gives (k n, 3, 4h, 4w) in [0, 1], float32 on the CPU."""

    def __init__(
        self,
        model: OneStepModel,
        source: str,
        *,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"the teacher's precision is one of {', '.join(PRECISIONS)}, got {precision!r}")
        if model.vae_factor % model.scale:
            raise ValueError(
                f"a cell of the teacher's noise is {model.vae_factor} pixels wide, expected a multiple of its scale {model.scale}: "
                "the student's cells are whole LR pixels"
            )
        self.source, self.precision = source, precision
        self.digest = model_digest(model.freeze())
        self.model = model.to(device=device, dtype=PRECISIONS[precision])
        for name in ("vae", "unet"):  # half the time of a convolution on a CPU
            getattr(self.model, name).to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls,
        source: str | Path,
        base: str | Path | None = None,
        *,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
    ) -> Teacher:
        """The teacher at source: anything `training.model.loading.load_model` reads; base as there."""
        return cls(load_model(source, base=base), str(source), precision=precision, device=device)

    @property
    def noise_channels(self) -> int:
        return self.model.noise_channels

    @property
    def fold(self) -> int:
        """LR pixels per noise cell."""
        return self.model.vae_factor // self.model.scale

    def describe(self) -> dict[str, Any]:
        """For provenance: what its samples depend on, wherever it lies."""
        return {
            "weights_sha256": self.digest,
            "precision": self.precision,
            "noise_timestep": self.model.noise_timestep,
            "denoise_timestep": self.model.denoise_timestep,
        }

    def check(self, student: StudentConfig, size: int) -> None:
        """ValueError where the student's noise or scale is not the teacher's, or the teacher cannot take `size` LR pixels a side."""
        wanted = {"fold": self.fold, "scale": self.model.scale}
        if student.noise_channels > self.noise_channels:
            wanted["noise_channels"] = self.noise_channels
        wrong = {name: value for name, value in wanted.items() if getattr(student, name) != value}
        if wrong:
            have = ", ".join(f"{name}={getattr(student, name)}" for name in wrong)
            remedy = " ".join(f"--set student.{name}={value}" for name, value in wrong.items())
            raise ValueError(
                f"the student ({have}) cannot take the noise of the teacher {self.source}; expected {remedy}"
            )
        if size % self.model.size_multiple:
            multiple = self.model.scale * self.model.size_multiple
            raise ValueError(
                f"crops of {self.model.scale * size} HR pixels do not suit the teacher {self.source}: "
                f"set crop to a multiple of {multiple}"
            )

    @torch.no_grad()
    def __call__(self, lr: Tensor, noise: Tensor) -> Tensor:
        if not len(lr) or len(noise) % len(lr):
            raise ValueError(f"expected noise for each sample of {len(lr)} pictures, got {len(noise)} fields")
        model = self.model
        latent = model.encode(lr.to(model.device)).repeat(len(noise) // len(lr), 1, 1, 1)
        restored = model.restore(latent, noise.to(latent), model.condition(None, len(noise)))
        return model.decode(restored).float().clamp(0, 1).cpu()

    def samples(self, lr: Tensor, noise: Tensor, items: Sequence[int]) -> Tensor:
        """The same as uint8. FloatingPointError names the items (one for each picture) whose samples are not finite."""
        samples = self(lr, noise)
        finite = samples.flatten(1).isfinite().all(1).view(-1, len(lr)).all(0)
        if not finite.all():
            broken = ", ".join(
                str(item) for item, fine in zip(items, finite.tolist(), strict=True) if not fine
            )
            raise FloatingPointError(
                f"the teacher {self.source} gave values that are not finite for item {broken} of the training stream: check it on "
                "photos of your own, or load it in another precision (now "
                f"{self.precision})"
            )
        return to_bytes(samples)


def fitted(student: StudentConfig, teacher: Teacher, given: Sequence[str]) -> dict[str, Any]:
    """The student's settings that must follow the teacher, {name: value}; those that the user has given himself stay out."""
    wanted = {"noise_channels": teacher.noise_channels, "fold": teacher.fold}
    return {
        name: value
        for name, value in wanted.items()
        if getattr(student, name) != value and f"student.{name}" not in given
    }


def model_digest(model: OneStepModel) -> str:
    """SHA-256 of everything a model's samples depend on: its weights, merged or not, its timesteps, schedule and latent scale."""
    vae = base_config(model.vae)
    digest = hashlib.sha256()
    facts = {
        "timesteps": [model.noise_timestep, model.denoise_timestep],
        "schedule": model.schedule.to_config(),
        "latent": [vae["scaling_factor"], vae.get("shift_factor")],
        "scale": model.scale,
    }
    if model.noise_channels != model.latent_channels:
        facts["noise_channels"] = model.noise_channels
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for part, module in sorted(model.parts().items()):
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{part}/{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
