"""NAOSD, noise-aware one-step diffusion (GDPO-SR, Sec. 3.2): the LR latent is noised at t_n and denoised in one step as if at t_d.

Loss: L1 + 2 LPIPS + VSD. Variational score distillation is OSEDiff's (Wu et al. 2024): the frozen base scores the
generator's latents against its own LoRA copy, which learns the generator's distribution."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.batches import Batch
from training.loop.stage import Carry, Losses, Stage
from training.metrics.squeezenet import Perceptual
from training.model.adapters import add_lora, disabled
from training.model.one_step import OneStepModel, base_module
from training.model.saving import save_merged, save_run_model
from training.model.text import NEGATIVE_PROMPT
from training.randomness import integers, normal
from training.stages.lora import LoraSettings

ADAPT = ("lora", "full")


@dataclass(frozen=True)
class NaosdSettings(LoraSettings):
    """Settings of NAOSD in addition to `LoraSettings`. A loss with weight 0 is off; with vsd = 0 no score network is made."""

    adapt: str = "lora"
    """What is trained. "lora": LoRA on UNet and VAE encoder, and all of conv_in; "full": all weights of both, for a small base."""
    noise_timestep: int = 250
    """t_n, at which noise is added. A larger value adds more noise."""
    denoise_timestep: int = 100
    """t_d, which the UNet is given; equal to t_n for the paper's comparison."""
    noise_channels: int = 0
    """Channels of the noise, a divisor of the latent's, over which they are repeated; 0 for as many as the latent has."""
    l1: float = 1.0
    """Weight of the L1 distance of images in [-1, 1]."""
    perceptual: float = 2.0
    """Weight of the perceptual distance."""
    vsd: float = 1.0
    """Weight of variational score distillation."""
    vsd_low: float = 0.02
    """Smallest timestep of the score difference, as a share of all timesteps."""
    vsd_high: float = 0.5
    """Largest timestep of the score difference, as a share of all timesteps."""
    cfg: float = 7.5
    """Classifier-free guidance of the base's score; 1 for a base without text."""
    negative_prompt: str = NEGATIVE_PROMPT
    """Negative prompt of the base's score, if cfg is not 1. Inference has no guidance: one step, one prompt."""
    score_lr: float = 5e-5
    """Peak learning rate of the LoRA score network."""
    score_conv_in: bool = True
    """Train a full copy of the score network's conv_in. Published: no, a low-rank change as in its other layers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapt not in ADAPT:
            raise ValueError(f"adapt must be one of {', '.join(ADAPT)}, got {self.adapt!r}")
        if self.noise_channels < 0:
            raise ValueError(f"noise_channels must be at least 0, got {self.noise_channels}")
        for name in ("l1", "perceptual", "vsd"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.vsd_low < self.vsd_high <= 1:
            raise ValueError(f"expected 0 <= vsd_low < vsd_high <= 1, got {self.vsd_low} and {self.vsd_high}")


class Naosd(Stage):
    """Trains the one-step model in phase "generator", and the LoRA score network on its latents in phase "score"."""

    def __init__(
        self,
        model: OneStepModel,
        settings: NaosdSettings,
        perceptual: Perceptual | None,
        base: str,
        text_base: str | None = None,
    ) -> None:
        """model: the base, whose weights are adapted in place.
        settings: of the stage.
        perceptual: network of the perceptual loss; None if its weight is 0.
        base, text_base: where the model came from, for the saved model."""
        super().__init__()
        if settings.perceptual > 0 and perceptual is None:
            raise ValueError("perceptual > 0 needs a perceptual network: see --perceptual-weights")
        if settings.vsd > 0 and settings.cfg != 1 and model.text is None:
            raise ValueError(
                f"cfg is {settings.cfg}, but this base has no text encoder for guidance: set cfg=1 (or vsd=0)"
            )
        self.settings, self.perceptual = settings, perceptual
        self.base, self.text_base = base, text_base
        model.set_timesteps(settings.noise_timestep, settings.denoise_timestep)
        model.set_noise_channels(settings.noise_channels or model.latent_channels)
        model.freeze()
        self.score = (
            add_lora(
                copy.deepcopy(model.unet),
                settings.lora("unet", train_conv_in=settings.score_conv_in),
                settings.seed + 1,
            )
            if settings.vsd > 0
            else None
        )
        if settings.adapt == "lora":
            model.unet = add_lora(model.unet, settings.lora("unet", train_conv_in=True), settings.seed)
            model.vae = add_lora(model.vae, settings.lora("vae_encoder"), settings.seed)
        else:
            model.unet.requires_grad_(True)
            model.vae.encoder.requires_grad_(True)
        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
            if self.score is not None:
                base_module(self.score).enable_gradient_checkpointing()
        self.model = model
        in_float32(self)

    def phases(self, progress: float) -> tuple[str, ...]:
        return ("generator",) if self.score is None else ("generator", "score")

    def groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        groups = {"generator": (_trainable(self.model), self.settings.lr)}
        if self.score is not None:
            groups["score"] = (_trainable(self.score), self.settings.score_lr)
        return groups

    def averaged(self) -> tuple[str, ...]:
        return ("generator",)

    def forward(self, phase: str, batch: Batch, carry: Carry) -> tuple[Losses, Carry]:
        return self._generate(batch) if phase == "generator" else (self._learn_score(batch, carry), {})

    def _generate(self, batch: Batch) -> tuple[Losses, Carry]:
        s, model = self.settings, self.model
        condition = model.condition(batch.prompts, len(batch.lr))
        latent = model.encode(batch.lr)  # (B, C, h, w)
        noise = normal(s.seed, batch.items, model.noise_shape(*batch.lr.shape[-2:]), "start").to(latent)
        clean = model.restore(latent, noise, condition)
        sr = model.decode(clean).float()
        losses = {"l1": 2 * (sr - batch.hr).abs().mean()}
        total = s.l1 * losses["l1"]
        if self.perceptual is not None and s.perceptual > 0:
            losses["perceptual"] = self.perceptual(sr, batch.hr)
            total = total + s.perceptual * losses["perceptual"]
        if self.score is not None:
            losses["vsd"] = self._vsd(clean, condition, batch)
            total = total + s.vsd * losses["vsd"]
        return losses | {"loss": total}, {"clean": clean.detach()}

    def _vsd(self, clean: Tensor, condition: Tensor | None, batch: Batch) -> Tensor:
        """The loss of variational score distillation, which moves the latent z.

        The direction is (z_real - z_fake) / mean |z - z_real| (Yin et al. 2024).

        As in OSEDiff's published code it is the mean squared distance to z moved by that vector. The gradient is
        therefore twice the vector over the number of elements."""
        assert self.score is not None
        s, schedule = self.settings, self.model.schedule
        low, high = int(s.vsd_low * schedule.steps), int(s.vsd_high * schedule.steps)
        t = integers(s.seed, batch.items, low, high, "vsd timestep")
        with torch.no_grad():
            z = clean.detach().float()
            t = t.to(z.device)
            noisy = schedule.add_noise(z, normal(s.seed, batch.items, z.shape[1:], "vsd noise").to(z), t)
            fake = schedule.denoise(noisy, self._score(noisy, t, condition), t)
            with disabled(self.score):
                output = self._score(noisy, t, condition)
                if s.cfg != 1:
                    negative = self.model.condition((s.negative_prompt,) * len(z), len(z))
                    unguided = self._score(noisy, t, negative)
                    output = unguided + s.cfg * (output - unguided)
            real = schedule.denoise(noisy, output, t)
            scale = (z - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
            target = z - (fake - real) / scale
        return F.mse_loss(clean.float(), target)

    def _learn_score(self, batch: Batch, carry: Carry) -> Losses:
        """The score network's diffusion loss on the generator's latents."""
        s, schedule = self.settings, self.model.schedule
        z = carry["clean"].float()
        t = integers(s.seed, batch.items, 0, schedule.steps, "score timestep").to(z.device)
        noise = normal(s.seed, batch.items, z.shape[1:], "score noise").to(z)
        condition = self.model.condition(batch.prompts, len(z))
        output = self._score(schedule.add_noise(z, noise, t), t, condition)
        return {"loss": F.mse_loss(output, schedule.target(z, noise, t))}

    def _score(self, noisy: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert self.score is not None
        return self.score(noisy.to(self.model.dtype), t, encoder_hidden_states=condition).sample.float()

    def sample(self, lr: Tensor, hr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
        return sample_for_validation(self.model, lr, k, prompts)

    def save(self, folder: Path, provenance: dict[str, Any]) -> None:
        """LoRA: save the adapters in peft's format, with a reference to the base. Full: save the whole model in diffusers layout."""
        if self.settings.adapt == "full":
            save_merged(self.model, folder, provenance)
            return
        save_run_model(
            folder,
            base=self.base,
            text_base=self.text_base,
            noise_timestep=self.model.noise_timestep,
            denoise_timestep=self.model.denoise_timestep,
            noise_channels=self.model.noise_channels,
            unet_adapter=self.model.unet,
            vae_adapter=self.model.vae,
            provenance=provenance,
        )


def sample_for_validation(model: OneStepModel, lr: Tensor, k: int, prompts: Sequence[str] = ()) -> Tensor:
    """The SR pictures of LR pictures.

    model: the one-step model.
    lr: (n, 3, h, w).
    k: number of the noise.
    prompts: one for each picture; none for the model's default."""
    shape = model.noise_shape(*lr.shape[-2:])
    noise = normal(k, range(len(lr)), shape, "validation").to(lr)
    return model(lr, noise, prompts or None)


def in_float32(stage: nn.Module) -> None:
    """Keep trained parameters in float32, whatever the type of the frozen ones."""
    for parameter in stage.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
