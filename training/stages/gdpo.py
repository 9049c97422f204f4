"""GDPO, group direct preference optimization (GDPO-SR, Sec. 3.3), with Diffusion-DPO and a GRPO-style objective for comparison.

For each LR picture a group of samples is drawn online with different noise and scored. The policy learns to prefer
samples with a high reward over those with a low one, relative to the frozen NAOSD model. Only a LoRA of the UNet is
trained. The reference is the same UNet with that LoRA disabled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.data.batches import Batch
from training.loop.stage import Carry, Losses, Stage
from training.loop.validation import Validation
from training.metrics.registry import Metric
from training.model.adapters import add_lora, disabled
from training.model.one_step import OneStepModel
from training.model.saving import save_run_model
from training.randomness import normal
from training.stages.comparison import DRAWS, compare, held_out
from training.stages.lora import LoraSettings
from training.stages.naosd import in_float32, sample_for_validation
from training.stages.preference import (
    anchor_distance,
    best_worst_advantage,
    error_change,
    gaussian_kl,
    gaussian_log_ratio,
    group_advantage,
    group_variance,
    grpo_loss,
    preference_accuracy,
    preference_loss,
)
from training.stages.rewards import ObjectiveSettings, RewardReport, group_rewards, statistics
from training.stages.sheets import first_pictures, group_sheet

CONDITIONS = ("candidate", "lr")
# Lower bound of a group's variance, in units of the latent. Closer samples are equal after decoding and rounding.
SMALLEST_VARIANCE = 1e-6


@dataclass(frozen=True)
class GdpoSettings(LoraSettings, ObjectiveSettings):
    """Settings of the stage, as in the paper, in addition to `LoraSettings` and `ObjectiveSettings`. The presets set
    learning rate, batch and crop."""

    condition: str = "candidate"
    """The UNet's input in the loss: "candidate" for the candidate's latent with noise, "lr" for the LR latent with noise."""
    group: int = 6
    """Samples of each LR picture, at least 2."""
    shared_noise: bool = True
    """Use one noise in the loss for the whole group, as in Diffusion-DPO, instead of one per candidate."""
    weight: float = 2500.0
    """w in the loss: the published 5000 including its factor 1/2. A larger value saturates the loss sooner."""
    metrics: tuple[str, ...] = ("psnr", "maniqa", "musiq")
    """Metrics of the reward, as in the paper; see `RewardSettings`."""
    anchor: float = 0.0
    """condition=lr: weight of the squared distance to the reference's latent, in units of the group's variance. A larger
    value keeps the policy closer to it; with 0 nothing pulls it back."""
    grpo_sigma: float = 0.1
    """Standard deviation of the Gaussian policy around the one-step latent."""
    grpo_kl: float = 0.0
    """Weight of the KL divergence from the reference."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition must be one of {', '.join(CONDITIONS)}, got {self.condition!r}")
        if self.group < 2:
            raise ValueError(f"group must be at least 2 samples, got {self.group}")
        if self.anchor > 0 and (self.condition != "lr" or self.objective == "grpo"):
            raise ValueError(
                f"anchor works with condition=lr and gdpo or dpo, got condition={self.condition}, "
                f"objective={self.objective}: set condition=lr, or for grpo use grpo_kl"
            )


@dataclass(frozen=True)
class Group:
    """A group of G samples for each of B LR pictures, and their advantages."""

    latent: Tensor
    """Latent of the LR picture, (B, C, h, w)."""
    condition: Tensor | None
    """Text embeddings for the UNet; None without cross-attention."""
    noise: Tensor
    """(B, G, noise channels, h, w)"""
    means: Tensor
    """One-step latents z_0, (B, G, C, h, w)."""
    candidates: Tensor
    """Latents that were decoded and scored: the means; for grpo, the means plus Gaussian exploration noise."""
    advantage: Tensor
    """(B, G), zero mean per row."""
    report: RewardReport
    """Rewards and scores of the decoded candidates."""


class Gdpo(Stage):
    """One phase, "policy", which trains a LoRA of the UNet."""

    def __init__(
        self,
        model: OneStepModel,
        settings: GdpoSettings,
        metrics: list[Metric],
        base: str,
        text_base: str | None = None,
    ) -> None:
        """model: the finished NAOSD model, adapters merged.
        settings: of the stage.
        metrics: those of the reward.
        base, text_base: where the model came from, for the saved model."""
        super().__init__()
        self.settings, self.metrics = settings, metrics
        self.base, self.text_base = base, text_base
        model.freeze()
        model.unet = add_lora(model.unet, settings.lora("unet"), settings.seed)
        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.model = model
        in_float32(self)

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("policy",)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        return {"policy": ([p for p in self.model.parameters() if p.requires_grad], self.settings.lr)}

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        group = self.draw(batch)
        losses = self._grpo(group) if self.settings.objective == "grpo" else self._preference(group, batch)
        return losses | statistics(group.report, self.settings.sampler), {}

    @torch.no_grad()
    def draw(self, batch: Batch, sampler: str | None = None) -> Group:
        """Sample and score a group for every LR picture. The encoder runs once per picture.

        sampler: "reference" or "policy"; None for that of the settings."""
        s, model = self.settings, self.model
        condition = model.condition(batch.prompts, len(batch.lr))
        latent = model.encode(batch.lr)
        noise = normal(s.seed, batch.items, (s.group, *model.noise_shape(*batch.lr.shape[-2:])), "group").to(
            latent
        )
        with disabled(model.unet) if (sampler or s.sampler) == "reference" else contextlib.nullcontext():
            means = torch.stack(
                [model.restore(latent, noise[:, i], condition) for i in range(s.group)], dim=1
            )
        candidates = means
        if s.objective == "grpo":  # the policy is a Gaussian around the one-step latent
            shape = (s.group, *latent.shape[1:])
            candidates = means + s.grpo_sigma * normal(s.seed, batch.items, shape, "exploration").to(latent)
        sr = torch.stack([model.decode(candidates[:, i]).float() for i in range(s.group)], dim=1)
        report = group_rewards(sr, batch.hr, self.metrics, s.weighting, min_spread=s.spreads)
        rewards = report.rewards
        advantage = best_worst_advantage(rewards) if s.objective == "dpo" else group_advantage(rewards)
        advantage = advantage * report.strength[:, None]
        return Group(latent, condition, noise, means, candidates, advantage, report)

    def _preference(self, group: Group, batch: Batch) -> Losses:
        """-log sigmoid(-w sum_i A_i (e_i - e_ref_i)), and the anchor; e_i is the network's error on candidate i."""
        s = self.settings
        with torch.no_grad(), disabled(self.model.unet):
            reference, target = self._outputs(group, batch)
        policy, _ = self._outputs(group, batch)
        change = error_change(policy, reference, target)
        loss = preference_loss(change, group.advantage, s.weight)
        logged = {
            "preference": loss.detach(),
            "win_rate": preference_accuracy(change.detach(), group.advantage),
            "margin": -(group.advantage * change.detach()).sum(1).mean(),
        }
        if s.condition == "lr":
            distance = anchor_distance(policy, reference, group_variance(group.candidates, SMALLEST_VARIANCE))
            loss = loss + s.anchor * distance
            logged["anchor"] = distance.detach()
        return {"loss": loss, **logged}

    def _outputs(self, group: Group, batch: Batch) -> tuple[Tensor, Tensor]:
        """The network's output and its target for each candidate: (B, 1 or G, C, h, w), (B, G, C, h, w).

        The target is the noise in the noised candidates, or, from the noised LR latent, the candidates themselves."""
        s, model = self.settings, self.model
        repeats = 1 if s.shared_noise else s.group
        shape = (repeats, *model.noise_shape(*batch.lr.shape[-2:]))
        # (B, 1 or G, noise channels, h, w)
        noise = normal(s.seed, batch.items, shape, "loss").to(group.latent)
        if s.condition == "candidate":
            candidates = group.candidates.flatten(0, 1)
            noise = noise.expand(-1, s.group, -1, -1, -1).flatten(0, 1)
            output = model.predict(model.start(candidates, noise), _repeat(group.condition, s.group))
            target = model.schedule.target(candidates, model.spread(noise), model.noise_timestep)
            return output.unflatten(0, (-1, s.group)), target.unflatten(0, (-1, s.group))
        latent = group.latent.repeat_interleave(repeats, dim=0)
        clean = model.restore(latent, noise.flatten(0, 1), _repeat(group.condition, repeats))
        return clean.unflatten(0, (-1, repeats)), group.candidates

    def _grpo(self, group: Group) -> Losses:
        s = self.settings
        new = self._means(group, reference=False, grad=True)
        log_ratio = gaussian_log_ratio(group.candidates, group.means, new, s.grpo_sigma)
        kl = None
        if s.grpo_kl > 0:
            kl = gaussian_kl(new, self._means(group, reference=True, grad=False), s.grpo_sigma)
        return {"loss": grpo_loss(log_ratio, group.advantage, s.grpo_clip, kl, s.grpo_kl)}

    def _means(self, group: Group, *, reference: bool, grad: bool) -> Tensor:
        """One-step latents (B, G, C, h, w) for the group's noise."""
        flat = group.latent.repeat_interleave(self.settings.group, dim=0)
        with (
            torch.set_grad_enabled(grad),
            disabled(self.model.unet) if reference else contextlib.nullcontext(),
        ):
            means = self.model.restore(
                flat, group.noise.flatten(0, 1), _repeat(group.condition, self.settings.group)
            )
        return means.unflatten(0, (-1, self.settings.group))

    def sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        return sample_for_validation(self.model, lr, k, prompts)

    @torch.no_grad()
    def measure(self, validation: Validation) -> dict[str, float]:
        """Policy against reference on the held-out photos, see `compare`; latent_drift: RMS distance between their latents."""
        model, s = self.model, self.settings
        apart = []

        def drawn() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for numbers, lr, hr in held_out(validation, model.device):
                condition = model.condition(validation.prompts_of(numbers) or None, len(lr))
                latent = model.encode(lr)
                shape = (DRAWS, *model.noise_shape(*lr.shape[-2:]))
                for noise in normal(1, numbers, shape, "validation").to(latent).unbind(1):
                    policy = model.restore(latent, noise, condition)
                    with disabled(model.unet):
                        reference = model.restore(latent, noise, condition)
                    apart.append((policy - reference).float().square().mean((1, 2, 3)))
                    yield model.decode(policy).float(), model.decode(reference).float(), hr

        found = compare(drawn(), self.metrics, s)
        return found | {"latent_drift": float(torch.cat(apart).mean().sqrt())}

    @torch.no_grad()
    def pictures(self, validation: Validation) -> dict[str, np.ndarray]:
        """Groups that the policy draws of the first held-out photos, with their rewards."""
        batch = first_pictures(validation, self.model.device)
        group = self.draw(batch, "policy")
        samples = torch.stack([self.model.decode(some).float() for some in group.candidates.unbind(1)], dim=1)
        return {"groups": group_sheet(samples, batch.hr, group.report)}

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Save the UNet's adapter in peft's format, with a reference to the NAOSD model."""
        save_run_model(
            folder,
            base=self.base,
            text_base=self.text_base,
            noise_timestep=self.model.noise_timestep,
            denoise_timestep=self.model.denoise_timestep,
            unet_adapter=self.model.unet,
            vae_adapter=None,
            provenance=provenance,
        )


def _repeat(condition: Tensor | None, times: int) -> Tensor | None:
    """(B, L, D) -> (B times, L, D), with each picture's copies next to each other."""
    return None if condition is None else condition.repeat_interleave(times, dim=0)
