"""INT8 by ONNX Runtime's static quantization: 8-bit activations calibrated on photos, per-channel weights.

The weights use 7 of their 8 bits (`reduce_range`): without VNNI an x86 processor adds products in 16 bits, and full-range weights
saturate there. The bicubic base and its sum with the residual stay in floating point, so 8 bits limit the residual only, never the
picture.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from calibration.samples import Sample
from export.onnx import BASE, FEATURES, IMAGE, NOISE, save_checked


class _Feeds(CalibrationDataReader):
    """Hands out prepared inputs one by one."""

    def __init__(self, feeds: Sequence[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize_int8(graphs: dict[str, Path], folder: Path, samples: Sequence[Sample]) -> dict[str, Path]:
    """Quantize both fp32 graphs with these samples; writes encoder.int8.onnx and generator.int8.onnx. The generator is calibrated on
    the fp32 encoder's features."""
    if len(samples) < 4:
        raise ValueError(
            f"calibration needs at least 4 samples, got {len(samples)}; give a folder with more photos"
        )
    encoder = ort.InferenceSession(str(graphs["encoder"]), providers=["CPUExecutionProvider"])
    images = [{IMAGE: s.lr[None]} for s in samples]
    encoded = [encoder.run([FEATURES, BASE], feed) for feed in images]
    feeds = {
        "encoder": images,
        "generator": [
            {FEATURES: np.asarray(f), BASE: np.asarray(b), NOISE: s.noise[None]}
            for (f, b), s in zip(encoded, samples, strict=True)
        ],
    }
    return {role: _quantize(path, folder / f"{role}.int8.onnx", feeds[role]) for role, path in graphs.items()}


def float_nodes(model: onnx.ModelProto) -> list[str]:
    """Nodes that stay in floating point: the convolution that makes the base and the sum that adds the residual to it."""
    padded = {node.output[0] for node in model.graph.node if node.op_type == "Pad" and node.input[0] == IMAGE}
    return [
        node.name
        for node in model.graph.node
        if (node.op_type == "Conv" and node.input[0] in padded)
        or (node.op_type == "Add" and BASE in node.input)
    ]


def _quantize(source: Path, target: Path, feeds: Sequence[dict[str, np.ndarray]]) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        level = logging.getLogger().level
        quantize_static(
            prepared,
            target,
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "DepthToSpace", "LeakyRelu"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=float_nodes(onnx.load(source)),
            calibrate_method=CalibrationMethod.MinMax,
        )
        logging.getLogger().setLevel(level)
    save_checked(onnx.load(target), target)
    return target
