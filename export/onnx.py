"""ONNX conversion: encoder and generator through the dynamo exporter with dynamic batch, height and width.

Opset 18, one file per graph, weights inside (a student is far below the 2 GB limit of a protobuf). fp16 keeps float32 inputs and
outputs. Each conversion is checked with onnx.checker and strict shape inference.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import nn
from torch.export import Dim

from export.student import Student

OPSET = 18
IMAGE, FEATURES, BASE, NOISE, SR = "image", "features", "base", "noise", "sr"
MAX_BYTES = 2**31 - 1


def export_fp32(student: Student, folder: Path, metadata: Mapping[str, str]) -> dict[str, Path]:
    """Write encoder.fp32.onnx and generator.fp32.onnx; returns their paths by role."""
    config = student.config
    batch, rows, columns = Dim("batch"), Dim("rows"), Dim("columns")  # rows and columns of noise cells
    fold = config.fold
    cells = {0: batch, 2: rows, 3: columns}
    pixels = {0: batch, 2: fold * rows, 3: fold * columns}
    image = torch.rand(2, 3, 8 * fold, 12 * fold)
    noise = torch.randn(2, config.noise_channels, 8, 12)
    student = student.cpu().float().eval()
    with torch.no_grad():
        features, base = student.encoder(image)
    return {
        "encoder": _export(
            student.encoder,
            (image,),
            [IMAGE],
            [FEATURES, BASE],
            (pixels,),
            folder / "encoder.fp32.onnx",
            metadata,
        ),
        "generator": _export(
            student.generator,
            (features, base, noise),
            [FEATURES, BASE, NOISE],
            [SR],
            (cells, pixels, cells),
            folder / "generator.fp32.onnx",
            metadata,
        ),
    }


def _export(
    module: nn.Module,
    arguments: tuple[torch.Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: tuple[dict[int, object], ...],
    path: Path,
    metadata: Mapping[str, str],
) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter itself
        exporter_log = logging.getLogger("torch.onnx")
        level = exporter_log.level
        exporter_log.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                arguments,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic_shapes,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        finally:
            exporter_log.setLevel(level)
    assert program is not None
    save_checked(_cleaned(program.model_proto, metadata), path)
    return path


def _cleaned(model: onnx.ModelProto, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Drop the exporter's traces (stack frames and paths of the exporting machine) and set our own metadata."""
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


def convert_fp16(source: Path, target: Path) -> Path:
    """Half-precision copy of a graph; inputs and outputs stay float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tiny weights flushed to the smallest half are reported one by one
        converted = OnnxModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
    converted.topological_sort()  # the converter appends its casts at the end
    save_checked(converted.model, target)
    return target


class OnnxStudent:
    """Both graphs in ONNX Runtime on the CPU, for parity checks: like `Student`, on arrays."""

    def __init__(self, graphs: Mapping[str, Path]) -> None:
        self.sessions = {
            role: ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            for role, path in graphs.items()
        }

    def __call__(self, image: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """image (n, 3, h, w), noise (n, c, h/2, w/2) float32 -> (n, 3, 4h, 4w) float32."""
        features, base = self.sessions["encoder"].run([FEATURES, BASE], {IMAGE: image})
        return np.asarray(
            self.sessions["generator"].run([SR], {FEATURES: features, BASE: base, NOISE: noise})[0]
        )
