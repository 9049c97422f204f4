"""A bundle's Core ML packages on a Mac, through coremltools. A graph that is cut into chunks runs chunk after chunk.

A package takes one tile size or a few. A smaller window is filled up with its last row and column to the smallest of them that holds
it, and the result is cut to its size. The filling changes the result up to `context` pixels inside the window. Between tiles of a
picture, these pixels are context and are cut away. At the right and lower edge of a picture, the filling replaces the zeros that a
convolution would otherwise see there.
"""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..bundle.packages import Package
from ..bundle.reader import Bundle
from ..checks import setting
from ..errors import DeviceError
from ..image.bands import Floats
from ..text import first_line
from . import coreml_cache as compiled
from .devices import (
    CORE_ML_REMEDY,
    Features,
    check_precision,
    core_ml_packages,
    device_spec,
    shapes_of,
    whole_package,
)

# The 8-bit level of full intensity.
_PEAK: Final = np.float32(255)
# coremltools' class of a processor -> its name in a placement.
_PLACES: Final = {
    "MLNeuralEngineComputeDevice": "ane",
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


class CoreMLBackend:
    """A variant of a bundle's Core ML packages, compiled from verified bytes.

    bundle: with the packages.
    device: its name, not "auto".
    precision: name of the variant.
    threads: checked, otherwise unused: Core ML chooses their number itself.

    Features are whole tiles, in the package's own number format. The height and width of a window follow from its noise.
    """

    def __init__(self, bundle: Bundle, device: str, precision: str, threads: int | None = None) -> None:
        if threads is not None:
            setting("threads", threads, 1)
        spec, manifest = device_spec(device), bundle.manifest
        pair = core_ml_packages(bundle, device, precision)
        if spec.units is None or pair is None:
            check_precision(bundle, precision, tuple(manifest.coreml))
            raise DeviceError(
                f"device {device}: expected Core ML and the package coremltools, got none; {CORE_ML_REMEDY}"
            )
        self.device, self.precision = spec.name, precision
        tile = pair["encoder"]  # the generator's is the same
        self._tiles = sorted(tile.every_size, key=lambda size: (size[0] * size[1], size))
        self._name = tile.name
        self.largest = max(min(size) for size in self._tiles)
        self._cell = manifest.noise.downscale
        self._scale = manifest.scale
        self._image, self._noise = manifest.image.name, manifest.noise_input.name
        self._features = [tensor.name for tensor in manifest.encoder.outputs]
        self._feature_scale = manifest.encoder.outputs[0].scale
        self._inputs = [tensor.name for tensor in manifest.generator.inputs if tensor.name != self._noise]
        self._output = manifest.output.name
        self._pictures = {self._image, self._output} if tile.images else set()
        tools = core_ml()
        units = getattr(tools.ComputeUnit, spec.units)
        work = Path(tempfile.mkdtemp(prefix="gdposr-"))
        weakref.finalize(self, shutil.rmtree, work, ignore_errors=True)
        self._encoder, self._generator = (
            [_load(tools, units, bundle, package, self, work) for package in pair[role].packages]
            for role in ("encoder", "generator")
        )
        paths = (model.path for model in (*self._encoder, *self._generator))
        self.placement = _placement(tools, units, *paths)

    def encode(self, image: Floats) -> Features:
        window = image.shape[2:]
        fitting = (tile for tile in self._tiles if len(window) == 2 and _fits(window, tile))
        tile = next(fitting, None)
        if tile is None:
            sizes = " or ".join(f"{height}x{width}" for height, width in self._tiles)
            raise self._refused({self._image: image}, f"at most {sizes} LR pixels", "a smaller tile")
        filled = _filled(image, tile, "edge")
        runs = [self._run(self._encoder, {self._image: one[None]}, self._features) for one in filled]
        return {name: _stacked([run[name] for run in runs]) for name in self._features}

    def generate(self, features: Features, noise: Floats) -> Floats:
        feeds = {name: features[name] for name in self._inputs} | {self._noise: noise}
        encoded = features[self._features[0]].shape[2:]
        cells = tuple(round(side / self._feature_scale) // self._cell for side in encoded)  # of the tile
        height, width = noise.shape[2] * self._cell, noise.shape[3] * self._cell
        if not _fits(noise.shape[2:], cells) or len({len(v) for v in feeds.values()}) > 1:
            raise self._refused(
                feeds,
                f"as many samples of features as of noise, and at most {cells} cells of noise",
                "features of this backend",
            )
        # The noise beyond the window does not matter, just as the filling of the image there. So its mean, 0, is good enough.
        feeds[self._noise] = _filled(noise, cells, "constant")
        runs = [
            self._run(
                self._generator, {name: value[k : k + 1] for name, value in feeds.items()}, [self._output]
            )
            for k in range(len(noise))
        ]
        output = _stacked([run[self._output] for run in runs]).astype(np.float32, copy=False)
        return output[:, :, : height * self._scale, : width * self._scale]

    def _run(self, models: list[_Model], feeds: Features, outputs: list[str]) -> dict[str, NDArray[Any]]:
        """Run the packages of a graph on one tile. Arrays in, arrays out. Pictures are in [0, 1]."""
        values: dict[str, Any] = dict(feeds)
        for index, model in enumerate(models):
            # Values that no later chunk takes are released: the skips of a UNet are large.
            later = {name for other in models[index + 1 :] for name in other.inputs}
            found = self._predict(model, values, model.outputs or outputs)
            values = {name: value for name, value in (values | found).items() if name in later.union(outputs)}
        return values

    def _predict(self, model: _Model, values: Features, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        feeds = {name: values[name] for name in model.inputs or values}
        given = {
            name: _picture(value) if name in self._pictures else np.ascontiguousarray(value)
            for name, value in feeds.items()
        }
        try:
            found = model.predict(given)
            return {
                name: _planes(found[name]) if name in self._pictures else np.asarray(found[name])
                for name in outputs
            }
        except Exception as error:  # coremltools and the system raise many kinds of errors
            raise DeviceError(
                f"{self.device} ({self.precision}) failed on inputs {shapes_of(feeds)}: {first_line(error)}; "
                "try another precision or the device cpu"
            ) from error

    def _refused(self, feeds: Features, expected: str, remedy: str) -> DeviceError:
        return DeviceError(
            f"{self.device} ({self.precision}): expected {expected} in one call, as {self._name} takes, got {shapes_of(feeds)}; "
            f"use {remedy}, or the device cpu"
        )


class _Model:
    """A loaded model with its path and, for a chunk, the names of its inputs and outputs. It runs one call at a time."""

    def __init__(self, model: Any, path: Path, package: Package) -> None:
        self._model, self.path, self._turn = model, path, threading.Lock()
        self.inputs, self.outputs = package.inputs, package.outputs

    def predict(self, feeds: dict[str, Any]) -> dict[str, Any]:
        with self._turn:
            found: dict[str, Any] = self._model.predict(feeds)
        return found


def core_ml() -> Any:
    """The module coremltools, without its warnings about versions of other packages. The runtime imports it nowhere else."""
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import coremltools
    except (ImportError, AttributeError, OSError) as error:
        raise DeviceError(f"expected the package coremltools, got: {error}; {CORE_ML_REMEDY}") from error
    finally:
        log.setLevel(level)
    return whole_package(coremltools, ("models", "ComputeUnit"), CORE_ML_REMEDY)


def _load(
    tools: Any, units: Any, bundle: Bundle, package: Package, backend: CoreMLBackend, work: Path
) -> _Model:
    """A package, loaded from the cache of compiled models, or compiled from verified bytes and put there.

    tools: the module coremltools.
    units: its compute units.
    work: a private folder that stays as long as the backend, for a compiled model if the cache cannot be written.
    """
    files = [f"{file.file.partition('/')[2]} {file.sha256}" for file in package.files]
    system = f"{platform.mac_ver()[0]} {platform.release()} {platform.machine()}"
    key = compiled.key_of(*sorted(files), str(tools.__version__), system)
    kept = compiled.find(key)
    if kept is not None:
        try:
            return _Model(tools.models.CompiledMLModel(str(kept), units), kept, package)
        except (
            Exception
        ):  # coremltools and the system raise many kinds of errors; the model is compiled again
            compiled.drop(key)
    contents = {file.file: bundle.read(file) for file in package.files}
    source, made = work / package.name, work / f"{package.name}.mlmodelc"
    try:
        for name, content in contents.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes(content)
        tools.models.utils.compile_model(str(source), str(made))
        place = compiled.store(key, made)
        if place is not None:
            shutil.rmtree(made, ignore_errors=True)
        place = place or made
        return _Model(tools.models.CompiledMLModel(str(place), units), place, package)
    except Exception as error:  # coremltools and the system's compiler raise many kinds of errors
        compiled.drop(key)
        raise DeviceError(
            f"{bundle.path}: {package.name} cannot be loaded on {backend.device}: {first_line(error)}; "
            f"it is for {package.target} and the macOS of the same year or later: update macOS, or use another device"
        ) from error
    finally:
        shutil.rmtree(source, ignore_errors=True)


def _placement(tools: Any, units: Any, *paths: Path) -> dict[str, int] | None:
    """How many operations of all models Core ML plans for each processor. None: macOS before 14.4 does not tell."""
    counts: Counter[str] = Counter()
    try:
        for path in paths:
            plan = tools.models.compute_plan.MLComputePlan.load_from_path(str(path), units)
            for function in plan.model_structure.program.functions.values():
                for operation in _operations(function.block):
                    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                    if usage is not None:  # None for a constant
                        counts[_place(usage.preferred_compute_device)] += 1
    except Exception:  # coremltools and the system raise many kinds of errors; a plan is for information only
        return None
    return dict(counts) or None


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


def _place(device: Any) -> str:
    name = type(device).__name__
    return _PLACES.get(name, name)


def _fits(window: Sequence[int], tile: Sequence[int]) -> bool:
    return all(side <= most for side, most in zip(window, tile, strict=True))


def _filled(array: Floats, size: tuple[int, ...], mode: Any) -> Floats:
    """(n, c, h, w) -> (n, c, *size), filled up below and to the right."""
    below, right = size[0] - array.shape[2], size[1] - array.shape[3]
    if below == right == 0:
        return array
    return np.pad(array, ((0, 0), (0, 0), (0, below), (0, right)), mode=mode)


def _stacked(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _picture(array: Floats) -> Image.Image:
    """(1, 3, h, w) in [0, 1] as the 8-bit picture that a package of pixel buffers takes."""
    levels = np.rint(np.clip(array[0], 0.0, 1.0) * _PEAK).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))


def _planes(picture: Any) -> Floats:
    """A picture, with alpha or without, as (1, 3, h, w) in [0, 1]."""
    pixels = np.asarray(picture, np.float32)[..., :3]
    return pixels.transpose(2, 0, 1)[None] / _PEAK
