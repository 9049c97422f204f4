"""The pocket base from scratch: a small VAE on photos, then a latent diffusion UNet on its latents (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.data.batches import Batch
from training.loop.stage import Carry, Losses, RunSettings, Stage
from training.metrics.squeezenet import Perceptual
from training.model.one_step import OneStepModel
from training.model.pocket import PocketShape, build_unet, build_vae
from training.model.saving import save_merged
from training.model.schedule import NoiseSchedule
from training.randomness import integers, normal


@dataclass(frozen=True)
class PretrainSettings(RunSettings):
    """Settings of pretraining in addition to `RunSettings`. The first part of the budget trains the VAE, the rest the UNet."""

    shape: PocketShape = field(default_factory=PocketShape)
    """Shapes of VAE and UNet."""
    vae_share: float = 0.5
    """Share of the run, between 0 and 1, that trains the VAE."""
    l1: float = 1.0
    """Weight of the L1 distance of the VAE's reconstruction."""
    perceptual: float = 0.5
    """Weight of its perceptual distance."""
    latent_penalty: float = 1e-3
    """Weight of the latent's mean square, which keeps its scale near 1."""
    latent_noise: float = 0.05
    """Noise added to the latent, in its standard deviations, to make the decoder robust to small errors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.vae_share < 1:
            raise ValueError(f"vae_share must be between 0 and 1, got {self.vae_share}")


class Pretrain(Stage):
    """Phase "vae": L1 and perceptual distance of the reconstruction. Phase "unet": mean squared error of the noise in
    a noised latent."""

    latent_std: Tensor

    def __init__(self, settings: PretrainSettings, perceptual: Perceptual | None) -> None:
        super().__init__()
        if settings.perceptual > 0 and perceptual is None:
            raise ValueError("perceptual > 0 needs a perceptual network: see --perceptual-weights")
        self.settings, self.perceptual = settings, perceptual
        self.vae: Any = build_vae(settings.shape.vae, settings.seed)
        self.unet: Any = build_unet(settings.shape.unet, settings.shape.vae.latent_channels, settings.seed)
        self.noising = NoiseSchedule.scaled_linear()
        self.register_buffer("latent_std", torch.ones(()))

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("vae",) if progress < self.settings.vae_share else ("unet",)

    def phase_progress(self, phase: str, progress: float) -> float:
        share = self.settings.vae_share
        return progress / share if phase == "vae" else (progress - share) / (1 - share)

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        rate = self.settings.lr
        return {"vae": (list(self.vae.parameters()), rate), "unet": (list(self.unet.parameters()), rate)}

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        return (self._reconstruct(batch) if phase == "vae" else self._denoise(batch)), {}

    def _reconstruct(self, batch: Batch) -> Losses:
        s = self.settings
        latent = self._latent(batch.hr)
        with torch.no_grad():
            self.latent_std.lerp_(deviation(latent.float()), 0.02)
        noise = normal(s.seed, batch.items, latent.shape[1:], "latent").to(latent)
        image = self._image(latent + s.latent_noise * self.latent_std * noise)
        losses = {
            "l1": (image - batch.hr).abs().mean(),
            "latent": latent.float().square().mean(),
        }
        total = s.l1 * losses["l1"] + s.latent_penalty * losses["latent"]
        if self.perceptual is not None and s.perceptual > 0:
            losses["perceptual"] = self.perceptual(image, batch.hr)
            total = total + s.perceptual * losses["perceptual"]
        return losses | {"loss": total}

    def _denoise(self, batch: Batch) -> Losses:
        with torch.no_grad():
            clean = self._latent(batch.hr).float() / self.latent_std
        t = integers(self.settings.seed, batch.items, 0, self.noising.steps, "timestep").to(clean.device)
        noise = normal(self.settings.seed, batch.items, clean.shape[1:], "noise").to(clean)
        output = self.unet(self.noising.add_noise(clean, noise, t), t, encoder_hidden_states=None).sample
        return {"loss": (output.float() - noise).square().mean()}

    def _latent(self, image: Tensor) -> Tensor:
        return self.vae.encode(image * 2 - 1).latents

    def _image(self, latent: Tensor) -> Tensor:
        return (self.vae.decode(latent).sample.float() + 1) / 2

    def sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        """k = 0: the VAE's reconstruction of hr. k = 1: hr noised at 250 and denoised in one step, to look at the UNet."""
        latent = self._latent(hr).float()
        if k == 0:
            return self._image(latent)
        noise = normal(0, range(len(hr)), latent.shape[1:], "validation").to(latent)
        noisy = self.noising.add_noise(latent / self.latent_std, noise, 250)
        t = torch.full((len(hr),), 250, device=hr.device)
        output = self.unet(noisy, t, encoder_hidden_states=None).sample
        return self._image(self.noising.denoise(noisy, output, 250) * self.latent_std)

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """Save the base in diffusers layout, with the latent's measured scale as the VAE's scaling_factor."""
        self.vae.register_to_config(scaling_factor=1.0 / float(self.latent_std))
        model = OneStepModel(vae=self.vae, unet=self.unet, text=None, schedule=self.noising)
        save_merged(model, folder, provenance)


def deviation(x: Tensor) -> Tensor:
    """Standard deviation of all values in all processes. Each process has the same number of values."""
    moments = torch.stack([x.mean(), x.square().mean()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(moments)
        moments = moments / dist.get_world_size()
    mean, square = moments
    return (square - mean.square()).clamp_min(0).sqrt()
