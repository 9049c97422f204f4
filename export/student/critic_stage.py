"""Train the critic (`training.metrics.critic`) to tell photos from reconstructions of them.

The reconstructions are those of the student, of bicubic upscaling and of a prior. Use photos that the student was
not trained on: on its training photos the student may reproduce details that it cannot reconstruct elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.student.model.checkpoint import load_student
from export.student.model.network import Student
from training.data.batches import Batch
from training.data.flaws import FLAWS, spoil
from training.loop.stage import Carry, Losses, RunSettings, Stage
from training.loop.validation import Validation, bicubic
from training.metrics.critic import Critic, CriticConfig, paired_loss, save_critic
from training.pixels import rounded
from training.randomness import generator, normal


@dataclass(frozen=True)
class CriticSettings(RunSettings):
    """Settings of the critic in addition to `RunSettings`. Fields without a docstring override a default of `RunSettings`."""

    batch: int = 8
    crop: int = 64
    lr: float = 3e-3
    final_lr: float = 1e-5
    warmup_steps: int = 20
    ema: float = 0.99
    width: int = 16
    """Channels of the first layer; 16 gives 45,057 parameters."""
    penalty: float = 0.003
    """Weight of the mean squared logit. A larger value keeps scores closer to 0."""
    grain: float = 0.5
    """Share of the spoilt photos, 0 to 1, whose flaw is grain. Without them a critic trained against blurred pictures
    takes grain for detail."""

    def __post_init__(self) -> None:
        super().__post_init__()
        CriticConfig(self.width)
        if not self.penalty >= 0:
            raise ValueError(f"penalty must be at least 0, got {self.penalty}")
        if not 0 <= self.grain <= 1:
            raise ValueError(f"grain must be from 0 to 1, got {self.grain}")
        if self.crop % 16:
            raise ValueError(f"crop must be a multiple of 16 HR pixels, got {self.crop}")


class CriticStage(Stage):
    """One phase, "critic". Each photo is compared with a reconstruction, a spoilt reconstruction, and a spoilt copy of itself."""

    def __init__(self, student: Student, settings: CriticSettings) -> None:
        super().__init__()
        self.settings = settings
        self.student = student.requires_grad_(False)
        torch.manual_seed(settings.seed)
        self.critic = Critic(CriticConfig(settings.width))

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("critic",)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"critic": (list(self.critic.parameters()), self.settings.lr)}

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        versions = self.versions(batch)
        real, *others = (
            self.critic(torch.cat([batch.hr, *versions.values()])).float().chunk(1 + len(versions))
        )
        penalty = self.settings.penalty
        losses = {f"{name}_wins": _wins(real, other) for name, other in zip(versions, others, strict=True)}
        losses["loss"] = torch.stack([paired_loss(real, other, penalty) for other in others]).mean()
        return losses, {}

    @torch.no_grad()
    def versions(self, batch: Batch) -> dict[str, Tensor]:
        """The pictures to compare each photo with, three times (B, 3, H, W).

        plain: a reconstruction by the student, by bicubic upscaling or, if the batch has targets, by the prior.
        spoilt: the student's reconstruction with a flaw.
        photo: the photo with a flaw."""
        drawn = self.draw(batch.lr, batch.items, "sample").float()
        enlarged = bicubic(batch.lr)
        found: dict[str, list[Tensor]] = {"plain": [], "spoilt": [], "photo": []}
        for k, item in enumerate(batch.items):
            rng = generator(self.settings.seed, item, "critic")
            kinds = [drawn[k], drawn[k], enlarged[k]] + ([] if batch.target is None else [batch.target[k]])
            found["plain"].append(kinds[int(rng.integers(len(kinds)))])
            found["spoilt"].append(spoil(drawn[k], rng))
            flaw = "grain" if rng.random() < self.settings.grain else None
            found["photo"].append(spoil(batch.hr[k], rng, flaw))
        return {name: rounded(torch.stack(pictures)) for name, pictures in found.items()}

    def draw(self, lr: Tensor, items: tuple[int, ...] | range, stream: str) -> Tensor:
        """The student's pictures of lr. items and stream select the noise."""
        c = self.student.config
        shape = (c.noise_channels, lr.shape[2] // c.fold, lr.shape[3] // c.fold)
        return self.student(lr, normal(self.settings.seed, items, shape, stream).to(lr))

    def sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        return self.draw(lr, range(len(lr)), f"validation {k}")

    @torch.no_grad()
    def measure(self, validation: Validation) -> dict[str, float]:
        """Share of the held-out photos that score higher than their own reconstruction, for each kind of reconstruction."""
        device = next(self.critic.parameters()).device
        wins: dict[str, list[float]] = {}
        for k, (small, photo) in enumerate(
            zip(validation.lr.to(device), validation.hr.to(device), strict=True)
        ):
            drawn = self.sample(small[None], photo[None], 0)[0].float()
            kinds = {"student": drawn, "bicubic": bicubic(small[None])[0]}
            kinds |= {name: spoil(drawn, generator(1, k, name), name) for name in FLAWS}
            kinds["grain on the photo"] = spoil(photo, generator(1, k, "photo"), "grain")
            scores = self.critic.score(rounded(torch.stack([photo, *kinds.values()]))).tolist()
            for name, score in zip(kinds, scores[1:], strict=True):
                wins.setdefault(name, []).append(float(scores[0] > score))
        return {f"photo wins/{name}": sum(found) / len(found) for name, found in wins.items()}

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        save_critic(self.critic, folder, provenance)


def build(settings: CriticSettings, init: Path | None) -> CriticStage:
    """The stage for the student at `init`. Raises ValueError if `init` is None."""
    if init is None:
        raise ValueError("the critic needs a student whose pictures it judges: give --init STUDENT")
    return CriticStage(load_student(init)[0], settings)


def _wins(real: Tensor, fake: Tensor) -> Tensor:
    """Share of pictures whose real version scores higher."""
    return (real.mean((1, 2, 3)) > fake.mean((1, 2, 3))).float().mean().detach()
