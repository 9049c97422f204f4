"""Resizes in batches on a device. Each picture has its own sizes and filter.

A resize is two products with weight matrices, for rows and columns. Filters are Pillow's, which average when
shrinking, and those of `torch.nn.functional.interpolate` without antialiasing, which the published degradation uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Radius of Pillow's filters in pixels.
SUPPORT = {"box": 0.5, "triangle": 1.0, "cubic": 2.0, "lanczos": 3.0}
# Filters of torch, without antialiasing.
SAMPLED = ("area", "bilinear", "bicubic")
NAMES = (*SUPPORT, *SAMPLED)
# Rounds halves up, as Pillow does. Means of four levels are often exact halves, which float32 may put slightly below.
HALF = 0.5 + 1e-3


@dataclass(frozen=True)
class Stack:
    """Pictures of different sizes in one tensor, each in the top left corner. Pixels beyond a picture are undefined."""

    pixels: Tensor
    """(n, 3, h, w) float32."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each picture."""

    def with_pixels(self, pixels: Tensor) -> Stack:
        return Stack(pixels, self.sizes)

    def continued(self) -> Tensor:
        """The pixels, with each picture's last row and column repeated to the end of the tensor."""
        height, width = self.pixels.shape[-2:]
        if all(size == (height, width) for size in self.sizes):
            return self.pixels
        device = self.pixels.device
        ends = torch.tensor(self.sizes, device=device) - 1  # (n, 2)
        rows = torch.arange(height, device=device).minimum(ends[:, :1])[:, None, :, None]
        columns = torch.arange(width, device=device).minimum(ends[:, 1:])[:, None, None, :]
        picture = torch.arange(len(self.sizes), device=device)[:, None, None, None]
        channel = torch.arange(self.pixels.shape[1], device=device)[:, None, None]
        return self.pixels[picture, channel, rows, columns]


def resize(
    stack: Stack, sizes: Sequence[tuple[int, int]], names: Sequence[str], *, whole: bool = False
) -> Stack:
    """Resize each picture with its own filter.

    stack: the pictures.
    sizes: their new heights and widths.
    names: their filters, of `NAMES`.
    whole: round to levels and clip to [0, 1] after each direction, columns first, as Pillow does for 8-bit pictures."""
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    device = stack.pixels.device

    def matrix(axis: int, canvas: int) -> Tensor:
        before, after = ([size[axis] for size in side] for side in (stack.sizes, sizes))
        return weights(names, before, after, stack.pixels.shape[2 + axis], canvas, device)[:, None]

    def finished(pixels: Tensor) -> Tensor:
        return (pixels.clamp(0, 1) * 255 + HALF).floor() / 255 if whole else pixels

    wide = finished(stack.pixels @ matrix(1, width).mT)  # (n, 3, h, width)
    return Stack(finished(matrix(0, height) @ wide), tuple(sizes))


def weights(
    names: Sequence[str],
    before: Sequence[int],
    after: Sequence[int],
    canvas_before: int,
    canvas_after: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Weight matrices (n, canvas_after, canvas_before) float32. Row i computes pixel i of the result.

    names: filter of each item.
    before, after: sizes of each item along this axis.
    canvas_before, canvas_after: sizes of the tensors along this axis.
    device: of the result.

    Rows beyond `after` repeat the last one. Columns beyond `before` are zero."""
    found = torch.empty(len(names), canvas_after, canvas_before, device=device)
    for name in dict.fromkeys(names):
        places = [k for k, other in enumerate(names) if other == name]
        sides = torch.tensor([[before[k], after[k]] for k in places], device=device)[:, :, None, None]
        found[places] = _weights(name, sides[:, 0], sides[:, 1], canvas_before, canvas_after)
    return found


def _weights(name: str, before: Tensor, after: Tensor, canvas_before: int, canvas_after: int) -> Tensor:
    """Weights of one filter, (n, canvas_after, canvas_before), for items with the same filter.

    name: of the filter.
    before, after: sizes along this axis, (n, 1, 1) int64.
    canvas_before, canvas_after: sizes of the tensors along this axis."""
    i = torch.arange(canvas_after, device=before.device)[:, None].minimum(after - 1)  # (n, out, 1)
    j = torch.arange(canvas_before, device=before.device)  # (in,)
    scale = before / after
    if name == "area":
        first, end = i * before // after, ((i + 1) * before + after - 1) // after
        value = ((j >= first) & (j < end)).float()
    elif name == "bilinear":
        value = _triangle(j - ((i + 0.5) * scale - 0.5))
    elif name == "bicubic":
        source = (i + 0.5) * scale - 0.5
        value = _cubic(j - source, -0.75)
        # reads beyond the border repeat the border's pixel
        left = _cubic(-1 - source, -0.75) + _cubic(-2 - source, -0.75)
        right = _cubic(before - source, -0.75) + _cubic(before + 1 - source, -0.75)
        value = value + left * (j == 0) + right * (j == before - 1)
    elif name in SUPPORT:
        x = (j + 0.5 - (i + 0.5) * scale) / scale.clamp_min(1)
        value = _pillow(name, x)
    else:
        raise ValueError(f"filter must be one of {', '.join(NAMES)}, got {name!r}")
    value = torch.where(j < before, value, 0.0)
    return value / value.sum(-1, keepdim=True)


def _pillow(name: str, x: Tensor) -> Tensor:
    """One of Pillow's filters at distance x, in pixels of the smaller picture."""
    if name == "box":
        return ((x > -0.5) & (x <= 0.5)).float()
    if name == "triangle":
        return _triangle(x)
    if name == "cubic":
        return _cubic(x, -0.5)
    return torch.where(x.abs() < SUPPORT["lanczos"], torch.sinc(x) * torch.sinc(x / SUPPORT["lanczos"]), 0.0)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def _cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution; a is -0.5 in Pillow and -0.75 in torch."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
