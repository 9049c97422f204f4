"""The building blocks of UNet and VAE without time embedding and prompt as inputs: residual blocks and levels.

Weights are shared with diffusers' modules unless something was folded into them. `FoldError` names an unsupported part."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.fold.attention import MapAttention, Transformer
from export.fold.layers import GroupNorm, fold_conv, require


class Resnet(nn.Module):
    """diffusers' ResnetBlock2D. The timestep's embedding, which it adds after the first convolution, becomes part of that bias."""

    def __init__(self, block: Any, embedding: Tensor | None, name: str) -> None:
        """block: diffusers' module. embedding: of the timestep, (1, E), after its activation; None for a VAE. name: of the part."""
        super().__init__()
        kind = type(block).__name__
        require(kind == "ResnetBlock2D", name, "a ResnetBlock2D", kind)
        norm = block.time_embedding_norm
        plain = norm == "default" or (norm == "group" and embedding is None)  # the name in a VAE's decoder
        require(plain, name, 'time_embedding_norm "default"', norm)
        resizes = block.upsample is not None or block.downsample is not None
        require(not resizes, name, "no resampling inside", "some")
        require(block.output_scale_factor == 1, name, "an output scale of 1", block.output_scale_factor)
        require(type(block.nonlinearity) is nn.SiLU, name, "SiLU", type(block.nonlinearity).__name__)
        require(not block.skip_time_act, name, "an activation of the embedding", "none")
        self.norm1 = GroupNorm(block.norm1, f"{name}.norm1")
        self.conv1 = fold_conv(block.conv1, f"{name}.conv1")
        projection = block.time_emb_proj
        require(
            (projection is None) == (embedding is None), name, "an embedding where one is used", "another"
        )
        if embedding is not None:
            shift = F.linear(embedding.double(), projection.weight.double(), projection.bias.double())[0]
            self.conv1.bias = nn.Parameter((block.conv1.bias.double() + shift).float(), requires_grad=False)
        self.norm2 = GroupNorm(block.norm2, f"{name}.norm2")
        self.conv2 = fold_conv(block.conv2, f"{name}.conv2")
        shortcut = block.conv_shortcut
        self.shortcut = nn.Identity() if shortcut is None else fold_conv(shortcut, f"{name}.conv_shortcut")

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.shortcut(x) + self.conv2(F.silu(self.norm2(inner)))
        return out


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2."""

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__()
        known = type(layer).__name__ == "Downsample2D" and layer.use_conv and layer.norm is None
        require(known, name, "a Downsample2D with a convolution and no norm", type(layer).__name__)
        self.behind = layer.padding == 0  # a VAE pads one row and one column at the end only
        self.conv = fold_conv(layer.conv, f"{name}.conv")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.behind else x)
        return out


class Upsample(nn.Module):
    """Doubles height and width by nearest neighbours, followed by a convolution."""

    def __init__(self, conv: Any, name: str) -> None:
        super().__init__()
        self.conv = fold_conv(conv, name)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def fold_upsampler(layer: Any, name: str) -> Upsample:
    """Fold diffusers' Upsample2D."""
    known = type(layer).__name__ == "Upsample2D" and layer.use_conv and not layer.use_conv_transpose
    require(known and layer.norm is None and layer.interpolate, name,
            "an Upsample2D with a convolution and no norm", type(layer).__name__)  # fmt: skip
    return Upsample(layer.conv, f"{name}.conv")


class Level(nn.Module):
    """One level of a UNet or VAE: residual blocks, each with an optional attention, and an optional change of size."""

    def __init__(self, block: Any, kinds: tuple[str, ...], name: str, embedding: Tensor | None,
                 prompt: Tensor | None) -> None:  # fmt: skip
        """block: diffusers' module.
        kinds: names of the supported classes.
        name: of the part.
        embedding: of the timestep, (1, E); None for a VAE.
        prompt: embedding of the prompt, (1, L, D); None without cross-attention."""
        super().__init__()
        kind = type(block).__name__
        require(kind in kinds, name, " or ".join(kinds), kind)
        free = [key for key in ("s1", "s2", "b1", "b2") if getattr(block, key, None) is not None]
        require(not free, name, "no FreeU", ", ".join(free))
        self.resnets = nn.ModuleList(
            Resnet(resnet, embedding, f"{name}.resnets.{index}") for index, resnet in enumerate(block.resnets)
        )
        found = getattr(block, "attentions", None) or [None] * len(block.resnets)
        self.attentions = nn.ModuleList(
            nn.Identity() if layer is None else _attention(layer, prompt, f"{name}.attentions.{index}")
            for index, layer in enumerate(found)
        )
        resize: list[nn.Module] = [
            *(Downsample(x, f"{name}.downsamplers.{i}") for i, x in enumerate(getattr(block, "downsamplers", None) or ())),
            *(fold_upsampler(x, f"{name}.upsamplers.{i}") for i, x in enumerate(getattr(block, "upsamplers", None) or ())),
        ]  # fmt: skip
        require(len(resize) <= 1, name, "at most one change of size", len(resize))
        self.resize = resize[0] if resize else None

    def forward(self, x: Tensor, skips: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Returns the result and the map after each step, which a UNet's decoder needs.

        skips: in a UNet's decoder, the encoder's maps. One is taken from the end before each block."""
        kept: list[Tensor] = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            if skips is not None:
                x = torch.cat([x, skips.pop()], dim=1)
            x = attention(resnet(x))
            kept.append(x)
        if self.resize is not None:
            x = self.resize(x)
            kept.append(x)
        return x, kept


class Middle(nn.Module):
    """The deepest block: residual blocks with an optional attention between any two."""

    def __init__(self, block: Any, name: str, embedding: Tensor | None, prompt: Tensor | None) -> None:
        """block: diffusers' module.
        name: of the part.
        embedding: of the timestep, (1, E); None for a VAE.
        prompt: embedding of the prompt, (1, L, D); None without cross-attention."""
        super().__init__()
        kind = type(block).__name__
        kinds = ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn")
        require(kind in kinds, name, " or ".join(kinds), kind)
        layers: list[nn.Module] = [Resnet(block.resnets[0], embedding, f"{name}.resnets.0")]
        for index, resnet in enumerate(block.resnets[1:]):
            attention = block.attentions[index]
            if attention is not None:
                layers.append(_attention(attention, prompt, f"{name}.attentions.{index}"))
            layers.append(Resnet(resnet, embedding, f"{name}.resnets.{index + 1}"))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def _attention(layer: Any, prompt: Tensor | None, name: str) -> nn.Module:
    if type(layer).__name__ == "Attention":
        return MapAttention(layer, name)
    return Transformer(layer, prompt, name)
