"""Train the student's core, the part that works without noise, on the pictures of a prior, a published network.

A prior's picture is a deterministic function of its input, so an L1 loss does not blur it as it would blur photos.
A small network is still softer than its target. A perceptual loss and, later in the run, an adversary that compares
the student's pictures with the prior's make it crisper."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.student.adversary import Adversary
from export.student.losses import (
    chroma_loss,
    gradient_loss,
    grid_loss,
    limited,
    local_range,
    low_pass_loss,
    plain,
    plain_loss,
    told_by,
    trusted,
    with_coarse_part_of,
    with_colours_of,
)
from export.student.model.checkpoint import save_student
from export.student.model.network import NOISE_PATH, Student, StudentConfig
from training.data.batches import Batch
from training.data.degradation import sharpen
from training.loop.stage import Carry, Losses, RunSettings, Stage
from training.metrics.squeezenet import LAYERS, SqueezeFeatures, squared_feature_distance

# Default shape, at LR resolution. It costs as much as 96 channels at half that resolution, with a quarter of the weights, and trains in
# less than half the steps (training/EXPERIMENTS.md, "The shape was the brake").
SHAPE = StudentConfig(width=48, encoder_blocks=4, detail=48, fold=1)
# Sigma in pixels of the unsharp mask on the target.
SHARPENED_SIGMA = 1.2
# Share of the values' range around a pixel by which the target may exceed it, where that is less than the setting `overshoot`.
OVERSHOOT_SHARE = 0.15
# Side in HR pixels of the squares over which `level` compares means, at most the crop.
LEVEL_CELL = 64
# Side in periods of the grid loss's windows. In larger ones a mesh whose sign changes from place to place escapes it.
GRID_CELLS = 3


@dataclass(frozen=True)
class CoreSettings(RunSettings):
    """Settings of the core in addition to `RunSettings`. Losses are of the order 0.01 to 0.1 before their weights.

    Fields without a docstring override a default of `RunSettings`."""

    student: StudentConfig = field(default_factory=lambda: SHAPE)
    """Shape of the network."""
    batch: int = 4
    crop: int = 128
    lr: float = 5e-4
    final_lr: float = 2e-6
    warmup_steps: int = 100
    optimizer: str = "muon"
    """Optimizer of the student's kernels: "muon" or "adamw". All other weights have AdamW."""
    clip: float = 0.5
    ema: float = 0.999
    crispness: float = 1.15
    """Factor on the target's difference from the bicubic upscale. Above 1 it makes up for the softness of a small network."""
    sharpness: float = 0.0
    """Amount of an unsharp mask on the target, with a sigma of 1.2 pixels; 0 leaves it as it is. Other than crispness, it
    strengthens the finest detail alone, and plain places (`losses.plain`) are smoothed instead."""
    sharpness_degraded: float = 0.0
    """Further amount of that mask for an input that tells nothing of the photo, and less the more it tells (`losses.told_by`)."""
    own: float = 0.0
    """Amount of that mask on the picture of the student that the run began with, as far as the input does not show the photo. Above 0
    that is the target: a student follows it much closer than a prior's picture, of which it draws half of the finest detail."""
    overshoot: float = 5.0
    """Levels of 1/255 by which the target may exceed the values around it (`losses.local_range`), and at most by `OVERSHOOT_SHARE`
    of their range: the photo's as far as the input shows it, else the prior's. So contrast and sharpness steepen edges without
    halos."""
    truth: float = 1.0
    """Share of the photo, instead of the prior, in the target's coarse part (means over 4x4 pixels), for inputs that still show it."""
    truth_error: float = 5.0
    """RMS error in levels of 1/255, between an input and those 4x4 means, at which the photo's share is half of `truth`."""
    trust: float = 0.005
    """Weight of the cross-entropy between a consistent student's trust in its input and `losses.trusted`."""
    trust_ratio: float = 0.15
    """The ratio of `losses.trusted`. A larger value also trusts inputs that are less clean."""
    cards: float = 0.2
    """Share of drawn pairs, 0 to 1: letters and patterns as fine as an LR picture can hold. Priors get these wrong."""
    shapes: float = 0.4
    """Share of the drawn pairs, 0 to 1, that are shapes with straight and round edges (`training.data.cards.draw_shapes`)."""
    pixel: float = 1.0
    """Weight of the L1 distances to the target, of pixels and of means over 8x8 pixels."""
    gradient: float = 1.0
    """Weight of the L1 distance between image gradients."""
    chroma: float = 2.0
    """Weight of the L1 distance between colours without brightness. It penalises colour fringes and blotches, which
    the L1 of pixels hardly sees."""
    plain: float = 3.0
    """Weight of `losses.plain_loss`, the error on the target's plain places. It removes what is left there of noise, of a JPEG's blocks
    and of a mesh, which the L1 of pixels hardly sees beside the error of texture."""
    level: float = 10.0
    """Weight of the L1 distance between means over `LEVEL_CELL` HR pixels, which keeps the input's brightness and colours: those of the
    target are right within .1 of a level of 1/255, but the other losses hardly feel one."""
    grid: float = 30.0
    """Weight of `losses.grid_loss`, at the pixel shuffle's period and in windows of `GRID_CELLS` periods. Used with the feature loss
    only, which rewards a mesh of this period where the student cannot draw the texture."""
    feature: float = 0.3
    """Weight of the squared distance between SqueezeNet features; used if --perceptual-weights is given."""
    feature_layers: tuple[float, ...] = (1.0, 1.0, 1.0, 0.5, 0.5)
    """Weights of the layers conv1, fire3, fire5, fire7 and fire9 in that distance."""
    adversary: float = 0.5
    """Norm of the adversarial loss's gradient at the pixels of the photos it judges, relative to that of pixel, gradient
    and chroma losses there. 0 turns the adversary off; a larger value gives crisper pictures with more artefacts."""
    adversary_from: float = 0.2
    """Progress of the run, 0 to 1, at which the adversary joins."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    discriminator_lr: float = 2e-4
    """The discriminator's peak learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % 16:
            raise ValueError(f"crop must be a multiple of 16 HR pixels, got {self.crop}")
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer must be muon or adamw, got {self.optimizer!r}")
        for name in ("crispness", "overshoot", "truth_error", "trust_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        weights = ("trust", "pixel", "gradient", "chroma", "plain", "level", "grid", "feature", "adversary")
        for name in ("sharpness", "sharpness_degraded", "own", *weights):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("adversary_from", "truth", "cards", "shapes"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if len(self.feature_layers) != len(LAYERS):
            raise ValueError(f"feature_layers must be {len(LAYERS)} weights, got {len(self.feature_layers)}")


def stages_before(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Provenance of the earlier stages, oldest first, from the provenance in a student's checkpoint."""
    last = {name: value for name, value in provenance.items() if name != "history"}
    return [*provenance.get("history", []), *([last] if last else [])]


def finest_detail(picture: Tensor) -> Tensor:
    """What an unsharp mask with a sigma of `SHARPENED_SIGMA` pixels adds at an amount of 1, (n, 3, h, w) float32."""
    with torch.autocast(picture.device.type, enabled=False):  # bfloat16 would round it
        planes = picture.float().flatten(0, 1)
        return (sharpen(planes, SHARPENED_SIGMA, 1.0) - planes).unflatten(0, (-1, 3))


def silence(student: Student, features: Tensor) -> Tensor:
    """Zero noise for features (n, width, h/fold, w/fold): (n, noise channels, h/fold, w/fold)."""
    return features.new_zeros(len(features), student.config.noise_channels, *features.shape[2:])


def photos_in(batch: Batch, start: int, end: int) -> list[int]:
    """Indices from start to end - 1 of the pictures that are photos, not drawn cards."""
    drawn = [False] * len(batch.lr) if batch.drawn is None else batch.drawn.tolist()
    return [k for k in range(start, end) if not drawn[k]]


class StudentStage(Stage):
    """Common to the stages that train the student: validation samples and the saved checkpoint."""

    student: Student
    history: list[dict[str, Any]]

    def free_generator(self, noise_only: bool) -> None:
        """Let the generator learn, or only its path of the noise, and nothing else of the student. Its trust in the input stays.

        The gate is left out of that path where the convolution of the noise has a bias, as after tuning: it would scale the bias,
        which belongs to the picture without noise."""
        generator = self.student.generator
        biased = generator.gate is not None and bool(generator.noise.bias.any())
        path = NOISE_PATH[:1] if biased else NOISE_PATH
        self.student.requires_grad_(False)
        for name, parameter in generator.named_parameters():
            parameter.requires_grad_(name in path if noise_only else not name.startswith("trust."))

    def learning(self) -> list[nn.Parameter]:
        """What of the generator learns."""
        return [p for p in self.student.generator.parameters() if p.requires_grad]

    def sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        c = self.student.config
        generator = torch.Generator().manual_seed(k)
        noise = torch.randn(
            len(lr), c.noise_channels, lr.shape[2] // c.fold, lr.shape[3] // c.fold, generator=generator
        )
        return self.student(lr, noise.to(lr))

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        save_student(self.student, folder, {**provenance, "history": self.history})


class StudentCore(StudentStage):
    """Trains the whole student without noise. Phases: "student", and "adversary" after it has joined.

    student: to train; the noise's weights are set to zero.
    settings: of the stage.
    features: SqueezeNet, for the feature loss; None: without.
    history: of the stages before.

    `Batch.target` holds the prior's pictures.
    """

    def __init__(
        self,
        student: Student,
        settings: CoreSettings,
        features: SqueezeFeatures | None = None,
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.student, self.features = settings, student, features
        nn.init.zeros_(student.generator.noise.weight)  # noise has no effect until the next stage
        self.start = copy.deepcopy(student).requires_grad_(False) if settings.own > 0 else None
        self.adversary_on = False
        self.adversary = Adversary(settings.discriminator_width).requires_grad_(settings.adversary > 0)
        self.history = history or []

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("student", "adversary") if self._joined(progress) else ("student",)

    def _joined(self, progress: float) -> bool:
        self.adversary_on = self.settings.adversary > 0 and progress >= self.settings.adversary_from
        return self.adversary_on

    def sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        features, base = self.student.encode(lr)
        return self.student.generator(features, base, silence(self.student, features))

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        found = {"student": (list(self.student.parameters()), self.settings.lr)}
        if self.settings.adversary > 0:
            found["adversary"] = (list(self.adversary.parameters()), self.settings.discriminator_lr)
        return found

    def averaged(self) -> tuple[str, ...]:
        return ("student",)

    def muon(self) -> tuple[str, ...]:
        return ("student",) if self.settings.optimizer == "muon" else ()

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        if phase == "adversary":
            return {"loss": self.adversary.loss(carry["target"], carry["picture"], carry["enlarged"])}, {}
        features, base = self.student.encode(batch.lr)
        generator, scale = self.student.generator, self.student.config.scale
        logit = generator.trust_logit(features) if self.student.config.consistent else None
        # the pictures' losses do not teach the trust: an error that texture hides costs them as much as one on a plain wall
        trust = None if logit is None else torch.sigmoid(logit.detach())
        picture = generator.picture(features, base, silence(self.student, features), trust)
        enlarged = torch.pixel_shuffle(base[:, : 3 * scale**2].float(), scale)
        target = self._target(batch, enlarged)
        losses = self._losses(picture, target, enlarged, photos_in(batch, 0, (len(picture) + 1) // 2))
        if logit is not None:
            wanted = trusted(batch.lr.float(), batch.hr.float(), self.settings.trust_ratio)
            found = F.binary_cross_entropy_with_logits(logit.float(), wanted)
            losses["loss"] = losses["loss"] + self.settings.trust * found
            losses["trust"] = found.detach()
        seen = slice(len(picture) // 2, None)  # the discriminator trains on the half it has not just judged
        shown = {"picture": picture.detach().clamp(0, 1), "target": target, "enlarged": enlarged.detach()}
        return losses, {name: value[seen] for name, value in shown.items()}

    def _target(self, batch: Batch, enlarged: Tensor) -> Tensor:
        """The training target, (n, 3, 4h, 4w) in [0, 1].

        For photos: the prior's picture in the input's mean colours, with more contrast, sharpened without halos, and with the
        photo's coarse part as far as the input shows it. A drawn card is its own target, and so is a photo without a prior's
        picture."""
        if batch.target is None:
            return batch.hr
        s = self.settings
        hr = batch.hr.float()
        if self.start is not None:
            return self._own_target(batch)
        told = told_by(batch.lr.float(), hr, s.truth_error / 255)
        target = with_colours_of(batch.target, batch.lr)
        nearby = local_range(target)
        crisp = torch.lerp(enlarged.detach(), target, s.crispness)
        detail = finest_detail(crisp)
        # sharpened where there is something to see, smoothed on plain places: there the prior's picture has a mesh
        sharpness = s.sharpness + (1 - told) * s.sharpness_degraded
        flat = plain(*nearby)
        crisp = crisp + ((1 - flat) * sharpness - flat) * detail
        # within what the photo has nearby, as far as the input shows it, and else the prior's picture
        low, high = (torch.lerp(a, b, told) for a, b in zip(nearby, local_range(hr), strict=True))
        margin = (OVERSHOOT_SHARE * (high - low)).clamp(1e-4, s.overshoot / 255)
        mixed = with_coarse_part_of(limited(crisp, low, high, margin).clamp(0, 1), hr, s.truth * told)
        # colours again, since clamping shifts the mean, and limits again, since the coarse part has steps of 4 pixels along edges
        mixed = limited(with_colours_of(mixed, batch.lr), low, high, margin).clamp(0, 1)
        return (
            mixed if batch.drawn is None else torch.where(batch.drawn[:, None, None, None], batch.hr, mixed)
        )

    def _own_target(self, batch: Batch) -> Tensor:
        """The start's own picture, sharpened without halos where the input is not to be trusted; a card is its own target here, too."""
        assert self.start is not None
        trust = trusted(batch.lr.float(), batch.hr.float(), self.settings.trust_ratio)
        degraded = 1 - F.interpolate(trust, scale_factor=float(self.student.config.scale), mode="nearest")
        with torch.no_grad():
            features, base = self.start.encode(batch.lr)
            own = self.start.generator.picture(features, base, silence(self.start, features))
        low, high = local_range(own)
        amount = self.settings.own * degraded * (1 - plain(low, high))
        margin = (OVERSHOOT_SHARE * (high - low)).clamp(1e-4, self.settings.overshoot / 255)
        sharp = limited(own + amount * finest_detail(own), low, high, margin).clamp(0, 1)
        return (
            sharp if batch.drawn is None else torch.where(batch.drawn[:, None, None, None], batch.hr, sharp)
        )

    def _losses(self, picture: Tensor, target: Tensor, enlarged: Tensor, judged: list[int]) -> Losses:
        """All losses of a batch.

        picture, target, enlarged: the student's pictures, their targets and the bicubic upscales, (n, 3, 4h, 4w) each.
        judged: indices of the pictures for the perceptual and the adversarial loss. They are only half of the batch,
            since these losses cost as much as the student, and never drawn cards: these losses would sharpen letters
            before their shapes are right."""
        s = self.settings
        losses = {"pixel": (picture - target).abs().mean(), "gradient": gradient_loss(picture, target)}
        losses |= {"structure": low_pass_loss(picture, target), "chroma": chroma_loss(picture, target)}
        losses["plain"] = plain_loss(picture, target)
        losses["level"] = low_pass_loss(picture, target, min(LEVEL_CELL, picture.shape[-1]))
        anchor = s.pixel * (losses["pixel"] + losses["structure"]) + s.plain * losses["plain"]
        anchor = (
            anchor + s.gradient * losses["gradient"] + s.chroma * losses["chroma"] + s.level * losses["level"]
        )
        total = anchor
        if judged and self.features is not None and s.feature > 0:
            losses["grid"] = grid_loss(picture, target, self.student.config.scale, GRID_CELLS)
            total = total + s.grid * losses["grid"]
            with torch.no_grad():
                far = self.features.maps(target[judged])
            near = self.features.maps(picture[judged])
            losses["feature"] = squared_feature_distance(near, far, s.feature_layers)
            total = total + s.feature * losses["feature"]
        if judged and self.adversary_on and torch.is_grad_enabled():
            losses["push"], push = self.adversary.push(picture, enlarged, anchor, judged)
            total = total + s.adversary * push
        return {"loss": total} | {name: value.detach() for name, value in losses.items()}
