"""Train the student's response to noise: texture that differs from sample to sample, by a proper score.

Many textures fit one input, so the core cannot regress them. This stage draws several samples of each input and
scores their fine parts against the photo's by the energy score, away from strong edges. The score is smallest if the
samples are distributed as the truth is, so the noise neither dies out nor becomes too strong. Edges, structure and
colour stay those of the core. An adversary may join later for faults that the score misses.

In flat parts of a photo the target is the core's picture, so camera grain is not imitated. For inputs that determine
little of the photo, the target is also close to the core's picture: on a blotchy JPEG any texture looks like compression artefacts.

A gate computed from the features scales the noise. Noise that is only added to the features cannot be suppressed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.student.adversary import Adversary
from export.student.core import StudentStage, photos_in, silence
from export.student.losses import (
    chroma_loss,
    energy_score,
    gradient_loss,
    grid_loss,
    low_pass_loss,
    texture_weight,
    told_by,
    without_grain,
)
from export.student.model.growing import with_noise
from export.student.model.network import Generator, Student
from training.data.batches import Batch
from training.loop.stage import Carry, Losses, RunSettings
from training.metrics.detail import flat_mask
from training.randomness import normal

# Factor on the usual initial weights of the noise convolution. Samples then differ by a few levels of 1/255. At zero, all samples would
# be equal and would stay so.
NOISE_START = 0.1


@dataclass(frozen=True)
class NoiseSettings(RunSettings):
    """Settings of the noise stage in addition to `RunSettings`. Each loss compares with the core's picture unless it says otherwise.

    Fields without a docstring override a default of `RunSettings`."""

    batch: int = 6
    crop: int = 160
    lr: float = 1.5e-3
    final_lr: float = 2e-6
    clip: float = 0.5
    ema: float = 0.999
    noise_channels: int = 4
    """Noise channels per cell: 4 for a cell of one LR pixel, 16 for a cell of 2x2. With 4 for a cell of 2x2, textures
    repeat a few shapes. If the student has another number, its noise convolution starts anew."""
    noise_only: bool = True
    """Whether only the path of the noise learns: its convolution, and the gate unless that convolution has a bias, which the gate
    would scale. The picture without noise then stays the core's.
    Otherwise all of the generator learns, and people like the picture less (training/EXPERIMENTS.md, 2026-11-30)."""
    samples: int = 2
    """Samples drawn of each input, at least 2."""
    cards: float = 0.25
    """Share of the pairs, 0 to 1, that are drawn. Their samples are bound to the card itself, so that noise leaves letters and
    patterns alone. With noise_only=false the generator goes on learning them, too."""
    score: float = 5.0
    """Weight of the energy score of the fine parts."""
    truth_error: float = 8.0
    """RMS error in levels of 1/255, between an input and the photo's means over 4x4 pixels, at which half of the
    photo's texture is asked for. A larger value asks for texture on more strongly degraded inputs too."""
    edges: float = 0.6
    """Weight of the L1 distances of pixels and gradients, at edges of the core's picture."""
    structure: float = 2.0
    """Weight of the L1 distance of means over 8x8 pixels."""
    chroma: float = 0.5
    """Weight of the L1 distance of colours without brightness."""
    flat: float = 0.01
    """Weight of the mean squared distance, in levels of 1/255, in flat parts of photos, not of cards. The square is used because
    the eye sees RMS there, and the energy score hardly penalises a few strong deviations."""
    grid: float = 5.0
    """Weight of the L1 distance of patterns with a period of eight pixels. It keeps the cells of the noise invisible."""
    adversary: float = 0.0
    """Norm of the adversarial loss's gradient at the pixels of the photos it judges, relative to that of all other losses
    there. 0 turns the adversary off."""
    adversary_from: float = 0.3
    """Progress of the run, 0 to 1, at which the adversary joins."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    discriminator_lr: float = 2e-4
    """The discriminator's peak learning rate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop % 16:
            raise ValueError(f"crop must be a multiple of 16 HR pixels, got {self.crop}")
        if self.noise_channels < 1:
            raise ValueError(f"noise_channels must be at least 1, got {self.noise_channels}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, got {self.samples}: the score compares them")
        for name in ("score", "edges", "structure", "chroma", "flat", "grid", "adversary"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.truth_error > 0:
            raise ValueError(f"truth_error must be above 0, got {self.truth_error}")
        for name in ("adversary_from", "cards"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")


class StudentNoise(StudentStage):
    """Trains the generator, or its path of the noise alone. Phases: "noise", and "adversary" after it has joined.

    The encoder is frozen. A frozen copy of the core's generator gives the reference for edges, structure and colour."""

    def __init__(
        self,
        student: Student,
        settings: NoiseSettings,
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if student.config.noise_channels != settings.noise_channels or not student.config.noise_gate:
            student = with_noise(student, settings.noise_channels, settings.seed)
        self.settings, self.student = settings, student
        self.core = Generator(student.config)
        self.core.load_state_dict(student.generator.state_dict())
        self.core.requires_grad_(False)
        noise = student.generator.noise
        if not noise.weight.any():  # all zero: a core, which had no noise yet
            torch.manual_seed(settings.seed)
            with torch.no_grad():
                nn.init.kaiming_uniform_(noise.weight, a=5**0.5)
                noise.weight.mul_(NOISE_START)
        self.free_generator(settings.noise_only)
        self.adversary_on = False
        self.adversary = Adversary(settings.discriminator_width).requires_grad_(settings.adversary > 0)
        self.history = history or []

    def phases(self, progress: float) -> tuple[str, ...]:
        self.adversary_on = self.settings.adversary > 0 and progress >= self.settings.adversary_from
        return ("noise", "adversary") if self.adversary_on else ("noise",)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        found = {"noise": (self.learning(), self.settings.lr)}
        if self.settings.adversary > 0:
            found["adversary"] = (list(self.adversary.parameters()), self.settings.discriminator_lr)
        return found

    def averaged(self) -> tuple[str, ...]:
        return ("noise",)

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        if phase == "adversary":
            return {"loss": self.adversary.loss(carry["truth"], carry["sample"], carry["core"])}, {}
        s, n = self.settings, len(batch.lr)
        with torch.no_grad():
            features, base = self.student.encode(batch.lr)
            core = self.core(features, base, silence(self.student, features)).float()
            if batch.drawn is not None:
                core = torch.where(batch.drawn[:, None, None, None], batch.hr.float(), core)
            weight = texture_weight(core)
            flat = flat_mask(batch.hr.float())
            if batch.drawn is not None:  # the paper between letters, where a core is dozens of levels off
                flat = flat & ~batch.drawn[:, None, None, None]
            truth = self._truth(batch, core)
        shape = (s.samples, self.student.config.noise_channels, *features.shape[2:])
        noise = normal(s.seed, batch.items, shape, "noise").to(features).transpose(0, 1).flatten(0, 1)
        pictures = self.student.generator.picture(
            features.repeat(s.samples, 1, 1, 1), base.repeat(s.samples, 1, 1, 1), noise
        )
        samples = pictures.unflatten(0, (s.samples, n))
        cores = core.repeat(s.samples, 1, 1, 1)
        on_edges = (1 - weight).repeat(s.samples, 1, 1, 1)
        losses = {
            "score": energy_score(samples, truth, weight),
            "edges": (on_edges * (pictures - cores).abs()).mean()
            + gradient_loss(on_edges * pictures, on_edges * cores),
            "structure": low_pass_loss(pictures, cores),
            "chroma": chroma_loss(pictures, cores),
            "flat": 255**2 * (flat.repeat(s.samples, 1, 1, 1) * (pictures - cores).square()).mean(),
            "grid": grid_loss(pictures, cores),
        }
        total = torch.stack([getattr(s, name) * loss for name, loss in losses.items()]).sum()
        judged = photos_in(batch, 0, n)  # of the first samples; the discriminator trains on the second ones
        if judged and self.adversary_on and torch.is_grad_enabled():
            losses["push"], push = self.adversary.push(pictures, cores, total, judged)
            total = total + s.adversary * push
        found = {"loss": total} | {name: loss.detach() for name, loss in losses.items()}
        shown = {"sample": samples[1].detach().clamp(0, 1), "truth": truth, "core": core}
        return found | {"spread": _spread(samples)}, shown

    def _truth(self, batch: Batch, core: Tensor) -> Tensor:
        """The target of the samples, (n, 3, 4h, 4w): the photo's texture as far as the input determines it, else the core's picture."""
        hr = batch.hr.float()
        told = told_by(batch.lr.float(), hr, self.settings.truth_error / 255)
        return torch.lerp(core, without_grain(hr, core), told)


def _spread(samples: Tensor) -> Tensor:
    """RMS difference between the first two samples, in levels of 1/255."""
    return 255 * (samples[0] - samples[1]).detach().square().mean().sqrt()
