"""MIL operations that unpack compressed weights, and those that quantize and dequantize activations.

iOS 16 and iOS 18 have different operations of the same names, which are told apart by their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from export.mil.ops.call import Call, Compute, along, axis_of
from export.mil.package.tensor import DTYPES, EvaluationError, packed_bytes, unpack


def _affine(call: Call) -> Tensor:
    """scale * (data - zero_point), each a scalar or a vector along `axis`."""
    data, axis = call.tensor("quantized_data"), call.integer("axis")
    scale, zero = (
        along(call.tensor("scale"), axis, data.dim()),
        along(call.tensor("zero_point"), axis, data.dim()),
    )
    return scale * (data.float() - zero.float())


def _dequantize(call: Call) -> Tensor:
    data, zero = call.tensor("input").float(), call.optional("zero_point")
    axis = call.integer("axis", 0)
    shifted = data if zero is None else data - along(zero.float(), axis, data.dim())
    return along(call.tensor("scale"), axis, data.dim()) * shifted


def _quantize(call: Call) -> Tensor:
    """clip(round(input / scale) + zero_point) to the range of the declared type, with ties to even."""
    data, zero = call.tensor("input"), call.optional("zero_point")
    axis = call.integer("axis", 0)
    steps = torch.round(data / along(call.tensor("scale"), axis, data.dim()))
    steps = steps if zero is None else steps + along(zero.float(), axis, data.dim())
    return steps.clamp(*DTYPES[call.output_dtype].limits)


def blocks(small: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat a tensor with one entry per block to the shape of the larger tensor."""
    for axis, size in enumerate(shape):
        if small.shape[axis] < 1 or size % small.shape[axis]:
            raise EvaluationError(
                f"expected blocks that divide {list(shape)}, got {list(small.shape)}: compress the model again"
            )
        if small.shape[axis] not in (1, size):
            small = small.repeat_interleave(size // small.shape[axis], dim=axis)
    return small  # an axis of one broadcasts


def _shift_scale(call: Call) -> Tensor:
    """scale * (data - offset), both per block."""
    return _shifted(call, call.tensor("data"))


def _shifted(call: Call, data: Tensor) -> Tensor:
    offset, scale = call.optional("offset"), call.tensor("scale")
    shifted = data.float()
    if offset is not None:
        shifted = shifted - blocks(offset.float(), tuple(data.shape))
    return blocks(scale, tuple(data.shape)) * shifted


def look_up(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    """Entries of look-up tables.

    indices: (d_0, ...).
    lut: (g_0, ..., palette, vector), one table for each of g_0 x ... groups.
    vector_axis: axis of the result along which a vector's elements lie side by side.

    Returns (d_0, ...), longer along `vector_axis`."""
    rank = indices.dim()
    places = indices.long()
    tables = lut.reshape(-1, lut.shape[-2], lut.shape[-1])
    number = torch.arange(tables.shape[0]).reshape(lut.shape[:rank])  # which table
    number = blocks(number, tuple(indices.shape)).expand(indices.shape)
    entries = tables[number, places]  # (d_0, ..., vector)
    if lut.shape[-1] == 1:
        return entries.squeeze(-1)
    if vector_axis is None:
        raise EvaluationError(
            f"look-up table of vectors of {lut.shape[-1]}: expected a vector_axis, got none"
        )
    axis = axis_of(vector_axis, rank)
    return entries.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _vector_axis(call: Call) -> int | None:
    return call.integer("vector_axis") if call.has("vector_axis") else None


def _lut_to_dense(call: Call) -> Tensor:
    lut = call.tensor("lut")
    if not call.has("shape"):  # iOS 18: the indices have their own shape
        return look_up(call.tensor("indices"), lut, _vector_axis(call))
    shape = call.ints("shape")
    bits = int(math.log2(lut.numel()))
    return lut[_unpacked(call, "indices", bits, shape).long()].reshape(shape)


def _unpacked(call: Call, name: str, bits: int, shape: list[int]) -> Tensor:
    """iOS 16: indices packed in bytes.

    call: the operation.
    name: of the argument with the indices.
    bits: per index.
    shape: of the result."""
    count, packed = math.prod(shape), call.tensor(name)
    dtype = DTYPES[f"uint{bits}"]
    if packed.numel() != packed_bytes(dtype, count):
        raise EvaluationError(
            f"{call.op.type} {call.op.name!r}: expected {packed_bytes(dtype, count)} bytes of {name}, got {packed.numel()}"
        )
    return torch.from_numpy(np.array(unpack(packed.reshape(-1).numpy(), dtype, count)))


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """The values at the places of the mask, in row-major order, and zero elsewhere."""
    if int(mask.sum()) != values.numel():
        raise EvaluationError(f"expected {int(mask.sum())} values for a sparse mask, got {values.numel()}")
    dense = torch.zeros(mask.shape, dtype=values.dtype)
    dense[mask.bool()] = values.reshape(-1)
    return dense


def _sparse_to_dense(call: Call) -> Tensor:
    values = call.tensor("nonzero_data")
    if not call.has("shape"):  # iOS 18: the mask has its own shape
        return scatter(values, call.tensor("mask"))
    shape = call.ints("shape")
    return scatter(values, _unpacked(call, "mask", 1, shape).reshape(shape))


def _lut_to_sparse(call: Call) -> tuple[Tensor, Tensor]:
    """Look up the stored indices. Returns their mask, each element repeated over a vector, and the values."""
    mask, lut, axis = call.tensor("indices_mask"), call.tensor("lut"), _vector_axis(call)
    dense = look_up(scatter(call.tensor("indices_nonzero_data"), mask), lut, axis)
    if axis is not None and lut.shape[-1] > 1:
        mask = mask.repeat_interleave(lut.shape[-1], dim=axis_of(axis, mask.dim()))
    return mask, dense[mask.bool()]


def _sparse_shift_scale(call: Call) -> tuple[Tensor, Tensor]:
    """Dequantize the stored values. Returns their mask and the values."""
    mask = call.tensor("data_mask")
    dense = _shifted(call, scatter(call.tensor("nonzero_data"), mask))
    return mask, dense[mask.bool()]


OPS: Final[Mapping[str, Compute]] = {
    "constexpr_affine_dequantize": _affine,
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_cast": lambda call: call.tensor("source_val"),
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "dequantize": _dequantize,
    "quantize": _quantize,
}
