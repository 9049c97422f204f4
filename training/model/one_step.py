"""The one-step diffusion model: VAE, UNet, text encoder and schedule, with the noise as an explicit input.

Noise-aware one-step diffusion (GDPO-SR, Sec. 3.2): the latent of the upscaled LR image is noised at `noise_timestep`
and denoised in one step as if it were at `denoise_timestep`. No function here draws random numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.schedule import NoiseSchedule
from training.model.text import DEFAULT_PROMPT, TextConditioner

# Timesteps, 0 to 999, of the noise that is added to the LR latent (t_n), and that the UNet is given (t_d).
NOISE_TIMESTEP = 250
DENOISE_TIMESTEP = 100


def base_module(module: nn.Module) -> Any:
    """The diffusers model itself, with or without a PeftModel around it. Its layers contain the adapter in both cases."""
    get_base_model = getattr(module, "get_base_model", None)
    return module if get_base_model is None else get_base_model()


def base_config(module: nn.Module) -> Mapping[str, Any]:
    """The diffusers config of a model, with or without a PeftModel around it."""
    return base_module(module).config


def enlarge(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upscale (B, 3, h, w) in [0, 1] -> (B, 3, scale h, scale w) in [0, 1], float32.

    When enlarging, antialias=True only changes the kernel: Keys' with a = -0.5 as in Pillow, instead of -0.75."""
    size = (lr.shape[-2] * scale, lr.shape[-1] * scale)
    return F.interpolate(lr.float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)


class OneStepModel(nn.Module):
    """VAE, UNet, text encoder and schedule.

    vae: AutoencoderKL or AutoencoderTiny, plain or in a PeftModel.
    unet: UNet2DConditionModel, plain or in a PeftModel.
    text: text encoder; None for a UNet without cross-attention.
    schedule: noise schedule.
    noise_timestep, denoise_timestep: see the module.
    noise_channels: channels of the noise, a divisor of the latent's, over which they are repeated; None for as many
        as the latent has. With few channels, a student can be given all the noise that determines a sample.
    scale: upscaling factor."""

    def __init__(
        self,
        vae: nn.Module,
        unet: nn.Module,
        text: TextConditioner | None,
        schedule: NoiseSchedule,
        *,
        noise_timestep: int = NOISE_TIMESTEP,
        denoise_timestep: int = DENOISE_TIMESTEP,
        noise_channels: int | None = None,
        scale: int = 4,
    ) -> None:
        super().__init__()
        self.vae, self.unet, self.text = vae, unet, text
        self.schedule = schedule
        self.scale = scale
        self.set_timesteps(noise_timestep, denoise_timestep)
        self._check_parts()
        self.set_noise_channels(noise_channels or self.latent_channels)
        self.prompt: str | None = None
        """The one prompt that it was trained with; None for photos with prompts of their own. It is the default of every call."""

    def _check_parts(self) -> None:
        vae, unet = base_config(self.vae), base_config(self.unet)
        channels = vae["latent_channels"]
        if unet["in_channels"] != channels or unet["out_channels"] != channels:
            raise ValueError(
                f"the VAE's latent has {channels} channels, but the UNet takes {unet['in_channels']} and gives "
                f"{unet['out_channels']}: vae and unet belong to different models"
            )
        width = unet["cross_attention_dim"]
        if self.text is not None and self.has_cross_attention and width != self.text.width:
            raise ValueError(
                f"the text encoder gives {self.text.width} channels, the UNet's cross-attention takes {width}: they belong to "
                "different models"
            )

    def set_timesteps(self, noise_timestep: int, denoise_timestep: int) -> None:
        """Set the timestep of the added noise and the one for the UNet."""
        for timestep in (noise_timestep, denoise_timestep):
            self.schedule.check_timestep(timestep)
        self.noise_timestep, self.denoise_timestep = noise_timestep, denoise_timestep

    def set_noise_channels(self, channels: int) -> None:
        """Set the number of noise channels. Raises ValueError if it does not divide the latent's."""
        if channels < 1 or self.latent_channels % channels:
            raise ValueError(
                f"noise_channels must divide the {self.latent_channels} channels of the latent, got {channels}"
            )
        self.noise_channels = channels

    @property
    def default_prompt(self) -> str:
        """The prompt of a picture for which none is given."""
        return self.prompt or DEFAULT_PROMPT

    @property
    def latent_channels(self) -> int:
        return int(base_config(self.vae)["latent_channels"])

    @property
    def has_cross_attention(self) -> bool:
        """Whether the UNet uses a text condition."""
        return any(getattr(block, "has_cross_attention", False) for block in base_module(self.unet).modules())

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the UNet's own weights. An adapter's may be more precise."""
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        return next(base_module(self.unet).time_embedding.parameters())

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(base_module(self.vae).decoder.parameters()).dtype  # the decoder has no adapter

    @property
    def vae_factor(self) -> int:
        """Image pixels per latent pixel."""
        config = base_config(self.vae)
        blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
        return 2 ** (len(blocks) - 1)

    @property
    def size_multiple(self) -> int:
        """Height and width of an LR image must be multiples of this many LR pixels, so that all levels of VAE and
        UNet have whole sizes."""
        cell = self.vae_factor * 2 ** (len(base_config(self.unet)["down_block_types"]) - 1)
        return math.lcm(cell, self.scale) // self.scale

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latent for an LR image of height x width pixels."""
        multiple = self.size_multiple
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise ValueError(
                f"LR height and width must be multiples of {multiple}, got {height}x{width}: pad or crop the image"
            )
        factor = self.vae_factor
        return self.latent_channels, self.scale * height // factor, self.scale * width // factor

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(noise_channels, H, W) of the noise for an LR image of height x width pixels."""
        return self.noise_channels, *self.latent_shape(height, width)[1:]

    def encode(self, lr: Tensor) -> Tensor:
        """LR image (B, 3, h, w) in [0, 1] -> latent z (B, C, 4h/f, 4w/f): enlarge, encode, posterior mode, scale."""
        self.latent_shape(*lr.shape[-2:])
        return self.encode_image(enlarge(lr, self.scale))

    def encode_image(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1] at full size -> latent (B, C, H/f, W/f)."""
        vae, config = base_module(self.vae), base_config(self.vae)
        encoded = vae.encode((2 * image - 1).to(self._vae_dtype))
        latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return ((latent - (config.get("shift_factor") or 0.0)) * config["scaling_factor"]).to(self.dtype)

    def spread(self, noise: Tensor) -> Tensor:
        """Noise (B, noise_channels, H, W) repeated over the latent's channels, (B, C, H, W)."""
        return noise.repeat(1, self.latent_channels // self.noise_channels, 1, 1)

    def start(self, latent: Tensor, noise: Tensor) -> Tensor:
        """z_n = sqrt(a_n) z + sqrt(1 - a_n) eps at noise_timestep. latent: (B, C, H, W), noise: (B, noise_channels, H, W)."""
        wanted = (len(latent), self.noise_channels, *latent.shape[2:])
        if noise.shape != wanted:
            raise ValueError(f"noise must have the shape {wanted} for this latent, got {tuple(noise.shape)}")
        return self.schedule.add_noise(latent, self.spread(noise).to(latent), self.noise_timestep)

    def predict(
        self, noisy: Tensor, condition: Tensor | None, timestep: int | Tensor | None = None
    ) -> Tensor:
        """The UNet's output for noisy (B, C, H, W). timestep: an int or (B,); None for denoise_timestep."""
        told = self.denoise_timestep if timestep is None else timestep
        return self.unet(noisy, told, encoder_hidden_states=condition).sample

    def restore(self, latent: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        """z_0 = (z_n - sqrt(1 - a_d) UNet(z_n, t_d, c)) / sqrt(a_d), the restored latent (B, C, H, W) (GDPO-SR, Sec. 3.2)."""
        noisy = self.start(latent, noise)
        return self.schedule.denoise(noisy, self.predict(noisy, condition), self.denoise_timestep)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, C, H, W) -> image (B, 3, fH, fW) in [0, 1], apart from overshoot, which is kept."""
        vae, config = base_module(self.vae), base_config(self.vae)
        latent = latent / config["scaling_factor"] + (config.get("shift_factor") or 0.0)
        return vae.decode(latent.to(self._vae_dtype)).sample / 2 + 0.5

    def condition(self, prompts: Sequence[str] | Tensor | None, batch: int) -> Tensor | None:
        """The input of the UNet's cross-attention, (batch, L, D); None for a UNet without.

        prompts: one text per image; None for `default_prompt`; or embeddings (batch, L, D). A model without cross-attention
            ignores them."""
        if isinstance(prompts, str):
            raise ValueError(f"expected a list with one prompt for each image, got the text {prompts!r}")
        if prompts is not None and len(prompts) != batch:
            raise ValueError(f"expected {batch} prompts, one for each image, got {len(prompts)}")
        if not self.has_cross_attention:
            return None
        if isinstance(prompts, Tensor):
            return prompts.to(self.device, self.dtype)
        if self.text is None:
            raise ValueError(
                "the UNet has cross-attention, but this model has no text encoder: pass embeddings (B, L, D) as prompts"
            )
        return self.text([self.default_prompt] * batch if prompts is None else prompts).to(
            self.device, self.dtype
        )

    def forward(self, lr: Tensor, noise: Tensor, prompts: Sequence[str] | Tensor | None = None) -> Tensor:
        """lr (B, 3, h, w) in [0, 1], noise (B, *noise_shape(h, w)) -> SR (B, 3, 4h, 4w) in [0, 1], apart from overshoot."""
        return self.decode(self.restore(self.encode(lr), noise, self.condition(prompts, len(lr))))

    def parts(self) -> dict[str, nn.Module]:
        """The networks by name: vae, unet and, if there is one, text."""
        named = {"vae": self.vae, "unet": self.unet, "text": self.text}
        return {name: part for name, part in named.items() if part is not None}

    def freeze(self) -> OneStepModel:
        """Turn gradients off for all weights, including adapters, and switch to eval mode."""
        for part in self.parts().values():
            part.requires_grad_(False).eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, more time, same result."""
        base_module(self.unet).enable_gradient_checkpointing()
        vae = base_module(self.vae)
        vae.enable_gradient_checkpointing()
        if "encoder_block_out_channels" in vae.config:
            # AutoencoderTiny's encoder leaves out its step from [-1, 1] to [0, 1] when checkpointed (diffusers 0.42)
            vae.encoder.gradient_checkpointing = False
