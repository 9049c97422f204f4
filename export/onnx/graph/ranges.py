"""Running a graph on real inputs: its outputs, the range of every tensor, and an emulation of half precision.

ONNX Runtime on a CPU computes most float16 nodes in float32 and hides what a phone or GPU would do. The emulation is
the float32 graph with every value rounded to float16 that a converted graph would store so."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from export.source import feature_psnr

# Inputs by name.
Feed = Mapping[str, np.ndarray]


def watched(graph: onnx.ModelProto, names: Sequence[str]) -> Callable[[Feed], dict[str, np.ndarray]]:
    """A function from the graph's inputs to the values of any float tensors by name."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    del changed.graph.output[:]
    changed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = ort.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda feed: dict(zip(names, session.run(list(names), dict(feed)), strict=True))


def agreement(came: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Lowest `feature_psnr` over the outputs, in dB."""
    return min(feature_psnr(came[name], value) for name, value in expected.items())


def reduced(source: Path, graph: onnx.ModelProto, feeds: Sequence[Feed], operation: str) -> dict[str, float]:
    """ReduceMax or ReduceSum of the absolute values of every float tensor: the largest over the feeds, infinity if one is NaN.

    source, graph: the graph's file and content.
    feeds: inputs by name.
    operation: "ReduceMax" or "ReduceSum".

    Each tensor is reduced inside the graph, so the memory is that of a plain run. The sum is always computed too,
    since ONNX Runtime's ReduceMax ignores NaN."""
    watched = onnx.ModelProto()
    watched.CopyFrom(graph)
    floats = float_values(graph)
    names = [name for node in graph.graph.node for name in node.output if name in floats]
    del watched.graph.output[:]
    for index, name in enumerate(names):
        watched.graph.node.append(helper.make_node("Abs", [name], [f"watch_abs_{index}"]))
        for kind, output in ((operation, f"watch_{index}"), ("ReduceSum", f"watch_sum_{index}")):
            watched.graph.node.append(helper.make_node(kind, [f"watch_abs_{index}"], [output], keepdims=0))
            watched.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    largest = dict.fromkeys(names, 0.0)
    for feed in feeds:
        values = run(source, feed, watched)
        for index, name in enumerate(names):
            value, total = float(values[f"watch_{index}"]), float(values[f"watch_sum_{index}"])
            largest[name] = max(largest[name], np.inf if np.isnan(total) else value)
    return largest


def float_values(graph: onnx.ModelProto) -> set[str]:
    """Names of all float32 tensors except weights: inputs, outputs and intermediate values."""
    inferred = onnx.shape_inference.infer_shapes(graph).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def emulation(graph: onnx.ModelProto, islands: Collection[str]) -> onnx.ModelProto:
    """The float32 graph with every float value rounded to float16 that a node outside the islands reads or writes."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(graph)
    floats = float_values(graph)
    weights = {tensor.name for tensor in graph.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}

    def half(name: str) -> str:
        """The rounded form of a tensor, made once."""
        if name not in done:
            done[name] = f"{name}/rounded"
            nodes.append(helper.make_node("Cast", [name], [f"{name}/half"], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [done[name]], to=TensorProto.FLOAT))
        return done[name]

    for node in rounded.graph.node:
        outside = node.name not in islands
        if outside:
            for index, name in enumerate(node.input):
                if name in floats or name in weights:
                    node.input[index] = half(name)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if outside and name in floats:  # stored as float16 for all readers
                node.output[index] = f"{name}/whole"
                nodes.append(
                    helper.make_node("Cast", [f"{name}/whole"], [f"{name}/half"], to=TensorProto.FLOAT16)
                )
                nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))
                done[name] = name
    del rounded.graph.node[:]
    rounded.graph.node.extend(nodes)
    return rounded


def run(source: Path, feed: Feed, graph: onnx.ModelProto | None = None) -> dict[str, np.ndarray]:
    """Outputs by name of the graph at source, or of a modified graph that shares its weights."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    if graph is None:
        session = ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return _outputs(session, feed)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps the roundings
    # In the source's folder, since the graph may refer to the file with its weights.
    with tempfile.NamedTemporaryFile(dir=source.parent, suffix=".onnx") as file:
        onnx.save(graph, file.name)
        session = ort.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
    return _outputs(session, feed)


def _outputs(session: ort.InferenceSession, feed: Feed) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))
