"""MIL operations that sum products: convolutions, pooling, matrix products, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from export.mil.ops.call import Call, Compute

PAD_TYPES: Final = ("valid", "custom", "same", "same_lower")
_CONV: Final[Mapping[int, Callable[..., Tensor]]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: Final[Mapping[int, Callable[..., Tensor]]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
_AVG_POOL: Final[Mapping[int, Callable[..., Tensor]]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOL: Final[Mapping[int, Callable[..., Tensor]]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _padding(call: Call, sizes: list[int], kernel: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """Padding before and after each spatial dimension.

    call: the operation, with its argument `pad_type`.
    sizes: of the input.
    kernel: sizes of the kernel including its dilation.
    strides: of the window.

    `same` keeps ceil(size / stride) and puts an odd element after the input, `same_lower` before it."""
    kind = call.choice("pad_type", PAD_TYPES, "valid").lower()
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        pad = call.ints("pad", [0] * 2 * len(sizes))
        return list(zip(pad[::2], pad[1::2], strict=True))
    totals = [max(0, s * -(-n // s) - n + k - s) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    small = [(total // 2, total - total // 2) for total in totals]
    return small if kind == "same" else [(after, before) for before, after in small]


def _pad(x: Tensor, padding: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """x with its last dimensions padded."""
    flat = [side for pair in reversed(padding) for side in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(call: Call) -> Tensor:
    x, weight = call.tensor("x"), call.tensor("weight")
    spatial = x.dim() - 2
    strides, dilations = call.ints("strides", [1] * spatial), call.ints("dilations", [1] * spatial)
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    padding = _padding(call, list(x.shape[2:]), kernel, strides)
    bias, groups = call.optional("bias"), call.integer("groups", 1)
    if all(before == after for before, after in padding):
        both = [before for before, _ in padding]
        return _CONV[spatial](x, weight, bias, strides, both, dilations, groups)
    return _CONV[spatial](_pad(x, padding), weight, bias, strides, 0, dilations, groups)


def _conv_transpose(call: Call) -> Tensor:
    """Compute the full result and cut it: `custom` gives the cut, `same` keeps size * stride, `output_shape` gives the size to keep."""
    x, weight = call.tensor("x"), call.tensor("weight")
    spatial = x.dim() - 2
    strides, dilations = call.ints("strides", [1] * spatial), call.ints("dilations", [1] * spatial)
    whole = _CONV_TRANSPOSE[spatial](x, weight, None, strides, 0, 0, call.integer("groups", 1), dilations)
    kind = call.choice("pad_type", PAD_TYPES, "valid").lower()
    cuts = [(0, 0)] * spatial
    if kind == "custom":
        pad = call.ints("pad", [0] * 2 * spatial)
        cuts = list(zip(pad[::2], pad[1::2], strict=True))
    elif kind != "valid":
        over = [w - n * s for w, n, s in zip(whole.shape[2:], x.shape[2:], strides, strict=True)]
        cuts = [(o // 2, o - o // 2) if kind == "same" else (o - o // 2, o // 2) for o in over]
    if call.has("output_shape"):
        kept = call.ints("output_shape")[-spatial:]
        cuts = [(b, w - b - k) for (b, _), w, k in zip(cuts, whole.shape[2:], kept, strict=True)]
    result = _pad(whole, [(-before, -after) for before, after in cuts])
    bias = call.optional("bias")
    return result if bias is None else result + bias.reshape([1, -1] + [1] * spatial)


def _windows(call: Call) -> tuple[Tensor, list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """x, kernel, strides, padding, and the extra padding of `ceil_mode` at the end for the last, partial window."""
    x, kernel = call.tensor("x"), call.ints("kernel_sizes")
    strides = call.ints("strides", [1] * len(kernel))
    sizes = list(x.shape[2:])
    padding = _padding(call, sizes, kernel, strides)
    extra = [(0, 0)] * len(kernel)
    if call.flag("ceil_mode"):
        for i, ((before, after), n, k, s) in enumerate(zip(padding, sizes, kernel, strides, strict=True)):
            count = -(-(n + before + after - k) // s) + 1
            if (count - 1) * s >= n + before:  # a window must not start in the padding at the end
                count -= 1
            extra[i] = (0, max(0, (count - 1) * s + k - (n + before + after)))
    return x, kernel, strides, padding, extra


def _max_pool(call: Call) -> Tensor:
    x, kernel, strides, padding, extra = _windows(call)
    return _MAX_POOL[len(kernel)](_pad(_pad(x, padding, -math.inf), extra, -math.inf), kernel, strides)


def _avg_pool(call: Call) -> Tensor:
    """The window's sum divided by the number of elements counted. Padding counts unless excluded; additions by
    `ceil_mode` never count."""
    x, kernel, strides, padding, extra = _windows(call)
    pool = _AVG_POOL[len(kernel)]
    ones = torch.ones_like(x[:1, :1])
    ones = _pad(ones, padding, 0.0 if call.flag("exclude_padding_from_average") else 1.0)
    share = pool(_pad(ones, extra), kernel, strides)
    return pool(_pad(_pad(x, padding), extra), kernel, strides) / share


def _l2_pool(call: Call) -> Tensor:
    x, kernel, strides, padding, extra = _windows(call)
    mean = _AVG_POOL[len(kernel)](_pad(_pad(x.square(), padding), extra), kernel, strides)
    return torch.sqrt(mean * math.prod(kernel))


def _linear(call: Call) -> Tensor:
    return _whole(F.linear, call.tensor("x"), call.tensor("weight"), call.optional("bias"))


def _matmul(call: Call) -> Tensor:
    x, y = call.tensor("x"), call.tensor("y")
    if call.flag("transpose_x") and x.dim() > 1:
        x = x.transpose(-1, -2)
    if call.flag("transpose_y") and y.dim() > 1:
        y = y.transpose(-1, -2)
    return _whole(torch.matmul, x, y)


def _whole(function: Callable[..., Tensor], *tensors: Any) -> Tensor:
    """A product of floats, or of integers by way of float64, which represents them all."""
    if tensors[0].is_floating_point():
        return function(*tensors)
    return function(*(None if t is None else t.double() for t in tensors)).round()


def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.text("equation"), *call.tensors("values"))


def _attention(call: Call) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V. query: (..., L, E), key: (..., S, E), value: (..., S, EV) -> (..., L, EV)."""
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    score = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    mask = call.optional("attn_mask")
    if mask is not None:
        score = score.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else score + mask
    return torch.softmax(score, dim=-1) @ value


OPS: Final[Mapping[str, Compute]] = {
    "avg_pool": _avg_pool,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "l2_pool": _l2_pool,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "scaled_dot_product_attention": _attention,
}
