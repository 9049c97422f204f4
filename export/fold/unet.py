"""UNet and VAE of a one-step model, folded for one timestep and one prompt."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.fold.blocks import Level, Middle
from export.fold.layers import GroupNorm, conv_from, fold_conv, require


def _norm_and_conv(norm: Any, act: Any, conv: nn.Conv2d, name: str) -> nn.Sequential:
    """The last layers of a UNet.

    norm, act, conv: diffusers' modules; the convolution is used as it is.
    name: prefix of their names, for errors."""
    require(type(act) is nn.SiLU, f"{name}.conv_act", "SiLU", type(act).__name__)
    return nn.Sequential(GroupNorm(norm, f"{name}.conv_norm_out"), nn.SiLU(), conv)


class FoldedUnet(nn.Module):
    """UNet2DConditionModel for one timestep and one prompt: (n, C, H, W) -> (n, C, H, W), multiplied by `factor`."""

    def __init__(self, unet: Any, timestep: int, prompt: Tensor | None, factor: float) -> None:
        """unet: diffusers' module.
        timestep: the fixed timestep.
        prompt: embedding of the prompt, (1, L, D); None for a UNet without cross-attention.
        factor: on the output."""
        super().__init__()
        self._check(unet)
        embedding = time_embedding(unet, timestep)
        self.conv_in = fold_conv(unet.conv_in, "unet.conv_in")
        self.down = nn.ModuleList(
            Level(
                block, ("DownBlock2D", "CrossAttnDownBlock2D"), f"unet.down_blocks.{index}", embedding, prompt
            )
            for index, block in enumerate(unet.down_blocks)
        )
        self.middle = Middle(unet.mid_block, "unet.mid_block", embedding, prompt)
        self.up = nn.ModuleList(
            Level(block, ("UpBlock2D", "CrossAttnUpBlock2D"), f"unet.up_blocks.{index}", embedding, prompt)
            for index, block in enumerate(unet.up_blocks)
        )
        last = fold_conv(unet.conv_out, "unet.conv_out")
        last = conv_from(last.weight * factor, last.bias * factor, padding=last.padding)
        self.out = _norm_and_conv(unet.conv_norm_out, unet.conv_act, last, "unet")

    @staticmethod
    def _check(unet: Any) -> None:
        for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim",
                    "timestep_post_act", "time_embedding_act_fn"):  # fmt: skip
            require(unet.config.get(key) is None, f"unet, setting {key}", "nothing", unet.config.get(key))
        require(not unet.config.center_input_sample, "unet, setting center_input_sample", "false", "true")
        require(unet.conv_norm_out is not None, "unet.conv_norm_out", "a GroupNorm", "nothing")
        require(unet.mid_block is not None, "unet.mid_block", "a block", "nothing")

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        skips = [x]
        for level in self.down:
            x, kept = level(x)
            skips += kept
        x = self.middle(x)
        for level in self.up:
            x, _ = level(x, skips)
        out: Tensor = self.out(x)
        return out


@torch.no_grad()
def time_embedding(unet: Any, timestep: int) -> Tensor:
    """The input of all residual blocks for a timestep, (1, E), including the activation before their projections."""
    weight = unet.time_embedding.linear_1.weight
    sinusoids = unet.time_proj(torch.tensor([timestep], device=weight.device)).to(weight.dtype)
    return F.silu(unet.time_embedding(sinusoids).float())


class KlEncoder(nn.Module):
    """Encoder of AutoencoderKL: image (n, 3, H, W) in [0, 1] -> latent, the posterior's mode, scaled and shifted."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        coder, channels = vae.encoder, vae.config.latent_channels
        self.conv_in = fold_conv(coder.conv_in, "vae.encoder.conv_in")
        self.levels = nn.ModuleList(
            Level(block, ("DownEncoderBlock2D",), f"vae.encoder.down_blocks.{index}", None, None)
            for index, block in enumerate(coder.down_blocks)
        )
        self.middle = Middle(coder.mid_block, "vae.encoder.mid_block", None, None)
        last = fold_conv(coder.conv_out, "vae.encoder.conv_out")
        weight, bias = last.weight.double(), last.bias.double()
        if vae.quant_conv is not None:  # 1x1, so the two are one convolution
            mix = vae.quant_conv.weight.double().flatten(1)
            weight = torch.einsum("oc,cihw->oihw", mix, weight)
            bias = mix @ bias + vae.quant_conv.bias.double()
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        # only the channels of the mean, not of the variance
        weight, bias = weight[:channels] * scale, (bias[:channels] - shift) * scale
        self.out = _norm_and_conv(
            coder.conv_norm_out, coder.conv_act, conv_from(weight, bias, padding=1), "vae.encoder"
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(2 * image - 1)  # not folded into the weights, since zero padding must mean gray
        for level in self.levels:
            x, _ = level(x)
        out: Tensor = self.out(self.middle(x))
        return out


class KlDecoder(nn.Module):
    """Decoder of AutoencoderKL: latent (n, C, H, W) -> image (n, 3, fH, fW) in [0, 1], apart from overshoot."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        coder, channels = vae.decoder, vae.config.latent_channels
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        weight = torch.eye(channels, dtype=torch.float64)[:, :, None, None]
        bias = torch.zeros(channels, dtype=torch.float64)
        if vae.post_quant_conv is not None:
            weight, bias = vae.post_quant_conv.weight.double(), vae.post_quant_conv.bias.double()
        self.unscale = conv_from(weight / scale, bias + weight.sum((1, 2, 3)) * shift)
        self.conv_in = fold_conv(coder.conv_in, "vae.decoder.conv_in")
        self.middle = Middle(coder.mid_block, "vae.decoder.mid_block", None, None)
        self.levels = nn.ModuleList(
            Level(block, ("UpDecoderBlock2D",), f"vae.decoder.up_blocks.{index}", None, None)
            for index, block in enumerate(coder.up_blocks)
        )
        last = fold_conv(coder.conv_out, "vae.decoder.conv_out")
        last = conv_from(last.weight / 2, last.bias / 2 + 0.5, padding=1)  # from [-1, 1] to [0, 1]
        self.out = _norm_and_conv(coder.conv_norm_out, coder.conv_act, last, "vae.decoder")

    def forward(self, latent: Tensor) -> Tensor:
        x = self.middle(self.conv_in(self.unscale(latent)))
        for level in self.levels:
            x, _ = level(x)
        out: Tensor = self.out(x)
        return out


class TinyBlock(nn.Module):
    """diffusers' AutoencoderTinyBlock: relu(x + three convolutions)."""

    def __init__(self, block: Any, name: str) -> None:
        super().__init__()
        self.inner = _chain(block.conv, f"{name}.conv")
        self.skip = (
            nn.Identity() if type(block.skip) is nn.Identity else fold_conv(block.skip, f"{name}.skip")
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x) + self.skip(x))


def _chain(layers: Any, name: str) -> nn.Sequential:
    """The layers of AutoencoderTiny in sequence."""
    folded: list[nn.Module] = []
    for index, layer in enumerate(layers):
        kind, place = type(layer).__name__, f"{name}.{index}"
        if kind == "AutoencoderTinyBlock":
            folded.append(TinyBlock(layer, place))
        elif kind == "ReLU":
            folded.append(nn.ReLU())
        elif kind == "Upsample":
            require((layer.scale_factor, layer.mode) == (2, "nearest"), place, "doubling, nearest", layer)
            folded.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
        else:
            folded.append(fold_conv(layer, place))
    return nn.Sequential(*folded)


class TinyEncoder(nn.Module):
    """Encoder of AutoencoderTiny: image (n, 3, H, W) in [0, 1], which is its own range -> latent, scaled and shifted."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.layers = _chain(vae.encoder.layers, "vae.encoder.layers")
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        last = self.layers[-1]
        require(
            type(last) is nn.Conv2d, "vae.encoder.layers", "a convolution at the end", type(last).__name__
        )
        self.layers[-1] = conv_from(last.weight * scale, (last.bias - shift) * scale, padding=last.padding)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.layers(image)
        return out


class TinyDecoder(nn.Module):
    """Decoder of AutoencoderTiny: latent (n, C, H, W) -> image (n, 3, fH, fW) in [0, 1], apart from overshoot."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.scale, self.shift = float(vae.config.scaling_factor), float(vae.config.shift_factor or 0.0)
        self.layers = _chain(vae.decoder.layers, "vae.decoder.layers")

    def forward(self, latent: Tensor) -> Tensor:
        latent = torch.tanh(latent * (1 / (3 * self.scale)) + self.shift / 3) * 3  # soft limits, -3 .. 3
        out: Tensor = self.layers(latent)
        return out
