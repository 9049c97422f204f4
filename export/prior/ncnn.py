"""A network in ncnn's two files: layers in the .param file, numbers in the .bin file beside it. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# ncnn's tag before weights that are stored as float16; 0 means float32.
FLOAT16_TAG = 0x01306B47
# ncnn's number of resizing by nearest neighbours.
NEAREST = 1


@dataclass(frozen=True)
class Layer:
    """A line of a .param file."""

    kind: str
    """ncnn's layer type, such as Convolution."""
    name: str
    """Unique name of the layer."""
    inputs: tuple[str, ...]
    """Names of the blobs it reads."""
    outputs: tuple[str, ...]
    """Names of the blobs it writes."""
    options: dict[int, str] = field(default_factory=dict)
    """Parameters by ncnn's number. An array, which ncnn writes under -23300 - k, is kept under k."""

    def integer(self, key: int, default: int = 0) -> int:
        return int(self.options.get(key, default))

    def numbers(self, key: int) -> list[float]:
        """An array, which ncnn writes as its length followed by its values."""
        return [float(x) for x in self.options[key].split(",")[1:]]


def weights_of(param: Path) -> Path:
    """The .bin file beside a .param file. Raises FileNotFoundError if one of both is missing."""
    weights = param.with_suffix(".bin")
    if not param.is_file() or not weights.is_file():
        raise FileNotFoundError(
            f"{param}: expected an ncnn .param file with {weights.name} beside it: check the path"
        )
    return weights


def read_layers(param: Path) -> Iterator[Layer]:
    """The layers of a .param file in order. Raises ValueError if it is not such a file."""
    lines = param.read_text().splitlines()
    if not lines or lines[0].strip() != "7767517":
        raise ValueError(f"{param}: expected an ncnn .param file, its first line is not 7767517")
    for line in filter(None, map(str.split, lines[2:])):
        if len(line) < 4:
            raise ValueError(
                f"{param}: expected type, name and two counts for a layer, got {' '.join(line)!r}"
            )
        inputs, outputs = int(line[2]), int(line[3])
        blobs, rest = line[4 : 4 + inputs + outputs], line[4 + inputs + outputs :]
        options = {}
        for word in rest:
            key, _, value = word.partition("=")
            number = int(key)
            options[-23300 - number if number < 0 else number] = value
        yield Layer(line[0], line[1], tuple(blobs[:inputs]), tuple(blobs[inputs:]), options)


class Weights:
    """Reads the numbers of a .bin file in order, layer by layer. Raises ValueError if they are fewer, or of another kind."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.offset = path, path.read_bytes(), 0

    def convolution(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """Weight (out, in, k, k) and bias (out,) of a convolution, both float32."""
        out, kernel = layer.integer(0), layer.integer(1)
        weight = self.half_or_float(layer.integer(6)).reshape(out, -1, kernel, kernel)
        return weight, self.float(out)

    def half_or_float(self, count: int) -> np.ndarray:
        """float32 (count,), stored after a tag as float16 or float32."""
        tag = int.from_bytes(self.data[self.offset : self.offset + 4], "little")
        if tag not in (0, FLOAT16_TAG):
            raise ValueError(
                f"{self.path}: weights are neither float16 nor float32: export them again without quantization"
            )
        self.offset += 4
        return self._take("<f2" if tag else "<f4", count).astype(np.float32)

    def float(self, count: int) -> np.ndarray:
        return self._take("<f4", count)

    def finish(self) -> None:
        if self.offset != len(self.data):
            raise ValueError(
                f"{self.path} belongs to another .param file: {len(self.data)} bytes, read {self.offset}"
            )

    def _take(self, kind: str, count: int) -> np.ndarray:
        size = np.dtype(kind).itemsize * count
        if self.offset + size > len(self.data):
            raise ValueError(f"{self.path} belongs to another .param file: it ends at {len(self.data)} bytes")
        values = np.frombuffer(self.data, kind, count, self.offset)
        self.offset += (size + 3) // 4 * 4
        return values
