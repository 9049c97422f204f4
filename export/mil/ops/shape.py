"""MIL operations that move, repeat, cut and join elements, and those that make tensors from shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from export.mil.ops.call import Call, Compute, axis_of, take
from export.mil.package.tensor import DTYPES, EvaluationError

PAD_MODES: Final = ("constant", "reflect", "replicate")


def _reshape(call: Call) -> Tensor:
    """-1 is the remaining size. 0 is the size of x at that place counted from the end, or 1 if x has no such dimension.

    This is iOS 17's meaning of 0. Earlier, 0 needs equal ranks, for which both meanings agree."""
    x, shape = call.tensor("x"), call.ints("shape")
    own = [1] * len(shape) + list(x.shape)
    return x.reshape([own[len(own) - len(shape) + i] if size == 0 else size for i, size in enumerate(shape)])


def _expand_dims(call: Call) -> Tensor:
    x, axes = call.tensor("x"), call.ints("axes")
    rank = x.dim() + len(axes)
    for axis in sorted(axis_of(axis, rank) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: Call) -> Tensor:
    x = call.tensor("x")
    return x.squeeze(tuple(call.ints("axes"))) if call.has("axes") else x.squeeze()


def _concat(call: Call) -> Tensor:
    values, axis = call.tensors("values"), call.integer("axis")
    if not call.flag("interleave"):
        return torch.cat(values, axis)
    axis = axis_of(axis, values[0].dim())
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def _split(call: Call) -> tuple[Tensor, ...]:
    x, axis = call.tensor("x"), call.integer("axis")
    if call.has("split_sizes"):
        return torch.split(x, call.ints("split_sizes"), axis)
    count = call.integer("num_splits")
    if x.shape[axis] % count:
        raise EvaluationError(
            f"split {call.op.name!r}: expected a size divisible by {count}, got {x.shape[axis]}"
        )
    return torch.split(x, x.shape[axis] // count, axis)


def _slice_by_index(call: Call) -> Tensor:
    """x[begin:end:stride] in every dimension, with negative numbers as in Python. Masked bounds are ignored."""
    x = call.tensor("x")
    rank = x.dim()
    begin, end, stride = call.ints("begin"), call.ints("end"), call.ints("stride", [1] * rank)
    begin_mask, end_mask = call.flags("begin_mask", rank), call.flags("end_mask", rank)
    squeezed = call.flags("squeeze_mask", rank)
    for axis, size in enumerate(x.shape):
        first = None if begin_mask[axis] else begin[axis]
        if squeezed[axis]:
            x = x.narrow(axis, axis_of(first or 0, size), 1)
            continue
        positions = range(size)[first : None if end_mask[axis] else end[axis] : stride[axis]]
        if positions.step == 1 or len(positions) == 0:
            x = x.narrow(axis, positions.start if len(positions) else 0, len(positions))
        else:
            x = take(x, axis, list(positions))
    return x.squeeze(tuple(axis for axis in range(rank) if squeezed[axis]))


def _slice_by_size(call: Call) -> Tensor:
    x = call.tensor("x")
    for axis, (first, size) in enumerate(zip(call.ints("begin"), call.ints("size"), strict=True)):
        first = axis_of(first, x.shape[axis])
        x = x.narrow(axis, first, x.shape[axis] - first if size == -1 else size)
    return x


def _pad(call: Call) -> Tensor:
    """Pad the last dimensions of x. pad: two numbers per dimension (before, after), in the order of the dimensions."""
    x, pad = call.tensor("x"), call.ints("pad")
    mode = call.choice("mode", PAD_MODES, "constant").lower()
    pairs = list(zip(pad[::2], pad[1::2], strict=True))
    if mode == "constant":
        return F.pad(
            x, [side for pair in reversed(pairs) for side in pair], value=call.number("constant_val", 0.0)
        )
    for axis, (before, after) in enumerate(pairs, start=x.dim() - len(pairs)):
        last = x.shape[axis] - 1
        if mode == "reflect" and max(before, after) > last:
            raise EvaluationError(
                f"pad {call.op.name!r}: expected at most {last} to reflect, got {before} and {after}"
            )
        positions = range(-before, last + 1 + after)
        if mode == "reflect":
            x = take(x, axis, [last - abs(last - abs(i)) for i in positions])
        else:
            x = take(x, axis, [min(max(i, 0), last) for i in positions])
    return x


def _indices(call: Call, size: int) -> Tensor:
    """The argument `indices`, with negative ones counted from the end. Raises EvaluationError if one is outside the axis."""
    indices = call.tensor("indices").long()
    if indices.numel() and not (-size <= int(indices.min()) and int(indices.max()) < size):
        raise EvaluationError(
            f"{call.op.type} {call.op.name!r}: expected indices in [{-size}, {size}), "
            f"got [{int(indices.min())}, {int(indices.max())}]"
        )
    return torch.where(indices < 0, indices + size, indices)


def _gather(call: Call) -> Tensor:
    """Slices of x along an axis. The first `batch_dims` dimensions of x and the indices correspond."""
    x, batch = call.tensor("x"), call.integer("batch_dims", 0)
    axis = axis_of(call.integer("axis", 0), x.dim())
    indices = _indices(call, x.shape[axis])
    if batch == 0:
        return x[(*(slice(None),) * axis, indices)]
    lead = x.shape[:batch]
    pairs = zip(x.reshape(-1, *x.shape[batch:]), indices.reshape(-1, *indices.shape[batch:]), strict=True)
    inner = (slice(None),) * (axis - batch)
    rows = torch.stack([part[(*inner, chosen)] for part, chosen in pairs])
    return rows.reshape(*lead, *rows.shape[1:])


def _gather_along_axis(call: Call) -> Tensor:
    x = call.tensor("x")
    axis = axis_of(call.integer("axis", 0), x.dim())
    return torch.take_along_dim(x, _indices(call, x.shape[axis]), axis)


def _gather_nd(call: Call) -> Tensor:
    if call.integer("batch_dims", 0):
        raise EvaluationError(
            f"gather_nd {call.op.name!r}: expected batch_dims 0, got another; other values are not supported"
        )
    indices = call.tensor("indices").long()
    return call.tensor("x")[tuple(indices.unbind(-1))]


def _space_to_depth(call: Call) -> Tensor:
    """(n, c, h, w) -> (n, block^2 c, h/block, w/block). Channel order (row, column, c): the place in the block varies slowest."""
    x, b = call.tensor("x"), call.integer("block_size")
    n, c, h, w = x.shape
    cells = x.reshape(n, c, h // b, b, w // b, b)
    return cells.permute(0, 3, 5, 1, 2, 4).reshape(n, b * b * c, h // b, w // b)


def _depth_to_space(call: Call) -> Tensor:
    """The inverse of `space_to_depth`. It differs from pixel shuffle, in which the place in the block varies fastest."""
    x, b = call.tensor("x"), call.integer("block_size")
    n, c, h, w = x.shape
    cells = x.reshape(n, b, b, c // (b * b), h, w)
    return cells.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def _sliding_windows(call: Call) -> Tensor:
    x = call.tensor("x")
    axis = axis_of(call.integer("axis"), x.dim())
    return x.unfold(axis, call.integer("size"), call.integer("stride", 1)).movedim(-1, axis + 1)


def _band_part(call: Call) -> Tensor:
    """The elements at most `lower` below and `upper` above the diagonal of the last two axes. -1: all of that side."""
    x = call.tensor("x")
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)
    keep = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    return torch.where(keep, x, torch.zeros_like(x))


def _one_hot(call: Call) -> Tensor:
    size = call.integer("one_hot_vector_size")
    hot = F.one_hot(call.tensor("indices").long(), size).movedim(-1, call.integer("axis", -1)).bool()
    on, off = call.number("on_value", 1), call.number("off_value", 0)
    return torch.where(hot, torch.tensor(on), torch.tensor(off))


def _fill(call: Call) -> Tensor:
    return _filled(call, call.ints("shape"))


def _fill_like(call: Call) -> Tensor:
    return _filled(call, list(call.tensor("ref_tensor").shape))


def _filled(call: Call, shape: list[int]) -> Tensor:
    value = call.optional("value")
    return torch.full(shape, 0.0 if value is None else value.item(), dtype=DTYPES[call.output_dtype].compute)


def _range_1d(call: Call) -> Tensor:
    """start, start + step, ... before end. Bounds are computed in float64."""
    start, end, step = (call.tensor(name).reshape(()).item() for name in ("start", "end", "step"))
    count = max(0, math.ceil((end - start) / step))
    return torch.arange(count, dtype=torch.float64) * step + start


def _flatten2d(x: Tensor, axis: int) -> Tensor:
    return x.reshape(math.prod(x.shape[: axis_of(axis, x.dim())]), -1)


OPS: Final[Mapping[str, Compute]] = {
    "band_part": _band_part,
    "concat": _concat,
    "depth_to_space": _depth_to_space,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "fill_like": _fill_like,
    "flatten2d": lambda call: _flatten2d(call.tensor("x"), call.integer("axis", 1)),
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "one_hot": _one_hot,
    "pad": _pad,
    "pixel_shuffle": lambda call: F.pixel_shuffle(call.tensor("x"), call.integer("upscale_factor")),
    "pixel_unshuffle": lambda call: F.pixel_unshuffle(call.tensor("x"), call.integer("downscale_factor")),
    "range_1d": _range_1d,
    "reshape": _reshape,
    "reverse": lambda call: call.tensor("x").flip(call.ints("axes", list(range(call.tensor("x").dim())))),
    "shape": lambda call: torch.tensor(call.tensor("x").shape, dtype=torch.int64),
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "sliding_windows": _sliding_windows,
    "space_to_depth": _space_to_depth,
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda call: torch.stack(call.tensors("values"), call.integer("axis")),
    "tile": lambda call: torch.tile(call.tensor("x"), call.ints("reps")),
    "transpose": lambda call: call.tensor("x").permute(call.ints("perm")),
}
