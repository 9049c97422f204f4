"""The pocket base: the parts of Stable Diffusion, without text and small enough to be trained from scratch on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel


@dataclass(frozen=True)
class VaeShape:
    """AutoencoderTiny with factor 8: convolutions and ReLU only, no posterior.

    16 latent channels hold more than the LR picture's 12 numbers per 8x8 pixels, so the latent does not limit fidelity."""

    width: int = 32
    """Channels of all layers."""
    latent_channels: int = 16
    """Channels of the latent."""
    encoder_blocks: tuple[int, ...] = (1, 1, 2, 2)
    """Blocks per level of the encoder, from full resolution down."""
    decoder_blocks: tuple[int, ...] = (2, 2, 1, 1)
    """Blocks per level of the decoder, from the latent up."""


@dataclass(frozen=True)
class UnetShape:
    """UNet2DConditionModel without attention. It runs at any size and is easy to run on phones."""

    widths: tuple[int, ...] = (96, 192, 192)
    """Channels per level, from full resolution down."""
    layers: int = 2
    """Residual blocks per level."""
    norm_groups: int = 16
    """Groups of the group normalisation."""


@dataclass(frozen=True)
class PocketShape:
    """Shape of the whole base."""

    vae: VaeShape = field(default_factory=VaeShape)
    """Shape of the VAE."""
    unet: UnetShape = field(default_factory=UnetShape)
    """Shape of the UNet."""


def build_vae(shape: VaeShape, seed: int) -> AutoencoderTiny:
    """A VAE with random weights, which are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderTiny(
            encoder_block_out_channels=(shape.width,) * 4,
            decoder_block_out_channels=(shape.width,) * 4,
            latent_channels=shape.latent_channels,
            num_encoder_blocks=shape.encoder_blocks,
            num_decoder_blocks=shape.decoder_blocks,
        )


def build_unet(shape: UnetShape, latent_channels: int, seed: int) -> UNet2DConditionModel:
    """A UNet with random weights, which are a function of the seed."""
    levels = len(shape.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=shape.widths,
            layers_per_block=shape.layers,
            down_block_types=("DownBlock2D",) * levels,
            mid_block_type="UNetMidBlock2D",
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=shape.norm_groups,
            cross_attention_dim=8,  # unused, since there is no attention
        )
