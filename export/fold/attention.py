"""Attention on maps (n, C, H, W), in operations that phone accelerators run well, with diffusers' weights.

A linear layer over tokens becomes a 1x1 convolution over the map. One reshape splits the heads, and no tensor has
more than four dimensions. A folded network has one fixed prompt, so the prompt's keys and values are constants.

`export.fold.neural_engine` switches attention and norms to the form for the Neural Engine."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.fold.layers import ChannelNorm, FoldError, GroupNorm, pointwise, require


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q^T k) v^T per head (Vaswani et al. 2017, Eq. 1). The scale is already part of query or key.

    query: (n, heads, d, Q); key, value: (n or 1, heads, d, K) -> (n, heads, d, Q)."""
    weights = (query.transpose(2, 3) @ key).softmax(dim=3)  # (n, heads, Q, K)
    return value @ weights.transpose(2, 3)


def attend_by_head(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """`attend` head by head, by the products in Apple's article on transformers for the Neural Engine.

    Heads are split along the channels, pixels stay in the last axis, and only the keys are transposed, once for all
    heads ("Deploying Transformers on the Apple Neural Engine", 2022). The result has the query's shape.

    query: (n, heads d, 1, Q).
    key, value: (n or 1, heads d, 1, K).
    heads: how many.
    """
    depth = query.shape[1] // heads
    queries, values = query.split(depth, dim=1), value.split(depth, dim=1)
    mixed = []
    for q, k, v in zip(queries, key.transpose(1, 3).split(depth, dim=3), values, strict=True):
        weights = torch.einsum("nchq,nkhc->nkhq", q, k).softmax(dim=1)  # (n, K, 1, Q)
        mixed.append(torch.einsum("nkhq,nchk->nchq", weights, v))
    return mixed[0] if heads == 1 else torch.cat(mixed, dim=1)


def check_attention(attention: Any, name: str) -> None:
    """Raise FoldError for features that attention in Stable Diffusion 2.1 does not have."""
    require(type(attention).__name__ == "Attention", name, "an Attention", type(attention).__name__)
    for part in ("norm_q", "norm_k", "norm_cross", "spatial_norm", "add_k_proj", "add_q_proj", "to_add_out"):
        require(getattr(attention, part, None) is None, f"{name}.{part}", "nothing", "a layer")
    require(not attention.is_causal, name, "attention in all directions", "causal attention")
    require(
        attention.inner_kv_dim == attention.inner_dim,
        name,
        "as many key heads as query heads",
        "fewer of them",
    )
    require(
        attention.scale_qk and attention.rescale_output_factor == 1, name, "the usual scales", "other scales"
    )
    require(not attention.fused_projections, name, "separate projections", "fused ones")


class SelfAttention(nn.Module):
    """Attention between the pixels of a map, (n, C, H, W) -> (n, C, H, W)."""

    def __init__(self, attention: Any, name: str) -> None:
        super().__init__()
        check_attention(attention, name)
        require(not attention.is_cross_attention, name, "self-attention", "cross-attention")
        self.heads = attention.heads
        self.depth = attention.inner_dim // attention.heads
        self.to_q = pointwise(attention.to_q, f"{name}.to_q", self.depth**-0.5)
        self.to_k = pointwise(attention.to_k, f"{name}.to_k")
        self.to_v = pointwise(attention.to_v, f"{name}.to_v")
        self.to_out = pointwise(attention.to_out[0], f"{name}.to_out.0")
        self.by_head = False

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        pixels, channels = height * width, self.heads * self.depth
        split = (batch, channels, 1, pixels) if self.by_head else (batch, self.heads, self.depth, pixels)
        query, key, value = (layer(x).reshape(split) for layer in (self.to_q, self.to_k, self.to_v))
        mixed = attend_by_head(query, key, value, self.heads) if self.by_head else attend(query, key, value)
        out: Tensor = self.to_out(mixed.reshape(batch, channels, height, width))
        return out


class PromptAttention(nn.Module):
    """Attention of the pixels (n, C, H, W) to one prompt with constant keys and values (1, heads, d, L)."""

    key: Tensor
    value: Tensor

    def __init__(self, attention: Any, prompt: Tensor, name: str) -> None:
        """attention: diffusers' module. prompt: embedding of the prompt, (1, L, D). name: of the part, for errors."""
        super().__init__()
        check_attention(attention, name)
        require(prompt.shape[2] == attention.cross_attention_dim, name,
                f"a prompt of {attention.cross_attention_dim} channels", prompt.shape[2])  # fmt: skip
        self.heads = attention.heads
        self.depth = attention.inner_dim // attention.heads
        self.to_q = pointwise(attention.to_q, f"{name}.to_q")
        self.to_out = pointwise(attention.to_out[0], f"{name}.to_out.0")
        self.register_buffer("key", self._project(attention.to_k, prompt) * self.depth**-0.5)
        self.register_buffer("value", self._project(attention.to_v, prompt))
        self.by_head = False

    def _project(self, layer: nn.Linear, prompt: Tensor) -> Tensor:
        """(1, L, D) -> (1, heads, d, L)."""
        weight, bias = layer.weight.detach().float(), layer.bias
        tokens = F.linear(prompt.float(), weight, None if bias is None else bias.detach().float())
        return tokens.transpose(1, 2).reshape(1, self.heads, self.depth, -1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        pixels, channels = height * width, self.heads * self.depth
        query = self.to_q(x)
        if self.by_head:
            key, value = (part.reshape(1, channels, 1, -1) for part in (self.key, self.value))
            mixed = attend_by_head(query.reshape(batch, channels, 1, pixels), key, value, self.heads)
        else:
            mixed = attend(query.reshape(batch, self.heads, self.depth, pixels), self.key, self.value)
        out: Tensor = self.to_out(mixed.reshape(batch, channels, height, width))
        return out


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020) per pixel: out(a * gelu(b)). a and b are the two halves of one projection."""

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__()
        gate = layer.net[0]
        require(type(gate).__name__ == "GEGLU", f"{name}.net.0", "GEGLU", type(gate).__name__)
        self.proj = pointwise(gate.proj, f"{name}.net.0.proj")
        self.out = pointwise(layer.net[2], f"{name}.net.2")

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=1)
        out: Tensor = self.out(value * F.gelu(gate))
        return out


class TransformerBlock(nn.Module):
    """Self-attention, attention to the prompt, feed-forward. Each takes the normalised map and is added to the map."""

    def __init__(self, block: Any, prompt: Tensor, name: str) -> None:
        super().__init__()
        require(block.norm_type == "layer_norm", name, "layer norms", block.norm_type)
        cross = block.attn2 is not None and block.attn2.is_cross_attention
        require(cross and not block.only_cross_attention, name, "one self- and one cross-attention", "others")
        require(
            block.pos_embed is None and not hasattr(block, "fuser"), name, "no positions and no fuser", "some"
        )
        self.norm1 = ChannelNorm(block.norm1, f"{name}.norm1")
        self.attn1 = SelfAttention(block.attn1, f"{name}.attn1")
        self.norm2 = ChannelNorm(block.norm2, f"{name}.norm2")
        self.attn2 = PromptAttention(block.attn2, prompt, f"{name}.attn2")
        self.norm3 = ChannelNorm(block.norm3, f"{name}.norm3")
        self.ff = FeedForward(block.ff, f"{name}.ff")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """diffusers' Transformer2DModel on a map for one prompt (1, L, D), with linear or convolutional projections."""

    def __init__(self, transformer: Any, prompt: Tensor | None, name: str) -> None:
        super().__init__()
        kind = type(transformer).__name__
        require(kind == "Transformer2DModel", name, "a Transformer2DModel", kind)
        require(transformer.is_input_continuous, name, "a map as its input", "patches or indices")
        if prompt is None:
            raise FoldError(
                f"{name} attends to a prompt, and the model has no text encoder: load it with base="
            )
        self.norm = GroupNorm(transformer.norm, f"{name}.norm")
        self.proj_in = pointwise(transformer.proj_in, f"{name}.proj_in")
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(block, prompt, f"{name}.transformer_blocks.{index}")
                for index, block in enumerate(transformer.transformer_blocks)
            )
        )
        self.proj_out = pointwise(transformer.proj_out, f"{name}.proj_out")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.proj_out(self.blocks(self.proj_in(self.norm(x))))
        return out


class MapAttention(nn.Module):
    """The attention in the middle block of AutoencoderKL: x + attention(norm(x))."""

    def __init__(self, attention: Any, name: str) -> None:
        super().__init__()
        check_attention(attention, name)
        require(attention.residual_connection, name, "a residual connection", "none")
        self.norm = GroupNorm(attention.group_norm, f"{name}.group_norm")
        self.attention = SelfAttention(attention, name)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.attention(self.norm(x))
        return out
