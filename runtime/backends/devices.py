"""The interface of all backends, and the devices by name: package and provider of each, and the remedy if they are missing."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ..bundle.packages import PackageList
from ..bundle.reader import Bundle
from ..errors import BundleError, DeviceError
from ..image.bands import Floats

# What `encode` gives for `generate`, by name: arrays, or tensors in a device's memory.
Features = dict[str, Any]


class Backend(Protocol):
    """Runs the two graphs of one bundle. Safe to call from several threads."""

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def placement(self) -> dict[str, int] | None:
        """Nodes of both graphs, counted by the provider or processor that runs them. None: the library does not tell."""
        ...

    @property
    def largest(self) -> int | None:
        """Longest side that one call takes, in LR pixels with context. None: any."""
        ...

    def encode(self, image: Floats) -> Features:
        """(n, 3, h, w) RGB in [0, 1] -> features by name. h and w are multiples of `multiple_of`."""
        ...

    def generate(self, features: Features, noise: Floats) -> Floats:
        """Features of this backend's `encode` and noise (n, c, h', w') -> (n, 3, scale h, scale w), nominally in [0, 1]."""
        ...


CPU_PROVIDER: Final = "CPUExecutionProvider"
CORE_ML_PROVIDER: Final = "CoreMLExecutionProvider"
CORE_ML_REMEDY: Final = 'on a Mac: pip install "gdposr[coreml]"'
ON_A_MAC: Final = (
    "needs macOS 12 or later on Apple silicon, where pip install onnxruntime brings it; for a bundle's Core ML packages, macOS 14 "
    'and pip install "gdposr[coreml]"'
)
# Where Core ML may run an operation, besides the CPU, by the name of the compute units in coremltools.
CORE_ML_UNITS: Final = {"CPU_AND_NE": ("ane",), "CPU_AND_GPU": ("gpu",), "ALL": ("ane", "gpu")}


@dataclass(frozen=True)
class Device:
    """A device and the library that computes on it."""

    name: str
    """Name that the caller gives, such as "cuda"."""
    provider: str
    """ONNX Runtime's name of its provider. With another package, the name in reports."""
    remedy: str
    """What to do if the package or the provider is missing."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of ONNX Runtime's provider."""
    package: str = "onnxruntime"
    """The Python package that runs it."""
    memory: str | None = None
    """ONNX Runtime's name of the memory that holds the features between the two graphs. None: numpy arrays."""
    units: str | None = None
    """coremltools' name of the compute units, for a bundle's Core ML packages. None: this device runs no packages."""

    @property
    def places(self) -> tuple[str, ...]:
        """The names under which a placement counts what runs on this device."""
        return (self.provider, *CORE_ML_UNITS.get(self.units or "", ()))


# In the order in which "auto" tries them.
DEVICE_TABLE: Final = (
    Device(
        "cuda",
        "CUDAExecutionProvider",
        'on a machine with an NVIDIA GPU: pip install "gdposr[cuda]" && '
        "pip install --force-reinstall --no-deps onnxruntime-gpu",
        # The default search times every algorithm for every new tile shape; TF32 rounds to 10 bits.
        {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"},
        memory="cuda",
    ),
    Device(
        "ane",
        CORE_ML_PROVIDER,
        ON_A_MAC,
        {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndNeuralEngine"},
        units="CPU_AND_NE",
    ),
    Device("cpu", CPU_PROVIDER, "install ONNX Runtime again: pip install --force-reinstall onnxruntime"),
    # After the CPU of ONNX Runtime 1.32, because OpenVINO 2026.4 was slower: on an AMD EPYC with AVX-512 VNNI, 128->512, with one and
    # two threads, 1.3 to 1.7 times the time in INT8 and 1.0 to 1.3 times in fp32, and 175 MB of memory against 100. `gdposr bench
    # --device cpu --device openvino` compares the two on another processor.
    Device("openvino", "OpenVINO", 'pip install "gdposr[openvino]"', package="openvino"),
    # "auto" reaches these only if nothing before them can run the bundle. With a free choice, Core ML may move work between GPU and
    # Neural Engine, which is slower at times. So "ane" comes first.
    Device(
        "coreml-gpu",
        CORE_ML_PROVIDER,
        ON_A_MAC,
        {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
        units="CPU_AND_GPU",
    ),
    Device(
        "coreml-all",
        CORE_ML_PROVIDER,
        ON_A_MAC,
        {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
        units="ALL",
    ),
)
DEVICES: Final = ("auto", "cpu", *(device.name for device in DEVICE_TABLE if device.name != "cpu"))


def device_spec(name: str) -> Device:
    """The row of the table with this name. DeviceError if there is none."""
    for device in DEVICE_TABLE:
        if device.name == name:
            return device
    raise DeviceError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}; choose one of these")


def core_ml_here() -> bool:
    """Whether Core ML packages run here: macOS with coremltools. It is not imported, because that takes seconds."""
    return sys.platform == "darwin" and importlib.util.find_spec("coremltools") is not None


def require(device: Device) -> None:
    """DeviceError with the remedy if the library that runs ONNX graphs on a device is missing."""
    providers = onnx_runtime().get_available_providers()
    if installed(device, providers):
        return
    if device.package != "onnxruntime":
        raise DeviceError(
            f"device {device.name}: expected the package {device.package}, got none; {device.remedy}"
        )
    raise DeviceError(
        f"device {device.name}: expected ONNX Runtime with {device.provider}, got one with "
        f"{', '.join(providers)}; {device.remedy}"
    )


def core_ml_packages(bundle: Bundle, device: str, precision: str) -> dict[str, PackageList] | None:
    """The Core ML packages, by role, that a device runs here for a precision. None: it runs ONNX graphs.

    A package is preferred to a graph of the same name: Core ML compiles it whole, and its PSNR floor was measured on its own output.
    """
    if device_spec(device).units is None or not core_ml_here():
        return None
    return bundle.manifest.coreml.get(precision)


def check_precision(bundle: Bundle, precision: str, known: tuple[str, ...] | None = None) -> str:
    """precision itself, or BundleError if it is not among known. None: the precisions of the bundle's ONNX graphs."""
    known = tuple(bundle.manifest.graphs) if known is None else known
    if precision in known:
        return precision
    got = repr(precision)
    if precision in bundle.manifest.coreml:
        got += f", Core ML packages that only the devices {list_core_ml()} run, {CORE_ML_REMEDY}"
    raise BundleError(
        f"{bundle.path}: precision: expected one of {', '.join(known)}, got {got}; choose one of these or auto"
    )


def usable_processors() -> int:
    """Processors that this process may use, by its affinity mask and its container's quota."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or quota "max"
        return count


def onnx_runtime() -> Any:
    """The module onnxruntime, from whichever distribution is installed. The runtime imports it nowhere else."""
    # Official builds since 1.32 report the use of every model to a web service and keep a file about it in the home folder, unless this
    # is set before the first import. A value that the user has set is kept.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    remedy = "run: pip install --force-reinstall onnxruntime"
    try:
        import onnxruntime
    except (ImportError, AttributeError, OSError) as error:  # what a damaged installation raises
        raise DeviceError(f"expected the package onnxruntime, got: {error}; {remedy}") from error
    return whole_package(onnxruntime, ("InferenceSession", "get_available_providers"), remedy)


def whole_package(package: Any, names: tuple[str, ...], remedy: str) -> Any:
    """The package itself. DeviceError if it lacks one of the names: an empty folder of its name can be imported too."""
    missing = [name for name in names if not hasattr(package, name)]
    if missing:
        raise DeviceError(
            f"expected the whole package {package.__name__}, got one without {missing[0]}, which is installed in part; {remedy}"
        )
    return package


def installed(device: Device, providers: list[str]) -> bool:
    """Whether the library of a device is installed. providers: those that ONNX Runtime has."""
    if device.package == "onnxruntime":
        return device.provider in providers
    return importlib.util.find_spec(device.package) is not None  # not imported: that takes a while


def list_core_ml() -> str:
    """The names of the devices that run Core ML packages, for messages."""
    return ", ".join(device.name for device in DEVICE_TABLE if device.units is not None)


def shapes_of(values: Features) -> dict[str, tuple[int, ...]]:
    """Shapes by name, for messages. `shape` is a method of ONNX Runtime's tensors and an attribute of arrays."""
    return {
        name: tuple(value.shape() if callable(value.shape) else value.shape) for name, value in values.items()
    }
