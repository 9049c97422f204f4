"""Distillation as a stage of the trainer: losses, adversary and validation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.distill.fidelity import Comparison
from export.distill.losses import (
    colour_loss,
    difference_loss,
    diversity_loss,
    samples_chroma_loss,
    samples_grid_loss,
    spread_loss,
    structure_loss,
    with_mean_of,
)
from export.distill.recipe import DistillConfig
from export.distill.teacher import SAMPLES, Teacher, by_picture, by_sample
from export.student.adversary import PatchDiscriminator, discriminator_loss, generator_loss
from export.student.core import StudentStage, stages_before
from export.student.model.growing import started
from training.data.batches import Batch
from training.loop.stage import Carry, Losses
from training.loop.validation import Validation
from training.metrics.squeezenet import SqueezeFeatures, squared_feature_distance
from training.pixels import from_bytes
from training.randomness import integers, normal

# RMS difference of two samples, in 1/255, below which the noise has lost its effect.
DEAD_BELOW = 1e-3
# Period in pixels of the grid of pixel shuffles and noise cells.
PHASE = 8


class StudentDistill(StudentStage):
    """Trains the student. Phases: "student", and every few steps "discriminator" after it has joined.

    Random numbers are functions of a pair's number, so they do not depend on the device or the number of processes."""

    model_folder = "student"

    def __init__(
        self,
        config: DistillConfig,
        features: SqueezeFeatures,
        teacher: Teacher | None = None,
        comparison: Comparison | None = None,
        init: Path | None = None,
    ) -> None:
        """config: the recipe.
        features: SqueezeNet for the perceptual losses.
        teacher: one-step model to follow; None trains on photos alone.
        comparison: compares the student with the teacher at validation.
        init: student checkpoint to start from."""
        super().__init__()
        self.config, self.features = config, features
        self.teacher, self.comparison = teacher, comparison
        self.student, origin = started(config.student, init, config.seed)
        self.history = stages_before(origin)
        self.adversary_on = False
        self.discriminator = PatchDiscriminator(config.discriminator_width).requires_grad_(
            config.adversary > 0
        )
        self._perceptual: Callable[..., list[Tensor]] = self._feature_scores
        if config.compile:
            _check_compiler()
            self._perceptual = torch.compile(self._feature_scores)

    def phases(self, progress: float) -> tuple[str, ...]:
        c = self.config
        self.adversary_on = c.adversary > 0 and progress >= c.adversary_from
        if self.adversary_on and self.step % c.discriminator_every == 0:
            return ("student", "discriminator")
        return ("student",)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        found = {"student": (list(self.student.parameters()), self.config.lr)}
        if self.config.adversary > 0:
            found["discriminator"] = (list(self.discriminator.parameters()), self.config.discriminator_lr)
        return found

    def averaged(self) -> tuple[str, ...]:
        return ("student",)

    def phase_progress(self, phase: str, progress: float) -> float:
        """Keeps the discriminator's learning rate constant after its warm-up."""
        return progress if phase == "student" else 0.0

    def prepare(self, batch: Batch) -> Batch:
        """Add the teacher's samples, computed now if no cache supplied them."""
        if batch.noise is None or batch.target is not None:
            return batch
        assert self.teacher is not None
        prompts = batch.prompts if self.teacher.takes_prompts else ()
        samples = self.teacher.samples(batch.lr, by_sample(batch.noise), batch.items, prompts)
        return replace(batch, target=by_picture(samples).to(batch.lr.device))

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        if phase == "discriminator":
            return {"loss": self._discriminator_loss(carry["real"], carry["fake"])}, {}
        c = self.config
        assert batch.drawn is not None
        taught = None if batch.target is None else from_bytes(by_sample(batch.target))
        features, base = self.student.encode(batch.lr)
        samples = self.student.generator.picture(
            features.repeat(2, 1, 1, 1), base.repeat(2, 1, 1, 1), self._noise(batch)
        )

        # random shifts, so that no loss sees the pixel-shuffle grid at a fixed phase
        shifts = [integers(c.seed, batch.items, 0, PHASE, axis).tolist() for axis in ("dy", "dx")]
        losses, pull, real, fake = self._pull(
            samples.detach().requires_grad_(True),
            batch.hr,
            ~batch.drawn,
            list(zip(*shifts, strict=True)),
            taught,
        )

        # the value is the sum of the losses, the gradient is the pull at the samples
        pulled = (samples * pull).sum()
        loss = self._weighted(losses) + pulled - pulled.detach()
        half = self.step // c.discriminator_every % 2
        shown = {"real": real, "fake": fake.detach().chunk(2)[half].clamp(0, 1)}
        return {"loss": loss} | losses, shown

    def measure(self, validation: Validation) -> dict[str, float]:
        if self.comparison is None:
            return {}
        device = next(self.student.parameters()).device
        return self.comparison(lambda lr, noise: self.student(lr.to(device), noise.to(device)))

    def check(self, measured: Mapping[str, Any]) -> None:
        if not measured.get("samples_differ", 1.0) > DEAD_BELOW:
            raise FloatingPointError(
                f"step {measured['step']}: the noise has lost its effect (two samples differ by {measured['samples_differ']:.2g}/255): "
                "the student died. Continue from an earlier one in the run's snapshots/ with --init and a lower lr"
            )

    def _noise(self, batch: Batch) -> Tensor:
        """Noise of both samples, (2n, C, h/f, w/f): the teacher's first channels, or the pairs' own noise."""
        c = self.config.student
        if batch.noise is not None:
            return by_sample(batch.noise)[:, : c.noise_channels].contiguous()
        shape = (SAMPLES, c.noise_channels, *(side // c.fold for side in batch.lr.shape[2:]))
        return by_sample(normal(self.config.seed, batch.items, shape, "noise")).to(batch.lr)

    def _discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        if not len(real):  # the batch has drawn cards only
            return 0.0 * torch.stack([p.sum() for p in self.discriminator.parameters()]).sum()
        return discriminator_loss(self.discriminator(real).float(), self.discriminator(fake).float())

    def _feature_scores(self, samples: Tensor, *targets: Tensor) -> list[Tensor]:
        near = self.features.maps(samples)
        with torch.no_grad():
            far = [self.features.maps(target) for target in targets]
        return [squared_feature_distance(near, maps, self.config.feature_layers) for maps in far]

    def _pull(
        self,
        samples: Tensor,
        hr: Tensor,
        photos: Tensor,
        shifts: list[tuple[int, int]],
        teacher: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """The losses of a batch and the gradient of their sum at the samples.

        samples: (2n, 3, H, W), first samples first.
        hr: (n, 3, H, W).
        photos: (n,) bool, False for drawn cards. These have one right answer, so adversary and diversity leave them out,
            and the feature losses count less.
        shifts: for each picture, rows and columns below 8 that feature losses and adversary skip at the upper and left border.
        teacher: (2n, 3, H, W), its samples from the same noise. If `config.teacher` is 0, only its texture is
            followed; structure and diversity then follow the photo. With `config.teacher_mean`, the photo of all
            losses but features, diversity and adversary is moved to its mean; a drawn card stays its own target.

        Returns losses, gradient, and the photos and samples for the discriminator. The adversary's gradient is scaled
        to a fixed ratio to that of pixel, structure, colour and teacher, so it does not depend on how steep the discriminator is."""
        c = self.config
        n, side = len(hr), hr.shape[-1] - PHASE

        # crops: those of features and adversary
        def shifted(x: Tensor) -> Tensor:
            corners = shifts * (len(x) // n)
            cut = [
                image[:, dy : dy + side, dx : dx + side] for image, (dy, dx) in zip(x, corners, strict=True)
            ]
            return torch.stack(cut).contiguous(memory_format=torch.channels_last)

        fake, real = shifted(samples), shifted(hr)
        # targets: the photo, or the photo with the teacher's mean
        leads = teacher is not None and c.teacher > 0
        aim = hr
        if teacher is not None and c.teacher_mean > 0:
            aim = with_mean_of(hr, teacher, c.teacher_mean * photos.to(hr.dtype).view(-1, 1, 1, 1))
        # near: losses that draw the samples to the target; their gradient is the anchor
        near = {
            "pixel": (samples - aim.repeat(2, 1, 1, 1)).abs().mean(),
            "structure": structure_loss(samples, aim, teacher if leads else None),
            "colour": colour_loss(samples, aim),
        }
        if leads:
            near["teacher"] = (samples - teacher).abs().mean()
        anchor = _gradient(self._weighted(near), samples)
        targets = [real]
        if teacher is not None and c.teacher_feature > 0:
            targets.append(shifted(teacher[:n]))
        # guards and texture: against patterns, and for detail
        guards = {"grid": samples_grid_loss(samples, aim), "chroma": samples_chroma_loss(samples, aim)}
        # on the first samples only: same expectation, half the cost
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
        # sum: drawn pictures count less in features, and nothing in texture
        share = photos.to(samples.dtype).repeat(2).view(-1, 1, 1, 1)
        pull = anchor + _gradient(self._weighted(guards), samples)
        pull = pull + share.clamp_min(c.drawn_feature) * _gradient(self._weighted(features), samples)
        pull = pull + share * _gradient(self._weighted(texture), samples)
        losses = near | guards | features | texture
        # adversary: at a fixed ratio to the anchor
        real, fake = real[photos], fake[photos.repeat(2)]
        if self.adversary_on:
            losses["adversary"] = samples.new_zeros(())
        if self.adversary_on and len(real) > 0:
            self.discriminator.requires_grad_(False)
            losses["adversary"] = generator_loss(self.discriminator(fake).float())
            push = _gradient(losses["adversary"], samples)
            pull = pull + push * (c.adversary * anchor.norm() / push.norm().clamp_min(1e-12))
            self.discriminator.requires_grad_(True)
        return {name: value.detach() for name, value in losses.items()}, pull, real, fake

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        return torch.stack([getattr(self.config, name) * loss for name, loss in losses.items()]).sum()


def _check_compiler() -> None:
    """Raise ValueError if torch.compile would fail at the first step for lack of a compiler."""
    known = ("g++", "clang++", "c++", "cl")
    if not (os.environ.get("CXX") or any(map(shutil.which, known))):
        raise ValueError(
            f"compile=true needs a C++ compiler ({', '.join(known)} or $CXX), got none: install one, or --set compile=false "
            "(the perceptual loss then takes twice as long)"
        )


def _gradient(loss: Tensor, samples: Tensor) -> Tensor:
    return torch.autograd.grad(loss, samples, retain_graph=True)[0]
