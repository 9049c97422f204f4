"""Devices that run a package: the reference evaluator on any machine, or Core ML on a Mac.

A package becomes a `Runner`: arrays by name in, arrays by name out. Images are always in [0, 1], even if the package
takes pictures in [0, 255]."""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from export.mil.evaluate import Evaluator
from export.mil.package.feature import Feature
from export.mil.package.program import Program
from runtime.errors import DeviceError

REFERENCE: Final = "reference"
COMPUTE_UNITS: Final = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
DEVICES: Final = (REFERENCE, *COMPUTE_UNITS)

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Arrays], dict[str, np.ndarray]]
Open = Callable[[Program, str], Runner]
# Largest value of an image for Core ML. Runners take and give [0, 1].
_IMAGE_PEAK: Final = 255.0


def open_runner(program: Program, device: str = REFERENCE) -> Runner:
    """A package on a device. Raises DeviceError if the device is not available."""
    if device == REFERENCE:
        return unit_range(program, Evaluator(program))
    check_device(device)
    return unit_range(program, _open_coreml(program, device))


def check_device(device: str) -> None:
    """Raise DeviceError if the device cannot be used, before any file is read."""
    if device not in DEVICES:
        raise DeviceError(f"expected a device among {', '.join(DEVICES)}, got {device!r}")
    if device != REFERENCE and sys.platform != "darwin":
        raise DeviceError(
            f"expected macOS for the device {device!r}, got {sys.platform}: Core ML runs nowhere else; use --device {REFERENCE}"
        )


def load_model(path: Path, units: str) -> Any:
    """The package compiled and loaded by Core ML for these compute units."""
    import coremltools as ct

    return ct.models.MLModel(str(path), compute_units=getattr(ct.ComputeUnit, units))


def _open_coreml(program: Program, device: str) -> CoreMLRunner:
    """Load a copy of the package, since coremltools rewrites the manifest of a package. The copy is deleted with the runner."""
    folder = tempfile.mkdtemp(prefix="gdposr-")
    try:
        copy = Path(folder) / program.path.name
        shutil.copytree(program.path, copy, copy_function=shutil.copyfile)
        try:
            model = load_model(copy, COMPUTE_UNITS[device])
        except Exception as error:  # coremltools and the system's compiler raise various exceptions
            raise _failed(program, f"a package that Core ML loads for {device!r}", error) from error
        runner = CoreMLRunner(program, model)
        weakref.finalize(runner, shutil.rmtree, folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return runner


def _failed(program: Program, expected: str, error: Exception) -> DeviceError:
    lines = str(error).strip().splitlines()
    got = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return DeviceError(
        f"{program.path}: expected {expected}, got {got}; try another device, or --device {REFERENCE}"
    )


class CoreMLRunner:
    """`predict` of a loaded model on arrays. Images are converted to and from 8-bit pictures."""

    def __init__(self, program: Program, model: Any) -> None:
        self._program = program
        self._model = model

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        given = {f.name: _to_coreml(f, inputs[f.name]) for f in self._program.inputs}
        try:
            found = self._model.predict(given)
        except Exception as error:  # coremltools and the system's runtime raise various exceptions
            raise _failed(self._program, "a prediction by Core ML", error) from error
        missing = [f.name for f in self._program.outputs if f.name not in found]
        if missing:
            raise DeviceError(f"{self._program.path}: expected the outputs {missing}, got {sorted(found)}")
        return {f.name: _from_coreml(f, found[f.name]) for f in self._program.outputs}


def _to_coreml(feature: Feature, array: np.ndarray) -> Any:
    if feature.image is None:
        return np.asarray(array, np.float16 if feature.type.dtype == "fp16" else np.float32)
    from PIL import Image

    pixels = np.rint(np.clip(array[0], 0, _IMAGE_PEAK)).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _from_coreml(feature: Feature, value: Any) -> np.ndarray:
    array = np.asarray(value, np.float32)
    if feature.image is None:
        return array
    return array[None, None] if array.ndim == 2 else array[..., :3].transpose(2, 0, 1)[None]  # without alpha


def unit_range(program: Program, run: Runner) -> Runner:
    """The same runner with images in [0, 1] instead of [0, 255]."""

    def scaled(inputs: Arrays) -> dict[str, np.ndarray]:
        images = {f.name for f in program.inputs if f.image}
        found = run({n: np.float32(_IMAGE_PEAK) * a if n in images else a for n, a in inputs.items()})
        pictures = {f.name for f in program.outputs if f.image}
        return {n: a / np.float32(_IMAGE_PEAK) if n in pictures else a for n, a in found.items()}

    return scaled
