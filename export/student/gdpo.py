"""GDPO on the student (GDPO-SR, Sec. 3.3, conditioned on the LR picture), with DPO and GRPO for comparison.

For each LR picture the encoder runs once, and the generator draws and scores a group of samples x_i with different
noise. The policy then draws with yet another noise eps. It learns to be closer to the samples with a high reward than
the frozen reference is:

    movement = sum_i A_i (|G(LR, eps) - x_i|^2 - |G_ref(LR, eps) - x_i|^2) / variance of the group
    loss     = -log sigmoid(-weight * movement) + anchor * |G(LR, eps) - G_ref(LR, eps)|^2 / variance of the group + guards

The advantages A_i of a group sum to zero, so the preference's gradient does not shrink as the policy moves away. The
anchor limits how far it moves. eps must differ from the noise of the x_i: with the same noise both errors, and their
gradients, start at zero."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.student.core import StudentStage
from export.student.losses import distances
from export.student.model.network import Student
from training.data.batches import Batch
from training.loop.stage import Carry, Losses
from training.loop.validation import Validation
from training.metrics.registry import Metric
from training.randomness import normal
from training.stages.comparison import DRAWS, compare, held_out
from training.stages.preference import (
    best_worst_advantage,
    error_change,
    gaussian_log_ratio,
    group_advantage,
    group_variance,
    grpo_loss,
    preference_accuracy,
    preference_loss,
)
from training.stages.rewards import ObjectiveSettings, RewardReport, group_rewards, statistics
from training.stages.sheets import first_pictures, group_sheet

# Lower bound of a group's standard deviation. Closer samples are equal after rounding to 8 bits.
SMALLEST_DEVIATION = 0.25 / 255


@dataclass(frozen=True)
class StudentGdpoSettings(ObjectiveSettings):
    """Settings of the stage in addition to `ObjectiveSettings`. Movement, anchor and guards are relative to the group's own variance.
    objective=grpo needs sampler=policy.

    Fields without a docstring override a default of `ObjectiveSettings`."""

    batch: int = 4
    crop: int = 128
    lr: float = 2e-5
    final_lr: float = 1e-6
    warmup_steps: int = 20
    group: int = 8
    """Samples of each LR picture, 6 to 12."""
    metrics: tuple[str, ...] = ("psnr", "smooth", "texture")
    noise_only: bool = False
    """Whether only the path of the noise learns: its convolution, and the gate unless that convolution has a bias, which the gate
    would scale. The picture without noise then stays as it is.
    Otherwise all of the generator learns."""
    weight: float = 1.0
    """Factor on the movement, without unit. At 1, a move by one standard deviation of the group changes the argument
    of the sigmoid by a few nats. A larger value saturates the loss sooner."""
    anchor: float = 0.3
    structure: float = 0.5
    """Weight of the L1 distance to the reference between means over 8x8 pixels."""
    colour: float = 0.5
    """Weight of the distance to the reference between the pictures' mean chroma."""
    grpo_sigma: float = 1.0
    """Standard deviation of the Gaussian policy around a sample, in levels of 1/255."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 6 <= self.group <= 12:
            raise ValueError(f"group must be from 6 to 12 samples, got {self.group}")
        if self.objective == "grpo" and self.sampler != "policy":
            raise ValueError(
                "objective=grpo is on-policy and learns from its own samples: set sampler=policy with it"
            )
        for name in ("structure", "colour"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.crop % 16:
            raise ValueError(f"crop must be a multiple of 16 HR pixels, got {self.crop}")


@dataclass(frozen=True)
class Group:
    """A group of G samples for each of B LR pictures, and their scores."""

    noise: Tensor
    """(B, G, noise channels, h/fold, w/fold)"""
    means: Tensor
    """The generator's pictures, (B, G, 3, 4h, 4w) in [0, 1]."""
    candidates: Tensor
    """The pictures that were scored: the means; for grpo, the means plus Gaussian exploration noise."""
    advantage: Tensor
    """(B, G), zero mean per row."""
    variance: Tensor
    """Variance of the means, (B,), see `group_variance`."""
    report: RewardReport
    """Rewards and scores of the candidates."""


class StudentGdpo(StudentStage):
    """One phase, "policy", which trains the generator. The encoder is frozen, so policy and reference share the features."""

    def __init__(
        self,
        student: Student,
        settings: StudentGdpoSettings,
        metrics: list[Metric],
        history: list[dict[str, Any]] | None = None,
    ) -> None:
        """student: the policy; a frozen copy of its generator is the reference.
        settings: of the stage.
        metrics: those of the reward.
        history: provenance of the stages before this one."""
        super().__init__()
        self.student, self.settings, self.metrics = student, settings, metrics
        self.history = history or []
        self.reference = copy.deepcopy(student.generator).requires_grad_(False)
        self.free_generator(settings.noise_only)

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("policy",)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"policy": (self.learning(), self.settings.lr)}

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        s = self.settings
        # encode once for the group, the policy and the reference
        with torch.no_grad():
            features, base = self.student.encode(batch.lr)
        group = self.draw(features, base, batch)

        # the same noise for both, different from the group's
        noise = self.noise(features, batch, "loss")
        policy = self.student.generator(features, base, noise).float()
        with torch.no_grad():
            reference = self.reference(features, base, noise).float()

        # since sum A = 0, both the preference and the clipped gradient need an anchor
        change = relative_change(policy[:, None], reference[:, None], group)
        if s.objective == "grpo":
            preference = self._grpo(features, base, group)
        else:
            preference = preference_loss(change, group.advantage, s.weight)
        guards = distances(policy, reference, group.variance)
        loss = preference + sum(getattr(s, name) * value for name, value in guards.items())
        return {
            "loss": loss,
            "preference": preference.detach(),
            **{name: value.detach() for name, value in guards.items()},
            "win_rate": preference_accuracy(change.detach(), group.advantage),
            "margin": -(group.advantage * change.detach()).sum(1).mean(),
            "drift": 255 * (policy.detach() - reference).square().mean().sqrt(),
            "group_deviation": 255 * group.variance.sqrt().mean(),
            **statistics(group.report, s.sampler),
        }, {}

    def noise(self, features: Tensor, batch: Batch, stream: str, *leading: int) -> Tensor:
        """Noise (B, *leading, noise channels, h/fold, w/fold).

        features: (B, width, h/fold, w/fold), whose type and device it gets.
        batch: the pictures, whose items select it.
        stream: names the use of it.
        leading: further axes, such as the samples of a group."""
        shape = (*leading, self.student.config.noise_channels, *features.shape[2:])
        return normal(self.settings.seed, batch.items, shape, stream).to(features)

    @torch.no_grad()
    def draw(self, features: Tensor, base: Tensor, batch: Batch, sampler: str | None = None) -> Group:
        """Sample and score a group for every LR picture.

        features, base: of the encoder.
        batch: the pictures.
        sampler: "reference" or "policy"; None: that of the settings.
        """
        s = self.settings
        generator = self.reference if (sampler or s.sampler) == "reference" else self.student.generator
        noise = self.noise(features, batch, "group", s.group)
        means = torch.stack([generator(features, base, noise[:, i]).float() for i in range(s.group)], dim=1)
        candidates = means
        if s.objective == "grpo":  # the policy is a Gaussian around its sample
            exploration = normal(s.seed, batch.items, means.shape[1:], "exploration").to(means)
            candidates = means + s.grpo_sigma / 255 * exploration
        report = group_rewards(candidates, batch.hr, self.metrics, s.weighting, min_spread=s.spreads)
        advantage = (
            best_worst_advantage(report.rewards) if s.objective == "dpo" else group_advantage(report.rewards)
        )
        return Group(
            noise,
            means,
            candidates,
            advantage * report.strength[:, None],
            group_variance(means, SMALLEST_DEVIATION**2),
            report,
        )

    def _grpo(self, features: Tensor, base: Tensor, group: Group) -> Tensor:
        s = self.settings
        new = [self.student.generator(features, base, group.noise[:, i]).float() for i in range(s.group)]
        ratio = gaussian_log_ratio(group.candidates, group.means, torch.stack(new, dim=1), s.grpo_sigma / 255)
        return grpo_loss(ratio, group.advantage, s.grpo_clip)

    @torch.no_grad()
    def measure(self, validation: Validation) -> dict[str, float]:
        """Policy against reference on the held-out photos, see `compare`."""

        def drawn() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for numbers, lr, hr in held_out(validation, next(self.student.parameters()).device):
                features, base = self.student.encode(lr)
                shape = (DRAWS, self.student.config.noise_channels, *features.shape[2:])
                for noise in normal(1, numbers, shape, "validation").to(features).unbind(1):
                    models = (self.student.generator, self.reference)
                    policy, reference = (model(features, base, noise).float() for model in models)
                    yield policy, reference, hr

        return compare(drawn(), self.metrics, self.settings)

    @torch.no_grad()
    def pictures(self, validation: Validation) -> dict[str, np.ndarray]:
        """Groups that the policy draws of the first held-out photos, with their rewards."""
        batch = first_pictures(validation, next(self.student.parameters()).device)
        group = self.draw(*self.student.encode(batch.lr), batch, "policy")
        return {"groups": group_sheet(group.candidates, batch.hr, group.report)}


def relative_change(policy: Tensor, reference: Tensor, group: Group) -> Tensor:
    """Change of the squared error to each candidate, in units of the group's variance: (B, 1 or G, 3, H, W) twice -> (B, G)."""
    return error_change(policy, reference, group.candidates) / group.variance[:, None]
