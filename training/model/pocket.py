"""The pocket base: Stable Diffusion's parts, small enough to be trained from scratch on a CPU, and without text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel


@dataclass(frozen=True)
class VaeShape:
    """AutoencoderTiny of factor 8: convolutions and ReLU only, no posterior. 16 channels hold more than the LR's 12 numbers per
    8x8 pixels, so that fidelity does not end at the bottleneck."""

    width: int = 32
    latent_channels: int = 16
    encoder_blocks: tuple[int, ...] = (1, 1, 2, 2)
    decoder_blocks: tuple[int, ...] = (2, 2, 1, 1)


@dataclass(frozen=True)
class UnetShape:
    """UNet2DConditionModel without attention: it runs at any size, and nothing of it is hard on a phone."""

    widths: tuple[int, ...] = (96, 192, 192)
    layers: int = 2
    norm_groups: int = 16


@dataclass(frozen=True)
class PocketShape:
    vae: VaeShape = field(default_factory=VaeShape)
    unet: UnetShape = field(default_factory=UnetShape)


def build_vae(shape: VaeShape, seed: int) -> AutoencoderTiny:
    """Random weights, a function of the seed."""
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
    """Random weights, a function of the seed."""
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
            cross_attention_dim=8,  # nothing attends to it
        )
