"""The noise of the student: texture that differs from seed to seed, learnt by a proper score.

The core cannot regress texture, since many textures fit one input. Two samples of each input are scored by the energy score of their
fine parts against the photo's own, where the core has no strong edge; edges, structure and colour stay the core's. The score is
smallest where the samples are distributed as the truth is, so the noise neither dies out nor grows beyond it; what a texture looks
like beyond its strength, an adversary that joins later may ask for. Where the photo is flat
the truth is the core's: a camera's grain is nothing to imitate, and grain on a sky is worse than a meadow without it. Where the input
tells little of the photo, it is nearly the core's, too: on a blotchy JPEG any texture looks like the file's own dirt. A gate, which
the features open, lets the noise in: added to the features alone it cannot be silenced again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from export.student.adversary import Adversary
from export.student.core import StudentStage, silence, with_noise
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
from export.student.network import Generator, Student
from training.data.batches import Batch
from training.loop.stage import Carry, Losses, RunSettings
from training.metrics.detail import flat_mask
from training.randomness import normal

NOISE_START = 0.1
"""Of the usual spread of a convolution's first weights: samples some levels apart. At zero they agree and nothing tells them apart."""


@dataclass(frozen=True)
class NoiseSettings(RunSettings):
    """Settings of the noise stage beside those of every run."""

    batch: int = 6
    crop: int = 160
    lr: float = 1.5e-3
    final_lr: float = 2e-6
    clip: float = 0.5
    ema: float = 0.999
    noise_channels: int = 4
    """Of the noise, for each cell of the student: 4 for an LR pixel, 16 where two by two of them make a cell. With 4 for such a cell
    textures are made of few shapes, which repeat. Where the student has others, its noise begins anew."""
    samples: int = 2
    """Drawn of each input."""
    score: float = 5.0
    """Energy score of the fine parts."""
    truth_error: float = 8.0
    """Levels between an input and the photo's means over 4x4 pixels at which half of the photo's texture is asked for."""
    edges: float = 0.6
    """L1 and L1 of differences to the core's picture where it has edges."""
    structure: float = 2.0
    """L1 of 8x8 means to the core's."""
    chroma: float = 0.5
    """L1 of colours to the core's."""
    flat: float = 0.01
    """Mean square, in levels, of the distance to the core's picture where the photo is flat. RMS is what the eye sees there, and a
    score of distances hardly minds a few strong ones."""
    grid: float = 5.0
    """L1 of patterns of eight pixels' period to the core's: the noise's cells must not show."""
    adversary: float = 0.0
    """Its gradient at the pixels, relative to that of all the others together."""
    adversary_from: float = 0.3
    """Part of the run after which the adversary joins."""
    discriminator_width: int = 32
    discriminator_lr: float = 2e-4

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
        if not 0 <= self.adversary_from <= 1:
            raise ValueError(f"adversary_from must be from 0 to 1, got {self.adversary_from}")


class StudentNoise(StudentStage):
    """Phase "noise" trains the generator, and "adversary" once it has joined; the encoder is the core's, and so is the reference that
    edges are bound to."""

    def __init__(
        self,
        student: Student,
        settings: NoiseSettings,
        prepare: Callable[[Batch], Batch] | None = None,
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if student.config.noise_channels != settings.noise_channels or not student.config.noise_gate:
            student = with_noise(student, settings.noise_channels, settings.seed)
        self.settings, self.student = settings, student
        self.core = Generator(student.config)
        self.core.load_state_dict(student.generator.state_dict())
        self.core.requires_grad_(False)
        student.encoder.requires_grad_(False)
        noise = student.generator.noise
        if not noise.weight.any():  # a core's
            torch.manual_seed(settings.seed)
            with torch.no_grad():
                nn.init.kaiming_uniform_(noise.weight, a=5**0.5)
                noise.weight.mul_(NOISE_START)
        self.adversary_on = False
        self.adversary = Adversary(settings.discriminator_width).requires_grad_(settings.adversary > 0)
        self.history = history or []
        self._prepare = prepare

    def prepare(self, batch: Batch) -> Batch:
        return batch if self._prepare is None else self._prepare(batch)

    def phases(self, progress: float) -> tuple[str, ...]:
        self.adversary_on = self.settings.adversary > 0 and progress >= self.settings.adversary_from
        return ("noise", "adversary") if self.adversary_on else ("noise",)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        found = {"noise": (list(self.student.generator.parameters()), self.settings.lr)}
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
            weight = texture_weight(core)
            flat = flat_mask(batch.hr.float())
            truth = self._truth(batch, core)
        shape = (s.samples, self.student.config.noise_channels, *features.shape[2:])
        noise = normal(s.seed, batch.items, shape, "noise").to(features).transpose(0, 1).flatten(0, 1)
        residual = self.student.generator.residual(features.repeat(s.samples, 1, 1, 1), noise)
        pictures = torch.pixel_shuffle(
            (base.repeat(s.samples, 1, 1, 1) + residual).float(), self.student.config.scale
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
        if self.adversary_on and torch.is_grad_enabled():
            judged = slice(0, n)  # the first samples; the discriminator sees the second ones
            losses["push"], push = self.adversary.push(pictures, cores, total, judged)
            total = total + s.adversary * push
        found = {"loss": total} | {name: loss.detach() for name, loss in losses.items()}
        shown = {"sample": samples[1].detach().clamp(0, 1), "truth": truth, "core": core}
        return found | {"spread": _spread(samples)}, shown

    def _truth(self, batch: Batch, core: Tensor) -> Tensor:
        """What samples are scored against, (n, 3, 4h, 4w): the photo where it has texture and as far as the input tells it, elsewhere
        the core's picture."""
        hr = batch.hr.float()
        told = told_by(batch.lr.float(), hr, self.settings.truth_error / 255)
        return torch.lerp(core, without_grain(hr, core), told)


def _spread(samples: Tensor) -> Tensor:
    """Root mean square between the first two samples, 1/255."""
    return 255 * (samples[0] - samples[1]).detach().square().mean().sqrt()
