"""Weights stored in 8 or 4 bits, arithmetic in float32: graphs of a quarter or a sixth of the size, for models up to
Stable Diffusion's.

In a 4-bit pair, small layers keep 8 bits, and others too if measurements require it. On the pocket one-step model:
all layers in 4 bits 33.2 dB and 7.42 MB; small ones in 8 bits 44.3 dB and 7.58 MB; with one more, the UNet's last
convolution, 47.9 dB for 6 kB; all in 8 bits 51.6 dB and 12.5 MB. At Stable Diffusion 2.1's size, with random weights:
8 bits 49.8 dB and 0.90 GB; 4 bits 28.9 dB and 0.54 GB with small layers in 8 bits, 46.4 dB and 0.56 GB with 31
measured ones more. `export.onnx.graph.packed` describes how a weight is stored.

ONNX Runtime restores each weight in every call, just before its use. On a CPU such a generator needed 37 MB instead
of the float32 graph's 121 MB, and 1.4 to 1.6 times its time. With `session.disable_quant_qdq` set to 1 it restores
weights once, when it loads the graph; time and memory are then the same as for float32.

A plain DequantizeLinear precedes each weight. NNCF 3.4 (`nncf.compress_weights`) is not suitable: in a folded model
every weight is a convolution's. For those it writes scales with three axes, which pass the checker but fail in ONNX
Runtime's first run, and it uses 8 bits when asked for 4.

Weights of MatMul stay float32: ONNX Runtime 1.32 turns such a pair of nodes into MatMulNBits, which also rounds the
activations to 8 bits. Folded models have no MatMul with weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from calibration.samples import Sample
from calibration.sensitivity import LayerNoise, measure, noisiest, plan
from export.onnx.graph.convert import INSIDE_BYTES, OnnxPair, check_file, data_file, save_checked
from export.onnx.graph.packed import BLOCK, Packed, quantize4, quantize8
from export.source import Source, psnr

Say = Callable[[str], None]

# Bits of a weight by precision.
BITS = {"w8": 8, "w4": 4}
# First opset with 4-bit tensors and blocks.
OPSET_4 = 21
# First version of the file format with 4-bit tensors.
IR_VERSION = 10
# Weights with fewer elements stay float32.
MIN_ELEMENTS = 1024
# Layers with at most so many input or output channels stay float32, since their errors do not average out.
PICTURE_CHANNELS = 3
# Layers with a smaller share of a pair's weights keep 8 bits, since 4 would save almost nothing.
SMALL_SHARE = 1e-3
# Axes of a weight with input and output channels, by operation.
_AXES = {"Conv": (1, 0), "ConvTranspose": (0, 1), "Gemm": (0, 1)}


@dataclass(frozen=True)
class Weight:
    """A weight of a graph that may be compressed."""

    name: str
    """Name in the graph."""
    shape: tuple[int, ...]
    """Shape in the graph."""
    inputs: int
    """Axis of the input channels."""
    outputs: int
    """Axis of the output channels."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def narrowest(self) -> int:
        """Fewest bits that its shape allows. 4-bit blocks need enough channels."""
        return 4 if self.shape[self.inputs] >= BLOCK else 8

    def quantize(self, value: np.ndarray, bits: int) -> Packed:
        """Quantize to 8 bits per output channel, or to 4 bits per block of input channels."""
        return quantize8(value, self.outputs) if bits == 8 else quantize4(value, self.inputs)


@dataclass(frozen=True)
class WeightOnly:
    """A compressed pair."""

    paths: dict[str, Path]
    """Graphs by role."""
    wide: tuple[str, ...]
    """Layers (ROLE/WEIGHT) of a 4-bit pair that keep 8 bits."""
    rows: tuple[LayerNoise, ...]
    """Measured noise that `wide` was chosen by; empty if no measurement was needed."""
    psnr: float
    """Worst PSNR against torch over the photos, in dB."""

    def to_dict(self) -> dict[str, Any]:
        return {"wide": list(self.wide), "psnr": round(self.psnr, 1)}


def compress_pair(
    source: Source,
    graphs: Mapping[str, Path],
    folder: Path,
    precision: str,
    photos: Sequence[Sample],
    target_db: float,
    say: Say,
) -> WeightOnly:
    """Write ROLE.w8.onnx or ROLE.w4.onnx for both fp32 graphs.

    source: the model in torch.
    graphs: fp32 graphs by role.
    folder: for the files.
    precision: w8 or w4.
    photos: samples to measure on.
    target_db: PSNR against torch that w4 must reach. Layers get 8 bits until it does.
    say: receives progress messages.

    Raises PlanError if even 8 bits everywhere miss target_db."""
    bits = BITS[precision]
    layers = {
        f"{role}/{name}": weight
        for role, path in graphs.items()
        for name, weight in find_weights(onnx.load(path, load_external_data=False)).items()
    }
    expected = [source(*_tensors(photo)).numpy() for photo in photos]

    def write(wide: Collection[str]) -> WeightOnly:
        paths = {}
        for role, path in graphs.items():
            own = {name.removeprefix(f"{role}/") for name in wide if name.startswith(f"{role}/")}
            paths[role] = compress_onnx(path, folder / f"{role}.{precision}.onnx", bits, wide=own)
        pair = OnnxPair(source.specs, paths)
        came = [pair(photo.lr[None], photo.noise[None]) for photo in photos]
        return WeightOnly(paths, tuple(sorted(wide)), (), _worst(came, expected))

    if bits == 8:
        return write(())
    few = SMALL_SHARE * sum(weight.size for weight in layers.values())
    own = _parameters(source)
    measurable = {name: weight for name, weight in layers.items() if name in own}
    free = [name for name, weight in measurable.items() if weight.size >= few and weight.narrowest == 4]
    fixed = layers.keys() - set(free)
    made = write(fixed)
    if made.psnr >= target_db:
        return made
    say(f"  {made.psnr:.1f} dB, expected {target_db:g} dB: measuring which layers need 8 bits")
    reference_db, rows = layer_noise(source, measurable, free, photos, say)
    chosen = plan(rows, target_db, reference_db=reference_db)
    narrow = [row for row in rows if row.bits == 4]
    while True:
        made = write(fixed | {name for name, width in chosen.items() if width == 8})
        worst = noisiest(narrow, chosen)
        if made.psnr >= target_db or worst is None:
            return replace(made, rows=tuple(rows))
        chosen[worst] = 8  # together, the layers' noise was more than the predicted sum


def layer_noise(
    source: Source, layers: Mapping[str, Weight], free: Sequence[str], photos: Sequence[Sample], say: Say
) -> tuple[float, list[LayerNoise]]:
    """PSNR in dB of the model with all layers in 8 bits, and of the model with one more layer in 4 bits, for each free layer.

    source: the model.
    layers: weights by ROLE/PARAMETER.
    free: names of the layers that may get 4 bits.
    photos: samples to measure on.
    say: receives progress messages.

    It runs in torch on a second copy of the model, where changing a weight needs no new session."""
    trial = replace(source, modules={role: copy.deepcopy(module) for role, module in source.modules.items()})
    whole, changed = _parameters(source), _parameters(trial)
    inputs = [_tensors(photo) for photo in photos]
    expected = [source(*pair).numpy() for pair in inputs]

    def put(layer: str, bits: int) -> None:
        packed = layers[layer].quantize(whole[layer].numpy(), bits)
        changed[layer].copy_(torch.from_numpy(packed.restore()))

    def score(features: Sequence[tuple[torch.Tensor, ...]]) -> float:
        came = [trial.generate(f, noise).numpy() for f, (_, noise) in zip(features, inputs, strict=True)]
        return _worst(came, expected)

    def encode() -> list[tuple[torch.Tensor, ...]]:
        return [trial.encode(image) for image, _ in inputs]

    for layer in layers:
        put(layer, 8)
    features = encode()  # valid as long as only the generator changes
    reference_db = score(features)

    def alone(layer: str, bits: int) -> float:
        if bits == 8:
            return reference_db
        put(layer, bits)
        value = score(encode() if layer.startswith("encoder/") else features)
        put(layer, 8)
        return value

    def progress(done: int, total: int) -> None:
        if done % 20 == 0 or done == total:
            say(f"  {done} of {total} layers")

    rows = measure(free, (4, 8), alone, lambda layer, bits: layers[layer].size * bits / 8, progress)
    return reference_db, rows


def compress_onnx(
    source: Path,
    target: Path,
    bits: int,
    *,
    wide: Collection[str] = (),
    inside_bytes: int = INSIDE_BYTES,
) -> Path:
    """Write a copy of a float32 graph with weights in 8 or 4 bits; returns target.

    source: the float32 graph.
    target: the file to write.
    bits: 8 or 4.
    wide: names of weights that keep 8 bits.
    inside_bytes: larger weights go to a separate file.

    Small weights, biases, norms and all other constants stay float32."""
    if bits not in BITS.values():
        raise ValueError(f"expected weights of 4 or 8 bits, got {bits}")
    model = onnx.load(source, load_external_data=False)
    weights = find_weights(model)
    unknown = sorted(set(wide) - set(weights))
    if unknown:
        raise ValueError(
            f"wide: expected weights that can be compressed, got {unknown[0]}; `find_weights` lists them"
        )
    widths = {name: 8 if name in wide else max(bits, weight.narrowest) for name, weight in weights.items()}
    if 4 in widths.values():
        model = onnx.version_converter.convert_version(model, OPSET_4)
        model.ir_version = max(model.ir_version, IR_VERSION)
    before: dict[str, list[onnx.NodeProto]] = {}  # by weight
    beside: list[onnx.TensorProto] = []
    # one at a time, so that a large graph is never fully in memory as float32
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor, base_dir=str(source.parent))
        name = tensor.name
        if name not in weights:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
            continue
        packed = weights[name].quantize(value, widths[name])
        stored, *others = packed.tensors(name)
        tensor.CopyFrom(stored)
        beside += others
        before[name] = packed.nodes(name)
    model.graph.initializer.extend(beside)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for name in node.input:
            nodes += before.pop(name, ())  # just before its first use, so that few are in memory at once
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _write(model, target, inside_bytes)
    return target


def find_weights(model: onnx.ModelProto) -> dict[str, Weight]:
    """The weights of convolutions and linear layers that may be compressed, by name, in order of first use."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    found: dict[str, Weight] = {}
    others: set[str] = set()  # weights also used in another way
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name not in shapes:
                continue
            shape = shapes[name]
            if index != 1 or node.op_type not in _AXES:
                others.add(name)
                continue
            inputs, outputs = _AXES[node.op_type]
            if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
                inputs, outputs = outputs, inputs
            weight = Weight(name, shape, inputs, outputs)
            if found.setdefault(name, weight) != weight:
                others.add(name)
    return {
        name: weight
        for name, weight in found.items()
        if name not in others
        and weight.size >= MIN_ELEMENTS
        and min(weight.shape[weight.inputs], weight.shape[weight.outputs]) > PICTURE_CHANNELS
    }


def _write(model: onnx.ModelProto, target: Path, inside_bytes: int) -> None:
    data_file(target).unlink(missing_ok=True)
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= inside_bytes:
        save_checked(model, target)
        return
    onnx.save(model, target, save_as_external_data=True, location=data_file(target).name, size_threshold=1024)
    check_file(target)


def _tensors(photo: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and noise of a sample, each as a batch of one."""
    return torch.from_numpy(photo.lr[None]), torch.from_numpy(photo.noise[None])


def _parameters(source: Source) -> dict[str, torch.Tensor]:
    """Parameters by ROLE/NAME, without gradient."""
    return {
        f"{role}/{name}": parameter.detach()
        for role, module in source.modules.items()
        for name, parameter in module.named_parameters()
    }


def _worst(came: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    return min(psnr(value, wanted) for value, wanted in zip(came, expected, strict=True))
