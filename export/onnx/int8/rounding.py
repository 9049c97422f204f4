"""How an INT8 graph rounds, after NNCF: weights so that flat parts of a picture stay flat, activations with the least error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from export.onnx.graph.ranges import Feed, float_values, watched

# Values of a tensor, of each feed, to which a range is fitted.
SEEN: Final = 1 << 14
# Shares of the whole range that are tried.
SHARES: Final = np.linspace(1.0, 0.4, 25)


def keep_sums(quantized: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Round the kernels of NNCF's graph anew, in place, so that each keeps its sum. Scales stay.

    quantized: NNCF's graph, whose convolutions have symmetric weights of 8 bits.
    source: the fp32 graph with the same names of nodes.

    If every weight is rounded to the nearest step, the sum of a kernel changes by a random amount. A flat part of a picture then
    gets an error in every channel, and behind a pixel shuffle a mesh."""
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    weights = {tensor.name: tensor for tensor in source.graph.initializer}
    kernels = {node.name: node.input[1] for node in source.graph.node if node.op_type == "Conv"}
    makers = {output: node for node in quantized.graph.node for output in node.output}
    for node in quantized.graph.node:
        maker = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        steps, scale = (numpy_helper.to_array(stored[name]) for name in maker.input[:2])
        exact = numpy_helper.to_array(weights[kernels[node.name]]) / scale.reshape(-1, 1, 1, 1)
        whole = rounded(exact).clip(steps.min(), steps.max()).astype(steps.dtype)
        stored[maker.input[0]].CopyFrom(numpy_helper.from_array(whole, maker.input[0]))


def rounded(weights: np.ndarray) -> np.ndarray:
    """Whole numbers for weights (out, in, *kernel) such that the sum over each kernel is off by half at most.

    Each weight is rounded to the nearest whole number. As many taps of a kernel as its sum then lacks are rounded the other way,
    those nearest to the middle between two numbers first."""
    exact = weights.reshape(*weights.shape[:2], -1).astype(np.float64)
    nearest = np.round(exact)
    lacking = np.round((exact - nearest).sum(axis=2, keepdims=True))
    towards = np.sign(lacking)
    order = np.argsort((nearest - exact) * towards, axis=2, kind="stable")
    place = np.argsort(order, axis=2)  # of each tap in that order
    return (nearest + towards * (place < np.abs(lacking))).reshape(weights.shape)


def fit_ranges(quantized: onnx.ModelProto, source: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """Give the activations of NNCF's graph the ranges of `fitted_range`, in place.

    quantized: NNCF's graph.
    source: the fp32 graph with the same names of values.
    feeds: inputs on which the values are seen."""
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    floats = float_values(source)
    readers: dict[tuple[str, str], list[str]] = {}  # several quantizers may share a scale and a zero point
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in floats:
            readers.setdefault((node.input[1], node.input[2]), []).append(node.input[0])
    values = seen(source, {name for names in readers.values() for name in names}, feeds)
    for (scale, zero), names in readers.items():
        low, high = fitted_range(np.concatenate([values[name] for name in names]))
        limits = np.iinfo(numpy_helper.to_array(stored[zero]).dtype)
        step = np.array((high - low) / 255 or 1.0, np.float32)
        point = np.clip(np.round(limits.min - low / step), limits.min, limits.max).astype(limits.dtype)
        stored[scale].CopyFrom(numpy_helper.from_array(step, scale))
        stored[zero].CopyFrom(numpy_helper.from_array(np.array(point), zero))


def seen(source: onnx.ModelProto, names: Collection[str], feeds: Sequence[Feed]) -> dict[str, np.ndarray]:
    """Values of float tensors, inputs among them, over the feeds: every k-th in memory, about `SEEN` of each feed."""
    inner = sorted(set(names) - {value.name for value in source.graph.input})
    values_of = watched(source, inner) if inner else None
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feed in feeds:
        values: Mapping[str, np.ndarray] = dict(feed) | (values_of(feed) if values_of else {})
        for name, parts in found.items():
            parts.append(values[name].ravel()[:: max(1, values[name].size // SEEN)])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def fitted_range(values: np.ndarray) -> tuple[float, float]:
    """The range, zero included, in which 8 bits give values the least mean square error.

    It is the whole range of the values times one of `SHARES`: a smaller one cuts off the strongest and has finer steps."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))

    def error(share: float) -> float:
        step = (high - low) * share / 255 or 1.0
        zero = np.round(-low * share / step)
        steps = np.clip(np.round(values / step) + zero, 0, 255) - zero
        return float(np.square(steps * step - values).mean())

    share = float(min(SHARES, key=error))
    return low * share, high * share
