"""Writes tests/data/toy.gdposr: a bundle with the student's inputs and outputs, but a few kilobytes small.

Run from the repository root: `python tests/make_toy_bundle.py`. Needs onnx and onnxruntime, no torch. The
weights are noise: the result is the enlarged input plus a texture that depends on the noise, which is all
that the runtime's tests look at.

    encoder     image -> space to depth 2 -> conv 3x3 -> LeakyReLU -> features (4, h/2, w/2);  base (3, h, w) is the image
    generator   features + noise -> conv 3x3 -> LeakyReLU -> depth to space 2 -> conv 1x1 -> depth to space 4
                + base enlarged 4 times bilinearly, clipped to [0, 1]

A result depends on LR pixels at most 5 away: two 3x3 convolutions on cells of 2x2 pixels, at worst 1 pixel + 2 cells.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from runtime.backends.onnx import OnnxBackend
from runtime.bundle import entries as files
from runtime.bundle.entries import MANIFEST_NAME, GraphFile, Probe
from runtime.bundle.manifest import (
    FORMAT_VERSION,
    GraphSpec,
    Manifest,
    NoiseSpec,
    SizeRule,
    TensorSpec,
)
from runtime.bundle.reader import Bundle
from runtime.noise import noise_field
from runtime.upscale.probe import probe_output

TOY_BUNDLE = Path(__file__).parent / "data" / "toy.gdposr"
OPSET, IR_VERSION = 17, 8
FEATURES, NOISE, SCALE = 4, 4, 4
CONTEXT = 6
ACTIVATION_SCALE = 1 / 24  # of 8-bit activations around 128: about -5.3 to 5.3
PROBE_SEED = 20

IMAGE = TensorSpec("image", 3, 1, (0.0, 1.0))
FEATURE = TensorSpec("features", FEATURES, 0.5)
BASE = TensorSpec("base", 3, 1, (0.0, 1.0))
NOISE_INPUT = TensorSpec("noise", NOISE, 0.5)
OUTPUT = TensorSpec("sr", 3, SCALE, (0.0, 1.0))
SIZE = SizeRule(multiple_of=2, minimum=8, tile=32, context=CONTEXT)


class Graph:
    """Collects nodes and constants. With quantized, convolutions get 8-bit weights and inputs (QDQ form)."""

    def __init__(self, quantized: bool) -> None:
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, source: str, name: str, weight: np.ndarray) -> str:
        """Convolution that keeps the size."""
        if self.quantized:
            scale, zero = (
                self.constant(f"{name}.s", np.float32(ACTIVATION_SCALE)),
                self.constant(f"{name}.z", np.uint8(128)),
            )
            source = self.add("QuantizeLinear", [source, scale, zero], f"{name}.q")
            source = self.add("DequantizeLinear", [source, scale, zero], f"{name}.d")
            step = np.float32(
                np.abs(weight).max() / 63
            )  # 7 bits: wider ones saturate on processors without VNNI
            eight_bit = self.constant(f"{name}.w8", np.rint(weight / step).astype(np.int8))
            scale, zero = self.constant(f"{name}.ws", step), self.constant(f"{name}.wz", np.int8(0))
            weights = self.add("DequantizeLinear", [eight_bit, scale, zero], f"{name}.w")
        else:
            weights = self.constant(f"{name}.w", weight)
        margin = weight.shape[-1] // 2
        return self.add("Conv", [source, weights], name, pads=[margin] * 4)

    def serialized(self, name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> bytes:
        graph = helper.make_graph(self.nodes, name, _values(inputs), _values(outputs), self.constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="gdposr toy",
        )
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)


def _values(specs: list[TensorSpec]) -> list[onnx.ValueInfoProto]:
    shapes = {s.name: ["n", s.channels, f"{s.name}_height", f"{s.name}_width"] for s in specs}
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]


def weight(seed: int, out: int, into: int, size: int, gain: float) -> np.ndarray:
    """(out, into, size, size) float32 of deviation gain / sqrt(fan in), the same on every machine."""
    values = noise_field(seed, 0, into, size * size, channels=out)
    return (values * np.float32(gain / np.sqrt(into * size * size))).reshape(out, into, size, size)


def encoder(quantized: bool) -> bytes:
    graph = Graph(quantized)
    cells = graph.add("SpaceToDepth", ["image"], "cells", blocksize=2)
    graph.add(
        "LeakyRelu", [graph.conv(cells, "conv1", weight(1, FEATURES, 12, 3, 2.0))], "features", alpha=0.1
    )
    graph.add("Identity", ["image"], "base")
    return graph.serialized("toy_encoder", [IMAGE], [FEATURE, BASE])


def generator(quantized: bool) -> bytes:
    graph = Graph(quantized)
    both = graph.add("Concat", ["features", "noise"], "both", axis=1)
    hidden = graph.conv(both, "conv2", weight(2, 16, FEATURES + NOISE, 3, 1.0))
    hidden = graph.add("LeakyRelu", [hidden], "hidden", alpha=0.1)
    hidden = graph.add("DepthToSpace", [hidden], "pixels", blocksize=2, mode="CRD")
    detail = graph.conv(hidden, "conv3", weight(3, 3 * SCALE * SCALE, 4, 1, 0.12))
    detail = graph.add("DepthToSpace", [detail], "detail", blocksize=SCALE, mode="CRD")
    sizes = graph.constant("scales", np.array([1, 1, SCALE, SCALE], np.float32))
    large = graph.add(
        "Resize", ["base", "", sizes], "large", mode="linear", coordinate_transformation_mode="half_pixel"
    )
    limits = [graph.constant("low", np.float32(0)), graph.constant("high", np.float32(1))]
    graph.add("Clip", [graph.add("Add", [large, detail], "sum"), *limits], "sr")
    return graph.serialized("toy_generator", [FEATURE, BASE, NOISE_INPUT], [OUTPUT])


def photo(height: int, width: int) -> np.ndarray:
    """A picture of ramps, a disc and stripes: (height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    disc = (np.hypot(y - 0.4, x - 0.5) < 0.3).astype(float)
    stripes = 0.5 + 0.5 * np.sin(40 * (x + 0.3 * y))
    return np.rint(np.stack([x * 0.8 + 0.1, 0.2 + 0.6 * disc, 0.3 * y + 0.5 * stripes], -1) * 255).astype(
        np.uint8
    )


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(folder: Path) -> Manifest:
    """Write the bundle into folder, replacing it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def put(name: str, content: bytes, kind: type[GraphFile] = GraphFile) -> Any:
        (folder / name).write_bytes(content)
        return kind(name, len(content), hashlib.sha256(content).hexdigest())

    graphs = {
        precision: {
            "encoder": put(f"encoder.{precision}.onnx", encoder(precision == "int8"), files.Graph),
            "generator": put(f"generator.{precision}.onnx", generator(precision == "int8"), files.Graph),
        }
        for precision in ("fp32", "int8")
    }
    picture = photo(24, 20)
    probe_input = put("probe.png", png(picture))

    def manifest(probe_output: GraphFile) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION, name="toy", scale=SCALE,
            encoder=GraphSpec((IMAGE,), (FEATURE, BASE)),
            generator=GraphSpec((FEATURE, BASE, NOISE_INPUT), (OUTPUT,)),
            graphs=graphs, size=SIZE, noise=NoiseSpec(version=1, channels=NOISE, downscale=2),
            t_n=None, t_d=None, color_fix="none", default_precision={"cpu": "int8"},
            probe=Probe(probe_input, probe_output, PROBE_SEED, {"fp32": 60.0, "int8": 35.0}),
            provenance={"training": "none: the weights are noise"}, accuracy={},
        )  # fmt: skip

    def write_manifest(values: Manifest) -> None:
        text = json.dumps(values.to_dict(), indent=1, sort_keys=True)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8", newline="\n")

    write_manifest(manifest(probe_input))  # enough to run the graphs, which make the probe's expected output
    bundle = Bundle.open(folder)
    expected = probe_output(bundle, OnnxBackend(bundle, "cpu", "fp32", threads=1), picture, PROBE_SEED)
    final = manifest(put("probe_expected.png", png(expected)))
    write_manifest(final)
    return final


if __name__ == "__main__":
    write(TOY_BUNDLE)
    for path in sorted(TOY_BUNDLE.iterdir()):
        print(f"{path.stat().st_size:8d} {path.name}")
