"""MIL operations that resize images. They differ only in how output pixels are placed on the input's grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from export.mil.ops.call import Call, Compute, axis_of
from export.mil.package.tensor import EvaluationError

SAMPLING_MODES: Final = (
    "DEFAULT",
    "STRICT_ALIGN_CORNERS",
    "ALIGN_CORNERS",
    "OFFSET_CORNERS",
    "UNALIGN_CORNERS",
)


def grid(size: int, target: int, mode: str) -> Tensor:
    """Positions of the output pixels among the input pixels, (target,) float64 in [0, size - 1]."""
    i = torch.arange(target, dtype=torch.float64)
    if mode == "DEFAULT":
        places = i * (size / target)
    elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        places = i * ((size - 1) / max(1, target - 1))
        if target == 1 and mode == "ALIGN_CORNERS":
            places = torch.full((1,), (size - 1) / 2, dtype=torch.float64)
    elif mode == "OFFSET_CORNERS":
        delta = max(1, size - 1) / target
        places = 0.5 * delta + i * delta
    elif mode == "UNALIGN_CORNERS":
        places = (i + 0.5) * (size / target) - 0.5
    else:
        raise EvaluationError(f"expected a sampling mode among {', '.join(SAMPLING_MODES)}, got {mode!r}")
    return places.clamp(0, size - 1)


def linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """x at fractional positions of one axis, interpolated between neighbours."""
    axis = axis_of(axis, x.dim())
    low = places.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    share = (places - low).to(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.dim())])
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


def nearest(x: Tensor, axis: int, target: int) -> Tensor:
    """x with one axis resized by repeating or skipping: output i is input floor(i * size / target)."""
    size = x.shape[axis]
    return x.index_select(axis, torch.arange(target) * size // target)


def _bilinear(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """x with its last two axes resized.

    x: (..., h, w).
    height, width: to have.
    mode: where the samples lie, see `grid`."""
    x = linear(x, -2, grid(x.shape[-2], height, mode))
    return linear(x, -1, grid(x.shape[-1], width, mode))


def _nearest(x: Tensor, height: int, width: int) -> Tensor:
    return nearest(nearest(x, -2 + x.dim(), height), -1 + x.dim(), width)


def _scaled(call: Call) -> tuple[int, int]:
    """Height and width times their factors, rounded down."""
    x = call.tensor("x")
    factors = call.number("scale_factor_height", 1.0), call.number("scale_factor_width", 1.0)
    return int(x.shape[-2] * factors[0]), int(x.shape[-1] * factors[1])


def _upsample_nearest(call: Call) -> Tensor:
    return _nearest(call.tensor("x"), *_scaled(call))


def _upsample_bilinear(call: Call) -> Tensor:
    """Aligned corners, or half-pixel centres. Other combinations are refused."""
    corners = call.flag("align_corners", True)
    if call.flag("half_pixel_centers", not corners) == corners:
        raise EvaluationError(
            f"upsample_bilinear {call.op.name!r}: expected half_pixel_centers to be the opposite of align_corners, "
            f"got {corners} for both; this case is not supported"
        )
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS"
    return _bilinear(call.tensor("x"), *_scaled(call), mode)


def _target(call: Call) -> tuple[int, int]:
    return call.integer("target_size_height", 1), call.integer("target_size_width", 1)


def _resize_bilinear(call: Call) -> Tensor:
    mode = call.choice("sampling_mode", SAMPLING_MODES, "DEFAULT").upper()
    return _bilinear(call.tensor("x"), *_target(call), mode)


def _resize_nearest(call: Call) -> Tensor:
    return _nearest(call.tensor("x"), *_target(call))


def _resize(call: Call) -> Tensor:
    """iOS 17: the last `resized_dims` sizes of `shape`. 0 keeps the size of x."""
    x, count = call.tensor("x"), call.integer("resized_dims")
    kind = call.choice("interpolation_mode", ("LINEAR", "NEAREST_NEIGHBOR"), "LINEAR").upper()
    mode = call.choice("sampling_mode", SAMPLING_MODES, "DEFAULT").upper()
    if kind != "LINEAR" and mode != "DEFAULT":
        raise EvaluationError(f"resize {call.op.name!r}: expected DEFAULT for nearest neighbours, got {mode}")
    for axis, size in enumerate(call.ints("shape")[-count:], start=x.dim() - count):
        target = size or x.shape[axis]
        x = (
            linear(x, axis, grid(x.shape[axis], target, mode))
            if kind == "LINEAR"
            else nearest(x, axis, target)
        )
    return x


OPS: Final[Mapping[str, Compute]] = {
    "resize": _resize,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
}
