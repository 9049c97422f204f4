"""The layers of an ONNX graph that may be quantized, their cost, and a graph with only one layer quantized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from export.onnx.graph.ranges import float_values, watched
from export.onnx.int8.integer_form import LAYOUT, drop_unused

# Bits per operand of a layer that stays in floating point.
FLOAT_BITS: Final = 32
WEIGHTED: Final = ("Conv", "Gemm", "MatMul")
SUMS: Final = ("Add",)
_LINEAR: Final = (*LAYOUT, "Clip", "Tanh", "Add", "Sub", "Mul", "Div")
_PASSIVE: Final = (*LAYOUT, "Relu", "LeakyRelu", "Pad", "Concat", "Identity")
# Multiply-accumulates whose cost by `Layer.cost` is that of one addition. Of the student at 142x142 pixels on one core with VNNI, by
# the profiler of ONNX Runtime 1.32: a convolution of 20,736 multiply-accumulates a pixel takes 2.05 ms in INT8, a sum of 48 channels
# with what converts to and from floats .68 ms, in integers .13 ms.
SUM_WORK: Final = 40
PRODUCT: Final = "product of attention"
FIRST: Final = "first convolution"
LAST: Final = "last convolution"
FIXED: Final = "interpolation"
SUMMED: Final = "sum with a picture"


@dataclass(frozen=True)
class Layer:
    """A node that may be quantized."""

    name: str
    """Name of the node."""
    kind: str
    """Type of the operation."""
    work: float
    """Multiply-accumulates per LR pixel; an addition counts as `SUM_WORK` of them."""
    whole: bool
    """Whether integer kernels can compute it. Their results are integers, so it is False if the result leaves the graph."""

    def cost(self, bits: int) -> float:
        """Bit operations per LR pixel. Without an integer kernel, quantized inputs save nothing."""
        return self.work * (bits if self.whole else FLOAT_BITS)


def find_layers(model: onnx.ModelProto, feed: Mapping[str, np.ndarray], pixels: int) -> list[Layer]:
    """Every node with weights and every sum of two computed tensors, in the graph's order.

    model: the graph.
    feed: an input on which the work is counted.
    pixels: number of pixels of its LR image."""
    weights = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    floats = float_values(model)
    found = [
        node
        for node in model.graph.node
        if (node.op_type in WEIGHTED and node.output[0] in floats)
        or (node.op_type in SUMS and all(name in floats and name not in weights for name in node.input))
    ]
    values = watched(model, [node.output[0] for node in found])(feed)
    layers = []
    for node in found:
        shape = values[node.output[0]].shape
        count = float(math.prod(shape)) * (1 if node.op_type in WEIGHTED else SUM_WORK)
        if node.op_type in WEIGHTED:
            known = [weights[name] for name in node.input[:2] if name in weights]
            channel = shape[1] if node.op_type == "Conv" else shape[-1]
            count *= (known[0] / channel) if known else 1.0
        layers.append(Layer(node.name, node.op_type, count / pixels, not _leaves(model.graph, node)))
    return layers


def _leaves(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """Whether a node's result is an output of the graph, directly or only moved and clipped."""
    outputs, waiting = {value.name for value in graph.output}, list(node.output)
    while waiting:
        name = waiting.pop()
        if name in outputs:
            return True
        takers = [other for other in graph.node if name in other.input]
        waiting += [out for other in takers if other.op_type in (*LAYOUT, "Clip") for out in other.output]
    return False


def of_the_picture(model: onnx.ModelProto) -> dict[str, str]:
    """Nodes of a consistent student that always stay in floating point, each with the reason: their results are pictures.

    - Convolutions in groups, which interpolate pictures by fixed kernels. They are .3 % of the work each.
    - Sums behind the last convolution, in which such a picture takes part.

    Empty for other students. Rounded, they give each of the 16 places inside an LR pixel an error of its own, a mesh on
    smooth pictures. The last convolution itself may be quantized, if its kernels keep their sums (`rounding.keep_sums`)."""
    grouped = {
        node.name: attribute.i
        for node in model.graph.node
        if node.op_type == "Conv"
        for attribute in node.attribute
        if attribute.name == "group"
    }
    kept = {name: FIXED for name, count in grouped.items() if count > 1}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.output}
    pictures = [name for name, shape in shapes.items() if kept and shape[1].dim_value == 3]  # RGB
    sums = [node.name for node in _before(model.graph, pictures) if node.op_type in SUMS]
    return kept | dict.fromkeys(sums, SUMMED)


def kept_float(model: onnx.ModelProto) -> dict[str, str]:
    """Nodes of a diffusion network that always stay in floating point, each with the reason.

    - Products of attention, which are the only ones in a folded network: NNCF gives both activations a zero point,
      which ONNX Runtime's integer kernel refuses.
    - First convolutions, which take the picture or an input of the graph: all of the picture passes through them.
    - Last convolutions of a network that another one follows in the same graph: the UNet's, whose result is the latent.

    Last convolutions of a graph give floats, so they stay anyway (`Layer.whole`). Norms are never quantized."""
    shuffled = {node.input[0] for node in model.graph.node if node.op_type == "DepthToSpace"}
    kept = {}
    direct = {value.name for value in model.graph.input}  # no convolution of features stands before these
    for node in model.graph.node:
        if node.op_type == "MatMul":
            kept[node.name] = PRODUCT
        if direct.isdisjoint(node.input):
            continue
        if node.op_type == "Conv":
            kept[node.name] = FIRST
            # a shuffled one enlarges the picture, and its result is a picture too
            if node.output[0] not in shuffled:
                continue
        direct.update(node.output)
    ends = [node.input[0] for node in model.graph.node if kept.get(node.name) == FIRST]
    last = [node.name for node in _before(model.graph, ends) if node.op_type == "Conv"]
    return kept | {name: LAST for name in last if name not in kept}


def _before(graph: onnx.GraphProto, ends: Iterable[str]) -> Iterator[onnx.NodeProto]:
    """The convolutions whose results reach the ends through sums, products, bounds and layout alone, and these nodes.

    ends: names of the values to trace back from."""
    makers = {output: node for node in graph.node for output in node.output}
    waiting = list(ends)
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.op_type not in ("Conv", *_LINEAR):
            continue
        yield node
        if node.op_type != "Conv":
            waiting += node.input


def passive(node: onnx.NodeProto) -> bool:
    """Whether a quantizer may pass through the node, which then needs none of its own."""
    return node.op_type in _PASSIVE


def quantized_alone(quantized: onnx.ModelProto, source: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy of NNCF's graph in which only the named layer has quantized inputs.

    quantized: NNCF's graph.
    source: the fp32 graph, whose inputs all other nodes get.
    name: of the layer.

    Nodes that only pass a quantized value on to the layer stay quantized too."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    makers = {output: node for node in model.graph.node for output in node.output}
    kept, waiting = set(), [name]
    nodes = {node.name: node for node in model.graph.node}
    while waiting:
        kept.add(waiting[0])
        takes = (makers.get(value) for value in nodes[waiting.pop(0)].input)
        waiting += [node.name for node in takes if node is not None and passive(node)]
    constants = {tensor.name: tensor for tensor in source.graph.initializer}
    added: dict[str, onnx.TensorProto] = {}
    for original in source.graph.node:
        if original.name in kept:
            continue
        inputs = []
        for value in original.input:
            if value in constants:  # NNCF may have corrected the bias that has this name
                added[value] = onnx.TensorProto.FromString(constants[value].SerializeToString())
                added[value].name = f"{value}/source"
            inputs.append(added[value].name if value in added else value)
        del nodes[original.name].input[:]
        nodes[original.name].input.extend(inputs)
    model.graph.initializer.extend(added.values())
    drop_unused(model.graph)
    return model
