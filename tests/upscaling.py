"""What the tests of the upscaler share: a stand-in model, altered bundles, exact comparison."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.backends.devices import onnx_runtime
from runtime.bundle.reader import Bundle

Pixels = Callable[..., np.ndarray]
placement_known = pytest.mark.skipif(
    tuple(map(int, onnx_runtime().__version__.split(".")[:2])) < (1, 24), reason="needs ONNX Runtime 1.24"
)


def altered(folder: Path, **size: int) -> Bundle:
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["size"] |= size
    path.write_text(json.dumps(data), encoding="utf-8")
    return Bundle.open(folder)


def difference(a: np.ndarray, b: np.ndarray) -> str:
    d = np.abs(a.astype(np.float64) - b)
    return f"max {d.max():.6g}, mean {d.mean():.6g}, {np.count_nonzero(d)} of {d.size} differ"


def assert_same(a: np.ndarray, b: np.ndarray) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.array_equal(a, b), difference(a, b)


class Smooth:
    """A stand-in model on the toy's contract: nearest enlargement plus a brightness that depends on the window it is shown."""

    device, precision, placement, largest = "cpu", "fp32", None, None

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.encoded = 0
        self.sizes: list[tuple[int, int]] = []

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        self.encoded += 1
        self.sizes.append(image.shape[2:])
        brightness = np.float32(self.error * (-1) ** self.encoded)
        n, _, h, w = image.shape
        return {"features": np.full((n, 4, h // 2, w // 2), brightness), "base": image}

    def generate(self, features: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        assert noise.shape == features["features"].shape
        large = features["base"].repeat(4, axis=2).repeat(4, axis=3)
        return large + features["features"][:, :1, :1, :1]


def resized(image: np.ndarray, height: int, width: int, resample: Image.Resampling) -> np.ndarray:
    """The whole picture at once, in floating point: (h, w, C) float32 -> (height, width, C), clipped."""
    planes = [
        np.array(Image.fromarray(plane).resize((width, height), resample))
        for plane in np.moveaxis(image, 2, 0).copy()
    ]
    return np.clip(np.stack(planes, axis=2), 0, 1)
