"""The student in training: its models and optimizers, and one step of its losses."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.distill.pairs import Lesson
from export.distill.fidelity import Comparison, validation_noise
from export.distill.recipe import DistillConfig
from export.student.network import Student, load_student, widened
from export.student.objectives import (
    PatchDiscriminator,
    chroma_loss,
    colour_loss,
    difference_loss,
    discriminator_loss,
    diversity_loss,
    generator_loss,
    grid_loss,
    spread_loss,
    structure_loss,
)
from training.loop.validation import Validation
from training.metrics.squeezenet import SqueezeFeatures, squared_feature_distance


class Distiller:
    """The models, their optimizers and one `step`. Random numbers are drawn on the CPU, so they are the same for every device."""

    def __init__(
        self, config: DistillConfig, features: SqueezeFeatures, device: str | torch.device = "cpu"
    ) -> None:
        torch.manual_seed(config.seed)
        self.device = torch.device(device)
        self.config = config = config.on(self.device.type)
        self.student = Student(config.student)
        self.average = Student(config.student).requires_grad_(False).eval()
        self.average.load_state_dict(self.student.state_dict())
        self.average.to(self.device)
        self.discriminator = PatchDiscriminator(config.discriminator_width)
        self.features = features
        for network in (self.student, self.discriminator, self.features):
            network.to(device=self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.adversary = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.discriminator_lr, betas=(0.9, 0.99), weight_decay=0.0
        )
        self._perceptual: Callable[..., list[Tensor]] = self._feature_scores
        if config.compile:
            _check_compiler()
            self._perceptual = torch.compile(self._feature_scores)

    def start_from(self, checkpoint: Path) -> dict[str, Any]:
        """Take the weights of a student checkpoint, widened where it is narrower; returns its provenance. Where its noise has other
        channels, which a teacher may ask for, the convolution that takes the noise in begins anew."""
        earlier, provenance = load_student(checkpoint)
        wanted = self.config.student
        noise_channels = earlier.config.noise_channels
        try:
            state = widened(earlier, replace(wanted, noise_channels=noise_channels)).state_dict()
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}; set student.* to match") from error
        if noise_channels != wanted.noise_channels:
            state["generator.noise.weight"] = self.student.state_dict()["generator.noise.weight"]
        self.student.load_state_dict(state)
        self.average.load_state_dict(state)
        return provenance

    def validate(
        self, validation: Validation, step: int, comparison: Comparison | None = None
    ) -> dict[str, float]:
        """Measure the averaged student, and beside its teacher where there is a comparison."""
        c = self.config.student

        def sample(lr: Tensor, hr: Tensor, k: int) -> Tensor:
            noise = validation_noise(lr, k, c.noise_channels, c.fold)
            return self.average(lr.to(self.device), noise.to(self.device))

        def plain(lr: Tensor) -> Tensor:
            return torch.pixel_shuffle(self.average.encode(lr.to(self.device))[1], c.scale)

        values = validation(sample, step, plain)
        if comparison is None:
            return values
        return values | comparison(lambda lr, noise: self.average(lr.to(self.device), noise.to(self.device)))

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "average": self.average, "discriminator": self.discriminator}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"student": self.optimizer, "discriminator": self.adversary}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _feature_scores(self, samples: Tensor, *targets: Tensor) -> list[Tensor]:
        with self._autocast():
            near = self.features.maps(samples)
            with torch.no_grad():
                far = [self.features.maps(target) for target in targets]
        return [squared_feature_distance(near, maps, self.config.feature_layers) for maps in far]

    def learning_rate(self, step: int, progress: float) -> float:
        """Linear warm-up, then a cosine from lr to final_lr."""
        c = self.config
        cosine = c.final_lr + (c.lr - c.final_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return cosine * min(1.0, (step + 1) / c.warmup_steps)

    def step(self, lesson: Lesson, step: int, progress: float) -> dict[str, float]:
        """One update. Returns the losses of this step; where one of the student's is not finite, all weights stay as they were.

        Noise is drawn here only where the lesson brings none."""
        c = self.config
        draw = torch.Generator().manual_seed((c.seed << 32) + step)
        lr, hr, drawn, noise, taught = lesson
        n, _, h, w = lr.shape
        if noise is None:
            noise = torch.randn(
                2 * n, c.student.noise_channels, h // c.student.fold, w // c.student.fold, generator=draw
            )
        dy, dx = torch.randint(
            0, 8, (2,), generator=draw
        ).tolist()  # so that no loss sees the pixel-shuffle grid at a fixed phase
        lr, hr, noise = (x.to(self.device) for x in (lr, hr, noise))
        taught = None if taught is None else taught.to(self.device)
        with self._autocast():
            features, base = self.student.encode(lr)
            residual = self.student.generator.residual(features.repeat(2, 1, 1, 1), noise)
        samples = torch.pixel_shuffle(base.float().repeat(2, 1, 1, 1) + residual.float(), c.student.scale)
        losses, pull, real, fake = self._pull(
            samples.detach().requires_grad_(True), hr, ~drawn.to(self.device), (dy, dx), progress, taught
        )
        rate = self.learning_rate(step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        samples.backward(pull)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), c.clip)
        values = {name: value.item() for name, value in losses.items()} | {"grad": norm.item(), "lr": rate}
        if not all(map(math.isfinite, values.values())):
            return values
        self.optimizer.step()
        self._update_average(step)
        if "adversary" in losses and step % c.discriminator_every == 0:
            half = step // c.discriminator_every % 2
            values["discriminator"] = self._update_discriminator(real, fake.detach().chunk(2)[half])
        return values

    def _pull(
        self,
        samples: Tensor,
        hr: Tensor,
        photos: Tensor,
        shift: tuple[int, int],
        progress: float,
        teacher: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Losses, the gradient of their sum at the samples, and what the discriminator is to see (photos, samples).

        photos: (n,) bool, False for drawn pictures. Those have one right answer, so no adversary and no diversity pulls at them, and
        features by a share.
        teacher: its samples of the same noise. Where its samples as wholes have no weight, only its texture is followed: structure and
        the amount of diversity are then asked of the photo. The adversary's gradient is scaled to a fixed share of that of pixel,
        structure, colour and teacher, so its strength does not depend on how steep the discriminator happens to be."""
        c = self.config
        n, side = len(hr), hr.shape[-1] - 8
        dy, dx = shift

        def shifted(x: Tensor) -> Tensor:
            return x[:, :, dy : dy + side, dx : dx + side].contiguous()

        fake, real = shifted(samples), shifted(hr)
        leads = teacher is not None and c.teacher > 0
        near = {
            "pixel": (samples - hr.repeat(2, 1, 1, 1)).abs().mean(),
            "structure": structure_loss(samples, hr, teacher if leads else None),
            "colour": colour_loss(samples, hr),
        }
        if leads:
            near["teacher"] = (samples - teacher).abs().mean()
        anchor = _gradient(self._weighted(near), samples)
        targets = [real]
        if teacher is not None and c.teacher_feature > 0:
            targets.append(shifted(teacher[:n]))
        guards = {"grid": grid_loss(samples, hr), "chroma": chroma_loss(samples, hr)}
        # of the first samples: same expectation, half the cost
        features = dict(
            zip(("feature", "teacher_feature"), self._perceptual(fake[:n], *targets), strict=False)
        )
        texture = {
            "diversity": spread_loss(samples, teacher)
            if leads
            else diversity_loss(samples, hr, c.texture_share)
        }
        if teacher is not None:
            texture["teacher_difference"] = difference_loss(samples, teacher)
        share = photos.to(samples.dtype).repeat(2).view(-1, 1, 1, 1)
        pull = anchor + _gradient(self._weighted(guards), samples)
        pull = pull + share.clamp_min(c.drawn_feature) * _gradient(self._weighted(features), samples)
        pull = pull + share * _gradient(self._weighted(texture), samples)
        losses = near | guards | features | texture
        real, fake = real[photos], fake[photos.repeat(2)]
        if c.adversary > 0 and progress >= c.adversary_from and len(real) > 0:
            self.discriminator.requires_grad_(False)
            with self._autocast():
                losses["adversary"] = generator_loss(self.discriminator(fake).float())
            push = _gradient(losses["adversary"], samples)
            pull = pull + push * (c.adversary * anchor.norm() / push.norm().clamp_min(1e-12))
        return losses, pull, real, fake

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.config, name) * loss for name, loss in losses.items()]).sum()

    def _update_discriminator(self, real: Tensor, fake: Tensor) -> float:
        self.discriminator.requires_grad_(True)
        with self._autocast():
            loss = discriminator_loss(
                self.discriminator(real).float(), self.discriminator(fake.clamp(0, 1)).float()
            )
        self.adversary.zero_grad(set_to_none=True)
        loss.backward()
        self.adversary.step()
        return loss.item()

    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)


def _check_compiler() -> None:
    """ValueError where torch.compile would fail at the first step."""
    known = ("g++", "clang++", "c++", "cl")
    if not (os.environ.get("CXX") or any(map(shutil.which, known))):
        raise ValueError(
            f"compile=true needs a C++ compiler ({', '.join(known)} or $CXX), found none: install one, or --set compile=false "
            "(the perceptual loss then takes twice as long)"
        )


def _gradient(loss: Tensor, samples: Tensor) -> Tensor:
    return torch.autograd.grad(loss, samples, retain_graph=True)[0]
