"""ONNX conversion: encoder and generator through the dynamo exporter, with dynamic batch, height and width.

Opset 18. Up to `INSIDE_BYTES`, weights are stored inside the graph's file. Those of a larger graph, such as Stable
Diffusion's, go to a file beside it, because a protobuf holds at most 2 GB. Each graph is checked with onnx.checker
and strict shape inference."""

from __future__ import annotations

import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn
from torch.export import Dim

from export.onnx.graph.naming import name_by_modules
from export.source import BASE, FEATURES, IMAGE, NOISE, SR, Source
from runtime.bundle.manifest import GraphSpec, TensorSpec

__all__ = ["BASE", "FEATURES", "IMAGE", "NOISE", "SR", "OnnxPair", "data_file", "export_fp32", "save_checked"]

# Version of the ONNX operators that graphs are written in.
OPSET = 18
# Largest ONNX file: protobuf counts its bytes in 31 bits.
MAX_BYTES = 2**31 - 1
# Limit for weights inside the graph's file. Larger weights go to a separate file.
INSIDE_BYTES = 1_500_000_000
# Height and width of the tensors that the exporter traces, in units of the size rule.
EXAMPLE_CELLS = (8, 12)


def export_fp32(
    source: Source, folder: Path, metadata: Mapping[str, str], inside_bytes: int = INSIDE_BYTES
) -> dict[str, Path]:
    """Write encoder.fp32.onnx and generator.fp32.onnx; returns the paths by role.

    source: the model.
    folder: for the files.
    metadata: to store in the graphs.
    inside_bytes: a graph with more bytes of weights also gets ROLE.fp32.onnx.data."""
    return {
        role: _export(source, role, folder / f"{role}.fp32.onnx", metadata, inside_bytes)
        for role in source.modules
    }


def data_file(graph: Path) -> Path:
    """The file with the weights of a large graph."""
    return graph.with_name(graph.name + ".data")


def _export(source: Source, role: str, path: Path, metadata: Mapping[str, str], inside_bytes: int) -> Path:
    """Write one graph; returns its path.

    source: the model.
    role: encoder or generator.
    path: of the file to write.
    metadata: to store in the graph.
    inside_bytes: more bytes of weights than this go to a file beside it."""
    module, spec = source.modules[role], source.specs[role]
    with _quiet():
        program: Any = torch.onnx.export(
            module,
            tuple(_example(tensor, source.size.multiple_of) for tensor in spec.inputs),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=_dynamic_shapes(module, spec, source.size.multiple_of),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    data_file(path).unlink(missing_ok=True)
    if weight_bytes(module) <= inside_bytes:
        save_checked(_cleaned(program.model_proto, metadata, role), path)
        return path
    program.save(str(path), external_data=True)  # tensor by tensor, never as a second whole copy
    graph = onnx.load(path, load_external_data=False)
    onnx.save(_cleaned(graph, metadata, role), path)
    check_file(path)
    return path


def _example(tensor: TensorSpec, multiple: int) -> torch.Tensor:
    rows, columns = (round(cells * multiple * tensor.scale) for cells in EXAMPLE_CELLS)
    return torch.zeros(2, tensor.channels, rows, columns)


def _dynamic_shapes(module: nn.Module, spec: GraphSpec, multiple: int) -> tuple[Any, ...]:
    """Symbols for batch, rows and columns. Rows and columns are in units of the size rule and shared by all inputs."""
    batch, rows, columns = Dim("batch"), Dim("rows"), Dim("columns")
    shapes = []
    for tensor in spec.inputs:
        cell = round(multiple * tensor.scale)
        sides = (rows, columns) if cell == 1 else (cell * rows, cell * columns)
        shapes.append({0: batch, 2: sides[0], 3: sides[1]})
    # To torch.export, all that `*given` takes is one argument: a tuple.
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    return (tuple(shapes),) if inspect.Parameter.VAR_POSITIONAL in kinds else tuple(shapes)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers in float32."""
    return 4 * sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress log and its deprecation warnings."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _cleaned(model: onnx.ModelProto, metadata: Mapping[str, str], root: str) -> onnx.ModelProto:
    """Name nodes by their modules below root, remove the exporter's traces (stack frames, local paths) and set our metadata."""
    name_by_modules(model.graph, root)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name, model.doc_string = "gdposr", ""
    return model


def save_checked(model: onnx.ModelProto, path: Path) -> None:
    """Check the graph, infer its shapes strictly and write it as one file."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    data = model.SerializeToString(deterministic=True)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path.name} would take {len(data)} bytes; one ONNX file holds at most {MAX_BYTES}")
    path.write_bytes(data)


def check_file(path: Path) -> None:
    """The checks of `save_checked` for a graph with a separate file of weights."""
    onnx.checker.check_model(str(path), full_check=True)
    with tempfile.TemporaryDirectory() as folder:
        inferred = Path(folder) / path.name
        onnx.shape_inference.infer_shapes_path(str(path), str(inferred), strict_mode=True)


class OnnxPair:
    """Both graphs in ONNX Runtime on the CPU, for parity checks and calibration. Like a `Source`, but on arrays."""

    def __init__(self, specs: Mapping[str, GraphSpec], graphs: Mapping[str, Path]) -> None:
        self.specs = specs
        self.sessions = {
            role: ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for role, path in graphs.items()
        }

    def __call__(self, image: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """image (n, 3, h, w), noise (n, c, h', w') float32 -> (n, 3, scale h, scale w) float32."""
        name = self.specs["generator"].inputs[-1].name
        (sr,) = self.sessions["generator"].run(None, self.encode(image) | {name: noise})
        return np.asarray(sr)

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The features of an image by name."""
        spec = self.specs["encoder"]
        names = [tensor.name for tensor in spec.outputs]
        values = self.sessions["encoder"].run(names, {spec.inputs[0].name: image})
        return dict(zip(names, values, strict=True))
