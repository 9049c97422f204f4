"""The teacher of distillation: a frozen one-step model that gets the same noise as the student.

The student can follow the teacher's samples only if both come from the same noise field. The student's noise
therefore has the teacher's cells, and all of its channels or the first ones. The effect of missing channels can be
learned only on average. The teacher's samples are 8-bit pictures, whether they are computed now or read from a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.student.model.network import StudentConfig
from runtime.noise import noise_field
from training.model.loading import load_model
from training.model.one_step import OneStepModel, base_config
from training.pixels import to_bytes

# Samples of each training item.
SAMPLES = 2
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def item_noise(seed: int, item: int, shape: Sequence[int]) -> Tensor:
    """Noise of a training item's two samples, (2, C, H, W) float32 for shape (C, H, W): fields 2 item and 2 item + 1 of the seed.

    It comes from `runtime.noise`, whose values never change, so caches need not store it."""
    channels, height, width = shape
    fields = [
        noise_field(seed, SAMPLES * item + which, height, width, channels=channels)
        for which in range(SAMPLES)
    ]
    return torch.from_numpy(np.stack(fields))


def by_sample(x: Tensor) -> Tensor:
    """(n, 2, ...) -> (2n, ...), first samples first."""
    return x.transpose(0, 1).flatten(0, 1).contiguous()


def by_picture(x: Tensor) -> Tensor:
    """Inverse of `by_sample`: (2n, ...) -> (n, 2, ...)."""
    return x.unflatten(0, (SAMPLES, -1)).transpose(0, 1)


class Teacher:
    """A one-step model, frozen.

    model: the one-step model, which is changed in place.
    source: folder or hub name that it was loaded from.
    precision: one of `PRECISIONS`.
    device: that runs it.

    A call takes LR (n, 3, h, w) in [0, 1], noise (k n, C, 4h/f, 4w/f), the first n fields for the first samples of
    all pictures, and their n prompts, or none for the default. It returns (k n, 3, 4h, 4w) in [0, 1], float32 on the CPU.
    """

    def __init__(
        self,
        model: OneStepModel,
        source: str,
        *,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(
                f"the teacher's precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
            )
        if model.vae_factor % model.scale:
            raise ValueError(
                f"a cell of the teacher's noise is {model.vae_factor} pixels wide, expected a multiple of its scale {model.scale}: "
                "the student's cells are whole LR pixels"
            )
        self.source, self.precision = source, precision
        self.digest = model_digest(model.freeze())
        self.model = model.to(device=device, dtype=PRECISIONS[precision])
        for name in ("vae", "unet"):  # convolutions on a CPU take half the time in channels_last
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
        """Load the teacher.

        source: anything that `training.model.loading.load_model` reads.
        base: source of the parts that it lacks.
        precision: key of `PRECISIONS`.
        device: that runs it."""
        return cls(load_model(source, base=base), str(source), precision=precision, device=device)

    @property
    def takes_prompts(self) -> bool:
        """Whether the samples depend on a prompt."""
        return self.model.text is not None and self.model.has_cross_attention

    @property
    def noise_channels(self) -> int:
        return self.model.noise_channels

    @property
    def fold(self) -> int:
        """LR pixels per noise cell."""
        return self.model.vae_factor // self.model.scale

    def describe(self) -> dict[str, Any]:
        """Provenance: everything that the samples depend on, independent of the file's location."""
        return {
            "weights_sha256": self.digest,
            "precision": self.precision,
            "noise_timestep": self.model.noise_timestep,
            "denoise_timestep": self.model.denoise_timestep,
        }

    def check(self, student: StudentConfig, size: int) -> None:
        """Raise ValueError if the student's noise or scale does not fit the teacher, or the teacher cannot take
        pictures of `size` x `size` LR pixels."""
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
    def __call__(self, lr: Tensor, noise: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        if not len(lr) or len(noise) % len(lr):
            raise ValueError(f"expected noise for each sample of {len(lr)} pictures, got {len(noise)} fields")
        model = self.model
        count = len(noise) // len(lr)
        latent = model.encode(lr.to(model.device)).repeat(count, 1, 1, 1)
        condition = model.condition(tuple(prompts) * count or None, len(noise))
        restored = model.restore(latent, noise.to(latent), condition)
        return model.decode(restored).float().clamp(0, 1).cpu()

    def samples(self, lr: Tensor, noise: Tensor, items: Sequence[int], prompts: Sequence[str] = ()) -> Tensor:
        """Samples as uint8.

        lr, noise, prompts: as in a call.
        items: number of each picture's item, for messages.

        Raises FloatingPointError, which names the items, if a sample is not finite."""
        samples = self(lr, noise, prompts)
        finite = samples.flatten(1).isfinite().all(1).view(-1, len(lr)).all(0)
        if not finite.all():
            broken = ", ".join(
                str(item) for item, fine in zip(items, finite.tolist(), strict=True) if not fine
            )
            raise FloatingPointError(
                f"the teacher {self.source} gave values that are not finite for item {broken} of the training stream: check it on "
                "your own photos, or load it in another precision (now "
                f"{self.precision})"
            )
        return to_bytes(samples)


def fitted(student: StudentConfig, teacher: Teacher, given: Sequence[str]) -> dict[str, Any]:
    """Settings of the student that must follow the teacher, {name: value}, except those that the user has set."""
    wanted = {"noise_channels": teacher.noise_channels, "fold": teacher.fold}
    return {
        name: value
        for name, value in wanted.items()
        if getattr(student, name) != value and f"student.{name}" not in given
    }


def model_digest(model: OneStepModel) -> str:
    """SHA-256 of everything that a model's samples depend on: weights (merged or not), timesteps, schedule and latent scale."""
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
