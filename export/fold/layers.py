"""Convolutions and norms of a folded network on maps (n, C, H, W), with diffusers' weights, and the error for an unsupported part."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor, nn

# Largest magnitude that a norm squares in half precision. The square of four times as much still fits.
SQUARED_MAX: Final = 63.0
# Least epsilon of a rescaled norm, well above the smallest number of half precision, 6e-8.
LEAST_EPS: Final = 1e-6


class FoldError(ValueError):
    """A network has a part that folding does not support. The message names it."""


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise FoldError if a part is not as in Stable Diffusion 2.1 or the pocket preset.

    condition: whether the part is supported.
    name: of the part, as in "unet.conv_in".
    expected: the supported form, in words.
    got: what the part has instead."""
    if not condition:
        raise FoldError(
            f"{name}: expected {expected}, got {got}; only the parts of Stable Diffusion 2.1 and of the pocket preset "
            "can be folded. Distil such a model to a student, or export it by other means"
        )


def shared(tensor: Tensor) -> nn.Parameter:
    """A frozen float32 parameter. It shares the tensor's storage if that is float32 already."""
    return nn.Parameter(tensor.detach().float(), requires_grad=False)


def conv_from(weight: Tensor, bias: Tensor | None, **options: Any) -> nn.Conv2d:
    """A convolution with weight (out, in, kh, kw) and bias (out,). options: Conv2d's stride and padding."""
    outputs, inputs, height, width = weight.shape
    with torch.device("meta"):  # no memory for weights that are replaced at once
        conv = nn.Conv2d(inputs, outputs, (height, width), bias=bias is not None, **options)
    conv.weight = shared(weight)
    if bias is not None:
        conv.bias = shared(bias)
    return conv


def fold_conv(conv: Any, name: str) -> nn.Conv2d:
    """A plain convolution with zero padding that shares the weights of `conv`."""
    require(type(conv) is nn.Conv2d, name, "a Conv2d", type(conv).__name__)
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    require(plain, name, "no groups, no dilation, padding with zeros", conv)
    return conv_from(conv.weight, conv.bias, stride=conv.stride, padding=conv.padding)


def pointwise(layer: Any, name: str, factor: float = 1.0) -> nn.Conv2d:
    """A linear layer or 1x1 convolution as a 1x1 convolution, with its output multiplied by `factor`."""
    known = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.kernel_size == (1, 1))
    require(known, name, "a Linear or a 1x1 Conv2d", type(layer).__name__)
    weight = layer.weight if layer.weight.dim() == 4 else layer.weight[:, :, None, None]
    bias = layer.bias
    if factor != 1:
        weight, bias = weight * factor, None if bias is None else bias * factor
    return conv_from(weight, bias)


class Norm(nn.Module):
    """Base of both norms: keeps squares within half precision.

    A norm divides by the root of a mean of squares. In half precision the square of 256 is infinity already. `rescale`
    lets a norm square its values times a power of two. Its result stays the same, since it divides by the root of the
    scaled squares."""

    eps: float

    def __init__(self) -> None:
        super().__init__()
        self.shrink = 1.0

    def centred(self, x: Tensor) -> Tensor:
        """The values that are squared, before any scaling."""
        raise NotImplementedError

    def rescale(self, largest: float) -> None:
        """Scale the values before they are squared, if one of them may be too large.

        largest: largest magnitude of a centred value. Below SQUARED_MAX nothing changes."""
        if largest > SQUARED_MAX:
            self.shrink = 2.0 ** -math.ceil(math.log2(largest / SQUARED_MAX))
            # an epsilon that half precision rounds to zero would divide a flat part by zero
            self.eps = max(self.eps * self.shrink**2, LEAST_EPS)

    def scaled(self, x: Tensor) -> Tensor:
        """Centred values, times the scale if there is one."""
        x = self.centred(x)
        return x if self.shrink == 1.0 else x * self.shrink


class GroupNorm(Norm):
    """Group normalisation (Wu & He 2018) of (n, C, H, W).

    Means are taken per channel first and then per group of channels. The map itself is never reshaped, which on an
    accelerator would move all of it."""

    def __init__(self, norm: Any, name: str) -> None:
        super().__init__()
        known = type(norm) is nn.GroupNorm and norm.affine
        require(known, name, "a GroupNorm with scale and shift", type(norm).__name__)
        self.groups, self.channels, self.eps = norm.num_groups, norm.num_channels, norm.eps
        self.weight = shared(norm.weight[:, None, None])
        self.bias = shared(norm.bias[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x)
        scale = torch.rsqrt(self.group_mean(x * x) + self.eps) * self.weight  # (n, C, 1, 1)
        return x * scale + self.bias

    def centred(self, x: Tensor) -> Tensor:
        return x - self.group_mean(x)

    def group_mean(self, x: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C, 1, 1): the mean over each channel's group."""
        size = self.channels // self.groups
        means = x.mean((2, 3), keepdim=True).reshape(-1, self.groups, size, 1).mean(2, keepdim=True)
        return means.expand(-1, -1, size, -1).reshape(-1, self.channels, 1, 1)


class ChannelNorm(Norm):
    """Layer normalisation over the channels of each pixel of (n, C, H, W)."""

    def __init__(self, norm: Any, name: str) -> None:
        super().__init__()
        known = type(norm) is nn.LayerNorm and norm.elementwise_affine and norm.bias is not None
        require(known, name, "a LayerNorm with scale and shift", type(norm).__name__)
        self.eps = norm.eps
        self.weight = shared(norm.weight[:, None, None])
        self.bias = shared(norm.bias[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.scaled(x)
        return x * torch.rsqrt((x * x).mean(1, keepdim=True) + self.eps) * self.weight + self.bias

    def centred(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)  # two passes: E[x^2] - E[x]^2 would cancel in half precision
