"""Devices by name: a table with the package and provider of each, and what to do if they are missing.

A device that is asked for by name is used or refused. Only "auto" chooses, and the choice is reported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..bundle.entries import Package
from ..bundle.reader import Bundle
from ..errors import BundleError, DeviceError
from .base import Backend

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
    provider: str
    """ONNX Runtime's name of its provider. With another package, the name in reports."""
    remedy: str
    """What to do if the package or the provider is missing."""
    options: dict[str, str] = field(default_factory=dict)
    """Options of ONNX Runtime's provider."""
    package: str = "onnxruntime"
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


def available_devices() -> tuple[str, ...]:
    """The devices whose package and provider are installed, in the order in which "auto" tries them."""
    providers = onnx_runtime().get_available_providers()
    packages = core_ml_here()
    return tuple(d.name for d in DEVICE_TABLE if _installed(d, providers) or (packages and d.units))


def core_ml_here() -> bool:
    """Whether Core ML packages run here: macOS with coremltools. It is not imported, because that takes seconds."""
    return sys.platform == "darwin" and importlib.util.find_spec("coremltools") is not None


def require(device: Device) -> None:
    """DeviceError with the remedy if the library that runs ONNX graphs on a device is missing."""
    providers = onnx_runtime().get_available_providers()
    if _installed(device, providers):
        return
    if device.package != "onnxruntime":
        raise DeviceError(
            f"device {device.name}: expected the package {device.package}, got none; {device.remedy}"
        )
    raise DeviceError(
        f"device {device.name}: expected ONNX Runtime with {device.provider}, got one with "
        f"{', '.join(providers)}; {device.remedy}"
    )


def core_ml_packages(bundle: Bundle, device: str, precision: str) -> dict[str, Package] | None:
    """The Core ML packages, by role, that a device runs here for a precision. None: it runs ONNX graphs.

    A package is preferred to a graph of the same name: Core ML compiles it whole, and its PSNR floor was measured on its own output.
    """
    if device_spec(device).units is None or not core_ml_here():
        return None
    return bundle.manifest.coreml.get(precision)


def offered(bundle: Bundle, device: str = "auto") -> tuple[str, ...]:
    """The precisions of a bundle on a device here: variants of Core ML packages first, then precisions of ONNX graphs.

    Empty if the bundle has nothing for the device. DeviceError if the device itself is missing.
    """
    if device == "auto":
        return tuple(dict.fromkeys(p for name in available_devices() for p in _runs(bundle, name)))
    found, spec = _runs(bundle, device), device_spec(device)
    if not found and (bundle.manifest.graphs or spec.units is None):
        require(spec)
    return found


def check_precision(bundle: Bundle, precision: str, known: tuple[str, ...] | None = None) -> str:
    """precision itself, or BundleError if it is not among known. None: the precisions of the bundle's ONNX graphs."""
    known = tuple(bundle.manifest.graphs) if known is None else known
    if precision in known:
        return precision
    got = repr(precision)
    if precision in bundle.manifest.coreml:
        got += f", Core ML packages that only the devices {_list_core_ml()} run, {CORE_ML_REMEDY}"
    raise BundleError(
        f"{bundle.path}: precision: expected one of {', '.join(known)}, got {got}; choose one of these or auto"
    )


def choices(bundle: Bundle, device: str = "auto", precision: str = "auto") -> list[tuple[str, str]]:
    """(device, precision) pairs that satisfy the request, best first. With "auto" there may be several."""
    if device == "auto":
        there = {name: _runs(bundle, name) for name in available_devices()}
    else:
        there = {device: offered(bundle, device)}
    known = tuple(dict.fromkeys(p for precisions in there.values() for p in precisions))
    if not known:
        raise BundleError(
            f"{bundle.path}: expected ONNX graphs, got a bundle with Core ML packages only ({', '.join(bundle.manifest.coreml)}): "
            f"they run on the devices {_list_core_ml()}, {CORE_ML_REMEDY}; or export it again with --targets onnx,coreml to run it "
            "anywhere"
        )
    if precision != "auto":
        check_precision(bundle, precision, known)
        return [(name, precision) for name, precisions in there.items() if precision in precisions]
    return [(name, p) for name, precisions in there.items() for p in _preferred(bundle, name, precisions)]


def resolve(bundle: Bundle, device: str = "auto", precision: str = "auto") -> tuple[str, str, list[str]]:
    """The best (device, precision) for a request, and notes that the user should see."""
    name, kind = choices(bundle, device, precision)[0]
    notes = []
    if device == "auto" and name == "cpu" and _has_nvidia_gpu():
        notes.append(f"using the CPU although an NVIDIA GPU is here; to use it, {device_spec('cuda').remedy}")
    if device_spec(name).units is not None and bundle.manifest.coreml and not core_ml_here():
        notes.append(
            f"{name} runs the ONNX graphs through ONNX Runtime; the bundle also has Core ML packages "
            f"({', '.join(bundle.manifest.coreml)}); to run these, {CORE_ML_REMEDY}"
        )
    return name, kind, notes


def open_backend(bundle: Bundle, device: str, precision: str, threads: int | None = None) -> Backend:
    """Load a bundle's graphs. device, precision: names, not "auto". threads: None = all processors that this process may use."""
    # imported here, because these modules import this one, and to load no library that is not used
    if core_ml_packages(bundle, device, precision) is not None:
        from .coreml import CoreMLBackend

        return CoreMLBackend(bundle, device, precision, threads)
    if device_spec(device).package == "openvino":
        from .openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, device, precision, threads)
    from .onnx import OnnxBackend

    return OnnxBackend(bundle, device, precision, threads)


def placement_note(backend: Backend) -> str | None:
    """A message for the user if a device runs less than half of the graphs' nodes. None: it runs more."""
    placement = backend.placement
    if not placement:
        return None
    own = sum(placement.get(place, 0) for place in device_spec(backend.device).places)
    total = sum(placement.values())
    if 2 * own >= total:
        return None
    rest = ", ".join(f"{count} by {name}" for name, count in sorted(placement.items()))
    return (
        f"only {own} of {total} graph nodes of {backend.precision} run on {backend.device} ({rest}); "
        "the device cpu or another precision may be faster"
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
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            f"expected the package onnxruntime, got: {error}; run: pip install --force-reinstall onnxruntime"
        ) from error
    return onnxruntime


def _installed(device: Device, providers: list[str]) -> bool:
    if device.package == "onnxruntime":
        return device.provider in providers
    return importlib.util.find_spec(device.package) is not None  # not imported: that takes a while


def _runs(bundle: Bundle, device: str) -> tuple[str, ...]:
    """As `offered` for one device. Empty if that is missing."""
    spec, manifest = device_spec(device), bundle.manifest
    packages = manifest.coreml if spec.units is not None and core_ml_here() else {}
    graphs = manifest.graphs if _installed(spec, onnx_runtime().get_available_providers()) else {}
    return tuple(dict.fromkeys([*packages, *graphs]))


def _preferred(bundle: Bundle, device: str, precisions: tuple[str, ...]) -> list[str]:
    """The manifest's choice for a device, then fp32 as the fallback."""
    packages = [name for name in precisions if core_ml_packages(bundle, device, name)]
    wanted = bundle.manifest.default_precision.get(device, "")
    usual = "fp16" if packages else "fp32"
    first = next((name for name in (wanted, usual) if name in (packages or precisions)), None)
    found = [first] if first is not None else [*(packages or precisions)][:1]
    return found if found == ["fp32"] or "fp32" not in precisions else [*found, "fp32"]


def _list_core_ml() -> str:
    return ", ".join(device.name for device in DEVICE_TABLE if device.units is not None)


def _has_nvidia_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
